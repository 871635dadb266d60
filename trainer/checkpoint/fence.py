"""A store that checks before every change whether this process may still write.

A process may outlive its right to: the run may have been taken over by a new attempt elsewhere.
"""

from collections.abc import Callable, Iterable

from trainer.checkpoint.format import Folder
from trainer.checkpoint.store import Store

Fence = Callable[[], None]
"""Raises if this process must not write any more."""


def unfenced() -> None:
    """A fence that never raises, for folders that no other process writes to."""


class FencedStore:
    """A `store` whose changes are preceded by a call of `fence`; reading is not."""

    def __init__(self, store: Store, fence: Fence) -> None:
        self._store, self._fence = store, fence
        self.poll_seconds = store.poll_seconds

    def part(self, name: str, token: str) -> str:
        """As `Store.part`."""
        return self._store.part(name, token)

    def begin(self, part: str) -> None:
        """As `Store.begin`, fenced."""
        self._fence()
        self._store.begin(part)

    def write(self, path: str, blocks: Iterable[memoryview]) -> None:
        """As `Store.write`, fenced."""
        self._fence()
        self._store.write(path, blocks)

    def publish(self, part: str, name: str) -> None:
        """As `Store.publish`, fenced."""
        self._fence()
        self._store.publish(part, name)

    def replace(self, path: str, content: bytes) -> None:
        """As `Store.replace`, fenced."""
        self._fence()
        self._store.replace(path, content)

    def read(self, path: str) -> bytes | None:
        """As `Store.read`."""
        return self._store.read(path)

    def saved(self) -> list[int]:
        """As `Store.saved`."""
        return self._store.saved()

    def folder(self, name: str) -> Folder:
        """As `Store.folder`."""
        return self._store.folder(name)

    def remove(self, path: str) -> None:
        """As `Store.remove`, fenced."""
        self._fence()
        self._store.remove(path)

    def sweep(self, name: str, living: str | None = None) -> None:
        """As `Store.sweep`, fenced."""
        self._fence()
        self._store.sweep(name, living)
