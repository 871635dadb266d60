"""Importing: images a second from RecordIO, and what a table of MS1M's size costs.

112×112 JPEGs of about 5 KB from an identity-sorted .rec, checked and written as shards, against the
customary script: one process, Pillow and webdataset's own TarWriter. Then, tables only, 5.8 million
samples of 85,738 identities: their size, and time and memory of opening them (asked: below 2 s).
"""

import argparse
import io
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from PIL import Image

from benchmarks import report
from benchmarks.data import pictures
from data_shards.files import sha256, write_json
from data_shards.sources import SourceImage
from data_shards.sources.recordio import MAGIC, RecordIOSettings, read_recordio
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.keys import TakenKeys
from data_shards.storage.samples import write_samples
from data_shards.writing.destination import Folder
from data_shards.writing.journal import JOURNAL_ROWS, Journal, ShardFacts
from data_shards.writing.writer import MANIFEST_VERSION

SAMPLES, IDENTITIES, SHARD = 5_800_000, 85_738, 4096


def record(labels: tuple[float, float], key: int, image: bytes) -> bytes:
    """A record of an identity-sorted file."""
    payload = struct.pack("<IfQQff", 2, 0.0, key, 0, *labels) + image
    return MAGIC + struct.pack("<I", len(payload)) + payload + bytes(-len(payload) % 4)


