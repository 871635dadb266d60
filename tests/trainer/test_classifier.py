"""The sharded classifier equals a dense float64 softmax, in every mode and at any world size."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.ranks import on_ranks
from tests.trainer.reference import margin_softmax
from tests.trainer.test_margins import MARGINS
from trainer.heads import softmax_kernels
from trainer.heads.collectives import Ranks
from trainer.heads.cross_entropy import Update
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.margins import CosFace, Softmax
from trainer.heads.neighbourhood import activations
from trainer.heads.precision import logits_product
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows, own_ids
from trainer.optimizers import TrainingSettings

BATCH, FIRST, DIMENSION = 9, 4, 6
EVERY = {"softmax": Softmax(), **MARGINS}
DEVICE = torch.device("cpu")


def case(count=11, scale=1.0, dtype=torch.float64):
    """Embeddings [B, d], labels [B], all rows [count, d]."""
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(BATCH, DIMENSION, generator=generator, dtype=torch.float64) * scale
    rows = torch.randn(count, DIMENSION, generator=generator, dtype=torch.float64)
    labels = torch.randint(FIRST, FIRST + count, (BATCH,), generator=generator)
    return embeddings.to(dtype), labels, rows.to(dtype)


def sharded(rows, ranks):
    ids = own_ids(FIRST, FIRST + len(rows), ranks)
    return ShardedRows(FIRST, FIRST + len(rows), rows[ids - FIRST].clone(), ranks)


def step(settings, given, iteration=0, update=None):
    """Losses, the embeddings' gradient and the block of rows after backward on this rank."""
    embeddings, labels, rows = given
    embeddings = embeddings.clone().requires_grad_()
    block = sharded(rows, Ranks.default())
    weights = torch.linspace(0.5, 2, BATCH, dtype=embeddings.dtype)
    optimizer = RowOptimizer(block, update) if update else None
    classifier = MarginLoss(settings, 3, DEVICE)
    fused = Update(optimizer, 0.1) if optimizer else None
    losses = classifier.losses(embeddings, labels, block, iteration, fused)
    (losses * weights).sum().backward()
    return losses.detach(), embeddings.grad, block


def dense(gradient):
    return gradient.to_dense() if gradient.is_sparse else gradient


def on_rank(count, variants):
    out = {}
    for name, settings in variants.items():
        losses, grad, block = step(settings, case(count, 5.0))
        out[name] = losses, grad, block.own_ids(), dense(block.weight.grad)
    return out


