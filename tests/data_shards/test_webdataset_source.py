"""WebDataset tars that others wrote, built from 512-byte blocks."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import tracemalloc
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from nvidia.dali import fn, pipeline_def

from data_shards.settings import InputError
from data_shards.sources import Refusal, SourceImage
from data_shards.sources.webdataset import WebDatasetSettings, read_webdataset
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.importing import import_source
from tests.conftest import jpeg

IMAGES = [jpeg(i, 0) for i in range(6)]


def member(name, content=b"", kind=b"0", size=None, link=""):
    """A ustar member: header block, content, zeros to 512 bytes."""
    size = len(content) if size is None else size
    head = bytearray(512)
    fields = {0: name.encode(), 100: b"0000644", 124: b"%011o" % size, 136: b"0" * 11}
    for at, text in (fields | {156: kind, 157: link.encode(), 257: b"ustar\x0000"}).items():
        head[at : at + len(text)] = text
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + content + bytes(-len(content) % 512)


END = bytes(1024)


def sample(number, label, picture="jpg", prefix=""):
    key = f"{prefix}{number:04d}"
    return member(f"{key}.cls", str(label).encode()) + member(f"{key}.{picture}", IMAGES[number])


def tar(*numbers):
    return b"".join(sample(n, n % 3) for n in numbers) + END


def read(pattern, start=0, **options):
    return list(read_webdataset(WebDatasetSettings(path=str(pattern), **options), start))


def taken(items):
    return [(i.key, i.identity, i.image) for i in items if isinstance(i, SourceImage)]


def refused(items):
    return {item.key: item.reason for item in items if isinstance(item, Refusal)}


@pytest.fixture
def two(tmp_path):
    (tmp_path / "s-000.tar").write_bytes(tar(0, 1, 2))
    (tmp_path / "s-001.tar").write_bytes(tar(3, 4, 5))
    return tmp_path


@pytest.mark.parametrize("pattern", ["s-{000..001}.tar", "s-*.tar", "s-00[01].tar", "*/../s-*.tar"])
def test_all_samples_of_all_tars_come_in_order(two, pattern):
    (two / "sub").mkdir()
    items = read(two / pattern)
    assert (
        taken(items) == [(f"s-00{n // 3}.tar/{n:04d}", str(n % 3), IMAGES[n]) for n in range(6)]
        and len(items) == 6
    )
    for start in range(7):
        assert read(two / pattern, start) == items[start:]


@pytest.mark.parametrize(("suffix", "packed"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed_tars_are_read(two, suffix, packed):
    for path in sorted(two.glob("*.tar")):
        (two / f"{path.name}{suffix}").write_bytes(packed(path.read_bytes()))
        path.unlink()
    assert [image for _, _, image in taken(read(two / f"*.tar{suffix}"))] == IMAGES


def test_names_may_come_from_json_and_pictures_by_extension(tmp_path):
    meta = {"who": 17, "where": "gate", "flag": True}
    content = b"".join(
        [
            member("d", kind=b"5"),
            member("d/a.json", json.dumps(meta).encode()),
            member("d/a.mask.png", b"never looked at"),
            member("d/a.JPG", IMAGES[0]),
            member("d/b.json", b"[1]"),
            member("d/b.jpg", IMAGES[1]),
            member("d/c.jpg", IMAGES[2]),
            END,
        ]
    )
    (tmp_path / "x.tar").write_bytes(content)
    items = read(tmp_path / "x.tar", identity="json:who", camera="json:where", name="n")
    assert taken(items) == [("x.tar/d/a", "n/17", IMAGES[0])] and items[0].camera == "gate"
    assert refused(items) == {"x.tar/d/b": "label", "x.tar/d/c": "label"}
    assert refused(read(tmp_path / "x.tar", identity="json:flag"))["x.tar/d/a"] == "label"
    masks = taken(read(tmp_path / "x.tar", identity="json:who", image="mask.png"))
    assert masks == [("x.tar/d/a", "17", b"never looked at")]


def test_the_webdataset_librarys_own_tars_are_read(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "w.tar")) as writer:
        for n, image in enumerate(IMAGES):
            writer.write({"__key__": f"dir/{n}", "jpg": image, "cls": n, "json": {"n": n}})
    found = taken(read(tmp_path / "w.tar"))
    assert found == [(f"w.tar/dir/{n}", str(n), image) for n, image in enumerate(IMAGES)]


def test_our_own_shards_round_trip(small_folder, small, tmp_path):
    options = {"identity": "json:identity", "camera": "json:camera"}
    given = WebDatasetSettings(path=str(small_folder / "shard-*.tar"), **options)
    import_source("webdataset", given, tmp_path / "d", shard_samples=77)
    again = ShardDataset.open(tmp_path / "d")
    assert again.names.tolist() == small.names.tolist()
    assert (again.identity == small.identity).all() and (again.camera == small.camera).all()
    assert all(again.image(s) == small.image(s) for s in range(len(small)))


def test_what_is_wrong_with_a_sample_costs_that_sample(tmp_path):
    content = b"".join(
        [
            sample(0, 0),
            member("0001.cls", b"1"),
            sample(2, 2, prefix="../up/"),
            sample(2, 2, prefix="/etc/"),
            member("0003.cls", b"") + member("0003.jpg", IMAGES[3]),
            member("0004.cls", b"1") + member("0004.jpg", kind=b"2", link="/etc/passwd"),
            member("0005.cls", b"1") + member("0005.jpg", kind=b"1", link="0000.jpg"),
            member("0006.cls", b"1")
            + member("0006.jpg", IMAGES[0])
            + member("0006.jpg", IMAGES[1]),
            member("0007.cls", b"\xff\xfe") + member("0007.jpg", IMAGES[0]),
            member("README", b"read me"),
            sample(0, 1),
            sample(5, 2),
            END,
        ]
    )
    (tmp_path / "x.tar").write_bytes(content)
    items = read(tmp_path / "x.tar")
    assert [key for key, _, _ in taken(items)] == [f"x.tar/000{n}" for n in (0, 3, 0, 5)]
    assert refused(items) == {
        "x.tar/0001": "no picture",
        "x.tar/../up/0002": "unsafe name",
        "x.tar//etc/0002": "unsafe name",
        "x.tar/0004": "unreadable",
        "x.tar/0005": "unreadable",
        "x.tar/0006": "duplicate key",
        "x.tar/0007": "label",
        "x.tar/README": "not of a sample",
    }
    given = WebDatasetSettings(path=str(tmp_path / "x.tar"))
    manifest = import_source("webdataset", given, tmp_path / "d", max_refused=0.9)
    lines = (tmp_path / "d" / "refused.jsonl").read_text().splitlines()
    reasons = {json.loads(line)["key"]: json.loads(line)["reason"] for line in lines}
    assert reasons["x.tar/0000"] == "duplicate key", "the second of that name"
    assert reasons["x.tar/0003"] == "name", "its identity is empty"
    assert (manifest["samples"], manifest["refused"]) == (2, 9)


def test_a_header_cannot_claim_more_than_a_picture(tmp_path):
    (tmp_path / "x.tar").write_bytes(sample(0, 0) + member("0001.jpg", size=(1 << 33) - 1))
    with pytest.raises(InputError, match="damaged or truncated"):
        read(tmp_path / "x.tar")


@pytest.mark.parametrize("cut", range(1, 3400, 97))
def test_a_truncated_tar_is_never_the_end(tmp_path, cut):
    whole = tar(0, 1, 2)
    (tmp_path / "x.tar").write_bytes(whole[: len(whole) - cut])
    if cut <= 512:  # the second block of zeros is a formality
        assert len(taken(read(tmp_path / "x.tar"))) == 3
        return
    with pytest.raises(InputError, match=r"x\.tar is damaged or truncated.*restore"):
        read(tmp_path / "x.tar")


def test_missing_tars_and_urls_are_named(two):
    with pytest.raises(InputError, match=r"s-002\.tar is missing"):
        read(two / "s-{000..003}.tar")
    with pytest.raises(InputError, match="no file matches"):
        read(two / "t-*.tar")
    with pytest.raises(InputError, match="Unbalanced"):
        read(two / "s-{000..003.tar")
    with pytest.raises(InputError, match="would run a command"):
        read(f"pipe:touch {two / 'pwned'}")
    with pytest.raises(InputError, match="is not read from"):
        read("https://example.org/s-{000..003}.tar")
    assert not (two / "pwned").exists()


BASE = tar(0, 1, 2, 3, 4, 5)
LABELS = [BASE.index(f"{n:04d}.cls".encode()) + 512 for n in range(6)]


@settings(max_examples=100)
@given(
    flips=st.lists(
        st.tuples(st.integers(0, len(BASE) - 1), st.integers(1, 255)), min_size=1, max_size=4
    )
)
def test_no_flipped_byte_of_a_header_gives_a_wrong_label(tmp_path_factory, flips):
    """A label's own text has no checksum in a tar: only there can a flip make another label."""
    path = tmp_path_factory.getbasetemp() / "flipped.tar"
    content = bytearray(BASE)
    for at, mask in flips:
        if not any(label <= at < label + 512 for label in LABELS):
            content[at] ^= mask
    path.write_bytes(content)
    right = {image: str(n % 3) for n, image in enumerate(IMAGES)}
    with suppress(InputError):
        for _, identity, image in taken(read(path)):
            assert right.get(image, identity) == identity


