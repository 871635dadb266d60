"""Image folders, as people's disks have them."""

import io
import os
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from data_shards.dataset import ShardDataset
from data_shards.images import ImageSettings
from data_shards.importing import import_source
from data_shards.places import place_at
from data_shards.settings import InputError
from data_shards.sources import Refusal, SourceImage
from data_shards.sources.folder import FolderSettings, read_folder
from launch.importing import run_import
from tests.conftest import jpeg


def put(root, files):
    for number, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number, 0))
    return root


def read(root, start=0, **options):
    return list(read_folder(FolderSettings(path=root, **options), start))


def taken(items):
    return {item.key: item.identity for item in items if isinstance(item, SourceImage)}


def refused(items):
    return {item.key: item.reason for item in items if isinstance(item, Refusal)}


def test_the_first_folder_is_the_identity_at_any_depth(tmp_path):
    root = put(tmp_path, ["b/1.jpg", "a/x/y/z.JPG", "a/x.jpeg", "a/noname", "c d/1.png"])
    items = read(root)
    assert list(taken(items).items()) == [
        ("a/noname", "a"),
        ("a/x/y/z.JPG", "a"),
        ("a/x.jpeg", "a"),
        ("b/1.jpg", "b"),
        ("c d/1.png", "c d"),
    ]
    assert taken(read(root, name="mine"))["b/1.jpg"] == "mine/b"
    for start in range(len(items) + 1):
        assert read(root, start) == items[start:]


def test_the_second_folder_is_the_camera_when_asked(tmp_path):
    root = put(tmp_path, ["a/left/1.jpg", "a/right/1.jpg", "a/2.jpg"])
    items = read(root, cameras=True)
    assert [i.camera for i in items if isinstance(i, SourceImage)] == ["left", "right"]
    assert refused(items) == {"a/2.jpg": "no camera"}


def test_hidden_files_are_passed_over_and_others_listed(tmp_path):
    root = put(tmp_path, ["a/.1.jpg", ".git/1.jpg", "a/.thumbs/1.jpg", "2.jpg"])
    for name in ("a/1.txt", "3.md", "a/damaged.JPG"):
        (root / name).write_bytes(b"text")
    items = read(root)
    assert taken(items) == {"a/damaged.JPG": "a"}  # whoever decodes it says what is wrong
    counted = {item.key: item.counts for item in items if isinstance(item, Refusal)}
    hidden = {".git": False, "a/.1.jpg": False, "a/.thumbs": False}
    assert counted == {"2.jpg": True, "3.md": False, "a/1.txt": False, **hidden}


@pytest.mark.reliability(18, "pictures are known by their first bytes, whatever they are called")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_picture_may_be_called_anything(tmp_path, kind):
    names = ["a/0001", "a/1.jpg.1", "a/Person_One_Jr._0001", "a/x.txt", "a/y.heic", "a/.png/z"]
    for name in names:
        (tmp_path / name.replace(".png", "png")).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(io.BytesIO(jpeg(1, 1))) as picture:
            picture.save(tmp_path / name.replace(".png", "png"), kind)
    assert len(taken(read(tmp_path))) == len(names)


FOREIGN = {
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "JPEG XL": b"\xff\x0a1234",
    "Photoshop": b"8BPS\0\1",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "SVG": b"<?xml version='1.0'?>\n<!-- a -->\n<svg xmlns='x'>",
}


@pytest.mark.reliability(18, "pictures that cannot be read are refused by the name of their format")
def test_pictures_without_a_reader_count_as_refused(tmp_path):
    (tmp_path / "a").mkdir()
    for name, content in FOREIGN.items():
        (tmp_path / "a" / name).write_bytes(content)
    (tmp_path / "a" / "film").write_bytes(b"\0\0\0\x18ftypisom\0\0\0\0mp41")
    (tmp_path / "a" / "BMW.txt").write_bytes(b"BM and other cars are no bitmap" * 9)
    found = {item.key: item for item in read(tmp_path)}
    for name in FOREIGN:
        assert found[f"a/{name}"].reason == f"{name}, not readable here"
        assert found[f"a/{name}"].counts
    assert not found["a/film"].counts
    assert not found["a/BMW.txt"].counts


