"""Exemplars that are learned, in whole runs: within their budget, read by all that reads a memory,
and the same whatever ranks there are and however often they are stopped."""

import base64
import json
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from data_shards.images import ImageSettings
from data_shards.settings import InputError
from data_shards.sheet import contact_sheet
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.writer import write_dataset
from launch.analyses.exemplars import exemplars
from launch.config.load import load_config
from launch.execution.rank import RankContext
from launch.exits import Preempted
from launch.phases.exemplar_groups import Unit, expected_updates, units_of
from launch.phases.exemplars import _first_of_each
from launch.phases.mnemonics import (
    LearnExemplars,
    MnemonicsJob,
    _images,
    _told,
    learn_exemplars,
)
from launch.phases.planning import phases
from launch.planning.plan import plan_run
from launch.planning.split import split_of
from launch.runs.run import Chain, Run
from monitoring.goodput import goodput
from monitoring.metrics import Metrics
from monitoring.run_folder import EXEMPLARS_FILE
from tests.alone import execute_alone
from tests.launch.classes import CLASSES, write_classes, write_config
from tests.ranks import on_ranks
from trainer.activity import Activity
from trainer.arrays import read_arrays
from trainer.heads.collectives import Ranks
from trainer.mnemonics import training
from trainer.mnemonics.optimisation import Optimisation
from trainer.model import Model

HOW = {
    "epochs": 2,
    "inner_steps": 2,
    "inner_rate": 0.02,
    "learning_rate": 0.05,
    "batch": 10,
    "inner_batch": 6,
    "classes": 4,
    "images": 4,
}
LEARNED = {"choose": "mnemonics", "adjust": True, "mnemonics": HOW}
TUNED = {"epochs": 2, "milestones": [1]}
METHODS = {
    "learned": {"kind": "icarl", "memory": {"total": 30, **LEARNED}},
    "adjusted": {
        "kind": "lwf",
        "over": "all",
        "memory": {"per_class": 2, "choose": "herding", "adjust": True, "mnemonics": HOW},
        "fine_tune": TUNED,
        "weight_transfer": "kernels",
    },
    "corrected": {
        "kind": "bic",
        "memory": {"per_class": 2, "choose": "mnemonics", "mnemonics": HOW},
        "hold_out": 0.5,
        "fine_tune": TUNED,
    },
}
SHORT = {"iterations": 4, "batch": 24, "milestones": []}
STEPS = 3


def configured(root, methods=METHODS, **values):
    return load_config(write_config(root, methods, **{"training": SHORT, **values}))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("mnemonics"))


@pytest.fixture(scope="module")
def run(root):
    execute_alone(configured(root), root / "run")
    return Run.open(root / "run", configured(root))


def drawn(run, method, step):
    """The memory as it was chosen."""
    folder = run.step_folder(Chain(method, 0), step) / "phases/drawn"
    return run.exemplars(Chain(method, 0), step).open(folder / "exemplars")


def pixels_of(memory):
    """Every exemplar [n, H, W, 3] by another decoder, in float."""
    images = [Image.open(BytesIO(bytes(memory.image(i)))) for i in range(len(memory))]
    return np.stack([np.asarray(image.convert("RGB")).astype(float) for image in images])


def formats(memory):
    return [Image.open(BytesIO(bytes(memory.image(i)))).format for i in range(len(memory))]


def names(memory):
    return memory.names[memory.identity].tolist()


@pytest.mark.parametrize("step", range(STEPS))
def test_new_exemplars_are_learned_and_old_ones_adjusted(run, step):
    """All images of the memory chosen, in its order and of its keys; never more than the budget."""
    before, after = (
        drawn(run, "learned", step),
        run.exemplars(Chain("learned", 0), step),
    )
    assert names(before) == names(after) and len(after) <= 30
    assert (before.key_hashes == after.key_hashes).all()
    share = 30 // run.benchmark.row_ends[step]
    assert {names(after).count(name) for name in names(after)} == {share}
    assert {*formats(after)} == {"PNG"}
    moved = np.abs(pixels_of(after) - pixels_of(before)).mean(axis=(1, 2, 3))
    assert (moved > 1).all(), "levels of 8 bits, of every exemplar"
    after.verify()


def test_a_memory_that_is_only_adjusted_keeps_new_exemplars_as_they_came(run):
    chain = Chain("adjusted", 0)
    assert {*formats(run.exemplars(chain, 0))} == {"JPEG"}, "there is none to adjust"
    assert not (run.step_folder(chain, 0) / "phases/drawn").exists()
    for step in (1, 2):
        before, after = drawn(run, "adjusted", step), run.exemplars(chain, step)
        old = 2 * run.benchmark.rows_before(step)
        assert formats(after)[:old] == ["PNG"] * old
        assert all(bytes(before.image(i)) == bytes(after.image(i)) for i in range(old, len(after)))


