"""Builds the wheel, in which this program is one package.

The repository's packages have names that others use, too: a `trainer.py` of the user's would be
imported in place of `trainer`, and two distributions with a `launch` overwrite each other's files.
So a wheel has them within `perennial`, and their imports are written accordingly. Nothing else of
a source changes, no line moves. An editable installation is the repository itself.
"""

import ast
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

WHOLE = "perennial"
PARTS = ("data_shards", "launch", "monitoring", "trainer", "untrusted")
DATA = ("configs", "k8s")
"""Folders beside the packages that commands read."""


def within(source: str) -> str:
    """`source` with the imports of this program's packages as they are within `perennial`."""
    lines = source.encode().splitlines(keepends=True)  # ast counts columns in bytes
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            if any(one.name.split(".")[0] in PARTS for one in node.names):
                raise ValueError(f"line {node.lineno}: write it as `from PACKAGE import NAME`")
        elif isinstance(node, ast.ImportFrom) and not node.level:
            own, line = str(node.module).split(".")[0], lines[node.lineno - 1]
            if own in PARTS:
                before, after = line[: node.col_offset], line[node.col_offset :]
                after = after.replace(f"from {own}".encode(), f"from {WHOLE}.{own}".encode(), 1)
                lines[node.lineno - 1] = before + after
    return b"".join(lines).decode()


class BuildPy(build_py):
    """Puts the packages into one."""

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        built = Path(self.build_lib)
        shutil.rmtree(built, ignore_errors=True)  # what an earlier build left would be packed, too
        super().run()
        for name in PARTS:
            (built / name).rename(built / WHOLE / name)
        for path in built.rglob("*.py"):
            path.write_text(within(path.read_text(encoding="utf-8")), encoding="utf-8")
        for name in DATA:
            shutil.copytree(name, built / WHOLE / name)


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildPy})
