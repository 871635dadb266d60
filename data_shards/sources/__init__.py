"""Readers of original datasets: one file a format, each yielding `SourceImage`s."""

from typing import NamedTuple

ROLES = ("train", "query", "gallery", "distractor")
"""What an image is for, as its source declares it; `samples.parquet` holds the index in this."""
UNKNOWN_CAMERA = "unknown"
"""The camera of images whose source does not record it."""
MAX_ENCODED_BYTES = 1 << 28
"""Files larger than this are no single picture; readers refuse them before reading them."""


class SourceImage(NamedTuple):
    """One image as the source has it."""

    image: bytes
    """Encoded bytes."""
    identity: str
    """Who or what it shows: stable, and unique across sources."""
    camera: str
    """The camera, or what counts as one, such as a font."""
    key: str
    """Names the image within the source."""
    role: str = ROLES[0]
    """One of `ROLES`; "train" for sources that do not come divided."""


class Refusal(NamedTuple):
    """An item of a source that cannot be taken as an image."""

    key: str
    """Names it within the source."""
    identity: str
    """Whose it would have been; empty if that is not known."""
    reason: str
    """The kind of fault, from a small set: refusals are counted by it."""
    why: str
    """What exactly is wrong."""
    counts: bool = True
    """Whether it counts as a refused image; a file that is no image by its name does not."""


def named(prefix: str, name: str) -> str:
    """``prefix/name``, or the name alone when there is no prefix."""
    return f"{prefix}/{name}" if prefix else name
