"""Class-incremental runs: accuracy task by task, and what is forgotten, as the files hold it."""

import base64
import contextlib
import html
import io
import json

import numpy as np
import pytest
import safetensors.torch
from PIL import Image

from data_shards.splits.benchmark import build_benchmark
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.storage.dataset import ShardDataset
from launch.config.load import load_config
from tests.alone import execute_alone
from tests.commands import perennial
from tests.launch.classes import TESTED, write_classes, write_config
from trainer.arrays import read_embeddings
from trainer.heads.collectives import Ranks
from trainer.model import Model


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three steps over half of the classes, then a quarter, then the rest."""
    root = tmp_path_factory.mktemp("classes")
    config = write_config(
        write_classes(root),
        {
            "finetune": {"over": "all"},
            "replay": {"kind": "finetune", "over": "all", "memory": {"per_class": 2}},
        },
    )
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        execute_alone(load_config(config), root / "run")
    return root, told.getvalue()


def test_each_tasks_accuracy_is_that_of_its_images_among_all_classes_so_far(finished):
    root, _ = finished
    dataset = ShardDataset.open(root / "d")
    benchmark = build_benchmark(dataset, BenchmarkSettings(file=root / "b.json", steps=3))
    after, best, first = [], np.zeros(3), 0.0
    for step, rows in enumerate(benchmark.row_ends):
        folder = root / f"run/chains/finetune/seed-0/steps/{step}"
        found = json.loads((folder / "evaluation.json").read_text())
        model = Model.open(folder / "model")
        samples, vectors = read_embeddings(folder / "embeddings.safetensors", model.fingerprint)
        weight = model.frozen_rows(Ranks()).weight.detach().double().numpy()
        right: list[list[bool]] = [[] for _ in range(step + 1)]
        taken = np.zeros((step + 1, step + 1))
        for sample, vector in zip(samples, vectors.astype(float), strict=True):
            label = benchmark.row_of_identity[dataset.identity[sample]]
            if label < rows:
                task = sum(label >= end for end in benchmark.row_ends)
                said = int(np.argmax(weight @ vector))
                right[task].append(said == label)
                taken[task, sum(said >= end for end in benchmark.row_ends)] += 1
        tasks = [np.mean(own) for own in right]
        assert [len(own) // TESTED for own in right] == [6, 3, 3][: step + 1]
        assert found["tasks"] == pytest.approx(tasks)
        assert found["task_accuracy"] == pytest.approx(np.mean(tasks))
        shares = taken / taken.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found["confusion"], shares)
        after.append(np.mean(np.concatenate(right)))
        assert found["class_accuracy"] == pytest.approx(after[-1])
        assert found["average_accuracy"] == pytest.approx(np.mean(after))
        first = tasks[0] if step == 0 else first
        best[: step + 1] = np.maximum(best[: step + 1], tasks)
        if step:
            assert found["forgetting"] == pytest.approx(np.mean((best[: step + 1] - tasks)[:step]))
            assert found["first_drop"] == pytest.approx(first - tasks[0])
            old = taken[:step].sum()
            assert found["old_as_new"] == pytest.approx(taken[:step, step].sum() / old)
            assert found["new_as_old"] == pytest.approx(shares[step, :step].sum())
    assert after[0] > 1.5 / 6 and found["forgetting"] > 0, "nothing was learned, or forgotten"
    assert "forgetting" not in json.loads(
        (root / "run/chains/finetune/seed-0/steps/0/evaluation.json").read_text()
    )


def test_memory_is_the_bytes_of_the_files(finished):
    """Of exemplars those of their images, of the model those of its tensors."""
    root, _ = finished
    chain = root / "run/chains/replay/seed-0/steps"
    for step, classes in enumerate((6, 9, 12)):
        memory = ShardDataset.open(chain / f"{step}/exemplars")
        told = json.loads((chain / f"{step}/exemplars.json").read_text())
        assert told["images"] == len(memory) == 2 * classes and told["identities"] == classes
        assert told["bytes"] == sum(len(memory.image(n)) for n in range(len(memory)))
        with Image.open(io.BytesIO(memory.image(0))) as image:
            assert told["pixel_bytes"] == 3 * image.width * image.height * len(memory)
        assert [len(one["jpegs"]) for one in told["shown"]] == [2] * classes
        for one in told["shown"]:
            own = [
                n for n in range(len(memory)) if memory.names[memory.identity[n]] == one["identity"]
            ]
            images = [base64.b64encode(memory.image(n)).decode() for n in own]
            assert one["jpegs"] == images
        model = chain / f"{step}/model"
        tensors = safetensors.torch.load_file(model / "embedder.safetensors").values()
        found = json.loads((chain / f"{step}/evaluation.json").read_text())["model_bytes"]
        assert found["network"] == sum(t.numel() * t.element_size() for t in tensors)
        assert found["rows"] == classes * 8 * 4
    assert not (root / "run/chains/finetune/seed-0/steps/2/exemplars.json").exists()


def test_compare_and_the_report_show_accuracies_and_forgetting(finished):
    root, told = finished
    titles = (
        *("accuracy among all classes so far", "average incremental accuracy"),
        *("average forgetting", "drop on step 0", "classes&#39; images taken for new"),
    )
    page = (root / "run/report.html").read_text()
    for title in titles:
        assert html.unescape(title) in told and title in page
    assert page.count('<svg class="heat"') == 2 * 2, "accuracy and confusion, a method each"
    assert "24 images of 12 classes" in page and "exemplars as stored" in page
    rows = json.loads(perennial("compare", root / "run", "--json").stdout)
    last = {row["method"]: row for row in rows if row["step"] == 2}
    assert [row["step"] for row in rows if row["method"] == "finetune"] == [0, 1, 2]
    for method, row in last.items():
        chain = root / f"run/chains/{method}/seed-0/steps/2"
        found = json.loads((chain / "evaluation.json").read_text())
        for metric in ("class_accuracy", "average_accuracy", "task_accuracy", "forgetting"):
            assert row[metric]["mean"] == found[metric]
        assert row["tasks"] == found["tasks"] and row["confusion"] == found["confusion"]
        assert row["memory"]["network_bytes"] == found["model_bytes"]["network"]
    kept = json.loads((chain / "exemplars.json").read_text())
    assert last["replay"]["memory"]["exemplar_images"] == kept["images"] == 24
    assert last["replay"]["memory"]["exemplar_bytes"] == kept["bytes"]
    assert "exemplar_bytes" not in last["finetune"]["memory"]
