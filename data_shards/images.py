"""Converts encoded images to what training reads: 8-bit grey or RGB JPEGs that DALI decodes, or
RGB PNGs where not a bit of a pixel may change."""

import io
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import Field

from data_shards.settings import InputError, Settings, Size
from data_shards.sources import MAX_ENCODED_BYTES
from untrusted.pictures import FORMATS, MAX_PIXELS, MOST_PIXELS, BadPicture, open_picture

__all__ = [
    "FORMATS",
    "Checked",
    "ImageSettings",
    "Unfit",
    "as_jpeg",
    "normalise",
    "normalise_all",
    "pixels_of",
    "png_of",
]
_ORIENTATION = 0x0112
_START_OF_SCAN = 0xDA


class ImageSettings(Settings):
    """What images are made on their way into a dataset."""

    size: Size | None = None
    """Height and width that every image is scaled to, without keeping its shape, pixels; none:
    images stay as large as they are."""
    quality: int = Field(default=95, ge=1, le=100)
    """JPEG quality of images that had to be encoded anew; colour is not subsampled."""
    png: bool = Field(default=False, exclude=True)
    """Whether RGB PNGs stay as they are, byte for byte; else they are made JPEGs. For memories of
    exemplars: imports do not set it, nor do manifests name it."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, le=MOST_PIXELS)
    """Images with more pixels than this are refused: decoded they would fill the memory."""


class Checked(NamedTuple):
    """An accepted image."""

    jpeg: bytes | None
    """The JPEG to store; none: the bytes that were given, which may be a PNG."""
    height: int
    width: int
    crc32: int
    """Of the image to store."""


class Unfit(NamedTuple):
    """Why an image is refused."""

    reason: str
    """The kind of fault; see `Refusal.reason`."""
    why: str


def _has_plain_header(jpeg: bytes) -> bool:
    """Whether the JPEG's segments follow each other up to the scan.

    Pillow skips stray bytes in between; DALI refuses them, and drops the whole pipeline.
    """
    at = 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] not in (0x00, 0xFF):
        if jpeg[at + 1] == _START_OF_SCAN:
            return True
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return False


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation, 1 when upright; None when the EXIF block cannot be read."""
    if "exif" not in image.info and "xmp" not in image.info:
        return 1
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow's EXIF reader raises whatever it runs into
        return None
    return found if isinstance(found, int) else None


def _rgb(image: Image.Image) -> Image.Image:
    """`image` as 8-bit RGB: 16-bit grey by its upper byte, transparency over white.

    Raises ValueError for pixels without an agreed range.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of kind {image.mode!r} have no agreed range")
    if "A" in image.getbands() or "transparency" in image.info:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("RGB")


def normalise(image: bytes, settings: ImageSettings) -> Checked | Unfit:
    """Decodes `image` completely and returns what to store for it, or why it is refused.

    A grey or RGB JPEG that is upright, well-formed and of the set size stays byte for byte, and so
    does an RGB PNG where `settings` say so; all else that Pillow decodes becomes an RGB JPEG.
    """
    if not image:
        return Unfit("empty", "it has no bytes")
    if len(image) > MAX_ENCODED_BYTES:
        return Unfit("too large", f"{len(image):,} bytes, more than {MAX_ENCODED_BYTES:,}")
    try:
        opened = open_picture(image, settings.max_pixels)
        size = (opened.height, opened.width)
        jpeg = opened.format in ("JPEG", "MPO")
        as_it_is = jpeg and opened.mode in ("L", "RGB") and settings.size in (None, size)
        if as_it_is and _orientation(opened) == 1 and _has_plain_header(image):
            return Checked(None, opened.height, opened.width, zlib.crc32(image))
        png = settings.png and opened.format == "PNG" and opened.mode == "RGB"
        if png and settings.size in (None, size) and "transparency" not in opened.info:
            return Checked(None, opened.height, opened.width, zlib.crc32(image))
        return _encoded(opened, settings)
    except BadPicture as bad:
        return Unfit(bad.reason, bad.why)
    except Exception as error:  # Pillow raises whatever it runs into when it converts and turns
        return Unfit("damaged", " ".join(str(error).split()) or type(error).__name__)


def _encoded(image: Image.Image, settings: ImageSettings) -> Checked:
    if _orientation(image) not in (1, None):
        image = ImageOps.exif_transpose(image)
    image = _rgb(image)
    if settings.size is not None:
        image = image.resize(settings.size[::-1], Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.info = {}
    image.save(out, "JPEG", quality=settings.quality, subsampling=0)
    jpeg = out.getvalue()
    return Checked(jpeg, image.height, image.width, zlib.crc32(jpeg))


def normalise_all(images: Sequence[bytes], settings: ImageSettings) -> list[Checked | Unfit]:
    """`normalise` of each image: a unit of work for another process."""
    return [normalise(image, settings) for image in images]


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels [h, w, 3] of an opened picture as an import sees them: upright, RGB, transparency
    over white. Raises InputError for pixels without an agreed range."""
    if _orientation(image) not in (1, None):
        image = ImageOps.exif_transpose(image)
    try:
        return np.asarray(_rgb(image))
    except ValueError as error:
        raise InputError(f"{error}: convert the image to mode RGB") from error


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    """An RGB picture [H, W, 3] as PNG: without loss."""
    out = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(out, "PNG")
    return out.getvalue()


def as_jpeg(image: bytes) -> bytes:
    """A stored image for a page, which takes JPEGs alone: as it is, or a PNG encoded anew.

    Raises BadPicture.
    """
    if image[:2] == b"\xff\xd8":
        return image
    encoded = _encoded(open_picture(image), ImageSettings()).jpeg
    assert encoded is not None
    return encoded
