"""The gate's bootstrap: equal to resampling trial by trial, and right about known truths."""

import numpy as np
import pytest

from tests.trainer.compatibility.worlds import accepted
from trainer.evaluation.compatibility.bootstrap import interval, resampled
from trainer.evaluation.compatibility.comparison import judge
from trainer.evaluation.compatibility.figures import Accepted, MeanOf, Share

CONFIDENCE = 0.9


def ones(n):
    return np.ones((1, n), dtype=np.int64)


@pytest.mark.parametrize("seed", range(4))
def test_weights_equal_repeating_the_trials(seed):
    draw = np.random.default_rng(seed)
    n, drawn = 12, resampled(12, 7)
    identity, value = draw.integers(n, size=90), draw.random(90)
    genuine, impostor = draw.normal(1, 1, 90).round(1), draw.normal(0, 1, 400).round(1)
    genuine[:5] = -np.inf
    by = draw.integers(n, size=400)
    share, rates = Share(identity, value).values(drawn), (0.01, 0.05, 0.6)
    some = {rate: Accepted(genuine, identity, impostor, by, rate).values(drawn) for rate in rates}
    for row, weights in enumerate(drawn):
        repeated = np.repeat(value, weights[identity])
        assert share[row] == pytest.approx(repeated.mean())
        left = np.repeat(genuine, weights[identity])
        right = np.repeat(impostor, weights[by])
        for rate in rates:
            wanted = accepted(left[left > -np.inf], right, rate) * np.mean(left > -np.inf)
            assert some[rate][row] == pytest.approx(wanted)


def test_more_impostors_than_are_held_at_first_change_nothing():
    draw = np.random.default_rng(0)
    impostor, by = draw.normal(size=5000), np.zeros(5000, dtype=np.int64)
    by[np.argsort(-impostor)[:900]] = 1  # all the best scores are one identity's
    genuine, identity = draw.normal(2, 1, 300), draw.integers(2, size=300)
    weights = np.array([[2, 0], [1, 1], [0, 2]])
    found = Accepted(genuine, identity, impostor, by, 0.01).values(weights)
    for row, drawn in enumerate(weights):
        left, right = np.repeat(genuine, drawn[identity]), np.repeat(impostor, drawn[by])
        assert found[row] == pytest.approx(accepted(left, right, 0.01))


def test_draws_are_of_whole_identities_and_always_the_same():
    drawn = resampled(50, 200)
    assert (drawn.sum(1) == 50).all() and drawn.min() == 0
    assert (drawn == resampled(50, 200)).all()
    assert len(np.unique(drawn, axis=0)) == 200
    assert abs(drawn.mean(0) - 1).max() < 0.3


def test_resamples_without_a_trial_say_nothing():
    values = Share(np.array([0, 0]), np.array([1.0, 0.0])).values(np.array([[0, 2], [2, 0]]))
    assert np.isnan(values[0]) and values[1] == 0.5
    assert interval(values, 0.9) == (0.5, 0.5)


def rights(draw, truth, skill, shift):
    """Whether `shift` better or worse than the old model each query is, by identity."""
    ease = skill + 0.25 * draw.normal(size=truth)  # an identity's queries stand and fall together
    identity = np.repeat(np.arange(truth), 4)
    luck = draw.normal(size=len(identity)) * 0.25
    before = ease[identity] + luck > 0
    after = ease[identity] + 0.1 * draw.normal(size=len(identity)) + luck + shift > 0
    return {
        "old_old": Share(identity, before),
        "new_old": Share(identity, after),
        "new_new": Share(identity, after),
    }


def gains(shift, times, people=150, drawn=resampled(150, 400)):  # noqa: B008
    found = []
    for seed in range(times):
        figures = rights(np.random.default_rng([seed, 7]), people, 0.2, shift)
        found.append(judge(figures, drawn, CONFIDENCE))
    return found


def true_gain(shift):
    figures = rights(np.random.default_rng(99), 400_000, 0.2, shift)
    everybody = ones(400_000)
    return float((figures["new_old"].values(everybody) - figures["old_old"].values(everybody))[0])


