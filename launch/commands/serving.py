"""``perennial serve``: the live page of a folder of runs."""

import asyncio
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from data_shards.settings import InputError
from monitoring.endpoint import joined
from monitoring.live.access import TOKEN_CHARACTERS, is_local
from monitoring.live.server import Page, serve
from monitoring.run_folder import is_run

_VARIABLE = "PERENNIAL_SERVE_TOKEN"


def token_for(host: str, given: str | None) -> tuple[str | None, bool]:
    """The token that the page requires, if any, and whether it was generated here.

    Beyond localhost there is always one. Raises InputError for a given token that is too weak.
    """
    if given:
        if len(given) < TOKEN_CHARACTERS or not (given.isascii() and given.isprintable()):
            raise InputError(
                f"{_VARIABLE} must be {TOKEN_CHARACTERS} or more ASCII characters: "
                "leave it unset to have one made"
            )
        return given, False
    return (None, False) if is_local(host) else (secrets.token_urlsafe(32), True)


def serve_runs(
    folder: Path,
    host: str,
    port: int,
    prometheus: str | None,
    scrape: tuple[str, ...],
    say: Callable[[str], None],
) -> None:
    """Serves the page until Ctrl-C. Raises InputError."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give the one that holds the runs, such as runs")
    if is_run(folder):
        raise InputError(
            f"{folder} is one run: give the folder above it, {folder.resolve().parent}"
        )
    if prometheus is not None and urlsplit(prometheus).scheme not in ("http", "https"):
        raise InputError(f"--prometheus {prometheus} is no URL such as http://127.0.0.1:9090")
    token, made = token_for(host, os.environ.get(_VARIABLE))

    def ready(bound: int) -> None:
        # a token that the user gave is not printed: it would be in terminals and logs
        suffix = f"/?token={token}" if made else "/"
        say(f"{folder}: http://{joined(host, bound)}{suffix}")
        if token is not None and not made:
            say(f"it asks for the token of {_VARIABLE}: add ?token=TOKEN to the address")

    try:
        asyncio.run(
            serve(
                Page(folder=folder, host=host, token=token, prometheus=prometheus, scrape=scrape),
                port,
                ready,
            )
        )
    except OSError as error:
        raise InputError(
            f"cannot listen on {host} port {port} ({error.strerror or error}): choose another "
            "with --host or --port"
        ) from error
    except KeyboardInterrupt:
        return
