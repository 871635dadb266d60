"""The input path (random access, decode, flip) against the usual loaders, and DALI's decoder alone.

JPEGs of 112×112 and 256×128, the same cores and augmentation: ours; a torchvision DataLoader over
files; the webdataset library over our shards; mosaicml-streaming over its own. The last wants other
versions of what we need and has an environment of its own (``make peers``); without it, it is left
out. Each side is a process, and they take turns.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks import report
from benchmarks.data_sides import BATCH, SIDES
from data_shards.sources import SourceImage
from data_shards.writing.writer import write_dataset

PEERS = Path(os.environ.get("PERENNIAL_PEERS", ".venv-peers/bin/python"))
SIZES = ((112, 112), (256, 128))


def pictures(count: int, size: tuple[int, int]) -> Iterator[SourceImage]:
    """Smooth random pictures whose JPEGs are about as large as those of faces (5 KB at 112×112)."""
    rng = np.random.default_rng(0)
    height, width = size
    for number in range(count):
        coarse = rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        smooth = np.asarray(picture, dtype=float)
        noisy = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(noisy).save(out, "JPEG", quality=90)
        yield SourceImage(out.getvalue(), f"{number % 100:03d}", "0", f"{number:06d}")


class Side:
    """A process that serves one side."""

    def __init__(self, name: str, folder: Path, workers: int) -> None:
        python = str(PEERS) if name == "mosaicml-streaming" else sys.executable
        self._log = folder / f"{name}.log"
        script = Path(__file__).with_name("data_sides.py")
        environment = {**os.environ, "PYTHONPATH": str(script.parents[1])}
        command = [python, str(script), name, str(folder), str(workers)]
        if hasattr(SIDES[name], "prepare"):
            subprocess.run([*command, "prepare"], check=True, env=environment, capture_output=True)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log.open("wb"),
            env=environment, encoding="utf-8",
        )  # fmt: skip
        self.start_seconds = self._answer()
        self.images_per_second: list[float] = []
        self.cpu_seconds_per_image: list[float] = []

    def _answer(self) -> float | None:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            why = self._log.read_text(encoding="utf-8").split("\n\n")[-1][-500:]
            raise RuntimeError(f"{self._log.stem} ended with {self._process.wait()}: {why}")
        return json.loads(line)["seconds"]

    def _ask(self, line: str) -> float | None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _tree(self) -> list[psutil.Process]:
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def _cpu(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._tree())

    def take(self, batches: int, keep: bool) -> None:
        """Consumes some batches; keeps the figures of all rounds but the first."""
        before = self._cpu()
        seconds = self._ask(f"take {batches}")
        assert seconds is not None
        if keep:
            self.images_per_second.append(batches * BATCH / seconds)
            self.cpu_seconds_per_image.append((self._cpu() - before) / (batches * BATCH))

    def resume(self, epoch: int, done: int) -> float | None:
        """Seconds to the batch after `done` of an epoch (from 0); None if there is no such way."""
        return self._ask(f"resume {epoch} {done}")

    def resident(self) -> float:
        """Bytes in memory, of all its processes together."""
        return float(sum(process.memory_full_info().pss for process in self._tree()))

    def end(self) -> None:
        """Ends it and its workers."""
        if self._process.poll() is None:
            for process in reversed(self._tree()):
                process.kill()
        self._process.wait()


def measure(size: tuple[int, int], count: int, batches: int, rounds: int) -> dict[str, Any]:
    """Every side's figures at one size of images."""
    cores = len(os.sched_getaffinity(0))
    names = [name for name in SIDES if name != "mosaicml-streaming" or PEERS.exists()]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        images = list(pictures(count, size))
        write_dataset(images, folder / "shards", {}, shard_samples=256)
        for image in images:
            path = folder / "files" / image.identity / f"{image.key}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image.image)
        sides = {name: Side(name, folder, cores) for name in names}
        try:
            for number in range(rounds + 1):
                for side in sides.values():
                    side.take(batches, keep=number > 0)
            figures = {name: _figures(side, count) for name, side in sides.items()}
        finally:
            for side in sides.values():
                side.end()
    return {"bytes_per_image": sum(len(i.image) for i in images) / count, "sides": figures}


def _figures(side: Side, count: int) -> dict[str, Any]:
    speed = statistics.median(side.images_per_second)
    resident = side.resident()  # before resuming starts another loader
    return {
        "images_per_second": speed,
        "slowest": min(side.images_per_second),
        "fastest": max(side.images_per_second),
        "cpu_seconds_per_image": statistics.median(side.cpu_seconds_per_image),
        "start_seconds": side.start_seconds,
        "resident_bytes": resident,
        "resume_seconds": side.resume(2, count // BATCH // 2),
        "replay_seconds": 2.5 * count / speed,
    }


def _row(size: str, name: str, own: dict[str, Any], ours: float) -> dict[str, Any]:
    resumed = own["resume_seconds"]
    return {
        "images": size,
        "path": name,
        "images/s": own["images_per_second"],
        "perennial is": f"{ours / own['images_per_second']:.2f}×",
        "µs CPU an image": 1e6 * own["cpu_seconds_per_image"],
        "start, s": own["start_seconds"],
        "MB": own["resident_bytes"] / 1e6,
        "resume, s": f"replay {own['replay_seconds']:.0f}" if resumed is None else resumed,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    count, batches, rounds = (2048, 16, 2) if parser.parse_args().quick else (8192, 64, 5)
    if not PEERS.exists():
        print(f"mosaicml-streaming is left out: {PEERS} is not there (`make peers` installs it)")
    measured = {}
    for height, width in SIZES:
        images = count * 112 * 112 // (height * width)
        measured[f"{height}×{width}"] = measure((height, width), images, batches, rounds)
    rows = []
    for size, facts in measured.items():
        ours = facts["sides"]["perennial"]["images_per_second"]
        rows += [_row(size, name, own, ours) for name, own in facts["sides"].items()]
    report("data", rows, {"sizes": measured, "batch": BATCH})


if __name__ == "__main__":
    main()
