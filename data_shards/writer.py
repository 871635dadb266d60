"""Writes a dataset: WebDataset tars with indexes, a samples table and a manifest of hashes.

Layout of a dataset folder::

    shard-00000.tar      key.jpg, key.cls (the identity's id as text), key.json (the rest)
    shard-00000.idx      the index that DALI's wds2idx would write
    samples.parquet      one row a sample: shard, offset, size, identity, camera, role, crc32
    identities.parquet   one row an identity: its name; the row number is its id
    NAME.parquet         extra tables that the source defines, such as pairs
    manifest.json        version, counts, image size, cameras, tables, every file's size and sha256
"""

import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from PIL import Image

from data_shards.files import sha256, write_atomically, write_json
from data_shards.settings import InputError
from data_shards.sources import ROLES, SourceImage

MANIFEST_VERSION = 2


def jpeg_size(image: bytes) -> tuple[int, int]:
    """Decodes `image` whole and returns (height, width). Raises ValueError if it cannot be."""
    try:
        with Image.open(io.BytesIO(image)) as opened:
            if opened.format != "JPEG":
                raise ValueError(f"it is {opened.format}, not JPEG")
            opened.load()
            return opened.height, opened.width
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def index_tar(tar: Path) -> list[list[tuple[str, int, int, str]]]:
    """The components of each sample of a tar: (extension, offset, size, member name)."""
    samples: list[list[tuple[str, int, int, str]]] = []
    previous = None
    with tarfile.open(tar) as members:
        for member in members:
            key, _, extension = member.name.partition(".")
            if key != previous:
                samples.append([])
                previous = key
            samples[-1].append((extension, member.offset_data, member.size, member.name))
    return samples


def index_text(samples: list[list[tuple[str, int, int, str]]]) -> str:
    """The text of an index file, byte for byte what DALI's wds2idx writes (format v1.2)."""
    lines = [" ".join(f"{e} {o} {s} {n}" for e, o, s, n in sample) for sample in samples]
    return "\n".join([f"v1.2 {len(samples)}", *lines]) + "\n"


class _Numbering:
    """Gives names dense numbers in the order they first come."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))


def _checked(
    images: Iterable[SourceImage], refused: list[dict[str, str]]
) -> Iterator[tuple[SourceImage, tuple[int, int]]]:
    for image in images:
        try:
            yield image, jpeg_size(image.image)
        except ValueError as error:
            refused.append({"key": image.key, "identity": image.identity, "why": str(error)})


def _write_shard(
    path: Path, first: int, batch: list[SourceImage], identities: _Numbering, cameras: _Numbering
) -> list[dict[str, int]]:
    """Writes one tar and its index; returns its rows of the samples table, without the shard."""
    part = path.with_suffix(".tar.part")
    with part.open("wb") as file, webdataset.TarWriter(file, mtime=0.0) as tar:
        for number, image in enumerate(batch, start=first):
            meta = {"identity": image.identity, "camera": image.camera, "key": image.key}
            tar.write(
                {
                    "__key__": f"{number:09d}",
                    "jpg": image.image,
                    "cls": str(identities[image.identity]),
                    "json": json.dumps(meta, sort_keys=True).encode(),
                }
            )
    part.rename(path)
    index = index_tar(path)
    write_atomically(path.with_suffix(".idx"), index_text(index).encode())
    rows = []
    for image, components in zip(batch, index, strict=True):
        (offset, size), *_ = [(o, s) for extension, o, s, _ in components if extension == "jpg"]
        rows.append(
            {
                "offset": offset,
                "size": size,
                "identity": identities[image.identity],
                "camera": cameras[image.camera],
                "role": ROLES.index(image.role),
                "crc32": zlib.crc32(image.image),
            }
        )
    return rows


_SAMPLES_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int32()),
        ("identity", pa.int64()),
        ("camera", pa.int32()),
        ("role", pa.int8()),
        ("crc32", pa.uint32()),
    ]
)


def numbered(table: pa.Table, numbers: Mapping[str, int]) -> pa.Table:
    """`table` with each column ``X_key`` of image keys replaced by ``X``, int64 sample numbers.

    `numbers` maps keys to sample numbers; a key that it lacks (a refused image) becomes -1.
    """
    for position, name in enumerate(table.column_names):
        if name.endswith("_key"):
            samples = [numbers.get(key, -1) for key in table[name].to_pylist()]
            column = pa.array(samples, pa.int64())
            table = table.set_column(position, name.removesuffix("_key"), column)
    return table


def write_dataset(
    images: Iterable[SourceImage],
    out: Path,
    source: dict[str, Any],
    shard_samples: int = 4096,
    max_refused: float = 0.0,
    tables: Mapping[str, pa.Table] | None = None,
) -> dict[str, Any]:
    """Writes `images` as a dataset below `out` and returns its manifest.

    Every image is decoded before it is accepted; what cannot be is listed in ``refused.json``,
    and more than the share `max_refused` of them is an InputError. `source` says where the images
    came from. `tables` are written beside the samples after `numbered` has put sample numbers in
    place of image keys. The manifest is written last: a folder without one is not a dataset.
    """
    tables = tables or {}
    if (out / "manifest.json").exists():
        raise InputError(f"{out} already holds a dataset: delete it or write elsewhere")
    out.mkdir(parents=True, exist_ok=True)
    identities, cameras = _Numbering(), _Numbering()
    refused: list[dict[str, str]] = []
    sizes: set[tuple[int, int]] = set()
    rows: list[dict[str, int]] = []
    shards: list[Path] = []
    wanted = {
        key
        for table in tables.values()
        for name in table.column_names
        if name.endswith("_key")
        for key in table[name].to_pylist()
    }
    numbers: dict[str, int] = {}
    accepted = _checked(images, refused)
    while batch := list(islice(accepted, shard_samples)):
        sizes.update(size for _, size in batch)
        path = out / f"shard-{len(shards):05d}.tar"
        numbers |= {i.key: n for n, (i, _) in enumerate(batch, len(rows)) if i.key in wanted}
        new = _write_shard(path, len(rows), [i for i, _ in batch], identities, cameras)
        rows += [{"shard": len(shards), **row} for row in new]
        shards.append(path)
    write_json(out / "refused.json", refused)
    if not rows:
        raise InputError(f"no readable image for {out}: see {out / 'refused.json'}")
    if len(refused) > max_refused * (len(rows) + len(refused)):
        raise InputError(
            f"{len(refused)} of {len(rows) + len(refused)} images cannot be decoded, more than the "
            f"allowed share {max_refused:g}: see {out / 'refused.json'}, or raise --max-refused"
        )
    pq.write_table(pa.Table.from_pylist(rows, _SAMPLES_SCHEMA), out / "samples.parquet")
    names = pa.table({"name": list(identities.numbers)})
    pq.write_table(names, out / "identities.parquet")
    for name, table in tables.items():
        pq.write_table(numbered(table, numbers), out / f"{name}.parquet")
    table_files = [out / f"{name}.parquet" for name in ("samples", "identities", *tables)]
    manifest = {
        "version": MANIFEST_VERSION,
        "source": source,
        "image_size": list(next(iter(sizes))) if len(sizes) == 1 else None,
        "samples": len(rows),
        "identities": len(identities.numbers),
        "cameras": list(cameras.numbers),
        "refused": len(refused),
        "tables": sorted(tables),
        "shards": [path.name for path in shards],
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in [*shards, *(p.with_suffix(".idx") for p in shards), *table_files]
        },
    }
    write_json(out / "manifest.json", manifest)
    return manifest
