"""The expert's distillation against loops over samples and classes in float64, on any ranks."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from data_shards.splits.benchmark import Benchmark
from tests.ranks import on_ranks
from tests.trainer.against_dense import (
    DIMENSION,
    OLD,
    ROWS,
    OverAll,
    assert_equal,
    assert_unequal,
    draws,
    on_rank,
)
from trainer.exemplars import balanced
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings
from trainer.heads.margins import Cosine, NormSoftmax
from trainer.heads.rows import own_ids
from trainer.methods.bic import BiasCorrection, Corrections, DistilExpertCorrected, Lines
from trainer.methods.discriminative import (
    DistilExpert,
    Expert,
    ExpertRows,
    ExpertSettings,
    Similar,
    distilled,
)
from trainer.methods.distillation import FlexibleDistillation, LearningWithoutForgetting
from trainer.methods.fine_tuning import FineTuning
from trainer.methods.icarl import ICaRL
from trainer.methods.lucir import LUCIR
from trainer.methods.plain import Finetune

TAU = 2.0
PICKED = [1, 4, *range(OLD, ROWS)]
"""Two old classes, and the new ones."""
ALPHA = torch.linspace(0.6, 1.3, OLD, dtype=torch.float64)
BETA = torch.linspace(-0.8, 0.4, OLD, dtype=torch.float64)
SETTINGS = {
    "linear": ClassifierSettings(),
    "cosine": ClassifierSettings(margin=Cosine()),
    "scaled": ClassifierSettings(margin=NormSoftmax(scale=8)),
}


def expert():
    """Its embeddings of the batch and its rows, of another length than the student's."""
    generator = torch.Generator().manual_seed(3)
    embeddings = torch.randn(11, DIMENSION + 2, generator=generator, dtype=torch.float64)
    rows = torch.randn(len(PICKED), DIMENSION + 2, generator=generator, dtype=torch.float64)
    return embeddings, rows


@dataclass(frozen=True, kw_only=True)
class Told(OverAll):
    """A Term that finds what the phases before left."""

    settings: ClassifierSettings
    picked: tuple[int, ...] = tuple(PICKED)
    lines: bool = False
    said: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, forward):
        ranks = Ranks.default()
        embeddings, rows = self.said or expert()
        picked = torch.tensor(self.picked)
        own = (picked % ranks.world == ranks.rank).nonzero()[:, 0]
        loaded = {
            Similar: ExpertRows(picked, own),
            Expert: self.settings.directions(rows),
        }
        if self.lines:
            old = own_ids(0, OLD, ranks)
            loaded[Corrections] = Lines(ALPHA[old], BETA[old])
        return self.term(replace(forward, loaded=loaded, expert=embeddings))


def product(settings, embedding, row):
    if settings.scale is not None:
        embedding = settings.scale * embedding / embedding.norm()
    if settings.unit_rows:
        row = row / row.norm()
    return (embedding * row).sum()


def dense(settings, picked=tuple(PICKED), lines=False, over=None, own=False):
    """Eqs. 1 and 2: the softmaxes run over the expert's classes, or over others, which is wrong."""

    def loss(embeddings, labels, rows, *_):
        losses = []
        for embedding, other, label in zip(embeddings, expert()[0], labels, strict=True):
            if own and int(label) not in picked:
                continue
            student = []
            for number in over or picked:
                logit = product(settings, embedding, rows[number])
                if lines and number < OLD:
                    logit = ALPHA[number] * logit + BETA[number]
                student.append(logit / TAU)
            teacher = [product(settings, other, row) / TAU for row in expert()[1]]
            q = torch.stack(student).softmax(0)
            p = torch.stack(teacher).softmax(0)
            losses.append(-sum(a * b.log() for a, b in zip(p, q, strict=True)))
        return torch.stack(losses).mean()

    return loss


@pytest.mark.parametrize("world", [1, 2, 3])
def test_it_is_the_papers_on_any_number_of_ranks(world, tmp_path):
    term = DistilExpert(1.0, TAU, "all")
    corrected = DistilExpertCorrected(1.0, TAU, "all")
    given = draws()
    for name, settings in SETTINGS.items():
        terms = {"plain": Told(term=term, settings=settings)}
        if name == "linear":
            terms["lines"] = Told(term=corrected, settings=settings, lines=True)
        (folder := tmp_path / name).mkdir()
        terms["own"] = Told(term=DistilExpert(1.0, TAU, "all", "own"), settings=settings)
        results = on_ranks(world, on_rank, terms, settings, given, folder=folder)
        assert_equal(results, "plain", given, dense(settings))
        assert_equal(results, "own", given, dense(settings, own=True))
        assert_unequal(results, "own", given, dense(settings))
        if name == "linear":
            assert_equal(results, "lines", given, dense(settings, lines=True))
            assert_unequal(results, "lines", given, dense(settings))
        # rows that are counted from 0, as the expert's own are
        shifted = dense(settings, over=[*range(len(PICKED))])
        assert_unequal(results, "plain", given, shifted)


