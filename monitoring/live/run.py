"""What one run folder says: read bit by bit as it grows, and told as plain values for JSON."""

import math
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from monitoring.live.classes import Classes
from monitoring.live.endpoints import Answer, Target, read_targets
from monitoring.live.extent import Damaged, Extent, extent
from monitoring.live.files import Records, Stamp, last_record, stamp
from monitoring.live.headline import newest_accuracy, seconds_left
from monitoring.live.logs import newest_lines
from monitoring.live.phases import Counted, Finished
from monitoring.live.state import judge
from monitoring.live.thinning import Curve
from monitoring.live.timeline import layout
from monitoring.live.values import Chain, finite, moment, number, printable, shown, text
from monitoring.records import MOST_STEPS_FILES, MainTrainings, checked
from monitoring.results import figures
from monitoring.run_folder import (
    CONFIG_FILE,
    EVALUATION_FILE,
    EVENTS_FILE,
    LEDGER_FILE,
    METRICS_FILE,
    REPORT_FILE,
    TARGETS_FOLDER,
    files_of_steps,
    step_of,
    target_file,
)
from monitoring.schemas import EVALUATION, Phase, phase_of
from untrusted.files import read_bytes
from untrusted.json_text import parse_json
from untrusted.text import printable as clean

_EVALUATION_BYTES, _STUDIED, _REPORT_BYTES = 1 << 24, 1 << 26, 1 << 27
_MOST_PHASES, _MOST_CURVES, _MOST_SPANS, _MOST_FIGURES = 100_000, 2000, 5000, 200_000
"""Of one run: a stranger's may name as many as its files have lines."""
_CURVES = ("loss", "images_per_second")
_MOST_KINDS = 20
"""Kinds of phases that are named, each in a colour of its own."""


