"""iCaRL's loss against one number after the other, in float64, on any number of ranks."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from pydantic import ValidationError

from tests.ranks import on_ranks
from tests.trainer.against_dense import (
    BATCH,
    NETWORK,
    OLD,
    ROWS,
    OverAll,
    Summed,
    assert_equal,
    assert_unequal,
    assert_updated_alike,
    dense_updates,
    draws,
    on_rank,
    updated,
)
from tests.trainer.loops import ALL
from trainer.decisions import LargestLogit, NearestMean
from trainer.heads.margin_loss import ClassifierSettings
from trainer.heads.margins import CosFace
from trainer.methods.icarl import ClassifyEach, ICaRL
from trainer.methods.plain import Finetune

LINEAR = ClassifierSettings()
MEMORY = {"per_class": 2}


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def targets_of(label, said):
    """Of one sample: what the old model said of old classes, then which new class it is."""
    return [*said, *(float(label == row) for row in range(len(said), ROWS))]


def yes_or_no(embeddings, labels, rows, said):
    """Alg. 3 of the paper: a yes or no for each sample and row, and their mean."""
    total = 0.0
    for embedding, label, own in zip(embeddings, labels, said, strict=True):
        for row, target in zip(rows, targets_of(int(label), own), strict=True):
            share = sigmoid(row @ embedding)
            total = total - target * share.log() - (1 - target) * (1 - share).log()
    return total / (len(embeddings) * len(rows))


def dense(embeddings, labels, rows, old_embeddings, old_rows):
    return yes_or_no(embeddings, labels, rows, sigmoid(old_embeddings @ old_rows.T))


def first_step(embeddings, labels, rows, *old):
    return yes_or_no(embeddings, labels, rows, [[]] * len(labels))


@dataclass(frozen=True)
class OverRows(ClassifyEach):
    """The sum over rows."""

    def __call__(self, forward):
        numerator, count = super().__call__(forward)
        return numerator * ROWS, count


@dataclass(frozen=True)
class Softmaxed(ClassifyEach):
    """The old model's answers are normalised, over samples (dim 0) or over rows."""

    dim: int = 0

    def __call__(self, forward):
        teacher = forward.teacher
        weight = torch.eye(OLD, dtype=torch.float64)[teacher.rows.own_ids()]
        shares = (teacher.embeddings @ draws()[4].T).softmax(dim=self.dim)
        teacher.rows.weight.data = weight
        said = replace(teacher, embeddings=shares.logit())
        return super().__call__(replace(forward, teacher=said))


@dataclass(frozen=True)
class Certain(ClassifyEach):
    """Exemplars are told their class, in place of what the old model says."""

    def __call__(self, forward):
        return ClassifyEach(over="new")(replace(forward, rows={"new": forward.rows["all"]}))


WRONG = {
    "summed over ranks": Summed(ClassifyEach()),
    "summed over rows": OverRows(),
    "softmax over the batch": Softmaxed(),
    "softmax over rows": Softmaxed(dim=1),
    "exemplars by their labels": Certain(),
}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_loss_and_its_gradients_are_those_of_each_yes_or_no(world, tmp_path):
    given = draws()
    terms = {"right": ClassifyEach(), **WRONG}
    results = on_ranks(world, on_rank, terms, LINEAR, given, folder=tmp_path)
    assert_equal(results, "right", given, dense)
    for name in WRONG:
        if name != "summed over ranks" or world > 1:
            assert_unequal(results, name, given, dense)


def test_a_first_step_has_rows_of_its_own_and_no_teacher():
    recipe = ICaRL(memory=MEMORY).recipe().at(0, 0)
    assert not recipe.wants and recipe.memory is None
    (term,) = recipe.terms
    found = on_rank({"first": Everyone(term)}, LINEAR, draws())
    assert_equal([found], "first", draws(), first_step)
    other = Finetune().recipe().at(0, 0)
    assert recipe.fingerprint() != other.fingerprint()
    # whatever the memory and the decision, they begin alike
    more = ICaRL(memory={"total": 100, "choose": "random"}, predict="largest-logit")
    assert more.recipe().at(0, 0).fingerprint() == recipe.fingerprint()


class Everyone(OverAll):
    """A Term over new rows, where all rows are new."""

    def __call__(self, forward):
        return self.term(replace(forward, rows={"new": forward.rows["all"]}))


def test_old_rows_have_no_gradient_where_the_student_is_the_teacher():
    embeddings, labels, rows, *_ = draws()
    given = embeddings, labels, rows, embeddings, rows[:OLD]
    loss, gradient, by_id = on_rank({"same": ClassifyEach()}, LINEAR, given)["same"]
    for row in range(OLD):
        torch.testing.assert_close(by_id[row], torch.zeros_like(by_id[row]), rtol=0, atol=1e-16)
    # and what is left of the embeddings' comes from new rows alone
    shares = sigmoid(embeddings @ rows[OLD:].T)
    wrong = shares - (labels[:, None] == torch.arange(OLD, ROWS)).double()
    torch.testing.assert_close(gradient, wrong @ rows[OLD:] / (BATCH * ROWS))
    assert loss > 0


def test_large_logits_have_finite_losses_and_gradients():
    embeddings, labels, rows, old, old_rows = draws()
    given = embeddings * 1e4, labels, rows, old * 1e4, old_rows
    loss, gradient, by_id = on_rank({"far": ClassifyEach()}, LINEAR, given)["far"]
    assert math.isfinite(loss)
    assert gradient.isfinite().all() and torch.stack([*by_id.values()]).isfinite().all()


def test_updates_are_those_of_a_plain_loop():
    recipe = ICaRL(memory=MEMORY).recipe().at(1, OLD)
    assert_updated_alike(updated(recipe, LINEAR, NETWORK), dense_updates(dense, NETWORK))


def test_its_settings():
    method = ICaRL(memory=MEMORY)
    assert method.recipe().predict == NearestMean()
    assert ICaRL(memory=MEMORY, predict="largest-logit").recipe().predict == LargestLogit()
    margin = ClassifierSettings(margin=CosFace(), sampled=0.5, precision="bf16")
    assert method.loss(margin, 0) == ClassifierSettings(precision="bf16")
    with pytest.raises(ValidationError, match="memory"):
        ICaRL()
    with pytest.raises(ValidationError, match="over"):
        ICaRL(memory=MEMORY, over="new")
    others = {name: method.recipe().at(1, OLD).fingerprint() for name, method in ALL.items()}
    assert method.recipe().at(1, OLD).fingerprint() not in others.values()


def test_a_weight_of_20_at_rate_one_tenth_is_the_authors_rate_of_2():
    """With momentum and both decays; and the weight is that of the first step, too."""
    method = ICaRL(memory=MEMORY, weight=20.0)
    assert [method.recipe().at(*at).terms[0].weight for at in ((0, 0), (1, OLD))] == [20.0, 20.0]

    def trained(weight: float, rate: float, decay: float) -> torch.Tensor:
        numbers = torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_()
        optimizer = torch.optim.SGD([numbers], rate, momentum=0.9, weight_decay=decay)
        for _ in range(4):
            optimizer.zero_grad()
            (weight * (numbers - 0.5).square().mean() / 50).backward()
            optimizer.step()
        return numbers.detach()

    torch.testing.assert_close(trained(20.0, 0.1, 4e-4), trained(1.0, 2.0, 2e-5))
