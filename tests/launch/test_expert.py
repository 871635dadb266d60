"""A temporary expert through all layers: its classes, its two trainings, its answers, its end."""

import json
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from data_shards.settings import InputError
from launch.analyses.experts import experts
from launch.config.load import load_config
from launch.phases import planning
from launch.phases.expert import ExpertJob, TrainExpert, spec_of
from launch.runs.run import Chain, Run
from monitoring.metrics import Metrics
from tests.alone import execute_alone
from tests.kill_at import killed_at
from tests.launch.classes import write_classes, write_config
from tests.ranks import on_ranks
from trainer.arrays import read_arrays
from trainer.engine import ensure_process_group
from trainer.heads.collectives import Ranks
from trainer.loop import train
from trainer.methods.discriminative import ExpertSettings
from trainer.model import Model
from trainer.stepper import Stepper
from trainer.training_log import TrainingLog

MEMORY, BATCH = {"per_class": 4}, 16
EXPERT = {
    "on_all": {"epochs": 4, "milestones": [2]},
    "balanced": {"epochs": 2, "milestones": [1]},
}
TRAINING = {"iterations": 6, "batch": BATCH, "milestones": [], "checkpoint_every": 2}
KEPT, GONE, BIC = (Chain(name, 0) for name in ("kept", "gone", "bic"))
STAGES = ("expert-on-all", "expert")


LUCIR = {"kind": "lucir", "memory": MEMORY}
METHODS = {
    "kept": {**LUCIR, "expert": {**EXPERT, "keep": True}},
    "gone": {**LUCIR, "fine_tune": {"epochs": 1, "milestones": []}, "expert": EXPERT},
    "bic": {"memory": MEMORY, "hold_out": 0.25, "expert": {**EXPERT, "start": "previous"}},
}


def written(root, *names, **values):
    methods = {name: METHODS[name] for name in names or METHODS}
    return write_config(root, methods, training=TRAINING, **values)


def configured(root, *names, **values):
    return load_config(written(root, *names, **values))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("expert"))


@pytest.fixture(scope="module")
def seen():
    """The samples and labels of each training, by folder, with the names of its losses."""
    return {}


@pytest.fixture(scope="module")
def run(root, seen):
    iterate, begin, spec = Stepper.__call__, TrainingLog.__init__, []

    def begun(self, **given):
        spec.append(given["spec"])
        begin(self, **given)

    def noted(self, batch):
        losses = iterate(self, batch)
        own = seen.setdefault(spec[-1].folder, [])
        own.append((batch.samples.tolist(), batch.labels.tolist(), {*losses}))
        return losses

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Stepper, "__call__", noted)
        patched.setattr(TrainingLog, "__init__", begun)
        execute_alone(configured(root), root / "run")
    return Run.open(root / "run", configured(root))


def ledger(folder):
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    return {line["phase"]: line for line in map(json.loads, lines)}


def classes(run, chain, step):
    return read_arrays(run.step_folder(chain, step) / "similar.safetensors")


def expert_folder(run, chain, step, stage="expert"):
    return run.training_folder(chain, step, stage)


@pytest.mark.parametrize("step", [1, 2])
def test_it_learns_the_new_classes_and_as_many_old_ones(run, step):
    told = classes(run, KEPT, step)
    old, last = run.benchmark.rows_before(step), run.benchmark.row_ends[step]
    assert told["new"].tolist() != [] and {*told["new"]} == {*range(old, last)}
    assert len({*told["old"]}) == last - old and told["old"].max() < old
    assert told["rows"].tolist() == [*sorted(told["old"]), *range(old, last)]
    names = Model.open(expert_folder(run, KEPT, step) / "model").names()
    assert names == run.benchmark.names[told["rows"]].tolist(), "one name for each of its rows"
    assert (np.diff(told["distance"]) >= 0).all(), "of one old class a new one, the nearest first"


