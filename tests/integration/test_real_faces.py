"""What docs/results/real_faces.md says, on the photographs themselves, where they are."""

import json
import subprocess
import sys
from itertools import islice

import numpy as np
import onnx
import pytest
import yaml

from data_shards.splits.benchmark_file import write_benchmark
from launch.config.load import load_config
from launch.runs.run import Run
from tests.alone import execute_alone
from tests.real_faces import DATA, halves, needs_faces, people, write_pairs, write_photographs

pytestmark = [needs_faces, pytest.mark.timeout(1800)]  # beside others, on a full machine
PIXELS = ["--size", "112x112", "--mean", "127.5", "--std", "127.5"]
MARGIN = {"kind": "cosface", "scale": 32, "margin": 0.2}


def perennial(cwd, *words, status=0):
    """Runs a command in a process of its own: some start Ray."""
    command = [sys.executable, "-m", "launch.cli", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def imported(folder, name, keys, *options):
    write_photographs(keys, folder / name)
    perennial(folder, "shards", "import", "folder", name, *options, "--out", f"{name}-shards")
    return f"{name}-shards"


def adopted(folder, images, *options):
    file = DATA / "face_model_a.onnx"
    how = "--architecture", "mobilefacenet_relu6", "--images", images
    perennial(folder, "adopt", file, *how, *PIXELS, *options)


def test_the_adopted_network_verifies_the_standard_pairs(tmp_path):
    """The graph has 98.93 %, published figures of such networks are 98.5 to 99.3 %."""
    shards = imported(tmp_path, "faces", write_pairs(tmp_path / "pairs.csv"), "pairs=pairs.csv")
    adopted(tmp_path, shards, "--out", "plain")
    how = "--on", shards, "--protocol", "verification", "--actors", 1
    perennial(tmp_path, "evaluate", "plain", *how, "--out", "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["pairs"] == 6000
    assert found["accuracy"] == pytest.approx(0.989, abs=0.002)


def test_a_copy_whose_vectors_are_turned_is_refused(tmp_path):
    """As good by itself, comparable with nothing."""
    keys = write_pairs(tmp_path / "pairs.csv", of_each=20)
    shards = imported(tmp_path, "faces", keys, "pairs=pairs.csv")
    adopted(tmp_path, shards, "--out", "plain")
    model = onnx.load(DATA / "face_model_a.onnx")
    (output,) = model.graph.output
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(128, 128)))
    model.graph.initializer.append(onnx.numpy_helper.from_array(turn.astype(np.float32), "turn"))
    model.graph.node.append(onnx.helper.make_node("MatMul", [output.name, "turn"], ["turned"]))
    output.name = "turned"
    onnx.save(model, tmp_path / "turned.onnx")
    perennial(tmp_path, "adopt", "turned.onnx", *PIXELS, "--out", "turned")
    between = "turned", "--with", "plain", "--on", shards, "--at", "tar@0.05"
    perennial(tmp_path, "compat", *between, "--out", "found.json", status=3)
    (point,) = json.loads((tmp_path / "found.json").read_text())["points"]
    assert point["new_new"] == pytest.approx(point["old_old"], abs=0.005)
    assert point["old_old"] > 0.95
    assert point["new_old"] < 0.15


def test_half_of_the_people_are_learned_and_the_others_are_searched_for(tmp_path):
    """A few of them, for a few iterations: adopted, with its gallery's rows, trained on, judged."""
    file, keys = halves(dict(islice(people().items(), 250)), most=2)
    write_benchmark(file, tmp_path / "halves.json")
    faces = imported(tmp_path, "faces", keys)
    old = {key for key in keys if key.split("/")[0] in set(file.steps[0])}
    singles = imported(tmp_path, "singles", old)
    adopted(tmp_path, faces, "--out", "plain")
    perennial(tmp_path, "embed", "plain", singles, "--out", "vectors", "--actors", 1)
    margin = ",".join(f"{key}={value}" for key, value in MARGIN.items())
    adopted(tmp_path, faces, "--gallery", "vectors", "--margin", margin, "--out", "old")
    values = {
        "dataset": str(tmp_path / faces),
        "adopted": str(tmp_path / "old"),
        "start": str(tmp_path / "old" / "embedder.safetensors"),
        "benchmark": {"file": str(tmp_path / "halves.json"), "steps": 2},
        "data": {"augmentation": {"flip": False}},
        "embedder": {"architecture": "mobilefacenet_relu6", "dimension": 128},
        "classifier": {"margin": MARGIN},
        "training": {"iterations": 3, "batch": 16, "learning_rate": 1e-4},
        "evaluation": {"compatibility": {"at": ["top1"]}},
        "methods": {"finetune": {}, "fkd": {"neighbours": 20}, "bct": {}},
        "cluster": {"workers": 0, "actors": 1},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    config = load_config(tmp_path / "run.yaml")
    execute_alone(config, tmp_path / "run")
    run = Run.open(tmp_path / "run", config)
    for chain in run.chains():
        found = json.loads((run.step_folder(chain, 1) / "compatibility.json").read_text())
        (against,) = found["against"]
        (point,) = against["points"]
        assert point["old_old"] > 0.95, chain
        assert point["new_old"] > 0.8, chain  # three small steps leave the network what it is
        assert found["holds"] == point["holds"] == (point["lower"] > 0), chain
        (curve,) = against["backfill"]
        assert curve["isolated"][0] == pytest.approx(point["new_old"]), chain
        assert curve["isolated"][-1] == pytest.approx(point["new_new"]), chain
