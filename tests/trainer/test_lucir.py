"""LUCIR's losses against loops over samples and rows in float64, on any number of ranks."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from tests.ranks import on_ranks
from tests.trainer.against_dense import (
    BATCH,
    NETWORK,
    OLD,
    ROWS,
    OverAll,
    Summed,
    assert_equal,
    assert_unequal,
    assert_updated_alike,
    dense_updates,
    draws,
    on_rank,
    updated,
)
from trainer.backbones import EmbedderSettings
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.margins import CosFace, Cosine
from trainer.heads.rows import ShardedRows
from trainer.imprinting import imprinted
from trainer.methods.lucir import LUCIR, KeepDirections, SetApart
from trainer.methods.plain import Finetune
from trainer.methods.recipe import Recipe, Start
from trainer.methods.terms import Classify

COSINE = ClassifierSettings(margin=Cosine())
K, MARGIN = 2, 0.5
LAMBDA = math.sqrt(OLD / (ROWS - OLD))


def cosine(a, b):
    return (a @ b) / (a.norm() * b.norm())


def classify(embeddings, labels, rows, *old):
    """The softmax over eta times the cosine, where embeddings are eta times a direction."""
    total = 0.0
    for embedding, label in zip(embeddings, labels, strict=True):
        logits = torch.stack([row @ embedding / row.norm() for row in rows])
        total = total - (logits[label] - logits.exp().sum().log())
    return total / len(labels)


def keep(embeddings, labels, rows, old_embeddings, *old):
    """The less-forget constraint, with the weight of a step."""
    apart = [1 - cosine(a, b) for a, b in zip(embeddings, old_embeddings, strict=True)]
    return LAMBDA * sum(apart) / len(apart)


def set_apart(embeddings, labels, rows, *old):
    """Inter-class separation: for each image of an old identity, each of its K nearest new rows."""
    pairs = []
    for embedding, label in zip(embeddings, labels, strict=True):
        if label >= OLD:
            continue
        own = cosine(embedding, rows[label])
        others = [cosine(embedding, row) for row in rows[OLD:]]
        for other in sorted(others, key=lambda c: c.item(), reverse=True)[:K]:
            pairs.append((MARGIN - own + other).relu())
    return sum(pairs) / len(pairs)


KEEP = KeepDirections(1.0).among(OLD, ROWS - OLD)
RIGHT = {
    "classify": (Classify(over="all"), classify),
    "keep": (OverAll(KEEP), keep),
    "apart": (SetApart(1.0, K, MARGIN), set_apart),
}


@dataclass(frozen=True)
class OverBatch(Classify):
    """The softmax runs over samples."""

    over: str = "all"

    def __call__(self, forward):
        rows = forward.rows["all"]
        place, owned = rows.local(forward.labels)
        logits = forward.embeddings @ F.normalize(rows.weight).T
        own = logits.log_softmax(dim=0).gather(1, place[:, None])[:, 0]
        return -(own * owned).sum(), BATCH


@dataclass(frozen=True)
class AmongAll(SetApart):
    """The hardest of all rows, and of images of new identities, too."""

    def __call__(self, forward):
        rows = {**forward.rows, "new": forward.rows["all"]}
        return super().__call__(replace(forward, rows=rows, labels=forward.labels))


@dataclass(frozen=True)
class OverTheBatch(SetApart):
    """The mean over the whole batch."""

    def __call__(self, forward):
        return super().__call__(forward)[0], BATCH


WRONG = {
    "classify summed": (Summed(Classify(over="all")), classify),
    "classify over the batch": (OverBatch(), classify),
    "keep, unadapted": (OverAll(KeepDirections(1.0)), keep),
    "keep, inverted": (OverAll(KeepDirections(1.0).among(ROWS - OLD, OLD)), keep),
    "keep summed": (Summed(KEEP), keep),
    "apart summed": (Summed(SetApart(1.0, K, MARGIN)), set_apart),
    "apart from all": (AmongAll(1.0, K, MARGIN), set_apart),
    "apart, a mean over the batch": (OverTheBatch(1.0, K, MARGIN), set_apart),
}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_losses_and_gradients_are_those_of_loops(world, tmp_path):
    given = draws()
    terms = {name: term for name, (term, _) in {**RIGHT, **WRONG}.items()}
    results = on_ranks(world, on_rank, terms, COSINE, given, folder=tmp_path)
    for name, (_, dense) in RIGHT.items():
        assert_equal(results, name, given, dense)
    for name, (_, dense) in WRONG.items():
        if world > 1 or not name.endswith("summed"):
            assert_unequal(results, name, given, dense)


def test_more_hard_rows_than_new_ones_are_all_of_them():
    given = draws()
    many, all_new = (
        on_rank({"a": SetApart(1.0, k, MARGIN)}, COSINE, given)["a"] for k in (50, ROWS - OLD)
    )
    torch.testing.assert_close(many, all_new, rtol=0, atol=0)


def test_neither_loss_depends_on_the_features_length():
    embeddings, labels, rows, old, old_rows = draws()
    lengths = torch.rand(BATCH, 1, dtype=torch.float64) + 0.1
    terms = {"keep": OverAll(KEEP), "apart": SetApart(1.0, K, MARGIN)}
    plain = on_rank(terms, COSINE, draws())
    scaled = on_rank(terms, COSINE, (embeddings * lengths, labels, rows * 3, old / 7, old_rows))
    for name in terms:
        assert float(scaled[name][0]) == pytest.approx(float(plain[name][0]), rel=1e-12)
    # nor do the logits on their rows'
    found = [
        on_rank({"c": Classify(over="all")}, COSINE, (embeddings, labels, own, old, old_rows))["c"]
        for own in (rows, rows * torch.arange(1, ROWS + 1)[:, None])
    ]
    assert float(found[0][0]) == pytest.approx(float(found[1][0]), rel=1e-12)


def test_without_an_image_of_an_old_identity_nothing_is_set_apart():
    embeddings, labels, *rest = draws()
    given = embeddings, labels.clamp_min(OLD), *rest
    loss, gradient, by_id = on_rank({"apart": SetApart(1.0, K, MARGIN)}, COSINE, given)["apart"]
    assert loss == 0
    assert not gradient.any() and not torch.stack([*by_id.values()]).any()
    # even of an embedding that is nothing
    given = torch.zeros_like(embeddings), labels, *rest
    loss, gradient, by_id = on_rank({"apart": SetApart(1.0, K, MARGIN)}, COSINE, given)["apart"]
    assert loss.isfinite() and gradient.isfinite().all()
    assert torch.stack([*by_id.values()]).isfinite().all()


def test_directions_that_are_kept_cost_nothing():
    embeddings, labels, rows, _, old_rows = draws()
    given = embeddings, labels, rows, 5 * embeddings, old_rows
    loss, gradient, _ = on_rank({"keep": OverAll(KEEP)}, COSINE, given)["keep"]
    zeros = torch.zeros_like(gradient)
    torch.testing.assert_close(gradient, zeros, rtol=0, atol=1e-15)
    assert abs(float(loss)) < 1e-14


def test_the_weight_follows_the_steps():
    """CIFAR-100, 50 classes and then 10 a step, with a base of 5."""
    table = [(50, 11.180340), (60, 12.247449), (70, 13.228757), (80, 14.142136), (90, 15.0)]
    for old, weight in table:
        assert 5 * KEEP.among(old, 10).adapted == pytest.approx(weight, abs=1e-6)
    assert KEEP.among(50, 50).adapted == 1
    assert KEEP.among(50, 2).adapted == 5


def test_updates_are_those_of_a_plain_loop():
    method = LUCIR(memory={"per_class": 2})
    network, recipe = method.network(NETWORK, 1), method.recipe().at(1, OLD, ROWS - OLD)
    assert [type(term) for term in recipe.terms] == [Classify, KeepDirections, SetApart]

    def loss(*given):
        return classify(*given) + method.weight * keep(*given) + set_apart(*given)

    found = updated(recipe, COSINE, network)
    assert_updated_alike(found, dense_updates(loss, network))
    assert found[1]["activation.eta"] != 1, "the scale is trained"


def test_step_0_is_that_of_finetuning_by_the_same_network():
    lucir, finetune = (m.recipe().at(0, 0) for m in (LUCIR(), Finetune()))
    assert lucir == finetune == Recipe(start=Start(embedder="scratch"), terms=(Classify(),))


# Imprinted rows


def test_imprinted_rows_are_the_mean_directions_at_the_old_rows_mean_length():
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(7, 5, generator=generator) * 3
    vectors = [torch.randn(n, 5, generator=generator).double() for n in (4, 1, 6)]
    means = [sum(v / v.norm() for v in own) / len(own) for own in vectors]
    rows = torch.from_numpy(imprinted(torch.stack(means).float().numpy(), old))
    length = sum(float(row.norm()) for row in old) / len(old)
    for row, mean in zip(rows, means, strict=True):
        torch.testing.assert_close(row.double(), mean / mean.norm() * length, rtol=1e-6, atol=1e-6)
        assert float(row.norm()) == pytest.approx(length, rel=1e-6)


def test_imprinting_needs_a_previous_model():
    for start in ({"embedder": "scratch"}, {"old_rows": "scratch"}):
        with pytest.raises(ValueError, match="imprinted with the previous model"):
            Start(**start, new_rows="imprinted")
    assert Start().spelled(False) == "previous"
    assert Start(new_rows="imprinted").spelled(False) == "previous, new rows imprinted"


# The cosine classifier


def test_a_cosine_classifier_is_normalised_softmax_of_unit_embeddings_times_its_scale():
    embeddings, labels, rows, *_ = draws()
    scale = 16.0
    found = []
    for margin, given in (
        ({"kind": "cosine"}, scale * F.normalize(embeddings)),
        ({"kind": "norm_softmax", "scale": scale}, embeddings),
    ):
        settings = ClassifierSettings(margin=margin)
        weight = ShardedRows(0, ROWS, rows.clone(), Ranks())
        losses = MarginLoss(settings, 0, rows.device).losses(given, labels, weight)
        losses.sum().backward()
        found.append((losses.detach(), weight.weight.grad, settings.directions(rows)))
    torch.testing.assert_close(*found)
    assert ClassifierSettings(margin=Cosine()).scale is None


def test_its_settings():
    method = LUCIR(memory={"per_class": 20})
    usual = EmbedderSettings(architecture="resnet32", projection="none", dimension=64)
    changed = {"activation": "cosine", "last_relu": False}
    for step in (0, 1):
        assert method.network(usual, step) == usual.model_copy(update=changed)
        assert method.network(NETWORK, step).last_relu
        assert method.loss(ClassifierSettings(margin=CosFace(), sampled=0.5), step) == COSINE
    assert method.recipe().start == Start(new_rows="imprinted")
    held = LUCIR(hold_old_rows=True).recipe().start
    assert held == Start(old_rows="held", new_rows="imprinted")
    assert held.spelled(False) == "previous, old rows held, new rows imprinted"
    with pytest.raises(ValidationError, match="over"):
        LUCIR(over="new")
