"""Step 0 that is not trained but given: an adopted model, or another run's last one."""

from pathlib import Path
from typing import Any

import numpy as np

from data_shards.settings import InputError
from launch.config.load import differences
from launch.execution.executor import Executor
from launch.phases.kind import Kind, Output, Phase, Step
from launch.runs.links import link
from launch.runs.run import Chain, Run
from monitoring.run_folder import MODEL_FOLDER
from trainer.checkpoint import Folder
from trainer.heads.collectives import Ranks
from trainer.methods.wants import Answers, ClassMeans, FrozenRows
from trainer.model import Model, save_adopted


class Adopt(Kind[None]):
    """Takes step 0's model from outside, or from the run that this one continues."""

    name = "adopt"
    where = "driver"
    makes_model = True

    def wants(self, at: Step) -> tuple[None, ...]:
        return (None,) if at.number == 0 and at.run.given else ()

    def inputs(self, at: Step, want: None) -> tuple[Phase, ...]:
        return ()

    def decides(self, at: Step, want: None) -> Any:
        run = at.run
        benchmark = run.config.deciding()["benchmark"]
        return [run.given[at.chain].fingerprint, run.dataset.fingerprint, benchmark]

    def identity(self, at: Step, want: None) -> Any:
        return ["adopted", *self.decides(at, want)]

    def output(self, at: Step, want: None) -> Output:
        return Output(at.folder / MODEL_FOLDER)

    def work(self, phase: Phase, executor: Executor) -> str:
        run, model = phase.at.run, phase.at.run.given[phase.at.chain]
        if run.adopted is not None:
            take_adopted(run, phase.output.path)
        else:
            link(model.folder, phase.output.path)
        return f"{model.rows:,} rows"


def check_given(run: Run) -> None:
    """Raises InputError when a chain cannot begin with the model that it is given."""
    adopted, teacher = run.adopted, run.config.teacher
    if adopted is not None and adopted.rows:
        _row_order(run, adopted)
    names = next(iter(run.given.values())).names() if run.config.continues else []
    for chain, model in run.given.items():
        if run.config.continues and model.names() != names:
            raise InputError(
                f"the models of {run.config.continues} know different identities: continue "
                f"{chain.name} in a run of its own"
            )
        if model.adopted and (teacher.precision != "fp32" or teacher.compile):
            raise InputError(
                "adopted models run as they are: leave out teacher.precision and .compile"
            )
        if len(run.benchmark.row_ends) > 1:
            _check_recipe(run, chain, model)


def _check_recipe(run: Run, chain: Chain, model: Model) -> None:
    """Raises InputError when step 1 of `chain` needs what `model`, its step 0, does not have."""
    recipe, name = run.recipe(chain, 1), chain.method
    going_on = recipe.start.embedder == "previous"
    if going_on and model.adopted:
        raise InputError(
            f"methods.{name} goes on training the model before, and {model.folder} is a graph or a "
            "network of torchvision's, which cannot be trained: adopt it with an --architecture of "
            "this product, or use a method that starts from scratch, such as bct-sys"
        )
    frozen_only = recipe.want(FrozenRows) and not recipe.want(ClassMeans)
    if not model.rows and (recipe.want(Answers) or frozen_only):
        raise InputError(
            f"methods.{name} asks the old model's classifier, and {model.folder} has none: use "
            "bct-sys, or adopt the model with --classifier and --names"
        )
    if going_on:
        ours = {"embedder": run.embedder(chain, 1), "classifier": run.classifier(chain, 1)}
        theirs = {"embedder": model.settings, "classifier": model.classifier}
        if not model.rows:  # its margin was of rows that it came without
            del ours["classifier"], theirs["classifier"]
        old, new = (
            {k: v.model_dump(exclude={"memory"}) for k, v in of.items()} for of in (theirs, ours)
        )
        if changed := differences(old, new):
            raise InputError(
                f"methods.{name} goes on training {model.folder}, which differs in "
                f"{'; '.join(changed[:3])}: leave them as they were, or use a method that starts "
                "from scratch, such as bct-sys"
            )
    if run.config.continues is not None and recipe.sees_all:
        shown = np.zeros(model.rows, dtype=bool)
        shown[run.benchmark.row_of_identity[run.dataset.identity[run.benchmark.steps[0]]]] = True
        if missing := int((~shown).sum()):
            raise InputError(
                f"methods.{name} trains on every identity so far, and {run.config.dataset} has no "
                f"image of {missing:,} of the {model.rows:,} that {model.folder} knows: merge the "
                "datasets, or use a method that needs no old images, such as fkd"
            )


def _row_order(run: Run, model: Model) -> list[int]:
    """For each classifier row of step 0, the adopted model's row of that name.

    Raises InputError when its identities are not those of step 0.
    """
    place = {name: row for row, name in enumerate(model.names())}
    row_of, last = run.benchmark.row_of_identity, run.benchmark.row_ends[0]
    known = np.flatnonzero((row_of >= 0) & (row_of < last))
    names = run.dataset.names[known[np.argsort(row_of[known])]].tolist()
    if set(names) != place.keys():
        odd = sorted(set(names) ^ place.keys())[0]
        lacks = "has no row for" if odd in set(names) else "has a row for"
        raise InputError(
            f"adopted: {model.folder} {lacks} {odd!r}, and its {len(place):,} rows must be the "
            f"{last:,} identities of learning step 0: name these in benchmark.file, or adopt the "
            "model without its classifier"
        )
    return [place[name] for name in names]


def take_adopted(run: Run, out: Path) -> Model:
    """Makes the adopted model that of step 0, in `out`: its rows in the benchmark's order."""
    model = run.adopted
    assert model is not None
    order = _row_order(run, model) if model.rows else []
    weight = model.sharded_rows(Ranks()).weight.detach()[order]
    names = model.names()
    tensors = Folder.at(model.folder).tensors("embedder")
    out.parent.mkdir(parents=True, exist_ok=True)
    save_adopted(
        folder=out,
        settings=model.settings,
        tensors=tensors,
        classifier=model.classifier,
        weight=weight,
        names=[names[row] for row in order],
        image_size=model.image_size,
    )
    return Model.open(out)
