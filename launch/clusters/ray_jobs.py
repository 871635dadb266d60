"""Runs as jobs of a remote Ray cluster: submitting, following, stopping and their status."""

import asyncio
import os
import re
import shlex
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from data_shards.files import write_json
from data_shards.settings import InputError
from launch.clusters.environment import check_lock, write_lock
from launch.config.load import locations
from launch.config.run import RunConfig
from launch.machine.ray_token import check_token
from launch.root import PACKAGES, SEARCHED
from launch.runs.remembered import remember, remembered
from launch.terminal.console import say
from monitoring.run_folder import JOB_FILE
from untrusted.files import read_bytes
from untrusted.json_text import parse_json
from untrusted.text import holds_secret
from untrusted.yaml_text import dump_yaml

_BYTES = 1 << 16
_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9+_.-]{0,299}")
_WEB = re.compile(r"https?://[^/?#\s]+/?")
_STOP_SECONDS = 900
"""Time after a request to stop at which Ray kills a job; a run saves a checkpoint in it."""
_RETRY_SECONDS = 2.0


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """Ray's client for jobs, with the user's token. Turns Ray's errors into InputError."""
    check_address(address)
    # before Ray is imported, which reads it then
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    check_token()
    from ray.exceptions import RayError
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


def check_address(address: str) -> None:
    """Raises InputError unless it is http or https: Ray imports a module for any other scheme."""
    if not _WEB.fullmatch(address) or holds_secret(address):
        raise InputError(
            f"{address} is no address of a cluster's dashboard: give one such as http://HEAD:8265, "
            "and its token in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        )


def send(config: RunConfig, folder: Path, address: str, console: Console) -> str:
    """Submits a run to a cluster, with this code and its packages' versions; returns the job.

    `folder` and the dataset must be the same there: on a shared file system, or URLs. The address
    is stored outside of `folder` (`launch.runs.remembered`), which others may write to. Raises
    InputError.
    """
    name = re.sub(r"[^A-Za-z0-9+_.-]", "-", folder.name)[:100]
    job = f"perennial-{name}-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as packed, _client(address) as client:
        pack(config, Path(packed))
        client.submit_job(
            entrypoint=entrypoint(folder.resolve()),
            submission_id=job,
            runtime_env={
                "working_dir": packed,
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)},
            },
            metadata={"run": str(folder.resolve())},
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JOB_FILE, {"job": job})
    named = tuple(locations(config.model_dump(mode="json")))
    why = remember(folder, job=job, address=address, locations=named)
    console.print(f"{folder}: sent to {address} as {job}", soft_wrap=True)
    if why is not None:
        console.print(f"the address cannot be remembered ({why}): give --address again later")
    return job


def pack(config: RunConfig, folder: Path) -> None:
    """Writes the code, its packages' versions and the configuration to `folder`, to be sent."""
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(SEARCHED / package, folder / package, ignore=ignored)
    write_lock(folder / "packages.lock")
    values = config.placed()
    values["cluster"]["address"] = "auto"
    (folder / "run.yaml").write_text(dump_yaml(values), encoding="utf-8")


def entrypoint(folder: Path) -> str:
    """The job's command, for a folder that `pack` has filled."""
    run = shlex.join(["python", "-m", "perennial", "run", "run.yaml", "--out", str(folder)])
    return f"python -m {check_lock.__module__} packages.lock && exec {run}"


def follow(folder: Path, console: Console, address: str | None = None) -> int:
    """Prints the output of the run's job until it ends; returns its exit status.

    Raises InputError. A KeyboardInterrupt does not affect the job.
    """
    printed = 0
    with _job(folder, address) as (client, job):
        while not (info := client.get_job_info(job)).status.is_terminal():
            try:
                printed = asyncio.run(_tail(client, job, printed))
            except (ConnectionError, RuntimeError) as error:
                console.print(f"! the log broke off ({error}): trying again")
                time.sleep(_RETRY_SECONDS)
        say(client.get_job_logs(job)[printed:], end="")
        if info.status == "STOPPED":
            console.print(f"{job} was stopped: the same command goes on from there")
        elif info.status == "FAILED" and info.driver_exit_code is None:
            raise InputError(f"{job} failed: {info.message}")
    return info.driver_exit_code or 0


async def _tail(client: Any, job: str, printed: int) -> int:
    """Prints a job's output as it comes, from character `printed` on; returns its length.

    After a broken connection Ray sends the whole output again.
    """
    seen = 0
    async for text in client.tail_job_logs(job):
        say(text[max(0, printed - seen) :], end="")
        seen += len(text)
    return max(seen, printed)


def stop(folder: Path, address: str | None = None) -> None:
    """Asks the run's job to save and end. Raises InputError."""
    with _job(folder, address) as (client, job):
        client.stop_job(job)


def status(folder: Path, address: str | None = None) -> str:
    """The state of the run's job in a line. Raises InputError."""
    if address is None and not known(folder):
        return f"{folder} was sent to a cluster: give its dashboard by --address to ask about it"
    with _job(folder, address) as (client, job):
        state = str(client.get_job_info(job).status.value).lower()
        return f"job {job} at {client.get_address()}: {state}"


def known(folder: Path) -> bool:
    """Whether this user submitted the run in `folder`, so that its cluster may be contacted."""
    return remembered(folder).job == _named(folder)


@contextmanager
def _job(folder: Path, address: str | None) -> Iterator[tuple[Any, str]]:
    """A client of the cluster that the run in `folder` was sent to, and its job there.

    The folder may be a stranger's. So only an `address` that the user gave, now or on submission,
    is contacted, and the job that the folder names must belong to it. Raises InputError.
    """
    job = _named(folder)
    if address is None:
        if not known(folder):
            raise InputError(
                f"{folder} was not sent away from this account: give the address of its cluster's "
                "dashboard by --address"
            )
        address = remembered(folder).address or ""
    with _client(address) as client:
        run = (client.get_job_info(job).metadata or {}).get("run")
        if run != str(folder.resolve()):
            raise InputError(
                f"{job} at {address} is no job of {folder}: look for it by `ray job list`"
            )
        yield client, job


def _named(folder: Path) -> str:
    """The job named in a run folder. Raises InputError."""
    try:
        job = parse_json(read_bytes(folder / JOB_FILE, _BYTES, folder))["job"]
        if not isinstance(job, str) or not _JOB.fullmatch(job):
            raise ValueError("no name of a job")
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no {JOB_FILE}: give the --out of a run that was sent by --address"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / JOB_FILE} is damaged: look for the job by `ray job list`"
        ) from error
    return job
