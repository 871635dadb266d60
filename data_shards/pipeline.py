"""The DALI pipeline: decodes and augments requested samples ahead of their use."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from data_shards.augmentation import (
    Augmentation,
    AugmentationSettings,
    augment,
    centres,
    no_augmentation,
)
from data_shards.orders.order import Order, OrderSettings, UniformSettings, rank_slice
from data_shards.quarantine import Quarantine, readable
from data_shards.settings import UNDECIDING, InputError, Settings, Size
from data_shards.storage.dataset import SampleError, ShardDataset
from data_shards.storage.remote import CacheSettings
from untrusted.pictures import BadPicture, stored_size

CPU = torch.device("cpu")
_LOOK_AHEAD = 16  # batches whose order is evaluated at once: NumPy pays off on long arrays


class PipelineSettings(Settings):
    """How images are read, decoded and augmented."""

    image_size: Size | None = None
    """Height and width that images are resized to, HxW in pixels; none: as the dataset has them."""
    centre: float | None = Field(default=None, gt=0, le=1)
    """Of images that are not augmented, the part in the middle that is shown: it has the shape of
    `image_size`, and its sides are this share of the largest such part's. 0.875 is customary for
    ImageNet: 224 of 256 pixels. None: the whole image, whatever its shape."""
    augmentation: AugmentationSettings = AugmentationSettings()
    """Random changes to training images."""
    order: OrderSettings = UniformSettings()
    """Which sample comes when."""
    cache: Annotated[CacheSettings, UNDECIDING] = CacheSettings()
    """Where copies of a remote dataset's shards are kept."""
    threads: Annotated[int, UNDECIDING] = 1
    """Decoding threads of each worker. Where decoding holds training up, one more than the worker
    has cores is fastest."""
    prefetch: Annotated[int, UNDECIDING] = 2
    """Batches decoded ahead."""
    max_quarantined: int = 100
    """Damaged samples that a training phase may replace before it stops with an error."""

    def deciding(self) -> dict[str, Any]:
        values = super().deciding()
        if self.centre is None:  # as fingerprints were before there was this key
            del values["centre"]
        return values


class Stored(Protocol):
    """What decoding asks of a dataset."""

    @property
    def location(self) -> str:
        """Names it for people."""

    @property
    def manifest(self) -> dict[str, Any]:
        """``image_size`` is that of all images, or none where they differ."""


@dataclass(frozen=True)
class Request:
    """Images to decode: b samples, and the augmentation of each."""

    samples: NDArray[np.int64]
    augmentation: Augmentation
    jpegs: list[bytes]
    """Their bytes, checked."""

    @classmethod
    def plain(
        cls, dataset: ShardDataset, samples: NDArray[np.int64], flipped: bool = False
    ) -> "Request":
        """A request for `samples` without augmentation, or with all of them mirrored.

        Raises InputError for a damaged one.
        """
        try:
            jpegs = [dataset.image(sample) for sample in samples.tolist()]
        except SampleError as error:
            raise InputError(f"{error}: restore the dataset and run again") from error
        return cls(samples, no_augmentation(len(samples), flipped), jpegs)


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
        """The batch of the images in `kept`."""
        return Batch(self.images[kept], self.labels[kept], self.samples[kept], self.flipped[kept])


def image_size(dataset: Stored, settings: PipelineSettings) -> tuple[int, int]:
    """Height and width of decoded images, pixels.

    Raises InputError when the stored images differ in size and the settings do not give one.
    """
    size = settings.image_size or dataset.manifest["image_size"]
    if size is None:
        raise InputError(
            f"the images of {dataset.location} differ in size: set data.image_size=HxW"
        )
    height, width = size
    return height, width


def resized(
    settings: PipelineSettings, dataset: ShardDataset, size: tuple[int, int] | None
) -> PipelineSettings:
    """`settings` with `image_size` set to `size`, unless they set one themselves or the stored
    images have that size already."""
    stored = dataset.manifest["image_size"]
    if settings.image_size is not None or size is None or (stored and tuple(stored) == size):
        return settings
    return settings.model_copy(update={"image_size": size})


def stored_sizes(dataset: Stored, jpegs: Sequence[bytes]) -> NDArray[np.int64]:
    """[b, 2] the heights and widths of images, as they are stored. Raises InputError."""
    same = dataset.manifest["image_size"]
    if same is not None:
        return np.tile(np.array(same, dtype=np.int64), (len(jpegs), 1))
    try:
        return np.array([stored_size(jpeg) for jpeg in jpegs], dtype=np.int64).reshape(-1, 2)
    except BadPicture as error:
        raise InputError(
            f"an image of {dataset.location} cannot be cropped: {error}: build the dataset again"
        ) from error


