"""What the chaos tests tried: written to docs/reliability.md by `pytest tests/chaos --reliability`.

A test calls `record_fault` last, when everything that it claims has been seen; `record_alert` when
an alert has fired and resolved, for the table in docs/operations.md.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from monitoring.documents import alerts, table, with_part

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
HEAD = ("fault", "what happens", "outcome")
OPERATIONS = PAGE.with_name("operations.md")
ALERTS_HEAD = ("alert", "fault in a real run", "resolved when")
IMPOSSIBLE = {"PerennialGpuErrors": ("none: it needs a failing GPU (unit test of the rule)", "–")}
Fault = tuple[str, str, str]
RECORDED = pytest.StashKey[list[Fault]]()
FIRED = pytest.StashKey[dict[str, tuple[str, str]]]()


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--reliability") and hasattr(config, "workerinput"):
        raise pytest.UsageError("--reliability needs all tests in one process: leave -n out")
    config.stash[RECORDED] = []
    config.stash[FIRED] = {}


@pytest.fixture
def record_fault(request: pytest.FixtureRequest) -> Callable[[str, str, str], None]:
    """``record_fault(fault, reaction, outcome)``: a line of docs/reliability.md."""

    def record(fault: str, reaction: str, outcome: str) -> None:
        request.config.stash[RECORDED].append((fault, reaction, outcome))

    return record


@pytest.fixture
def record_alert(request: pytest.FixtureRequest) -> Callable[[str, str, str], None]:
    """``record_alert(alert, fault, mended)``: `fault` fired the alert, which resolved `mended`.

    A line of the table in docs/operations.md.
    """

    def record(alert: str, fault: str, mended: str) -> None:
        request.config.stash[FIRED][alert] = fault, mended

    return record


def fired_table(fired: dict[str, tuple[str, str]]) -> str:
    """The table of every alert, by what fired it. Raises KeyError where one was not tried."""
    seen = IMPOSSIBLE | fired
    rows = [(rule["alert"], *seen[rule["alert"]]) for rule in alerts()]
    return table(ALERTS_HEAD, rows)


def page(text: str, faults: list[Fault]) -> str:
    """docs/reliability.md with a line for each of `faults`, in the order of the tests."""
    cells = [tuple(cell.replace("|", "\\|") for cell in fault) for fault in faults]
    return with_part(text, "faults", table(HEAD, [*dict.fromkeys(cells)]))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Writes what was tried, after a run of all of tests/chaos in which nothing failed."""
    if exitstatus or not session.config.getoption("--reliability"):
        return
    faults, fired = session.config.stash[RECORDED], session.config.stash[FIRED]
    if faults:
        PAGE.write_text(page(PAGE.read_text(), faults))
    if fired:
        text = with_part(OPERATIONS.read_text(), "fired", fired_table(fired))
        OPERATIONS.write_text(text)
