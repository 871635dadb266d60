"""A host and a port as one address."""

import socket

EVERY = ("0.0.0.0", "::")
"""What a server listens on to be reached at any of its machine's addresses."""


def joined(host: str, port: int) -> str:
    """``HOST:PORT``; an IPv6 address in brackets, as URLs, Prometheus and Ray want it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reached_at(host: str, port: int) -> str:
    """Where others reach a server of this machine that listens on `host`."""
    return joined(socket.gethostname() if host in EVERY else host, port)
