"""Curves of bounded length that grow as records come."""

import math
from collections.abc import Iterator

_MOST = 1e30
"""What is larger counts as not finite: no loss is, and sums stay far from overflow."""


class Curve:
    """A curve of at most `most` points, each the mean of equally many values in a row.

    When it is full, points are joined in pairs. x only grows: a value at an x that was passed
    before (a phase that went back to a checkpoint) replaces what came from there on.
    """

    def __init__(self, most: int = 500) -> None:
        """`most` is even."""
        self._most, self._each = most, 1
        self._points: list[tuple[float, float]] = []
        self._open: list[tuple[float, float]] = []
        self.lost: list[float] = []
        """Every x, of the newest hundred, at which the value was not finite."""

    def add(self, x: float, y: float) -> None:
        """The next value."""
        while self._open and self._open[-1][0] >= x:
            self._open.pop()
        while not self._open and self._points and self._points[-1][0] >= x:
            self._points.pop()
        while self.lost and self.lost[-1] >= x:
            self.lost.pop()
        if not abs(y) < _MOST:
            self.lost = [*self.lost[-99:], x]
            return
        self._open.append((x, y))
        if len(self._open) < self._each:
            return
        self._points.append(_joined(self._open))
        self._open = []
        if len(self._points) == self._most:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [_joined(pair) for pair in pairs]
            self._each *= 2

    def points(self) -> Iterator[tuple[float, float]]:
        """(x of the last value, mean) in order; the newest may be of fewer values."""
        yield from self._points
        if self._open:
            yield _joined(self._open)


def _joined(
    points: list[tuple[float, float]] | tuple[tuple[float, float], ...],
) -> tuple[float, float]:
    return points[-1][0], math.fsum(y for _, y in points) / len(points)
