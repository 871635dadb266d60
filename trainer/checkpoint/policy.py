"""The policy of which checkpoints to keep."""


def superfluous(saved: list[int], last: int, span: int | None) -> list[int]:
    """The iterations of `saved` (ascending) to delete.

    Kept are the `last` newest and the first of every `span` iterations.
    """
    kept, spans = set(saved[-last:]), set[int]()
    for iteration in saved if span else []:
        if span and iteration // span not in spans:
            spans.add(iteration // span)
            kept.add(iteration)
    return [iteration for iteration in saved if iteration not in kept]
