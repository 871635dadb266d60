"""The configurations that come along, by name: `perennial run demo` needs no file of the user's."""

import difflib
import re
from pathlib import Path

from launch.root import ROOT
from untrusted.errors import InputError

_FOLDER = ROOT / "configs"


def templates() -> dict[str, str]:
    """Every configuration that comes along: its name, and what it says it is (its first sentence),
    by name."""
    return {path.stem: _first_sentence(path) for path in sorted(_FOLDER.glob("*.yaml"))}


def template(name: str) -> Path:
    """The file of a configuration that comes along, called by its name. Raises InputError."""
    known = sorted(path.stem for path in _FOLDER.glob("*.yaml"))
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, cutoff=0.5)
        likely = ", ".join(near or known)
        raise InputError(f"no configuration {name!r} comes along: give one of {likely}")
    return _FOLDER / f"{name}.yaml"


def config_file(given: Path) -> Path:
    """The file that is meant by `given`: itself, or where there is none, the configuration that
    comes along with this name, as `demo` or `configs/demo.yaml`.

    Raises InputError where there is neither.
    """
    bare = given.parent == Path() and not given.suffix
    there = given.exists() and not given.is_dir()  # `photos` may be a folder, too
    if there or not (bare or given == Path("configs") / f"{given.stem}.yaml"):
        return given
    return template(given.stem)


def _first_sentence(path: Path) -> str:
    """The first sentence of the comment that a file begins with."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        words += line[2:].split()
    # not behind an abbreviation, as in Sec. 5.1
    return re.split(r"\. (?=[A-Z])", " ".join(words))[0].rstrip(".:")
