"""What people see of a run while it goes on, drawn by the real code with a clock of the test's."""

import io
import re

import pytest
from rich.console import Console

from monitoring.progress import RunProgress
from monitoring.run_metrics import RunMetrics

PHASE = "a-method-with-a-long-name/seed-0/step-1/neighbours"


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Shown:
    """A progress on a console of `width` columns, a terminal or not."""

    def __init__(self, folder, width=80, terminal=True, done=4, iterations=(400, 1000)):
        self.clock, self.file = Clock(), io.StringIO()
        self.console = Console(file=self.file, width=width, force_terminal=terminal)
        self.metrics = RunMetrics(folder, 9, done)
        self.progress = RunProgress(
            self.console,
            self.metrics,
            phases=(done, 9),
            iterations=iterations,
            clock=self.clock,
        )

    def lines(self):
        with self.console.capture() as shown:
            self.console.print(self.progress.drawn())
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.get()).splitlines()[:3]

    def train(self, iteration, of=200):
        rates = {"loss": 1.5, "images_per_second": 812.0, "data_wait_share": 0.01}
        self.progress.training({"iteration": iteration, "of": of, **rates})


@pytest.mark.parametrize("width", [80, 60, 200])
def test_shares_and_times_stay_however_narrow(width, tmp_path):
    shown = Shown(tmp_path, width)
    shown.progress.begin(PHASE)
    shown.train(100)
    shown.clock.now = 20.0
    shown.train(150)
    phase, run, doing = shown.lines()
    assert all(len(line) <= width for line in (phase, run, doing))
    assert "75%" in phase and "20 s left" in phase  # 50 in 20 s, and 50 to do
    assert "55%" in run and " left" in run  # 400 + 150 of 1000
    assert phase.startswith("5/9 ")
    assert doing.strip().startswith("iteration 150/200, 812 images/s")
    value = shown.metrics.registry.get_sample_value
    assert value("perennial_remaining_seconds", {"of": "phase"}) == 20.0
    # iterations of both are counted from the driver's start: 150 in 20 s, and 450 to do
    assert value("perennial_remaining_seconds", {"of": "run"}) == 60.0
    shown.progress.begin(PHASE)
    assert value("perennial_remaining_seconds", {"of": "phase"}) is None


def test_what_an_earlier_attempt_did_has_no_rate(tmp_path):
    shown = Shown(tmp_path)
    shown.progress.begin(PHASE)
    shown.clock.now = 1.0
    shown.train(190)
    assert "left" not in shown.lines()[0]


def test_cpu_phases_tell_images_a_second_and_what_is_left(tmp_path):
    shown = Shown(tmp_path)
    shown.progress.begin(PHASE)
    shown.progress.doing("waiting for CPU actors")
    assert "waiting for CPU actors" in shown.lines()[2]
    shown.clock.now = 10.0
    shown.progress.units(1, 4, (500, 2000))
    shown.progress.doing("waiting for CPU actors")  # nobody waits any more
    phase, _, doing = shown.lines()
    assert "25%" in phase and "30 s left" in phase
    assert doing.strip() == "500/2,000 images, 50 images/s"
    shown.progress.units(1, 2, (10, 20))  # a second round of units, of a test set
    shown.clock.now = 12.0
    shown.progress.units(2, 2, (20, 20))
    assert "100%" in shown.lines()[0]
    shown.progress.units(1, 3)  # a round that is not of images
    assert shown.lines()[2].strip() == "1/3 units"
    shown.progress.end()
    assert shown.file.getvalue().strip().endswith("20/20 images, 10 images/s")


def test_resumed_runs_keep_their_numbers_and_forget_the_last_loss(tmp_path):
    shown = Shown(tmp_path, terminal=False)
    shown.progress.begin("fkd/seed-0/step-0/train")
    shown.train(200)
    shown.progress.end()
    shown.progress.begin("fkd/seed-0/step-0/evaluate")
    phase, _, doing = shown.lines()
    assert phase.startswith("6/9 fkd/seed-0/step-0/evaluate")
    assert doing.strip() == "starting"
    shown.progress.end("top-1 40.0%")
    told = shown.file.getvalue().splitlines()
    assert told[0].startswith("✓ 5/9 fkd/seed-0/step-0/train 0.0 s  812 images/s, loss 1.500")
    assert told[1] == "✓ 6/9 fkd/seed-0/step-0/evaluate 0.0 s  top-1 40.0%"


def test_without_a_terminal_no_silence_is_longer_than_half_a_minute(tmp_path):
    shown = Shown(tmp_path, terminal=False)
    shown.progress.begin(PHASE)
    shown.progress.ranks(1, 0, 0, "starting training processes")
    last, silences = 0.0, []
    for second in range(1, 200):
        shown.clock.now = float(second)
        before = len(shown.file.getvalue())
        if second == 100:
            shown.train(100)
        if second == 130:
            shown.train(160)
        shown.progress.tick()
        if len(shown.file.getvalue()) > before:
            silences.append(second - last)
            last = second
    assert max(silences) <= 30
    told = shown.file.getvalue().splitlines()
    assert told[0] == f"5/9 {PHASE}, starting training processes, run 40%"
    assert told[-1].startswith(f"5/9 {PHASE}, iteration 160/200, 812 images/s")
    assert told[-1].endswith("s left, run 56%")


def test_a_terminal_gets_no_plain_lines(tmp_path):
    shown = Shown(tmp_path)
    shown.progress.begin(PHASE)
    shown.clock.now = 100.0
    shown.progress.tick()
    assert shown.file.getvalue() == ""
