"""Which sink an ``--out`` means: by a URL's scheme, or by the ending of a file's name."""

import re
from collections.abc import Callable
from pathlib import Path

from data_shards.settings import InputError
from launch.models.sinks import pgvector, qdrant
from launch.models.sinks.database import Database
from launch.models.sinks.faiss_index import FaissIndex
from launch.models.sinks.features import FeatureFolder
from launch.models.sinks.flat import FlatFile, NumpyFile, SafetensorsFile
from launch.models.sinks.gallery import GalleryFolder
from launch.models.sinks.interface import Sink, Store
from launch.models.sinks.parquet import ParquetFile

FILES: dict[str, type[FlatFile]] = {
    ".npy": NumpyFile,
    ".safetensors": SafetensorsFile,
    ".parquet": ParquetFile,
    ".faiss": FaissIndex,
}
"""By the ending of the file's name. Any other name is a gallery's folder."""
DATABASES: dict[str, Callable[[str], Database]] = {
    "postgresql": pgvector.database,
    "postgres": pgvector.database,
    "qdrant+http": qdrant.database,
    "qdrant+https": qdrant.database,
    "qdrant+file": qdrant.database,
}
"""By the URL's scheme."""


def sink_at(out: Path | str, features: str | None = None) -> Sink:
    """The sink that `out` means; with `features` a folder of feature files with that ending.

    Raises InputError for a URL of an unknown scheme, or a file name of an unknown ending.
    """
    scheme, found, _ = str(out).partition("://")
    if found:
        if features is not None:
            raise InputError(f"--features writes a folder of files: {scheme}:// is a URL")
        if scheme not in DATABASES:
            raise InputError(f"--out {scheme}://…: give one of {', '.join(DATABASES)}, or a path")
        return DATABASES[scheme](str(out))
    path = Path(out)
    if features is not None:
        if path.suffix in FILES:
            raise InputError(f"--features writes a folder of files: {out} is the name of a file")
        return FeatureFolder(path, features)
    if path.suffix in FILES:
        return FILES[path.suffix](path)
    if re.fullmatch(r"\.[A-Za-z][A-Za-z0-9]{0,9}", path.suffix) and not path.is_dir():
        raise InputError(
            f"--out {out}: no {path.suffix} is written: end its name in {', '.join(FILES)}, or "
            "give a folder's name without an ending"
        )
    return GalleryFolder(path)


def store_at(where: Path | str) -> Store:
    """The store that `where` means. Raises InputError for a file, which cannot be upgraded."""
    if "://" in str(where):
        sink = sink_at(where)
        assert isinstance(sink, Database), "as all URLs"
        return sink
    if Path(where).suffix in FILES and not Path(where).is_dir():
        raise InputError(
            f"{where}: files are not upgraded: embed into a folder, or into a database, or anew"
        )
    return GalleryFolder(Path(where))
