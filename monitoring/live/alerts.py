"""What a Prometheus says is firing."""

import asyncio
import json
import time
from typing import Any

import aiohttp

from monitoring.live.endpoints import limited

_EVERY = 5.0
_BYTES = 1 << 23


class Alerts:
    """Asks a Prometheus for its alerts, at most every five seconds."""

    def __init__(self, session: aiohttp.ClientSession, url: str | None) -> None:
        """`url` such as http://127.0.0.1:9090; None where there is none."""
        self._session, self._url = session, url
        self._asked, self._asking = float("-inf"), asyncio.Lock()
        self._found: list[dict[str, Any]] = []
        self._error = ""

    async def of(self, run: str | None = None) -> dict[str, Any]:
        """The alerts of a run, or all: whether anybody was asked, what went wrong, and they."""
        async with self._asking:
            if self._url and time.monotonic() - self._asked >= _EVERY:
                try:
                    self._found, self._error = await self._ask(), ""
                except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                    self._found = []
                    self._error = f"{type(error).__name__}: {error}"[:300]
                self._asked = time.monotonic()
        found = [a for a in self._found if run is None or a["run"] == run]
        return {"asked": self._url is not None, "error": self._error, "list": found}

    async def _ask(self) -> list[dict[str, Any]]:
        url = f"{str(self._url).rstrip('/')}/api/v1/alerts"
        timeout = aiohttp.ClientTimeout(total=3)
        async with self._session.get(url, timeout=timeout, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"Prometheus answers {response.status}")
            return read_alerts(json.loads(await limited(response, _BYTES)))


def read_alerts(answer: Any) -> list[dict[str, Any]]:
    """Of an answer of /api/v1/alerts, those that fire first, then by severity and name.

    Raises ValueError where it is none.
    """
    try:
        found = [_alert(one) for one in answer["data"]["alerts"]]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError("that is no answer of Prometheus") from error
    order = {"critical": 0, "warning": 1}
    return sorted(
        found, key=lambda a: (a["state"] != "firing", order.get(a["severity"], 2), a["name"])
    )


def _alert(one: dict[str, Any]) -> dict[str, Any]:
    labels, notes = one["labels"], one.get("annotations", {})
    apart = ("alertname", "severity", "run")
    return {
        "name": str(labels["alertname"]),
        "severity": str(labels.get("severity", "")),
        "run": labels.get("run"),
        "labels": {str(k): str(v) for k, v in labels.items() if k not in apart},
        "summary": str(notes.get("summary", "")),
        "runbook": str(notes.get("runbook_url", "")),
        "state": str(one.get("state", "")),
        "since": str(one.get("activeAt", "")),
    }
