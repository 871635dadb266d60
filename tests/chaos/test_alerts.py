"""Faults in real runs fire the alerts that are made for them, which resolve when they are mended.

The rules are ours in a time that passes `FACTOR` times as fast; nothing in the runs does.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from data_shards.sources import SourceImage
from data_shards.writing.writer import write_dataset
from launch.config.load import load_config
from launch.config.run import RunConfig
from launch.runs.run import Run
from monitoring.records import read_jsonl
from tests.chaos.test_processes import worker
from tests.conftest import source
from tests.data_shards.servers import serving
from tests.integration.test_resume import kill_everything
from tests.monitoring.prometheus import (
    SCRAPE_SECONDS,
    Prometheus,
    hastened,
    needs_prometheus,
    wait_for,
)

pytestmark = needs_prometheus
FACTOR = 120.0
CONFIG = {
    "benchmark": {
        "steps": 1,
        "train_identities": 36,
        "test_identities": 24,
        "pairs": 40,
        "seen_identities": 6,
    },
    "methods": {"finetune": {}},
}
ENDLESS = 1_000_000


class Watched:
    """A run that a Prometheus of its own scrapes."""

    def __init__(
        self, folder: Path, said: Path, prometheus: Prometheus, *command: str | Path
    ) -> None:
        """`said` is where its output goes."""
        self.folder, self.prometheus = folder, prometheus
        self._said, self._command = said, command
        self.start()

    def start(self) -> None:
        """Gives the command, again perhaps."""
        with self._said.open("a") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *map(str, self._command), "--out", str(self.folder)],
                stdout=said,
                stderr=said,
            )

    def wait(self, query: str) -> None:
        """Polls until a query finds something."""
        wait_for(lambda: self.lives() and self.prometheus.query(query), query, 180)

    def fires(self, alert: str) -> bool:
        return self.prometheus.firing(alert, self.folder.name)

    def lives(self) -> bool:
        """True; fails with what it said where the run has ended."""
        assert self.process.poll() is None, self._said.read_text()
        return True


@contextmanager
def watched(folder: Path, out: Path, config: dict, *module: str | Path) -> Iterator[Watched]:
    """A run of `config` in `out`, everything else in `folder`; at the end it is killed."""
    file, said = folder / "config.yaml", folder / "said"
    file.write_text(yaml.safe_dump({**CONFIG, **config}))
    (out / "targets").mkdir(parents=True)
    how = SCRAPE_SECONDS / FACTOR, partial(hastened, factor=FACTOR)
    with Prometheus(folder / "prometheus", [out], *how) as prometheus:
        run = Watched(out, said, prometheus, *module, "run", file)
        try:
            yield run
        finally:
            if run.process.poll() is None:
                kill_everything(run.process)


@pytest.fixture
def drill(record_alert):
    """``with drill(run, fault, mended, *alerts)``: quiet before, fired within, resolved after.

    What it gives is called within, with those of `alerts` that are to fire by now, or all.
    """

    @contextmanager
    def drilled(run: Watched, fault: str, mended: str, *alerts: str):
        fired = set()

        def expect(wanted: bool, some: tuple[str, ...]) -> None:
            for alert in some:
                what = f"{alert} does not {'fire' if wanted else 'resolve'}"
                wait_for(lambda alert=alert: run.fires(alert) == wanted, what, 120)

        def fire(*some: str) -> None:
            expect(True, some or alerts)
            fired.update(some or alerts)

        expect(False, alerts)
        yield fire
        assert fired == set(alerts)
        expect(False, alerts)
        for alert in alerts:
            record_alert(alert, fault, mended)

    return drilled


@contextmanager
def slowed(process: psutil.Process) -> Iterator[None]:
    """A process that gets a quarter of its time."""
    over = threading.Event()

    def stop_and_go() -> None:
        while not over.is_set():
            process.suspend()
            time.sleep(0.06)
            process.resume()
            time.sleep(0.02)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def disk(tmp_path):
    """A small file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(file: Path) -> None:
    """Writes more until there is no room; others write and delete meanwhile."""
    with suppress(OSError), file.open("ab", buffering=0) as out:
        while out.write(bytes(1 << 16)):
            pass


