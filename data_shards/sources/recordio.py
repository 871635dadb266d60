"""MXNet RecordIO (``train.rec``, ``train.idx``, ``property``), as MS1M and its relatives come.

Read without MXNet, in file order. Labels are read from the records themselves; ``train.lst``, which
repeats them, is not needed. The format has no checksums. In identity-sorted files an image's label
is compared with those of its identity's other images; in shuffled ones a damaged label is found
only if it is no whole number or beyond the number of classes.
"""

import os
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from data_shards.settings import InputError, Settings
from data_shards.sources import MAX_ENCODED_BYTES, UNKNOWN_CAMERA, Refusal, SourceImage, named
from untrusted.files import read_bytes

MAGIC = struct.pack("<I", 0xCED7230A)
_HEADER = struct.Struct("<IfQQ")
_LABEL_BYTES = 8 + _HEADER.size + 8  # up to two labels that follow the header
_EXACT = 1 << 24
_PROPERTY_BYTES = 1 << 12
_MISSING, _MOST = 0.1, 2
"""Share of the announced images that may be missing, and how many times as many images as records
may be announced; beyond that the .idx is another file's."""
_LIMIT = (
    "labels are float32 in this format, which tells whole numbers apart only below 2^24 = "
    "16,777,216: its identities are mixed up in the file itself; make it anew with smaller labels, "
    "or as WebDataset shards or folders"
)
Ints = NDArray[np.int64]


class RecordIOSettings(Settings):
    """A RecordIO file."""

    path: Path
    """The .rec file, or a folder that holds one; .idx and property are looked for beside it."""
    name: str = ""
    """Put before each identity's name, so that merged datasets do not share names: ms1m/123."""


class Layout(NamedTuple):
    """Where the images of a file are."""

    keys: Ints
    """[n] their numbers in the file."""
    starts: Ints
    """[n] where their records begin, bytes."""
    ends: Ints
    """[n] where the next record begins."""
    groups: Ints | None
    """Positions in the above at which another identity begins; none in shuffled files."""
    classes: int | None
    """Labels are below this, if the file says so."""
    missing: Ints = np.empty(0, dtype=np.int64)
    """Numbers of images that the file announces and lacks."""


def read_payload(raw: bytes) -> bytes:
    """The payload of the record at the start of `raw`, its parts joined.

    `raw` ends where the next record begins. Raises ValueError when the record does not fit it.
    A record is split wherever its payload contains the magic number, which is then left out; flags
    are 0 for a whole record, 1, 2 and 3 for its first, middle and last part.
    """
    parts: list[bytes] = []
    at, last = 0, False
    while not last:
        if raw[at : at + 4] != MAGIC or len(raw) < at + 8:
            raise ValueError("it does not begin with RecordIO's magic number")
        (word,) = struct.unpack_from("<I", raw, at + 4)
        flag, length = word >> 29, word & ((1 << 29) - 1)
        if flag not in ((2, 3) if parts else (0, 1)):
            raise ValueError(f"part {len(parts)} of it has flag {flag}")
        if at + 8 + length > len(raw):
            raise ValueError("it is longer than its place in the file")
        parts.append(raw[at + 8 : at + 8 + length])
        at += 8 + length + -length % 4
        last = flag in (0, 3)
    if len(raw) > at and raw[at : at + 4] != MAGIC:
        raise ValueError("it is shorter than its place in the file")
    return MAGIC.join(parts)


def read_labels(payload: bytes) -> tuple[tuple[float, ...], int]:
    """The labels (at most two) of a payload, and where its image begins. Raises ValueError."""
    if len(payload) < _HEADER.size:
        raise ValueError("it is shorter than a header")
    flag, label, _, _ = _HEADER.unpack_from(payload)
    if flag == 0:
        return (label,), _HEADER.size
    if flag > 64:
        raise ValueError(f"it claims to have {flag} labels")
    if len(payload) < _HEADER.size + 4 * min(flag, 2):
        raise ValueError("its labels are cut off")
    return struct.unpack_from(f"<{min(flag, 2)}f", payload, _HEADER.size), _HEADER.size + 4 * flag


def whole_label(label: float, classes: int | None) -> int:
    """A label as an integer. Raises ValueError where it is none, or not below `classes`."""
    if label >= _EXACT:
        raise ValueError(f"label {label:,.0f}: {_LIMIT}")
    if not (label >= 0 and label == int(label)):
        raise ValueError(f"label {label} is no whole number from 0")
    if classes is not None and label >= classes:
        raise ValueError(f"label {label:.0f} is not below the {classes} classes of `property`")
    return int(label)


