"""What is published of a model that decides by more than its logits."""

from types import SimpleNamespace

import pytest
import torch

from launch.models.classify import Classifier
from launch.phases.publishing import update_published
from monitoring.run_folder import decision_beside, published_model
from tests.trainer.loops import train_step
from trainer.checkpoint import save_folder
from trainer.decisions import Decision, LargestOfHeads, decision_files
from trainer.heads.collectives import Ranks
from trainer.model import Model


@pytest.fixture(scope="module")
def model(small_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("published")
    train_step(small_folder, out, "finetune", 0)
    made = Model.open(out / "0" / "model")
    files, card = decision_files(LargestOfHeads(), {"ends": torch.tensor([3, made.rows])}, made)
    save_folder(out / "0" / "decision", files, card, Ranks())
    return made


def published(folder, model, verdict="", decision=True):
    """A run of one finished phase that decides whether `model` is published."""

    def phase(path):
        return SimpleNamespace(output=SimpleNamespace(path=path))

    made = phase(model.folder.with_name("decision")) if decision else None
    at = SimpleNamespace(
        chain=SimpleNamespace(method="m", name="m/seed-0"),
        number=1,
        model=phase(model.folder),
        decision=made,
    )
    judged = SimpleNamespace(
        name="judged",
        fingerprint="",
        output=SimpleNamespace(path=model.folder),
        at=at,
        kind=SimpleNamespace(verdict=lambda phase: verdict),
    )
    run = SimpleNamespace(
        folder=folder,
        fence=SimpleNamespace(check=lambda: None),
        config=SimpleNamespace(
            evaluation=SimpleNamespace(compatibility=SimpleNamespace(paragon=None))
        ),
    )
    ledger = SimpleNamespace(has=lambda name, fingerprint: True)
    update_published(run, [judged], ledger)
    return published_model(folder, "m/seed-0", 1)


def test_a_published_model_has_its_decision_beside_it(model, tmp_path):
    target = published(tmp_path, model)
    beside = decision_beside(target)
    assert beside.parent == target.parent and beside.name == "step-1-decision"
    assert {path.name for path in target.iterdir()} == {p.name for p in model.folder.iterdir()}
    found = Decision.open(beside, Model.open(target))
    assert found.prepared["ends"].tolist() == [3, model.rows]
    assert Classifier(Model.open(target)).decision.rule == LargestOfHeads()


def test_a_decision_follows_what_becomes_of_its_model(model, tmp_path):
    target = published(tmp_path, model)
    kept = (decision_beside(target) / "card.json").stat().st_ino
    published(tmp_path, model)
    assert (decision_beside(target) / "card.json").stat().st_ino == kept, "it was linked anew"
    published(tmp_path, model, decision=False)
    assert target.exists() and not decision_beside(target).exists()
    published(tmp_path, model)
    published(tmp_path, model, verdict="not compatible")
    assert not target.exists() and not decision_beside(target).exists()
