"""Which code this is, for records of what was made by it."""

import subprocess
from functools import cache
from pathlib import Path

from launch.root import ROOT


@cache
def commit() -> str:
    """The commit of this code, with a + where files differed from it; "unknown" outside of its
    repository."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, encoding="utf-8", check=True
        )
        return done.stdout.strip()

    try:
        # of a checkout of ours alone: an installed copy may lie within another project's
        if Path(git("rev-parse", "--show-toplevel")) != ROOT:
            return "unknown"
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
