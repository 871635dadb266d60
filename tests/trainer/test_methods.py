"""Methods are recipes: what they share, reduce to and refuse."""

import numpy as np
import pytest
import torch

from data_shards.pipeline import Batch, ImageStream, PipelineSettings, Request
from data_shards.storage.neighbours import VIEWS, TeacherCache, teacher_file, write_teacher_file
from launch.inference.embed import embed, units
from tests.trainer.loops import ALL
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.decisions import NearestMean
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.neighbourhood import top_k
from trainer.heads.rows import ShardedRows
from trainer.losses import neighbourhood_distillation, relaxed
from trainer.methods import METHODS
from trainer.methods.combination import Combination
from trainer.methods.distillation import FlexibleDistillation, LearningWithoutForgetting
from trainer.methods.forward import Forward, OldClassifier, Teacher
from trainer.methods.images import NewImages
from trainer.methods.recipe import Recipe, Start
from trainer.methods.terms import Distill
from trainer.methods.wants import Answers, ClassMeans, FrozenRows
from trainer.teacher import CachedTeacher, OnlineTeacher, answers

LINEAR = ClassifierSettings()
BASIC = FlexibleDistillation(neighbours=None, relaxation=0.0)


def test_every_method_starts_alike_at_step_0():
    recipes = [method.recipe().at(0, 0) for method in ALL.values()]
    assert len({recipe.fingerprint() for recipe in recipes}) == 1
    assert not recipes[0].wants


def test_methods_differ_after_step_0():
    recipes = [method.recipe().at(1, 1000) for method in ALL.values()]
    assert len({recipe.fingerprint() for recipe in recipes}) == len(ALL)


@pytest.mark.parametrize("old_rows", [1, 50, 200])
def test_fkd_with_k_of_at_least_all_rows_and_no_relaxation_is_basic(old_rows):
    fkd = FlexibleDistillation(neighbours=200, relaxation=0.0).recipe().at(1, old_rows)
    assert fkd == BASIC.recipe().at(1, old_rows)
    assert fkd.fingerprint() == BASIC.recipe().at(1, old_rows).fingerprint()


def test_fkd_with_fewer_neighbours_is_not_basic():
    fkd = FlexibleDistillation(neighbours=200, relaxation=0.0).recipe().at(1, 201)
    assert fkd.want(Answers) == Answers(top_k=200)