def _find(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.rec"))
        if len(found) != 1:
            raise InputError(f"{path} holds {len(found)} .rec files: name the one to read")
        return found[0]
    if not path.is_file():
        raise InputError(f"{path} does not exist: give a .rec file or the folder with one")
    return path


def _indexed(idx: Path, size: int) -> tuple[Ints, Ints]:
    """Keys and offsets of an index file. Raises InputError when it does not fit the records."""
    try:
        table = pa.csv.read_csv(
            idx,
            pa.csv.ReadOptions(column_names=["key", "offset"]),
            pa.csv.ParseOptions(delimiter="\t"),
            pa.csv.ConvertOptions(column_types={"key": pa.int64(), "offset": pa.int64()}),
        )
        keys, offsets = (table[n].to_numpy() for n in ("key", "offset"))
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{idx} is damaged ({error}): move it away, and the .rec is scanned"
        ) from error
    repeated = len(np.unique(offsets)) < len(offsets)
    if table["key"].null_count or table["offset"].null_count or repeated:
        raise InputError(
            f"{idx} names a record twice, or none: move it away, and the .rec is scanned"
        )
    if len(np.unique(keys)) < len(keys):  # some tools write the same number for every record
        keys = np.argsort(np.argsort(offsets))
    if len(offsets) and not (offsets.min() >= 0 and offsets.max() <= size - 8):
        raise InputError(
            f"{idx} points beyond the {size:,} bytes of its .rec: the .rec is truncated or another "
            "one; restore it"
        )
    return keys, offsets


def _scanned(file: BinaryIO, size: int) -> tuple[Ints, Ints]:
    """Numbers and offsets of all records, read one after the other."""
    found, at = [], 0
    while at < size:
        head = os.pread(file.fileno(), 8, at)
        word = int.from_bytes(head[4:], "little")
        length = word & ((1 << 29) - 1)
        if head[:4] != MAGIC or len(head) < 8 or at + 8 + length > size:
            raise InputError(
                f"{file.name} is damaged or truncated at byte {at:,}, and without an .idx what "
                "follows cannot be found: restore it, or put its .idx beside it"
            )
        if word >> 29 in (0, 1):
            found.append(at)
        at += 8 + length + -length % 4
    return np.arange(len(found), dtype=np.int64), np.array(found, dtype=np.int64)


def _classes(rec: Path) -> int | None:
    path = rec.with_name("property")
    if not path.exists():
        return None
    try:
        classes = int(read_bytes(path, _PROPERTY_BYTES).split(b",")[0])
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} must read classes,height,width: mend it or move it away"
        ) from error
    if classes > _EXACT:
        raise InputError(f"{path} names {classes:,} classes: {_LIMIT}")
    return classes


def _header(file: BinaryIO, start: int, end: int) -> tuple[int, int] | None:
    """(images + 1, images + 1 + identities) of an identity-sorted file, from its first record."""
    raw = os.pread(file.fileno(), min(end - start, 4096), start)
    try:
        payload = read_payload(raw)
        labels, image = read_labels(payload)
    except ValueError:
        return None  # damaged, or an image that is longer than what was read
    if len(labels) < 2 or len(payload) > image:
        return None
    if max(labels) >= _EXACT:
        raise InputError(f"{file.name} counts {max(labels):,.0f} records: {_LIMIT}")
    if not (1 <= labels[0] <= labels[1] and all(label == int(label) for label in labels)):
        raise InputError(f"{file.name} begins with a damaged header record {labels}: restore it")
    return int(labels[0]), int(labels[1])


def _boundaries(file: BinaryIO, starts: Ints, ends: Ints) -> Ints:
    """The image keys at which, by the identity records, an identity begins or ends."""
    found = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        try:
            labels, _ = read_labels(read_payload(os.pread(file.fileno(), end - start, start)))
            found += [int(label) for label in labels if 0 <= label < _EXACT]
        except ValueError:  # its images are then judged together with their neighbours
            continue
    return np.unique(np.array(found, dtype=np.int64))


