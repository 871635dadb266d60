"""What Terms want of earlier models, and what their names are: merged, refused, spelled."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from pydantic import TypeAdapter, ValidationError

from tests.trainer.loops import train_step
from trainer.methods import METHODS, Method
from trainer.methods.images import AllImages, NewImages
from trainer.methods.influence import Influence
from trainer.methods.recipe import FROM_SCRATCH, Recipe, Start
from trainer.methods.spelling import spelled_needs
from trainer.methods.terms import Classify, Distill, MatchEmbeddings
from trainer.methods.wants import Answers, ClassMeans, FrozenRows, Want

NOTHING = (
    "Needs(embeddings=False, neighbours=None, trained_rows=False, classifier=False, "
    "prototypes=False)"
)


@dataclass(frozen=True)
class Importance(Want):
    """A want that nothing in trainer/methods knows."""

    of: str


@dataclass(frozen=True)
class Anchored:
    """A Term that has it."""

    of: str = "fisher"
    name: str = "anchored"
    weight: float = 1.0
    over: ClassVar = None

    @property
    def wants(self):
        return (Importance(self.of),)

    def at(self, old_rows):
        return self

    def __call__(self, forward):
        raise AssertionError("is only looked at")


def test_a_want_in_a_file_of_its_own_needs_no_other_edit():
    recipe = Recipe(terms=(Classify(), Anchored(), Anchored(name="again"), MatchEmbeddings(1.0)))
    assert recipe.wants == (Importance("fisher"), Answers(embeddings=True))
    assert recipe.want(Importance) == Importance("fisher")
    assert recipe.want(FrozenRows) is None
    assert recipe.at(0, 0) == Recipe(start=Start(embedder="scratch"), terms=(Classify(),))
    old = "Needs(embeddings=True, neighbours=None, trained_rows=False, "
    assert recipe.spelled_needs() == f"{old}classifier=False, prototypes=False)"


def test_wants_of_one_kind_must_be_equal_unless_they_know_better():
    with pytest.raises(ValueError, match=r"both Importance\(of='fisher'\) and Importance\(of='m"):
        Recipe(terms=(Anchored(), Anchored("mas", name="again")))


def test_answers_are_wanted_together():
    terms = (MatchEmbeddings(1.0), Distill(1.0, 5, 0.0, 1.0), Influence(1.0, "synthesise"))
    recipe = Recipe(terms=terms)
    assert recipe.wants == (Answers(embeddings=True, top_k=5), FrozenRows(), ClassMeans())
    assert recipe.spelled_needs() == (
        "Needs(embeddings=True, neighbours=5, trained_rows=True, classifier=True, prototypes=True)"
    )
    assert spelled_needs() == NOTHING


def test_two_losses_of_one_name_are_refused_by_both():
    one, other = Distill(1.0, 5, 0.0, 1.0), Distill(0.5, None, 0.0, 1.0)
    with pytest.raises(ValueError, match="called distill") as caught:
        Recipe(terms=(one, other))
    assert str(one) in str(caught.value)
    assert str(other) in str(caught.value)
    with pytest.raises(ValueError, match="both called classify"):
        Recipe(terms=(Classify(),) * 2)
    with pytest.raises(ValueError, match="is called loss"):
        Recipe(terms=(Classify(name="loss"),))


def test_two_losses_of_one_class_are_recorded_by_their_names(small_folder, tmp_path):
    terms, records = (Classify(), Classify(weight=0.5, name="again")), []
    train_step(small_folder, tmp_path, "finetune", 0, terms=terms, records=records, iterations=9)
    assert len(records) > 2
    for record in records:
        assert record["again"] == record["classify"]
        assert record["loss"] == pytest.approx(1.5 * record["classify"])


def test_a_name_decides_no_result():
    terms = (Classify(), Distill(1.0, 5, 0.0, 1.0)), (Classify(name="c"), Distill(1.0, 5, 0.0, 1.0))
    assert len({Recipe(terms=own).fingerprint() for own in terms}) == 1


def test_recipes_that_differ_in_rows_or_images_are_told_apart():
    recipes = [
        Recipe(start=start, images=images, terms=(Classify(over=over),))
        for start in (
            Start(),
            Start(embedder="scratch"),
            Start(old_rows="scratch"),
            FROM_SCRATCH,
        )
        for images in ((NewImages(),), (AllImages(),))
        for over in ("new", "old", "all")
    ]
    assert len({recipe.fingerprint() for recipe in recipes}) == len(recipes)
    without_old = [*recipes[::3], *recipes[2::3]]
    assert len({recipe.at(0, 0).fingerprint() for recipe in without_old}) == 1


ASKED = {"icarl": {"memory": {"per_class": 2}}}
"""Settings without which a method is not one."""


def test_configurations_choose_among_the_methods_listed_and_combine_all_but_one():
    for kind, method in METHODS.items():
        if kind == "combination":
            continue
        asked = ASKED.get(kind, {})
        assert type(TypeAdapter(Method).validate_python({"kind": kind, **asked})) is method
        of = {"baseline": {}, "finetune": {}, kind: asked}
        both = {"kind": "combination", "of": of}
        assert type(TypeAdapter(Method).validate_python(both).of[kind]) is method
    with pytest.raises(ValidationError, match="'combination' found using 'kind' does not match"):
        TypeAdapter(Method).validate_python(
            {"kind": "combination", "of": {"combination": {}, "fkd": {}}}
        )
