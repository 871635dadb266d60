"""A run's folder, as `perennial run` leaves it: which models there are, and what they reached."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.runs.model_names import finished_models
from monitoring.records import evaluations, metrics
from monitoring.results import figures
from monitoring.run_folder import is_run
from monitoring.schemas import phase_of
from untrusted.errors import InputError

if TYPE_CHECKING:
    from perennial.model import Model


class Run:
    """A run, finished or not. Tables are lists of flat dictionaries, which
    `pandas.DataFrame(...)` takes as they are.

    >>> run = perennial.Run("runs/demo")
    >>> run.methods, run.steps
    (['fkd', 'finetune', 'joint', 'lwf'], [0, 1, 2])
    """

    def __init__(self, folder: str | Path) -> None:
        """Raises InputError where no run lies in `folder`."""
        self.folder = Path(folder)
        if not is_run(self.folder):
            raise InputError(f"{folder} is no run's folder: give one, such as runs/demo")

    def __repr__(self) -> str:
        return f"<perennial run {self.folder}>"

    @property
    def methods(self) -> list[str]:
        """The methods of which a model is finished, ascending."""
        return sorted({method for method, _, _ in finished_models(self.folder)})

    @property
    def seeds(self) -> list[int]:
        """The seeds under which a model is finished, ascending."""
        return sorted({seed for _, seed, _ in finished_models(self.folder)})

    @property
    def steps(self) -> list[int]:
        """The learning steps after which a model is finished, ascending."""
        return sorted({step for _, _, step in finished_models(self.folder)})

    @property
    def models(self) -> list[str]:
        """Every finished model by its name, as `perennial.load` and commands take it.

        >>> run.models[-1]
        'runs/demo:lwf:0:2'
        """
        return [
            f"{self.folder}:{m}:{seed}:{step}" for m, seed, step in finished_models(self.folder)
        ]

    def model(self, method: str, seed: int | None = None, step: int | None = None) -> "Model":
        """A finished model; by default the lowest seed's, after the last step.

        >>> model = run.model("fkd", step=1)

        Raises InputError, which says what there is instead.
        """
        from perennial.model import Model

        numbers = ("" if number is None else str(number) for number in (seed, step))
        return Model(":".join([str(self.folder), method, *numbers]))

    def results(self) -> list[dict[str, Any]]:
        """What each model reached: method, seed, step, and each metric by its name, as a share of
        1. Test sets' are called `tests.NAME.METRIC`.

        >>> pandas.DataFrame(run.results()).pivot_table("top1", "method", "step")

        Files that are damaged are left out. docs/protocols.md says what the metrics are.
        """
        return [
            {
                **{key: one[key] for key in ("method", "seed", "step")},
                **{name: value for name, (_, value) in figures(one).items()},
            }
            for one in evaluations(self.folder)
        ]

    def training(self) -> list[dict[str, Any]]:
        """What was logged while training: method, seed, step, iteration, loss and others. What
        methods share, as their first step, was trained once, by one of them.

        >>> losses = [line["loss"] for line in run.training() if line["method"] == "fkd"]
        """
        names = ("method", "seed", "step")
        return [
            {**dict(zip(names, phase_of(line["phase"]) or (), strict=False)), **line}
            for line in metrics(self.folder)
        ]
