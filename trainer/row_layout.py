"""Which classifier rows a learning step has: their blocks, where they come from, who trains them.

Building the state, planning memory and reading a plan all follow `row_blocks`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.heads.rows import ShardedRows
from trainer.methods.forward import Over
from trainer.methods.recipe import Recipe


@dataclass(frozen=True)
class RowBlock:
    """A contiguous range of rows that is held, trained and checkpointed as one."""

    rows: range
    """Their global ids."""
    kept: int
    """Rows below this start as the previous model's, all others at random."""
    trained: bool
    """Else it is frozen: without gradient or optimiser, and in no checkpoint."""
    held: int = 0
    """Rows below this stay as they are, in a block that is trained."""


def row_blocks(recipe: Recipe, old: int, last: int) -> dict[str, RowBlock]:
    """The blocks by name, lowest rows first, of `recipe` as it applies at a step.

    There are `old` rows before the step and `last` after it. The names are in checkpoints.
    """
    kept = old if recipe.start.old_rows != "scratch" else 0
    holds = recipe.start.old_rows == "held"
    overs = {term.over for term in recipe.terms}
    if not old or _one_block(recipe):
        return {"current": RowBlock(range(last), kept=kept, trained=True, held=old if holds else 0)}
    # Apart, because a softmax over the new rows alone is then one over a block, whose gradient is
    # used up while it is made (`updates_in_backward`); and old rows that nobody trains cost no
    # optimiser state. They are held all the same: the finished model has a row for everybody.
    return {
        "previous": RowBlock(range(old), kept=kept, trained="old" in overs and not holds),
        "current": RowBlock(range(old, last), kept=old, trained=True),
    }


def _one_block(recipe: Recipe) -> bool:
    """Whether some Term is over all rows, so that they must be one block."""
    # "new" rows are everybody's where everybody's images are trained on
    return recipe.sees_all or any(term.over == "all" for term in recipe.terms)


def rows_over(
    recipe: Recipe, blocks: Mapping[str, ShardedRows], old: int
) -> dict[Over, ShardedRows]:
    """What each Term of `recipe` is over: a block, or a part of one in the same memory.

    `blocks` are those of `row_blocks`, of `old` rows before the step.
    """
    current = blocks["current"]
    if "previous" in blocks:
        return {"old": blocks["previous"], "new": current}
    if not old:
        return {"new": current, "all": current}
    new = current if recipe.sees_all else current.part(old, current.last)
    return {"old": current.part(0, old), "new": new, "all": current}


def updates_in_backward(recipe: Recipe, old: int) -> bool:
    """Whether the current block may be updated within the backward pass.

    That saves its gradient, but whoever else works on the block would meet rows that have moved
    already: so only where one Term does, and that Term is over the whole block.
    """
    joined = not old or _one_block(recipe)
    if old and joined and recipe.start.old_rows == "held":
        return False  # the losses do not know which rows stay
    within = [t.over for t in recipe.terms if t.over is not None and (joined or t.over != "old")]
    return len(within) == 1 and within[0] != "old"
