"""Picture formats by a file's first bytes: names are often wrong, lacking or extended."""

import re

HEAD = 4096
"""Bytes of a file's beginning that `picture_kind` needs."""
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}
_BEGINNINGS = (
    ("JPEG", rb"\xff\xd8\xff"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("GIF", rb"GIF8[79]a"),
    ("WEBP", rb"RIFF....WEBP"),
    ("TIFF", rb"II[*+]\x00|MM\x00[*+]"),
    ("PPM", rb"P[1-6]\s+(#[^\n]*\n\s*)*\d"),
    ("JPEG2000", rb"\x00\x00\x00\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    ("JPEG XL", rb"\xff\x0a|\x00\x00\x00\x0cJXL \r\n\x87\n"),
    ("JPEG XR", rb"II\xbc"),
    ("Photoshop", rb"8BPS"),
    ("EPS", rb"%!PS-Adobe[^\n\r]*EPSF|\xc5\xd0\xd3\xc6"),
    ("SVG", rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE svg[^>]*>\s*)?<svg[\s>]"),
    ("OpenEXR", rb"v/1\x01"),
    ("Radiance HDR", rb"#\?RADIANCE"),
    ("DDS", rb"DDS \x7c\x00\x00\x00"),
    ("FITS", rb"SIMPLE  ="),
    ("ICO", rb"\x00\x00\x01\x00[\x01-\x40]\x00"),
)
_PICTURES = re.compile(
    b"|".join(
        b"(?P<_%d>%s)" % (number, pattern) for number, (_, pattern) in enumerate(_BEGINNINGS)
    ),
    re.S,
)
_HEIF = ("heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1", "avif", "avis")


def picture_kind(head: bytes) -> str | None:
    """The picture format of a file that begins with `head`, None if it is no picture.

    Formats that Pillow reads have Pillow's names.
    """
    if found := _PICTURES.match(head):
        return _BEGINNINGS[int((found.lastgroup or "_0")[1:])][0]
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if head[4:8] == b"ftyp":
        return _heif_kind(head)
    return None


def _heif_kind(head: bytes) -> str | None:
    """AVIF, HEIC or neither: they share a container with films, whose brands differ."""
    size = min(int.from_bytes(head[:4], "big"), 256)
    brands = [head[at : at + 4].decode("latin-1") for at in (8, *range(16, size, 4))]
    if brands[0] not in _HEIF:
        return None
    return "AVIF" if {"avif", "avis"} & set(brands) else "HEIC"
