"""Backward-compatible training's influence loss, against a dense float64 reference."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data_shards.orders.order import rank_slice
from data_shards.settings import InputError
from tests.ranks import on_ranks
from tests.trainer.reference import margin_softmax
from trainer.class_means import (
    class_means,
    class_sums,
    read_class_means,
    read_sums,
    with_class_means,
    write_class_means,
    write_sums,
)
from trainer.heads.collectives import Ranks, gather_embeddings
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.margins import AdaFace, ArcFace, CosFace, NormSoftmax, Softmax
from trainer.heads.rows import ShardedRows
from trainer.methods.forward import Forward, OldClassifier, Teacher
from trainer.methods.influence import Influence, places
from trainer.methods.terms import MatchEmbeddings

BATCH, KNOWN, NEW, OLD_DIMENSION = 13, 7, 5, 4
TERMS = {
    "bct": Influence(1.0, "skip"),
    "bct-sys": Influence(1.0, "synthesise"),
    "bct-kd": Influence(1.0, "distil"),
    "bct-kd at 2": Influence(1.0, "distil", temperature=2.0),
    "bct-lwf": Influence(1.0, "distil", classify_known=False),
    "l2": MatchEmbeddings(1.0, known_only=True),
}
MARGINS = [Softmax(), NormSoftmax(scale=5.0), CosFace(scale=4.0), ArcFace(scale=3.0), AdaFace()]


def case(dimension):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.randint(0, KNOWN + NEW, (BATCH,), generator=generator)
    new, old = draw(BATCH, dimension), draw(BATCH, OLD_DIMENSION)
    return new, old, labels, draw(KNOWN, OLD_DIMENSION), draw(NEW, OLD_DIMENSION)


def on_this_rank(dimension):
    """Of each term and margin: the loss, and the gradient of this rank's embeddings."""
    ranks, out = Ranks.default(), {}
    new, old, labels, rows, means = case(dimension)
    parts = [rank_slice(BATCH, rank, ranks.world) for rank in range(ranks.world)]
    counts = [part.stop - part.start for part in parts]
    for margin in MARGINS:
        for name, term in TERMS.items():
            settings = ClassifierSettings(margin=margin)
            classifier = MarginLoss(settings, 0, new.device)
            classifier.running = {k: v.double() for k, v in classifier.running.items()}
            frozen = ShardedRows(0, KNOWN, rows[ranks.rank :: ranks.world].clone(), ranks)
            frozen = ShardedRows(0, KNOWN, settings.directions(frozen.weight.detach()), ranks)
            frozen.requires_grad_(False)
            if name == "bct-sys":
                frozen = with_class_means(frozen, means)
            own = new[parts[ranks.rank]].clone().requires_grad_()
            gathered = gather_embeddings(own, ranks, counts)
            current = ShardedRows(0, 0, torch.zeros(0, dimension), ranks)
            teacher, anchor = (
                Teacher(old, num_known=KNOWN),
                OldClassifier(frozen, classifier, KNOWN),
            )
            forward = Forward(
                embeddings=gathered,
                labels=labels,
                rows={"new": current},
                classifier=classifier,
                teacher=teacher,
                anchor=anchor,
            )
            numerator, denominator = term(forward)
            loss = numerator / denominator
            loss.backward()
            assert frozen.weight.grad is None
            assert all(
                torch.equal(v, margin.initial()[k].double()) for k, v in classifier.running.items()
            )
            out[name, margin.kind] = (loss.detach(), own.grad / ranks.world)
    return out


def expected(name, margin, dimension):
    """The same, one sample after the other."""
    new, old, labels, rows, means = case(dimension)
    new.requires_grad_()
    losses = []
    every = torch.cat([rows, means]) if name == "bct-sys" else rows

    def logits(embedding):
        if margin.kind == "softmax":
            return rows @ embedding
        return margin.scale * F.normalize(rows) @ F.normalize(embedding, dim=0)

    for phi, old_phi, label in zip(new, old, labels.tolist(), strict=True):
        short = phi[:OLD_DIMENSION]
        if name == "l2":
            if label < KNOWN:
                losses.append(((short - old_phi) ** 2).sum() / 2)
        elif label < len(every) and name != "bct-lwf":
            target = torch.tensor([label])
            losses.append(margin_softmax(short[None], target, every, margin)[0])
        elif label >= len(every) and name.startswith(("bct-kd", "bct-lwf")):
            tau = 2.0 if name == "bct-kd at 2" else 1.0
            p, q = (F.softmax(logits(v) / tau, 0) for v in (old_phi, short))
            losses.append((p * (p.log() - q.log())).sum())
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.detach(), new.grad


@pytest.mark.parametrize("dimension", [OLD_DIMENSION, OLD_DIMENSION + 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_influence_equals_the_dense_float64_reference(world, dimension, tmp_path):
    """Its gradient too; frozen rows get none, and the old margin's statistics stay."""
    results = on_ranks(world, on_this_rank, dimension, folder=tmp_path)
    for margin in MARGINS:
        for name in TERMS:
            loss, gradient = expected(name, margin, dimension)
            parts = [result[name, margin.kind] for result in results]
            for found, _ in parts:
                torch.testing.assert_close(
                    found, loss, rtol=1e-9, atol=1e-11, msg=f"{name} {margin}"
                )
            found = torch.cat([part for _, part in parts])
            torch.testing.assert_close(
                found, gradient, rtol=1e-8, atol=1e-10, msg=f"{name} {margin}"
            )


def test_identities_between_the_old_model_and_this_step_have_no_row():
    """With the first model as the old one, 3 identities known, 4 between, 2 learnt now."""
    labels = torch.tensor([0, 2, 7, 8])
    assert places(labels, first=7, num_known=3).tolist() == [0, 2, 3, 4]
    assert places(labels, first=0, num_known=3).tolist() == labels.tolist()


def test_class_means_are_those_of_a_naive_loop_however_shards_are_cut(tmp_path):
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(200, 6)).astype(np.float32)
    classes = np.concatenate([np.arange(10), generator.integers(0, 10, 190)]) + 40
    naive = [
        np.mean([v.astype(np.float64) for v, c in zip(vectors, classes, strict=True) if c == k], 0)
        for k in range(40, 50)
    ]
    found = []
    for cuts in ([], [1, 50, 199], list(range(1, 200))):
        parts = []
        for number, own in enumerate(np.split(np.arange(200), cuts)):
            path = tmp_path / f"{len(cuts)}-{number}"
            write_sums(path, class_sums(vectors[own], classes[own]), "model")
            parts.append(read_sums(path, "model"))
        found.append(class_means(parts, 40, 50))
        np.testing.assert_allclose(found[-1], naive, rtol=1e-6)
    assert np.array_equal(found[0], found[1])


def test_an_identity_without_an_image_has_no_mean():
    sums = class_sums(np.ones((2, 3), np.float32), np.array([4, 6]))
    with pytest.raises(InputError, match="row 5 has no image"):
        class_means([sums], 4, 7)


@pytest.mark.parametrize("damage", ["model", "bytes", "missing"])
def test_prototypes_of_another_model_or_damaged_are_refused(tmp_path, damage):
    path = tmp_path / "prototypes.safetensors"
    write_class_means(path, np.ones((2, 3), np.float32), "one")
    assert read_class_means(path, "one").shape == (2, 3)
    if damage == "bytes":
        path.write_bytes(path.read_bytes()[:20])
    if damage == "missing":
        path.unlink()
    with pytest.raises(InputError, match="run again"):
        read_class_means(path, "two" if damage == "model" else "one")
