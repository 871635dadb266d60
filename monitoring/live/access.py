"""Who may look: the rules of the live page, as functions of a request's words."""

import hmac
import ipaddress
from urllib.parse import urlsplit

LOCAL = ("localhost", "127.0.0.1", "::1")
TOKEN_CHARACTERS = 16

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}
REPORT_POLICY = (
    "sandbox allow-downloads; default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def is_local(host: str) -> bool:
    """Whether an address to listen on is this machine's alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_is_local(header: str | None) -> bool:
    """Whether a Host header names this machine: another name may be a stranger's page whose name
    was made to resolve to 127.0.0.1."""
    try:
        return header is not None and urlsplit(f"//{header}").hostname in LOCAL
    except ValueError:
        return False


def matches(given: str | None, token: str) -> bool:
    """Whether `given` is the token, in a time that does not tell how much of it is right."""
    return given is not None and hmac.compare_digest(
        given.encode("utf-8", "surrogateescape"), token.encode()
    )


def bearer(header: str | None) -> str | None:
    """The token of an Authorization header."""
    kind, _, token = (header or "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None