def test_a_step_begins_with_what_was_learned_not_with_what_was_drawn(run):
    every = {phase.name: phase for phase in phases(run)}
    for name, phase in every.items():
        made = [p for p in phase.inputs if p.kind.makes_memory]
        if phase.kind.makes_memory and isinstance(phase.kind, LearnExemplars):
            assert [p.kind.name for p in made] == ["exemplars"]
            continue
        step = int(name.split("/step-")[1].split("/")[0])
        for read in made:
            chain = phase.at.chain
            assert read.output.path == run.step_folder(chain, read.at.number) / "exemplars", name
            optimised = chain.method != "adjusted" or read.at.number
            assert read.kind.name == ("learn-exemplars" if optimised else "exemplars"), name
            assert read.at.number in (step, step - 1)
    reading = {n.rpartition("/")[2] for n, p in every.items() if p.at.memory in p.inputs}
    assert reading == {"exemplar-means", "fine-tune"}
    for step in (1, 2):  # the next memory begins with the first of each class, as they are by then
        before, after = run.exemplars(Chain("learned", 0), step - 1), drawn(run, "learned", step)
        kept = {bytes(before.image(i)) for i in range(len(before))}
        count = (30 // run.benchmark.row_ends[step]) * run.benchmark.rows_before(step)
        assert all(bytes(after.image(i)) in kept for i in range(count))


@pytest.mark.parametrize("method", ["adjusted", "corrected"])
def test_every_host_is_fine_tuned_on_what_it_learned(run, method):
    """Behind that, and before it decides how."""
    for step in (1, 2):
        folder = run.step_folder(Chain(method, 0), step)
        before, after = (Model.open(folder / at) for at in ("phases/trained/model", "model"))
        assert before.fingerprint != after.fingerprint and before.rows == after.rows
    order = [phase.name for phase in phases(run) if f"{method}/seed-0/step-2/" in phase.name]
    behind = ["train", "exemplars", "learn-exemplars", "fine-tune", "evaluate"]
    at = [order.index(f"{method}/seed-0/step-2/{kind}") for kind in behind]
    assert at == sorted(at)
    bias = f"{method}/seed-0/step-2/bias-correction"
    assert (method == "corrected") == (bias in order)
    assert bias not in order or order.index(bias) > at[3]


def test_weights_of_transferred_convolutions_are_step_0s(run):
    chain = Chain("adjusted", 0)
    first, *later = (
        Model.open(run.step_folder(chain, step) / "model").embedder() for step in range(STEPS)
    )
    weights = {
        name: module.weight
        for name, module in first.named_modules()
        if isinstance(module, torch.nn.Conv2d)
    }
    for network in later:
        found = dict(network.named_modules())
        assert all(torch.equal(found[name].weight, own) for name, own in weights.items())
        assert all((found[name].factor != 1).any() for name in weights)


def test_what_decides_learned_exemplars(root, run):
    """Not what only saves memory. Neither what is drawn nor the first training depends on it."""

    def fingerprints(**changed):
        memory = {"total": 30, **LEARNED, "mnemonics": {**HOW, **changed}}
        config = configured(root, {"learned": {**METHODS["learned"], "memory": memory}})
        return {p.name: p.fingerprint for p in phases(Run.open(run.folder, config))}

    usual = {p.name: p.fingerprint for p in phases(run) if p.name.startswith("learned")}
    assert fingerprints(recompute=True) == usual
    other = fingerprints(epochs=3)
    differ = {name.split("/", 2)[2] for name in usual if usual[name] != other[name]}
    assert {"step-0/train", "step-0/exemplars"} & differ == set()
    assert {"step-0/learn-exemplars", "step-1/train", "step-1/exemplars"} <= differ
    done = [json.loads(line) for line in (run.folder / "ledger.jsonl").read_text().splitlines()]
    by_name = {line["phase"]: line for line in done}
    assert not by_name["learned/seed-0/step-0/train"].get("same_as")


def test_pages_and_sheets_show_learned_exemplars(run):
    folder = run.step_folder(Chain("learned", 0), 2)
    told = json.loads((folder / EXEMPLARS_FILE).read_text())
    memory = run.exemplars(Chain("learned", 0), 2)
    assert told["images"] == len(memory) == 24 and told["identities"] == CLASSES
    assert told["bytes"] == sum(len(memory.image(i)) for i in range(len(memory)))
    shown = [base64.b64decode(jpeg) for one in told["shown"] for jpeg in one["jpegs"]]
    before = [base64.b64decode(jpeg) for one in told["shown"] for jpeg in one["before"]]
    assert len(before) == len(shown) and not {*before} & {*shown}
    assert shown and all(Image.open(BytesIO(jpeg)).format == "JPEG" for jpeg in shown)
    assert "data:image" in (run.folder / "report.html").read_text()
    assert contact_sheet(memory, 3, 2, 0).size[0] > 0


def test_its_progress_is_a_trainings(run):
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if r["phase"].endswith("/learn-exemplars")]
    planned = {phase.name: phase.iterations for phase in phases(run)}
    assert {r["phase"] for r in records} == {n for n in planned if n.endswith("/learn-exemplars")}
    for name in {r["phase"] for r in records}:
        own = [r for r in records if r["phase"] == name]
        assert sum(r["iterations"] for r in own) == planned[name], name
        assert [r["iteration"] for r in own] == sorted({r["iteration"] for r in own})
        assert own[-1]["iteration"] == own[-1]["of"] == planned[name]
    account = goodput(run.folder)
    assert account is not None and account.seconds["repeated"] == 0


