"""What the classifier benchmark compares: our modes, the bare products, and a peer."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainer.heads.collectives import Ranks
from trainer.heads.cross_entropy import Update
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.margins import AdaFace, ArcFace, CosFace
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows
from trainer.optimizers import TrainingSettings

MODES = {
    "cosface": ClassifierSettings(margin=CosFace()),
    "cosface, bf16": ClassifierSettings(margin=CosFace(), precision="bf16"),
    "cosface, sampled 0.1": ClassifierSettings(margin=CosFace(), sampled=0.1),
    "cosface, blocked": ClassifierSettings(margin=CosFace(), memory=2**22),
    "arcface": ClassifierSettings(margin=ArcFace()),
    "adaface": ClassifierSettings(margin=AdaFace()),
}
Side = Callable[[], Any]


def ours(
    settings: ClassifierSettings,
    identities: int,
    dimension: int,
    batch: int,
    ranks: Ranks,
    device: torch.device,
) -> Side:
    """One iteration: loss, gradient of the embeddings, updated rows (SGD with momentum)."""
    rows = ShardedRows.new(first=0, last=identities, dimension=dimension, seed=0, ranks=ranks).to(
        device
    )
    optimizer = RowOptimizer(rows, TrainingSettings(iterations=1))
    classifier = MarginLoss(settings, 0, device)
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(batch, dimension, generator=generator).to(device).requires_grad_()
    labels = torch.randint(0, identities, (batch,), generator=generator).to(device)
    iterations = iter(range(1_000_000))

    def side() -> None:
        update = Update(optimizer, 0.01)
        losses = classifier.losses(embeddings, labels, rows, next(iterations), update)
        losses.mean().backward()
        embeddings.grad = None
        if device.type == "cuda":
            torch.cuda.synchronize()

    return side


def products(
    identities: int,
    dimension: int,
    batch: int,
    ranks: Ranks,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Side:
    """The three products of full softmax: logits, embedding gradient, row gradient."""
    own = len(range(ranks.rank, identities, ranks.world))
    embeddings = torch.randn(batch, dimension, device=device, dtype=dtype)
    rows = torch.randn(own, dimension, device=device, dtype=dtype)
    logits = torch.empty(batch, own, device=device, dtype=dtype)
    embeddings_grad, rows_grad = torch.empty_like(embeddings), torch.empty_like(rows)

    def side() -> None:
        torch.mm(embeddings, rows.T, out=logits)
        torch.mm(logits, rows, out=embeddings_grad)
        torch.mm(logits.T, embeddings, out=rows_grad)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return side


def margins_peer(name: str, identities: int, dimension: int, batch: int) -> Side:
    """pytorch-metric-learning's loss of that name with torch's SGD."""
    from pytorch_metric_learning import losses

    loss: Any
    if name == "cosface":
        loss = losses.CosFaceLoss(identities, dimension, margin=0.4, scale=64)
    else:
        loss = losses.ArcFaceLoss(identities, dimension, margin=28.6, scale=64)
    optimizer = torch.optim.SGD(loss.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    embeddings = torch.randn(batch, dimension, requires_grad=True)
    labels = torch.randint(0, identities, (batch,))

    def side() -> None:
        optimizer.zero_grad()
        loss(embeddings, labels).backward()
        optimizer.step()
        embeddings.grad = None

    return side


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def spent_memory(
    settings: ClassifierSettings, identities: int, dimension: int, batch: int, ranks: Ranks
) -> dict[str, float]:
    """Peak resident bytes of one iteration, beyond what its rows and momentum hold.

    Of a fresh process, after a small iteration has loaded every library.
    """
    cpu = torch.device("cpu")
    ours(settings, 2048, dimension, batch, ranks, cpu)()
    side = ours(settings, identities, dimension, batch, ranks, cpu)
    for row_state in _tensors_of(side):
        row_state.add_(0)  # pages of zeros are not resident before they are written
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or freed memory would be used again unseen
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the high-water mark
    side()
    return {"peak": float(_resident("VmHWM") - before)}


def _tensors_of(side: Side) -> list[torch.Tensor]:
    held = [cell.cell_contents for cell in side.__closure__ or ()]
    optimizer = next(value for value in held if isinstance(value, RowOptimizer))
    return list(optimizer.state.values())
