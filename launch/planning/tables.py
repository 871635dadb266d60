"""The tables of `perennial plan`."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rich import box
from rich.table import Table

from launch.planning.plan import Plan, StepPlan


def plan_tables(plan: Plan) -> Iterator[Any]:
    """Tables of each rank's memory, its messages and the disk.

    Parts are shown for the method that needs most at each step; the plan's values have all methods.
    """
    yield _steps(plan)
    yield from plan.notes
    yield _iterations(plan)
    yield _parts(plan, "memory of the fullest rank", lambda step: step.memory, lambda m: m["peak"])
    if plan.world > 1:
        yield _parts(plan, "sent by each rank in an iteration", _messages, lambda m: m["sum"])
    yield _parts(plan, "disk, one method and seed", lambda step: step.disk, _total)
    if plan.exemplars:
        yield _memory(plan)
    if plan.phases:
        yield _phases(plan)
    shards = "of unknown size" if plan.shards is None else size_text(plan.shards)
    models = plan.seeds * sum(step.disk["model"] * _chains(step) for step in plan.steps)
    yield f"shards {shards}; models of all methods and seeds {size_text(models)}"
    if plan.machine is None:
        yield "--machine NAME estimates times, see `perennial plan --help`"
    else:
        yield from _remarks(plan)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in columns:
        text = name in ("", "methods", "phase")
        table.add_column(
            name,
            justify="left" if text else "right",
            min_width=8 if name == "methods" else None,
            no_wrap=name != "methods",
        )
    return table


def _steps(plan: Plan) -> Table:
    ranks = "1 rank" if plan.world == 1 else f"{plan.world:,} ranks"
    images = _range(plan.steps[0].images_by_rank)
    title = f"learning steps on {ranks}, {images} images of each batch a rank"
    table = _table(title, "", "methods", "old", "new", "images", "iterations", "rows a rank")
    return _filled(
        table,
        plan,
        lambda step: (
            f"{step.old_identities:,}",
            f"{step.new_identities:,}",
            f"{step.images:,}",
            f"{step.iterations:,}" + (f" + {step.fine_tuning:,}" if step.fine_tuning else ""),
            _range(step.rows_by_rank),
        ),
    )


def _iterations(plan: Plan) -> Table:
    title, columns = "an iteration, on the fullest rank", ["memory", "sent"]
    if plan.machine is not None:
        title += f"; times at best, on {plan.machine.name}"
        columns += ["compute", "messages", "images/s", "in all"]

    def cells(step: StepPlan) -> tuple[str, ...]:
        sizes = size_text(step.memory["peak"]), size_text(_messages(step)["sum"])
        if step.seconds is None:
            return sizes
        compute, communication = step.seconds["compute"], step.seconds["communication"]
        rate = sum(step.images_by_rank) / (compute + communication)
        times = time_text(compute), time_text(communication)
        return *sizes, *times, f"{rate:,.0f}", time_text(step.seconds["step"])

    return _filled(_table(title, "", "methods", *columns), plan, cells)


def _filled(table: Table, plan: Plan, cells: Callable[[StepPlan], tuple[str, ...]]) -> Table:
    """Fills `table` with a line a step and method; methods with the same cells share one."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for step in plan.steps:
        lines.setdefault((f"step {step.step}", *cells(step)), []).extend(step.methods)
    for (number, *rest), methods in lines.items():
        table.add_row(number, " ".join(methods), *rest)
    return table


def _messages(step: StepPlan) -> dict[str, int]:
    sent = {what: made["bytes"] for what, made in step.calls.items()}
    return {**sent, "sum": sum(sent.values())}


def _total(parts: dict[str, int]) -> int:
    return sum(parts.values())


def _parts(
    plan: Plan,
    title: str,
    parts: Callable[[StepPlan], dict[str, int]],
    size: Callable[[dict[str, int]], int],
) -> Table:
    """A table with a line for each part and a column for each learning step."""
    steps = sorted({step.step for step in plan.steps})
    most = [
        max((step for step in plan.steps if step.step == number), key=lambda s: size(parts(s)))
        for number in steps
    ]
    heads = [f"step {s.step}" + (f"\n{s.methods[0]}" if s.step else "") for s in most]
    table = _table(title, "", *heads)
    columns = [parts(step) for step in most]
    names = dict.fromkeys(name for column in reversed(columns) for name in column)
    for name in names:
        if any(column.get(name) for column in columns):
            table.add_row(name, *(size_text(column.get(name, 0)) for column in columns))
    return table