def layout(rec: Path) -> Layout:
    """Locates the images of a file. Raises InputError naming what does not fit, and the remedy."""
    idx, classes, size = rec.with_suffix(".idx"), _classes(rec), rec.stat().st_size
    with rec.open("rb") as file:
        keys, starts = _indexed(idx, size) if idx.exists() else _scanned(file, size)
        if not len(keys):
            raise InputError(f"{rec} holds no record")
        order = np.argsort(starts)
        keys, starts = keys[order], starts[order]
        ends = np.append(starts[1:], size)
        zero = np.flatnonzero(keys == 0)
        counts = _header(file, starts[zero[0]], ends[zero[0]]) if len(zero) else None
        if counts is None:
            return Layout(keys=keys, starts=starts, ends=ends, groups=None, classes=classes)
        last, behind = counts
        if not idx.exists() and len(keys) != behind:
            # one is left out somewhere, so that what follows was numbered wrongly by the scan
            return Layout(keys=keys, starts=starts, ends=ends, groups=None, classes=classes)
        images, people = (keys > 0) & (keys < last), (keys >= last) & (keys < behind)
        missing = np.setdiff1d(np.arange(1, last), keys) if last <= _MOST * len(keys) else None
        if last == 1 or missing is None or len(missing) > _MISSING * last:
            raise InputError(
                f"{rec} announces {last - 1} images, but {images.sum()} are indexed: its .idx is "
                "stale or the file truncated; restore both"
            )
        if classes is not None and classes != behind - last:
            raise InputError(
                f"{rec.with_name('property')} names {classes} classes, but {rec.name} "
                f"{behind - last} identities: mend `property` or move it away"
            )
        boundaries = _boundaries(file, starts[people], ends[people])
    in_key_order = np.argsort(keys[images])
    keys, starts, ends = (a[images][in_key_order] for a in (keys, starts, ends))
    groups = np.unique(np.searchsorted(keys, np.append(boundaries, 1)))
    return Layout(
        keys=keys,
        starts=starts,
        ends=ends,
        groups=groups[groups < len(keys)],
        classes=classes,
        missing=missing,
    )


def count_recordio(settings: RecordIOSettings) -> int:
    """The number of images, including missing ones."""
    found = layout(_find(settings.path))
    return len(found.keys) + len(found.missing)


def _agreed(file: BinaryIO, found: Layout, first: int, last: int) -> float | None:
    """The label that more than half of images first..last of an identity have, or None."""
    votes: Counter[float] = Counter()
    for start in found.starts[first:last].tolist():
        raw = os.pread(file.fileno(), _LABEL_BYTES, start)
        try:
            votes[read_labels(raw[8:])[0][0]] += 1
        except ValueError:
            continue
    label, count = votes.most_common(1)[0] if votes else (None, 0)
    return label if 2 * count > last - first else None


def _image(
    file: BinaryIO, found: Layout, number: int, agreed: float | None, name: str
) -> SourceImage | Refusal:
    start, end = int(found.starts[number]), int(found.ends[number])
    key, label = str(found.keys[number]), ""
    reason = "damaged record"
    try:
        raw = os.pread(file.fileno(), min(end - start, MAX_ENCODED_BYTES), start)
        payload = read_payload(raw)
        labels, image = read_labels(payload)
        if found.groups is None and len(labels) == 2 and len(payload) <= image:
            return Refusal(key, "", "index record", "it holds no image", counts=False)
        reason, label = "label", f"{labels[0]:.0f}"
        identity = named(name, str(whole_label(labels[0], found.classes)))
        if found.groups is not None and labels[0] != agreed:
            raise ValueError(f"label {labels[0]} is not that of its identity's other images")
    except ValueError as error:
        return Refusal(key, label and named(name, label), reason, f"byte {start:,}: {error}")
    return SourceImage(payload[image:], identity, UNKNOWN_CAMERA, key)


def read_recordio(settings: RecordIOSettings, start: int = 0) -> Iterator[SourceImage | Refusal]:
    """Reads the images of a file in its order, from image `start`; damaged records are refused.

    Memory: 24 bytes an image, for the index. Raises InputError when the file cannot be read at all.
    """
    rec = _find(settings.path)
    found = layout(rec)
    count = len(found.keys)
    groups = [0] if found.groups is None else found.groups.tolist()
    with rec.open("rb") as file:
        for first, last in zip(groups, [*groups[1:], count], strict=True):
            if last <= start:
                continue
            agreed = None if found.groups is None else _agreed(file, found, first, last)
            for number in range(max(first, start), last):
                yield _image(
                    file=file, found=found, number=number, agreed=agreed, name=settings.name
                )
    for key in found.missing[max(0, start - count) :].tolist():
        why = f"{rec.name} announces it, and the .idx does not have it"
        yield Refusal(str(key), "", "missing record", why, counts=False)
