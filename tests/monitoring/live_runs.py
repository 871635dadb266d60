"""Run folders made by hand, a driver process of theirs, and the page's server in a thread."""

import asyncio
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from monitoring.live.server import Page, serve

_DRIVER = """
import sys
from pathlib import Path
from monitoring.exporter import serving
from monitoring.metrics import Metrics
from monitoring.run_metrics import RunMetrics, monitored

folder = Path(sys.argv[1])
driver, rank = RunMetrics(folder, 4, 0), Metrics()
with monitored(driver, None, "127.0.0.1"):
    driver.begin("fkd/seed-0/step-0/train")
    driver.ranks(1, 1)
    rank.loss.set(7.5)
    rank.iteration_seconds.observe(0.25)
    rank.data_wait.inc(0.1)
    rank.count_doing("reading input", 0.1)
    rank.count_doing("optimiser", 0.3)
    labels = {"job": "trainer", "rank": "0"}
    with serving(rank.registry, folder / "targets" / "trainer-0.json", labels):
        print("ready", flush=True)
        sys.stdin.read()
"""


def configuration(
    methods: tuple[str, ...] = ("fkd",), steps: int = 2, seeds: tuple[int, ...] = (0,)
) -> dict[str, Any]:
    """What the page reads of a run.yaml."""
    return {
        "dataset": "data/glyphs",
        "benchmark": {"steps": steps},
        "evaluation": {"compatibility": None},
        "methods": {method: {"kind": "fkd"} for method in methods},
        "seeds": list(seeds),
    }


def write_run(root: Path, name: str, **given: Any) -> Path:
    """A run folder that has done nothing."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(configuration(**given), sort_keys=False))
    return folder


def add(folder: Path, file: str, *records: dict[str, Any]) -> None:
    """Appends records to a file of a run folder."""
    with (folder / file).open("a") as out:
        out.writelines(json.dumps(record) + "\n" for record in records)


def record(phase: str, iteration: int, of: int = 100, **given: Any) -> dict[str, Any]:
    """A record of training."""
    facts = {"loss": 10.0 - iteration / of, "images_per_second": 1000.0, "data_wait_share": 0.1}
    where = {"time": time.time(), "phase": phase, "iteration": iteration, "of": of}
    return {**where, **facts, **given}


def phase(name: str, started: float, finished: float, **given: Any) -> dict[str, Any]:
    """A line of the ledger."""
    times = {"started": started, "finished": finished}
    return {"phase": name, "fingerprint": "f", **times, **given}


def evaluate(folder: Path, method: str, seed: int, step: int, **measures: float) -> None:
    """A learning step's evaluation and its line in the ledger."""
    where = folder / "chains" / method / f"seed-{seed}" / "steps" / str(step)
    where.mkdir(parents=True, exist_ok=True)
    (where / "evaluation.json").write_text(json.dumps(measures))
    at = 1000.0 + 10 * step
    name = f"{method}/seed-{seed}/step-{step}"
    add(folder, "ledger.jsonl", phase(f"{name}/train", at, at + 6))
    output = str((where / "evaluation.json").relative_to(folder))
    add(folder, "ledger.jsonl", phase(f"{name}/evaluate", at + 6, at + 8, output=output))


@contextmanager
def driver(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with the endpoints of a run's driver and rank 0. It ends well when its standard
    input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@contextmanager
def served(page: Page, port: int = 0) -> Iterator[int]:
    """The page's server in a thread; gives its port."""
    loop = asyncio.new_event_loop()
    bound: list[int] = []
    started = threading.Event()

    def ready(at: int) -> None:
        bound.append(at)
        started.set()

    def run() -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass
        finally:
            started.set()
            loop.close()

    task = loop.create_task(serve(page, port, ready))
    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert started.wait(60) and bound, "the server did not start"
        yield bound[0]
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


def ask(
    port: int, path: str, headers: dict[str, str] | None = None, method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a request, whose path goes out as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()
    finally:
        connection.close()


def ask_json(port: int, path: str, headers: dict[str, str] | None = None) -> Any:
    """The JSON that an address gives."""
    status, _, body = ask(port, path, headers)
    assert status == 200, (path, status, body)
    return json.loads(body)


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    """What a function gives as soon as it is true."""
    deadline = time.monotonic() + seconds
    while True:
        if found := what():
            return found
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)
