"""Class-incremental runs: accuracy task by task, and what is forgotten, as the files hold it."""

import contextlib
import io
import json
import subprocess
import sys

import numpy as np
import pytest

from data_shards.sources import SourceImage
from data_shards.splits.benchmark import build_benchmark
from data_shards.splits.benchmark_file import write_benchmark
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.splits.published_benchmarks import class_incremental
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.writer import write_dataset
from launch.config.load import load_config
from tests.alone import execute_alone
from tests.conftest import jpeg
from trainer.arrays import read_embeddings
from trainer.heads.collectives import Ranks
from trainer.model import Model

CLASSES, TESTED = 12, 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three steps over half of the classes, then a quarter, then the rest."""
    root = tmp_path_factory.mktemp("classes")
    images = [
        SourceImage(jpeg(c, n), f"class-{c:02d}", "", f"{c}/{n}", "train" if n > 2 else "query")
        for c in range(CLASSES)
        for n in range(6 + TESTED)
    ]
    write_dataset(images, root / "d", {})
    write_benchmark(class_incremental(ShardDataset.open(root / "d"), 2), root / "b.json")
    values = {
        "dataset": str(root / "d"),
        "benchmark": {"file": str(root / "b.json"), "steps": 3},
        "embedder": {"architecture": "small", "width": 8, "dimension": 16},
        "training": {"iterations": 40, "batch": 24, "milestones": []},
        "methods": {"finetune": {}},
        "cluster": {"workers": 0, "actors": 1},
    }
    (root / "c.json").write_text(json.dumps(values))  # JSON is YAML
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        execute_alone(load_config(root / "c.json"), root / "run")
    return root, told.getvalue()


def test_each_tasks_accuracy_is_that_of_its_images_among_all_classes_so_far(finished):
    root, _ = finished
    dataset = ShardDataset.open(root / "d")
    benchmark = build_benchmark(dataset, BenchmarkSettings(file=root / "b.json", steps=3))
    after, best = [], np.zeros(3)
    for step, rows in enumerate(benchmark.row_ends):
        folder = root / f"run/chains/finetune/seed-0/steps/{step}"
        found = json.loads((folder / "evaluation.json").read_text())
        model = Model.open(folder / "model")
        samples, vectors = read_embeddings(folder / "embeddings.safetensors", model.fingerprint)
        weight = model.frozen_rows(Ranks()).weight.detach().double().numpy()
        right: list[list[bool]] = [[] for _ in range(step + 1)]
        for sample, vector in zip(samples, vectors.astype(float), strict=True):
            label = benchmark.row_of_identity[dataset.identity[sample]]
            if label < rows:
                task = sum(label >= end for end in benchmark.row_ends)
                right[task].append(int(np.argmax(weight @ vector)) == label)
        tasks = [np.mean(own) for own in right]
        assert [len(own) // TESTED for own in right] == [6, 3, 3][: step + 1]
        assert found["tasks"] == pytest.approx(tasks)
        after.append(np.mean(np.concatenate(right)))
        assert found["class_accuracy"] == pytest.approx(after[-1])
        assert found["average_accuracy"] == pytest.approx(np.mean(after))
        best[: step + 1] = np.maximum(best[: step + 1], tasks)
        if step:
            assert found["forgetting"] == pytest.approx(np.mean((best[: step + 1] - tasks)[:step]))
    assert after[0] > 1.5 / 6 and found["forgetting"] > 0, "nothing was learned, or forgotten"
    assert "forgetting" not in json.loads(
        (root / "run/chains/finetune/seed-0/steps/0/evaluation.json").read_text()
    )


def test_compare_and_the_report_show_accuracies_and_forgetting(finished):
    root, told = finished
    titles = (
        "accuracy among all classes so far", "average incremental accuracy", "average forgetting",
    )  # fmt: skip
    page = (root / "run/report.html").read_text()
    for title in titles:
        assert title in told and title in page
    command = [sys.executable, "-m", "launch.cli", "compare", root / "run", "--json"]
    rows = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
    assert [row["step"] for row in rows] == [0, 1, 2]
    found = json.loads((root / "run/chains/finetune/seed-0/steps/2/evaluation.json").read_text())
    for metric in ("class_accuracy", "average_accuracy", "forgetting"):
        assert rows[2][metric]["mean"] == found[metric]
