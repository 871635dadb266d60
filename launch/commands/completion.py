"""What a shell offers when it completes a word, found by looking at names of files alone."""

import glob
from pathlib import Path

import typer

from launch.config.keys import keys, read_schema
from monitoring.run_folder import CONFIG_FILE, methods_of


def _paths(begun: str, *endings: str) -> list[Path]:
    """Paths that begin so and end as one of some patterns, or in a folder below such a path."""
    return [Path(found) for end in endings for found in _found(begun, end)]


def _found(begun: str, end: str) -> list[str]:
    return sorted(glob.glob(glob.escape(begun) + end))  # noqa: PTH207 (Path.glob takes no absolute one)


def config_files(incomplete: str) -> list[str]:
    """Configuration files: here, and in configs/ and the like."""
    found = _paths(incomplete, "*.yaml", "*/*.yaml")
    return [str(path) for path in found if path.name != CONFIG_FILE]


def run_folders(incomplete: str) -> list[str]:
    """Run folders: here, and in runs/ and the like."""
    found = _paths(incomplete, f"*/{CONFIG_FILE}", f"*/*/{CONFIG_FILE}")
    return [str(path.parent) for path in found]


def methods(ctx: typer.Context, incomplete: str) -> list[str]:
    """The methods of the run that was named before."""
    # an option whose value is still to come leaves the words before it unread, in `args`
    given = [ctx.params.get("folder"), *(ctx.params.get("runs") or ()), *ctx.args]
    found = {name for folder in given if folder for name in methods_of(Path(folder))}
    return sorted(name for name in found if name.startswith(incomplete))


def overrides(incomplete: str) -> list[str]:
    """Configuration keys that begin so."""
    names = (key.name for key in keys(read_schema()))
    return [f"{name}=" for name in names if name.startswith(incomplete) and "NAME" not in name]
