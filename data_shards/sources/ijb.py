"""IJB-B and IJB-C: faces in templates, with the pairs and searches to evaluate on.

``meta/ijbc_face_tid_mid.txt`` has a line ``name template medium`` for each image of `loose_crop`,
``ijbc_template_pair_label.txt`` lines ``template template 0|1``, ``ijbc_name_5pts_score.txt`` a
line for each image with five landmarks (x, y) and a detector's score. ``ijbc_1N_*.csv`` list the
templates of the searches (IJB-B calls its galleries S1 and S2, IJB-C G1 and G2).
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
from numpy.typing import NDArray
from PIL import Image

from data_shards.alignment import aligned_png
from data_shards.cores import cores
from data_shards.parallel import in_order
from data_shards.settings import InputError, Settings
from data_shards.sources import Refusal, SourceImage
from data_shards.sources.listing import (
    Listed,
    content_of,
    folder_within,
    leads_outside,
    read_listed,
)

_PUBLISHED = {"b": 227_630, "c": 469_375}
_SEARCHES = {
    "gallery-1": ("gallery_G1", "gallery_S1"),
    "gallery-2": ("gallery_G2", "gallery_S2"),
    "probe": ("probe_mixed",),
}


class IjbSettings(Settings):
    """IJB-B or IJB-C with the usual crops and lists."""

    path: Path
    """Folder with `loose_crop` and `meta`."""
    edition: Literal["b", "c"] = "c"
    """Which of the two: their lists' names begin with `ijbb` or `ijbc`."""
    aligned: bool = False
    """The images are aligned to 112×112 already: take them as they are."""


def ijb_counts(settings: IjbSettings) -> dict[str, int]:
    """The published number of images."""
    return {"gallery": _PUBLISHED[settings.edition]}


def read_ijb(
    settings: IjbSettings, start: int = 0, processes: int | None = None
) -> Iterator[SourceImage | Refusal]:
    """The images of the template list from the item `start` on, aligned to 112×112, as PNG.

    `processes` align beside this one (none: one a core). Raises InputError naming the list.
    """
    if settings.aligned:
        yield from read_listed(list_ijb(settings), start)
        return
    landmarks, listed = _landmarks(settings), _meta(settings, "name_5pts_score.txt")
    prefix = len(_source(settings)) + 1

    def jobs() -> Iterator[_Job]:
        for item in islice(list_ijb(settings), start, None):
            if (name := item.key[prefix:]) not in landmarks:
                raise InputError(
                    f"{listed} has no landmarks of {name!r}: take the lists from their publisher "
                    "again, or say aligned=true if the images are aligned already"
                )
            yield item, landmarks[name]

    count = cores() if processes is None else processes
    for _, image in in_order(_aligned, jobs(), count):
        yield image


def list_ijb(settings: IjbSettings) -> Iterator[Listed]:
    """Every image of the template list, once. Raises InputError naming the list.

    An identity is the subject that the searches give a template, or else the template itself.
    The role is "gallery": the tables say what is compared.
    """
    faces, search, source = _faces(settings), _search(settings), _source(settings)
    folder = folder_within(settings.path, "loose_crop")
    subject = dict(zip(search["template"].to_pylist(), search["subject"].to_pylist(), strict=True))
    templates: dict[str, int] = {}
    for name, template in zip(*(faces[n].to_pylist() for n in ("name", "template")), strict=True):
        if leads_outside(name):
            raise InputError(
                f"{_meta(settings, 'face_tid_mid.txt')} names {name!r}, outside of "
                f"{folder}: nothing was read"
            )
        if name not in templates or (templates[name] not in subject and template in subject):
            templates[name] = template
    for name, template in templates.items():
        person = f"{subject[template]}" if template in subject else f"template-{template}"
        yield Listed(
            path=folder / name,
            identity=f"{source}/{person}",
            camera=source,
            key=f"{source}/{name}",
            role="gallery",
        )


_Job = tuple[Listed, NDArray[np.float64]]


def _aligned(job: _Job) -> SourceImage | Refusal:
    item, landmarks = job
    content = content_of(item)
    if isinstance(content, Refusal):
        return content
    try:
        return SourceImage(aligned_png(content, landmarks), *item[1:])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return Refusal(item.key, item.identity, "damaged", str(error))


