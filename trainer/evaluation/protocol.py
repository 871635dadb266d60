"""The tests after every learning step: from embeddings of the test images to evaluation.json."""

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.images import as_jpeg
from data_shards.splits.benchmark import Benchmark
from data_shards.splits.cameras import cameras
from data_shards.storage.dataset import ShardDataset
from trainer.evaluation import EvaluationSettings
from trainer.evaluation.retrieval import Retrieval, nearest, retrieve
from trainer.evaluation.roc import roc
from trainer.evaluation.verification import squared_distances, ten_fold_accuracy

Ids = NDArray[np.int64]
_DEPTH = 50  # ranks that the CMC curve reaches


def samples_to_embed(benchmark: Benchmark) -> Ids:
    """The samples that any test uses, ascending."""
    parts = [benchmark.query, benchmark.gallery, benchmark.seen_query, benchmark.seen_gallery]
    return np.unique(np.concatenate([*parts, *benchmark.classified]))


class Embedded:
    """Embeddings by sample."""

    def __init__(self, samples: Ids, embeddings: NDArray[np.float32], distance: str) -> None:
        self._samples = samples
        vectors = torch.from_numpy(embeddings)
        normalised = torch.nn.functional.normalize(vectors)
        self._vectors = normalised if distance == "cosine" else vectors

    def of(self, samples: Ids) -> torch.Tensor:
        """[n, d] for `samples` ([n])."""
        return self._vectors[np.searchsorted(self._samples, samples)]


def evaluate(
    dataset: ShardDataset,
    benchmark: Benchmark,
    samples: Ids,
    embeddings: NDArray[np.float32],
    settings: EvaluationSettings,
) -> dict[str, Any]:
    """All measurements on one model, given `embeddings` [n, d] of `samples` [n] (ascending).

    ``top1``, ``map``, ``minp`` and ``cmc`` on identities never trained on; ``verification``,
    10-fold, and the ``roc`` of the same pairs; ``seen_top1``, the share of held-out images of
    step 0's identities whose nearest image among that step's training images shows the same
    identity (Table 2 of the CRL paper measures accuracy on them, too). Measurements for which the
    benchmark has no images are left out.
    """
    embedded = Embedded(samples, embeddings, settings.distance)
    measured: dict[str, Any] = {}
    if len(benchmark.query):
        measured |= _unseen(dataset, benchmark, embedded)
    if len(benchmark.pairs):
        left, right = benchmark.pairs.T
        distance = squared_distances(embedded.of(left), embedded.of(right))
        measured["verification"] = ten_fold_accuracy(distance, benchmark.same, benchmark.folds)
        measured["roc"] = roc(-distance, benchmark.same).curve()
    if len(benchmark.seen_query):
        found = _search(dataset, benchmark, embedded, benchmark.seen_query, benchmark.seen_gallery)
        measured["seen_top1"] = float(found.cmc[0])
    return measured


def classify(
    dataset: ShardDataset,
    benchmark: Benchmark,
    step: int,
    samples: Ids,
    embeddings: NDArray[np.float32],
    classes: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[Ids, Ids] | None:
    """The classes decided and the true ones ([n] each) of the test images of each learning step's
    own identities up to `step`, among all classes so far.

    `embeddings` [n, d] are those of `samples` [n] (ascending), `classes` decides one for each of
    several embeddings. None where the benchmark names no test images of a step's classes.
    """
    tested = benchmark.classified[: step + 1]
    if not tested or not all(map(len, tested)):
        return None
    own = np.concatenate(tested)
    chosen = torch.from_numpy(embeddings[np.searchsorted(samples, own)])
    return classes(chosen).numpy(), benchmark.row_of_identity[dataset.identity[own]]


def _unseen(dataset: ShardDataset, benchmark: Benchmark, embedded: Embedded) -> dict[str, Any]:
    found = _search(dataset, benchmark, embedded, benchmark.query, benchmark.gallery)
    return {
        "top1": float(found.cmc[0]),
        "map": found.mean_average_precision,
        "minp": found.mean_inverse_penalty,
        "cmc": found.cmc.tolist(),
        "queries": len(benchmark.query),
        "queries_without_match": found.skipped,
        "gallery": len(benchmark.gallery),
    }


def _search(
    dataset: ShardDataset, benchmark: Benchmark, embedded: Embedded, query: Ids, gallery: Ids
) -> Retrieval:
    return retrieve(
        query=embedded.of(query),
        gallery=embedded.of(gallery),
        query_identity=dataset.identity[query],
        gallery_identity=dataset.identity[gallery],
        query_camera=cameras(dataset, query, benchmark.by_image),
        gallery_camera=cameras(dataset, gallery, benchmark.by_image),
        depth=_DEPTH,
    )


def search_examples(
    dataset: ShardDataset,
    benchmark: Benchmark,
    samples: Ids,
    embeddings: NDArray[np.float32],
    settings: EvaluationSettings,
) -> list[dict[str, Any]]:
    """Some queries, evenly spaced, with their nearest gallery images and the cosine similarity of
    each (``score``), for the report.

    They are the benchmark's queries, or the held-out images of step 0 where it has none.
    """
    queries, gallery = benchmark.query, benchmark.gallery
    if not len(queries):
        queries, gallery = benchmark.seen_query, benchmark.seen_gallery
    if not len(queries):
        return []
    embedded = Embedded(samples, embeddings, settings.distance)
    spaced = np.linspace(0, len(queries) - 1, settings.examples).astype(np.int64)
    queries = queries[spaced]
    count = min(8, len(gallery))
    near = nearest(embedded.of(queries), embedded.of(gallery), count)
    shown = []
    for query, row in zip(queries.tolist(), near, strict=True):
        found = gallery[row]
        vectors = embedded.of(np.array([query])), embedded.of(found)
        scores = torch.nn.functional.cosine_similarity(*vectors).tolist()
        shown.append(
            {
                "query": picture(dataset, query),
                "found": [
                    {**picture(dataset, sample), "score": round(score, 4)}
                    for sample, score in zip(found.tolist(), scores, strict=True)
                ],
            }
        )
    return shown


def picture(dataset: ShardDataset, sample: int) -> dict[str, str]:
    """An image and its identity, for the report: JPEG bytes in base64."""
    jpeg = base64.b64encode(as_jpeg(dataset.image(sample))).decode()
    return {"identity": str(dataset.names[dataset.identity[sample]]), "jpeg": jpeg}
