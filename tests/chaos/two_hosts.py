"""Two hosts on one machine: network namespaces joined by a cable that can be cut and slowed.

They share the machine's file system, as hosts that mount the same run folder do.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable
RAY = Path(sys.executable).with_name("ray")
PORT = 6379
STARTED = b"Ray runtime started"
WATCHFUL = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
}
"""A host that is not heard of for 16 seconds is dead."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def why_not() -> str:
    """Why there can be no hosts here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2 (apt-get install iproute2)"
    name = f"pt-{secrets.token_hex(3)}"
    try:
        ip("netns", "add", name)
        ip("-n", name, "link", "add", "p0", "type", "veth", "peer", "name", "p1")
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not permitted here: {error.stderr.decode().strip()}"
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return ""


class Host:
    """One end of the cable."""

    def __init__(self, namespace: str, interface: str, address: str) -> None:
        self.namespace, self.interface, self.address = namespace, interface, address
        self.temporary = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets' paths: short
        self.log = self.temporary / "ray.log"

    def popen(self, *command: str | Path, env: dict[str, str], **options) -> subprocess.Popen:
        """A process of this host."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *map(str, command)],
            env={**os.environ, **env, "PYTHONPATH": str(ROOT)},
            **options,
        )

    def start_ray(self, head: "Host", cpus: int, env: dict[str, str]) -> None:
        """Starts Ray, as a member of the head's cluster, and waits until it runs."""
        role = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        if head is not self:
            role = [f"--address={head.address}:{PORT}"]
        where = [f"--node-ip-address={self.address}", f"--temp-dir={self.temporary}"]
        with self.log.open("wb") as log:
            command = [RAY, "start", *role, *where, f"--num-cpus={cpus}", "--block"]
            process = self.popen(*command, env=env, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 120
        while STARTED not in self.log.read_bytes():
            text = self.log.read_text(errors="replace")
            assert process.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """All that run on it."""
        command = ["ip", "netns", "pids", self.namespace]
        pids = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        return [psutil.Process(int(pid)) for pid in pids if psutil.pid_exists(int(pid))]

    def kill(self) -> None:
        """SIGKILL to every process, as a power cut does."""
        while found := self.processes():
            for process in found:
                try:
                    process.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(found, timeout=10)

    def link(self, state: str) -> None:
        """Plugs its end of the cable in (`up`), or out (`down`)."""
        ip("-n", self.namespace, "link", "set", self.interface, state)

    def shape(self, *words: str) -> bool:
        """Slows what it sends down; False where the kernel cannot."""
        command = ["tc", "-n", self.namespace, "qdisc", "add", "dev", self.interface, "root"]
        return not subprocess.run([*command, *words], capture_output=True, check=False).returncode

    def unshape(self) -> None:
        """As fast as before."""
        where = ["dev", self.interface, "root"]
        command = ["tc", "-n", self.namespace, "qdisc", "delete", *where]
        subprocess.run(command, capture_output=True, check=True)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts, and at the end everything that runs on them killed."""
    token = secrets.token_hex(2)
    number = int(token, 16)
    network = f"10.{200 + number % 50}.{number // 50 % 250}"
    hosts = [Host(f"pt-{token}-{n}", f"eth-{token}-{n}", f"{network}.{n}") for n in (1, 2)]
    try:
        for host in hosts:
            ip("netns", "add", host.namespace)
        ends = [["name", h.interface, "netns", h.namespace] for h in hosts]
        ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for host in hosts:
            ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", host.interface)
            for interface in ("lo", host.interface):
                ip("-n", host.namespace, "link", "set", interface, "up")
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            host.kill()
            subprocess.run(["ip", "netns", "delete", host.namespace], check=False)
            shutil.rmtree(host.temporary, ignore_errors=True)