@settings(max_examples=60)
@given(st.binary(max_size=1500), st.integers(0, 2))
def test_garbage_is_an_error_or_refused(tmp_path_factory, garbage, where):
    path = tmp_path_factory.getbasetemp() / "garbage.tar"
    path.write_bytes([garbage, sample(0, 0) + garbage, garbage + tar(1)][where])
    with suppress(InputError):
        assert {image for _, _, image in taken(read(path))} <= set(IMAGES)


def test_pax_and_gnu_long_names_are_read(tmp_path):
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / f"{kind}.tar", "w", format=kind) as out:
            for name, content in (("é" * 80 + ".cls", b"7"), ("é" * 80 + ".jpg", IMAGES[0])):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
        ((key, identity, _),) = taken(read(tmp_path / f"{kind}.tar"))
        assert key.endswith("é" * 80) and identity == "7"


def test_files_that_a_mac_leaves_behind_cut_no_sample_in_two(tmp_path):
    twin = b"\0\5\26\7" + bytes(60)
    content = b""
    for n in range(3):
        content += member(f"./._{n:04d}.cls", twin) + member(f"./{n:04d}.cls", b"7")
        content += member("./.DS_Store", b"x") + member(f"__MACOSX/{n:04d}.jpg", twin)
        content += member(f"./._{n:04d}.jpg", twin) + member(f"./{n:04d}.jpg", IMAGES[n])
    (tmp_path / "mac.tar").write_bytes(content + END)
    items = read(tmp_path / "mac.tar")
    assert taken(items) == [(f"mac.tar/{n:04d}", "7", IMAGES[n]) for n in range(3)]
    assert len(items) == 3


