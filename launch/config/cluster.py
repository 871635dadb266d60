"""The configuration of processes, threads and machines."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from data_shards.cores import cores
from data_shards.settings import Settings

_ADDRESS = re.compile(r"auto|(?:ray://)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")


class ClusterSettings(Settings):
    """Where the work runs. Nothing here changes a result beyond float error."""

    address: str | None = None
    """Address of a running Ray cluster; none: start Ray on this machine, for localhost only."""
    workers: int = Field(default=1, ge=0)
    """Training workers (ranks), which stay for all trainings of a run; 0 trains in the driver's own
    process, which starts several seconds sooner, but a crash of the training then ends the driver
    too."""
    actors: int | None = Field(default=None, ge=1)
    """CPU actors that run the previous model and the evaluation; none: one a core."""
    gpu: bool = False
    """Give each training worker a GPU."""
    placement: Literal["pack", "spread", "strict_spread"] = "pack"
    """Where training workers go: on as few machines as have room, on as many as there are, or one a
    machine, waiting for as many. The last suits machines without GPUs, whose cores one worker
    takes all."""
    worker_groups: bool = False
    """Place training workers and CPU actors on different machines: on those that offer Ray's custom
    resources `trainer` and `actor`, as the worker groups of k8s/ do. With `address` only."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of each training worker; none: this machine's cores shared out."""
    max_failures: int = Field(default=3, ge=0)
    """Restarts of a training phase's workers before the run gives up."""
    silent_seconds: float = Field(default=60.0, gt=1)
    """A training worker that has not been heard of for so long is frozen: it is ended, and the
    group restarted (without Ray all ranks end). Workers are heard of once a second, whatever they
    do."""
    stalled_seconds: float = Field(default=600.0, gt=1)
    """The same for a worker that has been doing one thing (reading input, waiting for the others
    within a collective, saving) for so long. Twice this is the process group's own time-out."""
    lease_seconds: float = Field(default=60.0, gt=1)
    """A driver that has given no sign of life in the run folder for so long is taken to be dead:
    the same command, on any host that shares the folder, then goes on in its place."""
    metrics_port: int | None = None
    """First port for Prometheus, one a rank of a machine and, after those of all ranks, the
    driver's; none: any."""
    metrics_host: str = "127.0.0.1"
    """Address that the endpoints for Prometheus listen on, at every machine; 0.0.0.0 lets all of
    the network read them, without a password."""

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, address: str | None) -> str | None:
        """Refuses other schemes: Ray imports the module that they name."""
        if address is not None and not _ADDRESS.fullmatch(address):
            raise ValueError("must be HOST:PORT, ray://HOST:PORT or auto")
        return address

    @model_validator(mode="after")
    def _groups_are_a_clusters(self) -> "ClusterSettings":
        if self.worker_groups and self.address is None:
            raise ValueError(
                "worker_groups needs a cluster whose machines offer the resources: set "
                "cluster.address, or leave it out"
            )
        return self

    def metrics_endpoint(self, local_rank: int) -> dict[str, Any]:
        """The port and host that the endpoint of a machine's `local_rank`-th rank listens on."""
        port = None if self.metrics_port is None else self.metrics_port + local_rank
        return {"port": port, "host": self.metrics_host}

    def driver_endpoint(self) -> dict[str, Any]:
        """The port and host of the driver's: after those of all ranks."""
        return self.metrics_endpoint(max(1, self.workers))

    def allocated(self, where: Literal["actors", "ranks", "driver"]) -> dict[str, int]:
        """The CPU cores and GPUs reserved during a phase that runs `where`."""
        if where == "ranks":
            workers = max(1, self.workers)
            return {"cpus": workers * self.worker_threads(), "gpus": workers if self.gpu else 0}
        return {"cpus": self.actor_count() * self.actor_threads(), "gpus": 0}

    def actor_threads(self) -> int:
        """CPU threads of each actor."""
        return max(1, cores() // self.actor_count())

    def trainer_resources(self) -> dict[str, float]:
        """The resources that Ray reserves for each training worker."""
        unit = {"GPU": 1.0} if self.gpu else {"CPU": 1.0}
        return {**unit, "trainer": 1.0} if self.worker_groups else unit

    def actor_resources(self) -> dict[str, float]:
        """The resources that Ray reserves for each CPU actor, beside a CPU."""
        return {"actor": 1.0} if self.worker_groups else {}

    def worker_threads(self) -> int:
        """CPU threads of each training worker."""
        return self.threads or max(1, cores() // max(1, self.workers))

    def actor_count(self) -> int:
        """Number of CPU actors."""
        return self.actors or cores()
