"""Writes a dataset: WebDataset tars with indexes, a samples table and a manifest of hashes.

Layout of a dataset folder::

    shard-00000.tar      key.jpg, key.cls (the identity's id as text), key.json (the rest)
    shard-00000.idx      the index that DALI's wds2idx would write
    samples.parquet      one row a sample: shard, offset, size, identity, camera, role, crc32
    identities.parquet   one row an identity: its name; the row number is its id
    keys.parquet         the hash of each sample's key (`data_shards.storage.keys`)
    NAME.parquet         extra tables that the source defines, such as pairs
    refused.jsonl        one line for each refused item: key, identity, reason, why
    manifest.json        version, counts, image size, cameras, tables, every file's size and sha256

Memory grows with the number of identities, and by eight bytes a sample, for its key. An interrupted
writer resumes behind its last finished shard (`data_shards.writing.journal`).
"""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_shards.files import sha256, write_json
from data_shards.images import ImageSettings
from data_shards.parallel import in_order
from data_shards.settings import InputError
from data_shards.storage.keys import key_hash
from data_shards.storage.manifest import MANIFEST_VERSION
from data_shards.storage.samples import write_samples
from data_shards.writing.destination import FOLDER, Destination, Folder
from data_shards.writing.journal import JOURNAL_ROWS, Journal
from data_shards.writing.shard_builder import Intake, Item, checked, chunks, items_behind
from untrusted.json_text import parse_json


def refusals(out: Path) -> Counter[tuple[str, bool]]:
    """Counts a folder's refused.jsonl by (reason, whether it counts as a refused image)."""
    found: Counter[tuple[str, bool]] = Counter()
    path = out / "refused.jsonl"
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                value = parse_json(line)
                found[str(value["reason"]), value.get("counts", True) is not False] += 1
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: delete the folder and import again") from error
    return found


def vanished(out: Path, taken: Container[str]) -> list[str]:
    """The identities in a folder's refused.jsonl that have no accepted image, in its order."""
    path = out / "refused.jsonl"
    try:
        with path.open(encoding="utf-8") as file:
            named = dict.fromkeys(str(parse_json(line)["identity"]) for line in file)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: delete the folder and import again") from error
    return [name for name in named if name and name not in taken]


def whole_identities(names: Sequence[str]) -> str:
    """The first ten of `names`, as part of a sentence."""
    more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
    return f"{so_many_identities(len(names))} ({', '.join(names[:10])}{more})"


def so_many_identities(count: int) -> str:
    """``1 identity`` or ``1,234 identities``."""
    return f"{count:,} identit{'y' if count == 1 else 'ies'}"


def _check_budget(place: Destination, intake: Intake, max_refused: float) -> int:
    """The number of refused images. Raises InputError if it is too large or no image is left."""
    samples = intake.samples
    refused = sum(count for (_, counts), count in refusals(place.folder).items() if counts)
    where = place.folder / "refused.jsonl"
    if not samples:
        raise InputError(f"no readable image for {place.name}: {refused} were refused, see {where}")
    if refused > max_refused * (samples + refused):
        gone = vanished(place.folder, intake.identities.numbers)
        whole = f", with them all of {whole_identities(gone)}" if gone else ""
        raise InputError(
            f"{refused} of {samples + refused} images were refused{whole}, more than the allowed "
            f"share {max_refused:g}: see {where}; mend them, or run the same command again with a "
            "larger --max-refused (what is written is kept)"
        )
    return refused


def _write_keys(journal: Journal, path: Path) -> None:
    """Writes the hashes of the samples' keys, by which benchmark files refer to them."""
    schema = pa.schema([JOURNAL_ROWS.field("key")])
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for rows in journal.rows():
            writer.write_table(rows.select(["key"]))


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


def _numbers(journal: Journal, tables: Mapping[str, pa.Table]) -> dict[str, int]:
    """The sample numbers of all keys that occur in `tables`."""
    columns = [t[name] for t in tables.values() for name in t.column_names if name.endswith("_key")]
    wanted = {key_hash(key): key for column in columns for key in column.unique().to_pylist()}
    hashes = np.sort(np.fromiter(wanted, np.uint64, len(wanted)))
    numbers: dict[str, int] = {}
    first = 0
    for rows in journal.rows() if wanted else ():
        keys = rows["key"].to_numpy()
        for row in np.flatnonzero(np.isin(keys, hashes)).tolist():
            numbers[wanted[int(keys[row])]] = first + row
        first += len(keys)
    return numbers


