"""The installed packages that this product needs, and their comparison with another machine's."""

import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement

from data_shards.settings import InputError

DISTRIBUTION = "perennial-id"
_SHOWN = 5


def installed(root: str = DISTRIBUTION) -> dict[str, str]:
    """The installed version of every package that `root` needs, directly or not, by name."""
    found: dict[str, str] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(root, frozenset())]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        if name != root:
            found[name] = version(name)
        for requirement in map(Requirement, needed):
            marker = requirement.marker
            asked = extras or {""}
            if marker and not any(marker.evaluate({"extra": extra}) for extra in asked):
                continue
            child = (requirement.name.lower(), frozenset(requirement.extras))
            if child not in seen:
                seen.add(child)
                waiting.append(child)
    return dict(sorted(found.items()))


def own_version() -> str:
    """The installed version of this product; empty if it runs from its folder."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return ""


def differences(wanted: dict[str, str]) -> list[str]:
    """Lines on the packages whose installed version is not the one of `wanted`."""
    found = []
    for name, exact in wanted.items():
        try:
            here = version(name)
        except PackageNotFoundError:
            here = "nothing"
        if here != exact:
            found.append(f"{name} {exact} is needed, {here} is here")
    return found


def write_lock(path: Path) -> None:
    """Writes `installed` as lines NAME==VERSION."""
    path.write_text(
        "".join(f"{name}=={exact}\n" for name, exact in installed().items()), encoding="utf-8"
    )


def check_lock(path: Path) -> None:
    """Raises InputError if this machine has other versions of packages than `path` lists."""
    lines = (line.partition("==") for line in path.read_text(encoding="utf-8").split())
    odd = differences({name: exact for name, _, exact in lines})
    if odd:
        more = f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
        raise InputError(
            f"this machine has other packages than the one that sent the run: "
            f"{'; '.join(odd[:_SHOWN])}{more}: install the same requirements.lock on both"
        )


def main() -> None:
    """Checks the lock file named on the command line; exits with status 2 if packages differ."""
    try:
        check_lock(Path(sys.argv[1]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
