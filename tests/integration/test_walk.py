"""docs/operations.md followed literally: its first commands typed, what they print compared."""

import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operations.md"


def commands(text):
    """Each command of the page's console blocks with what it should print.

    ``$`` begins a command and ``>`` goes on with it; a last line ``[2]`` is the exit status.
    """
    for block in re.findall(r"^```console\n(.*?)^```", text, re.S | re.M):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            lines = part.splitlines()
            typed = [lines.pop(0)]
            while lines and lines[0].startswith("> "):
                typed.append(lines.pop(0)[2:])
            status = int(lines.pop()[1:-1]) if lines and re.fullmatch(r"\[\d+\]", lines[-1]) else 0
            yield "\n".join(typed), "".join(line + "\n" for line in lines), status


def matches(wanted, printed):
    """Whether the wanted lines come in this order; between them others may."""
    rest = iter(line.rstrip() for line in printed.splitlines())
    check = doctest.OutputChecker().check_output
    return all(
        any(check(line + "\n", found + "\n", doctest.ELLIPSIS) for found in rest)
        for line in wanted.splitlines()
        if line != "..."
    )


def test_what_matches():
    assert matches("a\n...\nc 1...\n", "a\nb\nc 12\nd\n")
    assert not matches("c\na\n", "a\nb\nc\n")
    assert not matches("error: x\n", "error: y\n")
    assert list(commands("```console\n$ a\n> b\nc\n[2]\n$ d\n```\n")) == [
        ("a\nb", "c\n", 2),
        ("d", "", 0),
    ]


def test_the_page_is_true(tmp_path):
    """A page without commands would test nothing."""
    found = list(commands(PAGE.read_text()))
    assert len(found) > 10
    (tmp_path / "monitoring").symlink_to(ROOT / "monitoring")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "COLUMNS": "120", "PYTHONPATH": str(ROOT)}
    for typed, wanted, status in found:
        if typed.startswith("promtool") and shutil.which("promtool") is None:
            continue
        done = subprocess.run(
            ["bash", "-c", typed],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        told = f"$ {typed}\n{done.stdout}"
        assert done.returncode == status, told
        if wanted:
            assert matches(wanted, done.stdout), f"{told}\nwanted:\n{wanted}"
        elif not typed.startswith("cat"):
            assert not done.stdout, told
