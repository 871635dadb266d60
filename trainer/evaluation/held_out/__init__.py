"""Test sets of their own: which images each protocol looks at, and what it measures on them."""

from data_shards.dataset import ShardDataset
from trainer.evaluation import Distance, HeldOutSettings
from trainer.evaluation.held_out.common import HeldOut
from trainer.evaluation.held_out.identification import Identification
from trainer.evaluation.held_out.retrieval import Retrieval
from trainer.evaluation.held_out.templates import Templates
from trainer.evaluation.held_out.verification import Verification


def open_held_out(
    test: HeldOutSettings,
    distance: Distance,
    dataset: ShardDataset,
    distractors: ShardDataset | None = None,
) -> HeldOut:
    """The protocol of a test over its datasets. Raises InputError for what they lack."""
    match test.protocol:
        case "verification":
            return Verification(dataset)
        case "identification":
            return Identification(dataset, distractors)
        case "retrieval":
            return Retrieval(dataset, distance)
        case "templates":
            return Templates(dataset)
