"""The sides of ``benchmarks.data``, each served by a process of its own, told what to do on stdin.

Run as a file, for one side lives in an environment without the rest of this project.
"""

import io
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BATCH = 128
_BEGUN = time.perf_counter()  # the process has imported nothing yet
Batches = Iterator[Any]
"""Of [BATCH, 3, H, W] uint8 images."""


def decoding_threads(workers: int) -> int:
    """DALI's: one more than cores, since a batch waits for its slowest thread."""
    return workers + 1


class Perennial:
    """The training path of this project."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._folder, self._threads = folder / "shards", decoding_threads(workers)

    def batches(self, start: int = 0) -> Batches:
        """From the batch `start` of the endless stream on."""
        import numpy as np
        import torch

        from data_shards.augmentation import AugmentationSettings
        from data_shards.orders.order import UniformOrder
        from data_shards.pipeline import PipelineSettings, training_batches
        from data_shards.quarantine import Quarantine
        from data_shards.storage.dataset import ShardDataset

        dataset = ShardDataset.open(self._folder)
        augmentation = AugmentationSettings(flip=True)
        settings = PipelineSettings(augmentation=augmentation, threads=self._threads)
        rows, order = (
            np.arange(dataset.manifest["identities"]),
            UniformOrder(np.arange(len(dataset)), 0),
        )
        for batch in training_batches(
            dataset=dataset,
            rows=rows,
            order=order,
            seed=0,
            iterations=range(start, 2**40),
            batch=BATCH,
            rank=0,
            world=1,
            settings=settings,
            device=torch.device("cpu"),
            quarantine=Quarantine(None, 0),
        ):
            yield batch.images

    def resume(self, epoch: int, done: int) -> Batches:
        """Batches after `done` of the epoch `epoch` (from 0) are taken."""
        import pyarrow.parquet as pq

        samples = pq.read_metadata(self._folder / "samples.parquet").num_rows
        return self.batches((epoch * samples + done * BATCH) // BATCH)


def _transform() -> Any:
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomHorizontalFlip(), v2.PILToTensor()])


class Folders:
    """torchvision: a DataLoader whose worker processes decode files with PIL."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._folder, self._workers = folder / "files", workers

    def batches(self) -> Batches:
        """Epoch after epoch; the workers live on."""
        import torch
        import torchvision

        loader = torch.utils.data.DataLoader(
            torchvision.datasets.ImageFolder(str(self._folder), _transform()),
            BATCH, shuffle=True, num_workers=self._workers, drop_last=True,
            persistent_workers=True,
        )  # fmt: skip
        while True:
            for images, _ in loader:
                yield images


class WebDataset:
    """The webdataset library's loader over the shards of this project."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._urls = [str(path) for path in sorted((folder / "shards").glob("*.tar"))]
        self._workers = workers

    def batches(self) -> Batches:
        """Shuffled shards, and samples shuffled within a buffer of 1000."""
        import webdataset as wds

        dataset = (
            wds.WebDataset(self._urls, shardshuffle=100)
            .repeat()
            .shuffle(1000)
            .decode("pil")
            .to_tuple("jpg", "cls")
            .map_tuple(_transform(), int)
            .batched(BATCH, partial=False)
        )
        loader = wds.WebLoader(dataset, batch_size=None, num_workers=self._workers)
        for images, _ in loader:
            yield images


class Mosaic:
    """mosaicml-streaming over shards of its own format."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._files, self._folder, self._workers = folder / "files", folder / "mds", workers

    def prepare(self) -> None:
        """Writes its shards."""
        from streaming import MDSWriter

        columns = {"jpg": "bytes", "label": "int"}
        with MDSWriter(out=str(self._folder), columns=columns) as out:
            for path in sorted(self._files.glob("*/*.jpg")):
                out.write({"jpg": path.read_bytes(), "label": int(path.parent.name)})

    def _loader(self) -> Any:
        from PIL import Image
        from streaming import StreamingDataLoader, StreamingDataset

        transform = _transform()

        class Images(StreamingDataset):
            def __getitem__(self, at: Any) -> Any:
                sample = super().__getitem__(at)
                picture = Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
                return transform(picture), sample["label"]

        images = Images(local=str(self._folder), shuffle=True, batch_size=BATCH)
        return StreamingDataLoader(
            images, batch_size=BATCH, num_workers=self._workers, drop_last=True,
            persistent_workers=True,
        )  # fmt: skip

    def batches(self) -> Batches:
        """Epoch after epoch."""
        self._live = loader = self._loader()
        while True:
            for images, _ in loader:
                yield images

    def resume(self, epoch: int, done: int) -> Batches:
        """As its own checkpoints do it."""
        state = self._live.state_dict()
        loader = self._loader()
        loader.load_state_dict({**state, "epoch": epoch, "sample_in_epoch": done * BATCH})
        return (images for images, _ in loader)


class Decoder:
    """DALI decoding bytes that are already in memory, and nothing else."""

    def __init__(self, folder: Path, workers: int) -> None:
        import numpy as np

        paths = sorted((folder / "files").glob("*/*.jpg"))
        self._jpegs = [np.frombuffer(path.read_bytes(), dtype=np.uint8) for path in paths]
        self._threads = decoding_threads(workers)

    def batches(self) -> Batches:
        """In the order of the files."""
        import torch
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline

        starts = itertools.cycle(range(0, len(self._jpegs) - BATCH + 1, BATCH))

        def source() -> Any:
            start = next(starts)
            return self._jpegs[start : start + BATCH]

        pipeline: Any = Pipeline(BATCH, self._threads, None, prefetch_queue_depth=2)
        with pipeline:
            uint8: Any = getattr(types, "UINT8")  # noqa: B009 DALI's stubs lack it
            encoded: Any = fn.external_source(source=source, batch=True, dtype=uint8)
            pipeline.set_outputs(fn.decoders.image(encoded))
        pipeline.build()
        while True:
            yield torch.from_dlpack(pipeline.run()[0].as_tensor())


SIDES: dict[str, Callable[[Path, int], Any]] = {
    "perennial": Perennial,
    "torchvision": Folders,
    "webdataset": WebDataset,
    "mosaicml-streaming": Mosaic,
    "decoder": Decoder,
}


def serve(side: Any, say: Callable[[dict[str, Any]], None]) -> None:
    """Starts the side's loader, then does what each line of stdin says."""
    stream = side.batches()
    next(stream)
    say({"seconds": time.perf_counter() - _BEGUN})
    for line in sys.stdin:
        what, *numbers = line.split()
        begun = time.perf_counter()
        if what == "take":
            taken = itertools.islice(stream, int(numbers[0]))
            assert sum(len(images) for images in taken) == int(numbers[0]) * BATCH
        elif hasattr(side, "resume"):
            next(side.resume(*map(int, numbers)))
        else:
            say({"seconds": None})
            continue
        say({"seconds": time.perf_counter() - begun})


def main() -> None:
    """``data_sides.py SIDE FOLDER WORKERS [prepare]``; answers are lines of JSON."""
    out, sys.stdout = sys.stdout, sys.stderr  # libraries print

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=out, flush=True)

    name, folder, workers, *prepare = sys.argv[1:]
    side = SIDES[name](Path(folder), int(workers))
    if prepare:
        side.prepare()
    else:
        serve(side, say)


if __name__ == "__main__":
    main()
