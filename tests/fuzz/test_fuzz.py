"""Every reader of strangers' files, over some damaged ones; ``python -m tests.fuzz`` tries more."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.fuzz.harness import fuzz
from tests.fuzz.targets import TARGETS

INPUTS = 400


@pytest.fixture(scope="module")
def found():
    """What was found, by target. A process takes several of them: its start takes seconds."""
    names = list(TARGETS)
    with ThreadPoolExecutor(2) as pool:
        halves = pool.map(lambda half: fuzz(half, range(INPUTS)), (names[::2], names[1::2]))
        return {name: found for half in halves for name, found in half.items()}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.reliability(
    8, "damaged manifests, tables, tensors, cards, ledgers, configurations and so on: one line"
)
def test_a_damaged_file_is_read_or_refused_in_one_line(found, name):
    assert name not in found, found[name]
