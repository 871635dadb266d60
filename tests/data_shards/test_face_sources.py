"""IJB and MegaFace, laid out by hand; alignment by five landmarks; feature files."""

import io
import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_shards.alignment import REFERENCE, SIDE, align, similarity
from data_shards.settings import InputError
from data_shards.sources import Refusal, SourceImage
from data_shards.sources.ijb import IjbSettings, ijb_tables, read_ijb
from data_shards.sources.megaface import (
    FacescrubSettings,
    MegafaceSettings,
    facescrub_tables,
    megaface_tables,
    read_facescrub,
    read_megaface,
)
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.features import read_feature, write_feature
from data_shards.writing.writer import write_dataset
from tests.conftest import jpeg

FACES = [("1.jpg", 7, 100), ("2.jpg", 7, 100), ("3.jpg", 8, 101), ("4.jpg", 9, 102)]
PAIRS = [(7, 8, 1), (8, 9, 0)]


def lay_ijb(root: Path, edition: str = "c") -> Path:
    meta, crops = root / "meta", root / "loose_crop"
    meta.mkdir(parents=True, exist_ok=True)
    crops.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    marks = []
    for number, (name, _, _) in enumerate(FACES):
        (crops / name).write_bytes(jpeg(number, 0, 160))
        points = (REFERENCE * 1.2 + rng.normal(0, 2, (5, 2)) + 10).round(3).ravel()
        marks.append(f"{name} {' '.join(map(str, points))} 0.99")
    (meta / f"ijb{edition}_face_tid_mid.txt").write_text(
        "".join(f"{name} {t} {m}\n" for name, t, m in FACES)
    )
    (meta / f"ijb{edition}_template_pair_label.txt").write_text(
        "".join(f"{a} {b} {s}\n" for a, b, s in PAIRS)
    )
    (meta / f"ijb{edition}_name_5pts_score.txt").write_text("\n".join(marks) + "\n")
    first = "G1" if edition == "c" else "S1"
    header = "TEMPLATE_ID,SUBJECT_ID,FILENAME\n"
    (meta / f"ijb{edition}_1N_gallery_{first}.csv").write_text(
        header + '7,31,"img/1,0.jpg"\n7,31,img/2.jpg\n'
    )
    (meta / f"ijb{edition}_1N_probe_mixed.csv").write_text(header + "8,31,frames/3.png\n")
    return root


def spot(crop: Image.Image) -> tuple[float, float]:
    """The centre of mass of the light in a picture, counted from the first pixel's centre."""
    light = np.asarray(crop.convert("L"), dtype=float)
    y, x = np.mgrid[: light.shape[0], : light.shape[1]]
    return float((x * light).sum() / light.sum()), float((y * light).sum() / light.sum())


@pytest.mark.parametrize("which", range(5))
def test_each_landmark_comes_to_its_place(which):
    turn, scale = 0.3, 1.7
    rotation = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    landmarks = REFERENCE @ rotation.T + [60.0, 20.0]
    x, y = landmarks[which]
    pixels = np.zeros((300, 300, 3))
    rows, columns = np.mgrid[:300, :300]
    pixels += (255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18))[..., None]
    crop = align(Image.fromarray(pixels.round().astype(np.uint8)), landmarks)
    assert crop.size == (SIDE, SIDE)
    assert spot(crop) == pytest.approx(REFERENCE[which], abs=0.05)


