"""The protocol retrieval (person re-identification): images with role query search the gallery.

The gallery are the images with role gallery or distractor.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_shards.settings import InputError
from data_shards.splits.cameras import cameras
from data_shards.storage.dataset import ShardDataset
from trainer.evaluation.blocks import query_blocks
from trainer.evaluation.retrieval import Labels, merge, search
from trainer.evaluation.test_sets.common import (
    DEPTH,
    Ids,
    Spread,
    searched,
    with_role,
)
from trainer.evaluation.vectors import StoredVectors


class Retrieval:
    """CMC, mAP and mINP with the camera rule."""

    def __init__(self, dataset: ShardDataset, distance: str) -> None:
        self.normalised = distance == "cosine"
        self._query = with_role(dataset, "query")
        self._asked = dataset.identity[self._query], cameras(dataset, self._query)
        self._gallery, shown = searched(dataset)
        self._labels = Labels(shown, cameras(dataset, self._gallery))
        self._distractors = int((shown >= len(dataset.names)).sum())
        if not any(len(self._labels.own(*one)[0]) for one in zip(*self._asked, strict=True)):
            raise InputError(
                f"no query of {dataset.location} has an image of its identity by another camera in "
                "the gallery: there is nothing to find, import it again with other roles"
            )

    def samples(self) -> dict[str, Ids]:
        return {"dataset": np.union1d(self._query, self._gallery)}

    def measure(self, vectors: Mapping[str, StoredVectors], spread: Spread) -> dict[str, Any]:
        query, gallery = vectors["dataset"].of(self._query), vectors["dataset"].of(self._gallery)
        blocks = query_blocks(len(query), len(gallery))
        given = (query, *self._asked, gallery, self._labels)
        found = merge(spread([(search, block, *given) for block in blocks]), DEPTH)
        return {
            "top1": float(found.cmc[0]),
            "map": found.mean_average_precision,
            "minp": found.mean_inverse_penalty,
            "cmc": found.cmc.tolist(),
            "queries": len(query),
            "queries_without_match": found.skipped,
            "gallery": len(gallery),
            "distractors": self._distractors,
            "dropped_by_camera": found.dropped,
        }
