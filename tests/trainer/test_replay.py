"""The losses of generative feature replay against loops, on any number of ranks."""

from dataclasses import dataclass, replace

import pytest
import torch

from data_shards.settings import InputError
from tests.ranks import on_ranks
from tests.trainer.against_dense import (
    BATCH,
    DIMENSION,
    NETWORK,
    OLD,
    ROWS,
    assert_equal,
    assert_updated_alike,
    batches,
    dense_updates,
    draws,
    on_rank,
    updated,
)
from tests.trainer.loops import LINEAR, train_step
from trainer.batch_norm import hold_batch_norm, synchronise_batch_norm
from trainer.checkpoint import Folder
from trainer.heads.collectives import Ranks
from trainer.methods.plain import Finetune
from trainer.methods.recipe import Recipe, Start
from trainer.methods.replay import (
    DistillFeatures,
    GenerativeFeatureReplay,
    Generator,
    Replay,
)
from trainer.methods.terms import Classify, MatchEmbeddings
from trainer.model import Model
from trainer.replay.gaussian import Gaussians
from trainer.replay.source import replayed

CPU = torch.device("cpu")


# Losses


@dataclass(frozen=True)
class Fixed:
    """Draws by a linear map of its own, in float64."""

    rows: int = OLD
    noise: int = 3

    def features(self, classes, noise):
        turn = torch.linspace(-1, 1, 3 * DIMENSION, dtype=torch.float64).view(3, DIMENSION)
        return classes[:, None] / 3 + noise.double() @ turn


@dataclass(frozen=True)
class Single(Fixed):
    """The same in float32."""

    def features(self, classes, noise):
        return super().features(classes, noise).float()


def cross_entropy(features, labels, rows):
    total = 0.0
    for feature, label in zip(features, labels, strict=True):
        logits = torch.stack([row @ feature for row in rows])
        total = total - (logits[label] - logits.exp().sum().log())
    return total / len(labels)


def replay(embeddings, labels, rows, *old, count=BATCH, iteration=0):
    features, classes = replayed(Fixed(), count, 0, iteration, CPU)
    return cross_entropy(features, classes, rows)


def distill(embeddings, labels, rows, old_embeddings, *old):
    """Eq. 4, a number at a time."""
    total = 0.0
    for now, before in zip(embeddings, old_embeddings, strict=True):
        total = total + sum((a - b) ** 2 for a, b in zip(now, before, strict=True)) ** 0.5
    return total / len(embeddings)


class _Needs:
    """A Term of no rows still needs them to be one block here."""

    over = "all"


@dataclass(frozen=True)
class Distance(_Needs, DistillFeatures):
    pass


@dataclass(frozen=True)
class Squared(_Needs, MatchEmbeddings):
    """LFL's."""


@dataclass(frozen=True)
class OverRanks(Replay):
    """Every rank's loss is added up."""

    def __call__(self, forward):
        numerator, count = super().__call__(forward)
        return numerator * forward.rows["all"].ranks.world, count


@dataclass(frozen=True)
class OverOld(Replay):
    """Told apart from old identities alone, so that new rows are not held back."""

    def __call__(self, forward):
        return super().__call__(replace(forward, rows={**forward.rows, "all": forward.rows["old"]}))


HOW = Gaussians()
RIGHT = {
    "replay": (Replay(1.0, HOW), replay),
    "replay of 4": (Replay(1.0, HOW, 4), lambda *given: replay(*given, count=4)),
    "distill": (Distance(1.0), distill),
}
WRONG = {
    "replay summed": (OverRanks(1.0, HOW), replay),
    "replay over old rows": (OverOld(1.0, HOW), replay),
    "squared": (Squared(1.0), distill),
}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_losses_and_gradients_are_those_of_loops(world, tmp_path):
    given = draws()
    terms = {name: term for name, (term, _) in {**RIGHT, **WRONG}.items()}
    loaded = {Generator: Fixed()}
    results = on_ranks(world, on_rank, terms, LINEAR, given, loaded, folder=tmp_path)
    for name, (_, dense) in RIGHT.items():
        assert_equal(results, name, given, dense)
    for name, (_, dense) in WRONG.items():
        if world > 1 or not name.endswith("summed"):
            with pytest.raises(AssertionError):
                assert_equal(results, name, given, dense)


