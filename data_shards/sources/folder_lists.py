"""Lists that go with a folder of images: the role of each, and the pairs to verify.

Pairs come as LFW's text, or as CSV. LFW's begins with the numbers of folds and of pairs of a kind
in a fold (``10 300``); then ``name n1 n2`` is a pair of one identity, ``name1 n1 name2 n2`` one of
two, and image n of a name is the file ``name/name_000n``, whatever its suffix.
"""

import csv
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from data_shards.settings import InputError
from data_shards.sources import ROLES
from data_shards.sources.listing import leads_outside
from untrusted.files import read_bytes

_MAX_BYTES = 1 << 30
FOLDS = 10
_TRUTH = {"1": True, "true": True, "0": False, "false": False}


class Pair(NamedTuple):
    """Two images, by key."""

    left: str
    right: str
    same: bool
    fold: int | None = None


class _Line(NamedTuple):
    """A line of a list, for errors."""

    path: Path
    number: int
    text: str

    def wrong(self, what: str) -> InputError:
        return InputError(f"{self.path}, line {self.number}: {what}")


def _lines(path: Path) -> list[_Line]:
    try:
        text = read_bytes(path, _MAX_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path} is not a readable list ({why}): give a text file") from error
    lines = enumerate(text.splitlines(), 1)
    found = [_Line(path, number, line) for number, line in lines if line.strip()]
    if not found:
        raise InputError(f"{path} is empty: give a list, or leave the option out")
    return found


def _rows(
    lines: list[_Line], *columns: str, more: tuple[str, ...] = ()
) -> Iterator[tuple[_Line, dict[str, str]]]:
    """The rows of a CSV file whose first line names the columns."""
    first, *rest = lines
    header = [name.strip().lower() for name in next(csv.reader([first.text]))]
    if not set(columns) <= set(header) <= {*columns, *more}:
        wanted = ",".join(columns) + "".join(f"[,{name}]" for name in more)
        raise first.wrong(f"the first line names the columns: {wanted}")
    for line in rest:
        values = [value.strip() for value in next(csv.reader([line.text]))]
        if len(values) != len(header):
            raise line.wrong(f"{len(values)} values for the columns {','.join(header)}")
        yield line, dict(zip(header, values, strict=True))


def _within(root: Path, name: str, line: _Line) -> str:
    """`name` as a key below `root`."""
    if leads_outside(name) or not (root / name).exists():
        raise line.wrong(f"there is no {name!r} in {root}")
    return Path(name).as_posix()


def read_roles(path: Path, root: Path) -> dict[str, str]:
    """The role of each file or folder that a CSV file with columns path and role names.

    Raises InputError naming the line.
    """
    roles: dict[str, str] = {}
    for line, row in _rows(_lines(path), "path", "role"):
        key = _within(root, row["path"], line)
        if row["role"] not in ROLES:
            raise line.wrong(f"{row['role']!r} is no role: write {', '.join(ROLES)}")
        if key in roles:
            raise line.wrong(f"{key!r} has a role already")
        roles[key] = row["role"]
    return roles


def pairs_table(path: Path, root: Path, below: tuple[str, ...]) -> pa.Table:
    """The table ``pairs`` of a list: left_key, right_key, same, fold.

    Images are looked for in `root`; those of LFW's text in a folder of their identity's name, which
    may also lie in the folders `below` it. Pairs without folds are dealt to ten, each kind in turn.
    Raises InputError naming the line and what is missing.
    """
    lines = _lines(path)
    is_csv = "," in lines[0].text
    pairs = list(_of_csv(lines, root)) if is_csv else list(_of_lfw(lines, _finder(root, below)))
    same = np.array([pair.same for pair in pairs])
    if len(np.unique(same)) < 2:
        raise InputError(f"{path} has pairs of one kind only: verification needs both")
    folds = [pair.fold for pair in pairs]
    if None in folds:
        turn = np.where(same, np.cumsum(same), np.cumsum(~same)) - 1
        folds = (turn % FOLDS).tolist()
    columns = {
        "left_key": pa.array([pair.left for pair in pairs], pa.string()),
        "right_key": pa.array([pair.right for pair in pairs], pa.string()),
        "same": pa.array(same, pa.bool_()),
        "fold": pa.array(folds, pa.int8()),
    }
    return pa.table(columns)


def _of_csv(lines: list[_Line], root: Path) -> Iterator[Pair]:
    for line, row in _rows(lines, "path_a", "path_b", "same", more=("fold",)):
        if (same := _TRUTH.get(row["same"].lower())) is None:
            raise line.wrong(f"same is {row['same']!r}: write 1 or 0")
        fold = None
        if "fold" in row:
            if not (row["fold"].isdecimal() and int(row["fold"]) < 128):
                raise line.wrong(f"fold is {row['fold']!r}: write a number from 0 to 127")
            fold = int(row["fold"])
        left, right = (_within(root, row[side], line) for side in ("path_a", "path_b"))
        yield Pair(left, right, same, fold)


def _of_lfw(lines: list[_Line], find: Callable[[str, str, _Line], str]) -> Iterator[Pair]:
    folds = of_kind = 0
    words = lines[0].text.split()
    if len(words) < 3 and all(word.isdecimal() for word in words):
        folds, of_kind = map(int, words) if len(words) == 2 else (1, int(words[0]))
        if len(lines) - 1 != 2 * folds * of_kind:
            raise lines[0].wrong(f"{2 * folds * of_kind:,} pairs, but {len(lines) - 1:,} follow")
        if folds > 127:
            raise lines[0].wrong(f"{folds} folds: no more than 127 can be kept")
        lines = lines[1:]
    for number, line in enumerate(lines):
        parts = line.text.strip().split("\t") if "\t" in line.text else line.text.split()
        if len(parts) not in (3, 4):
            raise line.wrong("write `name n1 n2`, or `name1 n1 name2 n2`")
        name, first, *other, second = parts
        fold = number // (2 * of_kind) if folds > 1 else None
        left, right = find(name, first, line), find((other or [name])[0], second, line)
        yield Pair(left, right, not other, fold)


def _finder(root: Path, below: tuple[str, ...]) -> Callable[[str, str, _Line], str]:
    @lru_cache(maxsize=1 << 16)
    def files(name: str) -> dict[str, str] | None:
        """By name up to the first dot behind the identity's, the keys of an identity's files."""
        folders = [f for f in (root / name, *(root / b / name for b in below)) if f.is_dir()]
        if leads_outside(name) or not folders:
            return None
        cut = len(name)
        return {
            p.name[:cut] + p.name[cut:].partition(".")[0]: p.relative_to(root).as_posix()
            for folder in folders
            for p in sorted(folder.iterdir())
        }

    def find(name: str, number: str, line: _Line) -> str:
        if not number.isdecimal():
            raise line.wrong(f"{number!r} is no number of an image")
        if (held := files(name)) is None:
            raise line.wrong(f"there is no folder {name!r} in {root}")
        if (key := held.get(f"{name}_{int(number):04d}")) is None:
            raise line.wrong(f"there is no image {name}_{int(number):04d} in {root / name}")
        return key

    return find
