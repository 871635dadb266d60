"""Protocols of separate test sets: the images that each uses, and its measurements."""

from data_shards.storage.dataset import ShardDataset
from trainer.evaluation import Distance, TestSetSettings
from trainer.evaluation.test_sets.common import TestSetProtocol
from trainer.evaluation.test_sets.identification import Identification
from trainer.evaluation.test_sets.retrieval import Retrieval
from trainer.evaluation.test_sets.templates import Templates
from trainer.evaluation.test_sets.verification import Verification


def open_protocol(
    test: TestSetSettings,
    distance: Distance,
    dataset: ShardDataset,
    distractors: ShardDataset | None = None,
) -> TestSetProtocol:
    """The protocol of a test over its datasets. Raises InputError if they lack a table or role."""
    match test.protocol:
        case "verification":
            return Verification(dataset)
        case "identification":
            return Identification(dataset, distractors)
        case "retrieval":
            return Retrieval(dataset, distance)
        case "templates":
            return Templates(dataset)