def ijb_tables(settings: IjbSettings) -> dict[str, pa.Table]:
    """`templates`, `template_pairs` and, where the lists are there, `search`."""
    source, faces = _source(settings), _faces(settings)
    keys = pa.array([f"{source}/{name}" for name in faces["name"].to_pylist()])
    pairs = _columns(
        _meta(settings, "template_pair_label.txt"),
        {"left": pa.int64(), "right": pa.int64(), "same": pa.bool_()},
    )
    templates = faces.select(["template", "medium"]).append_column("sample_key", keys)
    search = _search(settings)
    return {
        "templates": templates,
        "template_pairs": pairs,
        **({"search": search} if len(search) else {}),
    }


def _source(settings: IjbSettings) -> str:
    return f"ijb{settings.edition}"


def _meta(settings: IjbSettings, name: str) -> Path:
    return folder_within(settings.path, "meta") / f"ijb{settings.edition}_{name}"


def _columns(path: Path, types: dict[str, pa.DataType]) -> pa.Table:
    """The columns of a list with one space between them. Raises InputError."""
    try:
        table = csv.read_csv(
            path,
            csv.ReadOptions(column_names=list(types)),
            csv.ParseOptions(delimiter=" ", quote_char=False),
            csv.ConvertOptions(column_types=types, true_values=["1"], false_values=["0"]),
        )
    except (OSError, ValueError) as error:  # pyarrow's are ValueErrors
        raise InputError(
            f"{path} is not a list of {' '.join(types)} ({str(error).splitlines()[0]}): "
            "take it from its publisher again"
        ) from error
    if any(column.null_count for column in table.columns):
        raise InputError(f"{path} has a line with an empty field: take it from its publisher again")
    return table


def _faces(settings: IjbSettings) -> pa.Table:
    types = {"name": pa.string(), "template": pa.int64(), "medium": pa.int64()}
    return _columns(_meta(settings, "face_tid_mid.txt"), types)


def _search(settings: IjbSettings) -> pa.Table:
    """The table `search` (template, subject, part), each row once, from the lists that exist."""
    parts = []
    for part, names in _SEARCHES.items():
        for path in (_meta(settings, f"1N_{name}.csv") for name in names):
            if path.exists():
                found = _search_list(path)
                names = pa.array([part] * len(found), pa.string())
                parts.append(found.append_column("part", names))
    types = [("template", pa.int64()), ("subject", pa.int64()), ("part", pa.string())]
    search = pa.concat_tables([pa.schema(types).empty_table(), *parts])
    # without threads: with them Arrow does not promise an order of the groups
    whose = search.group_by("template", use_threads=False).aggregate(
        [("subject", "count_distinct")]
    )
    several = whose.filter(pc.greater(whose["subject_count_distinct"], 1))
    if len(several):
        raise InputError(
            f"{_meta(settings, '1N_*.csv')} give template {several['template'][0]} more than one "
            "subject: take them from their publisher again"
        )
    return search


def _search_list(path: Path) -> pa.Table:
    """The templates and subjects of one list, each once: it has a line for each image."""
    try:
        table = csv.read_csv(path)
        columns = [
            next(n for n in table.column_names if kind in n.lower())
            for kind in ("template", "subject")
        ]
        table = table.select(columns).rename_columns(["template", "subject"])
        table = table.cast(pa.schema([("template", pa.int64()), ("subject", pa.int64())]))
    except (OSError, ValueError, StopIteration) as error:
        raise InputError(
            f"{path} has no columns of template and subject numbers: "
            "take it from its publisher again"
        ) from error
    if any(column.null_count for column in table.columns):
        raise InputError(f"{path} has a line with an empty field: take it from its publisher again")
    return table.group_by(["template", "subject"], use_threads=False).aggregate([])


def _landmarks(settings: IjbSettings) -> dict[str, NDArray[np.float64]]:
    """[5, 2] pixels of each image."""
    fields = [f"{axis}{number}" for number in range(5) for axis in "xy"]
    numbers = {field: pa.float64() for field in [*fields, "score"]}
    path = _meta(settings, "name_5pts_score.txt")
    table = _columns(path, {"name": pa.string(), **numbers})
    points = np.column_stack([table[field].to_numpy() for field in fields]).reshape(-1, 5, 2)
    if not np.isfinite(points).all() or (np.ptp(points, axis=1).sum(axis=1) == 0).any():
        raise InputError(
            f"{path} has landmarks that coincide or are no numbers: take it from its "
            "publisher again"
        )
    return dict(zip(table["name"].to_pylist(), points, strict=True))
