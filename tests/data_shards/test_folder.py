"""Image folders, as people's disks have them."""

import os
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.dataset import ShardDataset
from data_shards.importing import import_source
from data_shards.settings import InputError
from data_shards.sources import Refusal, SourceImage
from data_shards.sources.folder import FolderSettings, read_folder
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
    root = put(tmp_path, ["a/.1.jpg", ".git/1.jpg", "a/.thumbs/1.jpg", "a/1.txt", "2.jpg", "3.md"])
    items = read(root)
    assert taken(items) == {}
    counted = {item.key: item.counts for item in items}
    assert counted == {"2.jpg": True, "3.md": False, "a/1.txt": False}


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
    visible = {p for p in made if not any(part.startswith(".") for part in p.parts)}
    found = taken(read(root)) | refused(read(root))
    assert set(found) == {p.as_posix() for p in visible}
