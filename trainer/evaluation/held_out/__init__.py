"""Test sets of their own: which images each protocol looks at, and what it measures on them."""

from data_shards.dataset import ShardDataset
from data_shards.settings import InputError
from trainer.evaluation import EvaluationSettings
from trainer.evaluation.held_out.common import HeldOut
from trainer.evaluation.held_out.identification import Identification
from trainer.evaluation.held_out.retrieval import Retrieval
from trainer.evaluation.held_out.templates import Templates
from trainer.evaluation.held_out.verification import Verification


def open_held_out(
    name: str,
    settings: EvaluationSettings,
    dataset: ShardDataset,
    distractors: ShardDataset | None = None,
) -> HeldOut:
    """The test `name` of `settings` over its datasets. Raises InputError for what they lack."""
    try:
        match settings.tests[name].protocol:
            case "verification":
                return Verification(dataset)
            case "identification":
                return Identification(dataset, distractors)
            case "retrieval":
                return Retrieval(dataset, settings.distance)
            case "templates":
                return Templates(dataset)
    except InputError as error:
        raise InputError(f"evaluation.tests.{name}: {error}") from error
