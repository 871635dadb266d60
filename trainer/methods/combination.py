"""Several methods at once: the Terms of all of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from trainer.backbones import EmbedderSettings
from trainer.decisions import LargestLogit
from trainer.heads.margin_loss import ClassifierSettings
from trainer.methods.images import AllImages, NewImages
from trainer.methods.recipe import FROM_SCRATCH, MethodSettings, Recipe, Start, Term
from trainer.methods.terms import Classify
from trainer.methods.wants import FrozenRows

if TYPE_CHECKING:
    Single = MethodSettings


class Combination(MethodSettings):
    """The losses of several methods added up, such as FKD's and BCT-sys's."""

    kind: Literal["combination"] = "combination"
    of: dict[str, "Single"] = Field(min_length=2)  # any other method: filled in beside METHODS
    """The methods by their kinds, such as {fkd: {neighbours: 100}, bct-sys: {}}."""
    start: Literal["scratch", "previous"] = "previous"
    """Where the embedder and rows start, whatever the methods do by themselves."""
    data: Literal["current", "all"] = "current"
    """Train on this step's images, or on those of every step so far, likewise."""

    @field_validator("of", mode="before")
    @classmethod
    def _kinds_are_names(cls, of: Any) -> Any:
        if not isinstance(of, Mapping):
            raise ValueError("must map kinds to their settings, such as {fkd: {}, bct-sys: {}}")
        return {str(kind): {**(values or {}), "kind": str(kind)} for kind, values in of.items()}

    def network(self, usual: EmbedderSettings, step: int) -> EmbedderSettings:
        for method in self.of.values():
            usual = method.network(usual, step)
        return usual

    def loss(self, usual: ClassifierSettings, step: int) -> ClassifierSettings:
        for method in self.of.values():
            usual = method.loss(usual, step)
        return usual

    def recipe(self) -> Recipe:
        """Raises ValueError for methods that cannot go together."""
        if own := [kind for kind, method in self.of.items() if method.training is not None]:
            raise ValueError(f"say training of the combination, not of {' and '.join(own)}")
        recipes = [method.recipe() for method in self.of.values()]
        terms = _once(tuple(dict.fromkeys(term for recipe in recipes for term in recipe.terms)))
        kinds = [type(term).__name__ for term in terms]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"{' and '.join(self.of)} are of one kind of loss: leave out one")
        memories = dict.fromkeys(recipe.memory for recipe in recipes if recipe.memory is not None)
        rules = dict.fromkeys(r.predict for r in recipes if r.predict != LargestLogit())
        tunings = [recipe.fine_tune for recipe in recipes if recipe.fine_tune is not None]
        alike = {tuning.model_dump_json(): tuning for tuning in tunings}
        for what, several in (("memory", memories), ("predict", rules), ("fine_tune", alike)):
            if len(several) > 1:
                raise ValueError(f"{' and '.join(self.of)} differ in {what}: say the same in all")
        if memories and self.data == "all":
            raise ValueError("data = all has every image: leave the memory out")
        anchors = {recipe.anchor for recipe in recipes if recipe.want(FrozenRows) is not None}
        imprinted = any(recipe.start.new_rows == "imprinted" for recipe in recipes)
        held = any(recipe.start.old_rows == "held" for recipe in recipes)
        norms = dict.fromkeys(recipe.start.batch_norm for recipe in recipes)
        start = Start(
            embedder=self.start,
            old_rows="held" if held else "previous",
            new_rows="imprinted" if imprinted else "random",
            batch_norm="held" if "held" in norms else "trained",
        )
        if self.start == "scratch" and self.data == "all":
            # old identities' rows are learned from their images; without these they are kept
            start = FROM_SCRATCH
        return Recipe(
            start=start,
            images=(AllImages(),) if self.data == "all" else (NewImages(), *memories),
            terms=terms,
            anchor=anchors.pop() if anchors else "previous",
            predict=next(iter(rules), LargestLogit()),
            hold_out=max(recipe.hold_out for recipe in recipes),
            fine_tune=next(iter(tunings), None),
        )


def _once(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    """`terms` with an image classified once: over all rows, where any method asks for that."""
    everybody = [t for t in terms if isinstance(t, Classify) and t.over == "all"]
    own = replace(everybody[0], over="new") if everybody else None
    return tuple(term for term in terms if term != own)
