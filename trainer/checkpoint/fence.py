"""A store that asks before every change: processes of a run may outlive their right to write."""

from collections.abc import Callable, Iterable

from trainer.checkpoint.format import Folder
from trainer.checkpoint.store import Store

Fence = Callable[[], None]
"""Raises where this process must not write any more."""


def unfenced() -> None:
    """The fence of whoever shares its folder with nobody."""


class FencedStore:
    """`store` behind a `fence`."""

    def __init__(self, store: Store, fence: Fence) -> None:
        self._store, self._fence = store, fence
        self.poll_seconds = store.poll_seconds

    def part(self, name: str, token: str) -> str:
        """The store's."""
        return self._store.part(name, token)

    def begin(self, part: str) -> None:
        """Fenced."""
        self._fence()
        self._store.begin(part)

    def write(self, path: str, blocks: Iterable[memoryview]) -> None:
        """Fenced."""
        self._fence()
        self._store.write(path, blocks)

    def publish(self, part: str, name: str) -> None:
        """Fenced."""
        self._fence()
        self._store.publish(part, name)

    def replace(self, path: str, content: bytes) -> None:
        """Fenced."""
        self._fence()
        self._store.replace(path, content)

    def read(self, path: str) -> bytes | None:
        """The store's."""
        return self._store.read(path)

    def saved(self) -> list[int]:
        """The store's."""
        return self._store.saved()

    def folder(self, name: str) -> Folder:
        """The store's."""
        return self._store.folder(name)

    def remove(self, path: str) -> None:
        """Fenced."""
        self._fence()
        self._store.remove(path)

    def sweep(self, name: str, living: str | None = None) -> None:
        """Fenced."""
        self._fence()
        self._store.sweep(name, living)
