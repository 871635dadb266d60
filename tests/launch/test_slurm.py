"""The batch script for Slurm: what is in it, and what a real Slurm makes of it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.cli import app

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel")
CONFIG = """
dataset: {dataset}
benchmark: {{steps: 1, train_identities: 36, test_identities: 24, pairs: 40}}
embedder: {{architecture: small, dimension: 16}}
training: {{iterations: 300, batch: 16, log_every: 2, checkpoint_every: 5}}
methods: {{finetune: {{}}}}
cluster: {{workers: 2, actors: 2, threads: 1}}
"""
SLURM = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/linear
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=2
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def launched(*words):
    return CliRunner().invoke(app, ["launch", "slurm", *map(str, words)])


def planned(*words):
    return launched(DEMO, *words, "--identities", 1500, "--images", 13000, "--dry-run")


def test_a_dry_run_prints_the_script_and_leaves_nothing(tmp_path):
    done = planned("--nodes", 2, "cluster.workers=4", "--out", tmp_path / "a run")
    assert done.exit_code == 0, done.output
    assert "#SBATCH --nodes=2\n" in done.output and "#SBATCH --requeue\n" in done.output
    assert '--resources={"trainer":2,"actor":1}' in done.output
    assert "(SLURM_CPUS_ON_NODE + 2 - 1) / 2" in done.output
    assert subprocess.run(["bash", "-n"], input=done.output, text=True, check=False).returncode == 0
    assert not (tmp_path / "a run").exists()


@pytest.mark.parametrize("given", [None, "/short", "/net/scratch_people/" + 9 * "jdoe1355700"])
def test_a_tmpdir_too_long_for_rays_sockets_is_left(tmp_path, given):
    words = "--nodes", 2, "cluster.workers=4", "--out", tmp_path / "run"
    text = planned(*words).output
    lines = text.partition("temporary=")[2].splitlines()[:2]
    shown = "\n".join(["set -u", "temporary=" + lines[0], lines[1], 'echo "${TMPDIR:-}"'])
    environment = {"TMPDIR": given} if given else {}
    done = subprocess.run(
        ["/bin/bash", "-c", shown], env=environment, capture_output=True, text=True, check=True
    )
    expected = "/tmp" if given and len(given) > 40 else given or ""
    assert done.stdout.strip() == expected


def test_slurm_asks_for_the_end_earlier_where_saving_takes_longer():
    def grace(*overrides):
        (line,) = (
            line
            for line in planned("--nodes", 1, *overrides).output.splitlines()
            if "--signal=" in line
        )
        return int(line.removeprefix("#SBATCH --signal=B:TERM@"))

    assert 60 < grace() < grace("embedder.architecture=resnet50", "embedder.dimension=512")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--nodes", 3, "cluster.workers=4"], "must divide cluster.workers = 4"),
        (["--nodes", 1, "--sbatch", "--time=1; rm -rf /"], "--NAME=VALUE"),
        (["--nodes", 1, "--sbatch", "partition"], "--NAME=VALUE"),
    ],
)
def test_what_makes_no_job_is_refused(words, why):
    assert why in str(planned(*words).exception)


@contextmanager
def daemon(*command):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def free_ports(count):
    """Neighbouring ones."""
    for first in range(21000, 60000, 10):
        with ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
        return range(first, first + count)
    raise AssertionError("no free ports")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A Slurm of two nodes on this machine."""
    if os.geteuid() or not all(map(shutil.which, PROGRAMS)):
        pytest.skip("no Slurm here, or not root: apt-get install slurm-wlm munge")
    folder = tmp_path / "slurm"
    folder.mkdir()
    tmp_path.chmod(0o755)  # munge wants its socket's folder open to all
    for place in ("state", "n1", "n2"):
        (folder / place).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    port, first, second = free_ports(3)
    where = {"host": socket.gethostname().split(".")[0], "port": port, "folder": folder}
    (folder / "slurm.conf").write_text(SLURM.format(**where, first=first, second=second))
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    munge = {"socket": "sock", "key-file": "key", "pid-file": "pid", "log-file": "log"}
    files = [f"--{name}={folder}/munge.{end}" for name, end in munge.items()]
    with (
        daemon("munged", "--foreground", "--force", *files, f"--seed-file={folder}/munge.seed"),
        daemon("slurmctld", "-D"),
        daemon("slurmd", "-D", "-N", "n1"),
        daemon("slurmd", "-D", "-N", "n2"),
    ):
        until(lambda: "State=IDLE" in scontrol("show", "node", "n2"), 60)
        yield folder
        subprocess.run(["scancel", "--user=root"], check=False)
        until(lambda: not subprocess.check_output(["squeue", "--noheader"]), 120)


def scontrol(*words):
    return subprocess.run(["scontrol", *words], capture_output=True, text=True, check=False).stdout


def until(condition, seconds, told=lambda: ""):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.2)


def test_a_job_trains_saves_when_asked_and_is_queued_again(slurm, small_folder, tmp_path):
    config, run = tmp_path / "tiny.yaml", tmp_path / "run"
    config.write_text(CONFIG.format(dataset=small_folder))
    command = [sys.executable, "-m", "launch.cli", "launch", "slurm", config, "--nodes", "2"]
    done = subprocess.run([*command, "--out", run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[1].rstrip(":")
    log = run / f"slurm-{job}.log"

    def state():
        shown = scontrol("show", "job", job)
        fields = dict(pair.split("=", 1) for pair in shown.split() if "=" in pair)
        return fields["JobState"], fields["Restarts"]

    def told():
        logs = [log, *slurm.glob("*.log")]
        return "\n".join([str(state()), *(path.read_text() for path in logs if path.exists())])

    def saved():
        assert state() in (("PENDING", "0"), ("RUNNING", "0")), told()
        return list(run.glob("chains/*/*/steps/0/checkpoints/*/manifest.json"))

    until(saved, 500, told)
    token = run / f".ray-token-{job}"
    assert token.stat().st_mode & 0o777 == 0o600
    secret = token.read_text()
    for words in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert secret not in words.read_text(errors="replace")
        except OSError:
            continue  # has ended
    # what Slurm sends before the time is up
    subprocess.run(["scancel", "--batch", "--signal=TERM", job], check=True)
    until(lambda: state() == ("PENDING", "1"), 120, told)
    assert "ended by SIGTERM in finetune/seed-0/step-0/train" in log.read_text()
    until(lambda: not token.exists(), 60)
    assert not (run / "ledger.jsonl").exists()

    # Slurm itself waits two minutes, and a job that starts at once is refused by its own nodes
    scontrol("update", f"JobId={job}", "StartTime=now+15")
    until(lambda: state()[0] not in ("PENDING", "RUNNING", "COMPLETING"), 500, told)
    assert state() == ("COMPLETED", "1"), told()
    phases = [json.loads(line)["kind"] for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert phases == ["train", "evaluate"]
    nodes = {
        json.loads(line).get("host") for line in (run / "events.jsonl").read_text().splitlines()
    }
    assert nodes
    assert secret not in log.read_text()
