"""``python -m tests.fuzz [--inputs N] [--seed S] [TARGET ...]``: damaged files for every reader."""

import argparse
import sys
import time
from datetime import timedelta

from tests.fuzz.harness import fuzz, work
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Runs the targets one after the other; exit status 1 when any of them found something."""
    if sys.argv[1:2] == ["--work"]:  # how `fuzz` starts its process
        names, first, last, seed = sys.argv[2:]
        work({n: TARGETS[n] for n in names.split(",")}, range(int(first), int(last)), int(seed))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--inputs", type=int, default=100_000, help="of each target")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    names = given.targets or list(TARGETS)
    began = time.monotonic()

    def tell(name: str, number: int) -> None:
        done = names.index(name) * given.inputs + number + 1
        if done % 50 == 0:
            rate = done / (time.monotonic() - began)
            left = timedelta(seconds=round((len(names) * given.inputs - done) / rate))
            line = f"{name}: {number + 1:,} of {given.inputs:,}, {rate:,.0f}/s, {left} left"
            print(f"\r{line:<70}", end="", flush=True)

    found = fuzz(names, range(given.inputs), given.seed, tell)
    print("\r" + " " * 70, end="\r")
    for name in names:
        print(f"{name}: {found.get(name, f'{given.inputs:,} inputs, nothing found')}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
