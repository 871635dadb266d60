"""What exemplars alone are worth: networks trained on nothing else, on the run's test images.

Learned exemplars (mnemonics) are optimised for what they teach the model that learned them. Whether
they teach another network as much is what a new one, from random weights, says.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch.nn import functional as F

from data_shards.counter_rng import shuffled, stream_key
from data_shards.settings import InputError
from data_shards.storage.dataset import ShardDataset
from launch.analyses.networks import embeddings_of, labelled, logits_of, network_of, tested_images
from launch.analyses.opened import chain_of, classifier_of, opened
from launch.phases.exemplars import ChooseExemplars, learned
from launch.phases.planning import phases
from launch.runs.run import Chain, Run
from launch.terminal.progress import progress
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.mnemonics.unrolled import Classified, Labelled, pixels
from untrusted.text import printable

_BATCH, _MOMENTUM = 64, 0.9


@dataclass(frozen=True)
class Schedule:
    """How long a network is trained on exemplars alone; the rate is divided by 10 at two thirds."""

    epochs: int
    rate: float


TUNED, NEW = Schedule(20, 0.01), Schedule(100, 0.05)
"""For the step's own model, as mnemonics fine-tunes it; and for a new one."""


def exemplars(
    folder: Path, console: Console, method: str, seed: int | None = None
) -> list[dict[str, Any]]:
    """Trains on the exemplars that each step of a method kept, and on those that were chosen before
    any was learned: a row each, with accuracies on test images of all classes so far.

    ``model`` is the step's own, ``tuned`` that one after 20 epochs on exemplars alone, ``new``
    another of the same making from random weights after 100; by the largest logit. ``loss`` is the
    step's model's, of the exemplars themselves, and ``likeness`` the mean cosine between its
    embedding of an exemplar and the mean direction of its class' test images. Raises InputError.
    """
    run, finished = opened(folder)
    chain = chain_of(run, finished, method, seed)
    if run.memory(chain) is None:
        raise InputError(f"{method} of {folder} keeps no exemplars: name a method with a memory")
    if not any(map(len, run.benchmark.classified)):
        raise InputError(f"{folder} tests no images of learned classes: set benchmark.classified")
    sets = [one for step in finished[chain] for one in _sets(run, chain, step)]
    rows: list[dict[str, Any]] = []
    with progress(console, "training on exemplars", 2 * len(sets), "networks") as hear:
        for step, which, memory in sets:
            images = labelled(run, memory, np.arange(len(memory)))
            tested = tested_images(run, step)
            model, _ = classifier_of(run, chain, step)
            assert isinstance(model.settings, EmbedderSettings), "adopted ones are refused"
            before = network_of(model)
            row: dict[str, Any] = {"step": step, "which": which, "images": len(memory)}
            row |= _typical(before, images, tested)
            row["model"] = _accuracy(before, tested)
            row["tuned"] = _accuracy(_trained(before, images, TUNED, chain.seed), tested)
            hear(2 * len(rows) + 1)
            fresh = torch.empty_like(before.rows, requires_grad=False).normal_(
                std=0.01, generator=torch.Generator().manual_seed(chain.seed)
            )
            # another seed than the run's: its own network began with these weights
            other = build_embedder(model.settings, chain.seed + 1)
            new = Classified(other, fresh, model.classifier).train()
            row["new"] = _accuracy(_trained(new, images, NEW, chain.seed).eval(), tested)
            rows.append(row)
            hear(2 * len(rows))
    return rows


def _sets(run: Run, chain: Chain, step: int) -> Iterator[tuple[int, str, ShardDataset]]:
    """The memory that a step left; where its exemplars were learned, first as it was chosen."""
    here = [p for p in phases(run) if p.at.chain == chain and p.at.number == step]
    for phase in here:
        if isinstance(phase.kind, ChooseExemplars) and phase.output.complete and learned(phase.at):
            yield step, "chosen", ShardDataset.open(phase.output.path)
    yield step, "kept", run.exemplars(chain, step)


def _trained(network: Classified, images: Labelled, how: Schedule, seed: int) -> Classified:
    """The same network, trained."""
    optimizer = torch.optim.SGD(network.parameters(), lr=how.rate, momentum=_MOMENTUM)
    for epoch in range(how.epochs):
        for group in optimizer.param_groups:
            group["lr"] = how.rate / (10 if epoch >= how.epochs * 2 / 3 else 1)
        order = shuffled(stream_key(seed, "exemplars alone", epoch), np.arange(len(images.labels)))
        for places in np.array_split(order, -(-len(order) // _BATCH)):
            at = torch.from_numpy(places)
            optimizer.zero_grad()
            F.cross_entropy(network(pixels(images.images[at])), images.labels[at]).backward()
            optimizer.step()
    return network


def _accuracy(network: Classified, tested: Labelled) -> float:
    right = logits_of(network, tested.images).argmax(dim=1) == tested.labels
    return float(right.float().mean())


@torch.no_grad()
def _typical(network: Classified, images: Labelled, tested: Labelled) -> dict[str, float]:
    """How well a network knows exemplars, and how like their classes they are to it."""
    own, others = (F.normalize(embeddings_of(network, of.images)) for of in (images, tested))
    sums = torch.zeros_like(network.rows).index_add_(0, tested.labels, others)
    likeness = (own * F.normalize(sums)[images.labels]).sum(dim=1).mean()
    loss = F.cross_entropy(logits_of(network, images.images), images.labels)
    return {"loss": float(loss), "likeness": float(likeness)}


def exemplars_table(method: str, rows: list[dict[str, Any]]) -> Table:
    """A line a step and set."""
    title = f"accuracy after training on exemplars of {printable(method)} alone, %"
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    heads = (
        "step",
        "which",
        "images",
        "their loss",
        "likeness",
        "the step's model",
        "tuned",
        "new",
    )
    for name in heads:
        table.add_column(name, justify="left" if name in ("step", "which") else "right")
    for row in rows:
        accuracies = (f"{100 * row[name]:.1f}" for name in ("model", "tuned", "new"))
        typical = f"{row['images']:,}", f"{row['loss']:.4f}", f"{row['likeness']:.3f}"
        table.add_row(f"{row['step']}", row["which"], *typical, *accuracies)
    return table
