"""RecordIO files, built byte by byte: read right, and no damage gives a wrong label."""

import re
import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_shards.settings import InputError
from data_shards.sources import Refusal, SourceImage
from data_shards.sources.recordio import RecordIOSettings, count_recordio, read_recordio
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.importing import import_source
from tests.conftest import jpeg
from tests.data_shards import recordio_bytes as rec

PEOPLE = [[jpeg(c, k) for k in range(3 + c % 3)] for c in range(5)]
FLAT = [(label, image) for label, own in enumerate(PEOPLE) for image in own]
MIXED = [FLAT[i] for i in np.random.default_rng(0).permutation(len(FLAT))]


def read(path, start=0, **options):
    return list(read_recordio(RecordIOSettings(path=path, **options), start))


def taken(items):
    return [(item.identity, item.image) for item in items if isinstance(item, SourceImage)]


def refused(items):
    return [item for item in items if isinstance(item, Refusal) and item.counts]


def expected(images):
    return [(str(label), image) for label, image in images]


@pytest.fixture(params=["identity-sorted", "shuffled"])
def kind(request):
    sort = request.param == "identity-sorted"
    payloads = rec.identity_sorted(PEOPLE) if sort else rec.shuffled(MIXED)
    return payloads, FLAT if sort else MIXED


@pytest.mark.parametrize("idx", [True, False])
def test_every_image_comes_with_its_class_in_the_files_order(tmp_path, kind, idx):
    payloads, images = kind
    path = rec.write(tmp_path, payloads, len(PEOPLE), idx)
    items = read(path)
    assert taken(items) == expected(images) and refused(items) == []
    assert [i.key for i in items if isinstance(i, SourceImage)] == [
        str(key) for key, payload in payloads.items() if len(payload) > 32 or len(payload) == 24
    ]
    assert read(tmp_path) == items  # the folder names its only .rec


@pytest.mark.parametrize("idx", [True, False])
def test_reading_can_start_at_any_image(tmp_path, kind, idx):
    rec.write(tmp_path, kind[0], None, idx)
    whole = read(tmp_path)
    for start in range(len(whole) + 1):
        assert read(tmp_path, start) == whole[start:]
    assert count_recordio(RecordIOSettings(path=tmp_path)) == len(whole)


def test_payloads_with_the_magic_number_are_joined_from_their_parts(tmp_path):
    """At a 4-aligned offset it splits a record; elsewhere it does not."""
    image = bytearray(jpeg(1, 1))
    text = b"__" + rec.MAGIC_BYTES * 3 + b"x" + rec.MAGIC_BYTES * 2
    image[2:2] = b"\xff\xfe" + struct.pack(">H", 2 + len(text)) + text  # a JPEG comment
    payloads = rec.shuffled([(0, bytes(image)), (1, jpeg(2, 2)), (0, jpeg(1, 3))])
    assert rec.record(payloads[0]).count(struct.pack("<I", rec.MAGIC)) == 4 + 2, "of four parts"
    for idx in (True, False):
        rec.write(tmp_path / str(idx), payloads, 2, idx)
        assert taken(read(tmp_path / str(idx)))[0] == ("0", bytes(image))
        assert len(taken(read(tmp_path / str(idx)))) == 3


def test_a_round_trip_through_shards_keeps_bytes_and_identities(tmp_path, kind):
    payloads, images = kind
    rec.write(tmp_path / "r", payloads, len(PEOPLE))
    settings = RecordIOSettings(path=tmp_path / "r", name="tiny")
    manifest = import_source("recordio", settings, tmp_path / "d", shard_samples=4)
    dataset = ShardDataset.open(tmp_path / "d")
    found = [(dataset.names[i], dataset.image(s)) for s, i in enumerate(dataset.identity)]
    assert found == [(f"tiny/{label}", image) for label, image in images]
    assert manifest["refused"] == 0


