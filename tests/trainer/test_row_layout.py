"""Which rows a step has: blocks, parts of them, and losses over old, new and all rows.

Losses and gradients are compared with dense ones in float64, at any world size.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from data_shards.orders.order import rank_slice
from tests.ranks import on_ranks
from tests.trainer import reference
from tests.trainer.loops import ALL, spec_of, train_step
from trainer.footprint import head_footprint
from trainer.heads.collectives import Ranks, gather_embeddings
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.neighbourhood import sharded_top_k
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows, own_ids, sparse_rows
from trainer.methods.combination import Combination
from trainer.methods.forward import Forward, Teacher
from trainer.methods.images import AllImages
from trainer.methods.recipe import Recipe, Start
from trainer.methods.terms import Classify, Distill
from trainer.model import Model
from trainer.optimizers import TrainingSettings
from trainer.row_layout import RowBlock, row_blocks, rows_over, updates_in_backward
from trainer.state import build_state

OLD, ROWS = 6, 10
ALL_ROWS = Classify(over="all")
TWO = {
    trained: {
        "previous": RowBlock(range(OLD), kept=OLD, trained=trained),
        "current": RowBlock(range(OLD, ROWS), kept=OLD, trained=True),
    }
    for trained in (False, True)
}
KEPT, RANDOM = ({"current": RowBlock(range(ROWS), kept=kept, trained=True)} for kept in (OLD, 0))
LAYOUTS = {
    "baseline": TWO[False],
    "finetune": TWO[False],
    "lfl": TWO[False],
    "bct-lwf": TWO[False],
    "lwf": TWO[True],
    "fkd": TWO[True],
    "gfr": KEPT,
    "replay": KEPT,
    "fkd+replay": {"current": RowBlock(range(ROWS), kept=OLD, trained=True, held=OLD)},
    "joint": RANDOM,
    "bct": RANDOM,
    "l2": RANDOM,
}


@pytest.mark.parametrize("method", LAYOUTS)
def test_the_rows_of_methods_are_these(method):
    assert row_blocks(ALL[method].recipe().at(1, OLD), OLD, ROWS) == LAYOUTS[method]
    first = row_blocks(ALL[method].recipe().at(0, 0), 0, ROWS)
    assert first == {"current": RowBlock(range(ROWS), kept=0, trained=True)}


def test_rows_that_are_looked_at_together_are_one_block():
    everybody = Combination(of={"fkd": {}, "finetune": {}}, data="all").recipe()
    assert row_blocks(everybody, OLD, ROWS) == KEPT
    assert row_blocks(Recipe(terms=(ALL_ROWS,)), OLD, ROWS) == KEPT
    anew = Combination(of={"fkd": {}, "finetune": {}}, data="all", start="scratch").recipe()
    assert row_blocks(anew, OLD, ROWS) == RANDOM
    over_old = Recipe(terms=(Classify(over="old"),))
    assert row_blocks(over_old, OLD, ROWS) == TWO[True]


def test_a_block_is_updated_in_the_backward_pass_where_one_loss_alone_is_over_it():
    old, distill = Classify(over="old", name="old"), Distill(1.0, 3, 0.0, 2.0)

    def updates(*terms, every=False):
        recipe = Recipe(terms=terms, **({"images": (AllImages(),)} if every else {}))
        return updates_in_backward(recipe, OLD)

    assert updates(Classify())
    assert updates(Classify(), distill)  # they are over two blocks
    assert updates(Classify(), old)
    assert updates(ALL_ROWS)
    assert updates(Classify(), every=True)
    assert not updates(ALL_ROWS, distill)
    assert not updates(ALL_ROWS, old)
    assert not updates(Classify(), distill, every=True)
    assert not updates(Classify(), Classify(name="again"))
    assert not updates(old, every=True)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("first", "last"), [(0, 7), (7, 13), (3, 9), (4, 4), (5, 6)])
def test_a_part_of_a_block_has_its_memory_and_gives_it_its_gradients(world, first, last):
    for rank in range(world):
        ranks = Ranks(rank, world)
        block = ShardedRows.new(0, 13, 4, 0, ranks)
        part = block.part(first, last)
        mine = torch.isin(block.own_ids(), own_ids(first, last, ranks))
        assert torch.equal(part.own_ids(), block.own_ids()[mine])
        assert torch.equal(part.weight, block.weight[mine])
        given = torch.randn(len(part.weight), 4)
        expected = torch.zeros_like(block.weight)
        expected[mine] = given
        part.weight.backward(given)
        assert torch.equal(block.weight.grad, expected)
        if not len(given):
            continue
        block.weight.grad = None
        index = torch.tensor([len(given) - 1, 0])
        expected = torch.zeros_like(block.weight)
        expected[mine.nonzero()[index, 0]] += given[:1].expand(2, 4) * (1 + (len(given) == 1))
        values = given[:1].repeat(2, 1)
        block.part(first, last).weight.backward(sparse_rows(index, values, part.weight.shape))
        assert block.weight.grad.is_sparse
        assert torch.equal(block.weight.grad.to_dense(), expected)
        block.weight.data.fill_(7.0)
        assert (part.weight == 7.0).all()


# Losses over old, new and all rows

BATCH, DIMENSION, TAU = 13, 5, 2.0
RECIPES = {
    "all": Recipe(terms=(ALL_ROWS,)),
    "all, lwf": Recipe(terms=(ALL_ROWS, Distill(0.7, None, 0.0, TAU, "cross_entropy"))),
    "all, basic": Recipe(terms=(ALL_ROWS, Distill(0.7, None, 0.05, TAU))),
    "all, fkd": Recipe(terms=(ALL_ROWS, Distill(0.7, 3, 0.05, TAU))),
    "all, old": Recipe(terms=(ALL_ROWS, Classify(0.4, over="old", name="old"))),
    "fkd of everybody": Recipe(
        images=(AllImages(),), terms=(Classify(), Distill(0.7, 3, 0.05, TAU))
    ),
    "old alone": Recipe(terms=(Classify(0.4, over="old"),)),
}


def draws():
    """Seeded values: embeddings, labels, all rows, the old model's embeddings and rows."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.randint(0, ROWS, (BATCH,), generator=generator)
    assert 0 < (labels < OLD).sum() < BATCH
    return (
        draw(BATCH, DIMENSION),
        labels,
        draw(ROWS, DIMENSION),
        draw(BATCH, DIMENSION),
        draw(OLD, DIMENSION),
    )


