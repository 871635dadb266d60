"""`perennial shards split`: two datasets that share no identity."""

import hashlib

import numpy as np
import pytest

from data_shards.settings import InputError
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.splits.splitting import split_dataset
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.destination import destination_at
from data_shards.writing.writer import write_dataset
from tests.conftest import source
from trainer.evaluation.test_sets.retrieval import Retrieval
from trainer.evaluation.test_sets.verification import Verification

SETTINGS = BenchmarkSettings(steps=1, test_identities=12, pairs=60, seen_identities=0)


@pytest.fixture
def photos(tmp_path):
    """Thirty identities with four images each, taken nobody knows by whom."""
    images = [image._replace(camera="unknown") for image in source(30, 4)]
    write_dataset(images, tmp_path / "photos", {}, shard_samples=50)
    return ShardDataset.open(tmp_path / "photos")


def split(dataset, out, settings=SETTINGS):
    places = [destination_at(str(out / part)) for part in ("train", "test")]
    split_dataset(dataset, *places, settings)
    return [ShardDataset.open(out / part) for part in ("train", "test")]


@pytest.mark.reliability(16, "a dataset is split in two that share no identity, by one command")
def test_nobody_is_trained_on_and_tested(photos, tmp_path):
    train, test = split(photos, tmp_path)
    assert not set(train.names) & set(test.names)
    assert (len(train.names), len(test.names)) == (18, 12)
    assert len(train) + len(test) == len(photos)
    every = [(name, hashlib.sha256(d.image(s)).digest()) for d in (train, test)
             for s, name in enumerate(d.keys(np.arange(len(d))))]  # fmt: skip
    assert len(set(every)) == len(photos)
    roles = np.bincount(test.role, minlength=4)
    assert roles.tolist() == [0, 24, 24, 0]
    table = test.table("pairs")
    left, right = (test.identity[table[side].to_numpy()] for side in ("left", "right"))
    assert ((left == right) == table["same"].to_numpy()).all()
    for protocol in (Verification(test), Retrieval(test, "cosine")):
        assert len(protocol.samples()["dataset"])


def test_the_same_seed_gives_the_same_bytes_and_goes_on(photos, tmp_path):
    first = split(photos, tmp_path / "a")
    again = split(photos, tmp_path / "a")
    other = split(photos, tmp_path / "b")
    changed = split(photos, tmp_path / "c", SETTINGS.model_copy(update={"seed": 1}))
    for part, same, twin, seeded in zip(first, again, other, changed, strict=True):
        assert part.fingerprint == same.fingerprint == twin.fingerprint
        assert set(part.names) != set(seeded.names)


def test_a_dataset_with_tables_is_not_split(photos, tmp_path):
    test = split(photos, tmp_path)[1]
    with pytest.raises(InputError, match=r"has tables .pairs. that would be lost"):
        split(test, tmp_path / "again")