def test_the_plan_counts_its_updates(root):
    config = configured(root, {name: METHODS[name] for name in ("learned", "adjusted")})
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"image_size": (16, 16)})}
    )
    plan = plan_run(config, split_of(config, None, None), None)
    own = {
        (name, p.step): p.iterations
        for p in plan.phases
        for name in p.methods
        if p.phase == "learn-exemplars"
    }
    # two groups of three classes with four images each, half of a batch of ten an update
    assert own["learned", 0] == 2 * 2 * -(-3 * 4 // 5)
    assert ("adjusted", 0) not in own and own["adjusted", 1] > 0


def job_of(run, part, step=1):
    at = next(p for p in phases(run) if p.name == f"learned/seed-0/step-{step}/learn-exemplars")
    trained, chosen = at.inputs
    units = tuple(units_of(at.at, at.want))
    return MnemonicsJob(
        chain=at.at.chain,
        step=step,
        want=at.want,
        units=units,
        updates=tuple(expected_updates(at.at, at.want, unit) for unit in units),
        model=trained.output.path,
        drawn=chosen.output.path,
        part=part,
        origin="o",
    )


def do(folder, config, job, ranks, activity=None):
    """A rank's part of the job; by one thread, as `tests.ranks` has it."""
    torch.set_num_threads(1)
    context = RankContext(
        run=Run.open(folder, load_config(config)),
        ranks=ranks,
        device=torch.device("cpu"),
        metrics=Metrics(),
        activity=activity or Activity(),
        report=print,
        tell=print,
    )
    learn_exemplars(context, job)


def on_rank(folder, config, job):
    do(folder, config, job, Ranks.default())


def contents(part):
    return {file.name: file.read_bytes() for file in sorted(Path(part).iterdir())}


@pytest.fixture(scope="module")
def alone(root, run, tmp_path_factory):
    """What one rank makes of a step with new and old classes."""
    part = tmp_path_factory.mktemp("part")
    do(run.folder, root / "learned-adjusted-corrected.yaml", job_of(run, part), Ranks())
    return part


def test_no_bit_depends_on_the_number_of_ranks(root, run, alone, tmp_path):
    """Each group has a rank, whichever there are."""
    config = root / "learned-adjusted-corrected.yaml"
    assert len(contents(alone)) == len(job_of(run, alone).units) == 3
    for world in (2, 3):
        part = tmp_path / str(world)
        part.mkdir()
        on_ranks(world, on_rank, run.folder, config, job_of(run, part), folder=tmp_path / "r")
        assert contents(part) == contents(alone)


def test_stopped_and_killed_in_every_update_it_ends_bit_for_bit_alike(
    root, run, alone, tmp_path, monkeypatch
):
    """By a stop after each second update, which keeps what was done, and by an end without notice
    in each third, which does not."""
    update, activity, seen, config = (
        Optimisation.update,
        Activity(),
        [],
        root / "learned-adjusted-corrected.yaml",
    )

    def interrupted(self):
        seen.append(self.done)
        if len(seen) % 3 == 0:
            raise KeyboardInterrupt
        loss = update(self)
        if len(seen) % 2:
            activity.stop.set()
        return loss

    monkeypatch.setattr(Optimisation, "update", interrupted)
    job, ends = job_of(run, tmp_path), 0
    while len([*tmp_path.glob("*.safetensors")]) < len(job.units):
        activity.stop.clear()
        ends += 1
        try:
            do(run.folder, config, job, Ranks(), activity)
        except KeyboardInterrupt:
            continue
    assert ends > 6 and max(seen) > 2
    assert contents(tmp_path) == contents(alone)


def test_a_class_with_one_exemplar_has_no_halves_and_keeps_it(root, run, tmp_path):
    """As where a total is shared by many classes: it stays byte for byte."""
    one = list(_first_of_each(drawn(run, "adjusted", 1), 1))
    write_dataset(one, tmp_path / "memory", {}, image=ImageSettings(png=True))
    usual = job_of(run, tmp_path / "part")
    units = (Unit(0, 6, True),)
    job = replace(usual, drawn=tmp_path / "memory", units=units, updates=(0,))
    do(run.folder, root / "learned-adjusted-corrected.yaml", job, Ranks())
    found = [read_arrays(tmp_path / "part/adjusted-00000-00006.safetensors", "o")]
    after = list(_images(ShardDataset.open(tmp_path / "memory"), found))
    assert [image.image for image in after] == [image.image for image in one]
    assert _told(found) == "too few images of each class to learn any"


def test_unfinished_work_is_kept_for_a_process_that_is_killed(
    root, run, alone, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "_SAVED_EVERY", 0.0)
    update, seen = Optimisation.update, []

    def dying(self):
        seen.append(self.done)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return update(self)

    monkeypatch.setattr(Optimisation, "update", dying)
    job = job_of(run, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        do(run.folder, root / "learned-adjusted-corrected.yaml", job, Ranks())
    do(run.folder, root / "learned-adjusted-corrected.yaml", job, Ranks())
    assert seen[:4] == [0, 1, 2, 2], "it went on behind the second update"
    assert contents(tmp_path) == contents(alone)


def test_groups_are_even_and_learn_their_own_classes(run, alone):
    job = job_of(run, alone)
    assert job.units == (Unit(6, 9, False), Unit(0, 3, True), Unit(3, 6, True))
    memory = drawn(run, "learned", 1)
    for unit in job.units:
        found = read_arrays(alone / f"{unit.name}.safetensors", "o")
        rows = [run.benchmark.names.tolist().index(n) for n in names(memory)]
        own = [i for i, row in enumerate(rows) if unit.first <= row < unit.last]
        assert found["samples"].tolist() == own
        assert found["pixels"].shape == (len(own), 3, 16, 16)
        assert abs(found["rounded"][0] - found["learned"][0]) < 0.05


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        ({"per_class": 2, "mnemonics": {}}, "set choose=mnemonics or adjust=true"),
        ({"per_class": 1, "adjust": True}, "per_class = 1 has none"),
        ({"per_class": 2, "choose": "mnemonics", "mnemonics": {"epochs": 0}}, "epochs"),
    ],
)
def test_nonsense_is_refused(root, memory, words):
    with pytest.raises(Exception, match=words):
        configured(root, {"m": {"kind": "finetune", "over": "all", "memory": memory}})


