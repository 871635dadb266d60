"""Asks the processes of a run for their metrics: those that its targets list, briefly."""

import asyncio
import fnmatch
import ipaddress
import math
import re
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from untrusted.files import read_bytes
from untrusted.json_text import parse_json

_ADDRESS = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9a-fA-F:]{2,45}\]):(\d{1,5})")
_TARGET_BYTES, _ANSWER_BYTES = 1 << 16, 1 << 21
_TIMEOUT = aiohttp.ClientTimeout(total=2)
_AT_ONCE = 64
_MOST_TARGETS = 4096
"""Of one run, so that a stranger's does not keep the page busy."""
_EVERY, _EVERY_TARGET = 3.0, 0.02
"""Seconds between two looks at one endpoint: at least 3, and more where there are many."""
_WINDOW = 60.0
"""Seconds that rates look back."""
_OWN_WORK = ("reading input", "teacher", "forward")


@dataclass(frozen=True)
class Target:
    """A process that a run lists for Prometheus."""

    address: str
    job: str
    number: str
    """The rank or actor; empty for the driver."""


@dataclass(frozen=True)
class Answer:
    """What an endpoint said last."""

    time: float
    """Of the asking process' monotonic clock."""
    values: dict[str, float] = field(default_factory=dict)
    """By the sample's name, and {doing} where it has that label."""
    phase: str | None = None
    """Of a driver: the phase at work."""
    error: str = ""
    """Why there is no answer."""


def read_targets(root: Path, files: Iterable[Path]) -> list[Target]:
    """What ``targets/*.json`` list; files and entries that are none are passed over."""
    found: list[Target] = []
    for file in files:
        try:
            groups = parse_json(read_bytes(file, _TARGET_BYTES, root))
            for group in groups:
                labels = group.get("labels", {})
                number = str(labels.get("rank", labels.get("actor", "")))[:20]
                for address in group["targets"]:
                    if _ADDRESS.fullmatch(address):
                        found.append(Target(address, str(labels.get("job", ""))[:20], number))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
        if len(found) >= _MOST_TARGETS:
            break
    return found[:_MOST_TARGETS]


def may_ask(address: str, allowed: Sequence[str]) -> bool:
    """Whether an address is on this machine, or its host matches one of the patterns."""
    host = address.rpartition(":")[0].strip("[]").lower()
    try:
        if ipaddress.ip_address(host).is_loopback:
            return True
    except ValueError:
        if host in ("localhost", socket.gethostname().lower()):
            return True
    return any(fnmatch.fnmatchcase(host, pattern.lower()) for pattern in allowed)


def parse(text: str, at: float) -> Answer:
    """What an endpoint's text says of a run. Raises ValueError."""
    lines = text.split("\n")
    known = ("perennial_", "process_resident_memory_bytes")
    kept = [n for n in lines if n.startswith(known) and "_bucket{" not in n][:5000]
    values: dict[str, float] = {}
    phase = None
    for family in text_string_to_metric_families("\n".join(kept) + "\n"):
        for sample in family.samples:
            doing = sample.labels.get("doing")
            key = f"{sample.name}{{{doing}}}" if doing else sample.name
            if math.isfinite(sample.value):
                values[key] = sample.value
            if sample.name == "perennial_phase" and sample.value == 1:
                of = sample.labels
                where = [of.get(name, "") for name in ("method", "seed", "step", "kind")]
                phase = "{}/seed-{}/step-{}/{}".format(*where)[:300]
    return Answer(at, values, phase)


def rates(answers: Sequence[Answer]) -> dict[str, float | None]:
    """Of a rank's answers in order: seconds an iteration, and shares of its time.

    Between the oldest and the newest; since its phase began where there is but one, or where the
    process has begun anew.
    """
    last, first = answers[-1].values, answers[0].values
    counted = "perennial_iteration_seconds_count"
    if len(answers) < 2 or last.get(counted, 0.0) <= first.get(counted, 0.0):
        first = {}

    def grown(name: str) -> float:
        return max(0.0, last.get(name, 0.0) - first.get(name, 0.0))

    count, seconds = grown(counted), grown("perennial_iteration_seconds_sum")
    doing = {n: grown(n) for n in last if n.startswith("perennial_doing_seconds_total{")}
    spent = sum(doing.values())
    own = sum(doing.get(f"perennial_doing_seconds_total{{{name}}}", 0.0) for name in _OWN_WORK)
    wait = grown("perennial_data_wait_seconds_total")
    return {
        "iteration_seconds": seconds / count if count else None,
        "data_wait": min(1.0, wait / spent) if spent else None,
        "own_work": own / spent if spent else None,
    }


