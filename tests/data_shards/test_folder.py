"""Image folders, as people's disks have them."""

import io
import os
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from data_shards.images import ImageSettings
from data_shards.settings import InputError
from data_shards.sources import Refusal, SourceImage
from data_shards.sources.folder import FolderSettings, folder_tables, read_folder
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.destination import destination_at
from data_shards.writing.importing import import_source
from launch.commands.importing import parts_as_identities, run_import
from tests.conftest import jpeg
from trainer.evaluation.test_sets.verification import Verification
from trainer.evaluation.vectors import StoredVectors


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
        settings, place = FolderSettings(path=root), destination_at(str(tmp_path / "d"))
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


@pytest.mark.reliability(16, "folders called as roles, or a list, say what images are for")
def test_roles_come_from_folders_or_a_list(tmp_path):
    root = put(tmp_path / "in", ["query/a/1.jpg", "gallery/a/2.jpg", "gallery/b/x/3.jpg"])
    put(root, ["train/c/4.jpg", "query/5.jpg"])
    items = read(root, roles="folders")
    assert refused(items) == {"query/5.jpg": "no identity"}
    found = {(i.identity, i.role) for i in items if isinstance(i, SourceImage)}
    assert found == {("a", "query"), ("a", "gallery"), ("b", "gallery"), ("c", "train")}
    put(root, ["val/a/1.jpg"])
    with pytest.raises(InputError, match="val is no role: with roles=folders, give folders called"):
        read(root, roles="folders")
    root = put(tmp_path / "plain", ["a/1.jpg", "a/2.jpg", "b/1.jpg", "c/1.jpg"])
    listed = tmp_path / "roles.csv"
    listed.write_text("path,role\na,gallery\na/1.jpg,query\nc,distractor\n")
    items = read(root, roles=listed)
    assert [i.role for i in items] == ["query", "gallery", "train", "distractor"]
    for text, words in (
        ("path,role\nz/1.jpg,query\n", r"roles.csv, line 2: there is no 'z/1.jpg' in"),
        ("path,role\na,train\n\na,probe\n", r"line 4: 'probe' is no role: write train, query"),
        ("path,role\n../plain/a,train\n", r"line 2: there is no '../plain/a'"),
        ("a/1.jpg,query\n", r"line 1: the first line names the columns: path,role"),
    ):
        listed.write_text(text)
        with pytest.raises(InputError, match=words):
            read(root, roles=listed)


def people(tmp_path):
    names = [f"{who}/{who}_000{n}.jpg" for who in ("A_B", "C D", "E.F") for n in (1, 2)]
    return put(tmp_path / "lfw", names)


@pytest.mark.reliability(16, "pairs come as LFW's own text or as CSV, errors name the line")
@pytest.mark.parametrize("kind", ["lfw", "csv", "csv without folds", "one fold"])
def test_pairs_become_the_table_that_verification_reads(tmp_path, kind):
    text = {
        "lfw": "2\t1\nA_B\t1\t2\nA_B\t1\tC D\t2\nC D\t2\t1\nE.F\t1\tC D\t1\n",
        "csv": "\ufeffsame,path_a,path_b,fold\n"
        "1,A_B/A_B_0001.jpg,A_B/A_B_0002.jpg,0\n0,A_B/A_B_0001.jpg,C D/C D_0002.jpg,0\n"
        "true,C D/C D_0002.jpg,C D/C D_0001.jpg,1\n0,E.F/E.F_0001.jpg,./C D/C D_0001.jpg,1\n",
    }
    text["csv without folds"] = re.sub(r",(fold|\d)$", "", text["csv"], flags=re.M)
    text["one fold"] = text["lfw"].replace("2\t1\n", "2\n", 1)
    listed = tmp_path / "pairs.txt"
    listed.write_text(text[kind])
    settings = FolderSettings(path=people(tmp_path), pairs=listed)
    import_source("folder", settings, tmp_path / "d")
    dataset = ShardDataset.open(tmp_path / "d")
    table = dataset.table("pairs")
    keys = list(dataset.keys(np.arange(len(dataset))))
    found = [(keys[row["left"]], keys[row["right"]]) for row in table.to_pylist()]
    assert found[0] == ("A_B/A_B_0001.jpg", "A_B/A_B_0002.jpg")
    assert found[3] == ("E.F/E.F_0001.jpg", "C D/C D_0001.jpg")
    assert table["same"].to_pylist() == [True, False, True, False]
    assert table["fold"].to_pylist() == [0, 0, 1, 1]
    np.save(tmp_path / "v.npy", np.eye(6, dtype=np.float32)[[0, 0, 1, 1, 2, 2]])
    vectors = StoredVectors(tmp_path / "v.npy", np.arange(6), normalised=True)
    measured = Verification(dataset).measure({"dataset": vectors}, lambda calls: [])
    assert (measured["accuracy"], measured["folds"], measured["pairs"]) == (1, 2, 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A_B\t1\t2\nA_B\t1\tZ\t1\n", "line 2: there is no folder 'Z' in"),
        ("A_B\t1\t3\n", "line 1: there is no image A_B_0003 in"),
        ("10\t300\nA_B\t1\t2\n", "line 1: 6,000 pairs, but 1 follow"),
        ("A_B 1\n", "line 1: write `name n1 n2`"),
        ("A_B\tx\t2\n", "line 1: 'x' is no number"),
        ("A_B\t1\t2\n", "pairs of one kind only"),
        ("..\t1\t2\n", "line 1: there is no folder '..'"),
        ("path_a,path_b\n", "line 1: the first line names the columns: path_a,path_b,same"),
        ("path_a,path_b,same\nA_B/A_B_0001.jpg,gone.jpg,1\n", "line 2: there is no 'gone.jpg'"),
        ("path_a,path_b,same\nA_B/A_B_0001.jpg,x\n", "line 2: 2 values for the columns"),
        ("path_a,path_b,same\na,b,maybe\n", "line 2: same is 'maybe': write 1 or 0"),
        ("", "is empty"),
    ],
)
def test_a_wrong_list_of_pairs_is_refused_at_its_line(tmp_path, text, words):
    listed = tmp_path / "pairs.txt"
    listed.write_text(text)
    with pytest.raises(InputError, match=words):
        folder_tables(FolderSettings(path=people(tmp_path), pairs=listed))


@pytest.mark.reliability(18, "identities called train, val or test are remarked on")
def test_parts_of_a_split_are_no_identities():
    (line,) = parts_as_identities(["anna", "train", "mine/val"])
    assert "called train, mine/val" in line
    assert "import each by itself (PATH/train)" in line
    assert list(parts_as_identities(["query", "gallery"])) == [
        "identities are called query, gallery: was roles=folders meant?"
    ]
    assert not list(parts_as_identities(["Testa", "Val Kilmer"]))


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