@pytest.mark.reliability(19, "samples whose members are no neighbours in the tar are put together")
def test_members_of_a_sample_need_not_be_neighbours(tmp_path):
    order = [(n, "jpg") for n in range(6)] + [(n, "cls") for n in (5, 4, 2, 1, 0)]
    contents = {"jpg": lambda n: IMAGES[n], "cls": lambda n: str(n // 2).encode()}
    members = [member(f"{n:04d}.{kind}", contents[kind](n)) for n, kind in order]
    (tmp_path / "x.tar").write_bytes(b"".join(members) + END)
    items = read(tmp_path / "x.tar")
    found = [(f"x.tar/{n:04d}", str(n // 2), IMAGES[n]) for n in (0, 1, 2, 4, 5)]
    assert taken(items) == found
    assert refused(items) == {"x.tar/0003": "label"}
    for start in range(7):
        assert read(tmp_path / "x.tar", start) == items[start:]
    (tmp_path / "y.tar").write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    with pytest.raises(InputError, match=r"no neighbours: unpack it, or pack it anew"):
        read(tmp_path / "y.tar")


def zstd(content):
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as packed:
        packed.write(content)
    return out.getvalue().to_pybytes()


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_packed_tars_are_known_by_their_first_bytes(tmp_path, pack):
    for name in ("x.tar", "x.tar.zst", "x.bin"):
        (tmp_path / name).write_bytes(pack(tar(*range(6))))
        assert [image for _, _, image in taken(read(tmp_path / name))] == IMAGES


@pytest.mark.parametrize("pattern", ["faces[2024]/a.tar", "faces[2024]/*.tar"])
def test_a_folders_name_may_have_brackets(tmp_path, pattern):
    (tmp_path / "faces[2024]").mkdir()
    (tmp_path / "faces[2024]" / "a.tar").write_bytes(tar(0, 1))
    assert len(taken(read(tmp_path / pattern))) == 2


def negative():
    head = bytearray(member("a.jpg"))
    head[124:136] = (-1024).to_bytes(12, "big", signed=True)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head[:512])
    return bytes(head)


HARMFUL = {
    "a negative size": negative() + END,
    "a long PAX header": gzip.compress(member("p", bytes(1 << 30), b"x") + END, 1),
    "a long name": member("p", bytes(1 << 22), b"L") + sample(0, 0) + END,
    "a chain of long names": member("p", b"x", b"L") * 100_000 + END,
    "zeros": gzip.compress(member("a.txt", bytes(1 << 30)) + END, 1),
    "a size beyond the file": member("a.jpg", size=8**11 - 1) + END,
}


@pytest.mark.parametrize("kind", HARMFUL)
@pytest.mark.reliability(10, "tars of negative sizes, endless headers or zeros: one line")
def test_a_harmful_tar_is_one_line_and_takes_no_memory(tmp_path, kind):
    (tmp_path / "x.tar").write_bytes(HARMFUL[kind])
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"x.tar is damaged") as caught:
            read(tmp_path / "x.tar")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert most < 64 << 20


@pytest.mark.reliability(19, "our shards are read by webdataset's own loader and by DALI's reader")
def test_our_shards_are_read_by_webdataset_and_by_dali(small_folder, small):
    tars = sorted(small_folder.glob("*.tar"))
    expected = [small.image(n) for n in range(len(small))]
    loader = webdataset.WebDataset([str(path) for path in tars], shardshuffle=False)
    assert [sample["jpg"] for sample in loader] == expected

    @pipeline_def(batch_size=len(small), num_threads=1, device_id=None)
    def reading():
        indices = [str(path.with_suffix(".idx")) for path in tars]
        paths = [str(path) for path in tars]
        return tuple(fn.readers.webdataset(paths=paths, index_paths=indices, ext=["jpg", "cls"]))

    pipeline = reading()
    pipeline.build()
    pictures, labels = pipeline.run()
    assert [np.asarray(pictures[n]).tobytes() for n in range(len(small))] == expected
    read_labels = [int(np.asarray(labels[n]).tobytes()) for n in range(len(small))]
    assert read_labels == small.identity.tolist()
