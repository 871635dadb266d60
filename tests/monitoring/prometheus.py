"""A Prometheus on this machine that looks often, and rules made to hurry."""

import copy
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.prometheus import RULES, command, configuration

Rules = dict[str, Any]
"""A rule file."""
SCRAPE_SECONDS = 15.0
"""Between scrapes, where a Prometheus is set up as usual."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = r"(\d+)([smhd])"

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no prometheus here: apt-get install prometheus"
)


def every_rule(rules: Rules) -> list[dict[str, Any]]:
    """The rules of all groups."""
    return [rule for group in rules["groups"] for rule in group["rules"]]


def without_for(rules: Rules) -> Rules:
    """The same rules, waiting for nothing."""
    rules = copy.deepcopy(rules)
    for rule in every_rule(rules):
        rule.pop("for", None)
    return rules


def hastened(rules: Rules, factor: float) -> Rules:
    """The same rules for a time that passes `factor` times as fast.

    Divided are all durations (``for``, ranges such as ``[5m]``) and the numbers that a metric in
    seconds is compared with. Rates are per second, and shares have no unit: both stay.
    """
    rules = copy.deepcopy(rules)

    def shorter(number: str, unit: str) -> str:
        return f"{round(1000 * int(number) * _UNITS[unit] / factor)}ms"

    for rule in every_rule(rules):
        if "for" in rule:
            rule["for"] = re.sub(_DURATION, lambda m: shorter(*m.groups()), rule["for"])
        ranges = re.sub(
            rf"\[{_DURATION}\]",
            lambda m: f"[{shorter(*m.groups())}]",
            " ".join(rule["expr"].split()),
        )
        rule["expr"] = re.sub(
            r"(_seconds\s*[<>]=?\s*)(\d+)", lambda m: f"{m[1]}{int(m[2]) / factor:g}", ranges
        )
    return rules


class Prometheus:
    """One that scrapes `runs` every `seconds`, its rules as `change` makes them of ours."""

    def __init__(
        self,
        folder: Path,
        runs: Sequence[Path],
        seconds: float,
        change: Callable[[Rules], Rules],
        known: Sequence[dict[str, Any]] = (),
    ) -> None:
        """`known` are targets besides those that the runs list."""
        folder.mkdir()
        rules = []
        for file in sorted(RULES.glob("*.yaml")):
            rules.append(folder / file.name)
            rules[-1].write_text(yaml.safe_dump(change(yaml.safe_load(file.read_text()))))
        config = folder / "prometheus.yml"
        settings = configuration(runs, seconds, rules)
        settings["scrape_configs"].append({"job_name": "known", "static_configs": [*known]})
        config.write_text(yaml.safe_dump(settings))
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        with (folder / "log").open("w") as log:
            line = command(config, folder / "data", port)
            self.process = subprocess.Popen(line, stdout=log, stderr=log)

    def __enter__(self) -> "Prometheus":
        wait_for(self.ready, "Prometheus did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def get(self, path: str, **query: str | float) -> Any:
        """What its API answers."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an expression now."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def firing(self, alert: str, run: str = "") -> bool:
        """Whether an alert fires, for any run or for `run`."""
        return any(
            a["labels"]["alertname"] == alert
            and a["state"] == "firing"
            and run in ("", a["labels"].get("run"))
            for a in self.get("alerts")["alerts"]
        )

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready") as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 240) -> None:
    """Polls until `condition`; fails saying `what` after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)
