"""Serves a process's metrics over HTTP and tells Prometheus where."""

import json
import socket
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server


def serve_metrics(
    registry: CollectorRegistry,
    target_file: Path,
    labels: dict[str, str],
    port: int | None = None,
    host: str = "127.0.0.1",
) -> int:
    """Starts an endpoint and writes `target_file` for Prometheus' file_sd_configs.

    Returns the port; any free one when `port` is None.
    """
    server, _ = start_http_server(port or 0, host, registry)
    bound = int(server.server_port)
    name = host if host != "0.0.0.0" else socket.gethostname()
    target_file.parent.mkdir(parents=True, exist_ok=True)
    part = target_file.with_suffix(".part")
    part.write_text(json.dumps([{"targets": [f"{name}:{bound}"], "labels": labels}]))
    part.rename(target_file)
    return bound
