"""Which model is meant: the folder of one, or RUN:METHOD[:SEED[:STEP]]."""

from pathlib import Path

from data_shards.settings import InputError
from data_shards.storage.kinds import kind_of, no_model
from monitoring.run_folder import (
    MODEL_FOLDER,
    chain_name,
    is_run,
    methods_with,
    seeds_of,
    step_folder,
    steps_of,
)
from untrusted.text import printable

HELP = "Model folder, or RUN:METHOD[:SEED[:STEP]] (default: the lowest seed, the last step)."
_MANIFEST = "manifest.json"
_FINISHED = f"{MODEL_FOLDER}/{_MANIFEST}"


def model_folder(given: str | Path) -> Path:
    """The folder of a model, given by its path or as RUN:METHOD[:SEED[:STEP]].

    The seed is the run's lowest unless it is given, the step the last one finished. Raises
    InputError saying what there is instead.
    """
    text = str(given)
    if (Path(text) / _MANIFEST).exists() and kind_of(Path(text)) not in ("run", "dataset"):
        return Path(text)
    if (found := named(text)) is not None:
        return found
    if kind_of(Path(text)) == "run":
        methods = _methods(Path(text))
        first = f"name one, such as {text}:{methods[0]}" if methods else "none is finished yet"
        raise InputError(
            f"{printable(text)} is a run, which holds many models: {printable(first)} (methods: "
            f"{_listed(methods)}; :SEED and :STEP may follow)"
        )
    raise InputError(no_model(text))


def finished_models(run: Path) -> list[tuple[str, int, int]]:
    """Method, seed and step of every finished model of a run, ascending."""
    return [
        (method, seed, step)
        for method in _methods(run)
        for seed in seeds_of(run, method)
        for step in _steps(run, chain_name(method, seed))
    ]


def named(text: str) -> Path | None:
    """The folder of the model that RUN:METHOD[:SEED[:STEP]] names; None where `text` is not that.

    Raises InputError as `model_folder` does.
    """
    found = _split(text)
    return None if found is None else _of_run(*found)


def _split(text: str) -> tuple[Path, list[str]] | None:
    """A run's folder and what is behind it; None where `text` names no run in this way."""
    parts = text.split(":")
    for count in (1, 2, 3):
        run = Path(":".join(parts[:-count]))
        if len(parts) > count and is_run(run):
            return run, parts[-count:]
    return None


def _of_run(run: Path, names: list[str]) -> Path:
    method, seed, step = [*names, "", ""][:3]
    methods = _methods(run)
    if method not in methods:
        raise InputError(
            f"{run} has no finished model of a method {printable(method)!r}, only of: "
            f"{_listed(methods)}"
        )
    seeds = [n for n in seeds_of(run, method) if _steps(run, chain_name(method, n))]
    chosen = _number(seed, seeds, seeds[0], f"{run}:{method}", "seed")
    chain = chain_name(method, chosen)
    steps = _steps(run, chain)
    last = _number(step, steps, steps[-1], f"{run}:{method}:{chosen}", "finished learning step")
    return step_folder(run, chain, last) / MODEL_FOLDER


def _number(text: str, there: list[int], default: int, where: str, what: str) -> int:
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) in there):
        raise InputError(f"{where} has no {what} {printable(text)!r}, only {_listed(there)}")
    return int(text)


def _methods(run: Path) -> list[str]:
    """The methods of which some model is finished."""
    return methods_with(run, _FINISHED)


def _steps(run: Path, chain: str) -> list[int]:
    """The learning steps of a chain whose models are finished."""
    steps = steps_of(run, chain)
    return [n for n in steps if (step_folder(run, chain, n) / _FINISHED).exists()]


def _listed(names: list[str] | list[int]) -> str:
    shown = ", ".join(printable(str(name)) for name in names[:20])
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown or "none"
