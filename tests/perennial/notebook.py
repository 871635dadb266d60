"""Executes a notebook's cells one after the other: `python notebook.py FILE`, in an empty folder.

Lines that begin with an exclamation mark go to a shell, as in Jupyter, and the seconds they took
are printed. Nothing is imported but the standard library: it is for environments without the tests.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def cells(notebook: Path) -> list[str]:
    """The sources of the cells of code."""
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def execute(notebook: Path) -> None:
    """Executes all cells; the first that fails raises."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells(notebook)):
        if cell.startswith("!"):
            for line in cell.replace("\\\n", " ").splitlines():
                begun = time.monotonic()
                subprocess.run(["bash", "-c", line.removeprefix("!")], check=True)
                print(f"{time.monotonic() - begun:.1f} s: {line.removeprefix('!')}", flush=True)
        else:
            exec(compile(cell, f"cell {number}", "exec"), names)


if __name__ == "__main__":
    execute(Path(sys.argv[1]))
