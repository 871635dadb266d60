"""Backward-compatible training in a run: its phases, and where synthesised rows come from."""

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from data_shards.dataset import ShardDataset
from data_shards.pipeline import PipelineSettings
from launch.config import load_config
from launch.folder import Chain, Run
from launch.neighbourhoods import embed
from launch.phases import phases
from launch.run import execute
from trainer.heads.collectives import Ranks
from trainer.loop import old_classifier
from trainer.prototypes import read_prototypes

METHODS = ("bct", "bct-sys", "bct-kd", "bct-lwf", "l2")


@pytest.fixture(scope="module")
def run(small_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compatible")
    values = {
        "dataset": str(small_folder),
        "methods": {name: {} for name in METHODS},
        "benchmark": {
            "steps": 2,
            "train_identities": 36,
            "test_identities": 24,
            "pairs": 40,
            "seen_identities": 6,
        },
        "embedder": {"width": 4, "dimension": 8},
        "training": {"iterations": 10, "batch": 20},
        "classifier": {"margin": {"kind": "cosface", "scale": 16}},
        "cluster": {"workers": 0, "actors": 2},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(values))
    config = load_config(folder / "c.yaml")
    execute(config, folder / "run", Console(quiet=True))
    return Run.open(folder / "run", config)


def test_each_method_prepares_what_it_asks_for(run):
    names = [phase.name for phase in phases(run) if phase.kind in ("neighbours", "prototypes")]
    assert sorted(names) == [
        "bct-kd/seed-0/step-1/neighbours",
        "bct-lwf/seed-0/step-1/neighbours",
        "bct-sys/seed-0/step-1/prototypes",
        "l2/seed-0/step-1/neighbours",
    ]
    for name in METHODS:
        assert (run.step_folder(Chain(name, 0), 1) / "evaluation.json").exists()


def test_synthesised_rows_are_the_means_of_the_old_models_embeddings(run):
    chain = Chain("bct-sys", 0)
    old = run.previous(chain, 1)
    found = read_prototypes(run.step_folder(chain, 1) / "prototypes.safetensors", old.fingerprint)
    dataset = ShardDataset.open(run.dataset.folder)
    samples = run.benchmark.step_samples(1, all_so_far=False)
    vectors = embed(old.embedder(), dataset, samples, PipelineSettings(), 16)
    rows = run.benchmark.row[dataset.identity[samples]]
    naive = [vectors[rows == row].astype(np.float64).mean(0) for row in range(18, 36)]
    np.testing.assert_allclose(found, np.array(naive), rtol=1e-4, atol=1e-6)
    task = run.task(chain, 1)
    classifier = old_classifier(task, old, Ranks(), torch.device("cpu"))
    assert (classifier.known, classifier.rows.last) == (18, 36)
    assert torch.equal(classifier.rows.weight[18:], found)
    assert not classifier.rows.weight.requires_grad
