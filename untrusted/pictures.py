"""Opens untrusted pictures: the only place of the project that calls Pillow's `Image.open`."""

import io
import warnings

from PIL import Image, UnidentifiedImageError

FORMATS = (
    "JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM"
)  # fmt: skip
"""The formats that Pillow may try, by its names. Others start programs (EPS starts Ghostscript),
need plugins (HEIF) or have no limits."""
MAX_PIXELS = 64_000_000
"""Default limit: decoded, such a picture takes 192 MB as RGB, and as much again to convert it."""
MOST_PIXELS = 178_000_000
"""The largest limit that a user may set: Pillow itself refuses more pixels."""
_MAX_SCANS = 100
"""Of a JPEG. Each scan goes over all blocks, even an empty one; usual encoders write ten."""
_SCANS_AT_FULL_SIZE = 16
"""Scans allowed in a JPEG of the most pixels; smaller ones may have more, for equal work."""
_MAX_PARTS = 10_000
"""Segments of a JPEG: 256 MB of metadata in segments of 64 kB are 4,096."""
_START_OF_SCAN = 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a JPEG's segments that give its size."""
_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 100_000
"""Chunks of a PNG: 256 MB in chunks of 8 kB, as libpng writes them, are 32,768."""


class BadPicture(ValueError):
    """A picture that is refused."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason, self.why = reason, why
        """`reason` is one of few kinds, by which refusals are counted; `why` has the details."""


def open_picture(content: bytes | memoryview, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The decoded picture, as it is stored: not turned by its EXIF orientation.

    Raises BadPicture, and nothing else, for whatever cannot be decoded, holds several pictures, or
    asks for more memory or time than a picture of `max_pixels` may.
    """
    content = bytes(content)
    try:
        if content[:2] == b"\xff\xd8":
            scans, end = _scans(content)
            shown = content[:end]
        else:
            scans, shown = 0, content
            _check_chunks(content)
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(shown), formats=FORMATS)
            pixels = image.width * image.height
            if pixels > max_pixels:
                size = f"{image.width} × {image.height} pixels"
                raise BadPicture("too large", f"{size}, more than max_pixels = {max_pixels:,}")
            if scans > _MAX_SCANS or scans * pixels > _SCANS_AT_FULL_SIZE * max_pixels:
                raise BadPicture(
                    "too large", f"a progressive JPEG of {scans} scans: save it anew with ten"
                )
            # Further pictures in a JPEG file are previews and depth maps of the first.
            if image.format not in ("JPEG", "MPO") and getattr(image, "is_animated", False):
                raise BadPicture("several pictures", "several frames or pages: which is meant?")
            _check_tiles(image, content, max_pixels)
            image.load()
            return image
    except BadPicture:
        raise
    except Image.DecompressionBombError:
        why = f"more pixels than max_pixels = {max_pixels:,}"
        raise BadPicture("too large", why) from None
    except UnidentifiedImageError:
        why = f"no {', '.join(FORMATS)}; it begins {content[:8]!r}"
        raise BadPicture("not an image", why) from None
    except Exception as error:  # Pillow's readers raise whatever they run into
        why = " ".join(str(error).split()) or type(error).__name__
        raise BadPicture("damaged", why) from error


def stored_size(image: bytes | memoryview) -> tuple[int, int]:
    """Height and width that the header of a JPEG or a PNG gives, pixels; nothing is decoded.

    Raises BadPicture where it gives none.
    """
    if image[:8] != _PNG:
        return jpeg_size(image)
    width, height = (int.from_bytes(image[at : at + 4], "big") for at in (16, 20))
    if image[12:16] != b"IHDR" or not (height and width):
        raise BadPicture("damaged", "its header gives no size")
    return height, width


def jpeg_size(jpeg: bytes | memoryview) -> tuple[int, int]:
    """Height and width that a JPEG's header gives, pixels; nothing is decoded.

    Raises BadPicture where there is no such header before the first scan.
    """
    at = 2
    for _ in range(_MAX_PARTS):
        if at + 9 > len(jpeg) or jpeg[at] != 0xFF or jpeg[at + 1] == _START_OF_SCAN:
            break
        if jpeg[at + 1] in _FRAMES:
            height, width = (int.from_bytes(jpeg[at + n : at + n + 2], "big") for n in (5, 7))
            if height and width:
                return height, width
            break
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    raise BadPicture("damaged", "its header gives no size")


def _scans(jpeg: bytes) -> tuple[int, int]:
    """An upper bound of a JPEG's scans, and where it ends before another picture begins.

    Data behind the first scan is not parsed: the bytes that begin a scan are counted. Raises
    BadPicture when it has more segments than any picture needs.
    """
    at = 2
    for _ in range(_MAX_PARTS):
        at = jpeg.find(b"\xff", at)
        if at < 0 or at + 4 > len(jpeg):
            return 0, len(jpeg)
        marker = jpeg[at + 1]
        if marker == _START_OF_SCAN:
            # Entropy-coded data holds no such bytes. Pictures behind the first one would be counted
            # with it; where only a comment looks like another picture, the rest is cut off.
            end = jpeg.find(b"\xff\xd9\xff\xd8\xff", at)
            end = end + 2 if end > 0 else len(jpeg)
            return jpeg.count(b"\xff\xda", at, end), end
        if marker in (0x00, 0x01, 0xFF, 0xD8, 0xD9) or 0xD0 <= marker <= 0xD7:
            at += 1
        else:
            at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    raise BadPicture("damaged", f"it has more than {_MAX_PARTS:,} segments before its picture")


def _check_chunks(content: bytes) -> None:
    """Raises BadPicture for a PNG of so many chunks that reading them would take the time."""
    if content[:8] != _PNG:
        return
    at = 8
    for _ in range(_MAX_CHUNKS):
        if at >= len(content):
            return
        at += 12 + int.from_bytes(content[at : at + 4], "big")
    raise BadPicture("damaged", f"it has more than {_MAX_CHUNKS:,} chunks")


def _check_tiles(image: Image.Image, content: bytes, max_pixels: int) -> None:
    """Raises BadPicture for a TIFF with tiles of more than `max_pixels`, as tiles are decoded
    completely, or with JPEGs of many scans."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return
    width, length = (int(tags.get(tag, 0)) for tag in (322, 323))
    if width * length > max_pixels:
        raise BadPicture("too large", f"its tiles have {width} × {length} pixels")
    if tags.get(259) in (6, 7):
        scans = content.count(b"\xff\xda")
        parts = max(len(tags.get(273, ())), len(tags.get(324, ())), 1)
        if scans > 4 * parts:  # baseline JPEGs, which TIFF asks for, have one scan a component
            raise BadPicture("too large", f"it holds JPEGs of {scans} scans: save it anew")
