"""Every reader of files that a stranger may have written, each with a small good file."""

import copy
import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from data_shards.sheet import contact_sheet
from data_shards.splits.benchmark_file import read_benchmark
from data_shards.storage.dataset import SampleError, ShardDataset
from data_shards.storage.features import read_feature, write_feature
from data_shards.storage.neighbours import TeacherCache, teacher_file, write_teacher_file
from data_shards.writing.writer import write_dataset
from launch.analyses.meta_classes import of_file
from launch.config.load import load_config
from launch.models.search import Stored
from launch.runs.ledger import Ledger
from monitoring import records
from tests.conftest import source
from tests.fuzz.harness import Target
from tests.fuzz.source_targets import SOURCE_TARGETS
from trainer.arrays import read_embeddings, write_embeddings
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.checkpoint import save_folder
from trainer.checkpoint.inspection import inspect
from trainer.decisions import (
    BiasCorrected,
    Decision,
    LargestOfHeads,
    Rule,
    decision_files,
)
from trainer.gallery import Gallery
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.rows import ShardedRows
from trainer.model import Model, save_model
from trainer.onnx_graphs import load_graph
from trainer.weights import load_weights, read_state_dict
from untrusted.errors import InputError


def dataset_with(name: str) -> Callable[[Path], Path]:
    """A dataset of eight images, of which file `name` is damaged."""

    def good(folder: Path) -> Path:
        write_dataset(source(4, 2), folder / "d", {"kind": "blocks"}, shard_samples=5)
        return folder / "d" / name

    return good


def read_dataset(folder: Path) -> None:
    """Everything that is ever read of a dataset."""
    dataset = ShardDataset.open(folder / "d")
    assert dataset.identity.min() >= 0 and dataset.identity.max() < len(dataset.names)
    dataset.images(np.arange(len(dataset)))
    try:
        dataset.keys(np.arange(len(dataset)))
        contact_sheet(dataset, 2, 2, 0)
    except SampleError as error:
        raise InputError(str(error)) from error
    assert len(dataset.key_hashes) == len(dataset)
    dataset.verify()


def rehashed(folder: Path) -> None:
    """The dataset's manifest says of every file what it is now."""
    path = folder / "d" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    for name, facts in manifest["files"].items():
        content = (folder / "d" / name).read_bytes()
        facts |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(manifest), encoding="utf-8")


@cache
def _model() -> tuple[EmbedderSettings, torch.nn.Module]:
    settings = EmbedderSettings(width=4, dimension=8)
    return settings, build_embedder(settings)


def model_with(name: str) -> Callable[[Path], Path]:
    """A model of six identities, of which file `name` is damaged."""

    def good(folder: Path) -> Path:
        ranks, (settings, network) = Ranks(), _model()
        rows = ShardedRows.new(0, 6, 8, 0, ranks)
        classifier = MarginLoss(ClassifierSettings(), 0, torch.device("cpu"))
        names = [f"id-{row}" for row in range(6)]
        save_model(folder / "m", settings, (16, 16), classifier, network, [rows], names, ranks)
        return folder / "m" / name

    return good


def read_model(folder: Path) -> None:
    """Everything that is ever read of a model."""
    model = Model.open(folder / "m")
    model.embedder()
    model.running()
    names, rows = model.names(), model.sharded_rows(Ranks())
    assert len(names) == len(rows.weight) == model.rows


def start_weights(folder: Path) -> Path:
    """A state dict by the field's names, which ``start`` of a configuration reads."""
    path = folder / "w.safetensors"
    trunk = {
        f"module.{name.removeprefix('trunk.')}": tensor
        for name, tensor in _model()[1].state_dict().items()
        if name.startswith("trunk.")
    }
    save_file(trunk, path)
    return path


def read_weights(folder: Path) -> None:
    """Puts them into a network, which they may not fit."""
    settings, network = _model()
    path = folder / "w.safetensors"
    load_weights(copy.deepcopy(network), settings, read_state_dict(path), str(path))


