"""Person re-identification sets, laid out by hand as their publishers do."""

import random
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_shards.settings import InputError
from data_shards.sources import ROLES, Refusal, SourceImage
from data_shards.sources.crl_person import CrlPersonSettings, read_crl_person, read_split
from data_shards.sources.market1501 import (
    DukeSettings,
    Market1501Settings,
    read_duke,
    read_market1501,
)
from data_shards.sources.msmt17 import Msmt17Settings, read_msmt17
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.writer import write_dataset
from launch.commands.importing import unlike_published
from tests.conftest import jpeg

MARKET = {
    "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0002_c2s1_000776_01.jpg"],
    "query": ["0001_c1s1_001051_00.jpg"],
    "bounding_box_test": [
        "-1_c1s1_000401_03.jpg",
        "0000_c3s1_000151_01.jpg",
        "0001_c2s1_001976_01.jpg",
        "Thumbs.db",
    ],
}
LISTS = {
    "train": [
        "0000/0000_000_01_0303morning_0008_0.jpg 0",
        "0000/0000_001_02_0303morning_0009_0.jpg 0",
        "0001/0001_000_14_0303noon_0010_1.jpg 1",
        "0001/0001_001_15_0303noon_0010_1.jpg 1",
    ],
    "val": ["0001/0001_002_03_0303noon_0020_1.jpg 1"],
    "query": [
        "0000/0000_000_05_0113noon_0001_0.jpg 0",
        "0000/0000_003_06_0113noon_0001_0.jpg 0",
    ],
    "gallery": [
        "0000/0000_001_06_0113noon_0002_0.jpg 0",
        "0001/0001_001_07_0113noon_0002_0.jpg 1",
        "0001/0001_002_08_0113noon_0002_0.jpg 1",
    ],
}


def lay(root: Path, folders: dict[str, list[str]]) -> Path:
    for folder, names in folders.items():
        for number, name in enumerate(names):
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(number, len(folder)))
    return root


def lay_msmt(root: Path, train: str, test: str) -> Path:
    for name, lines in LISTS.items():
        folder = train if name in ("train", "val") else test
        lay(root, {folder: [line.split()[0] for line in lines]})
        (root / f"list_{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def facts(images):
    return [(i.identity, i.camera, i.key, i.role) for i in images if isinstance(i, SourceImage)]


def refused(images):
    return [(i.key, i.reason, i.counts) for i in images if isinstance(i, Refusal)]


def test_market_names_say_identity_camera_and_role(tmp_path):
    images = list(read_market1501(Market1501Settings(path=lay(tmp_path, MARKET))))
    me = "market1501"
    assert facts(images) == [
        (f"{me}/0002", f"{me}/c1", f"{me}/bounding_box_train/0002_c1s1_000451_03.jpg", "train"),
        (f"{me}/0002", f"{me}/c2", f"{me}/bounding_box_train/0002_c2s1_000776_01.jpg", "train"),
        (f"{me}/0001", f"{me}/c1", f"{me}/query/0001_c1s1_001051_00.jpg", "query"),
        (f"{me}/0000", f"{me}/c3", f"{me}/bounding_box_test/0000_c3s1_000151_01.jpg", "distractor"),
        (f"{me}/0001", f"{me}/c2", f"{me}/bounding_box_test/0001_c2s1_001976_01.jpg", "gallery"),
    ]
    assert images[1].image == jpeg(1, len("bounding_box_train"))
    assert refused(images) == [
        (f"{me}/bounding_box_test/-1_c1s1_000401_03.jpg", "junk", False),
        (f"{me}/bounding_box_test/Thumbs.db", "not named like an image", False),
    ]


def test_duke_is_read_like_market_under_a_name_of_its_own(tmp_path):
    duke = {"bounding_box_train": ["0002_c8_f0044158.jpg"], "query": [], "bounding_box_test": []}
    lay(tmp_path, duke)
    for name in duke:
        (tmp_path / name).mkdir(exist_ok=True)
    (image,) = read_duke(DukeSettings(path=tmp_path))
    assert image[1:3] == ("dukemtmc/0002", "dukemtmc/c8")


@pytest.mark.parametrize("name", ["cover.jpg", "x_c1s1_000451_03.jpg", "0002c1.jpg"])
def test_an_image_of_another_kind_is_refused_by_name(tmp_path, name):
    lay(tmp_path, {**MARKET, "query": [name]})
    images = list(read_market1501(Market1501Settings(path=tmp_path)))
    assert refused(images)[0] == (f"market1501/query/{name}", "not named like the others", True)


@pytest.mark.parametrize("start", range(8))
def test_reading_starts_at_any_item(tmp_path, start):
    market = Market1501Settings(path=lay(tmp_path, MARKET))
    assert list(read_market1501(market, start)) == list(read_market1501(market))[start:]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="has no folder bounding_box_train"):
        list(read_market1501(Market1501Settings(path=tmp_path)))
    with pytest.raises(InputError, match="train or mask_train_v2"):
        list(read_msmt17(Msmt17Settings(path=tmp_path)))