@pytest.mark.parametrize(
    ("label", "why"),
    [
        (float(1 << 24), "2\\^24"),
        (3e9, "2\\^24"),
        (1.5, "no whole number"),
        (-1.0, "no whole number"),
        (float("nan"), "no whole number"),
        (float("inf"), "2\\^24"),
        (5.0, "not below the 5 classes of `property`"),
    ],
)
def test_labels_that_cannot_be_right_are_refused(tmp_path, label, why):
    payloads = rec.shuffled(MIXED) | {3: rec.packed(label, jpeg(0, 0))}
    rec.write(tmp_path, payloads, len(PEOPLE))
    (item,) = refused(read(tmp_path))
    assert item.key == "3" and item.reason == "label"
    assert re.search(why, item.why)
    with pytest.raises(InputError, match="1 of 19 images were refused"):
        import_source("recordio", RecordIOSettings(path=tmp_path), tmp_path / "d")


def test_files_that_count_beyond_float32_are_refused_with_an_explanation(tmp_path):
    payloads = rec.identity_sorted(PEOPLE)
    payloads[0] = rec.packed([float(1 << 24), float(1 << 24) + 2], b"")
    rec.write(tmp_path, payloads, None)
    with pytest.raises(InputError, match=r"float32.*2\^24"):
        read(tmp_path)
    rec.write(tmp_path, rec.shuffled(MIXED), 20_000_000)
    with pytest.raises(InputError, match=r"property names 20,000,000 classes: .*float32"):
        read(tmp_path)


def test_a_wrong_property_is_named(tmp_path):
    rec.write(tmp_path, rec.identity_sorted(PEOPLE), 7)
    with pytest.raises(InputError, match=r"property names 7 classes, but train\.rec 5 identities"):
        read(tmp_path)
    (tmp_path / "property").write_text("many\n")
    with pytest.raises(InputError, match="property must read classes,height,width"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ("", "damaged"),
        ("0\tx\n", "damaged"),
        ("0\t0\n1\t0\n", "names a record twice"),
        ("0\t0\n1\t99999999\n", "beyond the"),
        ("0\t-8\n", "beyond the"),
        ("0\t0\n1\t40\n", "announces 19 images, but 1 are indexed"),
    ],
)
def test_an_index_that_does_not_fit_is_named_with_the_remedy(tmp_path, index, why):
    rec.write(tmp_path, rec.identity_sorted(PEOPLE), None)
    (tmp_path / "train.idx").write_text(index)
    with pytest.raises(InputError, match=why):
        read(tmp_path)


def test_a_truncated_file_is_an_error_with_and_without_an_index(tmp_path, kind):
    for idx in (True, False):
        path = rec.write(tmp_path / str(idx), kind[0], None, idx)
        path.write_bytes(path.read_bytes()[:-300])
        if idx and kind[1] is MIXED:  # the cut is within the last image
            assert len(refused(read(path))) == 1
        else:
            with pytest.raises(InputError, match="truncated"):
                read(path)


def test_one_damaged_record_costs_one_image(tmp_path, kind):
    payloads, images = kind
    path = rec.write(tmp_path, payloads, None)
    offsets = [int(line.split()[1]) for line in (tmp_path / "train.idx").read_text().splitlines()]
    content = bytearray(path.read_bytes())
    content[offsets[4]] ^= 0xFF  # its magic
    struct.pack_into("<I", content, offsets[6] + 4, 0x1FFFFFFF)  # its length
    struct.pack_into("<I", content, offsets[8] + 4, 20)
    struct.pack_into("<I", content, offsets[10] + 8, 0xFFFFFFF0)  # its number of labels
    path.write_bytes(content)
    items = read(path)
    assert len(refused(items)) == 4
    assert set(taken(items)) < set(expected(images))
    assert len(taken(items)) == len(images) - 4


