"""Evaluation protocols: pure functions of embeddings and labels."""

from typing import Literal

from data_shards.settings import Settings


class EvaluationSettings(Settings):
    """How embeddings are compared."""

    distance: Literal["cosine", "euclidean"] = "cosine"
    """Cosine normalises embeddings first; Euclidean takes them as they are."""
    examples: int = 12
    """Queries whose nearest gallery images are kept for the report."""
