"""The known defects of published sharded heads: our head has none, and a head that has one is seen.

Each claim is a function of a head; it must hold for ours and fail for `Defective`, a small head
with every defect of the list in DESIGN.md ("facts learned", Partial FC V2).
"""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.checkpoint import Folder, save_folder
from trainer.checkpoint.rows import load_rows, part_name, rows_tensors
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.margins import ArcFace
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows
from trainer.optimizers import TrainingSettings

CLASSES, DIMENSION, WORLD, MARGIN = 40, 8, 2, 0.5
SETTINGS = ClassifierSettings(margin=ArcFace(margin=MARGIN), sampled=0.3)


class Sound:
    """Our head, as one of the ranks; losses see this rank's rows only."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.ranks = Ranks(rank, world)
        self.rows = ShardedRows.new(0, CLASSES, DIMENSION, 7, self.ranks)
        self.optimizer = RowOptimizer(self.rows, TrainingSettings(iterations=1))
        self.classifier = MarginLoss(SETTINGS, 7, torch.device("cpu"))
        self.alone = ShardedRows(0, len(self.rows.weight), self.rows.weight.detach(), Ranks())

    def drawn(self, iteration):
        place = torch.zeros(1, dtype=torch.int64)
        nothing = torch.zeros(1, dtype=torch.bool)
        chosen, _, _ = self.classifier._draw(self.rows, place, nothing, iteration)
        return chosen

    def losses(self, embeddings, labels, iteration=0):
        return self.classifier.losses(embeddings, labels, self.rows, iteration)

    def step(self, parts):
        """One update from several parts of a batch; returns what the rows' gradient was."""
        count = sum(len(labels) for _, labels in parts)
        for embeddings, labels in parts:
            (self.losses(embeddings, labels).sum() / count).backward()
        gradient = self.rows.weight.grad.to_dense()
        self.optimizer.step(0.1)
        return gradient

    def target(self, cosine):
        return SETTINGS.margin.target(cosine, torch.ones_like(cosine), {})[0]

    def save(self, folder):
        files = {part_name("rows", self.ranks): rows_tensors(self.rows, self.optimizer)}
        save_folder(folder, files, {"kind": "checkpoint"}, self.ranks)

    def load(self, folder):
        weight = load_rows(Folder.at(folder), "rows", 0, CLASSES, self.ranks)["weight"]
        self.rows.weight.data.copy_(weight)