def test_the_similarity_is_the_best_of_all():
    """Against a least-squares solution over its four numbers."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        points = rng.normal(50, 20, (5, 2))
        rows = np.concatenate(
            [
                np.column_stack([points[:, 0], -points[:, 1], np.ones(5), np.zeros(5)]),
                np.column_stack([points[:, 1], points[:, 0], np.zeros(5), np.ones(5)]),
            ]
        )
        aim = np.concatenate([REFERENCE[:, 0], REFERENCE[:, 1]])
        a, b, dx, dy = np.linalg.lstsq(rows, aim, rcond=None)[0]
        assert similarity(points, REFERENCE) == pytest.approx(np.array([[a, -b, dx], [b, a, dy]]))


@pytest.mark.parametrize("points", [np.ones((5, 2)), np.full((5, 2), np.nan)])
def test_landmarks_that_say_nothing_are_refused(points):
    with pytest.raises(ValueError, match="landmarks"):
        similarity(points, REFERENCE)


@pytest.mark.parametrize("processes", [0, 2])
def test_ijb_images_come_aligned_with_subject_or_template_as_identity(tmp_path, processes):
    images = list(read_ijb(IjbSettings(path=lay_ijb(tmp_path)), 0, processes))
    assert [i.identity for i in images] == ["ijbc/31", "ijbc/31", "ijbc/31", "ijbc/template-9"]
    assert [i.key for i in images] == [f"ijbc/{name}" for name, _, _ in FACES]
    assert {i.role for i in images} == {"gallery"}
    for image in images:
        with Image.open(io.BytesIO(image.image)) as opened:
            assert (opened.format, opened.size) == ("PNG", (SIDE, SIDE))
            assert np.asarray(opened).std() > 10


def test_ijb_images_that_are_aligned_already_stay_as_they_are(tmp_path):
    root = lay_ijb(tmp_path)
    (root / "meta" / "ijbc_name_5pts_score.txt").unlink()
    images = list(read_ijb(IjbSettings(path=root, aligned=True)))
    assert [i.image for i in images] == [jpeg(n, 0, 160) for n in range(4)]


@pytest.mark.parametrize("edition", ["b", "c"])
def test_ijb_tables_survive_the_writer(tmp_path, edition):
    choice = IjbSettings(path=lay_ijb(tmp_path / "ijb", edition), edition=edition)
    write_dataset(read_ijb(choice, 0, 0), tmp_path / "d", {}, tables=ijb_tables(choice))
    dataset = ShardDataset.open(tmp_path / "d")
    assert dataset.table("templates").to_pydict() == {
        "template": [7, 7, 8, 9],
        "medium": [100, 100, 101, 102],
        "sample": [0, 1, 2, 3],
    }
    assert dataset.table("template_pairs").to_pydict() == {
        "left": [7, 8],
        "right": [8, 9],
        "same": [True, False],
    }
    assert dataset.table("search").to_pydict() == {
        "template": [7, 8],
        "subject": [31, 31],
        "part": ["gallery-1", "probe"],
    }


def test_an_ijb_image_that_is_no_image_is_refused(tmp_path):
    root = lay_ijb(tmp_path / "ijb")
    (root / "loose_crop" / "2.jpg").write_bytes(jpeg(1, 0, 160)[:900])
    choice = IjbSettings(path=root)
    images = read_ijb(choice, 0, 0)
    write_dataset(images, tmp_path / "d", {}, max_refused=0.3, tables=ijb_tables(choice))
    dataset = ShardDataset.open(tmp_path / "d")
    assert dataset.manifest["refused"] == 1
    assert dataset.table("templates")["sample"].to_pylist() == [0, -1, 1, 2]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("face_tid_mid.txt", "1.jpg 7\n", "not a list of name template medium"),
        ("face_tid_mid.txt", "1.jpg 7 x\n", "not a list of name template medium"),
        ("face_tid_mid.txt", "1.jpg  100\n", "empty field"),
        ("name_5pts_score.txt", "1.jpg" + " 5" * 11 + "\n", "landmarks that coincide"),
        ("name_5pts_score.txt", "1.jpg 1 2 3 4 5 6 7 8 9 0 1\n", "no landmarks of '2.jpg'"),
        ("name_5pts_score.txt", "1.jpg 1 2 3\n", "not a list of name x0"),
        ("name_5pts_score.txt", "1.jpg" + " 5" * 9 + " inf 1\n", "landmarks that coincide"),
        ("1N_probe_mixed.csv", "TEMPLATE_ID,FILENAME\n1,a\n", "no columns of template"),
        ("1N_probe_mixed.csv", "TEMPLATE_ID,SUBJECT_ID\n1,a\n", "no columns of template"),
        ("1N_probe_mixed.csv", "TEMPLATE_ID,SUBJECT_ID\n7,32\n", "give template 7 more than one"),
        ("template_pair_label.txt", "7 8 2\n", "not a list of left right same"),
    ],
)
def test_a_damaged_list_of_ijb_is_named(tmp_path, name, content, words):
    root = lay_ijb(tmp_path)
    (root / "meta" / f"ijbc_{name}").write_text(content)
    choice = IjbSettings(path=root)
    with pytest.raises(InputError, match=rf"ijbc_({name}|1N_\*\.csv).*{words}"):
        [*read_ijb(choice, 0, 0), *ijb_tables(choice)]


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(
        ["face_tid_mid.txt", "template_pair_label.txt", "1N_gallery_G1.csv", "1N_probe_mixed.csv"]
    ),
    st.integers(0, 2**32),
)
def test_flipped_bytes_in_a_list_of_ijb_give_tables_of_known_kinds_or_an_input_error(
    tmp_path_factory, name, seed
):
    root = lay_ijb(tmp_path_factory.getbasetemp() / "ijb-fuzz")
    draw = random.Random(seed)
    path = root / "meta" / f"ijbc_{name}"
    content = bytearray(path.read_bytes())
    for _ in range(draw.randrange(1, 4)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    choice = IjbSettings(path=root, aligned=True)
    try:
        images = list(read_ijb(choice, 0, 0))
        tables = ijb_tables(choice)
    except InputError:
        return
    assert len(set(tables["templates"]["sample_key"].to_pylist())) == len(images)
    for image in (i for i in images if isinstance(i, SourceImage)):
        name = image.key.removeprefix("ijbc/")
        assert image.image == (root / "loose_crop" / name).read_bytes()


def lay_megaface(root: Path) -> tuple[FacescrubSettings, MegafaceSettings]:
    for number, name in enumerate(["Al_B/Al_B_1.png", "Al_B/Al_B_2.png", "Cy D/Cy_D_7.png"]):
        path = root / "facescrub" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number, 0))
    for number, name in enumerate(["0/12@N00/1_0.jpg", "0/12@N00/2_0.jpg", "9/7@N01/3_1.jpg"]):
        path = root / "megaface" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number, 1))
    (root / "megaface" / "0" / "12@N00" / "1_0.jpg.json").write_text("{}")
    return FacescrubSettings(path=root / "facescrub"), MegafaceSettings(path=root / "megaface")


def test_megaface_distractors_and_probes_are_read_from_their_trees(tmp_path):
    probes, distractors = lay_megaface(tmp_path)
    images = [*read_facescrub(probes), *read_megaface(distractors)]
    assert [(i.identity, i.key, i.role) for i in images] == [
        ("facescrub/Al_B", "facescrub/Al_B/Al_B_1.png", "query"),
        ("facescrub/Al_B", "facescrub/Al_B/Al_B_2.png", "query"),
        ("facescrub/Cy D", "facescrub/Cy D/Cy_D_7.png", "query"),
        ("megaface/0/12@N00", "megaface/0/12@N00/1_0.jpg", "distractor"),
        ("megaface/0/12@N00", "megaface/0/12@N00/2_0.jpg", "distractor"),
        ("megaface/9/7@N01", "megaface/9/7@N01/3_1.jpg", "distractor"),
    ]
    assert list(read_megaface(distractors, 2)) == images[5:]


def test_lists_narrow_megaface_down_and_noise_lists_make_a_table(tmp_path):
    probes, distractors = lay_megaface(tmp_path)
    (tmp_path / "probes.json").write_text(
        json.dumps({"id": [0, 0], "path": ["Al_B/Al_B_2.png", "Cy D/Cy_D_7.png"]})
    )
    (tmp_path / "distractors.txt").write_text("9/7@N01/3_1.jpg\n0/12@N00/1_0.jpg\n")
    (tmp_path / "noise.txt").write_text("#names\nAl_B_2.jpg\nAl_B_1.png\n")
    (tmp_path / "other.txt").write_text("Cy D\t9/7@N01/3_1.jpg\n")
    lists = {"only": tmp_path / "probes.json", "noise": tmp_path / "noise.txt"}
    probes = probes.model_copy(update=lists)
    lists = {"only": tmp_path / "distractors.txt", "noise": tmp_path / "other.txt"}
    distractors = distractors.model_copy(update=lists)
    tables = facescrub_tables(probes)
    write_dataset(read_facescrub(probes), tmp_path / "p", {}, tables=tables)
    assert ShardDataset.open(tmp_path / "p").table("noisy")["sample"].to_pylist() == [0]
    tables = megaface_tables(distractors)
    write_dataset(read_megaface(distractors), tmp_path / "d", {}, tables=tables)
    dataset = ShardDataset.open(tmp_path / "d")
    assert dataset.names.tolist() == ["megaface/9/7@N01", "megaface/0/12@N00"]
    assert dataset.table("noisy")["sample"].to_pylist() == [0]


def test_without_a_noise_list_there_is_no_table_and_one_that_fits_nothing_is_named(tmp_path):
    probes, distractors = lay_megaface(tmp_path)
    assert megaface_tables(distractors) == facescrub_tables(probes) == {}
    (tmp_path / "noise.txt").write_text("Nobody_1.jpg\n")
    with pytest.raises(InputError, match=r"no image of .* is among the 1 that"):
        facescrub_tables(probes.model_copy(update={"noise": tmp_path / "noise.txt"}))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("../megaface/0/12@N00/1_0.jpg\n", "outside of"),
        ("/etc/passwd\n", "outside of"),
        ('{"id": [1]}', "no JSON with a list `path`"),
        ('{"path": [1]}', "no JSON with a list `path`"),
        ('{"path": "abc"}', "no JSON with a list `path`"),
        ('{"path": ', "no JSON with a list `path`"),
    ],
)
def test_a_wrong_list_of_megaface_is_named(tmp_path, content, words):
    probes, _ = lay_megaface(tmp_path)
    (tmp_path / "list").write_text(content)
    with pytest.raises(InputError, match=words):
        list(read_facescrub(probes.model_copy(update={"only": tmp_path / "list"})))


def test_an_image_that_is_missing_or_in_no_folder_is_refused(tmp_path):
    probes, _ = lay_megaface(tmp_path)
    (probes.path / "stray.jpg").write_bytes(jpeg(0, 0))
    assert [i.reason for i in read_facescrub(probes) if isinstance(i, Refusal)] == ["no identity"]
    (tmp_path / "list").write_text("Al_B/gone.png\n")
    items = list(read_facescrub(probes.model_copy(update={"only": tmp_path / "list"})))
    assert [i.reason for i in items] == ["missing"]


def test_feature_files_have_the_devkit_s_bytes_and_come_back(tmp_path):
    path, values = tmp_path / "a" / "1.jpg_ours.bin", [0.5, -1.0, 3.25]
    write_feature(path, np.array(values, dtype=np.float64))
    assert path.read_bytes() == struct.pack("<4i3f", 3, 1, 4, 5, *values)
    found = read_feature(path)
    assert found.dtype == np.float32
    assert found.tolist() == values


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<4i2f", 3, 1, 4, 5, 1, 2),
        struct.pack("<4i4f", 3, 1, 4, 5, 1, 2, 3, 4),
        struct.pack("<4i3f", 3, 1, 4, 6, 1, 2, 3),
        struct.pack("<4i3f", -3, 1, 4, 5, 1, 2, 3),
        struct.pack("<4i3f", 3, 1, 4, 5, 1, float("nan"), 3),
    ],
)
def test_a_damaged_feature_file_is_named(tmp_path, content):
    (tmp_path / "f.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"f\.bin"):
        read_feature(tmp_path / "f.bin")
