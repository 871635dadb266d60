"""Which checkpoints are kept."""


def superfluous(saved: list[int], last: int, span: int | None) -> list[int]:
    """Of the iterations `saved` (ascending), those to delete.

    Kept are the `last` newest and, of every `span` iterations, the first.
    """
    kept, spans = set(saved[-last:]), set[int]()
    for iteration in saved if span else []:
        if span and iteration // span not in spans:
            spans.add(iteration // span)
            kept.add(iteration)
    return [iteration for iteration in saved if iteration not in kept]
