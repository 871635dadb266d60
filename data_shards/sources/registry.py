"""The registry of the sources of `perennial shards import`: a new one is added by an entry here."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from data_shards.settings import Settings
from data_shards.sources import Refusal, SourceImage
from data_shards.sources.cifar import CIFAR_COUNTS, CifarSettings, read_cifar
from data_shards.sources.crl_person import (
    CRL_PERSON_COUNTS,
    CrlPersonSettings,
    list_crl_person,
    read_crl_person,
)
from data_shards.sources.folder import FolderSettings, folder_tables, read_folder
from data_shards.sources.ijb import IjbSettings, ijb_counts, ijb_tables, list_ijb, read_ijb
from data_shards.sources.imagenet import (
    ImagenetSettings,
    imagenet_counts,
    list_imagenet,
    read_imagenet,
)
from data_shards.sources.market1501 import (
    DUKE_COUNTS,
    MARKET1501_COUNTS,
    DukeSettings,
    Market1501Settings,
    list_duke,
    list_market1501,
    read_duke,
    read_market1501,
)
from data_shards.sources.megaface import (
    FacescrubSettings,
    MegafaceSettings,
    facescrub_tables,
    list_facescrub,
    list_megaface,
    megaface_tables,
    read_facescrub,
    read_megaface,
)
from data_shards.sources.msmt17 import Msmt17Settings, list_msmt17, msmt17_counts, read_msmt17
from data_shards.sources.recordio import RecordIOSettings, count_recordio, read_recordio
from data_shards.sources.verification_bin import (
    VerificationBinSettings,
    count_verification_bin,
    read_verification_bin,
    verification_bin_tables,
)
from data_shards.sources.webdataset import WebDatasetSettings, read_webdataset


class Source(NamedTuple):
    """The functions that read a format. All take its settings."""

    settings: type[Settings]
    """The model of its options; one is `path`. The first line of its docstring describes it."""
    read: Callable[..., Iterable[SourceImage | Refusal]]
    """Yields the images in an order that never changes; if it `seeks`, with a parameter `start`."""
    tables: Callable[[Any], dict[str, pa.Table]] | None = None
    """Tables that belong to the dataset, with image keys (see `writing.writer.numbered`)."""
    total: Callable[[Any], int] | None = None
    """How many items `read` yields, if that can be counted without reading them."""
    seeks: bool = False
    """Whether `read` can start at any item; otherwise earlier items are read and dropped."""
    published: Callable[[Any], Mapping[str, int]] = lambda settings: {}
    """The published number of images by role, or by several roles joined with "+"."""


def _listed(
    settings: type[Settings],
    read: Callable[..., Iterable[SourceImage | Refusal]],
    listed: Callable[[Any], Iterable[Any]],
    published: Callable[[Any], Mapping[str, int]] = lambda settings: {},
    tables: Callable[[Any], dict[str, pa.Table]] | None = None,
) -> Source:
    """A source that lists its images before it reads them: it can count them and start anywhere."""

    def total(chosen: Any) -> int:
        return sum(1 for _ in listed(chosen))

    return Source(
        settings=settings, read=read, tables=tables, total=total, seeks=True, published=published
    )


SOURCES: dict[str, Source] = {
    "recordio": Source(RecordIOSettings, read_recordio, total=count_recordio, seeks=True),
    "folder": Source(FolderSettings, read_folder, folder_tables, seeks=True),
    "webdataset": Source(WebDatasetSettings, read_webdataset, seeks=True),
    "verification_bin": Source(
        VerificationBinSettings,
        read_verification_bin,
        verification_bin_tables,
        count_verification_bin,
        seeks=True,
    ),
    "market1501": _listed(
        Market1501Settings, read_market1501, list_market1501, lambda settings: MARKET1501_COUNTS
    ),
    "dukemtmc": _listed(DukeSettings, read_duke, list_duke, lambda settings: DUKE_COUNTS),
    "msmt17": _listed(Msmt17Settings, read_msmt17, list_msmt17, msmt17_counts),
    "crl_person": _listed(
        CrlPersonSettings, read_crl_person, list_crl_person, lambda settings: CRL_PERSON_COUNTS
    ),
    "ijb": _listed(IjbSettings, read_ijb, list_ijb, ijb_counts, ijb_tables),
    "megaface": _listed(MegafaceSettings, read_megaface, list_megaface, tables=megaface_tables),
    "facescrub": _listed(
        FacescrubSettings, read_facescrub, list_facescrub, tables=facescrub_tables
    ),
    "cifar100": Source(CifarSettings, read_cifar, published=lambda settings: CIFAR_COUNTS),
    "imagenet": _listed(ImagenetSettings, read_imagenet, list_imagenet, imagenet_counts),
}