def test_a_full_disk_a_slow_rank_and_a_frozen_one(small_folder, tmp_path, disk, drill, monkeypatch):
    # endless work, of which alerts see shares: what others need is theirs
    monkeypatch.setenv("RAY_worker_niceness", "5")
    config = {
        "dataset": str(small_folder),
        "embedder": {"width": 16, "dimension": 256},
        "training": {
            "iterations": ENDLESS,
            "batch": 24,
            "checkpoint_minutes": 0.02,
            "keep_checkpoints": 1,
            "log_every": 5,
        },
        "cluster": {"workers": 2, "actors": 1, "threads": 1},
    }
    full = ("PerennialDiskNearlyFull", "PerennialCheckpointFailing")
    with watched(tmp_path, disk / "run", config, "launch.cli") as run:
        run.wait('perennial_iterations_total{rank="1"} > 0')
        run.wait("perennial_checkpoint_timestamp_seconds > 0")
        fault = "a file fills the run folder's disk"
        mended = "the file was deleted"
        with drill(run, fault, mended, *full, "PerennialCheckpointTooOld") as fire:
            filler = disk / "filler"
            wait_for(lambda: fill(filler) or run.fires(full[0]), "the disk does not fill up")
            fire(*full)
            fault, mended = "a rank gets a quarter of its time", "it got all of it"
            with (
                drill(run, fault, mended, "PerennialStraggler") as slow,
                slowed(worker(run.folder, 1)),
            ):
                slow()
            frozen = "PerennialRankMissing", "PerennialRunStalled"
            fault, mended = "a rank is frozen (SIGSTOP)", "it went on (SIGCONT)"
            with drill(run, fault, mended, *frozen) as missed:
                worker(run.folder, 1).suspend()
                missed()
                worker(run.folder, 1).resume()
            fire("PerennialCheckpointTooOld")
            filler.unlink()
        done = [record["iteration"] for record in read_jsonl(run.folder / "metrics.jsonl")]
        assert done == [*range(5, done[-1] + 1, 5)], "what the full disk refused was lost"


