"""Imports that are killed, each at another write boundary, and then go on.

``python -m tests.data_shards.import_kills SOURCE FOLDER`` forks an importer into FOLDER/n for
n = 1, 2, ...: it dies by SIGKILL at its n-th boundary (opening a file to write, renaming, removing,
making a folder), and a second one goes on with what it left. Ends when an importer has no n-th
boundary, and prints what each died at.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from data_shards.settings import InputError
from data_shards.sources.folder import FolderSettings
from data_shards.writing.importing import import_source

EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")


def die_at(n: int) -> None:
    """Arms this process."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in EVENTS or (event == "open" and not arguments[2] & os.O_ACCMODE):
            return
        seen += 1
        if seen == n:
            print(event, Path(os.fsdecode(arguments[0])).name, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def importer(source: Path, out: Path, n: int | None) -> int:
    """One life of an importer; how it ended."""
    child = os.fork()
    if child == 0:
        if n is not None:
            die_at(n)
        try:
            import_source("folder", FolderSettings(path=source), out, None, 3, 0.5)
        except InputError as error:
            os._exit("already holds a dataset" not in str(error))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(source: Path, folder: Path) -> None:
    """Kills them all."""
    Image.preinit()  # once for all of them
    n, ended = 1, -signal.SIGKILL
    while ended == -signal.SIGKILL:
        ended = importer(source, folder / str(n), n)
        if ended == -signal.SIGKILL and importer(source, folder / str(n), None) != 0:
            raise SystemExit(f"what was left by the importer killed at {n} cannot be gone on with")
        n += 1
    if ended != 0:
        raise SystemExit(f"importer {n - 1} ended with {ended}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
