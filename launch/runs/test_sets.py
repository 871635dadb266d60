"""Test sets of their own: opened before anything is trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from data_shards.files import fingerprint
from data_shards.settings import InputError
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.remote import CacheSettings, Count, ignore
from trainer.evaluation import Distance, EvaluationSettings, TestSetSettings
from trainer.evaluation.test_sets import open_protocol
from trainer.evaluation.test_sets.common import TestSetProtocol


@dataclass(frozen=True)
class TestSet:
    """A test set of its own."""

    datasets: dict[str, ShardDataset]
    """ "dataset" and, where there are any apart, "distractors"."""
    protocol: TestSetProtocol
    mirrored: bool

    @property
    def fingerprint(self) -> str:
        """Changes whenever a dataset does."""
        return fingerprint({part: held.fingerprint for part, held in self.datasets.items()})


def open_test(
    test: TestSetSettings,
    distance: Distance,
    cache: CacheSettings | None = None,
    count: Count = ignore,
) -> TestSet:
    """Opens a test set; `cache` will hold the shards of remote ones. Raises InputError."""
    parts = {"dataset": test.dataset, "distractors": test.distractors}
    datasets = {
        part: ShardDataset.open(location, cache, count)
        for part, location in parts.items()
        if location is not None
    }
    return TestSet(datasets, open_protocol(test, distance, **datasets), test.mirrored)


def open_tests(
    settings: EvaluationSettings, cache: CacheSettings | None = None, count: Count = ignore
) -> dict[str, TestSet]:
    """Opens every test set of a run. Raises InputError naming the test for what is missing."""
    tests = {}
    for name, test in settings.tests.items():
        with naming_test(name):
            tests[name] = open_test(test, settings.distance, cache, count)
    return tests


@contextmanager
def naming_test(test: str) -> Iterator[None]:
    """An InputError within is of this test."""
    try:
        yield
    except InputError as error:
        raise InputError(f"evaluation.tests.{test}: {error}") from error
