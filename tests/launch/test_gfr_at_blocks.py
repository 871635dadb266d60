"""Features that enter before the embedding, in whole runs: what generators learn, and bad input."""

import numpy as np
import pytest
import torch

from data_shards.pipeline import ImageStream, PipelineSettings, Request
from data_shards.settings import InputError
from data_shards.splits.benchmark_file import write_benchmark
from data_shards.splits.published_benchmarks import class_incremental
from data_shards.storage.dataset import ShardDataset
from launch.config.load import load_config
from launch.planning.plan import plan_run
from launch.planning.split import split_of
from launch.runs.run import Run
from tests.alone import execute_alone
from tests.launch.classes import write_classes, write_config
from tests.launch.test_mergan import GAN
from trainer.blocks import blocks, watched
from trainer.checkpoint import Folder
from trainer.methods.replay import GenerativeFeatureReplay
from trainer.model import Model
from trainer.replay import gaussian, wgan_training
from trainer.replay.wgan_folder import ConvWgans
from trainer.replay.wgan_settings import ConvWganSettings

METHODS = {
    "wgan": {"kind": "gfr", "at": "block 2", "generator": "wgan", "block_wgan": GAN},
    "last": {
        "kind": "gfr",
        "at": "block 3",
        "generator": "wgan",
        "block_wgan": {**GAN, "epochs": 1},
        "weighting": "released",
    },
    "diagonal": {"kind": "gfr", "at": "block 1", "covariance": "diagonal", "keep": "mas"},
}
STEPS, SIZE = 2, (16, 16)
SHAPES = {"wgan": (16, 4, 4), "last": (32, 2, 2), "diagonal": (8, 8, 8)}


def configured(root, methods=METHODS, **values):
    given = {
        "benchmark": {"file": str(root / "two.json"), "steps": STEPS},
        "embedder": {"width": 4, "depth": 1, "dimension": 8, "last_relu": False},
        "training": {"iterations": 3, "batch": 24, "milestones": []},
        # no answer is cached, so that images may be shifted
        "data": {"augmentation": {"shift": 1}, "image_size": [*SIZE]},
        **values,
    }
    return load_config(write_config(root, methods, **given))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_classes(tmp_path_factory.mktemp("blocks"))
    write_benchmark(class_incremental(ShardDataset.open(root / "d"), STEPS - 1), root / "two.json")
    return root


@pytest.fixture(scope="module")
def seen():
    """What generators were trained on, and what it is behind."""
    return {}


@pytest.fixture(scope="module")
def finished(root, seen):
    begun = wgan_training.WganSpec.begun

    def noted(self, seed):
        seen[self.name] = self.features, self.ends
        return begun(self, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wgan_training.WganSpec, "begun", noted)
        execute_alone(configured(root), root / "run")
    return root


def made_by_block(run, method, step):
    """What the finished model's block makes of the step's images, with their rows."""
    folder = run.folder / f"chains/{method}/seed-0/steps/{step}"
    network = Model.open(folder / "model").embedder()
    samples = np.sort(run.benchmark.steps[step])
    requests = iter([Request.plain(run.dataset, samples)])
    settings = PipelineSettings(image_size=SIZE)
    ((_, images),) = ImageStream(run.dataset, requests, len(samples), settings, augmented=False)
    place = METHODS[method]["at"]
    with watched({place: blocks(network, SIZE)[place]}) as made, torch.no_grad():
        network(images)
    return made[place], run.benchmark.row_of_identity[run.dataset.identity[samples]]


@pytest.mark.parametrize("method", ["wgan", "last"])
def test_a_generator_learns_what_the_block_makes(finished, seen, method):
    """Behind its ReLU, if it has one: the last block of this network has none."""
    run = Run.open(finished / "run", configured(finished))
    for step, rows in enumerate(run.benchmark.row_ends):
        features, ends = seen[f"{method}/seed-0/step-{step}"]
        expected, labels = made_by_block(run, method, step)
        assert features.shape == tuple(expected.shape[1:]) == SHAPES[method]
        torch.testing.assert_close(features.at(np.arange(len(labels))), expected)
        assert features.classes.tolist() == labels.tolist()
        assert ends == ("none" if method == "last" else "relu")
        how = ConvWgans(ConvWganSettings(**METHODS[method]["block_wgan"]))
        folder = finished / f"run/chains/{method}/seed-0/steps/{step}/generator"
        left = how.networks(Folder.at(folder))
        assert (left.rows, left.shape.features) == (rows, SHAPES[method])


def test_distributions_are_of_what_the_block_makes(finished):
    run = Run.open(finished / "run", configured(finished))
    folder = finished / "run/chains/diagonal/seed-0/steps/1/generator"
    state = Folder.at(folder).tensors("generator")
    assert state["means"].shape == state["deviations"].shape == (12, 512)
    for step in range(STEPS):
        made, rows = made_by_block(run, "diagonal", step)
        for row in np.unique(rows):
            mean = made[torch.from_numpy(rows == row)].flatten(1).mean(dim=0)
            torch.testing.assert_close(state["means"][row], mean, rtol=1e-4, atol=1e-4)


def test_a_place_that_is_not_there_is_said_before_anything_is_trained(root, tmp_path, monkeypatch):
    wrong = {"deep": {**METHODS["wgan"], "at": "block 4"}}
    with pytest.raises(InputError, match=r"methods\.deep: .* at block 4: the network has block 1"):
        execute_alone(configured(root, wrong), tmp_path / "a")
    monkeypatch.setattr(gaussian, "_MOST", 1_000_000)
    large = {"shared": {**METHODS["diagonal"], "covariance": "shared"}}
    with pytest.raises(InputError, match=r"methods\.shared: .*shared of 512 numbers takes 0\.0 GB"):
        execute_alone(configured(root, large), tmp_path / "b")
    assert not (tmp_path / "a/chains").exists()
    assert not (tmp_path / "b/chains").exists()


def test_what_cannot_be_drawn_is_refused():
    for given, said in (
        ({"at": "image"}, "drawn by kind=mergan"),
        ({"at": "block 2"}, "covariance=full has half of their square for each class"),
        ({"at": "layer 2"}, "should match pattern"),
        (
            {"at": "block 2", "covariance": "diagonal", "drift": "compensated"},
            "known of embeddings alone",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            GenerativeFeatureReplay(**given)
    kept = GenerativeFeatureReplay(at="block 2", covariance="diagonal", keep="ewc").recipe()
    assert [term.name for term in kept.terms] == ["classify", "replay", "consolidate"]
    assert GenerativeFeatureReplay().recipe().enters is None


def test_the_plan_has_the_previous_model_beside(root):
    given = {"dataset": str(root / "no data"), "benchmark": {"steps": 2, "test_identities": 20}}
    config = configured(root, **given)
    for step in plan_run(config, split_of(config, 100, 1000), None).steps:
        (name, *_) = step.methods
        rows, numbers = step.old_identities, int(np.prod(SHAPES[name]))
        beside = step.memory["previous model"] >= step.memory["embedder"]
        assert beside == (step.step > 0 and name != "diagonal")
        if step.step and name == "diagonal":
            assert step.memory["loaded for losses"] >= 2 * 4 * rows * numbers