def test_a_phase_whose_ranks_were_stopped_says_so(run, tmp_path):
    phase = next(p for p in phases(run) if p.name == "learned/seed-0/step-0/learn-exemplars")
    elsewhere = replace(phase, at=replace(phase.at, run=replace(run, folder=tmp_path)))

    class Stopped:
        def on_ranks(self, *given):
            """Nothing comes of it."""

    with pytest.raises(Preempted):
        phase.kind.work(elsewhere, Stopped())
    assert not elsewhere.output.path.exists()


def test_what_exemplars_alone_are_worth(run):
    """By the step's own model, which is the evaluation's, and by networks that learn from them."""
    rows = exemplars(run.folder, Console(quiet=True), "adjusted")
    sets = [(step, which) for step in range(STEPS) for which in ("chosen", "kept")]
    assert [(row["step"], row["which"]) for row in rows] == sets[1:], "none to adjust at first"
    for row in rows:
        assert row["images"] == 2 * run.benchmark.row_ends[row["step"]]
        folder = run.step_folder(Chain("adjusted", 0), row["step"])
        evaluation = json.loads((folder / "evaluation.json").read_text())
        assert row["model"] == pytest.approx(evaluation["class_accuracy"], abs=1e-6)
        assert -1 <= row["likeness"] <= 1 and row["loss"] > 0
        assert row["new"] > 3 / run.benchmark.row_ends[row["step"]], "thrice what a guess has"
    with pytest.raises(InputError, match="only of: learned, adjusted, corrected"):
        exemplars(run.folder, Console(quiet=True), "nobody")


def test_the_report_draws_main_trainings_alone(run):
    """One after the other: a step's other trainings would go over the same part of the axis."""
    page = (run.folder / "report.html").read_text()
    charts = re.findall(r'<svg[^>]*aria-label="Images/s">.*?</svg>', page, re.DOTALL)
    lines = re.findall(r'<polyline[^>]*points="([^"]*)"', "".join(charts))
    assert len(lines) == len(METHODS)
    for line in lines:
        places = [float(point.split(",")[0]) for point in line.split()]
        assert places == sorted({*places}) and len(places) >= 2
