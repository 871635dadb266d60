"""How the driver hears why workers ended. Apart: to import this is to import Ray."""

from pathlib import Path
from typing import Any

from ray.train import UserCallback

from launch.execution.failures import crashes, explain


class TellFailures(UserCallback):
    """Posts a `Failure` whenever workers have ended; Ray Train's controller calls it."""

    def __init__(self, mailbox: Any, folder: Path, workers: int) -> None:
        self._mailbox, self._folder, self._workers = mailbox, folder, workers

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """See Ray."""
        failure = explain(worker_exceptions, crashes(self._folder, self._workers))
        self._mailbox.post.remote({"failure": failure})
