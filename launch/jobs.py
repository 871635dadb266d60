"""Runs on a Ray cluster elsewhere: sent there as jobs, followed, left alone and found again."""

import asyncio
import json
import os
import shlex
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from data_shards.files import write_json
from data_shards.settings import InputError
from launch.config import RunConfig
from launch.environment import write_lock

FILE = "job.json"
_PACKAGES = ("data_shards", "trainer", "launch", "monitoring")
_STOP_SECONDS = 900
"""Ray kills a job that was asked to stop so long ago; a run saves a checkpoint in that time."""
_RETRY_SECONDS = 2.0


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """Ray's client for jobs, with the token that Ray finds. Raises InputError for its errors."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.exceptions import RayError  # Ray reads RAY_AUTH_MODE when it is imported
    from ray.job_submission import JobSubmissionClient

    try:
        yield JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, RayError) as error:
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"the Ray cluster at {address}: {why[0].rstrip('.')}. Give the "
            "address of its dashboard, "
            "such as http://HEAD:8265, and its token in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        ) from error


def send(config: RunConfig, folder: Path, address: str, console: Console) -> str:
    """Sends a run to a cluster, with this code and the names of its packages; returns the job.

    `folder` and the dataset must mean the same there: a shared file system, or URLs. Raises
    InputError.
    """
    job = f"perennial-{folder.name}-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as name, _client(address) as client:
        pack(config, Path(name))
        client.submit_job(
            entrypoint=entrypoint(folder.resolve()),
            submission_id=job,
            runtime_env={
                "working_dir": name,
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)},
            },
            metadata={"run": str(folder.resolve())},
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, {"address": address, "job": job})
    console.print(f"{folder}: sent to {address} as {job}", soft_wrap=True)
    return job


def pack(config: RunConfig, folder: Path) -> None:
    """Puts what travels into `folder`: the code, its packages' versions, the configuration."""
    here = Path(__file__).parents[1]
    for package in _PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(here / package, folder / package, ignore=ignored)
    write_lock(folder / "packages.lock")
    values = config.placed()
    values["cluster"]["address"] = "auto"
    (folder / "run.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def entrypoint(folder: Path) -> str:
    """What the job runs, in a folder that `pack` has filled."""
    run = shlex.join(["python", "-m", "launch.cli", "run", "run.yaml", "--out", str(folder)])
    return f"python -m launch.environment packages.lock && exec {run}"


def follow(folder: Path, console: Console) -> int:
    """Prints what the run's job prints until it ends; returns its exit status.

    Raises InputError; KeyboardInterrupt leaves the job alone.
    """
    address, job = sent(folder)
    printed = 0
    with _client(address) as client:
        while not (info := client.get_job_info(job)).status.is_terminal():
            try:
                printed = asyncio.run(_tail(client, job, printed))
            except (ConnectionError, RuntimeError) as error:
                console.print(f"[yellow]![/] the log broke off ({error}): trying again")
                time.sleep(_RETRY_SECONDS)
        print(client.get_job_logs(job)[printed:], end="", flush=True)
        if info.status == "STOPPED":
            console.print(f"{job} was stopped: the same command goes on from there")
        elif info.status == "FAILED" and info.driver_exit_code is None:
            raise InputError(f"{job} failed: {info.message}")
    return info.driver_exit_code or 0


async def _tail(client: Any, job: str, printed: int) -> int:
    """Prints a job's output beyond so many characters as it comes; returns how many there are."""
    seen = 0
    async for text in client.tail_job_logs(job):
        print(text[max(0, printed - seen) :], end="", flush=True)
        seen += len(text)
    return max(seen, printed)


def stop(folder: Path) -> None:
    """Asks the run's job to save and end. Raises InputError."""
    address, job = sent(folder)
    with _client(address) as client:
        client.stop_job(job)


def status(folder: Path) -> str:
    """The state of the run's job in a line. Raises InputError."""
    address, job = sent(folder)
    with _client(address) as client:
        info = client.get_job_info(job)
    return f"job {job} at {address}: {str(info.status.value).lower()}"


def sent(folder: Path) -> tuple[str, str]:
    """Address and job of a run that was sent away. Raises InputError."""
    try:
        told = json.loads((folder / FILE).read_text())
        return told["address"], told["job"]
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no {FILE}: give the --out of a run that was sent by --address"
        ) from error
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{folder / FILE} is damaged: look for the job by `ray job list`"
        ) from error
