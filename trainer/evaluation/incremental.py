"""Class-incremental learning: accuracy task by task, its averages, two kinds of forgetting, and
which task's classes images are taken for.

`accuracy` is [T, T]: row t is the model after task t, column k the accuracy on task k's test
images among all classes seen so far; entries above the diagonal do not exist and are not read.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


def task_accuracy(predicted: Ids, label: Ids, rows: tuple[int, ...]) -> Floats:
    """Accuracy on each task seen so far ([t]), of predicted against true classes ([n] each).

    Task k's classes are rows[k-1] <= class < rows[k]. Raises ValueError for a task without images.
    """
    task = np.searchsorted(rows, label, side="right")
    counts = np.bincount(task, minlength=len(rows))
    if len(counts) > len(rows) or (label < 0).any():
        raise ValueError(f"labels must lie in 0 ... {rows[-1] - 1}")
    if not counts.all():
        raise ValueError(f"task {int(np.argmin(counts))} has no test image")
    return np.bincount(task[predicted == label], minlength=len(rows)) / counts


def task_confusion(predicted: Ids, label: Ids, rows: tuple[int, ...]) -> Ids:
    """[t, t] how many of task j's test images (row) are taken for a class of task k (column).

    `predicted` and `label` [n] are classes, task k's being rows[k-1] <= class < rows[k]. An image
    counts on the diagonal where it is taken for another class of its own task, too.
    """
    tasks = len(rows)
    true, said = (np.searchsorted(rows, classes, side="right") for classes in (label, predicted))
    return np.bincount(tasks * true + said, minlength=tasks * tasks).reshape(tasks, tasks)


def confused(counts: Ids) -> dict[str, Any]:
    """The figures of `counts` [t, t] (`task_confusion`) as evaluation.json has them.

    ``confusion`` [t, t]: the share of each task's images that are taken for a class of each task;
    rows sum to 1. ``old_as_new``: the share of all earlier tasks' images that are taken for one of
    the newest task's classes, ``new_as_old``: of the newest's for any earlier; left out after the
    first task. Raises ZeroDivisionError for a task without images.
    """
    totals = counts.sum(axis=1)
    if not totals.all():
        raise ZeroDivisionError(f"task {int(np.argmin(totals))} has no test image")
    found: dict[str, Any] = {"confusion": (counts / totals[:, None]).tolist()}
    if len(counts) > 1:
        found["old_as_new"] = float(counts[:-1, -1].sum() / totals[:-1].sum())
        found["new_as_old"] = float(counts[-1, :-1].sum() / totals[-1])
    return found


def so_far(accuracies: Sequence[Sequence[float]], rows: tuple[int, ...]) -> dict[str, Any]:
    """The figures after the last of t + 1 tasks, as evaluation.json has them.

    `accuracies` has a list a model, with its accuracy on each task up to its own; `rows` says where
    each task's classes end. ``tasks`` is the last list; ``class_accuracy`` is over all classes,
    ``average_accuracy`` its mean over the models, ``task_accuracy`` the mean of the last list.
    Left out after the first task: ``forgetting`` as `average_forgetting`, ``first_drop`` as
    `forgetting_rate`.
    """
    count = len(accuracies)
    matrix = np.zeros((count, count))
    for task, own in enumerate(accuracies):
        matrix[task, : task + 1] = own
    by_model = average_accuracy(matrix, np.diff(rows[:count], prepend=0))
    found = {
        "tasks": list(accuracies[-1]),
        "class_accuracy": float(by_model[-1]),
        "average_accuracy": float(by_model.mean()),
        "task_accuracy": float(average_over_tasks(matrix)[-1]),
    }
    if count > 1:
        found["first_drop"] = forgetting_rate(matrix)
        found["forgetting"] = float(average_forgetting(matrix)[-1])
    return found


def average_accuracy(accuracy: Floats, classes: NDArray[np.integer]) -> Floats:
    """[T] accuracy over all classes seen after each task: tasks weigh as many as their classes [T].

    Its mean over T is the average incremental accuracy (Mnemonics, Sec. 5; N + 1 phases).
    """
    return np.array(
        [np.average(row[: t + 1], weights=classes[: t + 1]) for t, row in enumerate(accuracy)]
    )


def average_over_tasks(accuracy: Floats) -> Floats:
    """[T] mean accuracy over the tasks seen after each task, each weighing alike (GFR, Sec. 5)."""
    return np.array([row[: t + 1].mean() for t, row in enumerate(accuracy)])


def average_forgetting(accuracy: Floats) -> Floats:
    """[T] GFR's forgetting after each task: best accuracy ever minus accuracy now, averaged.

    The average is over the tasks before the current one, on which nothing can be forgotten yet;
    0 after the first. "Ever" includes now: a task that improved counts 0 (GFR, Sec. 5).
    """
    best = np.maximum.accumulate(np.tril(accuracy), axis=0)
    lost = best - accuracy
    return np.array([lost[t, :t].mean() if t else 0.0 for t in range(len(accuracy))])


def forgetting_rate(accuracy: Floats) -> float:
    """Mnemonics' forgetting: the first task's accuracy under the first model minus the last."""
    return float(accuracy[0, 0] - accuracy[-1, 0])