def forward(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    embeddings, old, now, frozen = (
        torch.randn(n, 5, generator=generator, dtype=dtype) for n in (6, 6, 9, 9)
    )
    rows = ShardedRows(0, 9, now, Ranks())
    kept = ShardedRows(0, 9, frozen, Ranks()).requires_grad_(False)
    classes, activations = top_k(old @ frozen.T, torch.arange(9), 9)
    teacher = Teacher(old, classes, activations, kept)
    classifier = MarginLoss(LINEAR, 0, embeddings.device)
    labels = torch.zeros(6).long()
    return Forward(
        embeddings=embeddings.requires_grad_(),
        labels=labels,
        rows={"old": rows, "new": rows},
        classifier=classifier,
        teacher=teacher,
    )


def test_the_gathered_neighbourhood_of_all_rows_gives_the_dense_loss_and_gradients():
    """The path through K gathered rows against the path through the matrix product."""
    results = []
    for neighbours in (None, 9):
        given = forward(torch.float64)
        total, _ = Distill(1.0, neighbours, 0.05, 2.0)(given)
        total.backward()
        rows_grad = given.rows["old"].weight.grad
        assert rows_grad.is_sparse == (neighbours is not None)
        results.append((total, given.embeddings.grad, rows_grad.to_dense()))
    for dense, gathered in zip(*results, strict=True):
        torch.testing.assert_close(dense, gathered, rtol=1e-12, atol=1e-12)


def test_relaxation_removes_the_penalty_where_the_models_nearly_agree():
    teacher = torch.randn(4, 7, dtype=torch.float64)
    student = teacher + 0.01 * torch.randn(4, 7, dtype=torch.float64)
    crossed, entropy = neighbourhood_distillation(student, teacher, 2.0)
    assert (relaxed(crossed, entropy, 0.0) > 0).all()
    assert (relaxed(crossed, entropy, 0.5) == 0).all()
    assert (relaxed(crossed + 10, entropy, 0.5) > 0).all()


def test_lwf_and_basic_have_the_same_gradient():
    """KL and cross-entropy differ by the teacher's entropy, a constant (CRL paper, Sec. 4.2)."""
    grads = []
    for divergence in ("kl", "cross_entropy"):
        given = forward(torch.float64)
        total, _ = Distill(1.0, None, 0.0, 2.0, divergence)(given)
        total.backward()
        grads.append(given.embeddings.grad)
    torch.testing.assert_close(*grads)


def test_a_combination_has_the_losses_of_all_and_each_once():
    both = Combination(of={"fkd": {"neighbours": 7}, "bct-sys": {"anchor": "first"}})
    recipe = both.recipe()
    assert [type(term).__name__ for term in recipe.terms] == ["Classify", "Distill", "Influence"]
    assert (recipe.start, recipe.images, recipe.anchor) == (Start(), (NewImages(),), "first")
    assert recipe.wants == (Answers(top_k=7), FrozenRows(), ClassMeans())


def test_two_losses_of_one_kind_do_not_combine():
    with pytest.raises(ValueError, match="bct and bct-sys are of one kind"):
        Combination(of={"bct": {}, "bct-sys": {}}).recipe()


MEMORY = {"per_class": 3}


def test_a_combination_keeps_the_memory_and_the_rule_of_its_methods():
    lwf = {"over": "all", "memory": MEMORY, "predict": "nearest-mean"}
    recipe = Combination(of={"lwf": lwf, "finetune": {"over": "all"}}).recipe()
    assert recipe.memory is not None and recipe.memory.per_class == 3
    assert isinstance(recipe.predict, NearestMean)


def test_a_combination_has_the_network_and_the_rows_of_its_methods():
    lucir = {"memory": MEMORY}
    alone = METHODS["lucir"].model_validate(lucir)
    both = Combination(of={"lucir": lucir, "finetune": {"over": "all"}})
    usual = EmbedderSettings(), ClassifierSettings()
    assert both.network(usual[0], 1) == alone.network(usual[0], 1) != usual[0]
    assert both.loss(usual[1], 1) == alone.loss(usual[1], 1) != usual[1]
    assert both.recipe().start == alone.recipe().start
    with pytest.raises(ValueError, match="imprinted with the previous model"):
        Combination(of={"lucir": lucir, "finetune": {"over": "all"}}, start="scratch").recipe()


def test_a_combination_keeps_what_is_trained_beside_the_main_training():
    """It was dropped without a word once."""
    tuned = {"memory": MEMORY, "fine_tune": {"epochs": 3, "milestones": []}, "expert": {}}
    finetune = {"over": "all", "memory": MEMORY}
    recipe = Combination(of={"lucir": tuned, "finetune": finetune}).recipe()
    alone = METHODS["lucir"].model_validate(tuned).recipe()
    assert recipe.fine_tune == alone.fine_tune is not None
    assert recipe.terms == alone.terms


@pytest.mark.parametrize(
    ("of", "data", "message"),
    [
        ({"finetune": {"memory": MEMORY}, "lwf": {"memory": {"total": 9}}}, "current", "memory"),
        ({"finetune": {"memory": MEMORY}, "lwf": {}}, "all", "has every image"),
    ],
)
def test_memories_that_cannot_be_one_are_refused(of, data, message):
    of = {kind: {"over": "all", **values} for kind, values in of.items()}
    with pytest.raises(ValueError, match=message):
        Combination(of=of, data=data).recipe()


def test_rows_behind_the_trained_ones_are_left_out_without_a_copy():
    for rank, world in ((0, 1), (0, 2), (1, 2), (2, 3)):
        rows = ShardedRows.new(0, 11, 4, 0, Ranks(rank, world))
        old = OldClassifier(rows, MarginLoss(LINEAR, 0, rows.weight.device), 7)
        trained = old.trained().rows
        assert torch.equal(trained.weight, rows.weight[rows.own_ids() < 7])
        assert trained.weight.data_ptr() == rows.weight.data_ptr()
        assert not trained.weight.requires_grad


def test_two_neighbourhood_sizes_in_one_recipe_are_refused():
    terms = (Distill(1.0, 3, 0.0, 2.0), Distill(1.0, 4, 0.0, 2.0, name="other"))
    with pytest.raises(ValueError, match="several sizes"):
        Recipe(terms=terms)


@pytest.mark.parametrize(
    "method", [LearningWithoutForgetting(), FlexibleDistillation(neighbours=5)]
)
def test_cached_and_online_teachers_agree_where_the_view_is_the_same(small, tmp_path, method):
    """Every sample in both views: the files of the CPU phase against the model run online."""
    recipe = method.recipe().at(1, 30)
    network = build_embedder(EmbedderSettings(width=4, dimension=8), 1).eval()
    rows = ShardedRows.new(0, 30, 8, 2, Ranks()).requires_grad_(False)
    samples, data = np.arange(len(small)), PipelineSettings()
    for view in VIEWS:
        for shard, own in units(small, samples):
            vectors = embed(network, small, own, data, 16, flipped=view == "flipped")
            tensors = answers(torch.from_numpy(vectors), rows, LINEAR, recipe.want(Answers))
            path = teacher_file(tmp_path, shard, view)
            write_teacher_file(path, {"samples": own, **tensors}, "model")
    old = OldClassifier(rows, MarginLoss(LINEAR, 0, rows.weight.device), 30)
    cached = CachedTeacher(TeacherCache(tmp_path, 5, VIEWS, "model"), old)
    online = OnlineTeacher(network, old, recipe.want(Answers))
    mixed = np.random.default_rng(0).permutation(samples)[:77]
    for flipped in (False, True):
        request = Request.plain(small, mixed, flipped)
        ((_, images),) = ImageStream(small, iter([request]), 77, data)
        batch = Batch(images, torch.zeros(77).long(), mixed, request.augmentation.flipped)
        found, truth = cached(batch, [77]), online(batch, [77])
        for name in ("embeddings", "classes", "activations"):
            a, b = getattr(found, name), getattr(truth, name)
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_files_of_another_model_and_absent_samples_are_refused(tmp_path):
    path = teacher_file(tmp_path, 0, "plain")
    numbers = np.arange(3)
    write_teacher_file(path, {"samples": numbers, "embeddings": np.zeros((3, 2), np.float32)}, "a")
    with pytest.raises(ValueError, match="comes from model a, not b"):
        TeacherCache(tmp_path, 1, VIEWS[:1], "b")
    cache = TeacherCache(tmp_path, 1, VIEWS[:1], "a")
    with pytest.raises(KeyError, match="sample 9"):
        cache.look_up(np.array([1, 9]), np.zeros(2, dtype=bool))
