"""Errors about files that are not there: they are told before anything slow is imported."""

from pathlib import Path

from monitoring.run_folder import CONFIG_FILE
from untrusted.errors import InputError


def no_config(path: Path) -> InputError:
    """That there is no configuration file at `path`, and which there are beside it."""
    known = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml"))) or "none there"
    return InputError(
        f"{path} does not exist (in {path.parent}: {known}); `perennial init` writes one for your "
        "images, `perennial init --list` shows those that come along"
    )


def no_run(folder: Path) -> InputError:
    """That a folder is none of a run."""
    return InputError(f"{folder} is no run folder (no {CONFIG_FILE}): give one, such as runs/demo")
