"""Copies within a run folder that share their bytes."""

import os
import shutil
from pathlib import Path


def link(source: Path, target: Path) -> None:
    """Makes `target` a copy of `source` that shares its bytes where the file system can."""
    part = target.with_name(f".{target.name}.link")
    part.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(part, ignore_errors=True)

    def copy(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)

    if source.is_dir():
        shutil.copytree(source, part, copy_function=copy)
        shutil.rmtree(target, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)
        copy(str(source), str(part))
    part.replace(target)
