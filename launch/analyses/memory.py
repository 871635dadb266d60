"""What each method keeps from one learning step for the next (GFR, Table 1)."""

from pathlib import Path
from typing import Any

from launch.analyses.opened import model_of, opened
from monitoring.memory import memory
from monitoring.records import Damage
from trainer.model import Model


def kept(folder: Path, damage: Damage) -> list[dict[str, Any]]:
    """A row a method, as `monitoring.memory.memory_table` takes them: what it keeps after its
    newest finished step, first seed. Raises InputError.

    Models' bytes are counted in the models, which need not be tested class by class.
    """
    run, finished = opened(folder)
    models: dict[str, dict[str, Any]] = {}
    for chain, steps in sorted(finished.items(), key=lambda found: -found[0].seed):
        sizes = Model.open(model_of(run, chain, steps[-1])).sizes()
        where = {"method": chain.method, "seed": chain.seed, "step": steps[-1]}
        models[chain.method] = {**where, "model_bytes": sizes}
    found = memory(folder, damage, [*models.values()])
    return [
        {"run": run.folder.name, "method": method, "step": step, "memory": own}
        for (method, step), own in found.items()
        if models[method]["step"] == step
    ]
