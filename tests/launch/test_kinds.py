"""Planning asks kinds, whichever there are: order, what is still to do, and what is not missed."""

import json
from pathlib import Path
from typing import Any

import pytest

from launch.config.load import load_config
from launch.phases.kind import Kind, Output
from launch.phases.planning import pending, phases
from launch.phases.registry import KINDS as REGISTERED
from launch.runs.ledger import Ledger
from tests.launch.test_net import ROOT, run_of


class Invented(Kind[str]):
    """A phase for each of `letters` in every step, which reads those of kinds in `reads`."""

    where = "driver"

    def __init__(self, name, letters, reads=(), only_prepares=False):
        self.name, self.letters, self.reads = name, letters, reads
        self.only_prepares = only_prepares

    def label(self, want):
        return f"{self.name}-{want}"

    def wants(self, at):
        return tuple(self.letters)

    def inputs(self, at, want):
        return tuple(p for p in at.phases if p.kind.name in self.reads)

    def decides(self, at, want):
        return [want, at.number, at.chain.name]

    def output(self, at, want):
        return Output(at.folder / f"{self.name}{want}", optional=("beside",))

    def work(self, phase, executor):
        raise NotImplementedError


KINDS: tuple[Kind[Any], ...] = (
    Invented("prepare", "ab", only_prepares=True),
    Invented("read", "c", reads=("prepare",)),
    Invented("judge", "d", reads=("read",)),
)


@pytest.fixture
def run(tmp_path):
    return run_of(load_config(ROOT / "configs" / "demo.yaml", ["seeds=[0]"]), tmp_path)


def finish(run, ledger, *chosen):
    for phase in chosen:
        phase.output.path.parent.mkdir(parents=True, exist_ok=True)
        phase.output.path.touch()
        ledger.add({**phase.facts, "started": 1.0, "finished": 2.0})


def test_every_step_has_the_phases_of_every_kind_in_order(run):
    every = phases(run, KINDS)
    assert len(every) == 4 * 3 * 4  # methods, steps, phases
    assert [p.name.rpartition("/")[2] for p in every[:4]] == [
        "prepare-a",
        "prepare-b",
        "read-c",
        "judge-d",
    ]
    assert len({p.name for p in every}) == len({p.fingerprint for p in every}) == len(every)


def test_a_fingerprint_follows_from_name_version_decisions_and_inputs(run):
    (first, _, reader, *_) = phases(run, KINDS)
    read = [p.fingerprint for p in reader.inputs]
    assert len(read) == 2
    assert reader.kind.identity(reader.at, "c") == ["read", 1, ["c", 0, "finetune/seed-0"], read]
    again = phases(run, (Invented("prepare", "ax", only_prepares=True), *KINDS[1:]))
    assert again[0].fingerprint == first.fingerprint
    assert again[2].fingerprint != reader.fingerprint, "one of its inputs is another"


def test_a_training_is_another_one_when_what_was_prepared_for_it_is(run):
    prints = []
    for version in (1, 2):
        prepare = Invented("prepare", "a", only_prepares=True)
        prepare.version = version
        every = phases(run, (prepare, *REGISTERED))
        prints.append([p.fingerprint for p in every if p.kind.makes_model])
    assert not set(prints[0]) & set(prints[1])


def test_what_only_prepares_is_not_missed_once_its_readers_are_done(run, tmp_path):
    every, ledger = phases(run, KINDS), Ledger(tmp_path / "ledger.jsonl", [])
    first_a, first_b, reader, judge = every[:4]
    assert pending(every, ledger) == every
    finish(run, ledger, reader)
    assert pending(every, ledger)[0] is judge, "what was prepared for it is gone, and not needed"
    finish(run, ledger, first_a, judge)
    assert pending(every, ledger) == every[4:]
    reader.output.path.unlink()
    assert pending(every, ledger)[:2] == [first_b, reader], "it is to be read again"


def test_a_label_that_no_ledger_could_be_read_with_is_found_at_once(run):
    with pytest.raises(AssertionError, match="no label of a phase"):
        [p.name for p in phases(run, (Invented("Shouting", "a"),))]


def test_the_ledger_says_who_did_the_work(run):
    record = json.loads(json.dumps(dict(phases(run, KINDS)[2].facts)))
    assert record["where"] == "driver"
    assert record["output"] == "chains/finetune/seed-0/steps/0/readc"
    assert Path(record["phase"]).name == "read-c"
