import io

import numpy as np
import pytest
from PIL import Image

from data_shards.settings import InputError
from data_shards.sources.glyphs import GlyphSettings, merge_coinciding, read_glyphs


def test_glyphs_are_the_same_every_time_and_ordered():
    settings = GlyphSettings(identities=40)
    images = list(read_glyphs(settings))
    assert images == list(read_glyphs(settings, processes=2))
    assert len({i.identity for i in images}) == 40
    assert len({i.key for i in images}) == len(images)
    per_identity = {
        i.identity: {j.camera for j in images if j.identity == i.identity} for i in images
    }
    assert min(map(len, per_identity.values())) >= 4
    for image in images[::50]:
        pixels = np.asarray(Image.open(io.BytesIO(image.image)))
        assert pixels.shape == (32, 32, 3)
        assert pixels.min() < 128 < pixels.max()


def test_characters_drawn_alike_in_any_font_are_one_identity():
    drawings = {
        "one": {"A": b"1", "Α": b"1", "B": b"2"},
        "two": {"Α": b"3", "А": b"3", "B": b"4", "C": b"5"},
    }
    groups = merge_coinciding(drawings)
    assert sorted(map(sorted, groups.values())) == [sorted("AΑА"), ["B"], ["C"]]


def test_more_characters_than_there_are_is_explained():
    with pytest.raises(InputError, match=r"glyphs\.identities is 9999, but only \d+"):
        list(read_glyphs(GlyphSettings(identities=9999)))


def test_a_folder_without_fonts_is_named(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        list(read_glyphs(GlyphSettings(fonts=(tmp_path,))))
