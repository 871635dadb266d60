"""A dataset's manifest. It may come from a stranger, so names, sizes and counts are checked."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_shards.settings import InputError
from untrusted.json_text import parse_json
from untrusted.names import plain_name, sha256_text

MANIFEST_VERSION = 2
MANIFEST_BYTES = 1 << 28
_LARGEST_FILE = 1 << 48
_BLOCK = 512
"""Bytes of a tar's block: a sample has three members, each of a header and its content."""

Name = Annotated[str, AfterValidator(plain_name)]
Count = Annotated[int, Field(ge=0, lt=2**40)]
Side = Annotated[int, Field(gt=0, le=1 << 16)]


class _Facts(BaseModel):
    model_config = ConfigDict(strict=True)

    bytes: Annotated[int, Field(ge=0, le=_LARGEST_FILE)]
    sha256: Annotated[str, AfterValidator(sha256_text)]


def check_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns `facts` if they are a file's bytes and sha256. Raises ValueError otherwise."""
    _Facts.model_validate(facts)
    return facts


class _Manifest(BaseModel):
    """The keys that are checked before a dataset is read; others are for people."""

    model_config = ConfigDict(strict=True)

    source: dict[str, Any]
    image_size: tuple[Side, Side] | None
    samples: Count
    identities: Count
    cameras: list[Annotated[str, Field(max_length=4096)]] = Field(max_length=1 << 20)
    refused: Count
    tables: list[Name] = Field(max_length=1000)
    shards: list[Name]
    files: dict[Name, _Facts]

    @model_validator(mode="after")
    def _fits(self) -> "_Manifest":
        named = [*self.shards, *(f"{n}.parquet" for n in ("samples", "identities", *self.tables))]
        for name in named:
            if name not in self.files:
                raise ValueError(f"it names {name}, which is none of its files")
        if len(set(self.shards)) < len(self.shards):
            raise ValueError("it names a shard twice")
        room = sum(self.files[name].bytes for name in self.shards) // _BLOCK
        if self.samples > room:
            raise ValueError(f"its shards have no room for {self.samples:,} samples")
        if self.identities > self.samples:
            raise ValueError(f"it has {self.samples:,} samples of {self.identities:,} identities")
        return self


def parse_manifest(content: bytes, where: str) -> dict[str, Any]:
    """Parses a manifest from a file's content. Raises InputError naming `where` it is from."""
    try:
        manifest = parse_json(content)
        version = manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where} is damaged: build the dataset again") from error
    if version != MANIFEST_VERSION:
        raise InputError(
            f"{where} has version {str(version)[:40]}, this program reads {MANIFEST_VERSION}: "
            "build the dataset again"
        )
    try:
        _Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        why = first["msg"].removeprefix("Value error, ")
        place = ".".join(str(part)[:60] for part in first["loc"])
        raise InputError(
            f"{where} is damaged ({place + ': ' if place else ''}{why}): build the dataset again"
        ) from error
    return manifest


def shard_sizes(manifest: Mapping[str, Any]) -> list[int]:
    """Bytes of each shard."""
    return [manifest["files"][name]["bytes"] for name in manifest["shards"]]
