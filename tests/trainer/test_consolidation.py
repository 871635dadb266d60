"""EWC and MAS: the penalty's closed form on any rank, and a learning step computed by hand."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from data_shards.orders.order import rank_slice
from data_shards.pipeline import Batch
from data_shards.settings import InputError
from tests.ranks import on_ranks
from tests.trainer.test_penalties import CASES, PAIRS, RATE, updated
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.batch_norm import synchronise_batch_norm
from trainer.checkpoint import DamagedError, save_folder
from trainer.decisions import LargestLogit, LargestOfHeads
from trainer.engine import build_engine, ensure_process_group
from trainer.gradients import Gradients
from trainer.guard import Guard
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows
from trainer.importance import Consolidated, consolidated, importance_sums
from trainer.methods.distillation import LearningWithoutForgetting
from trainer.methods.forward import Forward
from trainer.methods.importance import (
    Consolidate,
    ElasticWeightConsolidation,
    Importance,
    MemoryAwareSynapses,
    consolidated_files,
)
from trainer.methods.plain import Finetune
from trainer.methods.terms import Classify
from trainer.optimizers import TrainingSettings, make_optimizer, reach
from trainer.state import State
from trainer.stepper import Stepper
from trainer.teacher import NoTeacher

CPU = torch.device("cpu")
WEIGHT = 0.25
TERM = Consolidate(WEIGHT, "fisher")


def held(start):
    """Importances on both sides of the limit, of places beside the network's own."""
    torch.manual_seed(0)
    network = dict(
        build_embedder(EmbedderSettings(width=2, dimension=4), seed=start).named_parameters()
    )
    importance = {n: torch.rand_like(p) * 8 for n, p in network.items()}
    return Consolidated(importance, {n: p.detach().clone() for n, p in network.items()})


def every_case(cases):
    away = held(2)
    return {
        case: [
            updated(terms, *case, loaded={Importance: away})
            for terms in ((TERM,), (Classify(),), (Classify(), TERM))
        ]
        for case in cases
    }


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_penalty_has_its_closed_form_on_any_number_of_ranks(world, tmp_path):
    """Any precision, parts and optimiser's sharding. Parameters go at most all the way back."""
    away = held(2)
    cases = CASES if world == 1 else PAIRS
    for found in on_ranks(world, every_case, cases, folder=tmp_path):
        for case, (alone, without, beside) in found.items():
            penalty, cut = 0.0, 0
            for name, goal in away.parameters.items():
                before = alone[0][name].double()
                stiff = away.importance[name].double()
                cut += int((2 * WEIGHT * RATE * stiff > 1).sum())
                stiff = torch.minimum(stiff, torch.tensor(1 / (2 * WEIGHT * RATE)).double())
                penalty += float((stiff * (before - goal) ** 2).sum())
                pulled = before - RATE * WEIGHT * 2 * stiff * (before - goal)
                for got, expected in (
                    (alone[1][name], pulled),
                    (beside[1][name] - without[1][name], pulled - before),
                ):
                    torch.testing.assert_close(
                        got.double(), expected, rtol=1e-4, atol=1e-5, msg=f"{case} {name}"
                    )
            assert cut
            assert float(alone[2]["consolidate"]) == pytest.approx(penalty, rel=1e-5)


def test_nothing_pulls_where_the_step_before_left_the_parameters():
    ensure_process_group()
    before, after, losses = updated((TERM,), "fp32", 1, 0, loaded={Importance: held(1)})
    assert float(losses["consolidate"]) == 0
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_no_importance_makes_training_diverge(optimizer):
    """On top of a loss that has nearly all the curvature that the learning rate can stand."""
    settings = TrainingSettings(
        optimizer=optimizer, learning_rate=0.1, momentum=0.9, weight_decay=0
    )
    start, place = torch.tensor([1.0, 1.0, 1.0]), {"w": torch.zeros(3)}
    loaded = {Importance: Consolidated({"w": torch.tensor([1e-3, 1e3, 1e9])}, place)}

    def farthest(known):
        weights = torch.nn.Parameter(start.clone())
        descent, seen = make_optimizer([weights], settings), []
        for _ in range(400):
            labels = torch.zeros(4, dtype=torch.int64)
            forward = Forward(
                embeddings=torch.zeros(4, 1),
                labels=labels,
                rows={},
                classifier=MarginLoss(ClassifierSettings(), 0, CPU),
                loaded=loaded,
                parameters={"w": weights},
                reach=known,
            )
            numerator, count = TERM(forward)
            edge = 0.95 * 2 * (1 + 0.9) / 0.1 if optimizer == "sgd" else 1.0
            loss = TERM.weight * numerator / count + edge * weights.square().sum() / 2
            descent.zero_grad()
            loss.backward()
            descent.step()
            seen.append(float(weights.detach().abs().max().nan_to_num(math.inf)))
        return max(seen[200:])

    assert farthest(reach(settings, 0.1)) < 0.05
    if optimizer == "sgd":
        assert farthest(0.0) > 1e3, "the formula as it is"


