"""Training ranks on Ray Train: started for many jobs, heard, ended when they hold others up."""

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from data_shards.settings import InputError
from launch.execution.failures import Failure, Repeats, last_line
from launch.execution.heartbeat import Beat, diagnose, end_process
from launch.execution.job_board import JobBoard, Posted
from launch.execution.mailbox import Mailbox
from launch.execution.placement import Waiting
from launch.execution.rank import RankJob, S
from launch.execution.ray_worker import RankSpec, worker
from launch.runs.records import Records
from launch.runs.run import Run
from monitoring.progress import RunProgress
from monitoring.run_folder import LOGS_FOLDER
from trainer.divergence import Diverged

_POLL_SECONDS = 0.2
_HEARD_SECONDS = 5.0
"""A rank that says something once a second and is silent for so long is missing."""
_FORSAKEN_SECONDS = 3.0
"""For as long whoever looks after ranks that are given up may ask them how they are."""


@dataclass
class _JobAtWork:
    """What the driver knows of the job that the ranks do."""

    phase: str
    failures: int = 0
    """How often the group of its ranks has ended."""
    why: str = ""
    """The last time."""
    furthest: int = 0
    """The highest iteration that was ever reported."""
    repeats: Repeats = field(default_factory=Repeats)
    expected: bool = False
    """The group is ended from here, and the failure that follows is no news."""
    diverged: str = ""
    """Why nothing can come of it, in the words of a rank."""


