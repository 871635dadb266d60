"""Whether what methods draw can enter their networks, before anything is trained."""

import torch

from data_shards.pipeline import image_size
from data_shards.settings import InputError
from launch.runs.run import Run
from trainer.entrance import shape_at


def check_places(run: Run) -> None:
    """Raises InputError for a place that a method's network has not got, and for covariances that
    are too large there."""
    config, rows = run.config, run.benchmark.row_ends[-1]
    for name, method in config.methods.items():
        recipe = method.recipe()
        if (entering := recipe.enters) is None or config.learning_steps == 1:
            continue
        want = recipe.want(entering.by)
        assert want is not None
        try:
            size = image_size(run.dataset, config.data)
            shape = shape_at(method.network(config.embedder, 1), entering.place, size)
            with torch.device("meta"):
                want.imagined({}, rows, shape)
        except InputError as error:
            raise InputError(f"methods.{name}: {error}") from error
