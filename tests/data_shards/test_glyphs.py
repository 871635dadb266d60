import io
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from data_shards.settings import InputError
from data_shards.sources import ROLES, glyphs
from data_shards.sources.fonts import faces
from data_shards.sources.glyphs import GlyphSettings, merge_coinciding, read_glyphs
from data_shards.splits.benchmark import build_benchmark
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.writer import write_dataset

FEW = ("DejaVuSerif", "STIXGeneral")


@pytest.fixture(autouse=True)
def few_faces(monkeypatch):
    """Eight of matplotlib's fonts, in five families, instead of all: a second's look at them."""

    def some(folders, script):
        found = faces(folders, script)
        return found if script != "any" else [f for f in found if f.name.startswith(FEW)]

    monkeypatch.setattr(glyphs, "faces", some)


@pytest.fixture(scope="module")
def looked():
    """Looks at a font only once: each has thousands of characters."""
    return cache(glyphs._digests)


@pytest.fixture
def here(looked, monkeypatch):
    """In this process."""
    monkeypatch.setattr(glyphs, "worker_pool", ThreadPoolExecutor)
    monkeypatch.setattr(glyphs, "_digests", looked)


def test_glyphs_are_the_same_every_time_and_ordered(request):
    settings = GlyphSettings(identities=40)
    elsewhere = list(read_glyphs(settings, processes=2))
    request.getfixturevalue("here")
    images = list(read_glyphs(settings))
    assert images == elsewhere
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


def test_more_characters_than_there_are_is_explained(here):
    with pytest.raises(InputError, match=r"glyphs\.identities is 9999, but only \d+"):
        list(read_glyphs(GlyphSettings(identities=9999)))


def test_nobody_is_trained_on_a_font_held_out_for_queries(here, tmp_path):
    settings = GlyphSettings(identities=150, query_fonts=1)
    write_dataset(read_glyphs(settings), tmp_path / "d", {})
    dataset = ShardDataset.open(tmp_path / "d")
    asks = dataset.role == ROLES.index("query")
    families = {name: name.partition("-")[0] for name in dataset.manifest["cameras"]}
    of_sample = np.array([families[dataset.manifest["cameras"][c]] for c in dataset.camera])
    (held_out,) = set(of_sample[asks])
    assert held_out not in of_sample[~asks]
    drawn = {"steps": 2, "test_identities": 30, "pairs": 40, "seen_identities": 6}
    split = BenchmarkSettings(queries="role", **drawn)
    benchmark = build_benchmark(dataset, split)
    assert set(of_sample[benchmark.query]) == {held_out}
    for samples in (*benchmark.steps, benchmark.gallery, benchmark.seen_gallery):
        assert held_out not in of_sample[samples]
    tested = set(dataset.identity[benchmark.query].tolist())
    assert len(tested) == 30 and tested == set(dataset.identity[benchmark.gallery].tolist())
    assert not tested & set(dataset.identity[np.concatenate(benchmark.steps)].tolist())


def test_two_families_of_fonts_are_left_to_train_on(here):
    with pytest.raises(InputError, match=r"query_fonts is 9, but there are \d+ families of"):
        list(read_glyphs(GlyphSettings(identities=10, query_fonts=9)))


def test_han_characters_come_from_fonts_that_have_them(tmp_path):
    (tmp_path / "latin.ttf").write_bytes(Path(font_manager.findfont("DejaVu Sans")).read_bytes())
    with pytest.raises(InputError, match="no character is drawn"):
        list(read_glyphs(GlyphSettings(script="han", fonts=(tmp_path,), min_fonts=1)))


def test_a_folder_without_fonts_is_named(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        list(read_glyphs(GlyphSettings(fonts=(tmp_path,))))
