"""The layout of a run folder: what lies where, and under which name. Nothing else spells it.

    RUN/run.yaml phases.json ledger.jsonl metrics.jsonl events.jsonl report.html
        attempts/ targets/ logs/
        analyses/   similarity.json confusion.json
                    features/METHOD/seed-S/step-T.json and over-steps.json
                    attention/METHOD/seed-S.json
        published/METHOD/seed-S/step-T/ step-T-decision/   (what a rule needs beside the model)
        chains/METHOD/seed-S/steps/T/   what a learning step left, and in phases/ further trainings

Names are never changed: runs of before are gone on with.
"""

import re
from collections.abc import Iterator
from pathlib import Path

CONFIG_FILE = "run.yaml"
PLANNED_FILE = "phases.json"
"""Every phase that the run has, see `monitoring.planned`."""
LEDGER_FILE = "ledger.jsonl"
METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
REPORT_FILE = "report.html"
JOB_FILE = "job.json"
"""The Ray job that the run was sent away as."""
ATTEMPTS_FOLDER = "attempts"
"""A file each, see `launch.runs.lease`."""
TARGETS_FOLDER = "targets"
"""A file for each process that serves metrics, see `monitoring.exporter`."""
LOGS_FOLDER = "logs"
ANALYSES_FOLDER = "analyses"
"""What `perennial analyse` found; no phase reads it."""
SIMILARITY_FILE = "similarity.json"
CONFUSION_FILE = "confusion.json"
FEATURES_FOLDER = "features"
OVER_STEPS_FILE = "over-steps.json"
"""Within it, in a chain's folder."""
ATTENTION_FOLDER = "attention"

MODEL_FOLDER = "model"
"""Of a learning step, as are those below."""
CHECKPOINTS_FOLDER = "checkpoints"
EVALUATION_FILE = "evaluation.json"
EMBEDDINGS_FILE = "embeddings.safetensors"
EXAMPLES_FILE = "examples.json"
NEIGHBOURS_FOLDER = "neighbours"
NEIGHBOUR_EXAMPLES_FILE = "neighbour_examples.json"
CLASS_MEANS_FILE = "prototypes.safetensors"
EXEMPLARS_FOLDER = "exemplars"
EXEMPLARS_FILE = "exemplars.json"
"""What people are shown of them."""
DECISION_FOLDER = "decision"
EXPERT_ANSWERS_FOLDER = "expert_answers"
SIMILAR_FILE = "similar.safetensors"
CORRECTIONS_FOLDER = "corrections"
IMPORTANCE_FOLDER = "importance"
IMPORTANCES_FILE = "importances.safetensors"
"""Within it."""
GENERATOR_FOLDER = "generator"
GENERATOR_CARD = "card.json"
"""Within it: what it is, and its bytes."""
COMPARISONS_FILE = "compatibility.json"
PHASES_FOLDER = "phases"
"""A folder for each further training, laid out as the step's."""
TRAINED_FOLDER = "trained"
"""Among those, that of the main training where its model is then trained on."""
DRAWN_FOLDER = "drawn"
"""Among those, that of exemplars as they were chosen, where their pixels are then learned."""

METHOD = re.compile(r"[A-Za-z0-9][A-Za-z0-9+_.-]{0,199}")
"""A method's name."""
LABEL = re.compile(r"[a-z][a-z0-9_-]{0,39}")
"""The last part of a phase's name, and the name of a kind of phase."""
_CHAIN = rf"({METHOD.pattern})/seed-(\d{{1,9}})"
_STEP_NUMBER = r"(\d{1,4})"
PHASE = re.compile(rf"{_CHAIN}/step-{_STEP_NUMBER}/({LABEL.pattern})")
"""A phase's name: its method, seed, step and label."""
_STEP = re.compile(rf"chains/{_CHAIN}/steps/{_STEP_NUMBER}")
OUTPUT = re.compile(
    rf"{_STEP.pattern}/({PHASES_FOLDER}/{LABEL.pattern}/)?{LABEL.pattern}(\.[a-z]+)?"
)
"""Where a phase's output lies, from the run folder."""


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / CONFIG_FILE).exists()


def methods_of(run: Path) -> list[str]:
    """The methods that have begun in a run folder, by name."""
    return sorted(path.name for path in run.glob("chains/*"))


def chain_name(method: str, seed: int) -> str:
    """Names a method under a seed in folders, the ledger and metrics."""
    return f"{method}/seed-{seed}"


def step_name(chain: str, step: int) -> str:
    """Names a learning step of a chain in the ledger, and in messages."""
    return f"{chain}/step-{step}"


def step_folder(run: Path, chain: str, step: int) -> Path:
    """Where a learning step's outputs go."""
    return run / "chains" / chain / "steps" / str(step)


def published_model(run: Path, chain: str, step: int) -> Path:
    """Where a learning step's model is published."""
    return run / "published" / step_name(chain, step)


def decision_beside(model: Path) -> Path:
    """Where the decision of a model lies, if it has one that needs more than its logits: beside
    it, called as in a learning step, or else as the model is with -decision behind."""
    name = DECISION_FOLDER if model.name == MODEL_FOLDER else f"{model.name}-{DECISION_FOLDER}"
    return model.with_name(name)


def target_file(run: Path, process: str) -> Path:
    """Where a process of a run says at which address it serves metrics."""
    return run / TARGETS_FOLDER / f"{process}.json"


def log_file(run: Path, process: str) -> Path:
    """A process' log."""
    return run / LOGS_FOLDER / f"{process}.jsonl"


def features_file(run: Path, chain: str, step: int) -> Path:
    """Where the features of a learning step's model are drawn from."""
    return run / ANALYSES_FOLDER / FEATURES_FOLDER / f"{step_name(chain, step)}.json"


def features_over_steps_file(run: Path, chain: str) -> Path:
    """Where the features of all models of a chain are drawn from."""
    return run / ANALYSES_FOLDER / FEATURES_FOLDER / chain / OVER_STEPS_FILE


def attention_file(run: Path, chain: str) -> Path:
    """Where a chain's maps of attention are drawn from."""
    return run / ANALYSES_FOLDER / ATTENTION_FOLDER / f"{chain}.json"


def files_of_steps(run: Path, name: str) -> Iterator[Path]:
    """The files called `name` of all learning steps, in no order."""
    return run.glob(f"chains/*/seed-*/steps/*/{name}")


def step_of(file: Path) -> tuple[str, int, int] | None:
    """Method, seed and step of a learning step's file; None where no run names folders so."""
    found = _STEP.fullmatch("/".join(file.parts[-6:-1]))
    return (found[1], int(found[2]), int(found[3])) if found else None


def run_of_model(model: Path) -> Path | None:
    """The folder of the run that a learning step's model would belong to."""
    above = model.resolve().parents
    return above[5] if len(above) > 5 else None


def methods_with(run: Path, name: str) -> list[str]:
    """The methods of which some learning step has a file called `name`, ascending."""
    return sorted({file.relative_to(run).parts[1] for file in files_of_steps(run, name)})


def seeds_of(run: Path, method: str) -> list[int]:
    """The seeds that a method has folders of, ascending."""
    return _numbers(run / "chains" / method, "seed-")


def steps_of(run: Path, chain: str) -> list[int]:
    """The learning steps that a chain has folders of, ascending."""
    return _numbers(run / "chains" / chain / "steps", "")


def _numbers(folder: Path, prefix: str) -> list[int]:
    names = (path.name.removeprefix(prefix) for path in folder.glob(f"{prefix}*"))
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)