class Defective(Sound):
    """A head with all of the defects."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        super().__init__(rank, world)
        torch.manual_seed(7)  # the same on every rank
        self.rows.weight.data.copy_(torch.randn(len(self.rows.weight), DIMENSION))
        weight = self.rows.weight
        self.dense = torch.optim.SGD([weight], 0.1, momentum=0.9, weight_decay=5e-4)

    def drawn(self, iteration):
        torch.manual_seed(iteration)  # the same on every rank
        return torch.randperm(len(self.rows.weight))[: int(0.3 * len(self.rows.weight))]

    def losses(self, embeddings, labels, iteration=0):
        if len(labels) != 8:
            raise RuntimeError("shape '[8]' is invalid")  # buffers are made for whole batches
        cosine = F.normalize(embeddings) @ F.normalize(self.rows.weight).T
        inside = labels < CLASSES
        own = cosine.gather(1, labels.clamp_max(CLASSES - 1)[:, None])
        logits = cosine.scatter(1, labels.clamp_max(CLASSES - 1)[:, None], self.target(own)) * 64
        losses = F.cross_entropy(logits, labels.clamp_max(CLASSES - 1), reduction="none")
        losses.register_hook(lambda grad: grad if grad.sum().item() else None)
        return torch.where(inside, losses, 0)

    def step(self, parts):
        for embeddings, labels in parts:
            self.losses(embeddings, labels).mean().backward()
        gradient = self.rows.weight.grad.clone()
        self.dense.step()
        self.dense.zero_grad(set_to_none=False)
        return gradient

    def target(self, cosine):
        return (cosine.clamp(-1, 1).acos() + MARGIN).cos()

    def save(self, folder):
        folder.mkdir(exist_ok=True)
        torch.save(self.rows.weight.detach(), folder / f"rank-{self.ranks.rank}.pt")

    def load(self, folder):
        kept = torch.load(folder / f"rank-{self.ranks.rank}.pt", weights_only=True)
        self.rows.weight.data.copy_(kept)


def batch(count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(count, DIMENSION, generator=generator, requires_grad=True)
    return embeddings, torch.randint(0, CLASSES, (count,), generator=generator)


def ranks_start_with_different_rows(head, tmp_path):
    a, b = (head(rank, WORLD).rows.weight for rank in range(WORLD))
    assert not torch.equal(a, b)


def ranks_draw_different_negatives(head, tmp_path):
    shares = []
    for iteration in range(20):
        a, b = (set(head(rank, WORLD).drawn(iteration).tolist()) for rank in range(WORLD))
        shares.append(len(a & b) / max(1, min(len(a), len(b))))
    assert sum(shares) / len(shares) < 0.7, "the same places on every rank"


def a_label_beyond_the_rows_is_refused(head, tmp_path):
    embeddings, labels = batch()
    labels[2] = CLASSES
    with pytest.raises(ValueError, match="label"):
        head().losses(embeddings, labels)


def rows_that_are_not_drawn_do_not_move(head, tmp_path):
    one = head()
    one.step([batch()])
    before = one.rows.weight.detach().clone()
    gradient = one.step([batch(seed=1)])
    idle = (gradient == 0).all(dim=1)
    if not idle.any():  # a head that never samples: take the rows' own draw
        idle[:] = True
        idle[one.drawn(0)] = False
    assert torch.equal(one.rows.weight[idle], before[idle])


def a_checkpoint_loads_at_another_world_size(head, tmp_path):
    one = head(0, 1)
    one.save(tmp_path / "c")
    parts = []
    for rank in range(WORLD):
        part = head(rank, WORLD)
        part.rows.weight.data.zero_()
        part.load(tmp_path / "c")
        parts.append(part.rows)
    for rows in parts:
        assert torch.equal(rows.weight, one.rows.weight[rows.own_ids()])


def the_target_falls_with_the_angle(head, tmp_path):
    cosine = torch.linspace(0, torch.pi, 200, dtype=torch.float64).cos()
    assert (head().target(cosine).diff() <= 1e-12).all()


def a_partial_batch_trains(head, tmp_path):
    assert head().losses(*batch(5)).shape == (5,)


def accumulated_gradients_are_those_of_the_whole_batch(head, tmp_path):
    embeddings, labels = batch(16)
    halves = [(embeddings[i : i + 8].detach().requires_grad_(), labels[i : i + 8]) for i in (0, 8)]
    once = head()
    whole = torch.zeros_like(once.rows.weight)
    for e, y in halves:
        other = head()
        (other.losses(e, y).sum() / 16).backward()
        whole += other.rows.weight.grad.to_dense()
    torch.testing.assert_close(once.step(halves), whole)


def the_backward_pass_waits_for_no_device(head, tmp_path):
    """Reading a value on the host makes a GPU wait (test_classifier.py has the forward pass)."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    total = head().losses(*batch()).sum()
    with Reads() as reads:
        total.backward()
    assert reads.count == 0


CLAIMS = [
    ranks_start_with_different_rows,
    ranks_draw_different_negatives,
    a_label_beyond_the_rows_is_refused,
    rows_that_are_not_drawn_do_not_move,
    a_checkpoint_loads_at_another_world_size,
    the_target_falls_with_the_angle,
    a_partial_batch_trains,
    accumulated_gradients_are_those_of_the_whole_batch,
    the_backward_pass_waits_for_no_device,
]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_our_head_has_no_known_defect(claim, tmp_path):
    claim(Sound, tmp_path)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_a_head_with_the_defect_is_seen(claim, tmp_path):
    with pytest.raises((AssertionError, RuntimeError, FileNotFoundError, pytest.fail.Exception)):
        claim(Defective, tmp_path)
