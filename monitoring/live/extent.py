"""How much a run's configuration asks for."""

from pathlib import Path
from typing import Any

from monitoring.live.values import Chain
from untrusted.errors import InputError
from untrusted.files import read_bytes
from untrusted.yaml_text import parse_yaml

_CONFIG_BYTES, _MOST_STEPS = 1 << 16, 100_000


class Damaged(ValueError):
    """A run.yaml that no run can have written; the message says what is wrong with it."""


class Extent:
    """How much a run's configuration asks for."""

    def __init__(self, config: Any) -> None:
        """Raises Damaged."""
        try:
            methods, seeds = list(config["methods"]), list(config["seeds"])
            given = config.get("continues") is not None  # step 0, which another run learned
            self.steps = int(config["benchmark"]["steps"]) + given
            self.compared = config["evaluation"].get("compatibility") is not None
            self.dataset = str(config["dataset"])
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
            raise Damaged(f"run.yaml lacks what every run has ({error!r})") from error
        self.methods = [str(method) for method in methods]
        self.chains = [(m, s) for s in seeds for m in self.methods if isinstance(s, int)]
        if not 0 <= self.steps * len(self.chains) <= _MOST_STEPS:
            raise Damaged("run.yaml asks for more learning steps than any run has")
        self.wanted = self._wanted()

    def _wanted(self) -> set[tuple[Chain, int, str]]:
        """The phases that end each learning step."""
        kinds = ("evaluate", "compatibility") if self.compared else ("evaluate",)
        return {
            (chain, step, kind)
            for chain in self.chains
            for step in range(self.steps)
            for kind in kinds
            if step or kind == "evaluate"
        }


def extent(root: Path, folder: Path) -> Extent:
    """That of a run folder. Raises Damaged."""
    try:
        return Extent(parse_yaml(read_bytes(folder / "run.yaml", _CONFIG_BYTES, root), "run.yaml"))
    except OSError as error:
        raise Damaged(f"run.yaml cannot be read ({error.strerror or error})") from error
    except InputError as error:
        raise Damaged(str(error)) from error