def test_a_student_that_says_what_the_expert_does_has_no_gradient():
    embeddings, labels, rows, *rest = draws()
    settings = SETTINGS["linear"]
    term = Told(
        term=DistilExpert(1.0, TAU, "all"), settings=settings, said=(embeddings, rows[PICKED])
    )
    _, gradient, by_id = on_rank({"t": term}, settings, (embeddings, labels, rows, *rest))["t"]
    assert gradient.abs().max() < 1e-15
    assert torch.stack([*by_id.values()]).abs().max() < 1e-15


def test_rows_that_the_expert_does_not_know_are_left_alone():
    settings = SETTINGS["linear"]
    term = Told(term=DistilExpert(1.0, TAU, "all"), settings=settings)
    *_, by_id = on_rank({"t": term}, settings, draws())["t"]
    for row in range(ROWS):
        assert by_id[row].any() == (row in PICKED)


MEMORY = {"per_class": 3}


def test_every_host_takes_it_by_listing():
    for host in (Finetune, LearningWithoutForgetting, ICaRL, LUCIR, FlexibleDistillation):
        settings = {"memory": MEMORY, "over": "all"}
        plain, more = (
            host(**settings, **extra).recipe().at(1, 5, new_rows=3)
            for extra in ({}, {"expert": {"similar": 2, "weight": 0.5}})
        )
        *terms, added = more.terms
        assert tuple(terms) == plain.terms
        assert isinstance(added, DistilExpert) and added.weight == 0.5 and added.over == "all"
        assert more.want(Similar) == Similar(2, new_rows=3)
        tuned = host(**settings, fine_tune={}).recipe()
        assert tuned.fine_tune == FineTuning(), "which a host may not drop without a word"
    assert isinstance(
        BiasCorrection(expert={}).recipe().at(1, 5, new_rows=3).terms[-1], DistilExpertCorrected
    )


def test_an_expert_without_weight_is_none():
    """The host bit for bit, and no phase trains one."""
    host = LUCIR(memory=MEMORY)
    none = LUCIR(memory=MEMORY, expert={"weight": 0})
    assert none.recipe().at(1, 5, new_rows=3) == host.recipe().at(1, 5, new_rows=3)
    prints = {m.recipe().at(1, 5, new_rows=3).fingerprint() for m in (host, none)}
    assert len(prints) == 1


def test_old_classes_without_an_image_are_refused():
    with pytest.raises(ValueError, match=r"expert.similar = 1 old classes .* no memory"):
        LearningWithoutForgetting(expert={})
    dual = LearningWithoutForgetting(expert={"similar": 0}).recipe().at(1, 5, new_rows=3)
    assert dual.terms[-1].over == "new"
    with pytest.raises(ValueError, match="less than or equal to 4"):
        ExpertSettings(similar=5)
    assert distilled(None, "all") == ()


def test_what_it_imagines_for_plans_has_the_experts_classes():
    want = Similar(2, new_rows=3)
    for old, picked in ((1, 1), (6, 6), (100, 6)):
        rows, own = want.imagined({}, old, (4,))
        assert rows.tolist() == [*range(old - picked, old + 3)] and len(own) == picked + 3
        made = Expert(ExpertSettings(similar=2), new_rows=3).imagined({}, old, (4,))
        assert made.shape == (picked + 3, 4)


def test_a_balanced_subset_has_as_many_of_each_class_as_the_smallest():
    rng = np.random.default_rng(0)
    classes = rng.permutation(np.repeat([3, 1, 7], [9, 4, 20]))
    keys = rng.integers(0, 2**63, len(classes)).astype(np.uint64)
    chosen = balanced(classes, keys, seed=5)
    assert np.bincount(classes[chosen])[[1, 3, 7]].tolist() == [4, 4, 4] and len(chosen) == 12
    assert (np.diff(chosen) > 0).all()
    order = rng.permutation(len(classes))
    again = balanced(classes[order], keys[order], seed=5)
    assert {*keys[order][again]} == {*keys[chosen]}, "whatever the order"
    assert {*keys[balanced(classes, keys, seed=6)]} != {*keys[chosen]}


def test_the_experts_labels_are_a_bijection_onto_its_rows():
    rng = np.random.default_rng(1)
    identity = rng.integers(0, 9, 60)
    row_of = np.array([5, -1, 0, 3, 1, 2, 4, -1, 6])
    none = np.empty(0, dtype=np.int64)
    names = np.array([f"class-{np.flatnonzero(row_of == r)[0]}" for r in range(7)], dtype=object)
    whole = Benchmark(
        steps=(none, np.arange(60), none),
        row_of_identity=row_of,
        row_ends=(5, 7, 7),
        names=names,
        **dict.fromkeys(
            ("query", "gallery", "pairs", "same", "folds", "seen_query", "seen_gallery"), none
        ),
    )
    rows = np.array([1, 3, 5, 6])
    own = whole.of_rows(rows, identity, np.arange(0, 60, 2), step=1)
    assert own.names.tolist() == names[rows].tolist() and own.row_ends == (4, 4, 4)
    samples = own.steps[1]
    labels = own.row_of_identity[identity[samples]]
    assert {*labels} == {*range(4)}
    assert (rows[labels] == row_of[identity[samples]]).all()
    assert set(samples) == {s for s in range(0, 60, 2) if row_of[identity[s]] in rows}
