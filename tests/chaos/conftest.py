"""What the chaos tests tried: written to docs/reliability.md by `pytest tests/chaos --reliability`.

A test calls `record_fault` last, when everything that it claims has been seen.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
HEAD = """# Faults tried, and what came of them

Written by `pytest tests/chaos --reliability`: every line is a test that did what it says to a real
process or file and then looked. Do not edit.

| fault | what happens | outcome |
|---|---|---|
"""
Fault = tuple[str, str, str]
RECORDED = pytest.StashKey[list[Fault]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RECORDED] = []


@pytest.fixture
def record_fault(request: pytest.FixtureRequest) -> Callable[[str, str, str], None]:
    """``record_fault(fault, reaction, outcome)``: a line of docs/reliability.md."""

    def record(fault: str, reaction: str, outcome: str) -> None:
        request.config.stash[RECORDED].append((fault, reaction, outcome))

    return record


def page(faults: list[Fault]) -> str:
    """The page with a line for each of `faults`, in the order of the tests."""
    lines = (" | ".join(cell.replace("|", "\\|") for cell in fault) for fault in faults)
    return HEAD + "".join(f"| {line} |\n" for line in dict.fromkeys(lines))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Writes the page after a run of all of tests/chaos in which nothing failed."""
    if exitstatus == 0 and session.config.getoption("--reliability"):
        PAGE.write_text(page(session.config.stash[RECORDED]))
