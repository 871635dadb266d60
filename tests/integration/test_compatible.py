"""Backward-compatible training in a run: its phases, other networks, and synthesised rows."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from data_shards.pipeline import PipelineSettings
from data_shards.storage.dataset import ShardDataset
from launch.config.load import load_config
from launch.inference.embed import embed
from launch.phases.planning import phases
from launch.runs.run import Chain, Run
from tests.alone import execute_alone
from trainer.arrays import read_embeddings
from trainer.class_means import read_class_means
from trainer.heads.collectives import Ranks
from trainer.loop import build_anchor
from trainer.model import Model

METHODS = {
    "bct": {},
    "bct-sys": {},
    "bct-lwf": {},  # asks the old model the same as bct-kd, of fewer images
    "bct-kd": {},
    "l2": {},
    "wide": {
        "kind": "bct",
        "embedder": {"dimension": 12, "depth": 3},
        "classifier": {"margin": {"kind": "norm_softmax", "scale": 16}},
    },
    "chain": {"kind": "bct-sys", "anchor": "first"},
    "both": {
        "kind": "combination",
        "of": {"fkd": {"neighbours": 5}, "bct-sys": {"anchor": "first"}},
    },
}


@pytest.fixture(scope="module")
def run(small_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compatible")
    values = {
        "dataset": str(small_folder),
        "methods": METHODS,
        "benchmark": {
            "steps": 3,
            "first_share": 0.5,
            "train_identities": 36,
            "test_identities": 24,
            "pairs": 40,
            "seen_identities": 6,
        },
        "embedder": {"width": 4, "dimension": 8},
        "training": {"iterations": 5, "batch": 20},
        "classifier": {"margin": {"kind": "cosface", "scale": 16}},
        "cluster": {"workers": 0, "actors": 2},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    config = load_config(folder / "c.yaml")
    execute_alone(config, folder / "run")
    return Run.open(folder / "run", config)


def model_of(run, method, step):
    return Model.open(run.step_folder(Chain(method, 0), step) / "model")


def test_each_method_prepares_what_it_asks_for(run):
    names = {p.name for p in phases(run) if p.kind.name in ("neighbours", "prototypes")}
    asked = {
        "bct-kd": ["neighbours"],
        "bct-lwf": ["neighbours"],
        "l2": ["neighbours"],
        "bct-sys": ["prototypes"],
        "chain": ["prototypes"],
        "both": ["neighbours", "prototypes"],
    }
    assert names == {
        f"{method}/seed-0/step-{step}/{kind}"
        for method, kinds in asked.items()
        for kind in kinds
        for step in (1, 2)
    }
    for name in METHODS:
        assert (run.step_folder(Chain(name, 0), 2) / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("method", "step", "anchor", "first", "last"),
    [
        ("bct-sys", 1, 0, 18, 27),
        ("bct-sys", 2, 1, 27, 36),
        ("chain", 2, 0, 18, 36),  # trains on all images: the first model lacks two steps
        ("both", 2, 0, 27, 36),  # trains on the new images alone
    ],
)
def test_synthesised_rows_are_the_means_of_the_old_models_embeddings(
    run, method, step, anchor, first, last
):
    chain, old = Chain(method, 0), model_of(run, method, anchor)
    found = read_class_means(
        run.step_folder(chain, step) / "prototypes.safetensors", old.fingerprint
    )
    dataset = ShardDataset.open(run.dataset.folder)
    samples = run.benchmark.step_samples(step, all_so_far=True)
    vectors = embed(old.embedder(), dataset, samples, PipelineSettings(), 16)
    rows = run.benchmark.row_of_identity[dataset.identity[samples]]
    naive = [vectors[rows == row].astype(np.float64).mean(0) for row in range(first, last)]
    np.testing.assert_allclose(found, np.array(naive), rtol=1e-4, atol=1e-6)
    classifier = build_anchor(run.training_spec(chain, step), Ranks(), torch.device("cpu"))
    assert (classifier.num_known, len(classifier.rows.weight)) == (
        old.rows,
        old.rows + last - first,
    )
    assert torch.equal(classifier.rows.weight[old.rows :], found)
    assert not classifier.rows.weight.requires_grad


def test_a_method_trains_another_network_and_loss_from_step_1_on(run):
    first, second = (model_of(run, "wide", step) for step in (0, 1))
    assert (first.settings, first.classifier) == (run.config.embedder, run.config.classifier)
    assert first.fingerprint == model_of(run, "bct", 0).fingerprint
    assert (second.settings.dimension, second.settings.depth) == (12, 3)
    assert second.classifier.margin.kind == "norm_softmax"
    samples, embeddings = read_embeddings(
        run.step_folder(Chain("wide", 0), 1) / "embeddings.safetensors", second.fingerprint
    )
    found = embed(second.embedder(), run.dataset, samples[:5], PipelineSettings(), 5)
    np.testing.assert_allclose(embeddings[:5], found, rtol=1e-4, atol=1e-5)


def test_the_first_step_learns_its_share_and_longer_steps_train_longer(run):
    assert run.benchmark.row_ends == (18, 27, 36)
    lengths = [run.training(Chain("bct", 0), step).iterations for step in range(3)]
    assert lengths == [5, 8, 10]


def test_answers_that_are_out_of_date_are_replaced(run, tmp_path):
    """As where a phase has another fingerprint than the one whose output lies there."""
    copy = Path(shutil.copytree(run.folder, tmp_path / "run"))
    ledger, again = copy / "ledger.jsonl", "l2/seed-0/step-2/"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(line for line in lines if again not in line))
    (stale := copy / "chains/l2/seed-0/steps/2/neighbours/stale").touch()
    execute_alone(run.config, copy)
    assert not stale.exists()
    kept = "chains/l2/seed-0/steps/2/evaluation.json"
    assert (copy / kept).read_text() == (run.folder / kept).read_text()
