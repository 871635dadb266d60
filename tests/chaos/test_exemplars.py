"""The memory of a run that dies while it is chosen, again and again."""

import json
import subprocess
import sys

from safetensors.numpy import load

from launch.config.load import load_config
from launch.phases.planning import phases
from launch.runs.run import Run
from tests.alone import execute_alone
from tests.launch.classes import write_classes, write_config

METHODS = {
    "nme": {
        "kind": "lucir",
        "memory": {"total": 14},
        "predict": "nearest-mean",
    },
}


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


def test_killed_at_every_write_of_exemplars_means_and_imprinted_rows(tmp_path, record_fault):
    root = write_classes(tmp_path)
    config = write_config(root, METHODS)
    execute_alone(load_config(config), root / "undisturbed")
    command = [sys.executable, "-m", "tests.chaos.exemplar_kills", config, root / "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    died = [line for line in done.stdout.splitlines() if line.split(" ")[0] in KINDS]
    assert {line.split()[0] for line in died} == KINDS
    assert len(died) > 20
    assert left(config, root / "run") == left(config, root / "undisturbed")
    for step in range(3):
        folder = root / f"run/chains/nme/seed-0/steps/{step}"
        # a file that was cut short while it was written has a hidden name, and is nobody's
        assert not [p for p in folder.glob("*.part") if not p.name.startswith(".")]
    record_fault(
        "the driver killed (SIGKILL) at every write of exemplars, class means and imprinted rows, "
        "one after the other in one run",
        "each is made anew from where it was, by the same command",
        "the memory, means, rows and models of an undisturbed run, bit for bit",
    )


KINDS = {"exemplars", "exemplar-means", "imprint"}
