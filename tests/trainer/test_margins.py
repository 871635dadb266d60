"""Margins: textbook values and slopes, and sound where the textbook is not."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.reference import margin_target
from trainer.heads.margins import AdaFace, ArcFace, Combined, CosFace, NormSoftmax, monotonic_cosine

MARGINS = {
    "norm_softmax": NormSoftmax(),
    "cosface": CosFace(),
    "arcface": ArcFace(),
    "combined": Combined(),
    "all three": Combined(m1=1.35, m2=0.3, m3=0.1),
    "adaface": AdaFace(),
}
NORMS = torch.linspace(3, 60, 41, dtype=torch.float64)


def running(margin):
    known = {"norm_mean": 30.0, "norm_deviation": 12.0}
    return {name: torch.tensor(known[name], dtype=torch.float64) for name in margin.initial()}


def ours(margin, cosine):
    return margin.target(cosine, NORMS[: len(cosine)], running(margin))


@pytest.mark.parametrize("name", MARGINS)
def test_values_and_slopes_are_the_textbooks(name):
    """Where theta and the margin together stay between 0 and pi; slopes by float64 autograd."""
    margin = MARGINS[name]
    cosine = torch.linspace(-0.5, 0.85, 41, dtype=torch.float64, requires_grad=True)
    expected = margin_target(margin, cosine, NORMS, 30.0, 12.0)
    (slope,) = torch.autograd.grad(expected.sum(), cosine)
    value, given_slope = ours(margin, cosine.detach())
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(given_slope, slope, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MARGINS)
def test_values_and_slopes_are_finite_at_the_ends(name, dtype):
    cosine = torch.tensor([1.0, -1.0, 1 + 1e-6, -1 - 1e-6, 1 - 1e-7, 0.0], dtype=dtype)
    for tensor in ours(MARGINS[name], cosine):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("name", [n for n in MARGINS if n != "adaface"])
@given(angles=st.lists(st.floats(0, math.pi), min_size=2, max_size=2))
def test_a_nearer_embedding_never_has_a_lower_target(name, angles):
    """Beyond pi - m, too, where the cosine of theta + m rises again."""
    near, far = ours(MARGINS[name], torch.tensor(sorted(angles), dtype=torch.float64).cos())[0]
    assert near >= far


@pytest.mark.parametrize("name", MARGINS)
def test_the_slope_never_pushes_an_embedding_away(name):
    slope = ours(MARGINS[name], torch.linspace(-1, 1, 41, dtype=torch.float64))[1]
    assert (slope >= 0).all()


def test_the_target_is_continuous_where_it_is_continued():
    margin = Combined(m1=2.5, m2=0.3, m3=0.0)
    theta = torch.linspace(0.01, math.pi - 0.01, 4001, dtype=torch.float64)
    value = margin.target(theta.cos(), theta, {})[0]
    assert value.diff().abs().max() < 2.5 * theta.diff().max() * 1.01
    assert value.min() < -3.5, "three half turns go down to about -2k - 1"


def test_adafaces_margin_follows_the_norm():
    """Long embeddings (good images) get the angular margin of -m, short ones +m."""
    margin, cosine = AdaFace(), torch.full((3,), 0.3, dtype=torch.float64)
    norms = torch.tensor([0.1, 30.0, 100.0], dtype=torch.float64)
    state = {"norm_mean": torch.tensor(30.0), "norm_deviation": torch.tensor(5.0)}
    value = margin.target(cosine, norms, state)[0]
    theta = math.acos(0.3)
    expected = [math.cos(theta + 0.4), 0.3 - 0.4, math.cos(theta - 0.4) - 0.8]
    assert value.tolist() == pytest.approx(expected, abs=1e-9)


def test_adafaces_statistics_follow_the_batch_and_survive_a_bad_one():
    margin = AdaFace(momentum=0.25)
    state = margin.initial()
    margin.observe(torch.tensor([10.0, 14.0]), state)
    assert state["norm_mean"].item() == pytest.approx(0.75 * 20 + 0.25 * 12)
    assert state["norm_deviation"].item() == pytest.approx(0.75 * 100 + 0.25 * math.sqrt(8))
    before = {k: v.clone() for k, v in state.items()}
    margin.observe(torch.tensor([10.0, float("nan")]), state)
    assert state == before


def test_an_angle_that_a_negative_shift_takes_below_zero_counts_as_zero():
    """Low-quality images under AdaFace: the logit is 1 there, and nothing pulls it."""
    cosine = torch.tensor([0.99, 0.5], dtype=torch.float64)
    value, slope = monotonic_cosine(cosine, 1.0, -0.4)
    assert value[0] == 1 and slope[0] == 0
    assert value[1] < 1 and slope[1] > 0
