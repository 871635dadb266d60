"""The built-in dataset: a character is an identity, a font is a camera.

Face data may not be redistributed, but every machine with matplotlib carries 18 fonts with about
five thousand characters. Recognising a character across fonts is a fine-grained open-set problem
(accented letters differ by a dot). It is a stand-in for trying the system out, and is not a face
or person benchmark.
"""

import io
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from data_shards.counter import stream_key, uniform
from data_shards.settings import InputError, Settings
from data_shards.sources import SourceImage

_DRAWING_SIZE = 40
"""Pixels an em when a character is drawn, before it is turned, scaled and blurred."""
_CANVAS = 64
"""Side of the square that a drawing is centred in, pixels."""
_LETTERLIKE = ("L", "N", "S", "P")
"""Unicode categories that are drawn: letters, numbers, symbols, punctuation."""


class GlyphSettings(Settings):
    """Which characters are drawn, how often and how large."""

    identities: int | None = None
    """Keep only this many characters, the first by code point after a seeded shuffle; none: all."""
    min_fonts: int = 4
    """Leave out characters that fewer fonts than this can draw."""
    image_size: int = 32
    """Side of the square images, pixels."""
    variants: int = 1
    """Images of each character in each font, each distorted differently."""
    fonts: tuple[Path, ...] = ()
    """Folders with more .ttf or .otf files, beside the fonts that matplotlib ships."""
    seed: int = 0
    """Decides the distortions and which characters are kept."""


def font_files(extra: tuple[Path, ...]) -> list[Path]:
    """matplotlib's DejaVu and STIX text faces and every font below the `extra` folders.

    Raises InputError for a folder that is missing or holds no font.
    """
    shipped = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = sorted(p for p in shipped.glob("*.ttf") if p.name.startswith(("DejaVu", "STIX")))
    files = [p for p in files if not p.name.startswith("STIXSiz")]
    for folder in extra:
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".ttf", ".otf", ".ttc"})
        if not found:
            raise InputError(f"no .ttf, .otf or .ttc file below {folder}: give a folder with fonts")
        files += found
    return files


def drawable(font: Path) -> list[str]:
    """The characters that `font` maps to a glyph, by code point, without controls and spaces."""
    codes = sorted(FT2Font(str(font)).get_charmap())
    characters = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
    return [c for c in characters if unicodedata.category(c).startswith(_LETTERLIKE)]