def test_the_distance_has_a_gradient_where_nothing_has_moved():
    embeddings, labels, rows, _, old_rows = draws()
    given = embeddings, labels, rows, embeddings.clone(), old_rows
    loss, gradient, _ = on_rank({"d": Distance(1.0)}, LINEAR, given)["d"]
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("weighting", ["paper", "released"])
def test_updates_are_those_of_a_plain_loop(weighting):
    """f = C_old / C_new of the released weights."""
    method = GenerativeFeatureReplay(weighting=weighting, weight=0.7, replay=0.9)
    recipe = method.recipe().at(1, OLD, new_rows=ROWS - OLD)
    names = ["classify", "replay", "distillfeatures"]
    assert [term.name for term in recipe.terms] == names
    f = OLD / (ROWS - OLD)
    shares = (1, 1, 1) if weighting == "paper" else (1 / (f + 1), f / (f + 1), f)
    iteration = iter(range(len(batches())))

    def loss(embeddings, labels, rows, *old):
        drawn = replay(embeddings, labels, rows, iteration=next(iteration))
        own = cross_entropy(embeddings, labels, rows)
        kept = distill(embeddings, labels, rows, *old)
        return shares[0] * own + shares[1] * 0.9 * drawn + shares[2] * 0.7 * kept

    found = updated(recipe, LINEAR, NETWORK, {Generator: Single()})
    assert_updated_alike(found, dense_updates(loss, NETWORK))


def test_a_generator_of_other_identities_or_embeddings_is_refused():
    term = {"replay": Replay(1.0, HOW)}
    with pytest.raises(InputError, match="features of 4 identities, and 5 were learned before"):
        on_rank(term, LINEAR, draws(), {Generator: Fixed(rows=4)})
    embeddings, labels, rows, old_embeddings, old_rows = draws()
    longer = embeddings.repeat(1, 2), labels, rows.repeat(1, 2), old_embeddings, old_rows
    with pytest.raises(InputError, match=r"embedder\.dimension"):
        on_rank(term, LINEAR, longer, {Generator: Fixed()})


def test_step_0_is_that_of_finetuning():
    for method in (GenerativeFeatureReplay(), GenerativeFeatureReplay(weighting="released")):
        first = method.recipe().at(0, 0, new_rows=3)
        assert (
            first
            == Finetune().recipe().at(0, 0)
            == Recipe(start=Start(embedder="scratch"), terms=(Classify(),))
        )


def test_what_holds_the_extractor():
    terms = {
        keep: [term.name for term in GenerativeFeatureReplay(keep=keep).recipe().terms]
        for keep in ("features", "ewc", "mas")
    }
    assert terms["features"] == ["classify", "replay", "distillfeatures"]
    assert terms["ewc"] == terms["mas"] == ["classify", "replay", "consolidate"]
    weights = [
        GenerativeFeatureReplay(keep="mas", weight=w).recipe().terms[-1].weight for w in (None, 3)
    ]
    assert weights == [1, 3]
    with pytest.raises(ValueError, match="generator=wgan has none"):
        GenerativeFeatureReplay(generator="wgan", drift="compensated")
    with pytest.raises(ValueError, match="keep=features alone"):
        GenerativeFeatureReplay(keep="ewc", weighting="released")


# Batch normalisation


def held_on_rank():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    network[1].running_mean.uniform_()
    before = {name: own.clone() for name, own in network[1].named_buffers()}
    plain = network.eval()(torch.eye(3)).detach()
    synchronise_batch_norm(network, Ranks.default())
    hold_batch_norm(network.train())
    output = network(torch.eye(3))
    output.sum().backward()
    same = all(torch.equal(own, before[name]) for name, own in network[1].named_buffers())
    return same, torch.equal(output, plain), network[1].weight.grad is not None


@pytest.mark.parametrize("world", [1, 2])
def test_held_batch_normalisation_goes_by_statistics_that_stay(world, tmp_path):
    assert on_ranks(world, held_on_rank, folder=tmp_path) == [(True, True, True)] * world


def test_a_training_holds_them_where_it_says_so(small_folder, tmp_path):
    train_step(small_folder, tmp_path, "finetune", 0)
    before = Folder.at(tmp_path / "0" / "model").tensors("embedder")
    for method, stays in (("gfr-released", True), ("gfr", False)):
        train_step(small_folder, tmp_path, method, 1, iterations=2, milestones=())
        after = Folder.at(tmp_path / "1" / "model").tensors("embedder")
        statistics = [name for name in before if "running" in name]
        assert statistics
        assert all(torch.equal(before[n], after[n]) for n in statistics) == stays
        assert not all(torch.equal(before[n], after[n]) for n in before)
        Model.open(tmp_path / "1" / "model")
    with pytest.raises(ValueError, match="start from it"):
        Start(embedder="scratch", batch_norm="held")
