"""Readers of original datasets: one file a format, each yielding `SourceImage`s."""

from typing import NamedTuple


class SourceImage(NamedTuple):
    """One image as the source has it."""

    image: bytes
    """Encoded JPEG bytes."""
    identity: str
    """Who or what it shows: stable, and unique across sources."""
    camera: str
    """Who or what took it."""
    key: str
    """Names the image within the source."""
