"""Spreads work over processes; results come in order and in bounded memory."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import TypeVar

from data_shards.settings import InputError

T = TypeVar("T")
R = TypeVar("R")


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """`items` in lists of `size`, the last one shorter."""
    stream = iter(items)
    while chunk := list(islice(stream, size)):
        yield chunk


def ordered(
    pool: Executor, function: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """Like `map` over `pool`, with at most `ahead` calls submitted whose results are not consumed.

    `Executor.map` would submit all items at once, and hold all results of a slow consumer.
    """
    running: deque[Future[R]] = deque()
    for item in items:
        running.append(pool.submit(function, item))
        if len(running) >= ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _end_with_parent() -> None:
    """Ends this pool worker when its parent dies.

    Workers hold their own queue open, so they would outlive a killed parent for ever. Ctrl-C
    reaches them as well as the parent, which ends them; so they ignore it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def worker_pool(processes: int) -> Iterator[Executor]:
    """A pool of new processes that end with this one, however it ends.

    Raises InputError when one of them is killed, as by the kernel when memory runs out.
    """
    # not fork: a child of a process with DALI's threads may deadlock
    context = get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise InputError(
            "a process that handled images was killed, perhaps for want of memory: run the same "
            "command again, with fewer --processes or a smaller --max-pixels"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(
    function: Callable[[T], R], items: Iterable[T], processes: int
) -> Iterator[tuple[T, R]]:
    """Yields each item with its result, in the order of the items.

    Reads only as many items ahead as keep all processes busy; with 0 `processes` the work is done
    in this one.
    """
    if processes == 0:
        yield from ((item, function(item)) for item in items)
        return
    begun: deque[T] = deque()

    def noted() -> Iterator[T]:
        for item in items:
            begun.append(item)
            yield item

    with worker_pool(processes) as pool:
        for result in ordered(pool, function, noted(), 2 * processes + 1):
            yield begun.popleft(), result
