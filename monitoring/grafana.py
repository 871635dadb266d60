"""Grafana dashboards as JSON: what is on them is in `panels`."""

import json
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

RUN = 'run=~"$run"'
"""What panels filter by: the variable of the runs that the reader chose."""
SCHEMA_VERSION = 38
_WIDTH = 24
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def latest(name: str, labels: str = "") -> str:
    """The newest value of a metric in the range that is shown: its run may be over."""
    return f"last_over_time({name}{{{labels}{RUN}}}[$__range])"


def spread(of: str, by: str = "run", who: str = "rank {{rank}}") -> dict[str, str]:
    """Queries of a panel that draws, of many ranks' series `of`, the largest with its name, the
    median and the least: a line each would hide the one that matters."""
    named = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return {
        f"{named} most: {who}": f"topk by ({by}) (1, {of})",
        f"{named} median": f"quantile by ({by}) (0.5, {of})",
        f"{named} least": f"min by ({by}) ({of})",
    }


@dataclass(frozen=True)
class Panel:
    """One graph."""

    title: str
    unit: str
    """Grafana's name of it: ``s``, ``percentunit``, ``short``."""
    description: str
    queries: dict[str, str]
    """PromQL by legend, such as ``rank {{rank}}``."""
    kind: str = "timeseries"
    """Grafana's type of it: ``timeseries``, ``stat``, ``bargauge`` or ``state-timeline``."""
    alert: str = ""
    """The alert whose entry in the run book explains it."""
    at_most: float | None = None
    """Drawn red above it: the alert's limit."""
    at_least: float | None = None
    """Drawn red below it."""
    states: tuple[tuple[int, str, str], ...] = ()
    """Values that stand for something, each with its word and colour."""

    def json(self, number: int, place: dict[str, int]) -> dict[str, Any]:
        """The panel, `number` on its dashboard."""
        instant = self.kind in ("stat", "bargauge")
        anchor = f"#{self.alert.lower()}" if self.alert else ""
        panel: dict[str, Any] = {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "gridPos": place,
            "datasource": _DATASOURCE,
            "links": [{"title": "Run book", "url": f"${{runbook}}{anchor}", "targetBlank": True}],
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": {},
            "targets": [
                {
                    "refId": chr(ord("A") + i),
                    "datasource": _DATASOURCE,
                    "expr": expression,
                    "legendFormat": legend,
                    "instant": instant,
                    "range": not instant,
                }
                for i, (legend, expression) in enumerate(self.queries.items())
            ],
        }
        if instant:
            panel["options"] = {"reduceOptions": {"calcs": ["lastNotNull"]}}
        return panel

    def _defaults(self) -> dict[str, Any]:
        """The unit, words for values, and where a line turns red."""
        found: dict[str, Any] = {"unit": self.unit}
        if self.states:
            options = {
                str(value): {"index": index, "text": word, "color": colour}
                for index, (value, word, colour) in enumerate(self.states)
            }
            found["mappings"] = [{"type": "value", "options": options}]
        steps: list[tuple[float | None, str]] = []
        if self.at_least is not None:
            steps = [(None, "red"), (self.at_least, "green")]
        if self.at_most is not None:
            steps = [*(steps or [(None, "green")]), (self.at_most, "red")]
        if steps:
            found["thresholds"] = {
                "mode": "absolute",
                "steps": [{"value": value, "color": colour} for value, colour in steps],
            }
            if self.kind == "timeseries":
                found["custom"] = {"thresholdsStyle": {"mode": "line"}}
        return found


@dataclass(frozen=True)
class Dashboard:
    """A page of panels."""

    uid: str
    """Stable: what others link to."""
    title: str
    description: str
    panels: tuple[Panel, ...]

    def json(self) -> dict[str, Any]:
        """The dashboard as Grafana imports and provisions it."""
        sizes = [(6, 5) if panel.kind == "stat" else (12, 8) for panel in self.panels]
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["perennial"],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": True,
            "timezone": "browser",
            "refresh": "30s",
            "time": {"from": "now-6h", "to": "now"},
            "links": [
                {
                    "title": "perennial",
                    "type": "dashboards",
                    "tags": ["perennial"],
                    "asDropdown": True,
                    "keepTime": True,
                    "includeVars": True,
                }
            ],
            "templating": {"list": _VARIABLES},
            "annotations": {"list": _ANNOTATIONS},
            "panels": [
                panel.json(number, place)
                for number, (panel, place) in enumerate(
                    zip(self.panels, _places(sizes), strict=True), start=1
                )
            ],
        }


_ANNOTATIONS: list[dict[str, Any]] = [
    {
        "name": name,
        "datasource": _DATASOURCE,
        "enable": True,
        "iconColor": colour,
        "expr": f"max by (run) (changes({metric}{{{RUN}}}[1m])) > 0",
        "step": "60s",
        "titleFormat": f"{{{{run}}}}: {name}",
    }
    for name, metric, colour in (
        ("workers started again", "perennial_restarts_total", "orange"),
        ("back to a checkpoint", "perennial_rewinds_total", "red"),
        ("a phase begins", "perennial_phase_start_timestamp_seconds", "blue"),
    )
]
"""What happened, drawn over every panel's time."""
_VARIABLES: list[dict[str, Any]] = [
    {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
    {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": "label_values(perennial_phases, run)", "refId": "run"},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    },
    {
        "name": "runbook",
        "label": "Run book",
        "type": "constant",
        "hide": 2,
        "query": "docs/operations.md",
        "description": "Where docs/operations.md can be read: the panels' links begin with it.",
    },
]


def _places(sizes: list[tuple[int, int]]) -> list[dict[str, int]]:
    """Panels of (width, height) from left to right, in rows of equal heights."""

    def after(place: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
        x, y, w, h = place
        width, height = size
        if x + w + width > _WIDTH or height != h:
            return 0, y + h, width, height
        return x + w, y, width, height

    placed = accumulate(sizes, after, initial=(0, 0, 0, sizes[0][1]))
    return [{"x": x, "y": y, "w": w, "h": h} for x, y, w, h in list(placed)[1:]]


def write(dashboards: tuple[Dashboard, ...], folder: Path) -> None:
    """One file a dashboard."""
    folder.mkdir(parents=True, exist_ok=True)
    for dashboard in dashboards:
        (folder / f"{dashboard.uid}.json").write_text(text(dashboard), encoding="utf-8")


def text(dashboard: Dashboard) -> str:
    """The file of a dashboard."""
    return json.dumps(dashboard.json(), indent=1) + "\n"
