"""A contact sheet: a row for each of some identities, with their images, cameras and roles."""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_shards.counter_rng import shuffled, stream_key
from data_shards.sources import ROLES, UNKNOWN_CAMERA
from data_shards.storage.dataset import SampleError, ShardDataset
from untrusted.pictures import MOST_PIXELS, BadPicture, open_picture
from untrusted.text import printable

_CELL, _CAPTION, _NAMES, _GAP = 112, 16, 200, 6
_INK, _PALE = (20, 20, 20), (110, 110, 110)


def _font(size: int) -> ImageFont.FreeTypeFont:
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), size)


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text`, with an ellipsis for its middle if it is wider than `width` pixels."""
    text = printable(text)  # the layout raises for control characters
    if font.getlength(text) <= width:
        return text
    kept = len(text)
    while kept > 2 and font.getlength(text[: kept // 2] + "…" + text[-(kept // 2) :]) > width:
        kept -= 1
    return text[: kept // 2] + "…" + text[-(kept // 2) :]


def _loaded(dataset: ShardDataset, sample: int) -> Image.Image:
    """Decodes a sample's picture. Raises SampleError: a stranger's shard may hold anything."""
    try:
        return open_picture(dataset.image(sample), MOST_PIXELS)
    except BadPicture as bad:
        raise SampleError(f"sample {sample} cannot be shown: {bad}") from bad


def contact_sheet(dataset: ShardDataset, rows: int, columns: int, seed: int) -> Image.Image:
    """Draws up to `rows` identities by `seed`, in the order of their ids, with up to `columns`
    images of each, evenly spaced among all of its images.

    Raises SampleError for a damaged image.
    """
    everyone = np.unique(dataset.identity)
    chosen = np.sort(shuffled(stream_key(seed, "sheet"), everyone)[:rows])
    width = _NAMES + columns * (_CELL + _GAP) + _GAP
    height = len(chosen) * (_CELL + _CAPTION + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw, name_font, small = ImageDraw.Draw(sheet), _font(15), _font(11)
    for row, identity in enumerate(chosen.tolist()):
        top = _GAP + row * (_CELL + _CAPTION + _GAP)
        samples = np.flatnonzero(dataset.identity == identity)
        name = _fitted(str(dataset.names[identity]), name_font, _NAMES - 2 * _GAP)
        draw.text((_GAP, top + 36), name, _INK, name_font)
        draw.text((_GAP, top + 60), f"id {identity}, {len(samples)} images", _PALE, small)
        spread = np.linspace(0, len(samples) - 1, min(columns, len(samples))).astype(int)
        for column, sample in enumerate(samples[spread].tolist()):
            left = _NAMES + column * (_CELL + _GAP)
            with _loaded(dataset, sample) as image:
                scale = min(_CELL / image.width, _CELL / image.height)
                size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
                shown = image.convert("RGB").resize(size)
            sheet.paste(shown, (left + (_CELL - shown.width) // 2, top))
            camera = dataset.manifest["cameras"][dataset.camera[sample]]
            role = ROLES[dataset.role[sample]]
            parts = [camera] * (camera != UNKNOWN_CAMERA) + [role] * (role != ROLES[0])
            caption = _fitted(" · ".join(parts), small, _CELL)
            draw.text((left, top + _CELL), caption, _PALE, small)
    return sheet
