"""Opening pictures: the only place that does."""

import io
import warnings

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM", "JPEG2000")
"""What Pillow is let try; some of its other readers start programs (EPS) or know no limits."""
MAX_PIXELS = 64_000_000
"""Decoded they take 192 MB."""
_SCANS = 64
"""Of a progressive JPEG, which usually has ten; each takes as long as decoding a whole picture."""
_SCANNED = 10 * MAX_PIXELS
"""Scans times pixels: seconds of decoding."""
_START_OF_SCAN = b"\xff\xda"


class TooLarge(ValueError):
    """A picture that would take too much memory or time to decode."""


def open_picture(
    content: bytes | memoryview,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
) -> Image.Image:
    """The picture in `content`, not decoded yet (``load`` does, and raises whatever it runs into).

    Raises TooLarge, PIL.UnidentifiedImageError for no picture of the `formats`, and what else
    Pillow raises for damaged ones.
    """
    with warnings.catch_warnings(action="ignore"):
        try:
            opened = Image.open(io.BytesIO(content), formats=formats)
        except Image.DecompressionBombError as error:
            raise TooLarge(f"more pixels than max_pixels = {max_pixels:,}") from error
    pixels = opened.width * opened.height
    if pixels > max_pixels:
        size = f"{opened.width} × {opened.height} pixels"
        raise TooLarge(f"{size}, more than max_pixels = {max_pixels:,}")
    if opened.format in ("JPEG", "MPO"):
        # within a scan 0xff is always followed by 0; pictures in metadata count, too
        scans = bytes(content).count(_START_OF_SCAN)
        if scans > _SCANS or scans * pixels > max(_SCANNED, 10 * max_pixels):
            raise TooLarge(f"{scans} scans of {opened.width} × {opened.height} pixels")
    return opened
