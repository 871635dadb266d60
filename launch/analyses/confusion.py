"""Errors over learning steps: within a meta-class they are confusion, across them forgetting
(discriminative distillation, Table 2)."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch.nn import functional as F

from data_shards.files import write_json
from data_shards.settings import InputError
from launch.analyses.meta_classes import MetaClasses, of_cifar, of_file
from launch.analyses.opened import Ids, classifier_of, evaluated, opened, vectors_of
from launch.runs.run import Chain, Run
from launch.terminal.progress import progress
from monitoring.run_folder import ANALYSES_FOLDER, CONFUSION_FILE
from trainer.class_means import class_means, class_sums
from trainer.decisions import Decision
from trainer.evaluation.meta_classes import clustered, split_errors
from trainer.evaluation.protocol import classify
from trainer.model import Model

_EACH = 5
"""Classes in a cluster, unless their number is given: as many as in CIFAR-100's meta-classes."""
_CLUSTERED = 2000
"""Most classes that are clustered: time goes by the cube of their number."""


@dataclass(frozen=True)
class _Tested:
    """A finished step's model, and its embeddings of the test images of all classes so far."""

    run: Run
    step: int
    model: Model
    decision: Decision
    samples: Ids
    vectors: NDArray[np.float32]

    @classmethod
    def of(cls, run: Run, chain: Chain, step: int) -> "_Tested":
        """Raises InputError."""
        model, decision = classifier_of(run, chain, step)
        samples = np.unique(np.concatenate(run.benchmark.classified[: step + 1]))
        vectors = vectors_of(run, chain, step, model, samples)
        return cls(run, step, model, decision, samples, vectors)

    def errors(self, meta: MetaClasses) -> dict[str, int]:
        """Its errors by the rule of its decision, as the file has them."""
        answers = classify(
            self.run.dataset,
            self.run.benchmark,
            self.step,
            self.samples,
            self.vectors,
            lambda vectors: self.decision.classes(self.model, vectors),
        )
        assert answers is not None, "there are test images of every class"
        found = split_errors(*answers, meta.of, self.run.benchmark.rows_before(self.step))
        return {"step": self.step, "wrong": found.wrong, **asdict(found)}

    def means(self) -> NDArray[np.float32]:
        """[C, d] the mean direction of each class' embeddings. Raises InputError."""
        units = F.normalize(torch.from_numpy(self.vectors)).numpy()
        rows = self.run.benchmark.row_of_identity[self.run.dataset.identity[self.samples]]
        untested = np.setdiff1d(np.arange(self.model.rows), rows)
        if len(untested):  # a run that continues another may lack images of its classes
            name = str(self.run.benchmark.names[untested[0]])
            raise InputError(
                f"{len(untested):,} of {self.model.rows:,} classes have no test image to be "
                f"clustered by, such as {name!r}: say which belong together, --meta classes.csv"
            )
        return class_means([class_sums(units, rows)], 0, self.model.rows)


def confusion(
    folder: Path, console: Console, meta: Path | None = None, clusters: int | None = None
) -> None:
    """Counts the errors of every finished step's model of a run, and writes `CONFUSION_FILE`.

    On the test images of all classes so far, decided by each method's own rule. Meta-classes are
    those of the file `meta`; else CIFAR-100's, where all classes are its; else as many `clusters`
    as are given, or a fifth as many as classes, of the classes' mean directions: by the model
    after the newest step of the first method in the configuration that sees all images (joint),
    or else of the first method, lowest seed. They are the same for all methods, seeds and steps.
    Raises InputError.
    """
    run, finished = opened(folder)
    steps = evaluated(run, finished)
    last = max(own[-1] for own in steps.values())
    names = [str(name) for name in run.benchmark.names[: run.benchmark.row_ends[last]].tolist()]
    known = of_file(meta, names) if meta is not None else None
    if known is None and clusters is None:
        known = of_cifar(names)
    if known is None:
        known = _clustered(run, [c for c, own in steps.items() if own[-1] == last], last, clusters)
    chains: list[dict[str, Any]] = []
    with progress(console, "counting errors", sum(map(len, steps.values()))) as hear:
        done = 0
        for chain, own in steps.items():
            counted = []
            for step in own:
                counted.append(_Tested.of(run, chain, step).errors(known))
                hear(done := done + 1)
            chains.append({"method": chain.method, "seed": chain.seed, "steps": counted})
    write_json(
        folder / ANALYSES_FOLDER / CONFUSION_FILE,
        {"version": 1, "meta": known.told(names), "chains": chains},
    )


def _clustered(run: Run, chains: list[Chain], step: int, count: int | None) -> MetaClasses:
    """Clusters of class means by the model of one of `chains` after `step`. Raises InputError."""
    total = run.benchmark.row_ends[step]
    count = max(1, round(total / _EACH)) if count is None else count
    if not 1 <= count <= total:
        raise InputError(f"--clusters {count}: give 1 to {total}, the number of classes")
    if total > _CLUSTERED:
        raise InputError(
            f"{total:,} classes are too many to be clustered, at most {_CLUSTERED:,}: say in a "
            "file which belong together, --meta classes.csv"
        )
    # joint training has no old and new: which classes are alike to it is no method's mistake
    order = {method: place for place, method in enumerate(run.config.methods)}
    chosen = min(chains, key=lambda c: (not run.recipe(c, step).sees_all, order[c.method], c.seed))
    of = clustered(_Tested.of(run, chosen, step).means(), count)
    groups = tuple(f"cluster {number}" for number in range(count))
    return MetaClasses(f"clusters by {chosen.name}, step {step}", of, groups)
