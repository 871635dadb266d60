"""A run as a batch job of Slurm: Ray on every node, the driver on the first."""

import math
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_shards.settings import InputError
from launch.exits import PREEMPTED
from launch.machine.private_folder import RAY_BYTES

_WORD = re.compile(r"--[a-z][a-z-]*(=[^\s'\"\\]+)?")
_SCRIPT = r"""
set -u
cd {directory}
export PATH={programs}:$PATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_AUTH_TOKEN_PATH={run}/.ray-token-$SLURM_JOB_ID
mkdir -p {run}
(
    umask 077
    python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH"
)
end() {{ rm -f "$RAY_AUTH_TOKEN_PATH"; kill $(jobs -p) 2> /dev/null; wait; }}
trap end EXIT

# the paths of Ray's sockets begin with it, and have room for no more
temporary=${{TMPDIR:-}}
if [ ${{#temporary}} -gt {longest} ]; then export TMPDIR=/tmp; fi

# Ray, with room for this node's trainers and actors
host=$(python -c 'import ray; print(ray.util.get_node_ip_address())')
head=$host:$((20000 + SLURM_JOB_ID % 10000))
start='ray start --block --num-cpus={slots} --resources={resources}'
$start --head --node-ip-address="$host" --port="${{head#*:}}" --include-dashboard=false &
ray=$!
until ray health-check --address "$head" 2> /dev/null; do
    kill -0 $ray || exit 1
    sleep 1
done
others=$((SLURM_JOB_NUM_NODES - 1))
if [ $others -gt 0 ]; then  # where Ray does not start, or loses the head for a while: again
    srun --nodes=$others --ntasks=$others --exclude="$SLURMD_NODENAME" \
        bash -c 'until "$@"; do sleep 5; done' bash $start --address="$head" &
fi

# the driver, which saves after SIGTERM: that comes before the time is up
{driver} cluster.address="$head" cluster.threads={threads} &
driver=$!
trap 'asked=1; kill -TERM $driver' TERM
while asked=; wait $driver; code=$?; [ -n "$asked" ]; do :; done
trap : TERM
rm -f "$RAY_AUTH_TOKEN_PATH"  # before Slurm can kill this script for the requeue
# at once: Ray may take half a minute to end
if [ $code = {saved} ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $code
"""


@dataclass(frozen=True)
class Job:
    """The parameters of a batch job."""

    name: str
    nodes: int
    workers: int
    """Trainers in all: as many on each node."""
    actors: int
    """CPU actors in all, rounded up to as many on each node."""
    threads: int | None
    """CPU threads of each trainer; none: a node's CPUs shared out."""
    grace: int
    """Seconds before its end at which Slurm asks the run to save: longer than the longest save."""
    run: Path
    """The run folder; all nodes see it."""
    words: Sequence[str]
    """The configuration's path and overrides, as `perennial run` takes them."""
    directory: Path
    """The working directory of the command."""
    options: Sequence[str] = ()
    """Options of sbatch for the site: --partition=..., --time=..., --gres=..."""


def script(job: Job) -> str:
    """The batch script. Raises InputError for an impossible number of nodes or option."""
    if job.workers % job.nodes or not job.workers:
        raise InputError(f"--nodes {job.nodes}: must divide cluster.workers = {job.workers}")
    if odd := next((option for option in job.options if not _WORD.fullmatch(option)), None):
        raise InputError(f"--sbatch {odd!r}: write it as --NAME=VALUE, without blanks or quotes")
    ranks, actors = job.workers // job.nodes, math.ceil(job.actors / job.nodes)
    run = job.run.absolute()
    head = [
        f"--job-name={re.sub(r'[^A-Za-z0-9_.-]', '-', job.name)}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        "--exclusive",
        "--requeue",
        "--open-mode=append",
        f"--signal=B:TERM@{job.grace}",
        *job.options,
    ]
    driver = [
        *("python", "-m", "perennial", "run", *job.words),
        f"--out={run}",
        "cluster.worker_groups=true",
        f"cluster.actors={actors * job.nodes}",
    ]
    return (
        "#!/bin/bash\n"
        + "".join(f"#SBATCH {option}\n" for option in head)
        + _SCRIPT.format(
            directory=shlex.quote(str(job.directory)),
            programs=shlex.quote(str(Path(sys.executable).parent)),
            run=shlex.quote(str(run)),
            ranks=ranks,
            slots=ranks + actors + 1,  # Ray Train's controller takes one
            resources=f'{{"trainer":{ranks},"actor":{actors}}}',
            driver=shlex.join(driver),
            longest=RAY_BYTES,
            threads=job.threads or f"$(((SLURM_CPUS_ON_NODE + {ranks} - 1) / {ranks}))",
            saved=PREEMPTED,
        )
    )


def submit(text: str, run: Path) -> str:
    """Submits a script to Slurm; returns the job's number. Raises InputError."""
    run.mkdir(parents=True, exist_ok=True)
    command = ["sbatch", "--parsable", f"--output={run.absolute()}/slurm-%j.log"]
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError as error:
        raise InputError("no sbatch here: give this command on a login node of Slurm") from error
    if done.returncode:
        raise InputError(f"sbatch refuses the job: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip().partition(";")[0]
