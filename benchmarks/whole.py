"""A dataset of MS1M's size, imported by the real command and read: 5.8 million tiny images.

An identity-sorted .rec of 5,830,184 JPEGs of 16×16, 68 of each of 85,738 identities, becomes
shards. Of those is measured what `benchmarks.scale` measures of an index alone and, in a process of
its own, the time from nothing to the first decoded batch of each order. Takes seven minutes and
21 GB of disk.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from benchmarks import in_a_process, report
from benchmarks.imports import command, write_rec
from benchmarks.scale import BATCH, ORDERS, measured_apart
from data_shards.orders.order import OrderSettings, make_order
from data_shards.pipeline import ImageStream, PipelineSettings, Request
from data_shards.storage.dataset import ShardDataset

IDENTITIES, EACH, SIZE = 85_738, 68, (16, 16)


def first_images(folder: Path, kind: str) -> dict[str, float]:
    """Seconds from opening the dataset until the first batch's images are there."""
    settings: Any = TypeAdapter(OrderSettings).validate_python({"kind": kind, **ORDERS[kind]})
    begun = time.perf_counter()
    dataset = ShardDataset.open(folder)
    everything = np.arange(len(dataset))
    order = make_order(
        settings=settings,
        samples=everything,
        identity=dataset.identity,
        shard=dataset.shard,
        batch=BATCH,
        seed=0,
    )
    request = Request.plain(dataset, order.at(np.arange(BATCH)))
    _, images = next(iter(ImageStream(dataset, iter([request]), BATCH, PipelineSettings())))
    assert images.shape == torch.Size([BATCH, 3, *SIZE])
    return {"first_images_seconds": time.perf_counter() - begun}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a hundredth of it")
    parser.add_argument("--first", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.first:
        kind, place = given.first
        print(json.dumps(first_images(Path(place), kind)))
        return
    count = (IDENTITIES // 100 if given.quick else IDENTITIES) * EACH
    with tempfile.TemporaryDirectory() as name:
        rec, folder = Path(name) / "rec", Path(name) / "shards"
        rec.mkdir()
        write_rec(rec, count, EACH, SIZE)
        begun = time.perf_counter()
        largest = command(rec, folder, 2)
        seconds = time.perf_counter() - begun
        shutil.rmtree(rec)
        found: dict[str, Any] = {
            "samples": count,
            "import_seconds": seconds,
            "import_images_per_second": count / seconds,
            "import_megabytes": largest / 1e6,
            "samples_parquet_megabytes": (folder / "samples.parquet").stat().st_size / 1e6,
            "orders": {
                kind: measured_apart(folder, kind)
                | in_a_process("benchmarks.whole", "--first", kind, folder)
                for kind in ORDERS
            },
        }
    rows = [{"what": key, "is": found[key]} for key in found if key != "orders"]
    for kind, figures in found["orders"].items():
        rows += [{"what": f"{kind}: {key}", "is": value} for key, value in figures.items()]
    report("whole", rows, found)


if __name__ == "__main__":
    main()
