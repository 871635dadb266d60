"""What staying compatible costs: an iteration of BCT, BCT-sys and BCT-kd against a plain one.

A classifier of 85,738 old and 85,738 new identities with CosFace, the old ones' rows frozen beside
it; ResNet-18 at 112×112, d = 512, batch 128: a small network, so that the classifier counts. BCT
must cost at most 1.35 times a plain iteration.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks import interleaved, report
from benchmarks.iterations import Iterations
from trainer.heads.margin_loss import ClassifierSettings
from trainer.heads.margins import CosFace
from trainer.methods.bct import BackwardCompatible, DistilledInfluence, SynthesisedClassifier
from trainer.methods.plain import Joint

IDENTITIES, DIMENSION = 85_738, 512


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="batch 32 and one round")
    quick = parser.parse_args().quick
    batch, rounds = (32, 1) if quick else (128, 3)
    settings = ClassifierSettings(margin=CosFace(scale=32))
    iterations = Iterations("resnet18", DIMENSION, batch, settings)
    with tempfile.TemporaryDirectory() as name:
        sides = {
            str(method.kind): iterations.side(
                method, IDENTITIES, 2 * IDENTITIES, Path(name) / method.kind
            )
            for method in (
                Joint(),
                BackwardCompatible(),
                SynthesisedClassifier(),
                DistilledInfluence(),
            )
        }
        seconds = interleaved(sides, rounds)
    ratios = {side: value / seconds["joint"] for side, value in seconds.items()}
    report(
        "compatible",
        [
            {"iteration": side, "seconds": value, "of a plain one": f"{ratios[side]:.3f}×"}
            for side, value in seconds.items()
        ],
        {"batch": batch, "seconds": seconds, "ratios": ratios},
    )


if __name__ == "__main__":
    main()