def equal_shift():
    """The shift at which the truth is equality: the new model's own noise costs it something."""
    low, high = 0.0, 0.05
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if true_gain(middle) < 0 else (low, middle)
    return (low + high) / 2


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    truth, times = true_gain(0.06), 400
    inside = np.mean([g["gain"]["low"] <= truth <= g["gain"]["high"] for g in gains(0.06, times)])
    # 90 % ± three standard errors of the simulation, and a point for the bootstrap's own error
    assert 0.845 <= inside <= 0.955


def test_where_the_truth_is_equality_the_gate_opens_as_rarely_as_it_says():
    assert 0.04 <= np.mean([g["holds"] for g in gains(equal_shift(), 400)]) <= 0.155


def test_what_is_clearly_better_passes_and_what_is_clearly_worse_does_not():
    assert np.mean([g["holds"] for g in gains(0.12, 60)]) == 1
    assert np.mean([g["holds"] for g in gains(-0.06, 60)]) == 0


def accepts(draw, people, shift):
    """Pairs of one genuine and six impostor scores a trial, two trials an identity."""
    ease = 0.5 * draw.normal(size=people)
    left, wrong = np.repeat(np.arange(people), 2), np.repeat(np.arange(people), 12)
    genuine, impostor = draw.normal(size=len(left)), draw.normal(size=len(wrong))

    def figure(better, noise):
        own = 2.2 + ease[left] + genuine + better + noise * draw.normal(size=len(left))
        other = 0.4 * ease[wrong] + impostor + noise * draw.normal(size=len(wrong))
        scale = np.sqrt(1 + noise**2)
        return Accepted(own / scale, left, other / scale, wrong, 0.02)

    new = figure(shift, 0.3)
    return {"old_old": figure(0, 0), "new_old": new, "new_new": new}


def true_difference(shift):
    figures = accepts(np.random.default_rng(5), 150_000, shift)
    everybody = ones(150_000)
    return float((figures["new_old"].values(everybody) - figures["old_old"].values(everybody))[0])


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_thresholds_found_anew_in_each_resample_make_intervals_honest(shift):
    truth, drawn, inside = true_difference(shift), resampled(300, 300), []
    for seed in range(300):
        gain = judge(accepts(np.random.default_rng([seed, 3]), 300, shift), drawn, 0.9)["gain"]
        inside.append(gain["low"] <= truth <= gain["high"])
    assert 0.86 <= np.mean(inside) <= 0.98  # of 90 %: it errs on the safe side


def test_the_gate_rarely_opens_at_equal_accept_rates():
    assert abs(true_difference(0.0949)) < 1e-3
    drawn = resampled(300, 300)
    worlds = (accepts(np.random.default_rng([seed, 3]), 300, 0.0949) for seed in range(400))
    assert 0.02 <= np.mean([judge(world, drawn, 0.9)["holds"] for world in worlds]) <= 0.12


def test_the_update_gain_is_told_only_where_the_criterion_holds():
    draw, drawn = np.random.default_rng(1), resampled(150, 200)
    better, worse = rights(draw, 150, 0.2, 0.12), rights(draw, 150, 0.2, -0.1)
    everybody = Share(np.arange(150), np.ones(150))
    for figures, told in ((better, True), (worse, False)):
        found = judge({**figures, "paragon": everybody}, drawn, 0.9)
        assert (found["update_gain"] is not None) is told
        assert judge(figures, drawn, 0.9)["update_gain"] is None
    found = judge({**better, "paragon": everybody}, drawn, 0.9)
    wanted = (found["new_old"] - found["old_old"]) / (1 - found["old_old"])
    assert found["update_gain"]["value"] == pytest.approx(wanted)
    assert judge({**better, "paragon": better["old_old"]}, drawn, 0.9)["update_gain"] is None


def test_galleries_weigh_alike():
    one, other = Share(np.array([0]), np.array([1.0])), Share(np.array([1] * 9), np.zeros(9))
    assert MeanOf([one, other]).values(ones(2))[0] == 0.5