class Copies:
    """The cached copy of the shard with most training samples."""

    def __init__(self, config: Path, cache: Path, dataset: Path) -> None:
        run = Run.open(cache.with_name("unused"), load_config(config, [f"dataset={dataset}"]))
        data, (trained,) = run.dataset, run.benchmark.steps
        shard = np.bincount(data.shard[trained]).argmax()
        name = data.manifest["shards"][shard]
        self._path = cache / "shards" / data.manifest["files"][name]["sha256"]
        self._middles = (data.offset + data.size // 2)[trained[data.shard[trained] == shard]]

    def damage(self, samples: int) -> None:
        """Overwrites a byte of each of so many samples where the copy is there just now."""
        with suppress(FileNotFoundError), self._path.open("r+b") as file:
            for middle in self._middles[:samples].tolist():
                file.seek(middle)
                file.write(b"\0\0")

    def delete(self) -> None:
        self._path.unlink(missing_ok=True)


def test_bad_numbers_bad_samples_and_a_slow_store(small_folder, tmp_path, drill):
    faults, cache = tmp_path / "faults", tmp_path / "cache"
    faults.mkdir()
    room = 4 * max(file.stat().st_size for file in small_folder.glob("*.tar"))
    with serving(small_folder) as server:
        config = {
            "dataset": server.url,
            "data": {
                "order": {"kind": "blocks", "window": 1},
                "cache": {"folder": str(cache), "bytes": room},
                "max_quarantined": 20,
            },
            "embedder": {"width": 16, "dimension": 64},
            "training": {
                "iterations": ENDLESS,
                "batch": 72,
                "checkpoint_every": 20,
                "log_every": 5,
            },
            "cluster": {"workers": 0, "actors": 1},
        }
        with watched(tmp_path, tmp_path / "run", config, "tests.chaos.faulty", faults) as run:
            run.wait("perennial_iterations_total > 100 and perennial_loss < 0.2")
            fault = "the images of a batch come with the labels of others"
            mended = "nothing more happened for the rule's 10 minutes"
            with drill(run, fault, mended, "PerennialLossSpike") as fire:
                (faults / "labels").touch()
                fire()
            fault = "a weight becomes NaN, as memory errors do"
            mended = (
                "the phase had gone back to its checkpoint, and the rule's {} minutes were over"
            )
            with (
                drill(run, fault, mended.format(30), "PerennialRewound") as went_back,
                drill(run, fault, mended.format(10), "PerennialNonFinite") as fire,
            ):
                (faults / "weight").touch()
                fire()
                went_back()
            fault = "the shards' server takes a second for each file, and the cache is small"
            with drill(run, fault, "the server was fast again", "PerennialInputStarvation") as fire:
                server.seconds = 1.0
                fire()
                server.seconds = 0.0
            copies = Copies(tmp_path / "config.yaml", cache, small_folder)

            def used() -> bool:
                copies.damage(15)
                return run.lives() and run.fires("PerennialQuarantineBudget")

            fault = "bytes of 15 samples of a cached shard are overwritten; the budget is 20"
            mended = "the shard was deleted from the cache and the run started again"
            with drill(run, fault, mended, "PerennialQuarantineBudget") as fire:
                wait_for(used, "damage is not seen")
                fire()
                fault, mended = "the driver is killed (SIGKILL)", "the same command was given again"
                with drill(run, fault, mended, "PerennialDriverLost") as lost:
                    kill_everything(run.process)
                    copies.delete()
                    lost()
                    run.start()
                run.wait("perennial_quarantine_budget_samples > 0")


def mislabelled(images: list[SourceImage], identities: list[str]) -> list[SourceImage]:
    """The same images, but those of `identities` given to one another, each camera's otherwise."""
    of = {(image.identity, image.camera): image for image in images}
    cameras = sorted({image.camera for image in images})

    def other(image: SourceImage) -> SourceImage:
        if image.identity not in identities:
            return image
        far = len(identities) // len(cameras) * cameras.index(image.camera)
        place = (identities.index(image.identity) + far) % len(identities)
        return image._replace(image=of[identities[place], image.camera].image)

    return [other(image) for image in images]


def test_a_month_of_mislabelled_images(tmp_path, drill):
    """In the second of three learning steps; the third is the run's last, and its driver ends."""
    images = source(120, 4)
    write_dataset(images, tmp_path / "clean", {})
    config = {
        "dataset": str(tmp_path / "clean"),
        "benchmark": {
            **CONFIG["benchmark"],
            "steps": 3,
            "train_identities": 60,
            "test_identities": 60,
        },
        "embedder": {"width": 4, "dimension": 16},
        "training": {"iterations": 100, "batch": 24, "learning_rate": 0.02},
        "evaluation": {"compatibility": {"at": ["top1"], "resamples": 100}},
        "cluster": {"workers": 0, "actors": 1},
    }
    run = Run.open(tmp_path / "unused", RunConfig.model_validate({**CONFIG, **config}))
    second = np.unique(run.dataset.identity[run.benchmark.steps[1]])
    wrong = mislabelled(images, run.dataset.names[second].tolist())
    write_dataset(wrong, tmp_path / "mislabelled", {})
    config["dataset"] = str(tmp_path / "mislabelled")
    with watched(tmp_path, tmp_path / "run", config, "launch.cli") as run:
        run.wait('perennial_accuracy_ratio{measure="top1",step="0"} > 0.9')
        worse, other = "PerennialAccuracyRegression", "PerennialIncompatible"
        fault = "the images of a learning step have each other's labels"
        better = "the next step's images had their own"
        mended = "half an hour had passed since the run's end (its method, finetune, keeps none)"
        with drill(run, fault, mended, other) as incompatible:
            with drill(run, fault, better, worse) as fire:
                fire()
                incompatible()
            assert run.process.wait(timeout=120) == 0
            seen = (
                "last_over_time(perennial_phases_done[1m]) == last_over_time(perennial_phases[1m])"
            )
            assert run.prometheus.query(seen), "how the run ended was not seen"
