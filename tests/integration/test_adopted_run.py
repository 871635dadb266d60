"""A run whose first model comes from outside: a chain begins with what is in production today."""

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file

from data_shards.files import sha256
from data_shards.pipeline import PipelineSettings
from data_shards.settings import InputError
from data_shards.storage.dataset import ShardDataset
from launch.config.load import load_config
from launch.inference.embed import embed
from launch.models.adopt import Outside, run_adopt
from launch.phases.adopt import check_given, take_adopted
from launch.phases.planning import pending, phases
from launch.planning.plan import plan_run
from launch.planning.split import split_of
from launch.runs.ledger import Ledger
from launch.runs.run import Chain, Run
from tests.alone import execute_alone
from trainer.arrays import write_embeddings
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.class_means import read_class_means
from trainer.gallery import Gallery, Part
from trainer.heads.collectives import Ranks
from trainer.model import Model

QUIET = Console(quiet=True)
STEPS = {
    "steps": 2,
    "train_identities": 36,
    "test_identities": 24,
    "pairs": 40,
    "seen_identities": 6,
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A small network as ONNX."""
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(3, 6, 3, 2), torch.nn.ReLU(), torch.nn.AvgPool2d(3))
    net = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(24, 6))
    path = tmp_path_factory.mktemp("program") / "net.onnx"
    given, free = (torch.randn(2, 3, 16, 16),), {"pixels": {0: "images"}}
    torch.onnx.export(net, given, path, dynamo=False, input_names=["pixels"], dynamic_axes=free)
    return path


def adopt(program, out, classifier=None, names=None):
    given = Outside(program, None, None, classifier, names)
    margin = "kind=cosface,scale=16,margin=0.1"
    run_adopt(given, out, "16x16", ("127.5", "127.5"), False, False, margin, QUIET)
    return Model.open(out)


def configured(dataset, folder, methods, adopted, **others):
    values = {
        "dataset": str(dataset),
        "adopted": str(adopted) if adopted else None,
        "methods": methods,
        "benchmark": STEPS,
        "embedder": {"width": 4, "dimension": 8},
        "training": {"iterations": 5, "batch": 20},
        "classifier": {"margin": {"kind": "cosface", "scale": 16}},
        "cluster": {"workers": 0, "actors": 1},
        **others,
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(values))
    return load_config(folder / "c.yaml")


def test_a_chain_begins_with_a_model_without_classifier(small_folder, program, tmp_path):
    model = adopt(program, tmp_path / "model")
    config = configured(small_folder, tmp_path, {"bct-sys": {}}, tmp_path / "model")
    execute_alone(config, tmp_path / "run")
    run, chain = Run.open(tmp_path / "run", config), Chain("bct-sys", 0)
    kinds = [phase.kind.name for phase in phases(run)]
    assert kinds == ["adopt", "evaluate", "prototypes", "train", "evaluate"]
    assert pending(phases(run), Ledger.open(tmp_path / "run" / "ledger.jsonl")) == []
    for step in (0, 1):
        folder = run.step_folder(chain, step)
        assert (folder / "evaluation.json").exists()
    first = run.previous(chain, 1)
    assert first.settings == model.settings
    dataset = ShardDataset.open(small_folder)
    samples = run.benchmark.step_samples(1, all_so_far=True)
    vectors = embed(model.embedder(), dataset, samples, PipelineSettings(), 16)
    rows = run.benchmark.row_of_identity[dataset.identity[samples]]
    naive = [vectors[rows == row].astype(np.float64).mean(0) for row in range(36)]
    found = read_class_means(
        run.step_folder(chain, 1) / "prototypes.safetensors", first.fingerprint
    )
    np.testing.assert_allclose(found, np.array(naive), rtol=1e-4, atol=1e-6)


def test_rows_are_put_in_the_order_of_the_benchmark(small_folder, program, tmp_path):
    adopt(program, tmp_path / "bare")
    config = configured(small_folder, tmp_path, {"bct": {}, "bct-kd": {}}, tmp_path / "bare")
    run = Run.open(tmp_path / "run", config)
    owner = {int(run.benchmark.row_of_identity[i]): str(run.dataset.names[i]) for i in range(60)}
    names = sorted(owner[row] for row in range(18))
    weight = torch.randn(18, 6)
    save_file({"weight": weight}, tmp_path / "c.safetensors")

    def with_names(lines, out):
        (tmp_path / "names.txt").write_text("\n".join(lines))
        adopt(program, tmp_path / out, tmp_path / "c.safetensors", tmp_path / "names.txt")
        config = configured(small_folder, tmp_path, {"bct": {}, "bct-kd": {}}, tmp_path / out)
        return Run.open(tmp_path / "run", config)

    run = with_names(names, "whole")
    check_given(run)
    taken = take_adopted(run, tmp_path / "taken")
    rows = taken.sharded_rows(Ranks()).weight
    for row in range(18):
        assert torch.equal(rows[row], weight[names.index(owner[row])])
    assert taken.names() == [owner[row] for row in range(18)]
    with pytest.raises(InputError, match=r"has no row for|has a row for"):
        check_given(with_names(["stranger", *names[1:]], "strange"))


@pytest.mark.parametrize(
    ("methods", "others", "words"),
    [
        ({"bct": {}}, {}, "methods.bct asks the old model's classifier"),
        ({"bct-kd": {}}, {}, "methods.bct-kd asks"),
        ({"bct-sys": {}, "finetune": {}}, {}, "methods.finetune goes on training"),
        ({"bct-sys": {}}, {"teacher": {"precision": "bf16"}}, "run as they are"),
    ],
)
def test_methods_that_cannot_begin_so_are_refused(
    methods, others, words, small_folder, program, tmp_path
):
    adopt(program, tmp_path / "model")
    config = configured(small_folder, tmp_path, methods, tmp_path / "model", **others)
    with pytest.raises(InputError, match=words):
        execute_alone(config, tmp_path / "run")


def test_the_plan_begins_with_what_is_trained(small_folder, program, tmp_path):
    """And holds the adopted model's rows in its dimension, 6, beside the new ones' 8."""

    def planned(config):
        return plan_run(config, split_of(config, None, None), None).steps

    adopt(program, tmp_path / "model")
    config = configured(small_folder, tmp_path, {"bct-sys": {}}, tmp_path / "model")
    of_ours = {"bct-sys": {"embedder": {"dimension": 8}}}
    alike = configured(small_folder, tmp_path, of_ours, None, embedder={"width": 4, "dimension": 6})
    assert planned(config) == planned(alike)[1:]
    other = configured(small_folder, tmp_path, {"bct-sys": {}}, None)
    assert planned(config) != planned(other)[1:]

    for changes, words in (
        ({"teacher": {"mode": "online"}}, "is not known"),
        ({"benchmark": {**STEPS, "steps": 1}}, "nothing to plan"),
    ):
        config = configured(small_folder, tmp_path, {"bct-sys": {}}, tmp_path / "model", **changes)
        with pytest.raises(InputError, match=words):
            planned(config)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The weights of an osnet, as a file."""
    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    network = build_embedder(EmbedderSettings(architecture="osnet", dimension=8), seed=5)
    save_file(network.state_dict(), file)
    return file


OSNET = {"embedder": {"architecture": "osnet", "dimension": 8}}
HARDLY = {"training": {"iterations": 1, "batch": 20, "learning_rate": 1e-12}}


def same_weights(model, file):
    own, given = model.embedder().state_dict(), load_file(file)
    return all(torch.allclose(own[n], given[n]) for n in given if n.endswith("weight"))


def test_trainings_begin_with_given_weights_and_go_on_from_an_adopted_model(
    small_folder, weights, tmp_path
):
    """Step 0 is the adopted model with a classifier of its gallery; finetune goes on training it,
    and bct-lwf, from scratch otherwise, begins with the same weights."""
    options = {"start": str(weights), **OSNET, **HARDLY}
    bare = configured(small_folder, tmp_path, {"finetune": {}}, None, **options)
    run = Run.open(tmp_path / "none", bare)
    dataset = run.dataset
    samples = run.benchmark.step_samples(0, all_so_far=True)
    old = sorted({str(dataset.names[i]) for i in dataset.identity[samples]})
    vectors = np.random.default_rng(0).normal(size=(len(samples), 8)).astype(np.float32)
    (tmp_path / "vectors").mkdir()
    write_embeddings(tmp_path / "vectors" / "v.safetensors", samples, vectors, "m")
    part = Part("v.safetensors", 0, "m", len(samples), sha256(tmp_path / "vectors/v.safetensors"))
    Gallery(tmp_path / "vectors", dataset.fingerprint, {"m": 8}, (part,)).save()
    owners = dataset.names[dataset.identity]
    (tmp_path / "vectors" / "ids.tsv").write_text(
        "key\tidentity\n" + "".join(f"k\t{name}\n" for name in owners)
    )
    margin = "kind=cosface,scale=16,margin=0.1"
    given = Outside(weights, "osnet", None, None, None, tmp_path / "vectors")
    run_adopt(given, tmp_path / "m", "32x32", ("127.5", "127.5"), False, False, margin, QUIET)
    model = Model.open(tmp_path / "m")
    assert model.names() == old
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row, name in enumerate(old):
        mean = unit[owners[samples] == name].mean(axis=0)
        found = model.sharded_rows(Ranks()).weight[row].detach().numpy()
        np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-5)

    settings = {"margin": {"kind": "cosface", "scale": 16, "margin": 0.1}}
    methods = {"finetune": {}, "fkd": {"neighbours": 5}, "bct-lwf": {}}
    options |= {"classifier": settings}
    config = configured(small_folder, tmp_path, methods, tmp_path / "m", **options)
    execute_alone(config, tmp_path / "run")
    run = Run.open(tmp_path / "run", config)
    for chain in run.chains():
        assert same_weights(Model.open(run.step_folder(chain, 1) / "model"), weights), chain
    without = configured(
        small_folder, tmp_path, methods, tmp_path / "m", **options | {"start": None}
    )
    prints = [
        {p.name: p.fingerprint for p in phases(Run.open(tmp_path / "none", c))}
        for c in (config, without)
    ]
    changed = {name for name in prints[0] if prints[0][name] != prints[1][name]}
    assert changed == {f"bct-lwf/seed-0/step-1/{kind}" for kind in ("train", "evaluate")}


def test_step_0_begins_with_given_weights(small_folder, weights, tmp_path):
    options = {"start": str(weights), "benchmark": {**STEPS, "steps": 1}, **OSNET, **HARDLY}
    config = configured(small_folder, tmp_path, {"finetune": {}}, None, **options)
    execute_alone(config, tmp_path / "run")
    model = Run.open(tmp_path / "run", config).step_folder(Chain("finetune", 0), 0) / "model"
    assert same_weights(Model.open(model), weights)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"embedder": {"architecture": "osnet", "dimension": 4}}, "set embedder.dimension"),
        ({"embedder": {"width": 4}}, "does not fit embedder.architecture = small"),
        ({"start": "missing.safetensors"}, "does not exist"),
        ({"start": None, "embedder": {"architecture": "iresnet18"}}, "data.image_size=112x112"),
    ],
)
def test_weights_and_networks_that_do_not_fit_are_refused_before_anything_is_trained(
    options, words, small_folder, weights, tmp_path
):
    options = {"start": str(weights), **OSNET, **options}
    config = configured(small_folder, tmp_path, {"finetune": {}}, None, **options)
    with pytest.raises(InputError, match=words):
        execute_alone(config, tmp_path / "run")
