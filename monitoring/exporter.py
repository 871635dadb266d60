"""Serves a process's metrics over HTTP and tells Prometheus where."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server


@contextmanager
def serving(
    registry: CollectorRegistry,
    target_file: Path,
    labels: dict[str, str],
    port: int | None = None,
    host: str = "127.0.0.1",
) -> Iterator[int]:
    """An endpoint, and `target_file` for Prometheus' file_sd_configs; any free port when None.

    The file goes with a good end and stays after an error or a kill: Prometheus then finds nobody
    there (``up`` is 0) and can say so. It names the run, which is the folder above the file's.
    What the process itself uses (cores, memory) is served as well.
    """
    ProcessCollector(registry=registry)
    server, thread = start_http_server(port or 0, host, registry)
    bound = int(server.server_port)
    name = host if host != "0.0.0.0" else socket.gethostname()
    target = {"targets": [f"{name}:{bound}"], "labels": {"run": _run_of(target_file), **labels}}
    target_file.parent.mkdir(parents=True, exist_ok=True)
    part = target_file.with_suffix(".part")
    text = json.dumps([target])
    part.write_text(text)
    part.rename(target_file)
    try:
        yield bound
        if target_file.exists() and target_file.read_text() == text:  # not a later attempt's
            target_file.unlink()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _run_of(target_file: Path) -> str:
    return target_file.resolve().parents[1].name