def _finish(
    journal: Journal,
    intake: Intake,
    source: dict[str, Any],
    max_refused: float,
    tables: Mapping[str, pa.Table],
) -> dict[str, Any]:
    """Writes tables and manifest after the last shard, and deletes the journal."""
    place, out = journal.place, journal.out
    refused = _check_budget(place, intake, max_refused)
    write_samples(journal.rows(), out / "samples.parquet")
    _write_keys(journal, out / "keys.parquet")
    pq.write_table(pa.table({"name": list(intake.identities.numbers)}), out / "identities.parquet")
    numbers = _numbers(journal, tables)
    for name, table in tables.items():
        pq.write_table(numbered(table, numbers), out / f"{name}.parquet")
    sizes = {size for shard in journal.shards for size in shard.sizes}
    files = {name: facts for shard in journal.shards for name, facts in shard.files.items()}
    for name in (f"{name}.parquet" for name in ("samples", "identities", "keys", *tables)):
        files[name] = {"bytes": (out / name).stat().st_size, "sha256": sha256(out / name)}
        place.keep(name, files[name]["sha256"])
    manifest = {
        "version": MANIFEST_VERSION,
        "source": source,
        "image_size": list(sizes.pop()) if len(sizes) == 1 else None,
        "samples": intake.samples,
        "identities": len(intake.identities.numbers),
        "cameras": list(intake.cameras.numbers),
        "refused": refused,
        "tables": sorted(tables),
        "shards": [name for name in files if name.endswith(".tar")],
        "files": files,
    }
    place.keep("refused.jsonl", sha256(out / "refused.jsonl"))
    # last: with it the folder is a dataset
    write_json(out / "manifest.json", manifest)
    place.keep("manifest.json", sha256(out / "manifest.json"))
    journal.delete()
    return manifest


def _start(items: Iterable[Item], start: int) -> Iterable[Item]:
    return islice(items, start, None)


def _opened(read: Callable[[int], Iterable[Item]]) -> Callable[[int], Iterable[Item]]:
    """`read` with the first item read already, so that a wrong path is reported before anything is
    written."""
    items = iter(read(0))
    first = list(islice(items, 1))
    return lambda start: read(start) if start else chain(first, items)


def write_dataset(
    images: Iterable[Item] | Callable[[int], Iterable[Item]],
    out: Path | Destination,
    source: dict[str, Any],
    shard_samples: int = 4096,
    max_refused: float = 0.0,
    tables: Mapping[str, pa.Table] | None = None,
    image: ImageSettings | None = None,
    processes: int = 0,
    progress: Callable[[int], None] = lambda consumed: None,
) -> dict[str, Any]:
    """Writes `images` as a dataset in a folder, or another place, and returns its manifest.

    Every image is decoded and, where needed, encoded anew by the settings `image` (`normalise`).
    What is refused is listed in ``refused.jsonl``. `source` describes the images' origin. `tables`
    are written beside the samples, with sample numbers in place of image keys (`numbered`). The
    manifest is written last: without it there is no dataset.

    If `out` holds the beginning of the same import, it is resumed; `images` may be a function that
    starts reading at any item. `processes` decode beside this one; `progress` is called with the
    number of items done. Raises InputError when more than the share `max_refused` is refused, no
    image is left, or `out` holds something else.
    """
    settings, tables = image or ImageSettings(), tables or {}
    deciding = {
        "source": source,
        "image": settings.model_dump(mode="json"),
        "shard_samples": shard_samples,
    }
    place = Folder(out) if isinstance(out, Path) else out
    read = images if callable(images) else partial(_start, images)
    if not (place.folder / FOLDER).exists():
        read = _opened(read)
    with closing(Journal(place, deciding)) as journal:
        intake = Intake(journal, shard_samples)
        items = items_behind(read, journal)
        work, last = in_order(partial(checked, settings=settings), chunks(items), processes), ""
        for chunk, results in work:
            intake.add_chunk(chunk, results)
            last = chunk[-1].key
            progress(intake.consumed)
        intake.finish(last)
        return _finish(
            journal=journal, intake=intake, source=source, max_refused=max_refused, tables=tables
        )
