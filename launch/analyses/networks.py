"""Finished models as networks from images to logits, and labelled images for them."""

import numpy as np
import torch

from data_shards.storage.dataset import ShardDataset
from launch.analyses.opened import Ids, images_of
from launch.runs.run import Run
from trainer.heads.collectives import Ranks
from trainer.mnemonics.unrolled import Classified, Labelled, pixels
from trainer.model import Model

_BATCH = 256
"""Images that go through a network at a time; no result depends on it."""


def tested_images(run: Run, step: int) -> Labelled:
    """The test images of all classes learned by a step: [n, 3, H, W] uint8, and their rows [n].

    Raises InputError for a damaged one.
    """
    samples = np.unique(np.concatenate(run.benchmark.classified[: step + 1]))
    return labelled(run, run.dataset, samples)


def labelled(run: Run, dataset: ShardDataset, samples: Ids) -> Labelled:
    """Images of a dataset of the run's classes, as `tested_images`. Raises InputError."""
    row_of = {name: row for row, name in enumerate(run.benchmark.names.tolist())}
    rows = [row_of[name] for name in dataset.names[dataset.identity[samples]].tolist()]
    images = torch.cat(list(images_of(dataset, samples, run.config.data)))
    return Labelled(images, torch.tensor(rows))


def network_of(model: Model) -> Classified:
    """Of a model that is not adopted."""
    rows = model.sharded_rows(Ranks()).weight.detach()
    return Classified(model.embedder(), rows, model.classifier)


@torch.no_grad()
def embeddings_of(network: Classified, images: torch.Tensor) -> torch.Tensor:
    """[n, d] of images of 8 bits [n, 3, H, W]."""
    # as whole numbers they are what the embedder takes; it normalises in place
    return torch.cat([network.embedder(part.float()) for part in images.split(_BATCH)])


@torch.no_grad()
def logits_of(network: Classified, images: torch.Tensor) -> torch.Tensor:
    """[n, C] of images of 8 bits [n, 3, H, W]."""
    return torch.cat([network(pixels(part)) for part in images.split(_BATCH)])