class RayRanks:
    """Does jobs on ranks, one after the other, and keeps what the ranks say.

    One call of Ray Train's `fit` hosts them all: what starts with the first job stays for the
    others. Records go to metrics.jsonl, what went wrong and was mended to events.jsonl.
    """

    def __init__(self, run: Run, ray: Any, progress: RunProgress, stop: threading.Event) -> None:
        self._run, self._ray, self._progress, self._stop = run, ray, progress, stop
        # beside the driver: Ray would place it on any host, and the run would end with that one
        beside = {
            "num_cpus": 0,
            "scheduling_strategy": self._on(ray.get_runtime_context().get_node_id()),
        }
        ranks = run.config.cluster.workers
        self._mailbox = ray.remote(Mailbox).options(**beside).remote()
        board = ray.remote(JobBoard).options(max_concurrency=2 * ranks + 10, **beside)
        self._board = board.remote(ranks)
        self._records = Records(run.folder, progress)
        self._jobs = 0
        self._at_work: _JobAtWork | None = None
        self._ended: set[tuple[int, float]] = set()
        self._trainer: Any = None
        self._fit: threading.Thread | None = None
        self._broken: list[BaseException] = []

    @property
    def there(self) -> bool:
        """Whether they have been started, and hold their share of the cluster."""
        return self._fit is not None

    def on_ranks(self, phase: str, job: RankJob[S], spec: S) -> None:
        """Does a job on all ranks until it is done, or has saved after the stop was set.

        Raises InputError with the workers' own words. After Diverged they do another.
        """
        self._read_mail()  # what happened while there was no job is not this one's fault
        self._jobs += 1
        self._at_work = job_at_work = _JobAtWork(phase)
        content = self._ray.put((phase, job, spec))
        self._ray.get(self._board.post.remote(Posted(self._jobs, content)))
        self._start()
        waiting = Waiting(self._ray, self._wanted(), self._notice)
        finished = self._board.finished.remote(self._jobs)
        while not self._ray.wait([finished], timeout=_POLL_SECONDS)[0]:
            self._run.fence.check()
            self._check_fit()
            if self._stop.is_set():
                self._mailbox.stop.remote()
            beats = self._read_mail()
            if not beats:
                waiting.check()
            own = [beat for beat in beats if beat.phase == phase]
            self._progress.ranks(
                self._run.config.cluster.workers,
                sum(beat.silent < _HEARD_SECONDS for beat in own),
                sum(beat.doing.turns for beat in own),
                _doing(own),
            )
            self._end_stuck(beats)
        self._ray.get(finished)
        self._read_mail()
        self._at_work = None
        if job_at_work.diverged:
            raise Diverged(job_at_work.diverged)

    def end(self) -> None:
        """Lets the ranks go, so that others may have their machines."""
        if self._fit is None:
            return
        self._ray.get(self._board.end.remote())
        while self._fit.is_alive():
            self._fit.join(_POLL_SECONDS)
            self._end_stuck(self._read_mail())
        self._fit = None

    def forsake(self) -> None:
        """Waits a moment until nobody looks after the ranks, who may be at work: Ray ends next."""
        if self._fit is not None and not self._run.config.cluster.address:
            self._trainer.forsake()
            self._fit.join(_FORSAKEN_SECONDS)

    def _start(self) -> None:
        if self._fit is None:
            self._broken.clear()
            self._trainer = self._made_trainer()
            self._fit = threading.Thread(target=self._run_fit, daemon=True)
            self._fit.start()

    def _run_fit(self) -> None:
        """Runs `worker` on every rank until there are no more jobs."""
        try:
            self._trainer.fit()
        except BaseException as error:  # handed to the driver's thread
            self._broken.append(error)

    def _check_fit(self) -> None:
        """Raises InputError where Ray Train has given the ranks up."""
        if self._fit is None or self._fit.is_alive() or self._at_work is None:
            return
        self._read_mail()
        error = self._broken[0] if self._broken else None
        why = self._at_work.why or ("" if error is None else last_line(error))
        raise InputError(f"{self._at_work.phase} failed: {why}") from error

    def _made_trainer(self) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from launch.execution.failure_callback import TellFailures
        from launch.execution.local_trainer import LocalTrainer
        from launch.execution.rendezvous import FileRendezvous

        cluster, folder = self._run.config.cluster, self._run.folder.resolve()
        spec = RankSpec(
            config=self._run.config.placed(),
            folder=folder,
            fence=self._run.fence,
            mailbox=self._mailbox,
            board=self._board,
        )
        group = TorchConfig if cluster.address else FileRendezvous
        trainer = TorchTrainer if cluster.address else LocalTrainer
        return trainer(
            worker,
            train_loop_config={"spec": spec},
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
                # cluster.max_failures are those of one job, and this is about all of them
                failure_config=FailureConfig(max_failures=-1),
                callbacks=[cast("Any", TellFailures(self._mailbox, folder, cluster.workers))],
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
            if "diverged" in record:
                if self._at_work is not None:
                    self._at_work.diverged = record["diverged"]
                continue
            if "failure" in record:
                self._failed(record["failure"])
                continue
            if self._at_work is not None:
                if record.get("event") == "restart":
                    self._at_work.expected = False
                self._at_work.furthest = max(self._at_work.furthest, record.get("iteration", 0))
            self._records.keep(record)
        return beats

    def _failed(self, failure: Failure) -> None:
        """Keeps why workers ended. Raises InputError where that was once too often."""
        job, why = self._at_work, f"{_ranks(failure.ranks)}: {failure.why}"
        if job is None:  # they start again, and wait for the next one
            self._ray.get(self._board.lost.remote(self._jobs))
            event = {"event": "failed", "ranks": list(failure.ranks)}
            self._records.keep({**event, "message": f"between two jobs: {why}"})
            return
        job.failures += not failure.preempted
        if job.expected:  # ended here, with reasons of our own
            job.expected = False
        else:
            job.why = why
            event = {"event": "failed", "phase": job.phase, "ranks": list(failure.ranks)}
            self._records.keep({**event, "message": f"{job.phase}: {why}"})
            if job.repeats.futile(failure, job.furthest):
                raise InputError(
                    f"{job.phase} fails in the same way whenever it is started, at iteration "
                    f"{job.furthest}: {why}; see {self._run.folder / LOGS_FOLDER}"
                )
        allowed = self._run.config.cluster.max_failures
        if job.failures > allowed and not self._stop.is_set():
            often = f"more often than cluster.max_failures = {allowed}"
            raise InputError(f"{job.phase} failed {often}: {job.why}")

    def _notice(self, line: str) -> None:
        if self._at_work is not None:
            phase = self._at_work.phase
            self._records.keep({"phase": phase, "notice": f"{phase}: {line}"})

    def _wanted(self) -> dict[str, float]:
        """Ray's resources of all ranks."""
        cluster = self._run.config.cluster
        return {k: v * cluster.workers for k, v in cluster.trainer_resources().items()}

    def _end_stuck(self, beats: list[Beat]) -> None:
        """Ends workers that hold the others up: Ray then restarts the group."""
        cluster, job = self._run.config.cluster, self._at_work
        heard = [b for b in beats if (b.pid, b.born) not in self._ended]
        guilty, why = diagnose(heard, cluster.silent_seconds, cluster.stalled_seconds)
        if not guilty:
            return
        self._ended |= {(beat.pid, beat.born) for beat in heard}  # the whole group starts anew
        ended = [beat.rank for beat in guilty if self._end(beat)]
        if not ended:
            return
        event = {"event": "ended", "ranks": ended, "message": why}
        if job is not None:
            job.why, job.expected = why, True
            event["phase"] = job.phase
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


def _doing(beats: Sequence[Beat]) -> str:
    """What the rank is at that got least far, in words."""
    if not beats:
        return "starting training processes"
    slowest = min(beats, key=lambda beat: beat.doing.turns)
    return f"rank {slowest.rank}: {slowest.doing.what}"