def forged(folder: Path, of: str = "m") -> None:
    """The manifest of the model, or of folder `of`, has the right hash of every file."""
    path = folder / of / "manifest.json"
    hashes = {
        name: hashlib.sha256((folder / of / name).read_bytes()).hexdigest()
        for name in json.loads(path.read_bytes())
    }
    path.write_text(json.dumps(hashes), encoding="utf-8")


def decision_with(rule: Rule, name: str, **prepared: torch.Tensor) -> Callable[[Path], Path]:
    """The decision of that model, of which file `name` is damaged."""

    def good(folder: Path) -> Path:
        model_with("card.json")(folder)
        files, card = decision_files(rule, prepared, Model.open(folder / "m"))
        save_folder(folder / "decision", files, card, Ranks())
        return folder / "decision" / name

    return good


def read_decision(folder: Path) -> None:
    """Opens it, and decides by it."""
    model = Model.open(folder / "m")
    classes = Decision.open(folder / "decision", model).classes(model, torch.ones(2, 8))
    assert len(classes) == 2 and 0 <= int(classes.min()) <= int(classes.max()) < model.rows
    inspect(str(folder / "decision"))


def text(name: str, content: str) -> Callable[[Path], Path]:
    """A text file."""

    def good(folder: Path) -> Path:
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return good


def _records(*records: dict[str, object]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


PHASE, OUTPUT = "fkd/seed-0/step-0/train", "chains/fkd/seed-0/steps/0/model"
LEDGER = _records(
    {"phase": PHASE, "fingerprint": "a", "output": OUTPUT, "started": 1.0, "finished": 2.0},
    {"phase": PHASE, "fingerprint": "b", "output": OUTPUT, "started": 2.0, "finished": 3.0},
)
METRICS = _records(
    {"time": 1.0, "phase": PHASE, "iteration": 10, "of": 20, "loss": 1.5},
    {"time": 2.0, "phase": PHASE, "iteration": 20, "of": 20, "loss": 1.25},
)
CONFIG = """dataset: data/glyphs
benchmark: {steps: 2, train_identities: 90, test_identities: 60, pairs: 1000, seen_identities: 10}
embedder: {architecture: small, dimension: 32}
training: {iterations: 12, batch: 32, learning_rate: 1e-3, milestones: [10]}
methods:
  finetune: {}
  fkd: {neighbours: 10, relaxation: 0.01}
cluster: {workers: 1}
seeds: [0, 1]
"""
BENCHMARK = json.dumps(
    {"benchmark": "crl-face", "drawn": {"steps": 2}, "steps": [["a", "b"], ["c"]], "query": ["d/1"]}
)


def feature(folder: Path) -> Path:
    """A feature file of 16 numbers."""
    write_feature(folder / "x.bin", np.arange(16, dtype=np.float32))
    return folder / "x.bin"


def answers(folder: Path) -> Path:
    """What a model said of six images, their five nearest identities."""
    path = teacher_file(folder, 0, "plain")
    rng = np.random.default_rng(0)
    tensors = {
        "samples": np.arange(6),
        "indices": rng.integers(0, 9, (6, 5)),
        "activations": rng.normal(size=(6, 5)).astype(np.float32),
    }
    write_teacher_file(path, tensors, "model")
    return path


def read_answers(folder: Path) -> None:
    """Looks all of them up."""
    cache = TeacherCache(folder, 1, ("plain",), "model")
    try:
        cache.look_up(np.arange(6), np.zeros(6, bool))
    except KeyError as error:
        raise InputError(str(error)) from error


def embeddings(folder: Path) -> Path:
    """Vectors of six images."""
    path = folder / "e.safetensors"
    write_embeddings(path, np.arange(6), np.ones((6, 4), np.float32), "model")
    return path


def gallery(folder: Path) -> Path:
    """The index of a gallery with one part."""
    embeddings(folder)
    part = {"name": "e.safetensors", "shard": 0, "model": "model", "rows": 6, "sha256": "0" * 64}
    index = {"version": 1, "dataset": "x", "dimensions": {"model": 4}, "parts": [part]}
    (folder / "gallery.json").write_text(json.dumps({**index, "generation": 0}), encoding="utf-8")
    return folder / "gallery.json"


def vectors_with(ending: str) -> Callable[[Path], Path]:
    """Six vectors as `perennial embed` writes them to a .npy, of which one file is damaged."""

    def good(folder: Path) -> Path:
        np.save(folder / "v.npy", np.ones((6, 4), np.float32))
        lines = "".join(f"key-{n}\tidentity\n" for n in range(6))
        (folder / "v.ids.tsv").write_text("key\tidentity\n" + lines, encoding="utf-8")
        (folder / "v.json").write_text('{"model": "model", "rows": 6}', encoding="utf-8")
        return folder / f"v{ending}"

    return good


def search(folder: Path) -> None:
    """Compares a query with all of them."""
    Stored.open(folder / "v.npy").nearest(np.ones((1, 4), np.float32), 3)


def graph(folder: Path) -> Path:
    """A network of one layer as ONNX."""
    weight = numpy_helper.from_array(np.ones((12, 4), np.float32), "W")
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"], axis=1),
        helper.make_node("MatMul", ["f", "W"], ["y"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 2, 2])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    whole = helper.make_graph(nodes, "g", [given], [made], [weight])
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "x.onnx").write_bytes(model.SerializeToString())
    return folder / "x.onnx"


