"""DALI: requests for samples go in, `Batch`es come out, decoded ahead of their use."""

import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn as _fn
from nvidia.dali import types as _types
from nvidia.dali.pipeline import Pipeline

from data_shards.dataset import SampleError, ShardDataset
from data_shards.order import Augmentation, AugmentationSettings, Order, augment, rank_slice
from data_shards.settings import InputError, Settings

CPU = torch.device("cpu")
_LOOK_AHEAD = 16  # batches whose order is evaluated at once: NumPy pays off on long arrays
_NONE = np.empty(0, dtype=np.int64)
fn: Any = _fn  # DALI's stubs describe neither its types nor its operators' outputs well
types: Any = _types


class PipelineSettings(Settings):
    """How images are read, decoded and augmented."""

    image_size: tuple[int, int] | None = None
    """Height and width that images are resized to, pixels; none: as the dataset has them."""
    augmentation: AugmentationSettings = AugmentationSettings()
    """Random changes to training images."""
    threads: int = 1
    """Decoding threads of each worker."""
    prefetch: int = 2
    """Batches decoded ahead."""
    max_quarantined: int = 100
    """Damaged samples that a training phase may replace before it stops with an error."""


@dataclass(frozen=True)
class Request:
    """Images to decode: b samples and what is done to each."""

    samples: NDArray[np.int64]
    augmentation: Augmentation
    jpegs: list[memoryview]
    """Their bytes, checked."""

    @classmethod
    def plain(
        cls, dataset: ShardDataset, samples: NDArray[np.int64], flipped: bool = False
    ) -> "Request":
        """The samples as they are, or all mirrored. Raises InputError for a damaged one."""
        try:
            jpegs = [dataset.image(sample) for sample in samples.tolist()]
        except SampleError as error:
            raise InputError(f"{error}: restore the dataset and run again") from error
        shift = np.zeros((len(samples), 2), dtype=np.int64)
        return cls(samples, Augmentation(np.full(len(samples), flipped), shift), jpegs)


@dataclass(frozen=True)
class Batch:
    """b images on one rank."""

    images: torch.Tensor
    """[b, 3, H, W] uint8, channels-last in memory."""
    labels: torch.Tensor
    """[b] int64 classifier rows."""
    samples: NDArray[np.int64]
    """[b] dataset rows."""
    flipped: NDArray[np.bool_]
    """[b] whether each is mirrored."""

    def part(self, kept: slice) -> "Batch":
        """Some of its images."""
        return Batch(self.images[kept], self.labels[kept], self.samples[kept], self.flipped[kept])


def image_size(dataset: ShardDataset, settings: PipelineSettings) -> tuple[int, int]:
    """Height and width of decoded images. Raises InputError when they cannot be known."""
    size = settings.image_size or dataset.manifest["image_size"]
    if size is None:
        raise InputError(
            f"the images of {dataset.folder} differ in size: set data.image_size=[H,W]"
        )
    height, width = size
    return height, width


class Quarantine:
    """Lists samples that could not be read; above its budget the run stops.

    `suspects` [s] are left out as well: readable samples that training was rewound because of.
    """

    def __init__(
        self,
        path: Path | None,
        budget: int,
        count: Callable[[], None] = lambda: None,
        suspects: NDArray[np.int64] = _NONE,
    ) -> None:
        self.suspects = suspects
        self._path, self._budget, self._count = path, budget, count
        self._known: set[int] = set()

    def add(self, sample: int, why: str) -> None:
        """Records a damaged sample once. Raises InputError above the budget."""
        if sample in self._known:
            return
        self._known.add(sample)
        self._count()
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps({"sample": sample, "why": why}) + "\n")
        if len(self._known) > self._budget:
            raise InputError(
                f"{len(self._known)} samples are damaged, more than data.max_quarantined = "
                f"{self._budget} (last: {why}): restore the dataset, see {self._path}"
            )