def draw(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    """`character` in black on a white square, its ink centred; None when it leaves no ink."""
    left, top, right, bottom = font.getbbox(character)
    width, height = int(right - left), int(bottom - top)
    if width <= 0 or height <= 0:
        return None
    ink = Image.new("L", (width + 2, height + 2), 255)
    ImageDraw.Draw(ink).text((1 - left, 1 - top), character, font=font, fill=0)
    extent = Image.eval(ink, lambda v: 255 - v).getbbox()
    if extent is None:
        return None
    ink = ink.crop(extent)
    if max(ink.size) > _CANVAS - 8:
        ink.thumbnail((_CANVAS - 8, _CANVAS - 8), Image.Resampling.BICUBIC)
    canvas = Image.new("L", (_CANVAS, _CANVAS), 255)
    canvas.paste(ink, ((_CANVAS - ink.width) // 2, (_CANVAS - ink.height) // 2))
    return canvas


def distort(drawing: Image.Image, key: np.uint64, size: int) -> bytes:
    """`drawing` turned, scaled, moved, blurred and made noisy by `key`, as a `size`² JPEG."""
    turn, zoom, dx, dy, blur, noise, ink = uniform(key, np.arange(7)).tolist()
    angle, scale = (turn - 0.5) * 20.0, 0.85 + 0.3 * zoom
    image = drawing.rotate(angle, Image.Resampling.BILINEAR, fillcolor=255)
    span = _CANVAS / scale
    left, top = (_CANVAS - span) / 2 + (dx - 0.5) * 6, (_CANVAS - span) / 2 + (dy - 0.5) * 6
    box = (left, top, left + span, top + span)
    image = image.transform(
        (size, size), Image.Transform.EXTENT, box, Image.Resampling.BICUBIC, fillcolor=255
    ).filter(ImageFilter.GaussianBlur(0.7 * blur))
    grain = uniform(stream_key(int(key), "grain"), np.arange(size * size)).reshape(size, size)
    contrast = 0.7 + 0.3 * ink
    pixels = 255 - (255 - np.asarray(image, dtype=np.float64)) * contrast
    pixels += (grain - 0.5) * 40.0 * noise
    out = io.BytesIO()
    grey = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), mode="L")
    grey.convert("RGB").save(out, "JPEG", quality=90)
    return out.getvalue()


def merge_coinciding(drawings: dict[str, dict[str, bytes]]) -> dict[str, list[str]]:
    """Groups characters that some font draws alike: nobody could tell them apart.

    `drawings` maps font to character to pixels. Returns the groups under their first character.
    """
    parent: dict[str, str] = {}

    def find(c: str) -> str:
        while parent.setdefault(c, c) != c:
            parent[c] = parent[parent[c]]
            c = parent[c]
        return c

    for of_font in drawings.values():
        first: dict[bytes, str] = {}
        for character, pixels in of_font.items():
            a, b = find(first.setdefault(pixels, character)), find(character)
            parent[max(a, b)] = min(a, b)
    groups: dict[str, list[str]] = defaultdict(list)
    for character in sorted(parent):
        groups[find(character)].append(character)
    return groups


def _font_drawings(font: Path) -> dict[str, bytes]:
    face = ImageFont.truetype(str(font), _DRAWING_SIZE)
    missing = draw(face, "\U0010fffe")
    drawings = {}
    for character in drawable(font):
        image = draw(face, character)
        if image is not None and (missing is None or image.tobytes() != missing.tobytes()):
            drawings[character] = image.tobytes()
    return drawings


def _render(job: tuple[str, str, str, bytes, GlyphSettings]) -> list[SourceImage]:
    identity, camera, character, pixels, settings = job
    drawing = Image.frombytes("L", (_CANVAS, _CANVAS), pixels)
    images = []
    for variant in range(settings.variants):
        key = stream_key(settings.seed, "glyph", character, camera, variant)
        jpeg = distort(drawing, key, settings.image_size)
        images.append(SourceImage(jpeg, identity, camera, f"{identity}_{camera}_{variant}"))
    return images


def read_glyphs(settings: GlyphSettings, processes: int = 1) -> Iterator[SourceImage]:
    """Every kept character in every font that draws it, ordered by identity, then camera.

    Identities are named ``U+0041`` after the group's first character. `processes` only changes
    the speed. Raises InputError when no character is left.
    """
    fonts = font_files(settings.fonts)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        drawings = dict(zip((f.stem for f in fonts), pool.map(_font_drawings, fonts), strict=True))
        jobs: dict[str, list[tuple[str, str, str, bytes, GlyphSettings]]] = {}
        for first, characters in merge_coinciding(drawings).items():
            identity = f"U+{ord(first):04X}"
            found = [
                (camera, next((c for c in characters if c in of_font), None), of_font)
                for camera, of_font in drawings.items()
            ]
            held = [(camera, c, of_font[c]) for camera, c, of_font in found if c is not None]
            if len(held) >= settings.min_fonts:
                jobs[first] = [(identity, camera, c, ink, settings) for camera, c, ink in held]
        kept = sorted(jobs)
        if settings.identities is not None:
            if len(kept) < settings.identities:
                raise InputError(
                    f"glyphs.identities is {settings.identities}, but only {len(kept)} characters "
                    f"are drawn by at least {settings.min_fonts} fonts: lower it, lower "
                    "glyphs.min_fonts, or add fonts with --fonts DIR"
                )
            draws = {c: stream_key(settings.seed, "keep", c) for c in kept}
            kept = sorted(sorted(kept, key=lambda c: int(draws[c]))[: settings.identities])
        if not kept:
            raise InputError(f"no character is drawn by {settings.min_fonts} fonts: add fonts")
        for images in pool.map(_render, (job for c in kept for job in jobs[c]), chunksize=64):
            yield from images