class LiveRun:
    """A run folder. `look` is cheap and for the list; `study` reads everything that came."""

    def __init__(self, root: Path, folder: Path) -> None:
        """A folder directly below `root`."""
        self.folder, self._root = folder, root
        self._stamps: dict[str, Stamp | None] = {}
        self.extent: Extent | None = None
        self.damage = ""
        self._ledger = Records(root, folder / LEDGER_FILE)
        self.finished: dict[str, Finished] = {}
        self._files: set[tuple[Chain, int, str]] = set()
        """Files that finished phases left in their steps' folders."""
        self._evaluated: Path | None = None
        self.accuracy: dict[str, Any] | None = None
        self.newest: dict[str, Any] | None = None
        self.driver: Target | None = None
        self._metrics = Records(root, folder / METRICS_FILE)
        self._curves: dict[tuple[str, Chain], Curve] = {}
        self._main = MainTrainings()
        self._heard: dict[str, float] = {}
        self._events = Records(root, folder / EVENTS_FILE)
        self.events: deque[dict[str, Any]] = deque(maxlen=200)
        self._counted: Counted | None = None
        self._drawn = 0
        self._reached: dict[tuple[Chain, int], tuple[Stamp, dict[str, tuple[str, float]]]] = {}
        self._classes = Classes(root)
        self.targets: list[Target] = []

    def _changed(self, name: str) -> bool:
        now = stamp(self.folder / name)
        before = self._stamps.get(name, ())
        self._stamps[name] = now
        return now != before

    def look(self) -> None:
        """Reads what the list shows: configuration, ledger, events, newest record, the driver's
        target."""
        if self._changed(CONFIG_FILE):
            try:
                self.extent, self.damage = extent(self._root, self.folder), ""
            except Damaged as error:
                self.extent, self.damage = None, str(error)
        if self._changed(LEDGER_FILE):
            records, anew = self._ledger.read(1 << 24)
            if anew:
                self.finished.clear()
                self._files.clear()
            for record in records:
                self._finish(record)
            if self._evaluated is not None:
                self.accuracy = newest_accuracy(self._root, self._evaluated)
        if self._changed(EVENTS_FILE) or self._events.behind:
            records, anew = self._events.read()
            if anew:
                self.events.clear()
                self._counted = None
            self.events.extend(map(_event, records))
            for record in records:
                if record.get("event") == "attempt":
                    self._counted = Counted.of(record)
        if self._changed(METRICS_FILE):
            self.newest = last_record(self._root, self.folder / METRICS_FILE)
        target = target_file(self.folder, "driver")
        if self._changed(str(target.relative_to(self.folder))):
            found = read_targets(self._root, [target])
            self.driver = found[0] if found else None

    def study(self) -> None:
        """Reads what has come to every file since; a long file takes several calls."""
        self.look()
        records, anew = self._metrics.read()
        if anew:
            self._curves.clear()
            self._heard.clear()
            self._drawn += 1
        for record in records:
            self._plot(record)
        self._drawn += len(records)
        self._measure()
        try:
            files = sorted(islice((self.folder / TARGETS_FOLDER).glob("*.json"), 4096))
        except OSError:
            files = []
        self.targets = read_targets(self._root, files)

    @property
    def behind(self) -> int:
        """Bytes of records that are still to be read."""
        return self._metrics.behind

    def _finish(self, record: dict[str, Any]) -> None:
        phase, output = phase_of(record.get("phase")), Path(text(record.get("output")) or "")
        if phase is None or len(self.finished) >= _MOST_PHASES:
            return
        self.finished[record["phase"]] = Finished.of(record, phase[3])
        if step_of(output) == phase[:3]:
            self._files.add((phase[:2], phase[2], output.name))
            if output.name == EVALUATION_FILE:
                self._evaluated = self.folder / output

    def _plot(self, record: dict[str, Any]) -> None:
        phase, iteration = phase_of(record.get("phase")), finite(record.get("iteration"))
        of = finite(record.get("of"))
        if phase is None or iteration is None or of is None or not 0 <= iteration <= of or of < 1:
            return
        method, seed, step, _ = phase
        if len(self._heard) < _MOST_PHASES:
            self._heard.setdefault(record["phase"], moment(record.get("time")) or 0.0)
        for key in _CURVES if self._main.has(phase) else ():
            place = key, (method, seed)
            if place not in self._curves and len(self._curves) >= _MOST_CURVES:
                continue
            if (value := number(record.get(key))) is not None:
                self._curves.setdefault(place, Curve()).add(step + iteration / of, value)

    def _measure(self) -> None:
        """Reads the evaluations that are new or changed: some in this call, more in the next."""
        room, figures_left = _STUDIED, _MOST_FIGURES
        files = files_of_steps(self.folder, EVALUATION_FILE)
        for file in islice(files, MOST_STEPS_FILES):
            where, now = step_of(file), stamp(file)
            if where is None or now is None:
                continue
            key = ((where[0], where[1]), where[2])
            self._classes.look(*key, file.parent)
            before, known = self._reached.get(key, (None, {}))
            figures_left -= len(known)
            if before == now:
                continue
            if room < 0 or figures_left < 0:
                break
            room -= min(now[1], _EVALUATION_BYTES)
            try:
                content = read_bytes(file, _EVALUATION_BYTES, self._root)
                evaluation = checked(parse_json(content), EVALUATION)
            except (OSError, ValueError):
                evaluation = {}
            found = figures(evaluation)
            self._reached[key] = now, found
            figures_left -= len(found)
            self._classes.hear(*key, evaluation)
            self._drawn += 1

    def done(self) -> tuple[int, int]:
        """Learning steps evaluated, and those of the whole run over all chains."""
        if self.extent is None:
            return 0, 0
        done = sum(one[2] == EVALUATION_FILE and self.extent.wants(*one) for one in self._files)
        return done, len(self.extent.chains) * self.extent.steps

    def phases(self) -> tuple[int, int] | None:
        """Phases done, and those of the whole run; None where no attempt has counted them."""
        if (counted := self._counted) is None:
            return None
        since = sum(one.attempt == counted.attempt for one in self.finished.values())
        return counted.phases - max(0, counted.left - since), counted.phases

    def complete(self) -> bool:
        """Whether nothing is left to do, as far as runs of before can tell."""
        if (counted := self.phases()) is not None:
            return counted[0] == counted[1]
        extent = self.extent
        return extent is not None and sum(extent.wants(*f) for f in self._files) == extent.wanted

    def overview(self, driver: Answer | None, now: float) -> dict[str, Any]:
        """A line of the list. `driver` is what its endpoint said, `now` in Unix seconds."""
        loss = number((self.newest or {}).get("loss"))
        broken = loss is not None and not math.isfinite(loss)
        state, trouble = judge(self.damage, self.complete(), broken, self.driver, driver, now)
        (done, of), (phases_done, phases) = self.done(), self.phases() or (None, None)
        newest, share = self.newest or {}, self._share()
        values = driver.values if driver else {}
        counted = self._counted if state == "running" else None
        heard_at = moment(newest.get("time"))
        if driver and driver.phase not in (None, text(newest.get("phase"))):
            newest = {}  # of the phase before: its loss is not that of the one at work
        return {
            "name": printable(self.folder.name),
            "link": printable(self.folder.name) == self.folder.name,
            "state": state,
            "trouble": trouble,
            "done": done,
            "of": of,
            "phases_done": phases_done,
            "phases": phases,
            "share": share,
            "left_seconds": seconds_left(counted, counted.begun if counted else None, share, now),
            "accuracy": self.accuracy,
            "phase": driver.phase if driver and driver.phase else text(newest.get("phase")),
            "iteration": finite(newest.get("iteration")),
            "iterations": finite(newest.get("of")),
            "loss": shown(newest.get("loss")),
            "images_per_second": shown(newest.get("images_per_second")),
            "data_wait": shown(newest.get("data_wait_share")),
            "skipped": finite(newest.get("skipped")),
            "rewinds": finite(newest.get("rewinds")),
            "restarts": finite(newest.get("restarts")),
            "record_time": heard_at,
            "changed": self._changed_at(),
            "ranks_heard": values.get("perennial_ranks_heard"),
            "ranks_expected": values.get("perennial_ranks_expected"),
            "report": bool(stamp(self.folder / REPORT_FILE)),
        }

    def _share(self) -> float:
        """How much of the run is done, from 0 to 1, with the training phase at work.

        That is a phase of those counted, or else nine tenths of a learning step.
        """
        counted = self.phases()
        (done, of), whole = (counted, 1.0) if counted else (self.done(), 0.9)
        newest = self.newest or {}
        iteration, last = finite(newest.get("iteration")), finite(newest.get("of"))
        phase = text(newest.get("phase"))
        part = iteration / last if iteration and last and phase not in self.finished else 0.0
        return min(1.0, (done + whole * min(1.0, max(0.0, part))) / of) if of else 0.0

    def _changed_at(self) -> float | None:
        """When the folder's records last changed."""
        names = (CONFIG_FILE, LEDGER_FILE, METRICS_FILE)
        times = [found[2] / 1e9 for name in names if (found := self._stamps.get(name))]
        return max(times, default=None)

    def detail(self, driver: Answer | None, now: float) -> dict[str, Any]:
        """The page of the run, but for curves, ranks and alerts."""
        view = self.overview(driver, now)
        asked = self.extent
        spans = list(self._spans(view["phase"], driver, view["state"], now))
        return {
            **view,
            "dataset": asked.dataset if asked else None,
            "methods": asked.methods if asked else [],
            "seeds": sorted(asked.seeds) if asked else [],
            "steps": asked.steps if asked else 0,
            "timeline": layout(spans),
            "kinds": list(dict.fromkeys(span["kind"] for span in spans))[:_MOST_KINDS],
            "events": list(reversed(self.events)),
            "behind": self.behind,
            "damaged_lines": {
                name: records.damaged
                for name, records in (
                    (LEDGER_FILE, self._ledger),
                    (METRICS_FILE, self._metrics),
                    (EVENTS_FILE, self._events),
                )
                if records.damaged
            },
            "drawn": self._drawn,
            "classes": self._classes.version,
        }

    def _spans(
        self, phase: str | None, driver: Answer | None, state: str, now: float
    ) -> Iterator[dict[str, Any]]:
        """The finished phases and the one at work, or where the run broke off."""
        last, kinds = 0.0, {}
        chains = self.extent.chains if self.extent else set()
        known = ((phase_of(name), done) for name, done in self.finished.items())
        own = ((one, done) for one, done in known if one and one[:2] in chains)
        for one, done in islice(own, _MOST_SPANS):
            kinds[one[3]] = done.kind
            if done.begun is not None and done.ended is not None:
                last = max(last, done.ended)
                yield _span(one, done.kind, done.begun, max(done.begun, done.ended), "done")
        found = phase_of(phase)
        if found is None or phase in self.finished or state == "finished":
            return
        begun = driver.values.get("perennial_run_start_timestamp_seconds") if driver else None
        begun = moment(begun) or self._heard.get(str(phase), 0.0)
        heard = moment((self.newest or {}).get("time")) or 0.0
        end = now if state in ("running", "stalled") else max(heard, last)
        kind = kinds.get(found[3], found[3])
        yield _span(found, kind, min(max(last, begun) or heard or now, end), end, state)

    def classes(self, seed: int) -> dict[str, Any]:
        """What one seed's models make of each learning step's classes."""
        return self._classes.of(seed, self.extent.methods if self.extent else [])

    def configuration(self) -> dict[str, Any]:
        """The run's configuration as it was written."""
        return {"text": clean(self.extent.text, keep="\n") if self.extent else self.damage}

    def logs(self, process: str | None) -> dict[str, Any]:
        """The newest lines of the logs of one process, or of all."""
        return newest_lines(self._root, self.folder, process)

    def curves(self, seed: int) -> dict[str, Any]:
        """Loss, speed and accuracy of one seed's chains, each a line of at most 500 points."""
        charts: dict[str, dict[str, Any]] = {}
        chains = self.extent.chains if self.extent else set()
        places = {m: n for n, m in enumerate(self.extent.methods)} if self.extent else {}
        curves = sorted(self._curves.items(), key=lambda one: places.get(one[0][1][0], 0))
        for (key, (method, own)), curve in curves:
            if own == seed and (method, own) in chains:
                line = {"method": method, "points": list(curve.points()), "lost": curve.lost}
                charts.setdefault(key, {"key": key, "lines": []})["lines"].append(line)
        measures: dict[str, dict[str, Any]] = {}
        reached = sorted(
            self._reached.items(), key=lambda one: (places.get(one[0][0][0], 0), one[0])
        )
        for ((method, own), step), (_, found) in reached:
            if own != seed or (method, own) not in chains:
                continue
            for metric, (title, value) in found.items():
                chart = measures.setdefault(metric, {"key": metric, "title": title, "lines": {}})
                chart["lines"].setdefault(method, []).append((step, 100 * value))
        accuracy = [
            {**c, "lines": [{"method": m, "points": p} for m, p in c["lines"].items()]}
            for c in measures.values()
        ]
        return {"training": [charts[k] for k in _CURVES if k in charts], "accuracy": accuracy}


def _span(phase: Phase, kind: str, start: float, end: float, state: str) -> dict[str, Any]:
    method, seed, step, label = phase
    where = {"chain": f"{method}, seed {seed}", "step": step, "kind": kind, "label": label}
    return {**where, "start": start, "end": end, "state": state}


def _event(record: dict[str, Any]) -> dict[str, Any]:
    message, kind = text(record.get("message")), text(record.get("event")) or "event"
    if message is None and kind == "attempt":
        message = f"{finite(record.get('attempt')) or 0:.0f} on {text(record.get('host')) or ''}"
        if (counted := Counted.of(record)) is not None:
            message += f": {counted.left} of {counted.phases} phases to do"
    elif message is None:
        rank, phase = finite(record.get("rank")), text(record.get("phase"))
        who = None if rank is None else f"rank {rank:.0f}"
        message = ": ".join(filter(None, [phase, who and f"{who} starts"])) or kind
    return {"time": moment(record.get("time")), "event": kind, "message": message}


def report_of(root: Path, folder: Path) -> bytes:
    """A run's ``report.html``. Raises OSError, also where it is larger than 128 MiB."""
    return read_bytes(folder / REPORT_FILE, _REPORT_BYTES, root)
