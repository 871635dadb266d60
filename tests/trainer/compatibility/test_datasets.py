"""Tests that datasets describe: one model against itself gives what the protocols give."""

import numpy as np
import pytest

from data_shards.settings import InputError
from data_shards.storage.dataset import ShardDataset
from tests.own_test_sets import TESTS, configured, opened, spread
from trainer.evaluation.compatibility.measures import measure
from trainer.evaluation.compatibility.trials import of_dataset
from trainer.evaluation.compatibility.vectors import Embedded
from trainer.evaluation.test_sets import open_protocol
from trainer.evaluation.vectors import StoredVectors


def made_up(dataset, seed=0, dimension=6):
    """Embeddings of every image, by identity with some noise."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(1000, dimension))
    vectors = centres[dataset.identity] + 0.9 * draw.normal(size=(len(dataset), dimension))
    return Embedded(np.arange(len(dataset)), vectors.astype(np.float32))


def by_the_protocol(sets, name, tmp_path):
    (dataset,) = opened(sets, name)
    test = open_protocol(configured(sets).tests[name], "cosine", dataset)
    model = made_up(dataset)
    np.save(tmp_path / "v.npy", model.vectors)
    vectors = StoredVectors(tmp_path / "v.npy", model.samples, test.normalised)
    return dataset, model, test.measure({"dataset": vectors}, spread)


def ours(dataset, model, names):
    trials = of_dataset(dataset)
    points = trials.points(names)
    outcome = measure(trials, model, model, points)
    ones = np.ones((1, len(trials.identities)), dtype=np.int64)
    return [float(outcome.figure(point).values(ones)[0]) for point in points]


@pytest.mark.reliability(20, "compat says which points and pairs it did without")
def test_pairs_with_one_refused(sets, tmp_path):
    dataset, model, wanted = by_the_protocol(sets, "lfw", tmp_path)
    assert wanted["pairs_of_refused_images"] == 1
    assert ours(dataset, model, ["tar@0.1"]) == [pytest.approx(wanted["tar"]["0.1"])]
    assert 0 < wanted["tar"]["0.1"] < 1
    refused = "1 pairs have an image that was refused at import"
    assert of_dataset(dataset).left_out(["tar@0.1"]) == [refused]
    untold = of_dataset(dataset).left_out([])
    assert untold[-1] == refused
    assert any("has no queries and gallery" in why for why in untold)


def test_templates_and_their_galleries(sets, tmp_path):
    dataset, model, wanted = by_the_protocol(sets, "ijbc", tmp_path)
    found = ours(dataset, model, ["tar@1e-2", "tpir@0.1", "top1"])
    expected = [wanted["tar"]["0.01"], wanted["tpir"]["0.1"], wanted["rank1"]]
    assert found == pytest.approx(expected)
    assert all(0 < value < 1 for value in expected)


def test_queries_and_gallery(sets, tmp_path):
    dataset, model, wanted = by_the_protocol(sets, "market", tmp_path)
    found = ours(dataset, model, ["top1", "map"])
    assert found == pytest.approx([wanted["top1"], wanted["map"]])
    assert 0 < wanted["map"] < 1


def test_a_dataset_without_a_test_is_refused(sets):
    with pytest.raises(InputError, match="no images with roles query and gallery"):
        of_dataset(ShardDataset.open(sets / TESTS["glyphface"]["dataset"]))