def test_counts_that_are_not_the_published_ones_are_said(tmp_path):
    market = Market1501Settings(path=lay(tmp_path, MARKET))
    write_dataset(read_market1501(market), tmp_path / "d", {})
    dataset = ShardDataset.open(tmp_path / "d")
    lines = unlike_published(dataset, {"train": 2, "query": 5, "gallery+distractor": 3})
    assert lines == [
        "1 images with role query, where 5 were published",
        "2 images with role gallery+distractor, where 3 were published",
    ]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(
        st.characters(blacklist_characters="/\0", codec="utf-8"), min_size=1, max_size=40
    ).filter(
        lambda name: not name.startswith(".")  # hidden files are nobody's images
    )
)
def test_any_file_name_is_read_as_it_says_or_refused(tmp_path_factory, name):
    root = tmp_path_factory.mktemp("market")
    lay(root, {**MARKET, "query": [f"{name}.jpg"]})
    items = list(read_market1501(Market1501Settings(path=root)))
    (item,) = [i for i in items if "/query/" in i.key]
    if isinstance(item, SourceImage):
        person, rest = name.split("_c", 1)
        assert item.identity == f"market1501/{int(person):04d}"
        assert rest.startswith(re.match("0*", rest)[0] + item.camera.removeprefix("market1501/c"))
    else:
        assert name.startswith("-1_c") or not re.match(r"\d+_c\d+\D", f"{name}.jpg", re.ASCII)


@pytest.mark.parametrize("folders", [("train", "test"), ("mask_train_v2", "mask_test_v2")])
def test_both_versions_of_msmt17_are_read_by_their_lists(tmp_path, folders):
    root = lay_msmt(tmp_path, *folders)
    images = list(read_msmt17(Msmt17Settings(path=root)))
    expected = []
    for name, lines in LISTS.items():
        train = name in ("train", "val")
        for path, person in (line.split() for line in lines):
            expected.append(
                (
                    f"msmt17/{'' if train else 'test/'}000{person}",
                    f"msmt17/c{int(path.split('_')[2])}",
                    f"msmt17/{folders[not train]}/{path}",
                    "train" if train else name,
                )
            )
    assert facts(images) == expected


def test_the_validation_images_of_msmt17_are_left_out_when_asked(tmp_path):
    root = lay_msmt(tmp_path, "train", "test")
    images = list(read_msmt17(Msmt17Settings(path=root, validation=False)))
    assert len(images) == sum(map(len, LISTS.values())) - len(LISTS["val"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0000/0000_000_01_x.jpg", "not like"),
        ("0000/0000_000_ab_x.jpg 0", "not like"),
        ("../../../etc/passwd_0_1_ 7", "leads outside"),
        ("0000/0000_001_02_0303morning_0009_0.jpg 1", "contradict"),
        ("0001/0001_000_14_0303noon_0010_1.jpg 0", "contradict"),
    ],
)
def test_a_wrong_line_of_a_list_is_named(tmp_path, line, words):
    root = lay_msmt(tmp_path, "train", "test")
    with (root / "list_train.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=rf"list_train\.txt.*{words}"):
        list(read_msmt17(Msmt17Settings(path=root)))


def test_a_listed_image_that_is_missing_is_refused(tmp_path):
    root = lay_msmt(tmp_path, "train", "test")
    with (root / "list_query.txt").open("a") as file:
        file.write("0000/0000_000_01_gone.jpg 0\n")
    images = list(read_msmt17(Msmt17Settings(path=root)))
    assert refused(images) == [("msmt17/test/0000/0000_000_01_gone.jpg", "missing", True)]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(LISTS)), st.integers(0, 2**32), st.integers(1, 4))
