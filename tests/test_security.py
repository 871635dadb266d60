"""Files that try to run code: they are refused, and nothing runs.

Shards are tested in data_shards/test_webdataset_source.py and test_remote.py (``pipe:`` URLs, names
that leave their folder), ``.bin`` and other pickles in data_shards/test_pickles.py, programs of
other products in trainer/test_adopted.py, Ray in launch/test_cluster.py and in
integration/test_jobs.py.
"""

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from data_shards.settings import InputError
from launch.config.load import load_config
from launch.phases.status import open_run
from monitoring.report import draw
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.checkpoint import Folder
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.rows import ShardedRows
from trainer.model import Model, save_model


@pytest.fixture
def trace(tmp_path):
    """A file that would be there if code had run."""
    path = tmp_path / "code-ran-here"
    yield path
    assert not path.exists()


class Runs:
    """Unpickles into a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system"],
)
def test_a_configuration(trace, tmp_path, tag):
    path = tmp_path / "c.yaml"
    path.write_text(f"methods: {{finetune: {{}}}}\ndataset: {tag} ['touch {trace}']\n")
    with pytest.raises(InputError, match="the tag"):
        load_config(path)
    path.write_text("methods: {finetune: {}}\ndataset: data\n")
    with pytest.raises(InputError, match="the tag"):
        load_config(path, [f"dataset={tag} ['touch {trace}']"])


def test_a_run_folders_configuration(trace, tmp_path):
    (tmp_path / "run.yaml").write_text(f"a: !!python/object/apply:os.system ['touch {trace}']\n")
    with pytest.raises(InputError, match="is damaged"):
        open_run(tmp_path)
    with pytest.raises(InputError):
        draw(tmp_path)


def forged(folder: Path, name: str, content: bytes) -> None:
    """Replaces a file of a saved folder, and makes its manifest say that this is right."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[name] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_model(trace, tmp_path, how):
    """A pickle in the place of tensors, with a hash that is right."""
    settings, ranks = EmbedderSettings(width=4, dimension=8), Ranks()
    rows = ShardedRows.new(0, 6, 8, 0, ranks)
    classifier = MarginLoss(ClassifierSettings(), 0, torch.device("cpu"))
    folder = tmp_path / "model"
    names = [f"id-{row}" for row in range(6)]
    net = build_embedder(settings)
    save_model(folder, settings, (16, 16), classifier, net, [rows], names, ranks)
    if how == "pickle":
        content = pickle.dumps(Runs(trace))
    else:
        torch.save({"weight": Runs(trace)}, tmp_path / "w")
        content = (tmp_path / "w").read_bytes()
    forged(folder, "embedder.safetensors", content)
    with pytest.raises(InputError, match="embedder"):
        Model.open(folder).embedder()
    with pytest.raises(InputError, match="embedder"):
        Folder.at(folder).tensors("embedder")
