"""The input path (random access, decode, flip) against torchvision and DALI's decoder alone.

112×112 JPEGs, the same cores and augmentation. At least 4 times a torchvision DataLoader over the
same images as files, and at least 0.85 times DALI decoding the same bytes from memory.
"""

import argparse
import io
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from nvidia.dali.pipeline import Pipeline
from PIL import Image
from torchvision.transforms import v2

from benchmarks import interleaved, report
from data_shards.augmentation import AugmentationSettings
from data_shards.dataset import ShardDataset
from data_shards.order import UniformOrder
from data_shards.pipeline import PipelineSettings, fn, training_batches, types
from data_shards.quarantine import Quarantine
from data_shards.sources import SourceImage
from data_shards.writer import write_dataset

SIZE, BATCH = 112, 128


def pictures(count: int) -> Iterator[SourceImage]:
    """Smooth random pictures whose JPEGs are about as large as those of faces (5 KB)."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (14, 14, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=float)
        noisy = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(noisy).save(out, "JPEG", quality=90)
        yield SourceImage(out.getvalue(), f"{number % 100:03d}", "0", f"{number:06d}")


def ours(dataset: ShardDataset, batches: int, threads: int) -> None:
    """The training path of this project."""
    settings = PipelineSettings(augmentation=AugmentationSettings(flip=True), threads=threads)
    order = UniformOrder(np.arange(len(dataset)), 0)
    rows = np.arange(dataset.manifest["identities"])
    stream = training_batches(
        dataset, rows, order, 0, range(batches), BATCH, 0, 1, settings, torch.device("cpu"),
        Quarantine(None, 0),
    )  # fmt: skip
    assert sum(len(batch.labels) for batch in stream) == batches * BATCH


def folders(folder: Path, workers: int) -> Iterator[torch.Tensor]:
    """torchvision: PIL decodes files in worker processes, which live on from epoch to epoch."""
    transform = v2.Compose([v2.RandomHorizontalFlip(), v2.PILToTensor()])
    loader = torch.utils.data.DataLoader(
        torchvision.datasets.ImageFolder(folder, transform),
        BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True,
        multiprocessing_context="forkserver",
    )  # fmt: skip
    while True:
        for images, _ in loader:
            yield images


def take(stream: Iterator[torch.Tensor], batches: int) -> None:
    """Consumes some batches."""
    assert sum(len(images) for images in itertools.islice(stream, batches)) == batches * BATCH


def decoder(jpegs: list[np.ndarray], batches: int, threads: int) -> None:
    """DALI decoding bytes that are already in memory, and nothing else."""
    starts = iter(range(batches))

    def source() -> list[np.ndarray]:
        start = next(starts) * BATCH % (len(jpegs) - BATCH)
        return jpegs[start : start + BATCH]

    pipeline = Pipeline(BATCH, threads, None, prefetch_queue_depth=2)
    with pipeline:
        encoded = fn.external_source(source=source, batch=True, dtype=types.UINT8)
        pipeline.set_outputs(fn.decoders.image(encoded))
    pipeline.build()
    for _ in range(batches):
        pipeline.run()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    quick = parser.parse_args().quick
    count, batches, rounds = (4096, 60, 3) if quick else (16384, 160, 7)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = list(pictures(count))
        write_dataset(images, folder / "shards", {})
        dataset = ShardDataset.open(folder / "shards")
        for image in images:
            path = folder / "files" / image.identity / f"{image.key}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image.image)
        jpegs = [np.frombuffer(image.image, dtype=np.uint8) for image in images]
        peer_stream = folders(folder / "files", cores)
        seconds = interleaved(
            {
                "perennial": lambda: ours(dataset, batches, cores),
                "torchvision DataLoader": lambda: take(peer_stream, batches),
                "DALI's decoder alone": lambda: decoder(jpegs, batches, cores),
            },
            rounds,
        )
    speed = {name: batches * BATCH / value for name, value in seconds.items()}
    mine, peer, bare = speed.values()
    report(
        "data",
        [
            {"path": name, "images/s": value, "perennial is": f"{mine / value:.2f}×"}
            for name, value in speed.items()
        ],
        {
            "images_per_second": speed,
            "ratio_to_torchvision": mine / peer,
            "ratio_to_decoder": mine / bare,
            "bytes_per_image": sum(map(len, jpegs)) / len(jpegs),
        },
    )


if __name__ == "__main__":
    main()