@pytest.mark.parametrize("wrong", range(len(PEOPLE)))
def test_a_label_that_became_another_valid_one_is_refused(tmp_path, wrong):
    """In identity-sorted files, where an identity record says which images belong together."""
    payloads = rec.identity_sorted(PEOPLE)
    for key in range(1, len(FLAT) + 1):
        right = FLAT[key - 1][0]
        rec.write(tmp_path, payloads | {key: rec.packed([wrong, 1.0], FLAT[key - 1][1])}, 5)
        items = read(tmp_path)
        assert taken(items) == [i for n, i in enumerate(expected(FLAT), 1) if n != key or
                                right == wrong]  # fmt: skip
        assert [item.key for item in refused(items)] == [str(key)] * (right != wrong)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "train.rec")
    with pytest.raises(InputError, match=r"holds 0 \.rec files"):
        read(tmp_path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An identity-sorted file that examples are flipped from: (folder, bytes by name)."""
    folder = tmp_path_factory.mktemp("rec")
    rec.write(folder, rec.identity_sorted(PEOPLE), len(PEOPLE))
    return folder, {p.name: p.read_bytes() for p in folder.iterdir()}


@settings(max_examples=120)
@given(
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
    name=st.sampled_from(["train.rec", "train.rec", "train.rec", "train.idx", "property"]),
    cut=st.one_of(st.none(), st.floats(0, 1)),
    idx=st.booleans(),
)
def test_no_damage_gives_a_wrong_label(base, flips, name, cut, idx):
    """Up to four flipped bytes and a cut in one file of an identity-sorted set.

    An image is recognised by its bytes: whoever comes out whole has its own class. Only with an
    index, because identity records are what labels are held against.
    """
    folder, files = base
    damaged = bytearray(files[name])
    for at, mask in flips:
        damaged[int(at * len(damaged))] ^= mask
    if cut is not None:
        damaged = damaged[: int(cut * len(damaged))]
    for other, content in (files | {name: bytes(damaged)}).items():
        (folder / other).write_bytes(content)
    if not idx and name != "train.idx" and name != "train.rec":
        (folder / "train.idx").unlink()
    try:
        items = read(folder)
    except InputError:
        return
    classes = {image: str(label) for label, image in FLAT}
    for identity, image in taken(items):
        assert classes.get(image, identity) == identity


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.binary(max_size=60))
def test_garbage_is_an_error_or_refused(tmp_path, content, index):
    (tmp_path / "train.rec").write_bytes(content)
    (tmp_path / "train.idx").write_bytes(index)
    with suppress(InputError):
        assert taken(read(tmp_path)) == []


@pytest.mark.parametrize("idx", [True, False])
@pytest.mark.parametrize("hole", [1, 4, 7, 19])
@pytest.mark.reliability(19, "a RecordIO file that lacks an image gives all of the others")
def test_a_file_that_lacks_an_image_gives_the_others_with_their_labels(tmp_path, idx, hole):
    payloads = rec.identity_sorted(PEOPLE)
    del payloads[hole]
    rec.write(tmp_path, payloads, len(PEOPLE), idx)
    items = read(tmp_path)
    assert taken(items) == expected([one for key, one in enumerate(FLAT, 1) if key != hole])
    assert refused(items) == []
    if idx:
        assert [(i.key, i.reason) for i in items[-1:]] == [(str(hole), "missing record")]
    for start in range(len(items) + 1):
        assert read(tmp_path, start) == items[start:]
    assert count_recordio(RecordIOSettings(path=tmp_path)) == len(items)


def test_an_index_that_gives_every_record_the_same_number_is_read_by_its_offsets(tmp_path):
    path = rec.write(tmp_path, rec.shuffled(MIXED), len(PEOPLE))
    lines = path.with_suffix(".idx").read_text(encoding="utf-8").splitlines()
    same = "".join(f"1\t{line.split()[1]}\n" for line in lines)
    path.with_suffix(".idx").write_text(same, encoding="utf-8")
    assert taken(read(tmp_path)) == expected(MIXED)
