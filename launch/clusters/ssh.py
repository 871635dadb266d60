"""A run on several hosts by ssh: Ray on each of them, the driver on the first.

Processes on a host end when the standard input of their connection closes. So a launcher that is
killed leaves nothing behind, and nothing has to be stopped by name: `ray stop` would also end other
people's clusters.
"""

import contextlib
import json
import re
import secrets
import shlex
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from data_shards.settings import InputError
from launch.clusters.ssh_host import check_same
from monitoring.endpoint import joined
from untrusted.text_files import read_lines

_READY_SECONDS = 180.0
_END_SECONDS = 40.0
_INTERRUPTED = 130


@dataclass(frozen=True)
class Host:
    """A line of the hosts file."""

    name: str
    """The argument of ssh: a name of its configuration, or USER@HOST."""
    address: str | None = None
    """Address for the other hosts; none: Ray finds its own, and they use the name."""
    cpus: int | None = None
    """CPUs offered to Ray; none: all."""
    gpus: int | None = None

    @property
    def reached_by(self) -> str:
        """The address that the other hosts use."""
        return self.address or self.name.rpartition("@")[2]

    def options(self) -> list[str]:
        """The options of `launch.clusters.ssh_host node` for it."""
        given = {"address": self.address, "cpus": self.cpus, "gpus": self.gpus}
        return [f"--{key}={value}" for key, value in given.items() if value is not None]


def read_hosts(path: Path) -> list[Host]:
    """The hosts of a file, one a line, the head first. Raises InputError naming the line."""
    hosts = []
    for number, line in enumerate(read_lines(path, "--hosts"), start=1):
        words = line.partition("#")[0].split()
        if words:
            hosts.append(_host(words, f"line {number} of {path}"))
    names = [host.name for host in hosts]
    if not hosts or len(set(names)) != len(names):
        raise InputError(f"--hosts {path} must name hosts, each of them once")
    return hosts


def _host(words: list[str], where: str) -> Host:
    name, *pairs = words
    values = dict(pair.partition("=")[::2] for pair in pairs)
    counts = {key: values.pop(key) for key in ("cpus", "gpus") if key in values}
    address = values.pop("address", None)
    bad = next((f"{key}={v}" for key, v in counts.items() if not re.fullmatch(r"\d+", v)), None)
    bad = bad or next((pair for pair in pairs if pair.partition("=")[0] in values), None)
    if bad or not re.fullmatch(r"[\w@.:-]+", name) or name.startswith("-"):
        raise InputError(
            f"{where}: {bad or name!r} is not understood: write NAME [address=IP] [cpus=N] [gpus=N]"
        )
    return Host(
        name, address, *(int(counts[key]) if key in counts else None for key in ("cpus", "gpus"))
    )


