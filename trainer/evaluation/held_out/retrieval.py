"""Images with role query searched for among those with role gallery: person re-identification."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_shards.cameras import cameras
from data_shards.dataset import ShardDataset
from trainer.evaluation.blocks import query_blocks
from trainer.evaluation.held_out.common import DEPTH, Ids, Spread, with_role
from trainer.evaluation.retrieval import Labels, merge, search
from trainer.evaluation.vectors import StoredVectors


class Retrieval:
    """CMC, mAP and mINP with the camera rule."""

    def __init__(self, dataset: ShardDataset, distance: str) -> None:
        self.normalised = distance == "cosine"
        self._identity, self._dataset = dataset.identity, dataset
        self._query, self._gallery = (with_role(dataset, role) for role in ("query", "gallery"))

    def samples(self) -> dict[str, Ids]:
        return {"dataset": np.union1d(self._query, self._gallery)}

    def measure(self, vectors: Mapping[str, StoredVectors], spread: Spread) -> dict[str, Any]:
        query, gallery = vectors["dataset"].of(self._query), vectors["dataset"].of(self._gallery)
        labels = Labels(self._identity[self._gallery], cameras(self._dataset, self._gallery))
        asked = cameras(self._dataset, self._query)
        calls = [
            (search, block, query, self._identity[self._query], asked)
            for block in query_blocks(len(query), len(gallery))
        ]
        found = merge(spread([(*call, gallery, labels) for call in calls]), DEPTH)
        return {
            "top1": float(found.cmc[0]),
            "map": found.mean_average_precision,
            "minp": found.mean_inverse_penalty,
            "cmc": found.cmc.tolist(),
            "queries": len(query),
            "queries_without_match": found.skipped,
            "gallery": len(gallery),
        }
