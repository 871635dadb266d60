"""One iteration of training."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.orders.order import rank_slice
from data_shards.pipeline import Batch
from trainer.activity import Activity
from trainer.drawing import Drawing, gather_numbers, joining
from trainer.engine import discard_gradients
from trainer.entrance import Entrance, Passing
from trainer.guard import Fault
from trainer.heads.collectives import Ranks, gather_embeddings
from trainer.heads.cross_entropy import Update
from trainer.heads.margin_loss import Part
from trainer.methods.entering import Within
from trainer.methods.forward import Forward, OldClassifier
from trainer.methods.recipe import Recipe
from trainer.methods.wants import AnswersWithin, Want
from trainer.optimizers import TrainingSettings, learning_rate, reach, set_learning_rate
from trainer.processor import multiplies_bf16
from trainer.row_layout import rows_over, updates_in_backward
from trainer.state import State
from trainer.teacher import ExpertSource, TeacherSource

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Stepper:
    """One optimiser update: the embedder's forward, the terms, backward, both optimisers.

    An update that the guard refuses leaves everything as it was, except the iteration's number
    (and, when only the embedder's gradient is not finite, the rows, which go first).
    What is refused is decided for all ranks together, by two all-reduces of a few numbers.
    """

    def __init__(
        self,
        training: TrainingSettings,
        recipe: Recipe,
        state: State,
        teacher: TeacherSource,
        ranks: Ranks,
        activity: Activity | None = None,
        anchor: OldClassifier | None = None,
        loaded: Mapping[type[Want], Any] | None = None,
        seed: int = 0,
        expert: ExpertSource | None = None,
    ) -> None:
        """`loaded` is what earlier phases prepared, see `Forward.loaded`; `seed` is of what Terms
        draw; `expert` is asked of each batch, see `Forward.expert`."""
        self._expert = expert
        self._training, self._recipe = training, recipe
        self._anchor, self._loaded, self._seed = anchor, loaded or {}, seed
        self._state, self._teacher, self._ranks = state, teacher, ranks
        self._activity = activity or Activity()
        batch, world = training.batch, ranks.world
        parts = [rank_slice(batch, rank, world) for rank in range(world)]
        self._counts = [part.stop - part.start for part in parts]
        self._parts = [
            [rank_slice(count, part, training.accumulate) for count in self._counts]
            for part in range(training.accumulate)
        ]
        module = state.engine.module
        self._parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._alone = updates_in_backward(recipe, state.old)
        self._drawing: Drawing | None = None
        self._before: Entrance | None = None
        if (entering := recipe.enters) is not None:
            self._drawing = Drawing(
                entering,
                self._loaded[entering.by],
                module,
                count=batch,
                parts=training.accumulate,
                old=state.old,
                ranks=ranks,
                seed=seed,
            )
        self._buffers = [*state.engine.module.buffers(), *state.classifier.running.values()]
        self._kept = [buffer.clone() for buffer in self._buffers]
        self.fault: Fault | None = None
        """Why the last iteration made no update."""
        self.stopping = False
        """Whether any rank was asked to stop."""
        self.suspects: list[NDArray[np.int64]] = []
        """The global batches' samples of the updates skipped in a row."""

    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Returns each term's mean over the samples of the global batch that it counts, and the
        means' weighted sum as ``loss``."""
        state = self._state
        rate = learning_rate(self._training, state.iteration)
        set_learning_rate(state.embedder_optimizer, rate)
        if state.iteration in self._training.milestones:
            state.guard.forget()  # a penalty that is cut to what the rate can stand is larger now
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            kept.copy_(buffer)
        losses, loss = self._backward(batch, rate)
        self._activity.turn("update")
        if self.fault is None:
            state.engine.step()
            for optimizer in state.row_optimizers.values():
                optimizer.step(rate)
            self._accept(loss)
        else:
            self._skip(batch)
        state.iteration += 1
        return losses

    def _backward(self, batch: Batch, rate: float) -> tuple[dict[str, torch.Tensor], float]:
        """Gradients of all parts of the batch, until the guard objects.

        Returns the mean losses, and the loss that all ranks agree on.
        """
        state, mean, seen = self._state, dict[str, torch.Tensor](), 0.0
        self._activity.turn("gathering labels")
        # of all parts at once: a term must know how many samples it counts before its first part
        every = self._ranks.gather(batch.labels, self._counts)
        by_rank = every.split(self._counts)
        for number, slices in enumerate(self._parts):
            last = number + 1 == len(self._parts)
            state.engine.set_gradient_accumulation_boundary(last)
            counts = [part.stop - part.start for part in slices]
            labels = torch.cat([own[part] for own, part in zip(by_rank, slices, strict=True)])
            part = Part(number, every) if len(self._parts) > 1 else None
            own = batch.part(slices[self._ranks.rank])
            losses = self._losses(batch=own, counts=counts, labels=labels, part=part, rate=rate)
            for name, value in losses.items():
                mean[name] = mean.get(name, 0) + value.detach()
            seen += self._agree(losses["loss"])
            self.fault = state.guard.judge(seen) if last or not math.isfinite(seen) else None
            if self.fault is not None:
                break
            self._activity.turn("backward")
            state.engine.backward(losses["loss"])
        if self.fault is None:
            self.fault = self._judge_gradients()
        return mean, seen

    def _losses(
        self,
        batch: Batch,
        counts: list[int],
        labels: torch.Tensor,
        part: Part | None,
        rate: float,
    ) -> dict[str, torch.Tensor]:
        """What a part of the global batch adds to each term's mean; their weighted sum, with
        autograd, as ``loss``.

        `batch` are this rank's images of the part, `counts` every rank's number of them, `labels`
        all of theirs; `part` is none where there is but one.
        """
        state, half = self._state, _HALF.get(self._training.precision)
        if half is torch.bfloat16 and not multiplies_bf16(batch.images.device):
            half = None
        self._activity.turn("teacher")
        teacher = self._teacher(batch, counts)
        expert = None if self._expert is None else self._expert(batch, counts)
        self._activity.turn("forward")
        entering = drawn = None
        if self._drawing is not None:
            number = 0 if part is None else part.number
            entering = self._drawing.share(state.iteration, number, batch.images)
        with (
            torch.autocast(batch.images.device.type, half, enabled=half is not None),
            joining(entering) as passing,
        ):
            embeddings = state.engine(batch.images)
        embeddings = state.gradients.enter(embeddings.float())
        self._activity.turn("gathering embeddings")
        if entering is None:
            gathered = gather_embeddings(embeddings, self._ranks, counts)
        else:
            together = [*map(sum, zip(counts, entering.counts, strict=True))]
            both = gather_embeddings(embeddings, self._ranks, together)
            gathered, drawn = entering.split(both, counts)
        # a float16 overflow shows after the rows' gradients only: they must not be used up by then
        fused = self._alone and part is None and not state.gradients.scale
        self._activity.turn("loss")
        forward = Forward(
            embeddings=gathered,
            labels=labels,
            rows=rows_over(self._recipe, state.blocks, state.old),
            classifier=state.classifier,
            teacher=teacher,
            loaded=self._loaded,
            # gathered embeddings' gradients are multiplied by the world size, because the engine
            # averages over the ranks what each has of its own images; these are whole on each
            parameters={n: state.gradients.enter(p) for n, p in self._parameters.items()},
            iteration=state.iteration,
            seed=self._seed,
            reach=reach(self._training, rate),
            update=Update(state.row_optimizers["current"], rate) if fused else None,
            anchor=self._anchor,
            part=part,
            drawn=drawn,
            expert=expert,
            within=self._within(batch.images, passing, counts),
        )
        losses, total = {}, gathered.new_zeros(())
        for term in self._recipe.terms:
            numerator, denominator = term(forward)
            share = numerator / denominator
            losses[term.name] = share.detach()
            total = total + term.weight * share
        return {**losses, "loss": total}

    def _within(
        self, images: torch.Tensor, passing: Passing | None, counts: list[int]
    ) -> Within | None:
        """What `Forward.within` is, after the images' forward pass."""
        wanted = self._recipe.want(AnswersWithin)
        if wanted is None:
            return None
        assert passing is not None and passing.images is not None
        if self._before is None:
            height, width = images.shape[2:]
            self._before = Entrance(self._loaded[AnswersWithin], wanted.place, (height, width))
        with torch.no_grad():
            before = self._before.until(images)
        return Within(
            now=self._state.gradients.enter(passing.images.float()),
            before=before,
            gathered=partial(gather_numbers, ranks=self._ranks, counts=counts),
        )

    def _agree(self, total: torch.Tensor) -> float:
        """One loss for all ranks, NaN when any rank's is not finite; and whether any must stop."""
        finite = total.detach().isfinite()
        flags = torch.stack(
            [
                (~finite).double(),
                torch.where(finite, total.detach().double(), -math.inf),
                total.new_tensor(float(self._activity.stop.is_set()), dtype=torch.float64),
            ]
        )
        bad, loss, stopping = self._ranks.max(flags).tolist()
        self.stopping = bool(stopping)
        return math.nan if bad else loss

    def _judge_gradients(self) -> Fault | None:
        state = self._state
        finite = state.gradients.finite(state.blocks.values())
        if not self._ranks.max((~finite).float()).item():
            return None
        scale = state.gradients.scale
        return "overflow" if scale is not None and scale.overflow() else "gradient"

    def _accept(self, loss: float) -> None:
        state = self._state
        state.guard.accept(loss)
        if state.gradients.scale is not None:
            state.gradients.scale.good()
        self.suspects.clear()

    def _skip(self, batch: Batch) -> None:
        """Puts running statistics back and drops the gradients.

        Rows that were updated within the backward pass stay so: their loss was finite.
        """
        state = self._state
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            buffer.copy_(kept)
        discard_gradients(state.engine)
        state.gradients.forget()
        for rows in state.blocks.values():
            rows.weight.grad = None
        if self.fault != "overflow":  # what the loss scale is for, not a sign of trouble
            state.guard.reject()
            samples = torch.from_numpy(batch.samples).to(batch.labels.device)
            self.suspects.append(self._ranks.gather(samples, self._counts).cpu().numpy())