def test_the_stepper_says_how_far_a_gradient_goes():
    seen = []

    @dataclass(frozen=True)
    class Asked:
        name: str = "asked"
        weight: float = 1.0
        over: None = None
        wants: tuple = ()

        def __call__(self, forward):
            seen.append(forward.reach)
            return forward.once(sum(p.sum() for p in forward.parameters.values()))

    ensure_process_group()
    updated((Asked(),), "fp32", 1, 0)
    assert seen == [RATE], "without momentum"
    assert reach(TrainingSettings(momentum=0.75), 0.5) == 2.0
    assert reach(TrainingSettings(optimizer="adam", momentum=0.75), 0.5) == 0.5


def test_what_the_phase_leaves_is_what_the_term_finds(tmp_path):
    ours = held(2)
    save_folder(tmp_path / "i", *consolidated_files(ours, "fisher"), Ranks())
    found = Importance("fisher").load(tmp_path / "i", Ranks(), CPU)
    for own, other in ((ours.importance, found.importance), (ours.parameters, found.parameters)):
        assert own.keys() == other.keys()
        assert all(torch.equal(own[name], other[name]) for name in own)
    with pytest.raises(InputError, match="of another measure than sensitivity"):
        Importance("sensitivity").load(tmp_path / "i", Ranks(), CPU)
    file = tmp_path / "i" / "importances.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(DamagedError, match="importances"):
        Importance("fisher").load(tmp_path / "i", Ranks(), CPU)


def test_the_methods_are_finetune_with_a_penalty_and_a_head_for_each_step():
    for method, weight, measure in (
        (ElasticWeightConsolidation(weight=8.0), 4.0, "empirical-fisher"),
        (ElasticWeightConsolidation(weight=8.0, classes="expected"), 4.0, "fisher"),
        (MemoryAwareSynapses(), 1.0, "sensitivity"),
    ):
        recipe = method.recipe()
        assert recipe.terms == (Classify(over="new"), Consolidate(weight, measure))
        assert recipe.memory is None and recipe.predict == LargestOfHeads()
        first = recipe.at(0, 0)
        assert first == Finetune().recipe().at(0, 0)
        assert first.fingerprint() == Finetune().recipe().at(0, 0).fingerprint()
    assert MemoryAwareSynapses(predict="largest-logit").recipe().predict == LargestLogit()
    kinds = {m().recipe().fingerprint() for m in (ElasticWeightConsolidation, MemoryAwareSynapses)}
    assert len(kinds) == 2


@pytest.mark.parametrize("method", [Finetune, LearningWithoutForgetting])
def test_methods_that_tell_new_classes_apart_may_decide_by_heads_too(method):
    recipe = method(predict="largest-of-heads").recipe()
    assert recipe.predict == LargestOfHeads()
    assert recipe.fingerprint() == method().recipe().fingerprint()
    with pytest.raises(ValueError, match="set over=new, or predict=largest-logit"):
        method(over="all", predict="largest-of-heads")


# --- one learning step, by a loop of its own --------------------------------------------------

OLD, NEW, IMAGES, UPDATES, GENTLE = 4, 3, 6, 4, 0.02


def drawn():
    """Images and labels of the step before, batches of the new one, and all rows."""
    generator = torch.Generator().manual_seed(5)

    def images(count):
        return torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)

    old = images(9), torch.arange(9) % OLD
    batches = [
        (images(IMAGES), torch.randint(OLD, OLD + NEW, (IMAGES,), generator=generator))
        for _ in range(UPDATES)
    ]
    rows = torch.randn(OLD + NEW, 4, generator=generator)
    return old, batches, rows


def trunk():
    """The network that the step before left."""
    return build_embedder(EmbedderSettings(width=2, depth=1, dimension=4), seed=4)


def importance_by_hand(method):
    """Of each parameter, in float64, an image at a time."""
    (images, labels), _, rows = drawn()
    network = trunk().double().eval()
    found = [torch.zeros_like(p) for p in network.parameters()]
    for image, label in zip(images, labels, strict=True):
        logits = rows[:OLD].double() @ network(image[None])[0]
        wanted = logits[label] - logits.exp().sum().log() if method == "ewc" else logits @ logits
        network.zero_grad()
        wanted.backward()
        for total, parameter in zip(found, network.parameters(), strict=True):
            slope = parameter.grad
            total += (slope**2 if method == "ewc" else slope.abs()) / len(images)
    return found


