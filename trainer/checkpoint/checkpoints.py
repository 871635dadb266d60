"""The checkpoints of a training phase: saved in the background, and found again on a restart."""

import secrets
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from monitoring.metrics import Metrics
from trainer.checkpoint.fence import Fence, FencedStore, unfenced
from trainer.checkpoint.format import DamagedError, Folder
from trainer.checkpoint.policy import superfluous
from trainer.checkpoint.store import open_store
from trainer.checkpoint.writer import Files, HostCopies, Save
from trainer.heads.collectives import Ranks
from trainer.optimizers import TrainingSettings

POINTER = "latest"
"""File that names the newest checkpoint. It does not make one complete, which is the manifest's
part; if it names none that is there, something was lost."""
_LAST_SECONDS = 30.0
"""How long a failing process waits for the checkpoint being written."""


class Checkpoints:
    """The checkpoints of a phase at ``location/ITERATION``; every rank has one of these.

    One is written at a time: a second save waits for the first on every rank, as skipping it would
    need an agreement of the ranks. Errors in the background are counted and reported, and training
    continues.
    """

    def __init__(
        self,
        location: str,
        settings: TrainingSettings,
        ranks: Ranks,
        metrics: Metrics,
        tell: Callable[[str], None],
        fence: Fence = unfenced,
    ) -> None:
        """`tell` is called with lines for the user, from any thread. `fence` is called before
        anything is written or deleted, and raises if this process may not. Raises InputError for a
        bad URL.
        """
        self._store, self._location = FencedStore(open_store(location), fence), location
        self._fence = fence
        self._settings, self._ranks = settings, ranks
        self._metrics, self._tell = metrics, tell
        # equal on all ranks, which recognise each other's files by it
        self._token, self._attempts = ranks.broadcast_object(secrets.token_hex(4)), 0
        self._thread: threading.Thread | None = None
        self._host = HostCopies()
        self._last = time.monotonic()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits for the checkpoint being written; after an error only for `_LAST_SECONDS`."""
        self.wait(None if kind is None else _LAST_SECONDS)

    def due(self, iteration: int) -> bool:
        """Whether to save before `iteration`; the same on every rank."""
        settings = self._settings
        if settings.checkpoint_minutes is None:
            return iteration % settings.checkpoint_every == 0
        if iteration % settings.log_every:
            return False
        # rank 0's clock decides: by their own, some ranks would save an iteration later
        late = time.monotonic() - self._last >= 60 * settings.checkpoint_minutes
        return bool(self._ranks.broadcast_object(late))

    def save(self, iteration: int, files: Files, card: dict[str, Any]) -> None:
        """Copies the state before `iteration` to host memory and writes it in the background."""
        begun = self._last = time.monotonic()
        self.wait()
        self._fence()  # here, where it ends the training: the thread's errors are only reported
        self._attempts += 1
        save = Save(
            store=self._store,
            name=str(iteration),
            token=f"{self._token}-{self._attempts}",
            files=self._host.of(files),
            card={"kind": "checkpoint", "iteration": iteration, "world": self._ranks.world, **card},
            rank=self._ranks.rank,
            world=self._ranks.world,
        )
        self._thread = threading.Thread(target=self._write, args=(save,), daemon=True)
        self._thread.start()
        self._metrics.checkpoint_pause.inc(time.monotonic() - begun)

    def wait(self, seconds: float | None = None) -> None:
        """Waits until this rank's writing is done (on rank 0: all ranks'), or for `seconds`."""
        if self._thread is not None:
            self._thread.join(seconds)

    def newest(self) -> Folder | None:
        """The newest checkpoint whose files all match their hashes; rank 0 checks them."""
        self.wait()
        found = self._find() if self._ranks.rank == 0 else None
        found = self._ranks.broadcast_object(found)
        return None if found is None else self._store.folder(str(found))

    def clear(self) -> None:
        """Deletes all checkpoints, after the phase's model was written."""
        self.wait()
        if self._ranks.rank == 0:
            for path in (POINTER, *map(str, self._store.saved()), ""):
                self._store.remove(path)

    def _write(self, save: Save) -> None:
        """The background thread: none of its errors may end the training.

        It has the priority of training: at a lower one it could be suspended while it holds the
        interpreter's lock, which training needs.
        """
        try:
            save.run()
            if self._ranks.rank == 0:
                # after the manifest: the pointer must not name what is incomplete
                self._store.replace(POINTER, save.name.encode())
                self._metrics.checkpoints_saved.inc()
                self._metrics.checkpoint_saved_at.set_to_current_time()
                self._tidy(int(save.name))
        except Exception as error:
            self._metrics.checkpoints_failed.inc()
            self._tell(
                f"the checkpoint before iteration {save.name} could not be saved, training goes "
                f"on: {error}"
            )

    def _tidy(self, newest: int) -> None:
        """Deletes checkpoints that the policy does not keep, and remains of dead attempts."""
        keep, span = self._settings.keep_checkpoints, self._settings.keep_every
        saved = [iteration for iteration in self._store.saved() if iteration <= newest]
        for old in superfluous(saved, keep, span):
            self._store.remove(str(old))
        self._store.sweep("*", self._token)  # other ranks may be writing a newer one already

    def _find(self) -> int | None:
        self._store.sweep("*")
        saved = self._store.saved()
        pointer = self._store.read(POINTER)
        named = None if pointer is None else pointer.decode(errors="replace").strip()
        if named is not None and named not in map(str, saved):
            self._damaged(f"{self._location}/{POINTER} names {named!r}, which is not there")
        for iteration in reversed(saved):
            folder = self._store.folder(str(iteration))
            if not folder.complete() and named != str(iteration):
                continue  # an object store's attempt that was cut short
            try:
                folder.verify()
            except DamagedError as error:
                self._damaged(str(error).rsplit(":", 1)[0])
                continue
            return iteration
        return None

    def _damaged(self, what: str) -> None:
        self._metrics.checkpoints_damaged.inc()
        self._tell(f"{what}: the newest good checkpoint is used")
