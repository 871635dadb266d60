"""Ray: a cluster of one on this machine, or a running one."""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from data_shards.settings import InputError
from launch.config.cluster import ClusterSettings
from launch.execution.interfaces import prepare_host
from launch.machine.private_folder import RAY_BYTES, private_folder
from launch.machine.ray_token import check_token, own_token
from launch.machine.surroundings import thread_variables

_QUIET = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that outlives `shutdown` must not start Ray anew
    "RAY_TQDM": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@contextmanager
def cluster(settings: ClusterSettings) -> Iterator[Any]:
    """Ray, started on this machine for localhost only and with token authentication, or joined.

    On this machine trainers, CPU actors and Ray Train's controller get a slot each, whatever the
    number of cores: trainers and actors never work at the same time. Raises InputError when the
    cluster cannot be reached.
    """
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if settings.address is None:
        # Ray takes 127.0.0.1 for a mistake and listens everywhere, unless it believes that this
        # machine cannot be part of a cluster; see docs/facts.md
        os.environ[_ALONE] = "0"
        # here the controller looks after few ranks, and may look more often than every two seconds
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        # nobody reclaims this machine: no process need ask every five seconds
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # workers that Ray starts ahead lack the environment below, and would never be used
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        own_token()
    else:
        check_token()
    import ray  # reads RAY_AUTH_MODE when it is imported

    environment: dict[str, Any] = {"env_vars": _worker_environment(settings)}
    if settings.address is not None:
        environment["worker_process_setup_hook"] = (
            f"{prepare_host.__module__}.{prepare_host.__name__}"
        )
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": environment,
    }
    with ExitStack() as opened:
        if settings.address is None:
            private = opened.enter_context(private_folder(RAY_BYTES))
            # within it: Ray lets everybody into the very folder that it is given
            options |= _local(settings, private / "ray")
            opened.enter_context(_without_helpers())
        else:
            options["address"] = settings.address
        # else what this process starts later cannot be part of a cluster
        opened.callback(os.environ.pop, _ALONE, None)
        opened.callback(ray.shutdown)
        try:
            ray.init(**options)
        except ConnectionError as error:
            raise InputError(
                f"no Ray cluster answers at cluster.address = {settings.address}: start one, or "
                "leave the key out to use this machine"
            ) from error
        yield ray


@contextmanager
def _without_helpers() -> Iterator[None]:
    """Ray starts without three processes that serve clusters, a second of a processor each.

    One would ask a cloud for machines, one hand the workers' output on to the driver (which keeps
    them in logs of its own), and one report how Ray is used.
    """
    from ray._private.node import Node

    needless = {"start_monitor", "start_log_monitor", "start_api_server"} & vars(Node).keys()
    kept = {name: getattr(Node, name) for name in needless}
    for name in needless:
        setattr(Node, name, lambda self, **settings: None)
    try:
        yield
    finally:
        for name, start in kept.items():
            setattr(Node, name, start)


def _local(settings: ClusterSettings, folder: Path) -> dict[str, Any]:
    """How Ray is started on this machine, with its sockets and logs in `folder`."""
    options: dict[str, Any] = {
        "address": "local",
        "num_cpus": settings.workers + settings.actor_count() + 2,
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": str(folder),
    }
    if not os.access("/dev/shm", os.W_OK):  # Ray looks for room there without asking whether it is
        options["_plasma_directory"] = str(folder)
    return options


def check_gpus(settings: ClusterSettings, ranks: int) -> None:
    """Raises InputError where `ranks` of this machine are to have a GPU each, and cannot."""
    if not settings.gpu:
        return
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < ranks:
        built = "" if torch.version.cuda else " (this torch is built without CUDA)"
        raise InputError(
            f"cluster.gpu = true needs {ranks} GPU{'s'[: ranks != 1]} on this machine, and torch "
            f"finds {found or 'none'}{built}: set cluster.gpu=false, lower cluster.workers, or "
            "give the address of a cluster that has them by cluster.address"
        )


def _worker_environment(settings: ClusterSettings) -> dict[str, str]:
    """What trainers and actors find in their environment."""
    variables = {
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore",
        **thread_variables(),
        "OMP_NUM_THREADS": str(settings.worker_threads()),
    }
    if settings.address is None:
        variables["GLOO_SOCKET_IFNAME"] = "lo"
    if not settings.gpu:
        variables["DS_ACCELERATOR"] = "cpu"
    return variables
