"""Optimisers of classifier rows: all of a block's rows at once, or only those with a gradient.

A row without a gradient is not touched: no weight decay, no momentum, no memory traffic.
"""

import math

import torch

from trainer.heads.row_state import Index, Moment, Touched, rows_at
from trainer.heads.rows import ShardedRows, own_ids
from trainer.optimizers import ADAM_BETAS, ADAM_EPSILON, TrainingSettings

_BLOCK = 1024
"""Rows updated at a time, so that they and their state stay in the cache."""


class RowOptimizer:
    """SGD with momentum, Adam or AdamW on one block of rows, fp32 whatever the state's precision.

    Adam's bias correction counts each row's own updates: a row that is drawn for the first time
    late in training takes a first step like any other.
    """

    def __init__(self, rows: ShardedRows, settings: TrainingSettings, held: int = 0) -> None:
        """`step` leaves rows r < `held` as they are: their gradient is dropped."""
        self.rows, self._settings = rows, settings
        self._held = len(own_ids(rows.first, max(rows.first, held), rows.ranks))
        weight = rows.weight.detach()
        precision = settings.row_state
        self._moments = {}
        if settings.optimizer != "sgd":
            self._moments["first"] = Moment(weight, precision, positive=False)
            self._moments["second"] = Moment(weight, precision, positive=True)
        elif settings.momentum:
            self._moments["momentum"] = Moment(weight, precision, positive=False)
        self._ids = rows.own_ids().to(weight.device)
        # by row: with a global count a row first drawn late would take a first step three times as
        # long
        self._counts = weight.new_zeros(len(weight), dtype=torch.int32)

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """The optimiser's state by name; the first dimension of each tensor is this rank's rows.

        The tensors are not copies: a saved state is restored by copying into them.
        """
        held = {
            f"{name}{part}": tensor
            for name, moment in self._moments.items()
            for part, tensor in moment.tensors.items()
        }
        return {**held, "updates": self._counts}

    def step(self, rate: float) -> None:
        """Updates the rows by their gradient, dense or sparse, at learning rate `rate`.

        The gradient is overwritten and released.
        """
        gradient = self.rows.weight.grad
        self.rows.weight.grad = None
        if gradient is None:
            return
        if gradient.is_sparse:
            # old rows in no image's neighbourhood stay as they are: neither decay nor momentum
            gradient = gradient.coalesce()
            index, values = gradient.indices()[0], gradient.values()
            if self._held:
                moved = index >= self._held
                index, values = index[moved], values[moved]
            self.update(index, values, rate)
            return
        for start in range(self._held, len(gradient), _BLOCK):
            block = slice(start, min(start + _BLOCK, len(gradient)))
            self.update(block, gradient[block], rate)

    @torch.no_grad()
    def update(
        self,
        index: Index,
        gradient: torch.Tensor,
        rate: float,
        valid: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
    ) -> None:
        """Moves some rows by their `gradient` [n, d], which is overwritten.

        Rows that are not `valid` [n] are left alone (a GPU cannot shorten `index` without waiting).
        A caller that has a copy of the `rows` [n, d] spares reading them again; it is overwritten.
        """
        settings, weight = self._settings, self.rows.weight.data
        values = rows_at(weight, index) if rows is None else rows
        if settings.weight_decay and settings.optimizer != "adamw":
            gradient = gradient.add_(values, alpha=settings.weight_decay)
        counts = rows_at(self._counts, index) + 1
        touched = Touched(index, rows_at(self._ids, index), counts, valid)
        touched.put(self._counts, counts)
        if settings.optimizer == "sgd":
            moved = self._momentum(touched, gradient)
        else:
            if settings.optimizer == "adamw":
                values.mul_(1 - rate * settings.weight_decay)
            moved = self._adam(touched, gradient)
        touched.put(weight, values.sub_(moved, alpha=rate))

    def _momentum(self, touched: Touched, gradient: torch.Tensor) -> torch.Tensor:
        if not self._settings.momentum:
            return gradient
        moment = self._moments["momentum"]
        velocity = moment.read(touched.index).mul_(self._settings.momentum).add_(gradient)
        moment.write(touched, velocity)
        return velocity

    def _adam(self, touched: Touched, gradient: torch.Tensor) -> torch.Tensor:
        keep_first, keep_second = ADAM_BETAS
        first, second = self._moments["first"], self._moments["second"]
        mean = first.read(touched.index).lerp_(gradient, 1 - keep_first)
        square = second.read(touched.index).mul_(keep_second)
        square.addcmul_(gradient, gradient, value=1 - keep_second)
        first.write(touched, mean)
        second.write(touched, square, salt=2**20)  # other noise than the first moment's
        # 1 - beta^count without the cancellation
        of_first, of_second = (
            -torch.expm1(touched.counts * math.log(keep))[:, None] for keep in ADAM_BETAS
        )
        return (mean / of_first).div_((square / of_second).sqrt_().add_(ADAM_EPSILON))
