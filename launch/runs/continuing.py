"""Runs that go on from the last models of another run, with identities that have arrived since."""

from pathlib import Path

from data_shards.settings import InputError
from launch.config.load import kept_config
from launch.config.run import RunConfig
from launch.runs.model_names import named
from monitoring.records import comparison
from monitoring.run_folder import (
    COMPARISONS_FILE,
    DECISION_FOLDER,
    EXEMPLARS_FOLDER,
    GENERATOR_FOLDER,
    IMPORTANCE_FOLDER,
    MODEL_FOLDER,
    chain_name,
    step_folder,
    step_name,
)
from trainer.model import row_names


def first_model(config: RunConfig, folder: Path, chain: str) -> Path:
    """The model that `chain` of the run in `folder` begins with: its own copy, once it has one.

    Raises InputError when the run that it `continues` has no such model, or withheld it.
    """
    own = _copy(folder, chain)
    return own if own.exists() else _last_model(config, chain)


def known_names(config: RunConfig, folder: Path) -> list[str] | None:
    """The identities that the run's first models know, by row; None where it begins with none.

    Read from any copy in the run folder, so that workers need not find the run that it `continues`.
    Raises InputError as `first_model` does.
    """
    if config.continues is None:
        return None
    chains = _chains(config)
    copied = [chain for chain in chains if _copy(folder, chain).exists()]
    return row_names(first_model(config, folder, (copied or chains)[0]))


def carried_exemplars(config: RunConfig, chain: str) -> Path:
    """The exemplars that the run which `config` continues has kept of its last step.

    Raises InputError where it has none.
    """
    lacks = "has kept no exemplars for {}: leave the method's memory out, or run it there with one"
    return _carried(config, chain, EXEMPLARS_FOLDER, lacks)


def carried_decision(config: RunConfig, chain: str) -> Path:
    """The decision of the model that a chain of a run which `continues` another begins with.

    Raises InputError where it has none.
    """
    lacks = "has no decision of {}'s: give the run of the same method"
    return _carried(config, chain, DECISION_FOLDER, lacks)


def carried_importance(config: RunConfig, chain: str) -> Path:
    """How much each parameter mattered to the run which `config` continues, up to its last step.

    Raises InputError where that is not known.
    """
    lacks = "does not know which parameters matter to {}: run the same method there, too"
    return _carried(config, chain, IMPORTANCE_FOLDER, lacks)


def carried_generator(config: RunConfig, chain: str) -> Path:
    """What draws features of the identities of the run which `config` continues.

    Raises InputError where that has nothing of the kind.
    """
    lacks = "has no generator of features for {}: run the same method there, too"
    return _carried(config, chain, GENERATOR_FOLDER, lacks)


def _carried(config: RunConfig, chain: str, name: str, lacks: str) -> Path:
    """What lies beside the last model of the run that `config` continues, under `name`.

    Raises InputError that says what it `lacks` where nothing does.
    """
    found = _last_model(config, chain).with_name(name)
    if not found.exists():
        raise InputError(f"{config.continues} {lacks.format(chain)}")
    return found


def _chains(config: RunConfig) -> list[str]:
    return [chain_name(method, seed) for seed in config.seeds for method in config.methods]


def _copy(folder: Path, chain: str) -> Path:
    return step_folder(folder, chain, 0) / MODEL_FOLDER


def _last_model(config: RunConfig, chain: str) -> Path:
    before = config.continues
    assert before is not None
    if named(str(before)) is not None:
        raise InputError(
            f"continues: {before} names one model: give the run alone, each method goes on from "
            "its own"
        )
    theirs = kept_config(before)
    chains = _chains(theirs)
    if chain not in chains:
        raise InputError(
            f"{before} has no {chain}, only {', '.join(chains)}: name methods and seeds as there"
        )
    last = theirs.learning_steps - 1
    step, model = step_name(chain, last), step_folder(before, chain, last) / MODEL_FOLDER
    if not model.exists():
        raise InputError(f"{before} has not finished {step}: run it to its end first")
    compared, gate = model.with_name(COMPARISONS_FILE), theirs.evaluation.compatibility
    gated = gate is not None and gate.gate and chain.partition("/")[0] != gate.paragon
    if gated and last and not (compared.exists() and comparison(compared)["holds"]):
        raise InputError(
            f"{before} has not published {step}, which is not known to be compatible: "
            "what follows it would not be, either"
        )
    return model