def test_it_is_trained_on_everything_and_then_on_as_many_of_each_class(run, seen):
    for step in (1, 2):
        told, (data, benchmark) = classes(run, KEPT, step), run.training_data(KEPT, step)
        everything = [*benchmark.steps[step], *benchmark.exemplars]
        row_of = benchmark.row_of_identity[data.identity]
        own = [s for s in everything if row_of[s] in told["rows"]]
        batches = {stage: seen[expert_folder(run, KEPT, step, stage)] for stage in STAGES}
        for stage, epochs, images in zip(STAGES, (4, 2), (len(own), None), strict=True):
            pairs = {p for own_, of, _ in batches[stage] for p in zip(own_, of, strict=True)}
            assert all(told["rows"][label] == row_of[sample] for sample, label in pairs)
            images = images or MEMORY["per_class"] * len(told["rows"])
            assert len(pairs) == images
            assert len(batches[stage]) == -(-epochs * images // BATCH)
            assert all(names == {"classify", "loss"} for *_, names in batches[stage])
        each = Counter(label for _, label in pairs)
        assert {*each.values()} == {MEMORY["per_class"]} and len(each) == len(told["rows"])
        assert {s for s, _ in pairs} < {*own}


def test_the_main_training_and_the_fine_tuning_hear_it(run, seen):
    for chain in (KEPT, BIC):
        for step in (1, 2):
            trained = seen[run.training_folder(chain, step)]
            assert all("distill_expert" in names for *_, names in trained), chain
    tuned = seen[run.step_folder(GONE, 1)]
    assert all("distill_expert" in names for *_, names in tuned)
    assert not any("distill_expert" in names for *_, names in seen[run.training_folder(KEPT, 0)])


def test_it_never_sees_what_the_host_holds_out(run, seen):
    for step in (1, 2):
        data, benchmark = run.joined_data(BIC, step)
        held = {*run.held_out(BIC, step, data, benchmark)}
        taught = {
            s
            for stage in STAGES
            for samples, *_ in seen[expert_folder(run, BIC, step, stage)]
            for s in samples
        }
        assert held and not held & taught


def test_analysed_it_is_judged_among_its_own_classes(run):
    """By names, one image at a time, decoded by another library."""
    found = experts(run.folder, Console(quiet=True), "kept", against="bic")
    assert [(row["step"], row["network"]) for row in found] == [
        (step, name) for step in (1, 2) for name in ("its expert", "kept", "bic")
    ]
    every = run.benchmark.names.tolist()
    for row in found:
        step = row["step"]
        names = run.benchmark.names[classes(run, KEPT, step)["rows"]].tolist()
        folder = run.step_folder(BIC if row["network"] == "bic" else KEPT, step)
        if row["network"] == "its expert":
            folder = expert_folder(run, KEPT, step)
        model = Model.open(folder / "model")
        embedder, weights = model.embedder(), model.sharded_rows(Ranks()).weight
        places, right = [model.names().index(name) for name in names], {"old": [], "new": []}
        for sample in np.concatenate(run.benchmark.classified[: step + 1]).tolist():
            name = run.dataset.names[run.dataset.identity[sample]]
            if name not in names:
                continue
            image = np.array(Image.open(BytesIO(bytes(run.dataset.image(sample)))))
            with torch.no_grad():
                embedding = embedder(torch.from_numpy(image).permute(2, 0, 1)[None].float())
            logits = (embedding @ model.classifier.directions(weights).T)[0, places]
            age = "old" if every.index(name) < run.benchmark.rows_before(step) else "new"
            right[age].append(names[int(logits.argmax())] == name)
        for age, hits in right.items():
            assert row[age] == pytest.approx(np.mean(hits), abs=0.12)  # decoders differ a little
    with pytest.raises(InputError, match=r"methods\.gone\.expert\.keep=true"):
        experts(run.folder, Console(quiet=True), "gone", None)


def test_it_is_gone_when_its_step_is_done_unless_it_is_to_stay(run):
    left = [*run.folder.rglob("expert*/model"), *run.folder.rglob("expert_answers")]
    assert {path.relative_to(run.folder / "chains").parts[0] for path in left} == {"kept"}
    assert len(left) == 2 * 3
    done = ledger(run.folder)
    same = done["gone/seed-0/step-1/expert"]["same_as"]
    assert same == "kept/seed-0/step-1/expert", "the same expert was trained once"


def test_what_is_done_is_not_done_again_though_it_is_gone(root, run):
    before = (run.folder / "ledger.jsonl").read_text()
    execute_alone(configured(root), run.folder)
    assert (run.folder / "ledger.jsonl").read_text() == before


CHANGED = {
    "on_all": {"epochs": 5, "milestones": [2]},
    "balanced": {"epochs": 2, "milestones": []},
    "start": "previous",
    "similar": 2,
    "keep": True,
}


@pytest.mark.parametrize("key", CHANGED)
def test_what_decides_an_expert(root, key):
    """All that changes it changes what the training that hears it is called; whether it is kept
    does not."""

    def fingerprints(expert):
        path = write_config(root, {"lucir": {**LUCIR, "expert": expert}}, training=TRAINING)
        run = Run.open(root / "unmade", load_config(path))
        first = [p for p in planning.phases(run) if p.at.number == 1]
        return {p.name.split("/")[-1]: p.fingerprint for p in first}

    plain, other = fingerprints(EXPERT), fingerprints({**EXPERT, key: CHANGED[key]})
    names = {"on_all": 0, "start": 0, "balanced": 1, "similar": 0}
    for stage in ("expert-on-all", "expert", "expert-answers", "train")[names.get(key, 4) :]:
        assert plain[stage] != other[stage], stage
    if key == "balanced":
        assert plain["expert-on-all"] == other["expert-on-all"]
    if key == "keep":
        assert plain == other


def test_progress_knows_how_long_both_trainings_are(run, seen):
    found = {phase.name: phase.iterations for phase in planning.phases(run)}
    for chain in (KEPT, BIC):
        for step in (1, 2):
            for stage in STAGES:
                name = f"{chain.name}/step-{step}/{stage}"
                assert found[name] == len(seen[expert_folder(run, chain, step, stage)]), name


def test_asked_along_with_training_it_says_the_same(root, run):
    online = configured(root, "kept", teacher={"mode": "online"})
    execute_alone(online, root / "online")
    assert not [*(root / "online").rglob("expert_answers")]
    other = Run.open(root / "online", online)
    models = [Model.open(r.step_folder(KEPT, 1) / "model") for r in (run, other)]
    weights = [dict(m.embedder().named_parameters()) for m in models]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-5)