def by_hand(method, weight):
    """Parameters, rows and losses of the step, in float64, by plain gradient descent."""
    _, batches, rows = drawn()
    rows, network, importance = rows.double(), trunk().double(), importance_by_hand(method)
    start = [p.detach().clone() for p in network.parameters()]
    network.train()
    new, losses = rows[OLD:].clone().requires_grad_(), []
    for images, labels in batches:
        logits = network(images) @ new.T
        right = logits[torch.arange(IMAGES), labels - OLD]
        loss = (logits.exp().sum(dim=1).log() - right).mean()
        for parameter, place, stiff in zip(network.parameters(), start, importance, strict=True):
            half = 0.5 if method == "ewc" else 1.0
            loss = loss + half * weight * (stiff * (parameter - place) ** 2).sum()
        network.zero_grad()
        (of_rows,) = torch.autograd.grad(loss, new, retain_graph=True)
        loss.backward()
        with torch.no_grad():
            new -= GENTLE * of_rows
            for parameter in network.parameters():
                parameter -= GENTLE * parameter.grad
        losses.append(float(loss.detach()))
    return [p.detach() for p in network.parameters()], new.detach(), losses


def by_the_product(method, weight, accumulate):
    """The same on this rank: the networks' parameters, this rank's rows, and the losses."""
    ranks = Ranks.default()
    (old_images, old_labels), batches, rows = drawn()
    network = trunk().eval()
    kind = ElasticWeightConsolidation if method == "ewc" else MemoryAwareSynapses
    recipe = kind(weight=weight).recipe().at(1, OLD)
    sums = importance_sums(
        network, lambda e: e @ rows[:OLD].T, recipe.want(Importance).of, [(old_images, old_labels)]
    )
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    loaded, _ = consolidated([(sums, len(old_images))], start, None)
    training = TrainingSettings(
        batch=IMAGES,
        accumulate=accumulate,
        learning_rate=GENTLE,
        warmup=0,
        momentum=0,
        weight_decay=0,
    )
    network.train()
    synchronise_batch_norm(network, ranks)
    gradients, guard = Gradients(network.parameters(), None), Guard(training.guard)
    optimizer = make_optimizer(network.parameters(), training)
    new = ShardedRows.new(OLD, OLD + NEW, 4, 0, ranks)
    new.weight.data.copy_(rows[new.own_ids()])
    state = State(
        engine=build_engine(network, optimizer, IMAGES, ranks),
        classifier=MarginLoss(ClassifierSettings(), 0, CPU),
        blocks={"current": new},
        old=0,
        embedder_optimizer=optimizer,
        row_optimizers={"current": RowOptimizer(new, training)},
        gradients=gradients,
        guard=guard,
    )
    step = Stepper(training, recipe, state, NoTeacher(), ranks, loaded={Importance: loaded})
    own, losses = rank_slice(IMAGES, ranks.rank, ranks.world), []
    for images, labels in batches:
        count = own.stop - own.start
        given = Batch(images[own], labels[own], np.arange(count), np.zeros(count, dtype=bool))
        losses.append(float(step(given)["loss"]))
        assert step.fault is None
    return [p.detach() for p in network.parameters()], (new.own_ids(), new.weight.detach()), losses


def both_methods(weights):
    return {method: by_the_product(method, weight, 1) for method, weight in weights.items()}


@pytest.mark.parametrize("world", [1, 3])
def test_a_learning_step_is_that_of_a_loop_in_float64(world, tmp_path):
    # heavy, but so that no importance is cut
    stiffest = {m: max(float(i.max()) for i in importance_by_hand(m)) for m in ("ewc", "mas")}
    weights = {method: 0.8 / (2 * GENTLE * most) for method, most in stiffest.items()}
    expected = {method: by_hand(method, weight) for method, weight in weights.items()}
    without, _, _ = by_hand("ewc", 0.0)
    for found in on_ranks(world, both_methods, weights, folder=tmp_path):
        for method, (parameters, (ids, own), losses) in found.items():
            network, new, right = expected[method]
            assert losses == pytest.approx(right, rel=1e-4)
            felt = [float((a - b).abs().max()) for a, b in zip(network, without, strict=True)]
            assert max(felt) > 1e-3, "the penalty does something"
            for got, wanted in zip(parameters, network, strict=True):
                torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=2e-5)
            torch.testing.assert_close(own.double(), new[ids - OLD], rtol=1e-3, atol=2e-5)
