"""Search at full size: MSMT17 (11,659 × 82,161, d = 2,048) and a million distractors (d = 256).

Our blockwise CMC, mAP and mINP against the usual full matrix of distances and its argsort, on the
same random embeddings; each side in a process of its own with one thread, whose CPU time and peak
memory are read (blocks of queries go to as many processes as there are). The full
matrix is made for a share of the queries that the machine's memory holds: its time and memory are
proportional to the queries.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report
from trainer.evaluation.identification import identify
from trainer.evaluation.retrieval import retrieve

IDENTITIES, CAMERAS = 3060, 15
Arrays = dict[str, Any]


def people(queries: int, gallery: int, dimension: int) -> Arrays:
    """Random embeddings around one centre an identity, such that some searches succeed."""
    rng = torch.Generator().manual_seed(0)
    identity = [torch.randint(IDENTITIES, (n,), generator=rng) for n in (queries, gallery)]
    camera = [torch.randint(CAMERAS, (n,), generator=rng) for n in (queries, gallery)]
    centre = torch.randn(IDENTITIES, dimension, generator=rng)
    vectors = [
        torch.nn.functional.normalize(
            torch.randn(len(own), dimension, generator=rng).mul_(4).add_(centre[own])
        )
        for own in identity
    ]
    return {
        "vectors": vectors,
        "labels": [part.numpy() for part in (*identity, *camera)],
    }


def blockwise(given: Arrays) -> dict[str, float]:
    """This repository's protocol."""
    found = retrieve(*given["vectors"], *given["labels"])
    return {"top1": float(found.cmc[0]), "map": found.mean_average_precision}


def full_matrix(given: Arrays) -> dict[str, float]:
    """All distances at once, argsort of each row, then query by query, as toolboxes do it."""
    query, gallery = given["vectors"]
    q_id, g_id, q_camera, g_camera = given["labels"]
    squares = query.square().sum(1, keepdim=True) + gallery.square().sum(1)
    distance = torch.addmm(squares, query, gallery.T, alpha=-2).numpy()
    order = np.argsort(distance, axis=1)
    first, precision = [], []
    for row, who, camera in zip(order, q_id, q_camera, strict=True):
        kept = (g_id[row] != who) | (g_camera[row] != camera)
        match = (g_id[row] == who)[kept]
        if match.any():
            first.append(match[0])
            places = np.flatnonzero(match) + 1
            precision.append(np.mean(np.arange(1, len(places) + 1) / places))
    return {"top1": float(np.mean(first)), "map": float(np.mean(precision))}


def distractors(probes: int, count: int, dimension: int) -> Arrays:
    """Probes of 80 identities, and as many distractors as asked for."""
    rng = torch.Generator().manual_seed(0)
    identity = torch.arange(probes) % 80
    centre = torch.randn(80, dimension, generator=rng)
    probe = torch.randn(probes, dimension, generator=rng).mul_(1.5).add_(centre[identity])
    others = torch.randn(count, dimension, generator=rng)
    vectors = [torch.nn.functional.normalize(part) for part in (probe, others)]
    return {"vectors": vectors, "labels": [identity.numpy()]}


def among_distractors(given: Arrays) -> dict[str, float]:
    """This repository's MegaFace protocol."""
    probe, others = given["vectors"]
    found = identify(probe, given["labels"][0], others)
    return {"rank1": float(found.cmc[0]), "trials": float(found.trials)}


def _memory(field: str) -> float:
    """GiB of this process: VmRSS, now; VmHWM, at most since the last reset."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) / 2**20


def _measure(
    make: Callable[..., Arrays], size: tuple[int, ...], side: Callable[[Arrays], dict[str, float]]
) -> dict[str, float]:
    torch.set_num_threads(1)  # as an actor on one core has it
    given = make(*size)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM
    before, begun, cpu = _memory("VmRSS"), time.perf_counter(), time.process_time()
    found = side(given)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    peak = _memory("VmHWM")
    return {**found, "seconds": seconds, "cpu_seconds": cpu, "gib": peak - before, "gib_all": peak}


def measured(
    make: Callable[..., Arrays], size: tuple[int, ...], side: Callable[[Arrays], dict[str, float]]
) -> dict[str, float]:
    """Results of a side in a process of its own: its times and memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_measure, make, size, side).result()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    quick = parser.parse_args().quick
    queries, gallery, dimension = (1166, 8216, 2048) if quick else (11_659, 82_161, 2048)
    probes, others = (800, 100_000) if quick else (4000, 1_000_000)
    part = queries if quick else queries // 4
    ours = measured(people, (queries, gallery, dimension), blockwise)
    same = measured(people, (part, gallery, dimension), blockwise)
    matrix = measured(people, (part, gallery, dimension), full_matrix)
    million = measured(distractors, (probes, others, 256), among_distractors)
    size = f"× {gallery:,}, d {dimension}"
    sides = {
        f"blockwise, {queries:,} {size}": ours,
        f"blockwise, {part:,} {size}": same,
        f"full matrix and argsort, {part:,} {size}": matrix,
        f"{probes:,} probes × {others:,} distractors, d 256": million,
    }
    names = {
        "s": "seconds",
        "CPU s": "cpu_seconds",
        "GiB beyond embeddings": "gib",
        "GiB in all": "gib_all",
    }
    report(
        "evaluation",
        [{"search": side, **{n: f[k] for n, k in names.items()}} for side, f in sides.items()],
        {
            "queries": queries,
            "gallery": gallery,
            "dimension": dimension,
            "blockwise": ours,
            "blockwise_part": same,
            "full_matrix_part": matrix,
            "part_queries": part,
            "cpu_ratio": matrix["cpu_seconds"] / same["cpu_seconds"],
            "memory_ratio_at_full_size": matrix["gib"] * queries / part / ours["gib"],
            "largest_difference": max(abs(matrix[k] - same[k]) for k in ("top1", "map")),
            "probes": probes,
            "distractors": others,
            "million_distractors": million,
        },
    )


if __name__ == "__main__":
    main()
