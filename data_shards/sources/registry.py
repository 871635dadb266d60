"""The sources that `perennial shards import` knows. A new one joins by a line here."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pyarrow as pa

from data_shards.settings import Settings
from data_shards.sources import Refusal, SourceImage
from data_shards.sources.folder import FolderSettings, read_folder
from data_shards.sources.recordio import RecordIOSettings, count_recordio, read_recordio
from data_shards.sources.verification_bin import (
    VerificationBinSettings,
    count_verification_bin,
    read_verification_bin,
    verification_bin_tables,
)
from data_shards.sources.webdataset import WebDatasetSettings, read_webdataset


class Source(NamedTuple):
    """How a format is read. All functions take its settings."""

    settings: type[Settings]
    """The model of its options; one is `path`. The first line of its docstring describes it."""
    read: Callable[..., Iterable[SourceImage | Refusal]]
    """The images in an order that never changes; if it `seeks`, with a parameter `start`."""
    tables: Callable[[Any], dict[str, pa.Table]] | None = None
    """Tables that belong to the dataset, with image keys (see `data_shards.writer.numbered`)."""
    total: Callable[[Any], int] | None = None
    """How many items `read` yields, if that can be said at once."""
    seeks: bool = False
    """Whether `read` can start at any item; otherwise items are read and passed over."""


SOURCES: dict[str, Source] = {
    "recordio": Source(RecordIOSettings, read_recordio, total=count_recordio, seeks=True),
    "folder": Source(FolderSettings, read_folder, seeks=True),
    "webdataset": Source(WebDatasetSettings, read_webdataset, seeks=True),
    "verification_bin": Source(
        VerificationBinSettings,
        read_verification_bin,
        verification_bin_tables,
        count_verification_bin,
        seeks=True,
    ),
}
