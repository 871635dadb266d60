"""Gradients at any world size equal a single-process dense float64 reference."""

import pytest
import torch

from data_shards.orders.order import rank_slice
from tests.ranks import on_ranks
from tests.trainer import reference
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.batch_norm import synchronise_batch_norm
from trainer.engine import build_engine
from trainer.heads.collectives import Ranks, gather_embeddings
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.neighbourhood import sharded_top_k
from trainer.heads.rows import ShardedRows, own_ids
from trainer.methods.forward import Forward, Teacher
from trainer.methods.terms import Classify, Distill, MatchEmbeddings
from trainer.optimizers import TrainingSettings, make_optimizer

BATCH, OLD, NEW, DIMENSION, TAU = 10, 7, 11, 6, 2.0
TERMS = {
    "classify": (Classify(),),
    "lfl": (Classify(), MatchEmbeddings(0.3)),
    "lwf": (Classify(), Distill(0.7, None, 0.0, TAU, "cross_entropy")),
    "basic": (Classify(), Distill(0.7, None, 0.0, TAU)),
    "basic+cr": (Classify(), Distill(0.7, None, 0.05, TAU)),
    "basic+ns": (Classify(), Distill(0.7, 3, 0.0, TAU)),
    "fkd": (Classify(), Distill(0.7, 3, 0.05, TAU)),
    "fkd of one": (Classify(), Distill(0.7, 1, 0.05, TAU)),
}


