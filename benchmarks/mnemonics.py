"""What learned exemplars cost: seconds an exemplar and peak memory, against the inner steps that
the gradient is unrolled through, with activations kept and computed once more.

At the settings by default: 10 classes of 500 images of 32×32, 20 exemplars each, 50 epochs, batches
of 128; a ResNet-32. Each case has a process of its own and one thread; beside its peak stands what
`perennial plan` says.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import in_a_process, report
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.heads.margin_loss import ClassifierSettings
from trainer.mnemonics.footprint import update_footprint
from trainer.mnemonics.optimisation import updates
from trainer.mnemonics.settings import MnemonicsSettings
from trainer.mnemonics.unrolled import Classified, Labelled, hypergradient

CLASSES, IMAGES, EXEMPLARS, SIZE = 10, 500, 20, (32, 32)
STEPS = (1, 2, 5, 10)
EMBEDDER = EmbedderSettings(architecture="resnet32", dimension=64)
PLOT = Path("benchmarks/results/mnemonics.png")


def settings(steps: int, recompute: bool) -> MnemonicsSettings:
    """All but these by default."""
    return MnemonicsSettings(inner_steps=steps, recompute=recompute)


def measure(steps: int, recompute: bool, rounds: int) -> dict[str, float]:
    """Median seconds of an update, and the bytes that it holds at most beyond what was there."""
    torch.set_num_threads(1)
    how = settings(steps, recompute)
    network = Classified(
        build_embedder(EMBEDDER), torch.randn(CLASSES, EMBEDDER.dimension), ClassifierSettings()
    )
    exemplars = torch.rand(CLASSES * EXEMPLARS, 3, *SIZE) * 2 - 1
    batches = [
        (torch.randint(len(exemplars), (how.inner_batch,)), _labels(how.inner_batch), None)
        for _ in range(steps)
    ]
    outer = Labelled(torch.rand(how.batch, 3, *SIZE) * 2 - 1, _labels(how.batch))
    before, seconds = _resident("VmRSS"), []
    for _ in range(1 + rounds):  # the first one warms up
        begun = time.perf_counter()
        hypergradient(network, exemplars, batches, outer, how.inner_rate, recompute)
        seconds.append(time.perf_counter() - begun)
    return {"seconds": statistics.median(seconds[1:]), "peak": _resident("VmHWM") - before}


def _labels(number: int) -> torch.Tensor:
    return torch.randint(CLASSES, (number,))


def _resident(name: str) -> float:
    """This process' memory now (VmRSS) or at its most (VmHWM). Bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024.0 * int(next(line for line in lines if line.startswith(name)).split()[1])


def case(steps: int, recompute: bool, rounds: int) -> dict[str, Any]:
    """A case measured, and planned."""
    how = settings(steps, recompute)
    found = in_a_process("benchmarks.mnemonics", "--case", steps, int(recompute), rounds)
    every = how.epochs * updates(CLASSES * IMAGES, others=False, settings=how)
    return {
        "inner steps": steps,
        "activations": "recomputed" if recompute else "kept",
        "s an update": found["seconds"],
        "s an exemplar": found["seconds"] * every / (CLASSES * EXEMPLARS),
        "peak MB": found["peak"] / 1e6,
        "planned MB": update_footprint(EMBEDDER, ClassifierSettings(), how, CLASSES, SIZE).peak
        / 1e6,
    }


def draw(cases: list[dict[str, Any]], path: Path) -> None:
    """Seconds an exemplar and memory, each over inner steps."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, key in zip(axes, ("s an exemplar", "peak MB"), strict=True):
        for how in ("kept", "recomputed"):
            own = [one for one in cases if one["activations"] == how]
            steps = [one["inner steps"] for one in own]
            values = [one[key] for one in own]
            (line,) = axis.plot(steps, values, "o-", label=f"activations {how}")
            if key == "peak MB":
                planned, colour = [one["planned MB"] for one in own], line.get_color()
                axis.plot(steps, planned, "--", color=colour, label="as planned")
        axis.set(xlabel="inner steps", ylabel=key, xlim=(0, None), ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measures, prints and draws."""
    if sys.argv[1:2] == ["--case"]:
        inner, again, often = map(int, sys.argv[2:])
        print(json.dumps(measure(inner, bool(again), often)))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="up to 5 inner steps, one round each")
    parser.add_argument("--plot", type=Path, default=PLOT)
    given = parser.parse_args()
    steps, rounds = (STEPS[:3], 1) if given.quick else (STEPS, 3)
    cases = [case(n, recompute, rounds) for recompute in (False, True) for n in steps]
    draw(cases, given.plot)
    last = {one["activations"]: one for one in cases if one["inner steps"] == steps[-1]}
    kept, anew = last["kept"], last["recomputed"]
    figures = {
        "recomputed_to_kept_seconds": anew["s an update"] / kept["s an update"],
        "recomputed_to_kept_peak": anew["peak MB"] / kept["peak MB"],
        "peak_to_planned": kept["peak MB"] / kept["planned MB"],
    }
    report("mnemonics", cases, figures)


if __name__ == "__main__":
    main()
