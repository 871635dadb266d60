"""What an update of exemplars computes and holds, found by a dry run."""

from functools import cache
from typing import NamedTuple

import torch

from trainer.backbones import EmbedderSettings, build_embedder
from trainer.dry_run import DryRun, Operation
from trainer.heads.margin_loss import ClassifierSettings
from trainer.mnemonics.settings import MnemonicsSettings
from trainer.mnemonics.unrolled import Classified, Labelled, hypergradient


class UpdateFootprint(NamedTuple):
    """One update's."""

    operations: list[Operation]
    peak: int
    """Bytes that it holds at most, the network and the images of its batches among them."""


@cache
def update_footprint(
    embedder: EmbedderSettings,
    classifier: ClassifierSettings,
    settings: MnemonicsSettings,
    rows: int,
    size: tuple[int, int],
) -> UpdateFootprint:
    """Of exemplars of this `size` (height, width), with a classifier of so many `rows`; a batch of
    inner steps and of the outer loss is as large as it may be."""
    with DryRun() as dry_run:
        network = Classified(
            build_embedder(embedder), torch.empty(rows, embedder.dimension), classifier
        )
        images = torch.empty(settings.inner_batch, 3, *size)
        places = torch.arange(settings.inner_batch)
        labels = torch.zeros(settings.inner_batch, dtype=torch.int64)
        outer = Labelled(
            torch.empty(settings.batch, 3, *size), torch.zeros(settings.batch, dtype=torch.int64)
        )
        dry_run.mark()
        batches = [(places, labels, None)] * settings.inner_steps
        hypergradient(network, images, batches, outer, settings.inner_rate, settings.recompute)
        return UpdateFootprint(dry_run.operations, dry_run.peak)
