"""Neighbourhoods whose shards are embedded in parts: to the same bits, and none of them twice."""

import pytest
from safetensors.numpy import load

from launch.config.load import load_config
from launch.inference import embed
from launch.phases import neighbours
from tests.alone import execute_alone
from tests.launch.classes import write_classes, write_config

METHODS = {"fkd": {"neighbours": 3}, "lwf": {"over": "new"}}
BATCH = 4


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    root = write_classes(tmp_path_factory.mktemp("neighbours"), tasks=1, shard_samples=60)
    return write_config(
        root,
        METHODS,
        benchmark={"file": str(root / "b.json"), "steps": 2},
        teacher={"batch": BATCH},
        data={"augmentation": {"flip": True}},
    )


@pytest.fixture(scope="module")
def whole(path):
    """The run whose units are whole shards."""
    execute_alone(load_config(path), path.parent / "whole")
    return path.parent / "whole"


def answered(run):
    """What the old models said, and what came of it, by file and tensor."""
    steps = [*run.glob("chains/*/*/steps/1")]
    files = [
        f for step in steps for name in ("neighbours", "model") for f in (step / name).iterdir()
    ]
    files = [file for file in files if file.suffix == ".safetensors"]
    tensors = {file.relative_to(run): load(file.read_bytes()) for file in files}
    return {
        (str(file), name): (one.dtype, one.shape, one.tobytes())
        for file, own in tensors.items()
        for name, one in own.items()
    }


def test_parts_have_the_bits_of_whole_shards_and_are_resumed(path, whole, monkeypatch):
    monkeypatch.setattr(embed, "_PART", BATCH)
    written, real = [], neighbours.write_vectors

    def interrupted(worker, model, out, *others):
        written.append(out)
        if len(written) in (2, 9):
            raise KeyboardInterrupt
        real(worker, model, out, *others)

    monkeypatch.setattr(neighbours, "write_vectors", interrupted)
    run, stops = path.parent / "parts", 0
    while True:
        try:
            execute_alone(load_config(path), run)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops == 2 and len(set(written)) == len(written) - 2, "only what was interrupted again"
    assert len(written) > 20
    assert answered(run) == answered(whole) and len(answered(run)) > 8
    assert not list(run.rglob("vectors"))


def test_units_are_whole_where_there_are_enough_of_them(path, whole, monkeypatch):
    monkeypatch.setattr(embed, "_PART", BATCH)
    monkeypatch.setattr(neighbours, "_MANY", 2)
    monkeypatch.setattr(neighbours, "write_vectors", None)
    execute_alone(load_config(path), path.parent / "many")
    assert answered(path.parent / "many") == answered(whole)
