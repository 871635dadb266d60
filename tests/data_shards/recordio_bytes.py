"""RecordIO files put together with struct from the format's description."""

import struct
from pathlib import Path

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)


def part(flag: int, payload: bytes) -> bytes:
    """One physical record: magic, flag and length, payload, padding to four bytes."""
    word = flag << 29 | len(payload)
    return struct.pack("<II", MAGIC, word) + payload + bytes(-len(payload) % 4)


def record(payload: bytes) -> bytes:
    """A record, split where its payload holds the magic number at a 4-aligned offset."""
    pieces, start = [], 0
    for at in range(0, len(payload) - 3, 4):
        if payload[at : at + 4] == MAGIC_BYTES:
            pieces.append(payload[start:at])
            start = at + 4
    pieces.append(payload[start:])
    if len(pieces) == 1:
        return part(0, payload)
    flags = [1, *[2] * (len(pieces) - 2), 3]
    return b"".join(part(flag, piece) for flag, piece in zip(flags, pieces, strict=True))


def packed(labels: list[float] | float, image: bytes, key: int = 0) -> bytes:
    """IRHeader, labels, image."""
    if isinstance(labels, list):
        head = struct.pack("<IfQQ", len(labels), 0.0, key, 0)
        return head + struct.pack(f"<{len(labels)}f", *labels) + image
    return struct.pack("<IfQQ", 0, labels, key, 0) + image


def write(folder: Path, payloads: dict[int, bytes], classes: int | None, idx: bool = True) -> Path:
    """train.rec, train.idx and property; returns the .rec."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, content = [], b""
    for key, payload in payloads.items():
        lines.append(f"{key}\t{len(content)}\n")
        content += record(payload)
    (folder / "train.rec").write_bytes(content)
    if idx:
        (folder / "train.idx").write_text("".join(lines))
    if classes is not None:
        (folder / "property").write_text(f"{classes},112,112\n")
    return folder / "train.rec"


def identity_sorted(images: list[list[bytes]]) -> dict[int, bytes]:
    """Payloads of an identity-sorted file; ``images[c]`` are those of class c."""
    total, people = sum(map(len, images)), len(images)
    payloads = {0: packed([total + 1, total + 1 + people], b"")}
    ranges, key = [], 1
    for label, own in enumerate(images):
        ranges.append((key, key + len(own)))
        for image in own:
            payloads[key] = packed([label, 1.0], image, key)
            key += 1
    for offset, (first, last) in enumerate(ranges):
        payloads[total + 1 + offset] = packed([first, last], b"", total + 1 + offset)
    return payloads


def shuffled(images: list[tuple[int, bytes]]) -> dict[int, bytes]:
    """Payloads of a shuffled file from (label, image)."""
    return {key: packed(float(label), image, key) for key, (label, image) in enumerate(images)}
