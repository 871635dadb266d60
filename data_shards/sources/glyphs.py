"""The built-in dataset: a character is an identity, a font is a camera.

Face data may not be redistributed, but every machine with matplotlib carries 18 fonts with about
five thousand characters. Recognising a character across fonts is a fine-grained open-set problem
(accented letters differ by a dot). It is a stand-in for trying the system out, and is not a face
or person benchmark.
"""

import io
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from data_shards.counter_rng import stream_key, uniform
from data_shards.parallel import chunks, ordered, worker_pool
from data_shards.settings import InputError, Settings, Side
from data_shards.sources import SourceImage
from data_shards.sources.fonts import CANVAS, Face, Script, draw, drawable, faces, opened


class GlyphSettings(Settings):
    """Which characters are drawn, how often and how large."""

    identities: int | None = None
    """Keep only this many characters, the first by code point after a seeded shuffle; none: all."""
    min_fonts: int = 4
    """Leave out characters that fewer fonts than this can draw."""
    image_size: Side = 32
    """Side of the square images, pixels."""
    variants: int = 1
    """Images of each character in each font, each distorted differently."""
    fonts: tuple[Path, ...] = ()
    """Folders with .ttf, .otf or .ttc files, beside the fonts that matplotlib ships."""
    script: Script = "any"
    """"any": letters, numbers, symbols and punctuation; "han": Han characters alone, and none of
    matplotlib's fonts, which have none."""
    query_fonts: int = 0
    """Families of fonts, drawn by `seed`, that nobody is trained on: their images have role query,
    and a benchmark searches for them."""
    seed: int = 0
    """Decides the distortions, which characters are kept and which fonts are for queries."""


def distort(drawing: Image.Image, key: np.uint64, size: int) -> bytes:
    """`drawing` turned, scaled, moved, blurred and made noisy by `key`, as a `size`² JPEG."""
    turn, zoom, dx, dy, blur, noise, ink = uniform(key, np.arange(7)).tolist()
    angle, scale = (turn - 0.5) * 20.0, 0.85 + 0.3 * zoom
    image = drawing.rotate(angle, Image.Resampling.BILINEAR, fillcolor=255)
    span = CANVAS / scale
    left, top = (CANVAS - span) / 2 + (dx - 0.5) * 6, (CANVAS - span) / 2 + (dy - 0.5) * 6
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


def merge_coinciding(drawings: dict[Any, dict[str, bytes]]) -> dict[str, list[str]]:
    """Groups characters that any font draws alike: nobody could label such an image.

    `drawings` maps font to character to a hash of its pixels. Returns the groups under their first
    character.
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


def _digests(face: Face, script: Script) -> dict[str, bytes]:
    """A hash of each character's drawing in `face`, but for those drawn as a missing glyph."""
    font = opened(face)
    missing = draw(font, "\U0010fffe")  # no character, so that every font shows its missing glyph
    found = {}
    for character in drawable(face, script):
        image = draw(font, character)
        if image is not None and (missing is None or image.tobytes() != missing.tobytes()):
            found[character] = blake2b(image.tobytes(), digest_size=16).digest()
    return found


class _Job(NamedTuple):
    identity: str
    drawn: list[tuple[Face, str]]
    """The faces that have it, and as which of its characters."""


def held_out(counts: Mapping[Face, int], settings: GlyphSettings) -> frozenset[str]:
    """The names of the faces held out for queries: whole families, as weights of one design are
    much alike.

    They are drawn from the families with at least a quarter as many characters as the largest, by
    `counts`. Raises InputError when fewer than two of those are left to train on.
    """
    families: dict[str, int] = defaultdict(int)
    for face, count in counts.items():
        families[family(face)] = max(families[family(face)], count)
    large = [name for name, count in families.items() if 4 * count >= max(families.values())]
    if settings.query_fonts and settings.query_fonts > len(large) - 2:
        raise InputError(
            f"glyphs.query_fonts is {settings.query_fonts}, but there are {len(large)} families of "
            "fonts with many characters: lower it, or add fonts with --fonts DIR"
        )
    order = sorted(large, key=lambda name: int(stream_key(settings.seed, "query font", name)))
    chosen = order[: settings.query_fonts]
    return frozenset(face.name for face in counts if family(face) in chosen)


def family(face: Face) -> str:
    """The family of a face, common to all its weights and slants: the name up to a hyphen."""
    return face.name.partition("-")[0]


def _render(
    jobs: list[_Job], settings: GlyphSettings, queries: frozenset[str]
) -> list[SourceImage]:
    images = []
    for identity, face, character in ((job.identity, *own) for job in jobs for own in job.drawn):
        drawing = draw(opened(face), character)
        assert drawing is not None
        for variant in range(settings.variants):
            key = stream_key(settings.seed, "glyph", character, face.name, variant)
            jpeg = distort(drawing, key, settings.image_size)
            name = f"{identity}_{face.name}_{variant}"
            role = "query" if face.name in queries else "train"
            images.append(
                SourceImage(image=jpeg, identity=identity, camera=face.name, key=name, role=role)
            )
    return images


def _jobs(settings: GlyphSettings, digests: dict[Face, dict[str, bytes]]) -> list[_Job]:
    """The drawings to make of each kept character, by code point.

    Raises InputError when no character is left.
    """
    jobs: dict[str, _Job] = {}
    for first, characters in merge_coinciding(digests).items():
        held = [
            (face, next((c for c in characters if c in of_face), None))
            for face, of_face in digests.items()
        ]
        drawn = [(face, c) for face, c in held if c is not None]
        if len(drawn) >= settings.min_fonts:
            jobs[first] = _Job(f"U+{ord(first):04X}", drawn)
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
    return [jobs[c] for c in kept]


def read_glyphs(settings: GlyphSettings, processes: int = 1) -> Iterator[SourceImage]:
    """Every kept character in every font that draws it, ordered by identity, then camera.

    Identities are named ``U+0041`` after the group's first character. `processes` only changes
    the speed. Raises InputError when no character is left.
    """
    every = faces(settings.fonts, settings.script)
    with worker_pool(processes) as pool:
        look = partial(_digests, script=settings.script)
        digests = dict(zip(every, pool.map(look, every), strict=True))
        work = chunks(_jobs(settings, digests), 64)
        queries = held_out({face: len(found) for face, found in digests.items()}, settings)
        render = partial(_render, settings=settings, queries=queries)
        del digests
        for images in ordered(pool, render, work, 4 * processes):
            yield from images