class Endpoints:
    """Asks endpoints, each at most every few seconds however many people look."""

    def __init__(self, session: aiohttp.ClientSession, allowed: Sequence[str]) -> None:
        """`allowed` are patterns of hosts besides this machine, such as ``10.0.*``."""
        self._session, self._allowed = session, allowed
        self._heard: dict[str, deque[Answer]] = {}
        self._asked: dict[str, float] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._gate = asyncio.Semaphore(_AT_ONCE)

    async def ask(self, targets: Sequence[Target]) -> dict[str, Answer]:
        """The newest answers of `targets` by address; without those that may not be asked."""
        addresses = {t.address for t in targets if may_ask(t.address, self._allowed)}
        every = max(_EVERY, _EVERY_TARGET * len(addresses))
        now = time.monotonic()
        due = [a for a in addresses if now - self._asked.get(a, -math.inf) >= every]
        self._asked |= dict.fromkeys(due, now)
        self._asking |= {a: asyncio.create_task(self._ask(a)) for a in due if a not in self._asking}
        awaited = [asyncio.shield(self._asking[a]) for a in addresses if a in self._asking]
        await asyncio.gather(*awaited)
        return {a: self._heard[a][-1] for a in addresses if a in self._heard}

    def rates(self, address: str) -> dict[str, float | None]:
        """`rates` of what an endpoint said lately."""
        heard = [answer for answer in self._heard.get(address, ()) if not answer.error]
        return rates(heard) if heard else {}

    def forget(self) -> None:
        """Drops what nobody asked for within ten minutes."""
        before = time.monotonic() - 600
        for address in [a for a, at in self._asked.items() if at < before]:
            del self._asked[address]
            self._heard.pop(address, None)

    async def _ask(self, address: str) -> None:
        at = time.monotonic()
        try:
            async with self._gate:
                answer = parse(await self._fetch(f"http://{address}/metrics"), at)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            answer = Answer(at, error=_why(error))
        heard = self._heard.setdefault(address, deque())
        heard.append(answer)
        while len(heard) > 1 and heard[0].time < at - _WINDOW:
            heard.popleft()
        del self._asking[address]

    async def _fetch(self, url: str) -> str:
        headers = {"Accept": "text/plain"}
        async with self._session.get(
            url, timeout=_TIMEOUT, allow_redirects=False, headers=headers
        ) as response:
            if response.status != 200:
                raise ValueError(f"it answers {response.status}")
            return (await limited(response, _ANSWER_BYTES)).decode()


async def limited(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body of a response. Raises ValueError where it is longer than `most` bytes."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > most:
            raise ValueError(f"it answers more than {most} bytes")
    return bytes(body)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer within 2 s"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "connection refused" if error.os_error.errno == 111 else "not reachable"
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def processes(
    targets: Sequence[Target], answers: dict[str, Answer], endpoints: Endpoints
) -> list[dict[str, Any]]:
    """A line for each process of a run: what does not answer first, then by job and number."""
    lines = []
    for target in targets:
        answer = answers.get(target.address)
        values = answer.values if answer else {}
        lines.append(
            {
                "job": target.job,
                "number": target.number,
                "address": target.address,
                "missing": None if answer is None else bool(answer.error),
                "why": answer.error if answer else "on a machine that is not asked: see --scrape",
                "memory": values.get("process_resident_memory_bytes"),
                "loss": values.get("perennial_loss"),
                "quarantined": values.get("perennial_quarantined_samples_total"),
                "embedded": values.get("perennial_embedded_images_total"),
                **(endpoints.rates(target.address) if target.job == "trainer" else {}),
            }
        )
    jobs = {"driver": 0, "trainer": 1, "actor": 2}
    return sorted(
        lines,
        key=lambda n: (not n["missing"], jobs.get(n["job"], 3), len(n["number"]), n["number"]),
    )
