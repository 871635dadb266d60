"""BiC: both losses against dense float64 ones, and the two numbers against what is known."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data_shards.settings import InputError
from data_shards.splits.holding_out import held_each, held_out
from tests.ranks import on_ranks
from tests.trainer.against_dense import (
    NETWORK,
    OLD,
    ROWS,
    assert_equal,
    assert_unequal,
    assert_updated_alike,
    dense_updates,
    draws,
    on_rank,
    updated,
)
from trainer.bias import fit, samples_of, together
from trainer.decisions import BiasCorrected, LargestLogit
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings
from trainer.heads.margins import CosFace
from trainer.heads.rows import own_ids
from trainer.methods.bic import (
    BiasCorrection,
    ClassifyCorrected,
    Corrections,
    DistilCorrected,
    Lines,
)
from trainer.methods.plain import Finetune
from trainer.methods.recipe import Recipe

LINEAR, TAU, SHARE = ClassifierSettings(), 2.0, OLD / ROWS
ALPHA = torch.linspace(0.6, 1.3, OLD, dtype=torch.float64)
BETA = torch.linspace(-0.8, 0.4, OLD, dtype=torch.float64)


@dataclass(frozen=True)
class Corrected:
    """A Term that finds the lines of old rows."""

    term: Any

    def __getattr__(self, name):
        return getattr(self.term, name)

    def __call__(self, forward):
        own = own_ids(0, OLD, Ranks.default())
        loaded = {Corrections: Lines(ALPHA[own], BETA[own])}
        return self.term(replace(forward, loaded=loaded))


def terms():
    recipe = BiasCorrection(temperature=TAU).recipe().at(1, OLD, new_rows=ROWS - OLD)
    assert [type(term) for term in recipe.terms] == [ClassifyCorrected, DistilCorrected]
    return dict(zip(("classify", "distill"), map(Corrected, recipe.terms), strict=True))


# The losses, sample by sample


def logits_of(embedding, rows, corrected=True):
    found = []
    for number, row in enumerate(rows):
        logit = (embedding * row).sum()
        if corrected and number < OLD:
            logit = ALPHA[number] * logit + BETA[number]
        found.append(logit)
    return torch.stack(found)


def classify(embeddings, labels, rows, *_, corrected=True):
    losses = []
    for embedding, label in zip(embeddings, labels.tolist(), strict=True):
        logits = logits_of(embedding, rows, corrected)
        losses.append(logits.exp().sum().log() - logits[label])
    return torch.stack(losses).mean()


def distill(embeddings, labels, rows, old_embeddings, old_rows, *, corrected=(True, True)):
    losses = []
    for embedding, old in zip(embeddings, old_embeddings, strict=True):
        student = logits_of(embedding, rows[:OLD], corrected[0]) / TAU
        teacher = logits_of(old, old_rows, corrected[1]) / TAU
        p, q = teacher.exp() / teacher.exp().sum(), student.exp() / student.exp().sum()
        losses.append(-(p * q.log()).sum())
    return torch.stack(losses).mean()


def whole(*given, share=SHARE):
    return share * distill(*given) + (1 - share) * classify(*given)


def both(given):
    return on_rank(terms(), LINEAR, given)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_both_losses_are_the_dense_ones_at_any_world_size(world, tmp_path):
    given = draws()
    results = on_ranks(world, both, given, folder=tmp_path)
    assert_equal(results, "classify", given, classify)
    assert_equal(results, "distill", given, distill)


def softmax_over_the_batch(embeddings, labels, rows, *_):
    logits = torch.stack([logits_of(e, rows) for e in embeddings])
    return F.nll_loss(logits.log_softmax(dim=0), labels)


def softmax_twice(embeddings, labels, rows, *_):
    logits = torch.stack([logits_of(e, rows) for e in embeddings])
    return F.cross_entropy(logits.softmax(dim=1), labels)


def distilled_softmax_twice(embeddings, labels, rows, old_embeddings, old_rows):
    student = torch.stack([logits_of(e, rows[:OLD]) for e in embeddings]) / TAU
    teacher = torch.stack([logits_of(e, old_rows) for e in old_embeddings]) / TAU
    return F.cross_entropy(student.softmax(dim=1), teacher.softmax(dim=1))


WRONG = {
    "softmax over the batch": ("classify", softmax_over_the_batch),
    "softmax twice": ("classify", softmax_twice),
    "old logits uncorrected": ("classify", lambda *given: classify(*given, corrected=False)),
    "softmax twice in the distillation": ("distill", distilled_softmax_twice),
    "teacher uncorrected": ("distill", lambda *given: distill(*given, corrected=(True, False))),
    "student uncorrected": ("distill", lambda *given: distill(*given, corrected=(False, True))),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_losses_are_told_from_ours(wrong):
    given = draws()
    name, loss = WRONG[wrong]
    assert_unequal([both(given)], name, given, loss)


def test_a_student_that_says_what_its_teacher_does_is_not_pushed():
    embeddings, labels, rows, old_embeddings, old_rows = draws()
    alike = old_embeddings, labels, torch.cat([old_rows, rows[OLD:]]), old_embeddings, old_rows
    _, pushed, by_id = both(alike)["distill"]
    assert pushed.abs().max() < 1e-12 and max(g.abs().max() for g in by_id.values()) < 1e-12
    _, pushed, _ = both((embeddings, labels, rows, old_embeddings, old_rows))["distill"]
    assert pushed.abs().max() > 1e-3


def test_an_update_is_that_of_a_separate_loop():
    """Network, rows and losses of three updates, lambda included."""
    found = updated(Recipe(terms=tuple(terms().values())), LINEAR, NETWORK)
    assert_updated_alike(found, dense_updates(whole, NETWORK))
    inverted = dense_updates(lambda *given: whole(*given, share=1 - SHARE), NETWORK)
    with pytest.raises(AssertionError):
        assert_updated_alike(found, inverted)


@pytest.mark.parametrize(
    ("old", "new", "share"), [(50, 10, 5 / 6), (90, 10, 0.9), (10, 10, 0.5), (1, 99, 0.01)]
)
def test_lambda_is_the_share_of_old_classes(old, new, share):
    recipe = BiasCorrection().recipe().at(1, old, new_rows=new)
    assert [term.weight for term in recipe.terms] == pytest.approx([1 - share, share])
    other = BiasCorrection().recipe().at(1, old, new_rows=new + 1)
    assert other.fingerprint() != recipe.fingerprint()


def test_step_0_is_that_of_every_method():
    first = BiasCorrection().recipe().at(0, 0, new_rows=50)
    assert first == Finetune().recipe().at(0, 0, new_rows=50)
    assert first.predict == LargestLogit() and not first.hold_out


def test_logits_that_are_no_lines_are_refused():
    for settings in (ClassifierSettings(margin=CosFace()), ClassifierSettings(sampled=0.5)):
        with pytest.raises(InputError, match="softmax"):
            BiasCorrection().loss(settings, 1)
    assert BiasCorrection().loss(LINEAR, 1) == LINEAR
    # a combination of methods asks none of them
    with pytest.raises(InputError, match="softmax"):
        on_rank(terms(), ClassifierSettings(margin=CosFace()), draws())


def test_images_held_out_without_a_memory_are_refused():
    with pytest.raises(ValueError, match="held out of a memory"):
        Recipe(hold_out=0.1)


# The two numbers


def known(alpha, beta):
    """Logits of two old and three new classes, and labels of which `alpha` and `beta` are the most
    likely: each image comes as often with a label as that label's share says."""
    logits, labels = [], []
    for counts in ([1, 2, 3, 4, 5], [5, 1, 1, 7, 2], [4, 4, 1, 1, 1], [1, 1, 9, 2, 3]):
        own = torch.tensor(counts, dtype=torch.float64).log()
        own[2:] = (own[2:] - beta) / alpha
        for label, count in enumerate(counts):
            logits += [own] * count
            labels += [label] * count
    return torch.stack(logits), torch.tensor(labels)


