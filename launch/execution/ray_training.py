"""A training phase on Ray Train: workers started, heard, and ended when they hold others up."""

import os
import threading
import time
from collections.abc import Sequence
from typing import Any, cast

from data_shards.settings import InputError
from launch.execution.failures import Failure, Repeats
from launch.execution.heartbeat import Beat, diagnose, end_process
from launch.execution.mailbox import Mailbox
from launch.execution.placement import Waiting
from launch.execution.rank import RankJob, S
from launch.execution.ray_worker import worker
from launch.runs.records import Records
from launch.runs.run import Run
from monitoring.progress import RunProgress

_POLL_SECONDS = 0.2
_HEARD_SECONDS = 5.0
"""A rank that says something once a second and is silent for so long is missing."""


class TrainingPhases:
    """Runs training phases one after another, and keeps what their workers say.

    Records go to metrics.jsonl, what went wrong and was mended to events.jsonl.
    """

    def __init__(self, run: Run, ray: Any, progress: RunProgress, stop: threading.Event) -> None:
        self._run, self._ray, self._progress, self._stop = run, ray, progress, stop
        # beside the driver: Ray would place it on any host, and the run would end with that one
        beside = self._on(ray.get_runtime_context().get_node_id())
        self._mailbox = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=beside).remote()
        self._records = Records(run.folder, progress)
        self._ended: set[tuple[int, float]] = set()
        self._why = ""
        self._repeats, self._furthest, self._expected = Repeats(), 0, False

    def on_ranks(self, name: str, job: RankJob[S], spec: S) -> None:
        """Does a job on all ranks until it is done, or has saved after the stop was set.

        Raises InputError with the workers' own words.
        """
        given = {
            "config": self._run.config.placed(),
            "folder": self._run.folder.resolve(),
            "job": job,
            "spec": spec,
            "phase": name,
            "mailbox": self._mailbox,
            "fence": self._run.fence,
        }
        self._why, self._repeats, self._furthest = "", Repeats(), 0
        waiting = Waiting(self._ray, self._wanted(), lambda line: self._notice(name, line))
        failure: list[BaseException] = []
        thread = threading.Thread(target=self._fit, args=(given, failure), daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            self._run.fence.check()
            if self._stop.is_set():
                self._mailbox.stop.remote()
            beats = [beat for beat in self._read_mail() if beat.phase == name]
            if not beats:
                waiting.check()
            self._progress.ranks(
                max(1, self._run.config.cluster.workers),
                sum(beat.silent < _HEARD_SECONDS for beat in beats),
                sum(beat.doing.turns for beat in beats),
            )
            self._end_stuck(name, beats)
        self._read_mail()
        if failure and not self._stop.is_set():
            why = self._why or _last_line(failure[0])
            allowed = self._run.config.cluster.max_failures
            often = f" more often than cluster.max_failures = {allowed}"
            alone = self._run.config.cluster.workers == 0  # in this process, which starts it once
            raise InputError(f"{name} failed{'' if alone else often}: {why}") from failure[0]

    def _fit(self, spec: dict[str, Any], failure: list[BaseException]) -> None:
        """Runs `worker` on every rank and waits; what it raises goes into `failure`."""
        try:
            if self._run.config.cluster.workers == 0:
                worker(spec)
            else:
                self._trainer(spec).fit()
        except BaseException as error:  # handed to the driver's thread
            failure.append(error)

    def _trainer(self, spec: dict[str, Any]) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from launch.execution.failure_callback import TellFailures
        from launch.execution.rendezvous import FileRendezvous

        cluster, folder = self._run.config.cluster, self._run.folder.resolve()
        group = TorchConfig if cluster.address else FileRendezvous
        teller = TellFailures(self._mailbox, spec["phase"], folder, cluster.workers)
        return TorchTrainer(
            worker,
            train_loop_config=spec,
            torch_config=group(
                backend="nccl" if cluster.gpu else "gloo",
                timeout_s=int(2 * cluster.stalled_seconds),
            ),
            scaling_config=ScalingConfig(
                num_workers=cluster.workers,
                use_gpu=cluster.gpu,
                placement_strategy=cluster.placement.upper(),
                resources_per_worker=cluster.trainer_resources(),
            ),
            run_config=RunConfig(
                name=f"train-{os.getpid()}-{time.time_ns()}",
                storage_path=str(folder / ".ray"),
                failure_config=FailureConfig(max_failures=cluster.max_failures),
                callbacks=[cast("Any", teller)],
            ),
        )

    def _read_mail(self) -> list[Beat]:
        """Shows and keeps what the workers reported.

        Raises InputError for a posted error, and for a failure that starting again cannot mend.
        """
        records, beats = self._ray.get(self._mailbox.read.remote())
        self._run.fence.check()
        for record in records:
            if "error" in record:
                raise InputError(record["error"])
            if "failure" in record:
                self._failed(record["phase"], record["failure"])
                continue
            if record.get("event") == "restart":
                self._expected = False
            self._furthest = max(self._furthest, record.get("iteration", 0))
            self._records.keep(record)
        return beats

    def _failed(self, name: str, failure: Failure) -> None:
        """Keeps why workers ended. Raises InputError where they would end so again."""
        if self._expected:  # ended here, with reasons of our own
            self._expected = False
            return
        self._why = f"{_ranks(failure.ranks)}: {failure.why}"
        message = f"{name}: {self._why}"
        event = {"event": "failed", "phase": name, "ranks": list(failure.ranks)}
        self._records.keep({**event, "message": message})
        if self._repeats.futile(failure, self._furthest):
            raise InputError(
                f"{name} fails in the same way whenever it is started, at iteration "
                f"{self._furthest}: {self._why}; see {self._run.folder / 'logs'}"
            )

    def _notice(self, name: str, line: str) -> None:
        self._records.keep({"phase": name, "notice": f"{name}: {line}"})

    def _wanted(self) -> dict[str, float]:
        """Ray's resources of a phase's workers; none where there is no worker."""
        cluster = self._run.config.cluster
        return {k: v * cluster.workers for k, v in cluster.trainer_resources().items()}

    def _end_stuck(self, name: str, beats: list[Beat]) -> None:
        """Ends workers that hold the others up: Ray then restarts the group.

        Raises InputError where training runs in this very process.
        """
        cluster = self._run.config.cluster
        heard = [b for b in beats if (b.pid, b.born) not in self._ended]
        guilty, why = diagnose(heard, cluster.silent_seconds, cluster.stalled_seconds)
        if not guilty:
            return
        if cluster.workers == 0:
            raise InputError(f"{why}: see cluster.stalled_seconds; run again to go on")
        self._ended |= {(beat.pid, beat.born) for beat in heard}  # the whole group starts anew
        ended = [beat.rank for beat in guilty if self._end(beat)]
        if ended:
            self._why, self._expected = why, True
            event = {"event": "ended", "phase": name, "ranks": ended, "message": why}
            self._records.keep(event)

    @staticmethod
    def _on(node: str) -> Any:
        """Ray's way to say: on this node and no other."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node, soft=False)

    def _end(self, beat: Beat) -> bool:
        there = self._on(beat.node)
        task = self._ray.remote(end_process).options(num_cpus=0, scheduling_strategy=there)
        try:
            return bool(self._ray.get(task.remote(beat.pid, beat.born)))
        except self._ray.exceptions.RayError:  # its machine is gone, and so is the worker
            return False


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s'[: len(ranks) != 1]} {', '.join(map(str, ranks))}"


def _last_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [""])[-1]
    return f"{type(error).__name__}: {line}".removesuffix(": ")
