"""The index and the orders at MS1M's size: 5.8 million samples of 85,738 identities.

A synthetic, long-tailed samples table over shards that are sparse files: nothing but the index is
read. Opening it is to take less than 2 s, an order less than 200 MB, its first batch less than 5 s,
and resuming in the middle of epoch 3 less than 1 s. Each is measured in a process of its own.
"""

import argparse
import ctypes
import gc
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from benchmarks import in_a_process, report
from data_shards.files import sha256, write_json
from data_shards.orders.order import OrderSettings, make_order
from data_shards.splits.benchmark import build_benchmark
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.writer import MANIFEST_VERSION

BATCH, SHARD, BYTES = 512, 4096, 6000
ORDERS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "identities": {"images_per_identity": 4},
    "blocks": {"window": 16},
}


def write_index(folder: Path, samples: int, identities: int) -> None:
    """A dataset whose shards hold nothing: `samples` of `identities`, sorted by identity."""
    rng = np.random.default_rng(0)
    share = rng.lognormal(0, 1, identities)
    counts = 1 + np.floor(share / share.sum() * (samples - identities)).astype(np.int64)
    counts[: samples - counts.sum()] += 1
    row = np.arange(samples)
    columns = {
        "shard": (row // SHARD).astype(np.int32),
        "offset": row % SHARD * BYTES,
        "size": rng.integers(3000, BYTES - 1536, samples).astype(np.int32),
        "identity": np.repeat(np.arange(identities), counts),
        "camera": rng.integers(0, 2, samples).astype(np.int32),
        "role": np.zeros(samples, dtype=np.int8),
        "crc32": rng.integers(0, 2**32, samples).astype(np.uint32),
    }
    pq.write_table(pa.table(columns), folder / "samples.parquet")
    names = {"name": [f"m.{i:07d}" for i in range(identities)]}
    pq.write_table(pa.table(names), folder / "identities.parquet")
    shards = [f"shard-{i:05d}.tar" for i in range(-(-samples // SHARD))]
    for name in shards:
        with (folder / name).open("wb") as file:
            file.truncate(SHARD * BYTES)
    tables = ["samples.parquet", "identities.parquet"]
    files = {name: {"bytes": SHARD * BYTES, "sha256": "0" * 64} for name in shards}
    for name in tables:
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
    manifest = {
        "version": MANIFEST_VERSION,
        "source": {"synthetic": True},
        "image_size": [112, 112],
        "samples": samples,
        "identities": identities,
        "cameras": ["0", "1"],
        "refused": 0,
        "shards": shards,
        "files": files,
    }
    write_json(folder / "manifest.json", manifest)


def resident() -> int:
    """Bytes of this process in memory, with freed memory given back first."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    return 1024 * int(_status("VmRSS"))


def _status(field: str) -> str:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(line.split()[1] for line in lines if line.startswith(field))


def measure(folder: Path, kind: str) -> dict[str, float]:
    """Opens the dataset and takes the first batch's samples, and one in the middle of epoch 3."""
    before, idle = resident(), time.process_time()
    begun = time.perf_counter()
    dataset = ShardDataset.open(folder)
    opened, busy, table = time.perf_counter(), time.process_time(), resident()
    settings: Any = TypeAdapter(OrderSettings).validate_python({"kind": kind, **ORDERS[kind]})
    everything = np.arange(len(dataset))
    base = resident()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the high-water mark

    def order_at(position: int) -> tuple[Any, float, float]:
        start = time.perf_counter()
        order = make_order(
            settings=settings,
            samples=everything,
            identity=dataset.identity,
            shard=dataset.shard,
            batch=BATCH,
            seed=0,
        )
        order.at(np.arange(position, position + BATCH))
        return order, start, time.perf_counter()

    order, start, first = order_at(0)
    held, peak = resident() - base, 1024 * int(_status("VmHWM")) - base
    del order
    position = 5 * len(dataset) // 2 // BATCH * BATCH
    order, again, there = order_at(position)
    many = np.arange(position, position + 64 * BATCH)
    at = time.perf_counter()
    order.at(many)
    done = time.perf_counter()
    return {
        "open_seconds": opened - begun,
        "open_cpu_seconds": busy - idle,
        "table_bytes": float(table - before),
        "order_bytes": float(held + everything.nbytes),
        "order_peak_bytes": float(peak + everything.nbytes),
        "first_batch_seconds": opened - begun + first - start,
        "resume_seconds": there - again,
        "nanoseconds_per_sample": 1e9 * (done - at) / len(many),
    }


def split(folder: Path) -> dict[str, float]:
    """Builds the benchmark of the dataset in five learning steps."""
    dataset = ShardDataset.open(folder)
    begun = time.perf_counter()
    build_benchmark(dataset, BenchmarkSettings(steps=5, test_identities=1500))
    return {"benchmark_seconds": time.perf_counter() - begun}


def measured_apart(folder: Path, what: str) -> dict[str, float]:
    """`measure` of an order, or `split`, in a process of its own."""
    return in_a_process("benchmarks.scale", "--measure", what, folder)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the samples")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        what, place = given.measure
        print(json.dumps(split(Path(place)) if what == "split" else measure(Path(place), what)))
        return
    samples, identities = (580_000, 8_574) if given.quick else (5_800_000, 85_738)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_index(folder, samples, identities)
        size = (folder / "samples.parquet").stat().st_size
        measured = {kind: measured_apart(folder, kind) for kind in ORDERS}
        benchmark = measured_apart(folder, "split")
    report(
        "scale",
        [
            {
                "order": kind,
                "open, s": f["open_seconds"],
                "CPU, s": f["open_cpu_seconds"],
                "table, MB": f["table_bytes"] / 1e6,
                "order, MB": f["order_bytes"] / 1e6,
                "peak, MB": f["order_peak_bytes"] / 1e6,
                "to first batch, s": f["first_batch_seconds"],
                "to resume, s": f["resume_seconds"],
                "ns a sample": f["nanoseconds_per_sample"],
            }
            for kind, f in measured.items()
        ],
        {
            "samples": samples,
            "identities": identities,
            "samples_parquet_bytes": size,
            **benchmark,
            "orders": measured,
        },
    )


if __name__ == "__main__":
    main()
