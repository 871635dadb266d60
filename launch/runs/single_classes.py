"""Learning steps of one class, which some methods cannot learn from: said before any work."""

from collections.abc import Iterator, Mapping, Sequence

from trainer.methods import Method
from trainer.methods.terms import softmax_is_constant


def untaught(
    methods: Mapping[str, Method], row_ends: Sequence[int], first_trained: int
) -> Iterator[str]:
    """A line for the methods whose softmax has one class at the same steps.

    `row_ends` are the classes after each step; steps before `first_trained` are not asked.
    """
    at: dict[str, list[int]] = {}
    for step in range(first_trained, len(row_ends)):
        old, last = row_ends[step - 1] if step else 0, row_ends[step]
        for name, method in methods.items():
            recipe = method.recipe().at(step, old, new_rows=last - old)
            if softmax_is_constant(recipe, last if recipe.sees_all else last - old):
                at.setdefault(name, []).append(step)
    alike: dict[tuple[int, ...], list[str]] = {}
    for name, steps in at.items():
        alike.setdefault(tuple(steps), []).append(name)
    for same, names in alike.items():
        each = "learning step" if len(same) == 1 else "each of learning steps"
        yield (
            f"{each} {', '.join(map(str, same))} has one class, and {', '.join(names)} classify "
            "by a softmax over the step's own classes: it is 1 whatever the image, and teaches "
            "nothing there. Learn more classes a step (lower benchmark.steps), or set "
            "methods.NAME.over=all where the method has that key"
        )
