"""Identity embeddings in Python: load a finished model, embed, classify, search, read a run.

    import perennial

    model = perennial.load("runs/demo:fkd")
    vectors = model.embed("photos/")            # float32 [n, d]
    perennial.Run("runs/demo").results()        # a dictionary a method, seed and step

Everything heavy (torch, DALI) is imported when a model is loaded, not before. See docs/python.md.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launch.models.classify import Classified
    from launch.models.search import Match
    from perennial.model import Model
    from perennial.run import Run
    from untrusted.errors import InputError

    __version__: str

__all__ = ["Classified", "InputError", "Match", "Model", "Run", "__version__", "images", "load"]


def load(name: str | Path) -> "Model":
    """The finished model that `name` names: its folder, or RUN:METHOD[:SEED[:STEP]].

    >>> model = perennial.load("runs/demo:fkd")      # the lowest seed, the last finished step
    >>> model = perennial.load("runs/demo:fkd:1:0")  # seed 1, step 0
    >>> model = perennial.load("models/adopted")     # what `perennial adopt` wrote

    Every file of it is compared with its hash. Raises InputError, which says what there is instead.
    """
    from perennial.model import Model

    return Model(name)


def images(*paths: str | Path) -> list[Path]:
    """The image files among `paths` and below those that are folders, by name, in the order in
    which `Model.embed` takes a folder.

    >>> files = perennial.images("photos/november")

    Raises InputError for a path that leads nowhere, and where there is no file.
    """
    from launch.inference.pictures import images_at

    return images_at([Path(path) for path in paths])


def __getattr__(name: str) -> Any:
    if name in ("Classified", "Match", "Model"):
        from perennial import model

        return getattr(model, name)
    if name in ("InputError", "Run"):
        from perennial import run

        return getattr(run, name)
    if name == "__version__":
        from launch.clusters.environment import own_version

        return own_version()
    raise AttributeError(f"module 'perennial' has no attribute {name!r}")