def mean_loss(logits, labels, alpha, beta, twice=False):
    total = 0.0
    for own, label in zip(logits, labels.tolist(), strict=True):
        corrected = torch.stack([*own[:2], *(alpha * own[2:] + beta)])
        if twice:
            corrected = corrected.exp() / corrected.exp().sum()
        total = total + corrected.exp().sum().log() - corrected[label]
    return total / len(labels)


NO_LINES = torch.ones(2), torch.zeros(2)


@pytest.mark.parametrize(("alpha", "beta"), [(0.7, -1.3), (1.0, 0.0), (2.5, 0.4), (0.2, 3.0)])
def test_known_numbers_are_found(alpha, beta):
    logits, labels = known(alpha, beta)
    found = fit(samples_of(logits, labels, *NO_LINES), 1e-12)
    assert found == pytest.approx((alpha, beta), abs=1e-8)


def slope(logits, labels, alpha, beta, **how):
    at = torch.tensor([alpha, beta], dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(mean_loss(logits, labels, *at, **how), at)[0]


def test_a_softmax_of_a_softmax_finds_other_numbers():
    logits, labels = known(0.7, -1.3)
    assert slope(logits, labels, 0.7, -1.3).abs().max() < 1e-12
    assert slope(logits, labels, 0.7, -1.3, twice=True).abs().max() > 1e-2


def random_case(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, 6, (count,), generator=generator)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_near_the_numbers_found_is_likelier(seed):
    """With the lines of earlier steps, and in whatever parts the logits come."""
    logits, labels = random_case(seed=seed)
    lines = torch.tensor([0.8, 1.4]), torch.tensor([-0.3, 0.6])
    decay = 1e-3

    def loss(alpha, beta):
        own = torch.cat([logits[:, :2] * lines[0] + lines[1], logits[:, 2:]], dim=1)
        off = (alpha - 1) ** 2 + beta**2
        return float(mean_loss(own, labels, alpha, beta)) + decay / 2 * off

    parts = [
        samples_of(own, label, *lines)
        for own, label in zip(logits.split(7), labels.split(7), strict=True)
    ]
    alpha, beta = fit(together(parts), decay)
    best = loss(alpha, beta)
    for away in ((1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3), (1e-3, 1e-3), (-1e-3, 1e-3)):
        assert loss(alpha + away[0], beta + away[1]) > best


def test_images_told_apart_perfectly_leave_the_numbers_finite():
    logits = torch.eye(5, dtype=torch.float64).repeat(4, 1) * 30
    found = fit(samples_of(logits, torch.arange(5).repeat(4), *NO_LINES), 1e-4)
    assert np.isfinite(found).all() and 0.1 < found[0] < 100


def test_the_rule_decides_by_corrected_logits():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 4, generator=generator)
    alpha, beta = torch.tensor([1.0, 1.0, 0.5, 0.5]), torch.tensor([0.0, 0.0, -1.0, -1.0])
    scores = BiasCorrected().scores(logits, logits, {"alpha": alpha, "beta": beta})
    for own, found in zip(logits.tolist(), scores, strict=True):
        corrected = [a * z + b for z, a, b in zip(own, alpha.tolist(), beta.tolist(), strict=True)]
        shares = np.exp(corrected) / np.exp(corrected).sum()
        np.testing.assert_allclose(found.numpy(), shares, rtol=1e-6)