@pytest.mark.reliability(18, "identities of whom nothing was taken are counted and named")
def test_people_who_vanish_are_named(tmp_path, capsys):
    root = put(tmp_path / "root", ["a/1.jpg"])
    for name in ("heic/1", "b/notes.txt"):
        (root / name).parent.mkdir()
        (root / name).write_bytes(FOREIGN["HEIC"] if name[0] == "h" else b"notes")
    (root / "nobody").mkdir()
    console = Console(width=200, soft_wrap=True, highlight=False)

    def run(max_refused):
        settings, place = FolderSettings(path=root), place_at(str(tmp_path / "d"))
        run_import("folder", settings, place, ImageSettings(), 10, max_refused, 0, console)

    with pytest.raises(InputError, match=r"with them all of 3 identities \(b, heic, nobody\)"):
        run(0)
    run(0.5)
    told = capsys.readouterr().out
    assert "1 refused, nothing of 3 identities" in told
    assert "nothing was taken of 3 identities (b, heic, nobody)" in told


def test_symlinks_are_followed_but_not_in_circles(tmp_path):
    root = put(tmp_path / "root", ["a/1.jpg"])
    put(tmp_path / "elsewhere", ["2.jpg"])
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "again").symlink_to(root)
    (root / "a" / "self.jpg").symlink_to(root / "a" / "self.jpg")
    (root / "a" / "gone.jpg").symlink_to(root / "nowhere")
    items = read(root)
    assert taken(items) == {"a/1.jpg": "a", "b/2.jpg": "b"}
    unreadable = {"a/again": "unreadable", "a/self.jpg": "unreadable", "a/gone.jpg": "unreadable"}
    assert refused(items) == unreadable


def test_what_is_no_file_is_not_waited_for(tmp_path):
    root = put(tmp_path, ["a/1.jpg"])
    os.mkfifo(root / "a" / "pipe.jpg")
    assert refused(read(root)) == {"a/pipe.jpg": "unreadable"}


def test_files_too_large_for_a_picture_are_not_read(tmp_path):
    root = put(tmp_path, ["a/1.jpg"])
    with (root / "a" / "2.jpg").open("wb") as file:
        file.truncate(1 << 40)
    assert refused(read(root)) == {"a/2.jpg": "too large"}


def test_unicode_names_arrive_as_they_are_and_broken_ones_are_refused(tmp_path):
    composed = unicodedata.normalize("NFC", "Zoë")
    apart = unicodedata.normalize("NFD", "Zoë")
    root = put(tmp_path / "root", [f"{composed}/1.jpg", f"{apart}/1.jpg", "田中/😀.jpg"])
    broken = os.fsencode(root) + b"/caf\xe9"
    os.mkdir(broken)  # noqa: PTH102
    with open(broken + b"/1.jpg", "wb") as file:  # noqa: PTH123
        file.write(jpeg(0, 0))
    with pytest.raises(InputError, match="1 of 4 images"):
        import_source("folder", FolderSettings(path=root), tmp_path / "d")
    import_source("folder", FolderSettings(path=root), tmp_path / "d", max_refused=0.5)
    names = ShardDataset.open(tmp_path / "d").names.tolist()
    assert sorted(names) == sorted([composed, apart, "田中"])
    (line,) = (tmp_path / "d" / "refused.jsonl").read_text().splitlines()
    assert "caf\\udce9/1.jpg" in line and "not valid UTF-8" in line


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere is no folder"):
        read(tmp_path / "nowhere")


@settings(max_examples=50)
@given(names=st.sets(st.text("ab/.\\ \n'\"%éß", min_size=1, max_size=8), max_size=6))
def test_any_tree_of_names_is_read_once_each(tmp_path_factory, names):
    root = tmp_path_factory.mktemp("tree")
    made = set()
    for name in names:
        path = root / name.strip("/") / "x.jpg"
        if ".." not in path.parts:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
            made.add(path.relative_to(root))
    parts = [p.parts for p in made]
    hidden = [next((n for n, part in enumerate(p, 1) if part[0] == "."), None) for p in parts]
    items = read(root)
    wanted = {"/".join(p[:end]) for p, end in zip(parts, hidden, strict=True)}
    assert {item.key for item in items} == wanted
    assert len(items) == len(wanted)
