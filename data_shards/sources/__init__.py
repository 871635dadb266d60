"""Readers of original datasets: one file a format, each yielding `SourceImage`s."""

from typing import NamedTuple

ROLES = ("train", "query", "gallery", "distractor")
"""What a source says an image is for; `samples.parquet` holds the position in this tuple."""
UNKNOWN_CAMERA = "unknown"
"""The camera of images whose source does not say who took them."""
MAX_ENCODED_BYTES = 1 << 28
"""Files larger than this are no single picture; readers refuse them before reading them."""


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


class Refusal(NamedTuple):
    """Something that a source holds in an image's place and that cannot be taken."""

    key: str
    """Names it within the source."""
    identity: str
    """Whose it would have been; empty if that is not known."""
    reason: str
    """The kind of fault, one of few: refusals are counted by it."""
    why: str
    """What exactly is wrong."""
    counts: bool = True
    """Whether it counts as a refused image; a file that is no image by its name does not."""


def named(prefix: str, name: str) -> str:
    """``prefix/name``, or the name alone when there is no prefix."""
    return f"{prefix}/{name}" if prefix else name