class ImageStream:
    """Decodes `requests` in order, some ahead; yields each with its images, [b, 3, H, W] uint8."""

    def __init__(
        self,
        dataset: Stored,
        requests: Iterator[Request],
        max_batch: int,
        settings: PipelineSettings,
        device: torch.device = CPU,
        augmented: bool = True,
    ) -> None:
        from nvidia.dali.pipeline import (
            Pipeline,  # commands that read no image need not wait for it
        )

        self._dataset = dataset
        self._requests = requests
        self._pending: deque[Request] = deque()
        self._device = device
        self._height, self._width = image_size(dataset, settings)
        self._centre = None if augmented else settings.centre
        self._crops = self._centre is not None or (
            augmented and settings.augmentation.crop is not None
        )
        self._shifts = augmented and settings.augmentation.shift > 0
        self._erases = augmented and settings.augmentation.erase > 0
        self._pipeline = Pipeline(
            max(1, max_batch),
            num_threads=settings.threads,
            device_id=device.index or 0 if device.type == "cuda" else None,
            prefetch_queue_depth=settings.prefetch,
            exec_dynamic=True,  # `_tensor` relies on it
        )
        self._define(settings)
        self._pipeline.build()

    def _define(self, settings: PipelineSettings) -> None:
        from nvidia.dali import fn as _fn
        from nvidia.dali import types as _types

        fn: Any = _fn  # DALI's stubs describe neither its types nor its operators' outputs well
        types: Any = _types
        on = "gpu" if self._device.type == "cuda" else "cpu"
        inputs = [types.UINT8, types.INT32]
        inputs += (
            [types.INT32] * 2 * self._crops
            + [types.INT32] * self._shifts
            + [types.FLOAT] * 2 * self._erases
        )
        augmentation = settings.augmentation
        with self._pipeline:
            jpegs, flipped, *others = fn.external_source(
                source=self._next,
                num_outputs=len(inputs),
                batch=True,
                dtype=inputs,
            )
            images = fn.decoders.image(jpegs, device="mixed" if on == "gpu" else "cpu")
            if self._crops:
                anchor, shape = others.pop(0), others.pop(0)
                window = {"normalized_anchor": False, "normalized_shape": False}
                images = fn.slice(images, anchor, shape, axes=[0, 1], **window)
            stored = self._dataset.manifest["image_size"]
            if self._crops or stored is None or tuple(stored) != (self._height, self._width):
                images = fn.resize(images, resize_y=self._height, resize_x=self._width)
            if self._shifts:
                images = fn.slice(
                    images,
                    others.pop(0),
                    [self._height, self._width],
                    axes=[0, 1],
                    normalized_anchor=False,
                    normalized_shape=False,
                    out_of_bounds_policy="pad",
                    fill_values=[augmentation.fill] * 3,
                )
            images = fn.flip(images, horizontal=flipped)
            if self._erases:
                anchor, shape = others
                fill = [float(level) for level in augmentation.erase_fill]
                images = fn.erase(images, anchor=anchor, shape=shape, axes=[0, 1], fill_value=fill)
            self._pipeline.set_outputs(images)

    def _next(self) -> tuple[Any, ...]:
        """DALI's callback: returns the bytes and the augmentation of the next request."""
        request = next(self._requests)
        self._pending.append(request)
        jpegs = [np.frombuffer(jpeg, dtype=np.uint8) for jpeg in request.jpegs]
        drawn = request.augmentation
        inputs: list[Any] = [jpegs, drawn.flipped.astype(np.int32)]
        if self._crops:
            windows = np.split(self._parts(request), 2, axis=1)
            inputs += [side.astype(np.int32, order="C") for side in windows]
        if self._shifts:
            # slice takes the window's anchor, which moves against the image; int32 as its shape is
            inputs.append((-drawn.shift).astype(np.int32))
        if self._erases:
            inputs += [e.astype(np.float32, order="C") for e in np.split(drawn.erased, 2, axis=1)]
        return tuple(inputs)

    def _parts(self, request: Request) -> NDArray[np.int64]:
        """[b, 4] of each image the part that is shown."""
        if self._centre is None:
            assert request.augmentation.cropped is not None
            return request.augmentation.cropped
        size = self._height, self._width
        return centres(self._centre, size, stored_sizes(self._dataset, request.jpegs))

    def __iter__(self) -> Iterator[tuple[Request, torch.Tensor]]:
        while True:
            try:
                (images,) = self._pipeline.run()
            except StopIteration:
                return
            request = self._pending.popleft()
            yield request, self._tensor(images, len(request.samples))

    def _tensor(self, images: Any, count: int) -> torch.Tensor:
        """Wraps DALI's output without a copy: its dynamic executor never reuses a held buffer."""
        tensor = torch.from_dlpack(images.as_tensor())
        return tensor.view(count, self._height, self._width, 3).permute(0, 3, 1, 2)


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
    """Yields this rank's part of each global batch of `batch` samples, for the given iterations.

    `rows` maps identities to classifier rows ([identities of the dataset]). Iteration i takes
    positions [i·batch, (i+1)·batch) of the order, at any world size. Raises InputError when more
    samples are damaged than `quarantine` allows.
    """
    part, size = rank_slice(batch, rank, world), image_size(dataset, settings)

    def requests() -> Iterator[Request]:
        own = np.arange(part.start, part.stop, dtype=np.int64)
        for first in range(iterations.start, iterations.stop, _LOOK_AHEAD):
            ahead = np.arange(first, min(first + _LOOK_AHEAD, iterations.stop))
            every_position = ahead[:, None] * batch + own
            every_sample = order.at(every_position.ravel()).reshape(every_position.shape)
            for positions, chosen in zip(every_position, every_sample, strict=True):
                dataset.files.need(order.shards_ahead(int(positions[0])))
                samples, jpegs = readable(
                    dataset=dataset,
                    order=order,
                    positions=positions,
                    samples=chosen,
                    quarantine=quarantine,
                )
                epoch = order.epoch(positions)
                drawn = augment(
                    settings=settings.augmentation,
                    seed=seed,
                    epoch=epoch,
                    samples=samples,
                    size=size,
                    stored=stored_sizes(dataset, jpegs) if settings.augmentation.crop else None,
                )
                yield Request(samples, drawn, jpegs)

    stream = ImageStream(
        dataset=dataset,
        requests=requests(),
        max_batch=part.stop - part.start,
        settings=settings,
        device=device,
    )
    for request, images in stream:
        labels = torch.from_numpy(rows[dataset.identity[request.samples]]).to(device)
        yield Batch(images, labels, request.samples, request.augmentation.flipped)
