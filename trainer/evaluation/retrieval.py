"""Search: each query ranks the gallery. CMC, mAP and mINP with the camera rule of re-id."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Ids = NDArray[np.int64]
_BLOCK = 256


@dataclass(frozen=True)
class Retrieval:
    """The outcome of a search test."""

    cmc: NDArray[np.float64]
    """[depth] share of queries with a hit among the first k, k from 1."""
    mean_average_precision: float
    mean_inverse_penalty: float
    """mINP: hits divided by the rank of the last one, averaged."""
    skipped: int
    """Queries without any image of their identity to find."""


def nearest(query: torch.Tensor, gallery: torch.Tensor, k: int) -> Ids:
    """The k gallery rows nearest to each query ([q, k]), nearest first, by Euclidean distance."""
    blocks = [_similarity(part, gallery).topk(k, dim=1).indices for part in query.split(_BLOCK)]
    return torch.cat(blocks).numpy()


def _similarity(query: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """[q, g], larger is nearer: minus the squared distance, up to a constant of each query."""
    return 2 * query @ gallery.T - gallery.square().sum(dim=1)


def retrieve(
    query: torch.Tensor,
    gallery: torch.Tensor,
    query_identity: Ids,
    gallery_identity: Ids,
    query_camera: Ids,
    gallery_camera: Ids,
    depth: int = 10,
) -> Retrieval:
    """Ranks the gallery ([g, d]) for each query ([q, d]) by Euclidean distance, block by block.

    Gallery images of the query's identity *and* camera are dropped; queries left without a match
    are skipped and counted. Equal distances keep the gallery's order.
    """
    g_identity, g_camera = torch.from_numpy(gallery_identity), torch.from_numpy(gallery_camera)
    hits_by_rank = torch.zeros(depth, dtype=torch.float64)
    precision, penalty, skipped = 0.0, 0.0, 0
    ranks = torch.arange(1, len(gallery) + 1, dtype=torch.float64)
    for start in range(0, len(query), _BLOCK):
        part = slice(start, start + _BLOCK)
        q_identity = torch.from_numpy(query_identity[part])[:, None]
        q_camera = torch.from_numpy(query_camera[part])[:, None]
        similarity = _similarity(query[part], gallery)
        same = q_identity == g_identity
        similarity[same & (q_camera == g_camera)] = -torch.inf
        ranked = similarity.sort(dim=1, descending=True, stable=True)
        match = same.gather(1, ranked.indices) & ranked.values.isfinite()
        found = match.sum(dim=1)
        skipped += int((found == 0).sum())
        match, found = match[found > 0], found[found > 0].double()
        if not len(match):
            continue
        total = match.cumsum(dim=1)
        precision += ((total / ranks * match).sum(dim=1) / found).sum().item()
        last = (match * ranks).amax(dim=1)
        penalty += (found / last).sum().item()
        depth_here = min(depth, match.shape[1])
        first = (total[:, :depth_here] > 0).double().sum(dim=0)
        hits_by_rank[:depth_here] += first
        hits_by_rank[depth_here:] += first[-1]
    counted = max(1, len(query) - skipped)
    return Retrieval(
        (hits_by_rank / counted).numpy(), precision / counted, penalty / counted, skipped
    )
