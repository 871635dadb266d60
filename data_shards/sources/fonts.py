"""Fonts, which are the glyph dataset's cameras: the characters each can draw, and drawing them."""

import logging
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont

from data_shards.settings import InputError

CANVAS = 64
"""Side of the square that a drawing is centred in, pixels."""
logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of tables that are not used here
_DRAWING_SIZE = 40
"""Pixels an em when a character is drawn, before it is turned, scaled and blurred."""
_LETTERLIKE = ("L", "N", "S", "P")
"""Unicode categories that are drawn: letters, numbers, symbols, punctuation."""
_HAN = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x33480))
"""Unicode's blocks of Han characters, compatibility ones included, up to extension J."""
_LEAST_HAN = 500
"""A font with fewer Han characters is one for another script."""

Script = Literal["any", "han"]


class Face(NamedTuple):
    """A font file; of a collection (.ttc) its first face, because the others mostly draw alike."""

    path: str
    name: str
    """Unique among the faces: the file's name, with a number where that is taken."""


def faces(folders: tuple[Path, ...], script: Script) -> list[Face]:
    """Every face below `folders`, and for any `script` matplotlib's DejaVu and STIX text faces.

    Raises InputError for a folder that is missing or holds no font.
    """
    files: list[Path] = []
    if script == "any":
        import matplotlib  # for its fonts alone

        shipped = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        files = sorted(p for p in shipped.glob("*.ttf") if p.name.startswith(("DejaVu", "STIX")))
        files = [p for p in files if not p.name.startswith("STIXSiz")]
    for folder in folders:
        found = [p for p in folder.rglob("*") if p.suffix.lower() in {".ttf", ".otf", ".ttc"}]
        if not found:
            raise InputError(f"no .ttf, .otf or .ttc file below {folder}: give a folder with fonts")
        files += sorted({p.resolve() for p in found}, key=lambda p: (p.name, str(p)))
    taken: Counter[str] = Counter()
    result = []
    for file in files:
        taken[file.stem] += 1
        number = taken[file.stem]
        result.append(Face(str(file), file.stem if number == 1 else f"{file.stem}-{number}"))
    return result


def drawable(face: Face, script: Script) -> list[str]:
    """The characters that `face` maps to a glyph, by code point, without controls and spaces.

    Of the Han script only Han characters, and none of a face that has few of them.
    """
    try:
        with TTFont(face.path, fontNumber=0, lazy=True) as font:
            codes = sorted(font.getBestCmap() or {})
    except (TTLibError, OSError) as error:
        raise InputError(f"{face.path} is no font ({error}): move it out of that folder") from error
    if script == "han":
        han = [chr(c) for c in codes if any(first <= c < last for first, last in _HAN)]
        return han if len(han) >= _LEAST_HAN else []
    characters = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
    return [c for c in characters if unicodedata.category(c).startswith(_LETTERLIKE)]


@cache
def opened(face: Face) -> ImageFont.FreeTypeFont:
    """The face opened for drawing, once a process."""
    return ImageFont.truetype(face.path, _DRAWING_SIZE)


def draw(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    """`character` in black on a white square, its ink centred.

    None when it leaves no ink, or cannot be drawn.
    """
    try:
        left, top, right, bottom = font.getbbox(character)
    except OSError:  # FreeType runs a glyph's hinting program, and some are faulty
        return None
    width, height = int(right - left), int(bottom - top)
    if width <= 0 or height <= 0:
        return None
    ink = Image.new("L", (width + 2, height + 2), 255)
    ImageDraw.Draw(ink).text((1 - left, 1 - top), character, font=font, fill=0)
    extent = Image.eval(ink, lambda v: 255 - v).getbbox()
    if extent is None:
        return None
    ink = ink.crop(extent)
    if max(ink.size) > CANVAS - 8:
        ink.thumbnail((CANVAS - 8, CANVAS - 8), Image.Resampling.BICUBIC)
    canvas = Image.new("L", (CANVAS, CANVAS), 255)
    canvas.paste(ink, ((CANVAS - ink.width) // 2, (CANVAS - ink.height) // 2))
    return canvas