def write_rec(folder: Path, count: int, each: int, size: tuple[int, int] = (112, 112)) -> None:
    """train.rec and train.idx with `count` images, `each` an identity."""
    jpegs = [image.image for image in pictures(min(count, 1000), size)]
    people = count // each
    offset = 0
    with (
        (folder / "train.rec").open("wb") as rec,
        (folder / "train.idx").open("w", encoding="utf-8") as idx,
    ):

        def add(key: int, content: bytes) -> None:
            nonlocal offset
            idx.write(f"{key}\t{offset}\n")
            offset += rec.write(content)

        add(0, record((count + 1, count + 1 + people), 0, b""))
        for key in range(1, count + 1):
            add(key, record(((key - 1) // each, 1), key, jpegs[key % len(jpegs)]))
        for label in range(people):
            first = 1 + label * each
            add(count + 1 + label, record((first, first + each), count + 1 + label, b""))


class Memory:
    """The largest resident memory of a process and its children while in the block, bytes."""

    def __init__(self, pid: int | None = None) -> None:
        self._process, self._stop, self.largest = psutil.Process(pid), threading.Event(), 0
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            total = 0
            with suppress(psutil.NoSuchProcess):
                for process in (self._process, *self._process.children(recursive=True)):
                    total += process.memory_info().rss
            self.largest = max(self.largest, total)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def command(folder: Path, out: Path, processes: int) -> float:
    """Runs the real command; the largest memory of it and its processes, bytes."""
    run = [sys.executable, "-m", "launch.cli", "shards", "import", "recordio", str(folder)]
    run += ["--out", str(out), "--processes", str(processes)]
    with subprocess.Popen(run, stdout=subprocess.DEVNULL) as importer, Memory(importer.pid) as used:
        assert importer.wait() == 0
    return used.largest


def cpu_seconds() -> float:
    """CPU time of this process and of those that it waited for: what a busy machine leaves true."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def customary(settings: RecordIOSettings, out: Path) -> None:
    """One process: Pillow decodes, webdataset's TarWriter writes."""
    out.mkdir()
    with webdataset.ShardWriter(str(out / "%05d.tar"), SHARD, verbose=0) as writer:
        for number, item in enumerate(read_recordio(settings)):
            assert isinstance(item, SourceImage)
            Image.open(io.BytesIO(item.image)).load()
            meta = {"identity": item.identity, "camera": item.camera, "key": item.key}
            key = f"{number:09d}"
            writer.write({"__key__": key, "jpg": item.image, "cls": item.identity, "json": meta})


def importing(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Images a second and largest memory of each way to import `count` images."""
    write_rec(folder, count, 20)
    settings, cores = RecordIOSettings(path=folder), len(os.sched_getaffinity(0))
    sides = {
        f"{cores} processes": lambda out: command(folder, out, cores),
        "in one process": lambda out: command(folder, out, 0),
        "Pillow and TarWriter, one process": lambda out: customary(settings, out),
    }
    figures = {}
    for number, (name, side) in enumerate(sides.items()):
        out = folder / str(number)
        begun, used = time.perf_counter(), cpu_seconds()
        largest = side(out)
        seconds, used = time.perf_counter() - begun, cpu_seconds() - used
        size = sum(tar.stat().st_size for tar in out.glob("*.tar"))
        figures[name] = {
            "images_per_second": count / seconds,
            "cpu_microseconds_per_image": 1e6 * used / count,
            "shard_bytes_per_image": size / count,
        }
        if largest is not None:
            figures[name]["megabytes"] = largest / 1e6
    return figures


def write_tables(folder: Path, samples: int, identities: int) -> float:
    """A dataset's tables and empty shards of the right length; seconds of the last table."""
    rng = np.random.default_rng(0)
    journal = Journal(Folder(folder), {})
    weights = rng.lognormal(0, 0.8, identities)
    people = np.sort(rng.choice(identities, samples, p=weights / weights.sum()))
    people[:identities] = np.sort(people[:identities])
    files: dict[str, Any] = {}
    for shard, first in enumerate(range(0, samples, SHARD)):
        ids = people[first : first + SHARD]
        sizes = rng.integers(4000, 7000, len(ids))
        steps = 3 * 512 + 1024 + -(-sizes // 512) * 512
        offsets = np.cumsum(steps) - steps + 1536
        columns = [np.full(len(ids), shard), offsets, sizes, ids, np.zeros(len(ids)),
                   np.zeros(len(ids)), rng.integers(0, 1 << 32, len(ids)),
                   rng.integers(0, 1 << 63, len(ids))]  # fmt: skip
        arrays = [
            pa.array(c.astype(f.type.to_pandas_dtype()))
            for c, f in zip(columns, JOURNAL_ROWS, strict=True)
        ]
        name, length = f"shard-{shard:05d}", int(steps.sum())
        for suffix, size in (("tar", length), ("idx", 100 * len(ids))):
            os.truncate(os.open(folder / f"{name}.{suffix}", os.O_CREAT | os.O_WRONLY), size)
            files[f"{name}.{suffix}"] = {"bytes": size, "sha256": "0" * 64}
        facts = ShardFacts(
            consumed=first + len(ids), last_key="", refused_bytes=0, identities=[], cameras=[],
            sizes=[(112, 112)], files={},
        )  # fmt: skip
        journal.add(pa.table(arrays, schema=JOURNAL_ROWS), facts)
    begun = time.perf_counter()
    write_samples(journal.rows(), folder / "samples.parquet")
    seconds = time.perf_counter() - begun
    pq.write_table(pa.table({"name": [str(n) for n in range(identities)]}),
                   folder / "identities.parquet")  # fmt: skip
    for name in ("samples.parquet", "identities.parquet"):
        path = folder / name
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    shards = [name for name in files if name.endswith(".tar")]
    write_json(folder / "manifest.json", {
        "version": MANIFEST_VERSION, "source": {}, "image_size": [112, 112], "samples": samples,
        "identities": identities, "cameras": ["unknown"], "refused": 0, "tables": [],
        "shards": shards, "files": files,
    })  # fmt: skip
    journal.delete()
    return seconds


def opening(folder: Path) -> dict[str, float]:
    """In a process of its own: seconds and memory of opening a dataset."""
    code = f"from benchmarks.imports import opened; opened({str(folder)!r})"
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    found: dict[str, float] = json.loads(lines.splitlines()[-1])
    return found


def opened(folder: str) -> None:
    """Opens a dataset and prints what that took."""
    process = psutil.Process()
    before = process.memory_info().rss
    with Memory() as memory:
        begun, used = time.perf_counter(), cpu_seconds()
        dataset = ShardDataset.open(Path(folder))
        seconds, used = time.perf_counter() - begun, cpu_seconds() - used
        begun = time.perf_counter()
        assert len(dataset.names) == dataset.manifest["identities"]
        names = time.perf_counter() - begun
        time.sleep(0.2)
    held = process.memory_info().rss - before
    print(json.dumps({
        "open_seconds": seconds, "open_cpu_seconds": used, "names_seconds": names,
        "megabytes": held / 1e6,
        "peak_megabytes": (memory.largest - before) / 1e6,
    }))  # fmt: skip


def keys(samples: int) -> float:
    """Megabytes that remembering `samples` keys takes."""
    process, taken = psutil.Process(), TakenKeys()
    before = process.memory_info().rss
    for hashes in np.array_split(np.random.default_rng(0).integers(0, 1 << 63, samples), 1000):
        for number in hashes.tolist():
            taken.add(number)
        taken.merge_fresh()
    return (process.memory_info().rss - before) / 1e6


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of it")
    quick = parser.parse_args().quick
    count, samples, identities = (
        (8000, SAMPLES // 10, IDENTITIES // 10) if quick else (40_000, SAMPLES, IDENTITIES)
    )
    with tempfile.TemporaryDirectory() as name:
        rates = importing(Path(name), count)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assembling = write_tables(folder, samples, identities)
        size = (folder / "samples.parquet").stat().st_size
        runs = [opening(folder) for _ in range(1 if quick else 5)]
    of = {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
    of |= {"samples_megabytes": size / 1e6, "assembling_seconds": assembling}
    of["keys_megabytes"] = keys(samples)
    rows: list[dict[str, Any]] = []
    for side, figures in rates.items():
        rows += [{"what": f"{side}: {key}", "is": value} for key, value in figures.items()]
    rows += [{"what": f"{samples:,} samples: {key}", "is": value} for key, value in of.items()]
    speeds = [figures["images_per_second"] for figures in rates.values()]
    figures_ = {"count": count, "importing": rates, "samples": samples, "identities": identities,
                "table": of, "ratio_to_script": speeds[0] / speeds[2]}  # fmt: skip
    report("imports", rows, figures_)


if __name__ == "__main__":
    main()