def test_from_scratch_it_trains_all_weights_though_its_host_does_not(root, run):
    """Random convolutions that stay would be of no use; those of the previous model may stay."""
    host = {**METHODS["kept"], "weight_transfer": "kernels"}
    config = load_config(write_config(root, {"kept": host}, training=TRAINING))
    for start, trained in (("scratch", "trained"), ("previous", "kernels")):
        job = ExpertJob(
            chain=KEPT,
            step=1,
            phase=STAGES[0],
            how=ExpertSettings(**EXPERT, start=start),
            rows=run.step_folder(KEPT, 1) / "similar.safetensors",
            begins=None,
            origin="",
        )
        assert spec_of(replace(run, config=config), job).embedder.convolutions == trained


def trained(folder, config, out):
    """On each of some ranks: the expert's second training, to its model."""
    torch.set_num_threads(1)
    ensure_process_group()
    run, ranks = Run.open(folder, load_config(config)), Ranks.default()
    job = ExpertJob(
        chain=KEPT,
        step=1,
        phase=TrainExpert.name,
        how=ExpertSettings(**EXPERT),
        rows=run.step_folder(KEPT, 1) / "similar.safetensors",
        begins=expert_folder(run, KEPT, 1, STAGES[0]) / "model",
        origin="",
    )
    spec = replace(spec_of(run, job), folder=out, checkpoints="")
    train(spec, ranks, torch.device("cpu"), Metrics(), report=lambda record: None)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_number_of_ranks_trains_it_alike(root, run, world, tmp_path):
    config = written(root)  # here: a rank would read what another is writing
    on_ranks(world, trained, run.folder, config, tmp_path / "out", folder=tmp_path)
    wanted = Model.open(expert_folder(run, KEPT, 1) / "model")
    found = Model.open(tmp_path / "out/model")
    weights = [dict(m.embedder().named_parameters()) for m in (found, wanted)]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-5)
    rows = [m.sharded_rows(Ranks()).weight for m in (found, wanted)]
    torch.testing.assert_close(*rows, rtol=1e-3, atol=1e-5)


MOMENTS = [
    ("launch.phases.class_means", "write_class_sums", 2, "similar"),
    ("launch.phases.similar", "write_arrays", 1, "similar"),
    ("trainer.loop", "save_state", 2, "phases/expert-on-all$"),
    ("trainer.loop", "save_model", 1, "phases/expert/"),
    ("launch.phases.neighbours", "write_answers", 2, "expert_answers"),
    ("launch.phases.driver", "remove", 1, "expert"),
]


def of_phase(phase, out, given, others):
    """Whether a call is of the folder `phase`, a pattern."""
    folder = getattr(given[0], "folder", None) if given else None
    return bool(re.search(phase, str(folder or [*given, *others.values()])))


def tensors(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".json"}


def test_killed_in_every_new_phase_it_ends_bit_for_bit_alike(root, run):
    path = written(root, "gone")
    for module, name, number, phase in MOMENTS:
        killed_at(path, root / "killed", module, name, number, partial(of_phase, phase))
    before = (root / "killed/ledger.jsonl").read_text().splitlines()
    execute_alone(load_config(path), root / "killed")
    after = (root / "killed/ledger.jsonl").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(ledger(root / "killed")) == len(after), "what was finished was done again"
    for step in (1, 2):
        whole = run.step_folder(GONE, step) / "model"
        assert tensors(root / "killed" / whole.relative_to(run.folder)) == tensors(whole)
    assert not [*(root / "killed/chains").rglob("expert*/model")]
    assert not [*(root / "killed/chains").rglob("phases/expert*/checkpoints/[0-9]*")]