@pytest.mark.parametrize(("world", "count"), [(1, 11), (2, 11), (3, 11), (3, 2)])
def test_losses_and_gradients_equal_the_dense_reference(world, count, tmp_path):
    """Uneven rows, a rank without any, every margin, with and without a buffer of logits."""
    variants = {
        f"{name}, {memory}": ClassifierSettings(margin=margin, memory=memory)
        for name, margin in EVERY.items()
        for memory in (None, 400)
    }
    results = on_ranks(world, on_rank, count, variants, folder=tmp_path / "ranks")
    for name, settings in variants.items():
        embeddings, labels, rows = case(count, 5.0)
        embeddings.requires_grad_(), rows.requires_grad_()
        state = settings.margin.initial() if name.startswith("adaface") else {}
        if state:
            settings.margin.observe(embeddings.detach().norm(dim=1), state)
        losses = margin_softmax(
            embeddings, labels - FIRST, rows, settings.margin, *map(float, state.values())
        )
        (losses * torch.linspace(0.5, 2, BATCH, dtype=torch.float64)).sum().backward()
        for got in (result[name] for result in results):
            torch.testing.assert_close(got[0], losses.detach(), rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(got[1], embeddings.grad, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(got[3], rows.grad[got[2] - FIRST], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("sampled", [1.0, 0.4])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("memory", [None, 400])
def test_updating_rows_in_the_backward_pass_changes_nothing(sampled, optimizer, memory):
    settings = ClassifierSettings(margin=CosFace(), sampled=sampled, memory=memory)
    training = TrainingSettings(iterations=1, optimizer=optimizer)
    given = case(200, dtype=torch.float32)
    _, _, apart = step(settings, given, 5)
    RowOptimizer(apart, training).step(0.1)
    _, _, fused = step(settings, given, 5, update=training)
    assert fused.weight.grad is None
    assert torch.equal(apart.weight, fused.weight)


def drawn(iteration, memory):
    settings = ClassifierSettings(margin=CosFace(), sampled=0.3, memory=memory)
    losses, grad, block = step(settings, case(300), iteration)
    gradient = block.weight.grad.coalesce()
    return losses, grad, block.own_ids()[gradient.indices()[0]], gradient.values()


def drawn_on_rank():
    return [drawn(7, memory) for memory in (None, 4000)]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_sampled_loss_is_the_dense_loss_over_the_drawn_rows(world, tmp_path):
    embeddings, labels, rows = case(300)
    alone = drawn(7, None)[2]
    on_every_rank = (
        on_ranks(world, drawn_on_rank, folder=tmp_path) if world > 1 else [[drawn(7, 4)]]
    )
    for results in zip(*on_every_rank, strict=True):
        taken = torch.cat([result[2] for result in results])
        values = torch.cat([result[3] for result in results])[taken.argsort()]
        taken = taken.sort().values
        assert torch.equal(taken, alone), "whatever the world size"
        assert set(labels.tolist()) <= set(taken.tolist())
        assert 60 < len(taken) < 130, "0.3 of 300 rows, and the targets"
        some = rows[taken - FIRST].clone().requires_grad_()
        given = embeddings.clone().requires_grad_()
        losses = margin_softmax(given, torch.searchsorted(taken, labels), some, CosFace())
        (losses * torch.linspace(0.5, 2, BATCH, dtype=torch.float64)).sum().backward()
        torch.testing.assert_close(results[0][0], losses.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(results[0][1], given.grad, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(values, some.grad, rtol=1e-9, atol=1e-9)


def test_every_iteration_draws_other_rows():
    draws = [set(drawn(i, None)[2].tolist()) for i in (7, 8)]
    assert len(draws[0] & draws[1]) < 0.6 * len(draws[0])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_huge_linear_logits_neither_overflow_nor_vanish(scale):
    given = case(50, scale, torch.float32)
    losses, grad, _ = step(ClassifierSettings(), given)
    embeddings, labels, rows = (tensor.double() for tensor in given)
    expected = margin_softmax(embeddings, labels.long() - FIRST, rows, Softmax())
    assert grad.isfinite().all()
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)


def test_bf16_rounds_factors_but_never_logits():
    """Factors that bf16 holds exactly give the exact logit, which bf16 could not hold."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-8, 9, (32, 512), generator=generator).float()
    b = torch.randint(-8, 9, (512, 64), generator=generator).float() / 8
    exact = a.double() @ b.double()
    assert (exact.bfloat16().double() != exact).any()
    assert torch.equal(logits_product(a, b, half=True).double(), exact)


@pytest.mark.skipif(
    not torch.cpu._is_amx_tile_supported(), reason="without AMX factors stay fp32 on a CPU"
)
def test_bf16_logits_see_rounded_factors():
    fine = 1 + 2.0**-10  # bf16 has seven bits: it is 1 there
    product = logits_product(torch.full((64, 256), fine), torch.ones(256, 64), half=True)
    assert (product == 256).all()


def test_bf16_losses_are_near_fp32_ones():
    given = case(500, dtype=torch.float32)
    exact, half = (
        step(ClassifierSettings(margin=CosFace(), precision=precision), given)
        for precision in ("fp32", "bf16")
    )
    torch.testing.assert_close(half[0], exact[0], rtol=0.02, atol=0.3)
    cosine = torch.nn.functional.cosine_similarity(half[1].flatten(), exact[1].flatten(), dim=0)
    assert cosine > 0.999


@pytest.mark.parametrize("label", [-1, FIRST - 1, FIRST + 11])
def test_a_label_beyond_the_rows_is_refused(label):
    embeddings, labels, rows = case()
    labels[3] = label
    with pytest.raises(ValueError, match=rf"beyond the classifier's rows 4 to 14: {label}"):
        step(ClassifierSettings(), (embeddings, labels, rows))


def test_labels_of_another_type_are_refused():
    embeddings, labels, rows = case()
    with pytest.raises(ValueError, match=r"int64.*float32"):
        step(ClassifierSettings(), (embeddings, labels.float(), rows))


@pytest.mark.parametrize("normalised", [False, True])
def test_gathered_activations_have_sparse_true_gradients(normalised):
    embeddings, _, rows = case(30)
    classes = torch.randint(FIRST, FIRST + 12, (BATCH, 5)) * 2 % 30 + FIRST
    given, block = embeddings.clone().requires_grad_(), sharded(rows, Ranks())
    embeddings.requires_grad_(), rows.requires_grad_()
    directions = torch.nn.functional.normalize(rows) if normalised else rows
    expected = torch.einsum("bd,bkd->bk", embeddings, directions[classes - FIRST])
    got = activations(given, block, classes, normalised)
    torch.testing.assert_close(got, expected)
    (got * got).sum().backward(), (expected * expected).sum().backward()
    torch.testing.assert_close(given.grad, embeddings.grad)
    gradient = block.weight.grad.coalesce()
    assert set((gradient.indices()[0] + FIRST).tolist()) == set(classes.flatten().tolist())
    torch.testing.assert_close(gradient.to_dense(), rows.grad)


@pytest.mark.parametrize("sampled", [1.0, 0.1])
@pytest.mark.parametrize("memory", [None, 4000])
def test_a_gpu_is_never_waited_for(sampled, memory, monkeypatch):
    """On a device whose values cannot be looked at, any wait is an error."""
    monkeypatch.setattr(softmax_kernels, "fused", lambda tensor: False)  # there is no GPU to run on
    settings = ClassifierSettings(margin=CosFace(), sampled=sampled, memory=memory)
    with FakeTensorMode():
        device = torch.device("cuda")
        rows = ShardedRows(0, 300, torch.empty(300, DIMENSION, device=device), Ranks())
        optimizer = RowOptimizer(rows, TrainingSettings(iterations=1))
        embeddings = torch.empty(BATCH, DIMENSION, device=device, requires_grad=True)
        labels = torch.empty(BATCH, dtype=torch.int64, device=device)
        classifier = MarginLoss(settings, 0, device)
        losses = classifier.losses(embeddings, labels, rows, 3, Update(optimizer, 0.1))
        losses.grad_fn.apply(torch.empty_like(losses))  # autograd's engine needs a real device
        with pytest.raises(Exception, match="local_scalar"):
            losses.mean().item()
