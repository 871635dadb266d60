"""What phases take beside trainings: planned as it is done, image for image."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from launch.config.load import load_config
from launch.phases.registry import KINDS
from launch.planning.efforts import Actor, actor_like, plan_phases
from launch.planning.hardware import MACHINES
from launch.planning.plan import plan_run
from launch.planning.split import split_of
from tests.alone import execute_alone
from tests.launch.classes import CLASSES, TRAINED, write_classes, write_config
from tests.launch.test_plan import written
from trainer.backbones import Embedder
from trainer.replay.wgan_updates import WganUpdates

KEPT = {"memory": {"per_class": 3}}
GENERATOR = {"epochs": 2, "batch": 8, "width": 8, "least_variance": 0}
EXPERT = {"on_all": {"epochs": 2, "milestones": []}, "balanced": {"epochs": 1, "milestones": []}}
METHODS = {
    "icarl": {**KEPT, "predict": "nearest-mean"},
    "lucir": {"memory": {"total": 30, "choose": "random"}},
    "bic": {**KEPT, "hold_out": 0.4},
    "ewc": {"classes": "expected"},
    "gfr": {"drift": "compensated"},
    "wgan": {"kind": "gfr", "generator": "wgan", "wgan": GENERATOR},
    "bct-sys": {},
    "lwf": {**KEPT, "over": "all", "expert": EXPERT},
}
ITERATIONS, BATCH = 2, 12
TESTED = 2
"""Of each class: in all, as many images as no other phase runs a network on."""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = write_classes(tmp_path_factory.mktemp("efforts"), tasks=1, tested=TESTED)
    path = write_config(
        root,
        METHODS,
        benchmark={"file": str(root / "b.json"), "steps": 2},
        training={"iterations": ITERATIONS, "batch": BATCH},
        teacher={"batch": 1},  # so that no image is repeated to fill a batch
        data={"augmentation": {"flip": True}, "image_size": [16, 16]},
    )
    return load_config(path)


@pytest.fixture(scope="module")
def plan(config):
    return plan_run(config, split_of(config, None, None), None)


def counted(config, folder, monkeypatch):
    """Of each phase of a run, by its name: what went through networks in it."""
    forward, backward, trained, updates = Counter(), Counter(), Counter(), Counter()
    phase = [""]
    pass_on, grad, step = Embedder.forward, torch.autograd.grad, WganUpdates.step

    def counting_forward(self, images):
        (trained if self.training else forward)[phase[0]] += len(images)
        return pass_on(self, images)

    def counting_grad(*given, **others):
        backward[phase[0]] += 1
        return grad(*given, **others)

    def counting_step(self, stop=False):
        updates[phase[0]] += 1
        return step(self, stop)

    monkeypatch.setattr(Embedder, "forward", counting_forward)
    monkeypatch.setattr(torch.autograd, "grad", counting_grad)
    monkeypatch.setattr(WganUpdates, "step", counting_step)
    for kind in {type(kind) for kind in KINDS}:
        monkeypatch.setattr(kind, "work", named(kind.work, phase))
    execute_alone(config, folder)
    del forward[""]  # before any phase the network is tried, on an image or two of its size
    return forward, backward, trained, updates


def named(work, names):
    """`work` of a kind of phase, which says first whose it is."""

    def worked(self, phase, executor):
        names[0] = phase.name
        return work(self, phase, executor)

    return worked


def test_each_phase_takes_what_was_planned(config, plan, tmp_path, monkeypatch):
    forward, backward, trained, updates = counted(config, tmp_path / "run", monkeypatch)
    planned = {f"{p.methods[0]}/seed-0/step-{p.step}/{p.phase}": p for p in plan.phases}
    assert {name: p.forward for name, p in planned.items() if p.forward} == forward
    iterations = {n: p.iterations for n, p in planned.items() if p.iterations}
    assert {n: count for n, count in iterations.items() if n in updates} == updates
    experts = {n: count * BATCH for n, count in iterations.items() if n not in updates}
    assert experts == {n: trained[n] for n in trained if "/expert" in n} and len(experts) == 2
    generators = {*updates}
    found = {name: number for name, number in backward.items() if name not in generators}
    assert {name: p.backward for name, p in planned.items() if p.backward} == found
    for step in plan.steps:
        methods = step.methods[: None if step.step else 1]
        of = [n for n in trained if n.split("/")[0] in methods and f"/step-{step.step}/train" in n]
        assert len(of) == len(methods)
        assert all(trained[name] == step.iterations * BATCH for name in of)
    kinds = {p.phase for p in plan.phases}
    assert len(kinds) == 14, "every kind that runs a network is in this run"


def by_name(phases):
    return {(p.methods[0], p.step, p.phase): p for p in phases}


def test_step_0_is_planned_once_for_all_methods(plan):
    first = [p for p in plan.phases if p.step == 0]
    judged = [p.methods for p in first if p.forward == plan.tested]
    assert [*METHODS] == [name for methods in judged for name in methods]
    shared = max(judged, key=len)
    assert len(shared) > 1 and "icarl" not in shared, "which decides in another way"


def test_numbers_alone_give_the_same_but_for_test_images(config, plan):
    elsewhere = config.model_copy(update={"dataset": "/nowhere"})
    images = CLASSES * TRAINED
    found = plan_run(elsewhere, split_of(elsewhere, CLASSES, images), None)
    known = by_name(plan.phases)
    ours = by_name(found.phases)
    assert ours == {name: p for name, p in known.items() if p.forward != plan.tested}
    assert plan.tested == CLASSES * TESTED and found.tested is None
    text = "evaluation is not counted"
    assert text in written(replace(found, machine=MACHINES["h100"]))
    assert text not in written(replace(plan, machine=MACHINES["h100"]))


def test_times_are_those_of_passes_shared_by_actors(config, plan):
    split, slow = split_of(config, None, None), replace(MACHINES["h100"], kernel=1.0)
    untimed = by_name(plan.phases)
    assert all(p.seconds is None for p in untimed.values())
    stated = by_name(plan_phases(config, split, None, Actor(4, rate=10.0)))
    for name, phase in untimed.items():
        if not phase.iterations:
            expected = (phase.forward + 2 * phase.backward) / 10 / 4
            assert stated[name].seconds == pytest.approx(expected)
    one, two = (by_name(plan_phases(config, split, slow, Actor(n, slow))) for n in (1, 2))
    for name, phase in one.items():
        shared = phase.seconds - two[name].seconds
        assert shared > 0 if phase.forward else shared == 0  # ranks do the rest
        if not phase.iterations:
            assert two[name].seconds == pytest.approx(phase.seconds / 2)
    # a second an operation: a backward pass takes longer than a forward pass
    a, b = one["ewc", 1, "importance"], one["icarl", 1, "exemplars"]
    assert a.forward == b.forward and a.seconds > b.seconds * (1 + a.backward / a.forward)


def test_a_gpus_machine_says_nothing_of_cpu_actors(config):
    split, cluster = split_of(config, None, None), config.cluster
    gpu = MACHINES["h100"]
    told = written(plan_run(config, split, gpu, actor_like(gpu, cluster, None)))
    assert "--actor-rate" in told and "exemplar-means" in told
    told = written(plan_run(config, split, gpu, actor_like(gpu, cluster, 50.0)))
    assert "--actor-rate" not in told and "other phases of all methods and seeds: at least" in told
