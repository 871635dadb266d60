"""Random parts in training and the middle in every test: what a run does, and its models after."""

import numpy as np
import pytest

from data_shards.pipeline import PipelineSettings
from data_shards.settings import InputError
from launch.config.load import load_config
from launch.inference.embed import embed
from launch.models.classify import Classifier
from launch.models.embed import Images
from launch.runs.run import Run
from monitoring.records import evaluation
from tests.alone import execute_alone
from tests.launch.classes import write_classes, write_config
from trainer.arrays import read_embeddings
from trainer.model import Model

SHOWN = {"image_size": [16, 16], "centre": 0.7, "augmentation": {"crop": [0.3, 1.0]}}


def configured(root, **changed):
    path = write_config(
        root,
        {"finetune": {"over": "all"}, **changed},
        benchmark={"file": str(root / "b.json"), "steps": 2},
        training={"iterations": 8, "batch": 24},
        data=SHOWN,
    )
    return load_config(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = write_classes(tmp_path_factory.mktemp("cropping"), tasks=1)
    execute_alone(configured(root), root / "run")
    return Run.open(root / "run", configured(root))


def test_a_model_is_tested_and_asked_by_the_middle_it_was_made_for(run, tmp_path):
    step = run.folder / "chains/finetune/seed-0/steps/1"
    model = Model.open(step / "model")
    assert model.centre == 0.7
    samples, vectors = read_embeddings(step / "embeddings.safetensors", model.fingerprint)
    network = model.embedder()
    middle, whole = (
        embed(network, run.dataset, samples, PipelineSettings(image_size=(16, 16), centre=c), 64)
        for c in (0.7, None)
    )
    np.testing.assert_allclose(vectors, middle, rtol=1e-4, atol=1e-5)
    assert np.abs(vectors - whole).max() > 1e-2
    assert Images.open(str(run.dataset.location), None, model).data.centre == 0.7
    files = []
    for sample in np.concatenate(run.benchmark.classified).tolist():
        files.append(tmp_path / f"{sample}.jpg")
        files[-1].write_bytes(run.dataset.image(sample))
    told = [one for batch in Classifier(model)(files) for one in batch]
    names = run.dataset.names[run.dataset.identity[np.concatenate(run.benchmark.classified)]]
    right = [one.classes[0][0] == name for one, name in zip(told, names, strict=True)]
    assert np.mean(right) == pytest.approx(evaluation(step / "evaluation.json")["class_accuracy"])


def test_models_of_whole_images_say_nothing_of_it(run):
    """So that cards, and fingerprints of models, stay as they were."""
    assert "centre" not in PipelineSettings().deciding()
    assert not {"crop", "crop_aspect"} & {*PipelineSettings().deciding()["augmentation"]}
    assert {"centre", "augmentation"} <= {*run.config.data.deciding()}


def test_cached_answers_of_whole_images_are_refused(run):
    with pytest.raises(InputError, match=r"without data\.augmentation\.crop = .*mode=online"):
        configured(run.folder.parent, lwf={"over": "all"})