def losses_on_rank():
    """Each recipe's loss, the gradient of this rank's embeddings, and that of its rows by id."""
    ranks, out = Ranks.default(), {}
    embeddings, labels, weight, old_embeddings, frozen = draws()
    slices = [rank_slice(BATCH, rank, ranks.world) for rank in range(ranks.world)]
    counts = [part.stop - part.start for part in slices]
    for name, recipe in RECIPES.items():
        blocks = {
            key: ShardedRows(
                block.rows.start,
                block.rows.stop,
                weight[own_ids(block.rows.start, block.rows.stop, ranks)].clone(),
                ranks,
            )
            for key, block in row_blocks(recipe, OLD, ROWS).items()
        }
        teacher_rows = ShardedRows(0, OLD, frozen[own_ids(0, OLD, ranks)], ranks)
        teacher_rows.requires_grad_(False)
        classes, scores = sharded_top_k(old_embeddings, teacher_rows, 3)
        own = embeddings[slices[ranks.rank]].clone().requires_grad_()
        forward = Forward(
            embeddings=gather_embeddings(own, ranks, counts),
            labels=labels,
            rows=rows_over(recipe, blocks, OLD),
            classifier=MarginLoss(ClassifierSettings(), 0, own.device),
            teacher=Teacher(old_embeddings, classes, scores, teacher_rows),
        )
        loss = sum(term.weight * n / d for term in recipe.terms for n, d in [term(forward)])
        loss.backward()
        gradients = {
            int(row): gradient
            for block in blocks.values()
            if block.weight.grad is not None
            for row, gradient in zip(block.own_ids(), block.weight.grad.to_dense(), strict=True)
        }
        out[name] = (loss.detach(), own.grad / ranks.world, gradients)
    return out


