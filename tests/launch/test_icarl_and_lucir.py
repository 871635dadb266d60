"""Whole runs of iCaRL and LUCIR: what each step begins with, and what its files say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data_shards.pipeline import PipelineSettings
from launch.config.load import load_config
from launch.inference.embed import embed
from launch.planning.plan import plan_run
from launch.planning.split import split_of
from launch.runs.run import Chain, Run
from tests.alone import execute_alone
from tests.launch.classes import TRAINED, write_classes, write_config
from trainer.arrays import read_embeddings
from trainer.class_means import read_class_means
from trainer.decisions import Decision, NearestMean
from trainer.heads.collectives import Ranks
from trainer.imprinting import Imprinted
from trainer.model import Model
from trainer.row_layout import row_blocks
from trainer.state import build_rows

MEMORY = {"memory": {"per_class": 2}}
METHODS = {
    "icarl": MEMORY,
    "icarl-cnn": {"kind": "icarl", "predict": "largest-logit", **MEMORY},
    "lucir": MEMORY,
    "lucir-held": {"kind": "lucir", "hold_old_rows": True, **MEMORY},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three steps over half of the classes, then a quarter, then the rest."""
    root = write_classes(tmp_path_factory.mktemp("classes"))
    network = {"architecture": "small", "width": 1, "dimension": 128, "projection": "none"}
    training = {"iterations": 30, "batch": 24, "milestones": []}
    config = load_config(write_config(root, METHODS, embedder=network, training=training))
    execute_alone(config, root / "run")
    return Run.open(root / "run", config)


def found_in(run, method, step):
    folder = run.step_folder(Chain(method, 0), step)
    return json.loads((folder / "evaluation.json").read_text())


@pytest.mark.parametrize("method", METHODS)
def test_every_step_is_learned(run, method):
    accuracies = [found_in(run, method, step)["class_accuracy"] for step in range(3)]
    assert min(accuracies) > 0.5, "chance is a sixth, and a twelfth at the end"


def test_icarl_is_trained_once_and_decides_in_both_ways(run):
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    trained = {line["phase"].split("/")[0] for line in lines}
    assert trained == {"icarl", "lucir", "lucir-held"}
    held = [line for line in lines if line["phase"].startswith("lucir-held")]
    assert not any("/step-0/" in line["phase"] for line in held), "it is lucir's"
    for step in range(3):
        folder = run.step_folder(Chain("icarl", 0), step)
        model = Model.open(folder / "model")
        assert isinstance(Decision.open(folder / "decision", model).rule, NearestMean)
        _, vectors = read_embeddings(folder / "embeddings.safetensors", model.fingerprint)
        assert (vectors >= 0).all(), "behind a ReLU"
        for method in ("icarl-cnn", "lucir"):
            assert not (run.step_folder(Chain(method, 0), step) / "decision").exists()


def test_lucirs_embeddings_have_the_length_that_was_learned(run):
    lengths = []
    for step in range(3):
        folder = run.step_folder(Chain("lucir", 0), step)
        model = Model.open(folder / "model")
        assert model.classifier.margin.kind == "cosine"
        _, vectors = read_embeddings(folder / "embeddings.safetensors", model.fingerprint)
        eta = float(model.embedder().state_dict()["activation.eta"])
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), eta, rtol=1e-5)
        assert (vectors < 0).any(), "not behind a ReLU"
        rows = model.frozen_rows(Ranks()).weight
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
        lengths.append(eta)
    assert lengths == sorted(lengths) and lengths[0] > 1, "it goes on from where it was"


@pytest.mark.parametrize("step", [1, 2])
def test_old_rows_are_trained_or_held(run, step):
    for method in ("lucir", "lucir-held"):
        folders = [run.step_folder(Chain(method, 0), own) for own in (step - 1, step)]
        old, now = (Model.open(f / "model").sharded_rows(Ranks()).weight for f in folders)
        still = (now[: len(old)] == old).all(dim=1)
        assert still.all() if method == "lucir-held" else not still.any()
        made = read_class_means(folders[1] / "imprinted.safetensors", _model(folders[0]))
        assert not (now[len(old) :] == made).all(dim=1).any(), "new rows are trained"


def _model(folder):
    return Model.open(folder / "model").fingerprint


@pytest.mark.parametrize("step", [1, 2])
def test_new_rows_begin_where_the_old_model_sees_their_images(run, step):
    chain = Chain("lucir", 0)
    previous = run.previous(chain, step)
    old = previous.sharded_rows(Ranks()).weight.detach()
    length = old.norm(dim=1).mean()
    network, dataset = previous.embedder(), run.dataset
    expected = []
    for row in range(run.benchmark.row_ends[step - 1], run.benchmark.row_ends[step]):
        samples = run.benchmark.steps[step]
        own = samples[run.benchmark.row_of_identity[dataset.identity[samples]] == row]
        assert len(own) == TRAINED
        vectors = torch.from_numpy(embed(network, dataset, own, PipelineSettings(), TRAINED))
        expected.append(F.normalize(F.normalize(vectors).mean(dim=0), dim=0) * length)
    expected = torch.cat([old, torch.stack(expected)])
    file = run.step_folder(chain, step) / "imprinted.safetensors"
    made = read_class_means(file, previous.fingerprint)
    torch.testing.assert_close(made, expected[len(old) :], rtol=1e-4, atol=1e-5)
    spec = replace(run.training_spec(chain, step), prepared={Imprinted: file})
    (block,) = row_blocks(spec.recipe, len(old), run.benchmark.row_ends[step]).values()
    for world in (1, 2, 3):
        for rank in range(world):
            rows = build_rows(block, spec, 0, Ranks(rank, world))
            wanted = torch.cat([old, made])[rows.own_ids()]
            assert torch.equal(rows.weight.detach(), wanted), "the same at any world size"


@pytest.mark.parametrize("mode", ["cached", "online"])
def test_both_can_be_planned(tmp_path, mode):
    values = {
        "dataset": str(tmp_path / "no data"),
        "benchmark": {"steps": 3, "test_identities": 20},
        "data": {"image_size": [32, 32]},
        "embedder": {"architecture": "resnet32", "dimension": 64, "projection": "none"},
        "training": {"iterations": 50, "batch": 128},
        "teacher": {"mode": mode},
        "methods": METHODS,
        "cluster": {"workers": 3},
    }
    (tmp_path / "c.json").write_text(json.dumps(values))
    config = load_config(tmp_path / "c.json")
    plan = plan_run(config, split_of(config, identities=120, images=60_000), None)
    groups = [(step.step, step.methods) for step in plan.steps]
    both = ("icarl", "icarl-cnn")
    assert {own for own in groups if not own[0]} == {(0, both), (0, ("lucir", "lucir-held"))}
    assert len(groups) == 10, "after step 0 apart by their decisions, too"
    for step in plan.steps:
        assert step.memory["peak"] > step.memory["embedder"] > 4 * 460_000
        assert ("teacher" in step.calls) == (step.step > 0)