def test_flipped_bytes_in_a_list_never_give_a_wrong_label(tmp_path_factory, name, seed, flips):
    root = tmp_path_factory.getbasetemp() / "msmt-fuzz"
    lay_msmt(root, "train", "test")
    draw = random.Random(seed)
    path = root / f"list_{name}.txt"
    content = bytearray(path.read_bytes())
    for _ in range(flips):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    try:
        images = list(read_msmt17(Msmt17Settings(path=root)))
    except InputError:
        return
    for image in (i for i in images if isinstance(i, SourceImage)):
        folder, relative = image.key.removeprefix("msmt17/").split("/", 1)
        test = "test/" if folder == "test" else ""
        assert image.identity == f"msmt17/{test}{relative.split('/')[0]}"
        assert image.image == (root / folder / relative).read_bytes()


CRL = {
    "train": ["0003_0_01_000.jpg", "0003_0_02_000.jpg", "0010_0_07_003.jpg"],
    "query": ["0003_1_01_000.jpg"],
    "gallery": ["0003_2_02_000.jpg"],
}


@pytest.mark.parametrize("inner", ["MIX", ""])
def test_crl_person_is_read_as_distributed(tmp_path, inner):
    lay(tmp_path / inner, CRL)
    images = list(read_crl_person(CrlPersonSettings(path=tmp_path)))
    assert [i.identity for i in images] == [
        *("crl_person/0003", "crl_person/0003", "crl_person/0010"),
        *("crl_person/test/0003", "crl_person/test/0003"),
    ]
    assert [i.role for i in images] == ["train"] * 3 + ["query", "gallery"]
    assert [i.camera for i in images][1] == "crl_person/c2"


def test_crl_person_refuses_an_image_in_the_wrong_set(tmp_path):
    lay(tmp_path, {**CRL, "gallery": ["0003_1_02_000.jpg"]})
    images = list(read_crl_person(CrlPersonSettings(path=tmp_path)))
    wrong = "crl_person/gallery/0003_1_02_000.jpg"
    assert refused(images) == [(wrong, "not named like the others", True)]


def test_a_split_file_gives_identities_by_step(tmp_path):
    path = tmp_path / "split_5_step.txt"
    path.write_text("step 0: [3, 10]\nstep 1 : [7,8 , 9]\n\n[11]\n2: 12, 13\n")
    assert read_split(path) == [
        [f"crl_person/{n:04d}" for n in step] for step in ([3, 10], [7, 8, 9], [11], [12, 13])
    ]
    path.write_text("step 0: [3, 10]\nstep 1: [10]\n")
    with pytest.raises(InputError, match=r"lists crl_person/0010 more than once"):
        read_split(path)
    for line in ("step 1", "step 1: []", "step 1: [3; 4]", "step 1: [3, x]"):
        path.write_text(f"step 0: [3]\n{line}\n")
        with pytest.raises(InputError, match="line 2 of"):
            read_split(path)


def test_merged_sources_keep_their_identities_apart_through_shards(tmp_path):
    market = lay(tmp_path / "market", MARKET)
    msmt = lay_msmt(tmp_path / "msmt", "train", "test")
    items = [
        *read_market1501(Market1501Settings(path=market)),
        *read_msmt17(Msmt17Settings(path=msmt)),
    ]
    images = [item for item in items if isinstance(item, SourceImage)]
    write_dataset(images, tmp_path / "d", {})
    dataset = ShardDataset.open(tmp_path / "d")
    for sample, image in enumerate(images):
        assert dataset.image(sample) == image.image
        assert dataset.names[dataset.identity[sample]] == image.identity
        assert ROLES[dataset.role[sample]] == image.role
