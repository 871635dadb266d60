"""Serves a process's metrics over HTTP and tells Prometheus where."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from monitoring.endpoint import reached_at
from untrusted.files import no_link

Application = Callable[..., Iterable[bytes]]
"""Of WSGI."""


class Scrapes:
    """What Prometheus has asked for; a browser, or the live page, is not Prometheus."""

    def __init__(self) -> None:
        self._any, self._wanted, self._made = False, threading.Event(), threading.Event()

    def noting(self, application: Application) -> Application:
        """The same application, with its scrapes noted."""

        def noted(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            wanted = self._wanted.is_set()
            answer = application(environ, start_response)
            if "HTTP_X_PROMETHEUS_SCRAPE_TIMEOUT_SECONDS" in environ:
                self._any = True
                if wanted:
                    self._made.set()
            return answer

        return noted

    def one_more(self, seconds: float) -> None:
        """Waits for a scrape that begins now or later; not at all where there was none so far."""
        if self._any:
            self._wanted.set()
            self._made.wait(seconds)


@contextmanager
def serving(
    registry: CollectorRegistry,
    target_file: Path,
    labels: dict[str, str],
    port: int | None = None,
    host: str = "127.0.0.1",
    scrapes: Scrapes | None = None,
) -> Iterator[int]:
    """An endpoint, and `target_file` for Prometheus' file_sd_configs; any free port when None.

    The file goes with a good end and stays after an error or a kill: Prometheus then finds nobody
    there (``up`` is 0) and can say so. It names the run, which is the folder above the file's.
    What the process itself uses (cores, memory) is served as well. `scrapes` are noted.
    """
    ProcessCollector(registry=registry)
    server, thread = start_http_server(port or 0, host, registry)
    if scrapes is not None and (application := server.get_app()) is not None:
        server.set_app(scrapes.noting(application))
    bound = int(server.server_port)
    targets = [reached_at(host, bound)]
    target = {"targets": targets, "labels": {"run": _run_of(target_file), **labels}}
    target_file.parent.mkdir(parents=True, exist_ok=True)
    part = target_file.with_suffix(".part")
    text = json.dumps([target])
    with open(part, "w", encoding="utf-8", opener=no_link) as file:
        file.write(text)
    part.rename(target_file)
    try:
        yield bound
        if (
            target_file.exists() and target_file.read_text(encoding="utf-8") == text
        ):  # not a later attempt's
            target_file.unlink()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _run_of(target_file: Path) -> str:
    return target_file.resolve().parents[1].name
