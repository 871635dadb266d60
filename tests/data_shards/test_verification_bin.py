"""Verification .bin files of every pickle protocol; none of them gets to run anything."""

import pickle
import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.settings import InputError
from data_shards.sources import Refusal, SourceImage
from data_shards.sources.verification_bin import (
    VerificationBinSettings,
    read_verification_bin,
    verification_bin_tables,
)
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.importing import import_source
from tests.conftest import jpeg

IMAGES = [jpeg(i, 0) for i in range(24)]
SAME = [i % 3 > 0 for i in range(12)]


def read(path, content, start=0):
    path.write_bytes(content)
    return list(read_verification_bin(VerificationBinSettings(path=path), start))


def python2(images, same):
    """What Python 2's pickle.dump(protocol=2) writes: texts are BINSTRINGs."""
    texts = b"".join(b"T" + struct.pack("<i", len(i)) + i + b"q\x05" for i in images)
    truths = b"".join(b"\x88" if s else b"\x89" for s in same)
    lists = b"]q\x01(" + texts + b"e" + b"]q\x02(" + truths + b"e"
    return b"\x80\x02" + lists + b"\x86q\x03."


def python2_text(images, same):
    """And with protocol 0, its default: everything is a line of ASCII."""
    texts = b"".join(b"S" + ascii_string(i) + b"\np1\na" for i in images)
    truths = b"".join(b"I01\na" if s else b"I00\na" for s in same)
    return b"((lp0\n" + texts + b"(lp2\n" + truths + b"tp3\n."


def ascii_string(content):
    return b"'" + "".join(f"\\x{byte:02x}" for byte in content).encode() + b"'"


def arrays(images, same):
    return [np.frombuffer(i, dtype=np.uint8) for i in images], np.array(same)


def copied(images, same):
    return [np.array(list(i), dtype=np.uint8) for i in images], [np.bool_(s) for s in same]


