"""Runs that die while they prepare or keep what later steps need, again and again."""

import json
import subprocess
import sys

from safetensors.numpy import load

from launch.config.load import load_config
from launch.phases.planning import phases
from launch.runs.run import Run
from tests.alone import execute_alone
from tests.launch.classes import write_classes, write_config

NEAREST = {"kind": "lucir", "memory": {"total": 14}, "predict": "nearest-mean"}
LEARNED = {
    "kind": "icarl",
    "memory": {
        "per_class": 2,
        "choose": "mnemonics",
        "adjust": True,
        "mnemonics": {"epochs": 1, "inner_steps": 1, "batch": 24, "images": 4},
    },
}
DRAWN_IMAGES = {"gan": {"noise": 4, "width": 2, "epochs": 1, "batch": 12, "least_variance": 0.0}}


def left(config, out):
    """What every phase left that does not hold times: hashes of models, memories and means."""
    found = {}
    for phase in phases(Run.open(out, load_config(config))):
        path = phase.output.path
        if phase.kind.where == "actors" and phase.kind.only_prepares:
            files = [path] if path.is_file() else sorted(path.iterdir())
            # their tensors: the order of a header's metadata is any
            held = {file.name: load(file.read_bytes()) for file in files}
            found[phase.name] = {
                (file, name): tensor.tobytes()
                for file, tensors in held.items()
                for name, tensor in tensors.items()
            }
        elif path.is_dir():
            manifest = json.loads((path / "manifest.json").read_text())
            found[phase.name] = manifest
        else:
            found[phase.name] = json.loads(path.read_text())
    return found


def end_alike(root, config, kinds, every=1):
    """A run killed at `every` write of phases of these kinds ends as an undisturbed one."""
    execute_alone(load_config(config), root / "undisturbed")
    how = [config, root / "run", str(every), *kinds]
    command = [sys.executable, "-m", "tests.chaos.phase_kills", *how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    died = [line for line in done.stdout.splitlines() if line.split(" ")[0] in kinds]
    assert {line.split()[0] for line in died} == kinds
    assert len(died) > 20 / every
    assert left(config, root / "run") == left(config, root / "undisturbed")
    for folder in root.glob("run/chains/*/seed-0/steps/*"):
        # a file that was cut short while it was written has a hidden name, and is nobody's
        assert not [p for p in folder.glob("*.part") if not p.name.startswith(".")]


def test_killed_at_every_write_of_exemplars_means_and_imprinted_rows(tmp_path, record_fault):
    root = write_classes(tmp_path)
    kinds = {"exemplars", "exemplar-means", "imprint"}
    end_alike(root, write_config(root, {"nme": NEAREST}), kinds)
    record_fault(
        "the driver killed (SIGKILL) at every write of exemplars, class means and imprinted rows, "
        "one after the other in one run",
        "each is made anew from where it was, by the same command",
        "the memory, means, rows and models of an undisturbed run, bit for bit",
    )


def test_killed_at_every_write_of_importances_and_distributions(tmp_path, record_fault):
    """Those of each shard or of some identities, and what is made of them and of earlier steps."""
    root = write_classes(tmp_path, tasks=1, shard_samples=60)
    config = write_config(
        root,
        {"gfr": {"keep": "ewc", "drift": "compensated"}},
        benchmark={"file": str(root / "b.json"), "steps": 2},
        training={"iterations": 4, "batch": 24},
    )
    end_alike(root, config, {"importance", "gaussians"})
    record_fault(
        "the driver killed (SIGKILL) at every write of parameters' importances (EWC, MAS) and of "
        "distributions to replay features from, one after the other in one run",
        "units whose sums are whole are not done again; the rest is, by the same command",
        "the importances, distributions and models of an undisturbed run, bit for bit",
    )


def test_killed_at_many_writes_of_learned_exemplars(tmp_path, record_fault):
    root = write_classes(tmp_path, tasks=1)
    benchmark = {"file": str(root / "b.json"), "steps": 2}
    training = {"iterations": 4, "batch": 24}
    methods = {"learned": LEARNED}
    config = write_config(root, methods, benchmark=benchmark, training=training)
    end_alike(root, config, {"learn-exemplars"}, every=3)
    record_fault(
        "the driver killed (SIGKILL) at every third write of learned exemplars",
        "groups of classes that are learned are not learned again, by the same command",
        "the exemplars and models of an undisturbed run, bit for bit",
    )


def test_killed_at_many_writes_of_images_for_a_generator_and_of_that(tmp_path, record_fault):
    root = write_classes(tmp_path, tasks=1, shard_samples=60)
    benchmark = {"file": str(root / "b.json"), "steps": 2}
    training = {"iterations": 4, "batch": 24}
    methods = {"mergan": DRAWN_IMAGES}
    config = write_config(root, methods, benchmark=benchmark, training=training)
    end_alike(root, config, {"train-generator"}, every=3)
    record_fault(
        "the driver killed (SIGKILL) at every third write of images that a generator is trained "
        "on, and of the generator, one after the other",
        "images that are there are not prepared again, by the same command",
        "the generators and models of an undisturbed run, bit for bit",
    )
