"""A run launched by ssh on two hosts, each with a real sshd of its own."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.chaos.test_two_hosts import CONFIG, STEP, iteration
from tests.chaos.two_hosts import PYTHON, ROOT, Host, two_hosts, why_not
from tests.integration.test_resume import finish, wait_for

SSHD = shutil.which("sshd", path="/usr/sbin")
SSH_PORT = 2222
if reason := why_not() or ("" if SSHD else "needs sshd (apt-get install openssh-server)"):
    pytest.skip(reason, allow_module_level=True)


def key(path: Path) -> Path:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path]
    subprocess.run(command, check=True)
    return path


def serve(host: Host, folder: Path, own: Path, allowed: Path) -> None:
    """Starts the host's sshd, and waits until it answers."""
    settings = folder / f"sshd-{host.namespace}"
    settings.write_text(
        f"ListenAddress {host.address}:{SSH_PORT}\nHostKey {own}\nAuthorizedKeysFile {allowed}\n"
        "PermitRootLogin yes\nPasswordAuthentication no\nUsePAM no\nStrictModes no\nPidFile none\n"
        # a session's environment is not this process's; see conftest.py
        "SetEnv RAY_worker_niceness=0\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    process = host.popen(SSHD, "-D", "-e", "-f", settings, env={}, stderr=subprocess.PIPE)
    for line in process.stderr:
        if b"Server listening" in line:
            return
    pytest.fail(f"sshd ended with {process.wait()}")


def ssh_config(hosts: tuple[Host, Host], folder: Path) -> Path:
    own, mine = key(folder / "host"), key(folder / "user")
    known = folder / "known"
    public = own.with_suffix(".pub").read_text()
    known.write_text("".join(f"[{h.address}]:{SSH_PORT} {public}" for h in hosts))
    for host in hosts:
        serve(host, folder, own, mine.with_suffix(".pub"))
    path = folder / "config"
    path.write_text(
        "".join(
            f"Host {name}\n HostName {host.address}\n Port {SSH_PORT}\n User root\n"
            f" IdentityFile {mine}\n UserKnownHostsFile {known}\n StrictHostKeyChecking yes\n"
            for name, host in zip(("near", "far"), hosts, strict=True)
        )
    )
    return path


def left(hosts: tuple[Host, Host], launcher: subprocess.Popen) -> list[str]:
    """What runs on the hosts beside the servers of ssh."""
    found = [process for host in hosts for process in host.processes()]
    names = [" ".join(process.cmdline()) for process in found if process.pid != launcher.pid]
    return [name for name in names if "sshd" not in name and name]


def test_launched_interrupted_and_launched_again(small_folder, tmp_path, record_fault):
    config, hosts_file, out = tmp_path / "tiny.yaml", tmp_path / "hosts", tmp_path / "run"
    config.write_text(CONFIG.format(dataset=small_folder))
    with two_hosts() as hosts:
        hosts_file.write_text(
            f"near address={hosts[0].address} cpus=3\nfar address={hosts[1].address} cpus=1\n"
        )
        settings = ssh_config(hosts, tmp_path)
        options = ["--hosts", hosts_file, "--ssh-config", settings, "--directory", ROOT]
        words = [PYTHON, "-m", "launch.cli", "launch", "ssh", config, *options, "--out", out]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

        launcher = hosts[0].popen(*words, env={}, **streams)
        wait_for(launcher, lambda: iteration(out) >= 20)
        everywhere = [process for host in hosts for process in host.processes()]
        tokens = {process.environ().get("RAY_AUTH_TOKEN") for process in everywhere} - {None}
        assert len(tokens) == 1
        token = tokens.pop()
        assert len(token) == 64
        lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        assert not any(token in " ".join(line) for line in lines)
        os.kill(launcher.pid, signal.SIGINT)
        code, printed, err = finish(launcher)
        assert code == 130, err
        assert "the same command goes on" in printed
        assert not left(hosts, launcher)

        launcher = hosts[0].popen(*words, env={}, **streams)
        code, again, err = finish(launcher)
        assert code == 0, err
        assert "near: Ray runs" in again
        assert "far: Ray runs" in again
        assert "report: " in again
        assert not left(hosts, launcher)
    written = [path for path in out.rglob("*") if path.is_file()]
    assert not any(token.encode() in path.read_bytes() for path in written)
    assert token not in printed + err
    assert (out / STEP / "evaluation.json").exists()
    record_fault(
        "a run launched by ssh is interrupted (Ctrl-C at the launcher)",
        "driver, trainers and Ray end on both hosts",
        "the same command goes on and finishes",
    )
