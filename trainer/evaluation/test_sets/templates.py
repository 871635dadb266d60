"""The protocol templates (IJB): pairs (table `template_pairs`, 1:1), searches (`search`, 1:N)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.settings import InputError
from data_shards.storage.dataset import ShardDataset
from trainer.evaluation.blocks import query_blocks
from trainer.evaluation.open_set import FALSE_POSITIVE_RATES, best_scores, merge
from trainer.evaluation.retrieval import retrieve
from trainer.evaluation.roc import log_rates, roc
from trainer.evaluation.templates import pair_scores, template_vectors
from trainer.evaluation.test_sets.common import DEPTH, Ids, Spread, columns
from trainer.evaluation.vectors import StoredVectors


class Templates:
    """TAR at FAR of pairs of templates; TPIR at FPIR and ranks of searches, over the galleries."""

    normalised = False

    def __init__(self, dataset: ShardDataset) -> None:
        table = columns(dataset.table("templates"), "sample", "template", "medium")
        self._sample, self._template, self._medium = (column[table[0] >= 0] for column in table)
        known = np.unique(self._template)
        self._counts = {
            "images_refused": int((table[0] < 0).sum()),
            "templates_of_refused_images": len(np.setdiff1d(table[1], known)),
        }
        self._pairs = self._search = None
        held = dataset.manifest["tables"]
        if not {"template_pairs", "search"} & set(held):
            raise InputError(
                f"{dataset.location} has neither of the tables template_pairs and search: "
                "import it again"
            )
        if "template_pairs" in held:
            left, right, same = columns(dataset.table("template_pairs"), "left", "right", "same")
            there = np.isin(left, known) & np.isin(right, known)
            self._pairs = left[there], right[there], same[there]
            self._counts["pairs_of_refused_images"] = int((~there).sum())
            if len(np.unique(same[there])) < 2:
                raise InputError(f"the template pairs of {dataset.location} are all of one kind")
        if "search" in held:
            search = columns(dataset.table("search"), "template", "subject", "part")
            there = np.isin(search[0], known)
            self._search = search[0][there], search[1][there], search[2][there]
            self._counts["searched_of_refused_images"] = int((~there).sum())
            _check(dataset, *self._search[1:])

    def samples(self) -> dict[str, Ids]:
        return {"dataset": np.unique(self._sample)}

    def measure(self, vectors: Mapping[str, StoredVectors], spread: Spread) -> dict[str, Any]:
        images = vectors["dataset"].of(self._sample)
        names, templates = template_vectors(images, self._template, self._medium)
        found: dict[str, Any] = {"templates": len(names), **self._counts}
        if self._pairs is not None:
            left, right = (np.searchsorted(names, side) for side in self._pairs[:2])
            curve = roc(pair_scores(templates, left, right), self._pairs[2])
            found |= {"tar": curve.measured(), "roc": curve.curve(), "pairs": len(left)}
        if self._search is not None:
            template, subject, part = self._search
            vector = torch.from_numpy(templates[np.searchsorted(names, template)])
            found |= _search(vector, subject, part, spread)
        return found


def _check(dataset: ShardDataset, subject: Ids, part: NDArray[Any]) -> None:
    """Raises InputError unless every gallery has probes with a mate in it and probes without."""
    wanted = subject[part == "probe"]
    galleries = sorted(set(part.tolist()) - {"probe"})
    mated = [np.isin(wanted, subject[part == gallery]) for gallery in galleries]
    if not galleries or not all(one.any() and not one.all() for one in mated):
        raise InputError(
            f"the search of {dataset.location} needs a gallery, and for each probes with a mate in "
            "it and probes without: import it again"
        )


def _search(
    vector: torch.Tensor, subject: Ids, part: NDArray[Any], spread: Spread
) -> dict[str, Any]:
    """Probes searched for in every gallery; each figure is the mean over the galleries."""
    is_probe = part == "probe"
    probe, wanted = vector[is_probe], subject[is_probe]
    curves, cmcs = [], []
    names = sorted(set(part[~is_probe].tolist()))
    for name in names:
        gallery, there = vector[part == name], subject[part == name]
        blocks = query_blocks(len(probe))
        calls = [(best_scores, b, probe, wanted, gallery, there) for b in blocks]
        curves.append(merge(spread(calls), wanted, there))
        mated = np.isin(wanted, there)
        # different cameras of probes and gallery: re-id's camera rule does not apply
        apart = np.zeros(mated.sum(), dtype=np.int64), np.ones(len(there), dtype=np.int64)
        found = retrieve(probe[mated], gallery, wanted[mated], there, *apart, depth=DEPTH)
        cmcs.append(found.cmc)
    alone = sum(int((~np.isin(wanted, subject[part == name])).sum()) for name in names)
    fewest = min(curve.impostors for curve in curves)
    rates = log_rates(fewest)
    able = [rate for rate in FALSE_POSITIVE_RATES if rate * fewest >= 1]
    cmc = np.mean(cmcs, axis=0)
    tpir = np.mean([curve.at([*able, *rates]) for curve in curves], axis=0).tolist()
    return {
        "tpir": {f"{rate:g}": value for rate, value in zip(able, tpir, strict=False)},
        "open_set": list(zip(rates.tolist(), tpir[len(able) :], strict=True)),
        "rank1": float(cmc[0]),
        "rank5": float(cmc[4]),
        "cmc": cmc.tolist(),
        "probes": len(probe),
        "probes_without_mate": alone,
        "galleries": len(curves),
        "enrolled": int((~is_probe).sum()),
    }