FILES = {
    "Python 2": python2(IMAGES, SAME),
    "Python 2, protocol 0": python2_text(IMAGES, SAME),
    **{f"bytes, protocol {p}": pickle.dumps((IMAGES, SAME), p) for p in range(6)},
    **{f"arrays, protocol {p}": pickle.dumps(arrays(IMAGES, SAME), p) for p in range(6)},
    **{f"copied arrays, protocol {p}": pickle.dumps(copied(IMAGES, SAME), p) for p in (2, 4, 5)},
    "an array of objects": pickle.dumps((np.array(IMAGES, dtype=object), [int(s) for s in SAME])),
    "as cv2.imencode gives them": pickle.dumps(
        ([i.reshape(-1, 1) for i in arrays(IMAGES, SAME)[0]], [np.bool_(s) for s in SAME])
    ),
    "a dictionary": pickle.dumps({"bins": IMAGES, "issame_list": [int(s) for s in SAME]}),
    "a list of tuples": pickle.dumps([tuple(IMAGES), tuple(SAME)]),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.reliability(
    19, "verification files of arrays from cv2.imencode, and dictionaries, are read"
)
def test_files_of_every_age_hold_the_same_pairs(tmp_path, kind):
    items = read(tmp_path / "lfw.bin", FILES[kind])
    assert [item.image for item in items] == IMAGES
    assert {item.role for item in items} == {"query"}
    table = verification_bin_tables(VerificationBinSettings(path=tmp_path / "lfw.bin"))["pairs"]
    assert table["same"].to_pylist() == SAME
    left, right = (table[f"{side}_key"].to_pylist() for side in ("left", "right"))
    assert [k for pair in zip(left, right, strict=True) for k in pair] == [i.key for i in items]
    assert table["fold"].to_pylist() == [0, 0, 1, 1, *range(2, 10)]  # ten parts in file order
    assert read(tmp_path / "lfw.bin", FILES[kind], 7) == items[7:]


def test_images_of_a_pair_share_an_identity_exactly_when_it_shows_one_person(tmp_path):
    names = [item.identity for item in read(tmp_path / "lfw.bin", FILES["Python 2"])]
    assert [a == b for a, b in zip(names[::2], names[1::2], strict=True)] == SAME
    assert len(set(names)) == sum(1 if s else 2 for s in SAME)


def test_a_round_trip_through_shards_keeps_pairs_and_skips_refused_images(tmp_path):
    images = [*IMAGES[:5], b"broken", *IMAGES[6:]]
    (tmp_path / "cfp.bin").write_bytes(pickle.dumps((images, SAME), 2))
    given_ = VerificationBinSettings(path=tmp_path / "cfp.bin", name="cfp")
    import_source("verification_bin", given_, tmp_path / "d", shard_samples=5, max_refused=0.1)
    dataset = ShardDataset.open(tmp_path / "d")
    pairs = dataset.table("pairs").to_pydict()
    assert pairs["right"][2] == -1 and pairs["right"].count(-1) == 1
    for left, right, image in zip(pairs["left"], pairs["right"], IMAGES[::2], strict=True):
        assert dataset.image(left) == image
        both = dataset.identity[[left, right]]
        assert right == -1 or (both[0] == both[1]) == pairs["same"][pairs["left"].index(left)]
    assert all(name.startswith("cfp/pair-") for name in dataset.names)


class Calls:
    """Pickled, it is a call."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


def attacks(target):
    import builtins
    import os
    import subprocess

    touch = f"touch {target}"
    yield from (
        pickle.dumps(value, protocol)
        for protocol in range(6)
        for value in (
            Calls(os.system, touch),
            ([Calls(subprocess.check_output, ["touch", str(target)])], [True]),
            (IMAGES, [Calls(builtins.eval, f"open({str(target)!r}, 'w')")] * 12),
            (np.array([Calls(os.system, touch)], dtype=object), [True]),
        )
    )
    yield f"cos\nsystem\n(S'{touch}'\ntR.".encode()
    yield f"(S'{touch}'\nios\nsystem\n.".encode()
    yield f"(cos\nsystem\nS'{touch}'\no.".encode()
    yield b"\x80\x02cos\nsystem\n(U" + bytes([len(touch)]) + touch.encode() + b"t\x81."
    yield b"cnumpy\nndarray\n(K\x01tR."
    yield b"cnumpy.f2py.diagnose\nrun\n(tR."
    yield b"Ppersistent\n."
    yield b"\x82\x01."


def test_no_file_gets_to_run_code(tmp_path):
    for number, attack in enumerate(attacks(tmp_path / "pwned")):
        with pytest.raises(
            InputError, match=r"x\.bin is (refused|no whole verification file)"
        ) as e:
            read(tmp_path / "x.bin", attack)
        assert "could run code" in str(e.value) or number >= 24, attack
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no whole verification file"),
        (FILES["Python 2"][:-5000], "no whole verification file"),
        (pickle.dumps([1, 2, 3]), "does not hold"),
        (pickle.dumps((IMAGES, SAME[:-1])), "24 images for 11 pairs"),
        (pickle.dumps((IMAGES, ["yes"] * 12)), "does not hold"),
        (pickle.dumps({"bins": IMAGES}), "does not hold"),
        (pickle.dumps((np.zeros((24, 9), dtype=np.float32), SAME)), "array of f4"),
        (b"\x80\x04B\xff\xff\xff\xff", "cut off"),
        (b"]r\xff\xff\xff\xff.", "does not hold"),
    ],
)
def test_other_files_are_named_with_the_reason(tmp_path, content, why):
    with pytest.raises(InputError, match=why):
        read(tmp_path / "x.bin", content)
    with pytest.raises(InputError, match="cannot be read"):
        list(read_verification_bin(VerificationBinSettings(path=tmp_path / "nowhere.bin")))


def test_pixels_without_a_format_are_refused(tmp_path):
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    items = read(tmp_path / "x.bin", pickle.dumps(([pixels, IMAGES[1]], [False]), 4))
    assert isinstance(items[0], Refusal) and isinstance(items[1], SourceImage)


@settings(max_examples=300)
@given(
    kind=st.sampled_from(sorted(FILES)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
    early=st.booleans(),
)
def test_no_damage_crashes_the_reader_or_makes_up_pairs(tmp_path_factory, kind, flips, early):
    content = bytearray(FILES[kind])
    for at, mask in flips:
        content[int(at * (200 if early else len(content)))] ^= mask
    with suppress(InputError):
        items = read(tmp_path_factory.getbasetemp() / "flipped.bin", bytes(content))
        assert len(items) % 2 == 0


@settings(max_examples=200)
@given(st.lists(st.sampled_from([bytes([code]) for code in range(256)]), max_size=40))
def test_random_programs_end_in_an_error(tmp_path_factory, codes):
    with suppress(InputError):
        read(tmp_path_factory.getbasetemp() / "random.bin", b"(]K\x01" + b"".join(codes) + b".")


def test_a_file_that_repeats_its_images_without_end_is_refused(tmp_path):
    (tmp_path / "x.bin").write_bytes(pickle.dumps(([IMAGES[0] * 9] * 2000, [True] * 1000)))
    with pytest.raises(InputError, match="repeats a few images"):
        read(tmp_path / "x.bin", (tmp_path / "x.bin").read_bytes())