# Which images are held out


def test_as_many_images_of_every_identity_are_held_out_whatever_their_order():
    generator = np.random.default_rng(0)
    rows = np.repeat(np.arange(7), [3, 9, 4, 20, 5, 3, 8])
    samples = np.arange(len(rows)) + 100
    keys = generator.integers(0, 2**63, len(rows), dtype=np.uint64)
    names = np.array([f"class-{n}" for n in range(7)], dtype=np.object_)

    def held(order, seed=0, count=2):
        return held_out(samples[order], rows[order], keys[order], count, seed, names, "step 1")

    found = held(np.arange(len(rows)))
    assert np.bincount(rows[found - 100]).tolist() == [2] * 7
    assert np.array_equal(found, held(generator.permutation(len(rows))))
    assert not np.array_equal(found, held(np.arange(len(rows)), seed=1))
    kept = np.isin(rows, [0, 3, 5])
    assert np.array_equal(held(np.flatnonzero(kept)), np.intersect1d(found, samples[kept]))
    with pytest.raises(InputError, match=r"holds?.* 3 images .*'class-0' has 3, so that none is"):
        held(np.arange(len(rows)), count=3)
    with pytest.raises(InputError, match="no image of an identity"):
        held(np.arange(len(rows)), count=0)


@pytest.mark.parametrize(
    ("share", "exemplars", "each"), [(0.1, 20, 2), (0.1, 9, 0), (0.29, 100, 29), (0.5, 3, 1)]
)
def test_the_share_is_of_each_identitys_exemplars(share, exemplars, each):
    assert held_each(share, exemplars) == each
    recipe = BiasCorrection(memory={"per_class": exemplars}, hold_out=share).recipe().at(1, 5)
    assert recipe.count([50, 30, 30], [5, 8, 11], 1) == 30 + min(5 * exemplars, 50) - 8 * each
