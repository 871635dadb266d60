"""One iteration of training."""

import torch

from data_shards.order import rank_slice
from data_shards.pipeline import Batch
from trainer.heads.collectives import Ranks, gather_embeddings
from trainer.heads.cross_entropy import Update
from trainer.methods.recipe import Forward, Recipe
from trainer.optimizers import TrainingSettings, learning_rate, set_learning_rate
from trainer.state import State
from trainer.teacher import TeacherSource


class Stepper:
    """One optimiser update: the embedder's forward, the terms, backward, both optimisers."""

    def __init__(
        self,
        training: TrainingSettings,
        recipe: Recipe,
        state: State,
        teacher: TeacherSource,
        ranks: Ranks,
    ) -> None:
        self._training, self._recipe = training, recipe
        self._state, self._teacher, self._ranks = state, teacher, ranks
        batch, world = training.batch, ranks.world
        parts = [rank_slice(batch, rank, world) for rank in range(world)]
        self._counts = [part.stop - part.start for part in parts]

    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Returns each term's mean over the global batch, and their weighted sum as ``loss``."""
        state = self._state
        rate = learning_rate(self._training, state.iteration)
        set_learning_rate(state.embedder_optimizer, rate)
        teacher = self._teacher(batch, self._counts)
        half = self._training.precision == "bf16"
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=half):
            embeddings = state.engine(batch.images)
        gathered = gather_embeddings(embeddings.float(), self._ranks, self._counts)
        labels = self._ranks.gather(batch.labels, self._counts)
        forward = Forward(
            gathered,
            labels,
            state.current,
            state.previous,
            teacher,
            state.classifier,
            state.iteration,
            Update(state.row_optimizers["current"], rate),
        )
        losses, total = {}, gathered.new_zeros(())
        for term in self._recipe.terms:
            numerator, denominator = term(forward)
            mean = numerator / denominator
            losses[type(term).__name__.lower()] = mean.detach()
            total = total + term.weight * mean
        state.engine.backward(total)
        state.engine.step()
        for optimizer in state.row_optimizers.values():
            optimizer.step(rate)
        state.iteration += 1
        return {**losses, "loss": total.detach()}
