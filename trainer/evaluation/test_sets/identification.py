"""The protocol identification (MegaFace): every image's mates are searched among distractors."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_shards.settings import InputError
from data_shards.sources import ROLES
from data_shards.storage.dataset import ShardDataset
from trainer.evaluation.blocks import query_blocks
from trainer.evaluation.identification import merge, ranks
from trainer.evaluation.test_sets.common import DEPTH, Ids, Spread, with_role
from trainer.evaluation.vectors import StoredVectors


class Identification:
    """Rank-k of every ordered pair of an identity's images, among distractors.

    If a table `noisy` lists mislabelled samples, as the customary cleaned lists do, the results are
    given twice: `raw` with all images, and `cleaned` without these.
    """

    normalised = True

    def __init__(self, dataset: ShardDataset, distractors: ShardDataset | None) -> None:
        self._identity = dataset.identity
        self._apart = distractors is not None
        self._distractors = with_role(distractors or dataset, "distractor")
        self._probes = np.flatnonzero(dataset.role != ROLES.index("distractor"))
        noisy = [
            held.table("noisy")["sample"].to_numpy() if "noisy" in held.manifest["tables"] else None
            for held in (dataset, distractors or dataset)
        ]
        self._cleaned = None
        if any(listed is not None for listed in noisy):
            self._cleaned = [
                samples if listed is None else np.setdiff1d(samples, listed)
                for samples, listed in zip((self._probes, self._distractors), noisy, strict=True)
            ]
        probes, others = self._cleaned or (self._probes, self._distractors)
        if not (np.bincount(self._identity[probes], minlength=1) > 1).any() or not len(others):
            raise InputError(
                f"{dataset.location} has no two images of one identity to find each other among "
                "distractors: a folder is given roles at import (roles=folders)"
            )

    def samples(self) -> dict[str, Ids]:
        if self._apart:
            return {"dataset": self._probes, "distractors": self._distractors}
        return {"dataset": np.union1d(self._probes, self._distractors)}

    def measure(self, vectors: Mapping[str, StoredVectors], spread: Spread) -> dict[str, Any]:
        raw = self._measure(vectors, spread, self._probes, self._distractors)
        if self._cleaned is None:
            return raw
        return {"raw": raw, "cleaned": self._measure(vectors, spread, *self._cleaned)}

    def _measure(
        self, vectors: Mapping[str, StoredVectors], spread: Spread, probes: Ids, distractors: Ids
    ) -> dict[str, Any]:
        probe = vectors["dataset"].of(probes)
        gallery = vectors["distractors" if self._apart else "dataset"].of(distractors)
        identity = self._identity[probes]
        blocks = query_blocks(len(probe), len(probe))
        found = merge(spread([(ranks, b, probe, identity, gallery) for b in blocks]), DEPTH)
        return {
            "rank1": float(found.cmc[0]),
            "cmc": found.cmc.tolist(),
            "trials": found.trials,
            "probes": len(probes),
            "probes_without_mate": found.skipped,
            "distractors": len(distractors),
        }