class ImageStream:
    """Decodes `requests` in order, some ahead; yields each with its images [b, 3, H, W] uint8."""

    def __init__(
        self,
        dataset: ShardDataset,
        requests: Iterator[Request],
        max_batch: int,
        settings: PipelineSettings,
        device: torch.device = CPU,
        augmented: bool = True,
    ) -> None:
        self._dataset = dataset
        self._requests = requests
        self._pending: deque[Request] = deque()
        self._device = device
        self._height, self._width = image_size(dataset, settings)
        self._shifts = augmented and settings.augmentation.shift > 0
        self._pipeline = Pipeline(
            max(1, max_batch),
            num_threads=settings.threads,
            device_id=device.index or 0 if device.type == "cuda" else None,
            prefetch_queue_depth=settings.prefetch,
            exec_dynamic=True,
        )
        self._define(settings)
        self._pipeline.build()

    def _define(self, settings: PipelineSettings) -> None:
        on = "gpu" if self._device.type == "cuda" else "cpu"
        inputs = [types.UINT8, types.INT32] + [types.INT32] * self._shifts
        with self._pipeline:
            jpegs, flipped, *anchor = fn.external_source(
                source=self._next,
                num_outputs=len(inputs),
                batch=True,
                dtype=inputs,
            )
            images = fn.decoders.image(jpegs, device="mixed" if on == "gpu" else "cpu")
            stored = self._dataset.manifest["image_size"]
            if stored is None or tuple(stored) != (self._height, self._width):
                images = fn.resize(images, resize_y=self._height, resize_x=self._width)
            if anchor:
                images = fn.slice(
                    images,
                    *anchor,
                    [self._height, self._width],
                    axes=[0, 1],
                    normalized_anchor=False,
                    normalized_shape=False,
                    out_of_bounds_policy="pad",
                    fill_values=[settings.augmentation.fill] * 3,
                )
            images = fn.flip(images, horizontal=flipped)
            self._pipeline.set_outputs(images)

    def _next(self) -> tuple[Any, ...]:
        """DALI's callback: the bytes and augmentation of the next request."""
        request = next(self._requests)
        self._pending.append(request)
        jpegs = [np.frombuffer(jpeg, dtype=np.uint8) for jpeg in request.jpegs]
        augmentation = request.augmentation
        flipped = augmentation.flipped.astype(np.int32)
        anchor = (-augmentation.shift).astype(np.int32)
        return (jpegs, flipped, anchor) if self._shifts else (jpegs, flipped)

    def __iter__(self) -> Iterator[tuple[Request, torch.Tensor]]:
        while True:
            try:
                (images,) = self._pipeline.run()
            except StopIteration:
                return
            request = self._pending.popleft()
            yield request, self._tensor(images, len(request.samples))

    def _tensor(self, images: Any, count: int) -> torch.Tensor:
        """DALI's output without a copy: its dynamic executor never reuses a buffer that is held."""
        tensor = torch.from_dlpack(images.as_tensor())
        return tensor.view(count, self._height, self._width, 3).permute(0, 3, 1, 2)


def readable(
    dataset: ShardDataset,
    order: Order,
    positions: NDArray[np.int64],
    samples: NDArray[np.int64],
    quarantine: Quarantine,
) -> tuple[NDArray[np.int64], list[memoryview]]:
    """The `samples` at `positions` ([b]) and their bytes, each damaged one replaced by the next.

    The next in order, that is: it depends on the data alone, so every world size takes the same.
    Suspects come in whole batches and are replaced by the sample as many positions on as there are
    suspects; the next one good for all would fill a batch with copies of itself.
    """
    positions, samples = positions.copy(), samples.copy()

    def move(which: NDArray[np.bool_], by: int) -> None:
        positions[which] += by
        samples[which] = order.at(positions[which])
        while (suspected := np.isin(samples, quarantine.suspects) & which).any():
            positions[suspected] += len(quarantine.suspects)
            samples[suspected] = order.at(positions[suspected])

    if len(quarantine.suspects):
        move(np.isin(samples, quarantine.suspects), 0)
    jpegs: list[Any] = dataset.images(samples)
    for i in [i for i, jpeg in enumerate(jpegs) if jpeg is None]:
        this = np.arange(len(samples)) == i
        while jpegs[i] is None:
            try:
                jpegs[i] = dataset.image(int(samples[i]))
            except SampleError as error:
                quarantine.add(int(samples[i]), str(error))
                move(this, 1)
    return samples, jpegs


def training_batches(
    dataset: ShardDataset,
    rows: NDArray[np.int64],
    order: Order,
    seed: int,
    iterations: range,
    batch: int,
    rank: int,
    world: int,
    settings: PipelineSettings,
    device: torch.device,
    quarantine: Quarantine,
) -> Iterator[Batch]:
    """This rank's part of each global batch of `batch` samples, for the given iterations.

    `rows` maps identities to classifier rows. Iteration i takes positions [i·batch, (i+1)·batch)
    of the order, at any world size.
    """
    part = rank_slice(batch, rank, world)

    def requests() -> Iterator[Request]:
        own = np.arange(part.start, part.stop, dtype=np.int64)
        for first in range(iterations.start, iterations.stop, _LOOK_AHEAD):
            ahead = np.arange(first, min(first + _LOOK_AHEAD, iterations.stop))
            every_position = ahead[:, None] * batch + own
            every_sample = order.at(every_position.ravel()).reshape(every_position.shape)
            for positions, chosen in zip(every_position, every_sample, strict=True):
                samples, jpegs = readable(dataset, order, positions, chosen, quarantine)
                drawn = augment(settings.augmentation, seed, order.epoch(positions), samples)
                yield Request(samples, drawn, jpegs)

    stream = ImageStream(dataset, requests(), part.stop - part.start, settings, device)
    for request, images in stream:
        labels = torch.from_numpy(rows[dataset.identity[request.samples]]).to(device)
        yield Batch(images, labels, request.samples, request.augmentation.flipped)
