"""A small class-incremental dataset and the configuration of runs on it."""

import json
from pathlib import Path
from typing import Any

from data_shards.sources import SourceImage
from data_shards.splits.benchmark_file import write_benchmark
from data_shards.splits.published_benchmarks import class_incremental
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.writer import write_dataset
from tests.conftest import jpeg

CLASSES, TRAINED, TESTED = 12, 6, 3


def write_classes(
    root: Path, tasks: int = 2, tested: int = TESTED, shard_samples: int = 20
) -> Path:
    """Twelve classes, half of them first, the others in `tasks` equal parts: the folder that holds
    dataset ``d``, benchmark ``b``. `tested` images of each are for testing."""
    images = [
        SourceImage(
            jpeg(c, n), f"class-{c:02d}", "", f"{c}/{n}", "train" if n >= tested else "query"
        )
        for c in range(CLASSES)
        for n in range(TRAINED + tested)
    ]
    write_dataset(images, root / "d", {}, shard_samples=shard_samples)
    write_benchmark(class_incremental(ShardDataset.open(root / "d"), tasks), root / "b.json")
    return root


def write_config(root: Path, methods: dict[str, Any], **values: Any) -> Path:
    """A configuration of three learning steps of the classes in `root`."""
    config = {
        "dataset": str(root / "d"),
        "benchmark": {"file": str(root / "b.json"), "steps": 3},
        "embedder": {"architecture": "small", "width": 4, "dimension": 8},
        "training": {"iterations": 12, "batch": 24, "milestones": []},
        "methods": methods,
        "cluster": {"workers": 0, "actors": 1},
        **values,
    }
    path = root / f"{'-'.join(methods)}.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return path
