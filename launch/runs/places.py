"""Whether networks fit the images, their weights and what is drawn, before anything is trained."""

import torch

from data_shards.pipeline import image_size
from data_shards.settings import InputError
from launch.runs.run import Run
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.entrance import shape_at
from trainer.weights import load_weights, read_state_dict


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


def check_networks(run: Run) -> None:
    """Raises InputError for a network that cannot take the images, and for a `start` that does not
    fit those that begin with it, or that none does."""
    config, begun = run.config, False
    weights = None if config.start is None else read_state_dict(config.start.file)
    first = 1 if run.given else 0
    trained = [(c, step) for c in run.chains() for step in range(first, config.learning_steps)]
    for settings in dict.fromkeys(run.embedder(*each) for each in trained):
        _check_size(settings, image_size(run.dataset, config.data))
    for settings in dict.fromkeys(run.embedder(*each) for each in trained if run.start(*each)):
        assert weights is not None and config.start is not None
        load_weights(build_embedder(settings), settings, weights, f"start: {config.start.file}")
        begun = True
    if weights is not None and not begun:
        raise InputError(
            f"start: no training begins with {config.start and config.start.file}, since all go on "
            "with the model before: leave it out"
        )


def _check_size(settings: EmbedderSettings, size: tuple[int, int]) -> None:
    """Raises InputError for a network that images of `size` (height, width) do not fit."""
    with torch.device("meta"), torch.inference_mode():
        build_embedder(settings).eval()(torch.empty(1, 3, *size, dtype=torch.uint8))