def case():
    """Seeded values: images, labels, rows (old trained, old frozen, new), old embeddings."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    images = torch.randint(0, 256, (BATCH, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(OLD, OLD + NEW, (BATCH,), generator=generator)
    return (
        images,
        labels,
        draw(OLD, DIMENSION),
        draw(OLD, DIMENSION),
        draw(NEW, DIMENSION),
        draw(BATCH, DIMENSION),
    )


def embedder():
    settings = EmbedderSettings(architecture="small", width=2, dimension=DIMENSION)
    return build_embedder(settings, seed=3).double().train()


def sharded(first, rows, ranks):
    return ShardedRows(
        first, first + len(rows), rows[own_ids(0, len(rows), _shifted(first, ranks))].clone(), ranks
    )


def _shifted(first, ranks):
    """The ranks as the rows of a block that starts at `first` see them, counted from 0."""
    return Ranks((ranks.rank - first) % ranks.world, ranks.world)


class Averaged:
    """Averages gradients over the ranks as DeepSpeed does, which refuses float64."""

    def __init__(self, network, ranks):
        self._network, self._ranks = network, ranks

    def __call__(self, images):
        return self._network(images)

    def backward(self, loss):
        loss.backward()
        for parameter in self._network.parameters():
            self._ranks.sum(parameter.grad).div_(self._ranks.world)


def dense(gradient):
    """Rows that no sample has among its neighbours have a gradient of zero."""
    return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient


def gradients_on_rank(names, dtype):
    """The gradients of every recipe, computed as the training loop does, on this rank.

    float32 goes through DeepSpeed.
    """
    ranks = Ranks.default()
    images, labels, *floats = case()
    old, frozen, new, old_embeddings = (tensor.to(dtype) for tensor in floats)
    parts = [rank_slice(BATCH, r, ranks.world) for r in range(ranks.world)]
    counts = [p.stop - p.start for p in parts]
    own = parts[ranks.rank]
    out = {}
    for name in names:
        network = embedder().to(dtype)
        synchronise_batch_norm(network, ranks)
        engine = Averaged(network, ranks)
        if dtype == torch.float32:
            optimizer = make_optimizer(network.parameters(), TrainingSettings(iterations=1))
            engine = build_engine(network, optimizer, BATCH, ranks)
        current, previous = sharded(OLD, new, ranks), sharded(0, old, ranks)
        teacher_rows = sharded(0, frozen, ranks).requires_grad_(False)
        k = max(getattr(t, "neighbours", 0) or 0 for t in TERMS[name])
        classes, activations = sharded_top_k(old_embeddings, teacher_rows, k) if k else (None, None)
        teacher = Teacher(old_embeddings, classes, activations, teacher_rows)
        gathered = gather_embeddings(engine(images[own]), ranks, counts)
        every = ranks.gather(labels[own], counts)
        classifier = MarginLoss(ClassifierSettings(), 0, images.device)
        forward = Forward(
            embeddings=gathered,
            labels=every,
            rows={"old": previous, "new": current},
            classifier=classifier,
            teacher=teacher,
        )
        loss = sum(t.weight * n / d for t in TERMS[name] for n, d in [t(forward)])
        engine.backward(loss)
        out[name] = {
            "loss": loss.detach(),
            "embedder": [p.grad.clone() for p in network.parameters()],
            "statistics": [b.clone() for b in network.buffers()],
            "current": (current.own_ids(), dense(current.weight.grad)),
            "previous": (previous.own_ids(), dense(previous.weight.grad)),
        }
    return out


def expected(name):
    """The same by the dense reference."""
    images, labels, old, frozen, new, old_embeddings = case()
    network = embedder()
    old.requires_grad_(), new.requires_grad_()
    phi = network(images)
    loss = reference.classification(phi, labels, new, OLD)
    if name == "lfl":
        loss = loss + 0.3 * reference.lfl(phi, old_embeddings)
    elif name == "lwf":
        loss = loss + 0.7 * reference.lwf(phi, old, old_embeddings, frozen, TAU)
    elif name != "classify":
        k = {"basic": None, "basic+cr": None, "fkd of one": 1}.get(name, 3)
        beta = 0.0 if name in ("basic", "basic+ns") else 0.05
        loss = loss + 0.7 * reference.fkd(phi, old, old_embeddings, frozen, TAU, k, beta)
    loss.backward()
    return loss.detach(), network, old.grad, new.grad


def assemble(results, name, block, first, count):
    """The gradient of a block of rows from all ranks, or None where no rank has one."""
    whole = torch.zeros(count, DIMENSION, dtype=torch.float64)
    for result in results:
        ids, grad = result[name][block]
        if grad is not None:
            whole[ids - first] = grad.double()
    return whole


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_gradients_equal_the_dense_float64_reference(world, dtype, tmp_path):
    results = on_ranks(world, gradients_on_rank, list(TERMS), dtype, folder=tmp_path)
    precision = {"rtol": 1e-9, "atol": 1e-11}
    if dtype == torch.float32:
        precision = {"rtol": 1e-3, "atol": 2e-5}
    for name in TERMS:
        loss, network, old_grad, new_grad = expected(name)
        close = {
            **precision,
            "check_dtype": False,
            "msg": lambda m, name=name: f"{name}: {m}",
        }
        for result in results:
            torch.testing.assert_close(result[name]["loss"], loss, **close)
            for found, parameter in zip(
                result[name]["embedder"], network.parameters(), strict=True
            ):
                torch.testing.assert_close(found, parameter.grad, **close)
            for found, buffer in zip(result[name]["statistics"], network.buffers(), strict=True):
                torch.testing.assert_close(found, buffer, **close)
        torch.testing.assert_close(assemble(results, name, "current", OLD, NEW), new_grad, **close)
        if old_grad is not None:
            found = assemble(results, name, "previous", 0, OLD)
            torch.testing.assert_close(found, old_grad, **close)


def top_k_on_rank(cases):
    ranks = Ranks.default()
    return [
        sharded_top_k(embeddings, sharded(first, rows, ranks), k)
        for embeddings, rows, first, k in cases
    ]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_distributed_top_k_equals_brute_force_with_ties(world, tmp_path):
    generator = torch.Generator().manual_seed(1)
    cases = []
    for count, first, k in [(13, 0, 4), (13, 5, 13), (2, 3, 5), (1, 0, 1), (40, 7, 11)]:
        # few distinct values, so that ties are everywhere, also across the k-th place
        rows = torch.randint(-1, 2, (count, 3), generator=generator).double()
        embeddings = torch.randint(-2, 3, (9, 3), generator=generator).double()
        cases.append((embeddings, rows, first, k))
    results = on_ranks(world, top_k_on_rank, cases, folder=tmp_path)
    for found in results:
        for (embeddings, rows, first, k), (ids, values) in zip(cases, found, strict=True):
            for i, scores in enumerate((embeddings @ rows.T).tolist()):
                ranked = sorted(range(len(scores)), key=lambda j: (-scores[j], j))[:k]
                assert ids[i].tolist() == [first + j for j in ranked]
                assert values[i].tolist() == [scores[j] for j in ranked]