def read_graph(folder: Path) -> None:
    """Looks it through and runs it."""
    load_graph((folder / "x.onnx").read_bytes(), "x.onnx")(torch.zeros(2, 3, 2, 2))


TARGETS: dict[str, Target] = {
    **SOURCE_TARGETS,
    "manifest": Target(dataset_with("manifest.json"), read_dataset),
    "samples": Target(dataset_with("samples.parquet"), read_dataset, rehashed),
    "identities": Target(dataset_with("identities.parquet"), read_dataset, rehashed),
    "shard": Target(dataset_with("shard-00000.tar"), read_dataset, rehashed),
    "model-manifest": Target(model_with("manifest.json"), read_model),
    "card": Target(model_with("card.json"), read_model, forged),
    "embedder": Target(model_with("embedder.safetensors"), read_model, forged),
    "start-weights": Target(start_weights, read_weights),
    "names": Target(model_with("names.safetensors"), read_model, forged),
    "rows": Target(model_with("rows-00000-of-00001.safetensors"), read_model, forged),
    "decision-card": Target(
        decision_with(LargestOfHeads(), "card.json", ends=torch.tensor([2, 6])),
        read_decision,
        lambda at: forged(at, "decision"),
    ),
    "heads": Target(
        decision_with(LargestOfHeads(), "prepared.safetensors", ends=torch.tensor([2, 6])),
        read_decision,
        lambda at: forged(at, "decision"),
    ),
    "lines": Target(
        decision_with(
            BiasCorrected(), "prepared.safetensors", alpha=torch.ones(6), beta=torch.zeros(6)
        ),
        read_decision,
        lambda at: forged(at, "decision"),
    ),
    "ledger": Target(text("ledger.jsonl", LEDGER), lambda at: Ledger.open(at / "ledger.jsonl")),
    "metrics": Target(text("metrics.jsonl", METRICS), lambda at: records.metrics(at)),
    "configuration": Target(text("run.yaml", CONFIG), lambda at: load_config(at / "run.yaml")),
    "benchmark": Target(text("b.json", BENCHMARK), lambda at: read_benchmark(at / "b.json")),
    "meta-classes": Target(
        text("m.csv", 'a,x\n"b",y\nc,x\n'), lambda at: of_file(at / "m.csv", ["a", "b", "c"])
    ),
    "onnx": Target(graph, read_graph),
    "features": Target(feature, lambda at: read_feature(at / "x.bin")),
    "answers": Target(answers, read_answers),
    "embeddings": Target(embeddings, lambda at: read_embeddings(at / "e.safetensors", "model")),
    "gallery": Target(gallery, lambda at: Gallery.open(at)),
    "vectors": Target(vectors_with(".npy"), search),
    "vectors-ids": Target(vectors_with(".ids.tsv"), search),
    "vectors-card": Target(vectors_with(".json"), search),
}
