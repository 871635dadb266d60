"""Feeds a reader of strangers' files with damaged ones, in a process with bounded time and memory.

A target writes a good file into a folder, one of its files is damaged in a way that only the seed
and the input's number decide, and the reader is run. It may succeed or raise InputError with one
line. Anything else is a find: another exception, a process that died, more than `CPU_SECONDS` or
`MEMORY` for one input. ``python -m tests.fuzz`` runs many inputs, the tests some.
"""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutate import mutations
from untrusted.errors import InputError
from untrusted.text import printable

CPU_SECONDS = 10
"""Of one input; past them the kernel ends the process."""
MEMORY = 1 << 30
"""Bytes beyond what the process has when it begins."""
_NUMBERS = (
    0,
    1,
    -1,
    127,
    255,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    -(2**63),
)


@dataclass(frozen=True)
class Target:
    """A reader of strangers' files."""

    good: Callable[[Path], Path]
    """Writes whatever the reader needs into a folder; returns the file to damage."""
    read: Callable[[Path], object]
    """Reads the folder to the end."""
    repair: Callable[[Path], None] = lambda folder: None
    """Makes hashes right again after the damage, so that the reader gets past them."""


def mutated(content: bytes, chance: random.Random) -> bytes:
    """`content` damaged: as JSON where it is JSON, else or by chance as bytes."""
    if chance.random() < 0.5:
        lines = content.split(b"\n")
        number = chance.randrange(len(lines))
        for whole, put in (
            (content, lambda new: new),
            (lines[number], lambda new: b"\n".join([*lines[:number], new, *lines[number + 1 :]])),
        ):
            try:
                value = json.loads(whole)
            except (ValueError, RecursionError):
                continue
            return put(mutations(value, chance.getrandbits(32)))
    out = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        _damage(out, chance)
    return bytes(out)


def _damage(out: bytearray, chance: random.Random) -> None:
    """One change of bytes."""
    at = chance.randrange(len(out) + 1)
    length = min(len(out) - at, chance.choice((1, 2, 4, 8, 64, 512)))
    kind = chance.randrange(8)
    if kind == 0 and at < len(out):
        out[at] ^= 1 << chance.randrange(8)
    elif kind == 1:
        out[at : at + length] = chance.randbytes(length)
    elif kind == 2:
        del out[at:]
    elif kind == 3:
        del out[at : at + length]
    elif kind == 4:
        out[at:at] = out[at : at + length] * chance.choice((1, 2, 300))
    elif kind == 5:
        size, order = chance.choice((1, 2, 4, 8)), chance.choice(("little", "big"))
        number = chance.choice(_NUMBERS) % (1 << 8 * size)
        out[at : at + size] = number.to_bytes(size, order)
    elif kind == 6 and (digits := list(re.finditer(rb"-?\d+", out))):
        found = chance.choice(digits)
        out[found.start() : found.end()] = str(chance.choice(_NUMBERS)).encode()
    else:
        source = chance.randrange(len(out) + 1)
        out[at : at + length] = out[source : source + length]


def work(targets: dict[str, Target], inputs: range, seed: int) -> None:
    """Runs `inputs` of each target in this process and prints what happens as lines of JSON."""
    memory = Path("/dev/shm")  # thousands of small files: a disk would take most of the time
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=place) as made:
        goods = {name: _prepared(target, Path(made) / name) for name, target in targets.items()}
        _bound_memory()
        for name, target in targets.items():
            for number in inputs:
                print(json.dumps([name, number]), flush=True)
                damaged = mutated(goods[name].content, random.Random(f"{seed} {name} {number}"))
                if problem := tried(target, goods[name], damaged):
                    kept = Path(tempfile.gettempdir()) / f"fuzz-find-{name}-{number}"
                    kept.write_bytes(damaged)
                    print(json.dumps({"problem": problem, "kept": str(kept)}), flush=True)
                    break
    print(json.dumps("done"), flush=True)


@dataclass(frozen=True)
class Good:
    """A target's good files, and a copy in which one of them is damaged."""

    fresh: Path
    tried: Path
    name: Path
    """The file that is damaged."""
    content: bytes
    """What it holds when it is not."""


def _prepared(target: Target, folder: Path) -> Good:
    """Writes a target's files and reads them: a good one is read, and all imports are made."""
    good = Good(folder / "good", folder / "tried", Path(), b"")
    good.fresh.mkdir(parents=True)
    file = target.good(good.fresh)
    shutil.copytree(good.fresh, good.tried)
    target.read(good.tried)
    return Good(good.fresh, good.tried, file.relative_to(good.fresh), file.read_bytes())


def tried(target: Target, good: Good, damaged: bytes) -> str:
    """What is wrong with how the reader takes `damaged`; empty: nothing."""
    shutil.rmtree(good.tried)
    shutil.copytree(good.fresh, good.tried)
    (good.tried / good.name).write_bytes(damaged)
    target.repair(good.tried)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process
    try:
        target.read(good.tried)
    except InputError as error:
        if printable(str(error)) != str(error):
            return f"an error that is not one line of text: {str(error)[:300]!r}"
    except Exception:
        return traceback.format_exc()[-1500:]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return ""


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def fuzz(
    names: Iterable[str],
    inputs: range,
    seed: int = 0,
    progress: Callable[[str, int], None] = lambda name, number: None,
) -> dict[str, str]:
    """Runs `inputs` of each target in a process of its own, or several after one that died.

    Returns what was found, by target. `progress` is told the target and the input's number.
    """
    waiting, found = list(names), dict[str, str]()
    while waiting:
        command = [sys.executable, "-m", "tests.fuzz", "--work", ",".join(waiting)]
        command += [str(inputs.start), str(inputs.stop), str(seed)]
        name, number, whole = waiting[0], inputs.start, False
        with tempfile.TemporaryFile() as errors:
            worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            assert worker.stdout is not None
            for line in worker.stdout:
                try:
                    told = json.loads(line)
                except ValueError:  # native libraries print, too
                    continue
                if isinstance(told, list):
                    name, number = told
                    progress(name, number)
                elif isinstance(told, dict):
                    found[name] = f"input {number}, kept as {told['kept']}: {told['problem']}"
                else:
                    whole = True
            status = worker.wait()
            errors.seek(0)
            said = errors.read().decode(errors="replace")[-1500:]
        if whole:
            break
        found[name] = f"the process died at input {number} with status {status}: {said}"
        waiting = waiting[waiting.index(name) + 1 :]
    return found
