"""Readers of original datasets: one file a format, each yielding `SourceImage`s."""

from typing import NamedTuple

ROLES = ("train", "query", "gallery", "distractor")
"""What a source says an image is for; `samples.parquet` holds the position in this tuple."""


class SourceImage(NamedTuple):
    """One image as the source has it."""

    image: bytes
    """Encoded bytes."""
    identity: str
    """Who or what it shows: stable, and unique across sources."""
    camera: str
    """Who or what took it."""
    key: str
    """Names the image within the source."""
    role: str = ROLES[0]
    """One of `ROLES`: re-id sets come divided; where a source does not say, it is "train"."""