@dataclass(frozen=True)
class Launch:
    """The parameters of a run on `hosts`, and its start."""

    hosts: list[Host]
    directory: str
    """The code's folder on every host, in which commands are executed."""
    python: str
    port: int
    """Ray's port on the head."""
    ssh_options: tuple[str, ...] = ()

    def _ssh(self, host: Host, *words: str) -> list[str]:
        python = f"exec {shlex.quote(self.python)} -m {check_same.__module__}"
        there = f"cd {shlex.quote(self.directory)} && {python} {shlex.join(words)}"
        options = ["-T", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", *self.ssh_options]
        return ["ssh", *options, "--", host.name, there]

    def _node(self, host: Host) -> list[str]:
        head = self.hosts[0]
        role = [] if host is head else [f"--head={head.reached_by}"]
        return self._ssh(host, "node", f"--port={self.port}", *role, *host.options())

    def _driver(self, words: Sequence[str]) -> list[str]:
        address = f"cluster.address={joined(self.hosts[0].reached_by, self.port)}"
        return self._ssh(self.hosts[0], "driver", "--", words[0], address, *words[1:])

    def commands(self, words: Sequence[str]) -> Iterator[str]:
        """The commands that `run` executes, to be shown. `words` as for `run`."""
        for host in self.hosts:
            yield shlex.join(self._ssh(host, "facts", words[0]))
        yield "# each of the following reads the run's token as the first line of its input"
        for host in self.hosts:
            yield shlex.join(self._node(host))
        yield shlex.join(self._driver(words))

    def run(self, words: Sequence[str], console: Console) -> int:
        """Starts Ray on all hosts and the run on the first, and ends Ray after it.

        `words` are the configuration's path, overrides and options of `perennial run`, whose exit
        status is returned. Raises InputError when a host cannot be reached, differs from the others
        or does not start.
        """
        self._check(words[0])
        token = secrets.token_hex(32)
        with self._cluster(token, console), _session(self._driver(words), token) as driver:
            try:
                return driver.wait()
            except KeyboardInterrupt:
                console.print("ending the run; the same command goes on")
                return _INTERRUPTED

    @contextmanager
    def _cluster(self, token: str, console: Console) -> Iterator[None]:
        """Ray on all hosts, the others at once when it runs on the first."""
        nodes: list[subprocess.Popen] = []
        with contextlib.ExitStack() as started:
            try:
                for hosts in (self.hosts[:1], self.hosts[1:]):
                    begun = [
                        started.enter_context(_session(self._node(host), token, capture=True))
                        for host in hosts
                    ]
                    nodes += begun
                    for host, node in zip(hosts, begun, strict=True):
                        _await_ready(node, host)
                        console.print(f"✓ {host.name}: Ray runs", soft_wrap=True)
                        _watch(node, host, console)
                yield
            finally:
                for node in nodes:  # all at once: each is waited for behind this
                    _hang_up(node)

    def _check(self, config: str) -> None:
        """Raises InputError unless all hosts answer and have the same code and packages."""
        asked = [
            subprocess.Popen(
                self._ssh(host, "facts", config),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
            for host in self.hosts
        ]
        facts = []
        for host, process in zip(self.hosts, asked, strict=True):
            out, err = process.communicate()
            if process.returncode:
                last = (err.strip().splitlines() or ["no answer"])[-1]
                raise InputError(
                    f"{host.name}: {last}: see that `ssh {host.name}` works without a password and "
                    f"that perennial is installed in {self.directory} there"
                )
            facts.append((host.name, json.loads(out)))
        if facts[0][1][config] == "missing":
            raise InputError(f"{self.hosts[0].name} has no {config} in {self.directory}")
        if different := check_same(facts):
            more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
            raise InputError(f"{different[0]}{more}: install the same on all hosts")


@contextmanager
def _session(command: list[str], token: str, capture: bool = False) -> Iterator[subprocess.Popen]:
    """A connection, over whose input the token is sent; closing it ends the remote processes."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if capture else None,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl-C must not reach ssh: this process ends the run in order
    )
    assert process.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(token + "\n")
            process.stdin.flush()
        yield process
    finally:
        _hang_up(process)
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _hang_up(process: subprocess.Popen) -> None:
    """Closes a session's input, which ends what it started on the host."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def _await_ready(node: subprocess.Popen, host: Host) -> None:
    """Waits until Ray runs on the host. Raises InputError when it does not."""
    assert node.stdout is not None
    timer = threading.Timer(_READY_SECONDS, node.kill)
    timer.start()
    try:
        line = node.stdout.readline()
    finally:
        timer.cancel()
    if line.strip() != "ready":
        raise InputError(f"{host.name}: Ray could not be started there, see the lines above")


def _watch(node: subprocess.Popen, host: Host, console: Console) -> None:
    """Prints a line when a host is lost during the run."""

    def wait() -> None:
        if node.wait() != 0:
            console.print(
                f"! {host.name} is lost: the run waits for another host, or go on by "
                "Ctrl-C and the same command",
                soft_wrap=True,
            )

    threading.Thread(target=wait, daemon=True).start()