def dense_losses(name):
    """The same, by dense softmaxes."""
    phi, labels, rows, old_embeddings, frozen = draws()
    phi.requires_grad_(), rows.requires_grad_()
    loss = 0.0
    if name != "old alone":
        loss = F.cross_entropy(phi @ rows.T, labels)
    old = (old_embeddings, frozen, TAU)
    if "lwf" in name:
        loss = loss + 0.7 * reference.lwf(phi, rows[:OLD], *old)
    if "basic" in name:
        loss = loss + 0.7 * reference.fkd(phi, rows[:OLD], *old, None, 0.05)
    if "fkd" in name:
        loss = loss + 0.7 * reference.fkd(phi, rows[:OLD], *old, 3, 0.05)
    if "old" in name:
        known = labels < OLD
        loss = loss + 0.4 * F.cross_entropy(phi[known] @ rows[:OLD].T, labels[known])
    loss.backward()
    return loss.detach(), phi.grad, rows.grad


@pytest.mark.parametrize("world", [1, 2, 3])
def test_losses_over_old_new_and_all_rows_equal_dense_ones(world, tmp_path):
    results = on_ranks(world, losses_on_rank, folder=tmp_path)
    close = {"rtol": 1e-9, "atol": 1e-11}
    for name in RECIPES:
        loss, embeddings_grad, rows_grad = dense_losses(name)
        for result in results:
            torch.testing.assert_close(result[name][0], loss, **close)
        found = torch.cat([result[name][1] for result in results])
        torch.testing.assert_close(found, embeddings_grad, **close)
        by_id = {row: g for result in results for row, g in result[name][2].items()}
        found = torch.stack([by_id.get(row, torch.zeros_like(rows_grad[0])) for row in range(ROWS)])
        torch.testing.assert_close(found, rows_grad, **close)


def test_drawn_rows_give_a_part_of_a_block_the_gradient_of_a_block_of_its_own():
    embeddings, labels, weight, *_ = draws()
    labels %= OLD
    found = []
    for whole in (False, True):
        block = ShardedRows(0, ROWS, weight.clone(), Ranks())
        apart = ShardedRows(0, OLD, weight[:OLD].clone(), Ranks())
        classifier = MarginLoss(ClassifierSettings(sampled=0.3), 0, embeddings.device)
        forward = Forward(
            embeddings=embeddings[:2],
            labels=labels[:2],
            rows={"old": block.part(0, OLD) if whole else apart},
            classifier=classifier,
        )
        numerator, _ = Classify(over="old")(forward)
        numerator.backward()
        gradient = (block if whole else apart).weight.grad
        assert gradient.is_sparse
        found.append(gradient.to_dense()[:OLD])
    assert torch.equal(*found)
    assert found[0].any()


# The state

STATES = {
    **{name: ALL[name].recipe() for name in ("baseline", "finetune", "lwf", "fkd", "joint")},
    "everybody, fkd": Combination(of={"fkd": {"neighbours": 5}, "lfl": {}}, data="all").recipe(),
    "all": Recipe(terms=(ALL_ROWS,)),
    "all, fkd": Recipe(terms=(ALL_ROWS, Distill(1.0, 5, 0.0, 2.0))),
    "all, new embedder": Recipe(start=Start(embedder="scratch"), terms=(ALL_ROWS,)),
}


