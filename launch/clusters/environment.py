"""The packages that this product runs with, and whether another machine has the same ones."""

import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement

from data_shards.settings import InputError

DISTRIBUTION = "perennial-id"
_SHOWN = 5


def installed(root: str = DISTRIBUTION) -> dict[str, str]:
    """Exact versions of everything that `root` needs here, by name, `root` itself left out."""
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
    """Of this product, as it was installed; empty where it runs from its folder alone."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return ""


def differences(wanted: dict[str, str]) -> list[str]:
    """What is here of other packages than those `wanted`, in words."""
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
    """Raises InputError where this machine has other packages than `path` names."""
    lines = (line.partition("==") for line in path.read_text(encoding="utf-8").split())
    odd = differences({name: exact for name, _, exact in lines})
    if odd:
        more = f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
        raise InputError(
            f"this machine has other packages than the one that sent the run: "
            f"{'; '.join(odd[:_SHOWN])}{more}: install the same requirements.lock on both"
        )


def main() -> None:
    """Checks the lock file that is named on the command line; exits with 2 if it does not hold."""
    try:
        check_lock(Path(sys.argv[1]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
