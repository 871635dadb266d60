"""A collection of Qdrant: on a server, or in a folder by Qdrant's own client."""

import os
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from data_shards.settings import InputError
from launch.models.sinks.database import Database
from launch.models.sinks.interface import Ids, Rows
from trainer.gallery import Vectors
from trainer.onnx_graphs import first_line
from trainer.packages import package

_BATCH = 256
_SPACE = uuid.UUID("5f0c4b7e-6a55-4d0b-9c53-6d1f0f3b3a52")
"""Points' ids are hashes of dataset and sample in this name space: made again, they are equal."""
_NEEDED = {"dataset", "sample", "model"}


def database(url: str) -> Database:
    """The collection that ``qdrant+http://HOST:6333/COLLECTION`` names, or +https, or
    ``qdrant+file:///FOLDER/COLLECTION``. Raises InputError."""
    package("qdrant_client", "--out qdrant+", extra="qdrant")
    where, _, name = url.removeprefix("qdrant+").rstrip("/").rpartition("/")
    if not name or where.count("/") < 2:
        raise InputError(f"--out {url}: write qdrant+http://HOST:6333/COLLECTION")
    if urlsplit(where).password is not None:
        raise InputError("--out qdrant+…: give the key as QDRANT_API_KEY, which nobody sees")
    place = f"collection {name} at {where}"
    return Database(place, partial(_connected, where, name, place))


@contextmanager
def _connected(where: str, name: str, place: str) -> "Iterator[_Collection]":
    """Raises InputError for what the server refuses, or where there is none."""
    from qdrant_client import QdrantClient
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import ApiException

    try:
        if where.startswith("file://"):
            client = QdrantClient(path=where.removeprefix("file://"))
        else:
            key = os.environ.get("QDRANT_API_KEY")
            # its check of versions warns where there is no server, which is refused below
            client = QdrantClient(url=where, api_key=key, check_compatibility=False)
        try:
            yield _Collection(client, name, place)
        finally:
            client.close()
    except (ApiException, QdrantException, RuntimeError) as error:
        raise InputError(f"{place}: {first_line(error)}") from error


@dataclass(frozen=True)
class _Collection:
    """A `Table`. A point changes at once, vector and payload; a call's points one after another."""

    client: Any
    name: str
    place: str

    def dimension(self) -> int | None:
        if not self.client.collection_exists(self.name):
            return None
        vectors = self.client.get_collection(self.name).config.params.vectors
        some, _ = self.client.scroll(self.name, limit=1, with_payload=True)
        if isinstance(vectors, dict) or any(_NEEDED - set(p.payload or ()) for p in some):
            raise InputError(f"{self.place} was not made by this command: name another collection")
        return int(vectors.size)

    def create(self, dimension: int) -> None:
        from qdrant_client import models as q

        kind = q.VectorParams(size=dimension, distance=q.Distance.COSINE)
        self.client.create_collection(self.name, vectors_config=kind)
        with warnings.catch_warnings(
            action="ignore"
        ):  # in a folder there are none, and need not be
            for field in ("dataset", "model"):
                self.client.create_payload_index(self.name, field, q.PayloadSchemaType.KEYWORD)

    def models(self) -> list[str]:
        from qdrant_client import models as q

        found: list[str] = []
        while True:  # a point of a model that is not found yet
            known = q.FieldCondition(key="model", match=q.MatchAny(any=found)) if found else None
            rest = q.Filter(must_not=[known]) if known else None
            some, _ = self.client.scroll(self.name, rest, limit=1, with_payload=["model"])
            if not some:
                return sorted(found)
            found.append(some[0].payload["model"])

    def rows(self, dataset: str, model: str) -> int:
        return int(self.client.count(self.name, _of(dataset, model), exact=True).count)

    def vectors(self, dataset: str, model: str) -> Iterator[tuple[Ids, Vectors]]:
        offset = None
        while True:
            points, offset = self.client.scroll(
                self.name,
                _of(dataset, model),
                limit=_BATCH,
                offset=offset,
                with_payload=["sample"],
                with_vectors=True,
            )
            if points:
                samples = np.array([point.payload["sample"] for point in points], np.int64)
                vectors = np.array([point.vector for point in points], np.float32)
                order = np.argsort(samples)
                yield samples[order], vectors[order]
            if offset is None:
                return

    def put(self, dataset: str, model: str, rows: Rows) -> None:
        from qdrant_client import models as q

        texts = (rows.keys, rows.identities, rows.cameras)
        points = [
            q.PointStruct(
                id=_id(dataset, int(sample)),
                vector=vector.tolist(),
                payload={
                    "dataset": dataset,
                    "sample": int(sample),
                    **dict(zip(("key", "identity", "camera"), texts_, strict=True)),
                    "model": model,
                },
            )
            for sample, *texts_, vector in zip(rows.samples, *texts, rows.vectors, strict=True)
        ]
        for first in range(0, len(points), _BATCH):
            self.client.upsert(self.name, points[first : first + _BATCH], wait=True)

    def replace(self, dataset: str, model: str, parts: Iterable[Rows]) -> None:
        from qdrant_client import models as q

        for rows in parts:
            vectors = {
                _id(dataset, int(sample)): vector
                for sample, vector in zip(rows.samples, rows.vectors, strict=True)
            }
            ids = list(vectors)
            for first in range(0, len(ids), _BATCH):
                # those that are there, with what others wrote into their payload
                there = self.client.retrieve(self.name, ids[first : first + _BATCH])
                points = [
                    q.PointStruct(
                        id=point.id,
                        vector=vectors[str(point.id)].tolist(),
                        payload={**point.payload, "model": model},
                    )
                    for point in there
                ]
                if points:
                    self.client.upsert(self.name, points, wait=True)

    def describe(self, text: str, models: list[str]) -> None:
        about = {"perennial": text, "models": models}
        self.client.update_collection(self.name, metadata=about)


def _id(dataset: str, sample: int) -> str:
    return str(uuid.uuid5(_SPACE, f"{dataset}/{sample}"))


def _of(dataset: str, model: str) -> Any:
    from qdrant_client import models as q

    wanted = {"dataset": dataset, "model": model}
    return q.Filter(
        must=[
            q.FieldCondition(key=key, match=q.MatchValue(value=value))
            for key, value in wanted.items()
        ]
    )