def bytes_of(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def states_on_rank(small_folder, out):
    """Of each recipe: the bytes held and planned, and the rows with where they came from."""
    ranks, found = Ranks.default(), {}
    for name, recipe in STATES.items():
        spec = replace(spec_of(small_folder, out, "finetune", 1), recipe=recipe)
        state = build_state(spec, ranks, torch.device("cpu"))
        given = recipe, *spec.benchmark.row_ends, 8
        planned = head_footprint(*given, 8, spec.classifier, spec.training, True, ranks.world)
        optimizers = [*state.row_optimizers.values()]
        held = (
            bytes_of(*(rows.weight for rows in state.blocks.values())),
            bytes_of(*(t for o in optimizers for t in (*o.state.values(), o._ids))),
        )
        rows = {
            key: (block.own_ids(), block.weight.detach(), block.weight.requires_grad)
            for key, block in state.blocks.items()
        }
        found[name] = (held, (planned.rows, planned.optimizer), rows, set(state.row_optimizers))
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_the_state_has_the_rows_that_are_planned_where_they_come_from(
    small_folder, tmp_path, world
):
    train_step(small_folder, tmp_path / "run", "finetune", 0, iterations=9)
    results = on_ranks(world, states_on_rank, small_folder, tmp_path / "run", folder=tmp_path / "s")
    previous = Model.open(tmp_path / "run" / "0" / "model").sharded_rows(Ranks()).weight.detach()
    old = len(previous)
    drawn = None
    for name in STATES:
        sizes = [result[name][0] for result in results]
        planned = results[0][name][1]
        assert planned[0] == max(rows for rows, _ in sizes), name
        assert planned[1] == max(optimizer for _, optimizer in sizes), name
        last = sum(len(ids) for result in results for ids, *_ in result[name][2].values())
        weight = torch.full((last, previous.shape[1]), torch.nan)
        for result in results:
            for key, (ids, own, trained) in result[name][2].items():
                weight[ids] = own
                assert trained == (key in result[name][3])
        assert weight.isfinite().all()
        kept = name != "joint"
        assert torch.equal(weight[:old], previous) == kept, name
        drawn = weight[old:] if drawn is None else drawn
        assert torch.equal(weight[old:], drawn), "new rows are the same whatever the layout"


def on_rank(small_folder, out, terms):
    return train_step(small_folder, out, "finetune", 1, terms=terms, learning_rate=0.005)


def test_two_losses_over_one_block_train_alike_in_parts_and_on_ranks(small_folder, tmp_path):
    """Where one of them updated its rows in the backward pass, the other would see them moved."""
    train_step(small_folder, tmp_path / "run", "finetune", 0, learning_rate=0.005)
    terms = ALL_ROWS, Distill(1.0, 5, 0.01, 2.0), Classify(over="old", name="old", weight=0.1)
    outs = {
        name: Path(shutil.copytree(tmp_path / "run", tmp_path / name))
        for name in ("alone", "ranks")
    }
    alone = on_rank(small_folder, outs["alone"], terms)
    for losses in on_ranks(
        2, on_rank, small_folder, outs["ranks"], terms, folder=tmp_path / "store"
    ):
        assert losses == pytest.approx(alone, rel=1e-3)
    a, b = (Model.open(o / "1" / "model").sharded_rows(Ranks()).weight for o in outs.values())
    torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("settings", [{}, {"optimizer": "adamw", "row_state": "int8"}])
def test_held_rows_stay_and_all_others_move_as_they_would(sparse, settings):
    training = TrainingSettings(weight_decay=0.1, **settings)
    for rank, world in ((0, 1), (0, 2), (1, 2), (2, 3)):
        moved = []
        for held in (0, OLD):
            rows = ShardedRows.new(0, ROWS, 4, 0, Ranks(rank, world))
            before = rows.weight.detach().clone()
            optimizer = RowOptimizer(rows, training, held)
            for seed in range(2):
                gradient = torch.randn(before.shape, generator=torch.manual_seed(seed))
                index = torch.arange(len(before))
                rows.weight.grad = (
                    sparse_rows(index, gradient, rows.weight.shape) if sparse else gradient
                )
                optimizer.step(0.1)
            moved.append(rows.weight.detach())
        old = rows.own_ids() < OLD
        assert torch.equal(moved[1][old], before[old])
        assert torch.equal(moved[1][~old], moved[0][~old])
        assert (moved[0] != before).all()


def test_who_holds_old_rows_says_so_in_the_layout():
    recipe = Recipe(start=Start(old_rows="held"), terms=(ALL_ROWS,))
    (block,) = row_blocks(recipe, OLD, ROWS).values()
    assert block == RowBlock(range(ROWS), kept=OLD, trained=True, held=OLD)
    assert not updates_in_backward(recipe, OLD), "it would move them"
    assert updates_in_backward(recipe.at(0, 0), 0)
    apart = Recipe(start=Start(old_rows="held"), terms=(Classify(), Distill(1.0, 3, 0.0, TAU)))
    assert row_blocks(apart, OLD, ROWS) == TWO[False]
    assert updates_in_backward(apart, OLD)
