"""The commands that `perennial launch ssh` executes on each host.

The first line of standard input is the token. When the input ends, everything started here is
ended, so that nothing outlives the launcher, however that ends.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import psutil
import typer

from launch.clusters.environment import installed, own_version
from launch.machine.private_folder import RAY_BYTES, make_private
from launch.root import PACKAGES, ROOT, SEARCHED
from monitoring.endpoint import joined
from untrusted.text import printable

LOCK = ROOT / "requirements.lock"
_STARTED = "Ray runtime started"
_PATIENCE_SECONDS = 20.0
"""How long Ray may take to end before it is killed."""

remote = typer.Typer(add_completion=False)


def facts_of(config: Path) -> dict[str, str]:
    """The versions and hashes that must be the same on all hosts of a run, by name."""
    sources = sorted(path for name in PACKAGES for path in (SEARCHED / name).rglob("*.py"))
    code = hashlib.sha256()
    for path in sources:
        code.update(f"{path.relative_to(SEARCHED)}\n".encode() + path.read_bytes())
    return {
        "perennial": own_version(),
        "its code": code.hexdigest()[:16],
        "requirements.lock": _hash(LOCK),
        str(config): _hash(config),
        "Python": platform.python_version(),
        **installed(),
    }


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else "missing"


@remote.command()
def facts(config: Path) -> None:
    """Print `facts_of` as JSON."""
    print(json.dumps(facts_of(config)))


@remote.command()
def node(
    port: Annotated[int, typer.Option()],
    head: Annotated[str | None, typer.Option()] = None,
    address: Annotated[str | None, typer.Option()] = None,
    cpus: Annotated[int | None, typer.Option()] = None,
    gpus: Annotated[int | None, typer.Option()] = None,
) -> None:
    """Make this host part of `head`'s Ray cluster, or the head of one; prints a line when it is."""
    environment = _environment()
    folder = make_private(RAY_BYTES)
    role = ["--head", f"--port={port}", "--include-dashboard=false"]
    if head is not None:
        role = [f"--address={joined(head, port)}"]
    given = {"node-ip-address": address, "num-cpus": cpus, "num-gpus": gpus}
    options = [f"--{name}={value}" for name, value in given.items() if value is not None]
    ray = Path(sys.executable).with_name("ray")
    # a folder within the private one: Ray opens the one that it is given to everybody (0777)
    process = subprocess.Popen(
        [ray, "start", *role, *options, f"--temp-dir={folder / 'ray'}", "--block"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    asked, ended = _end_with_input(process, signal.SIGTERM)
    said = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if _STARTED in line:
            print("ready", flush=True)
    process.wait()
    if not asked.is_set():
        sys.stderr.write(printable("".join(said[-20:]), keep="\n"))
        raise typer.Exit(1)
    ended.wait()
    shutil.rmtree(folder, ignore_errors=True)


@remote.command(context_settings={"ignore_unknown_options": True})
def driver(words: list[str]) -> None:
    """Execute `perennial run`; the end of the input is its Ctrl-C."""
    environment = _environment()
    process = subprocess.Popen(
        [sys.executable, "-m", "perennial", "run", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    _end_with_input(process, signal.SIGINT)
    raise typer.Exit(process.wait())


def _environment() -> dict[str, str]:
    """This process's environment, with the token read from its input and the path of this code."""
    token = sys.stdin.readline().strip()
    path = os.pathsep.join(filter(None, [str(SEARCHED), os.environ.get("PYTHONPATH")]))
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    return {**os.environ, **secret, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}


def _end_with_input(
    process: subprocess.Popen, politely: signal.Signals
) -> tuple[threading.Event, threading.Event]:
    """Ends a process and its descendants when standard input ends.

    The first event is set at the end of the input, the second when everything has ended.
    """
    asked, ended = threading.Event(), threading.Event()

    def wait() -> None:
        sys.stdin.read()
        asked.set()
        family = []
        # listed before the signal: children of a process that has ended are no longer found
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended by itself just now
            family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(politely)
        try:
            process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    return asked, ended


def check_same(facts: Sequence[tuple[str, dict[str, str]]]) -> list[str]:
    """Lines on how hosts, given with their `facts_of`, differ from the first of them."""
    (first, expected), *others = facts
    return [
        f"{name} has {fact} {found.get(fact, 'missing')}, {first} has {value}"
        for name, found in others
        for fact, value in expected.items()
        if found.get(fact, "missing") != value
    ]


if __name__ == "__main__":
    remote()
