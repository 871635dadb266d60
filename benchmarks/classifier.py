"""The sharded classifier, forward to updated rows, against the products it cannot avoid.

85,738 identities, d = 512, global batch 256, two gloo ranks of one core each. Also its peak memory,
pytorch-metric-learning on one rank, and, unless --quick, a sweep over identities and batch, drawn.
On a GPU: the sweep to 10 million identities in full and 30 million sampled, on one card.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks import interleaved, report
from benchmarks.classifier_sides import MODES, margins_peer, ours, products, spent_memory
from benchmarks.classifier_sweep import cpu_cases, draw, gpu_cases
from trainer.heads.collectives import Ranks

IDENTITIES, DIMENSION, BATCH = 85_738, 512, 256


def _rank(rank: int, world: int, folder: str, work: Any, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    torch.save(work(*args), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def on_ranks(world: int, work: Any, *args: Any) -> Any:
    """What `work` returned on rank 0 of `world` gloo ranks of one core each."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (world, folder, work, args), nprocs=world)
        return torch.load(f"{folder}/0.pt", weights_only=True)


def times(identities: int, batch: int, modes: list[str], rounds: int) -> dict[str, float]:
    """Median seconds of the products and each mode on this rank, all ranks at once."""
    ranks, cpu = Ranks.default(), torch.device("cpu")
    sides = {
        "products": products(
            identities=identities, dimension=DIMENSION, batch=batch, ranks=ranks, device=cpu
        )
    }
    for mode in modes:
        sides[mode] = ours(MODES[mode], identities, DIMENSION, batch, ranks, cpu)

    def together(side: Any) -> Any:
        def run() -> None:
            ranks.barrier()
            side()
            ranks.barrier()

        return run

    return interleaved({name: together(side) for name, side in sides.items()}, rounds)


def peer_times(identities: int, rounds: int) -> dict[str, float]:
    """Median seconds of ours and of pytorch-metric-learning, one rank of one core."""
    ranks, cpu = Ranks.default(), torch.device("cpu")
    sides = {}
    for name in ("cosface", "arcface"):
        sides[f"ours, {name}"] = ours(MODES[name], identities, DIMENSION, BATCH, ranks, cpu)
        sides[f"pytorch-metric-learning, {name}"] = margins_peer(name, identities, DIMENSION, BATCH)
    return interleaved(sides, rounds)


def memory(mode: str, identities: int) -> dict[str, float]:
    """Peak bytes of one iteration on this rank, beyond rows and their momentum."""
    return spent_memory(
        settings=MODES[mode],
        identities=identities,
        dimension=DIMENSION,
        batch=BATCH,
        ranks=Ranks.default(),
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no sweep")
    parser.add_argument("--plot", type=Path, default=Path("benchmarks/results/classifier.png"))
    arguments = parser.parse_args()
    quick, figures = arguments.quick, {}
    seconds = on_ranks(2, times, IDENTITIES, BATCH, list(MODES), 7 if quick else 15)
    buffer = BATCH * -(-IDENTITIES // 2) * 4
    rows: list[dict[str, Any]] = []
    for name, value in seconds.items():
        row = {"iteration": name, "seconds": value, "of products": value / seconds["products"]}
        if name in MODES:
            spent = on_ranks(2, memory, name, IDENTITIES)["peak"]
            row |= {"MB beyond rows": spent / 1e6, "logits buffers": spent / buffer}
            figures[f"{name} bytes"] = spent
        else:
            row |= {"MB beyond rows": "", "logits buffers": ""}
        rows.append(row)
    peers = on_ranks(1, peer_times, IDENTITIES // (8 if quick else 1), 2 if quick else 3)
    rows += [
        {
            "iteration": f"{name}, one rank",
            "seconds": value,
            "of products": "",
            "MB beyond rows": "",
            "logits buffers": "",
        }
        for name, value in peers.items()
    ]
    figures |= {
        "seconds": seconds,
        "to_products": {k: v / seconds["products"] for k, v in seconds.items()},
        "sampled_to_full": seconds["cosface, sampled 0.1"] / seconds["cosface"],
        "arcface_to_cosface": seconds["arcface"] / seconds["cosface"],
        "adaface_to_cosface": seconds["adaface"] / seconds["cosface"],
        "logits_buffer": buffer,
        "one_rank": peers,
    }
    if not quick:
        cases = gpu_cases() if torch.cuda.is_available() else cpu_cases(on_ranks, times)
        figures["sweep"] = cases
        draw(cases, arguments.plot)
    report("classifier", rows, figures)


if __name__ == "__main__":
    main()
