"""ROC, DET, CMC and open-set curves of every test, a line a method."""

from collections.abc import Callable
from typing import Any

from monitoring.charts import Line, line_chart
from monitoring.results import parts

_Points = list[tuple[float, float]]


def _misses(points: _Points) -> _Points:
    return [(x, 1 - y) for x, y in points]


def _percent(points: _Points) -> _Points:
    return [(x, 100 * y) for x, y in points]


def tradeoffs(
    evaluations: list[dict[str, Any]], methods: list[str], looks: dict[str, int]
) -> dict[str, dict[str, str]]:
    """For each test ("benchmark": the learning steps' own), its charts by title.

    A method's line is of its newest learning step, and of the first seed there.
    """
    newest: dict[str, dict[str, dict[str, Any]]] = {}
    for evaluation in sorted(evaluations, key=lambda e: (e["step"], -e["seed"])):
        newest[evaluation["method"]] = {"benchmark": evaluation} | parts(evaluation)
    found = {}
    for name in dict.fromkeys(name for tests in newest.values() for name in tests):
        tests = {m: newest[m][name] for m in methods if name in newest.get(m, {})}
        charts = {title: chart for title, chart in _charts(tests, looks).items() if chart}
        if charts:
            found[name] = charts
    return found


def _charts(tests: dict[str, dict[str, Any]], looks: dict[str, int]) -> dict[str, str]:
    """The charts of one test's results by method; empty where it does not measure that."""

    def lines(key: str, how: Callable[[Any], _Points]) -> list[Line]:
        return [Line(m, looks[m], how(test[key])) for m, test in tests.items() if key in test]

    def of_rates(key: str, how: Callable[[Any], _Points], x: str, y: str, log: bool = False) -> str:
        return line_chart(
            lines(key, how), x, y, points=False, log_x=True, log_y=log, within=(0, 100)
        )

    far, fpir = "false accept rate", "false positive identification rate"
    found = lines("cmc", lambda shares: _percent(list(enumerate(shares, start=1))))
    return {
        "ROC": of_rates("roc", _percent, far, "true accept rate, %"),
        "DET": of_rates("roc", _misses, far, "false reject rate", log=True),
        "open set": of_rates("open_set", _percent, fpir, "true positive identification rate, %"),
        "CMC": line_chart(
            found, "rank", "found among the first, %", points=False, log_x=True, within=(0, 100)
        ),
    }
