"""The classifier over many sizes: how time grows with identities and batch, drawn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import interleaved
from benchmarks.classifier_sides import MODES, ours, products
from trainer.heads.collectives import Ranks

_BF16, _SAMPLED = "cosface, bf16", "cosface, sampled 0.1"


def cpu_cases(on_ranks: Callable[..., Any], times: Callable[..., Any]) -> list[dict[str, Any]]:
    """Two gloo ranks: 10^4 to 10^6 identities at batch 256, and other batches at 85,738."""
    sizes = [(n, 256) for n in (10_000, 31_623, 100_000, 316_228, 1_000_000)]
    cases = []
    for identities, batch in [*sizes, (85_738, 64), (85_738, 128), (85_738, 512), (85_738, 1024)]:
        seconds = on_ranks(2, times, identities, batch, ["cosface", _BF16, _SAMPLED], 3)
        cases.append({"identities": identities, "batch": batch, **seconds})
    return cases


def gpu_cases() -> list[dict[str, Any]]:
    """One card, d = 512, batch 1,024, bf16 factors: in full, then sampled at 0.1."""
    device, ranks, cases = torch.device("cuda"), Ranks(), []
    full = MODES[_BF16].model_copy(update={"memory": 2**32})
    for mode, settings, sizes in (
        (_BF16, full, (100_000, 1_000_000, 3_000_000, 10_000_000)),
        (_SAMPLED, full.model_copy(update={"sampled": 0.1}), (1_000_000, 10_000_000, 30_000_000)),
    ):
        for identities in sizes:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            side = ours(settings, identities, 512, 1024, ranks, device)
            held = torch.cuda.memory_allocated()
            seconds = interleaved({mode: side}, 5)
            case = {"identities": identities, "batch": 1024, **seconds}
            case |= {"rows and state": held, "peak": torch.cuda.max_memory_allocated()}
            del side
            drawn = int(identities * settings.sampled)
            bare = products(
                identities=drawn,
                dimension=512,
                batch=1024,
                ranks=ranks,
                device=device,
                dtype=torch.bfloat16,
            )
            cases.append(case | interleaved({"products": bare}, 5))
            del bare
    return cases


def draw(cases: list[dict[str, Any]], path: Path) -> None:
    """Two panels: seconds against identities, and against batch, with the bare products dashed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for axis, key, other in zip(
        axes, ("identities", "batch"), ("batch", "identities"), strict=True
    ):
        values = [case[other] for case in cases]
        fixed = max(set(values), key=values.count) if key == "identities" else None
        chosen = [c for c in cases if (c["batch"] == fixed if fixed else c["identities"] == 85_738)]
        chosen.sort(key=lambda case: case[key])
        for name in ("products", *MODES):
            line = [(case[key], case[name]) for case in chosen if name in case]
            if line:
                style = "--k" if name == "products" else "o-"
                axis.plot(*zip(*line, strict=True), style, label=name, markersize=4)
        title = f"batch {fixed:,}" if fixed else "85,738 identities"
        axis.set(xscale="log", yscale="log", xlabel=key, title=title)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("seconds an iteration")
    axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
