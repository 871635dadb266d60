"""Every reader of strangers' files, over some damaged ones; ``python -m tests.fuzz`` tries more."""

import pytest

from tests.fuzz.harness import fuzz
from tests.fuzz.targets import TARGETS

INPUTS = 1000


@pytest.fixture(scope="module")
def found():
    """What was found, by target: one process for all of them, since its start takes seconds."""
    return fuzz(TARGETS, range(INPUTS))


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.reliability(
    8, "damaged manifests, tables, tensors, cards, ledgers, configurations and so on: one line"
)
def test_a_damaged_file_is_read_or_refused_in_one_line(found, name):
    assert name not in found, found[name]