def _memory(plan: Plan) -> Table:
    """A line a learning step and size; methods that keep as much share it."""
    title = "exemplars kept for the next step, one seed; pixels are not encoded"
    table = _table(title, "", "methods", "images", "pixels")
    lines: dict[tuple[int, int, int], list[str]] = {}
    for kept in plan.exemplars:
        lines.setdefault((kept.step, kept.images, kept.pixel_bytes), []).append(kept.method)
    for (step, images, pixels), methods in sorted(lines.items(), key=lambda line: line[0][0]):
        table.add_row(f"step {step}", " ".join(methods), f"{images:,}", size_text(pixels))
    return table


def _phases(plan: Plan) -> Table:
    """A line a learning step and phase; other methods' phases that take as much share it."""
    title = "beside training, one seed: images through networks on CPU actors"
    timed = any(phase.seconds is not None for phase in plan.phases)
    held = any(phase.peak for phase in plan.phases)
    columns = ["phase", "methods", "images", "backward", "iterations"]
    columns += ["memory"] * held + ["at best"] * timed
    table = _table(title, "", *columns)
    lines: dict[tuple[str, ...], list[str]] = {}
    for one in sorted(plan.phases, key=lambda phase: phase.step):
        numbers = (f"{n:,}" if n else "" for n in (one.forward, one.backward, one.iterations))
        time = ["" if one.seconds is None else time_text(one.seconds)] * timed
        memory = [size_text(one.peak) if one.peak else ""] * held
        cells = (f"step {one.step}", one.phase, *numbers, *memory, *time)
        lines.setdefault(cells, []).extend(one.methods)
    for (step, phase, *others), methods in lines.items():
        table.add_row(step, phase, " ".join(methods), *others)
    return table


def _remarks(plan: Plan) -> Iterator[str]:
    machine = plan.machine
    assert machine is not None
    whole = sum(s.seconds["step"] * _chains(s) for s in plan.steps if s.seconds) * plan.seeds
    yield (
        f"training of all methods and seeds: at least {time_text(whole)}. One operation after the "
        "other, each as fast as the machine's peaks; reading images and checkpoints are not "
        "counted."
    )
    if all(phase.seconds is not None for phase in plan.phases):
        beside = sum(phase.seconds for phase in plan.phases if phase.seconds) * plan.seeds
        yield f"other phases of all methods and seeds: at least {time_text(beside)}."
    else:
        yield (
            f"what other phases take depends on CPU actors, of which {machine.name} says nothing: "
            "--actor-rate is how many images one of them embeds in a second"
        )
    if plan.tested is None:
        yield "evaluation is not counted: without the dataset, its test images are not known."
    yield f"{machine.name}: {machine.source}"
    peaks = {"More ranks or a smaller batch take": max(s.memory["peak"] for s in plan.steps)}
    for phase in plan.phases:
        remedy = f"For {phase.phase} a smaller batch, fewer inner steps or recompute take"
        peaks[remedy] = max(peaks.get(remedy, 0), phase.peak)
    for remedy, peak in peaks.items():
        if peak > machine.memory:
            yield (
                f"does not fit: a rank holds {size_text(peak)} at its peak, {machine.name} has "
                f"{size_text(machine.memory)} for it. {remedy} less."
            )


def _chains(step: StepPlan) -> int:
    """The number of models of a step for each seed: step 0 is shared by all methods."""
    return len(step.methods) if step.step else 1


def _range(counts: Iterable[int]) -> str:
    counts = tuple(counts)
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def size_text(count: float) -> str:
    """Bytes in units of a thousand, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def time_text(seconds: float) -> str:
    """A duration in a suitable unit, three digits."""
    units = ((1e-3, 1e-6, "µs"), (1, 1e-3, "ms"), (120, 1, "s"), (7200, 60, "min"))
    for limit, length, unit in units:
        if seconds < limit:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 3600:.3g} h" if seconds < 172_800 else f"{seconds / 86_400:.3g} days"
