"""Normal distributions of identities' embeddings: their formula, their samples, who is drawn."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from data_shards.settings import InputError
from tests.trainer.loops import any_generator
from trainer.checkpoint import Folder, save_folder
from trainer.heads.collectives import Ranks
from trainer.methods.replay import Generator
from trainer.replay.gaussian import Gaussians, grown, moments
from trainer.replay.source import replayed

CPU = torch.device("cpu")
KINDS = ("full", "shared", "diagonal")


def few(counts, dimension, seed=0):
    """Vectors of identities with so many each."""
    generator = np.random.default_rng(seed)
    rows = np.repeat(np.arange(len(counts)), counts)
    centres = generator.normal(size=(len(counts), dimension)) * 5
    vectors = centres[rows] + generator.normal(size=(len(rows), dimension)) @ np.diag(
        np.arange(1, dimension + 1)
    )
    return vectors.astype(np.float32), rows


def by_loops(vectors, rows):
    """Means and covariances of the formula, one vector and one pair of numbers at a time."""
    dimension, identities = vectors.shape[1], sorted({*rows.tolist()})
    own = {
        c: [v.astype(float) for v, row in zip(vectors, rows, strict=True) if row == c]
        for c in identities
    }
    means = {c: sum(vs) / len(vs) for c, vs in own.items()}
    scatter = {
        c: [
            [sum((v[i] - means[c][i]) * (v[j] - means[c][j]) for v in vs) for j in range(dimension)]
            for i in range(dimension)
        ]
        for c, vs in own.items()
    }
    scatter = {c: np.array(a) for c, a in scatter.items()}
    total, degrees = sum(scatter.values()), len(vectors) - len(identities)
    variance = sum(total[i, i] for i in range(dimension)) / degrees / dimension
    common = (total + dimension * variance * np.eye(dimension)) / (degrees + dimension)
    full = {
        c: (scatter[c] + dimension * common) / (len(own[c]) - 1 + dimension) for c in identities
    }
    variances = (np.diag(total) + variance) / (degrees + 1)
    diagonal = {c: np.diag((np.diag(scatter[c]) + variances) / len(own[c])) for c in identities}
    shared = dict.fromkeys(identities, common)
    return means, {"full": full, "shared": shared, "diagonal": diagonal}


def gaussian(vectors, rows, kind, before=None, first=0):
    how = Gaussians(kind)
    return how.source(
        grown(before, [moments(vectors, rows, kind)], first, int(rows.max()) + 1, kind), CPU
    )


def covariance_of(source, row):
    """What its features' covariance is, from what it makes of unit noise."""
    dimension = source.noise
    same = torch.full((dimension,), row)
    reach = source.features(same, torch.eye(dimension)) - source.features(
        same, torch.zeros(dimension, dimension)
    )
    return (reach.T @ reach).double().numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_distributions_are_those_of_the_formula_and_of_full_rank(kind):
    """Of identities with one image, with fewer than there are dimensions, and with more."""
    vectors, rows = few([1, 2, 4, 30], 6)
    source = gaussian(vectors, rows, kind)
    means, covariances = by_loops(vectors, rows)
    for row, expected in covariances[kind].items():
        np.testing.assert_allclose(source.means[row], means[row], rtol=1e-5, atol=1e-5)
        found = covariance_of(source, row)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        assert np.linalg.matrix_rank(found) == 6


def test_embeddings_that_are_all_the_same_are_drawn_as_they_are():
    vectors, rows = np.ones((6, 4), dtype=np.float32), np.arange(6) // 3
    for kind in KINDS:
        features = gaussian(vectors, rows, kind).features(torch.tensor([0, 1]), torch.ones(2, 4))
        torch.testing.assert_close(features, torch.ones(2, 4), rtol=0, atol=1e-4)


def test_samples_have_the_means_and_covariances_of_a_known_mixture():
    """Within 5 standard errors of what is estimated from so many vectors and of so many samples."""
    generator, dimension, images, samples = np.random.default_rng(0), 5, 4000, 4000
    mixture = []
    for _ in range(3):
        square = generator.normal(size=(dimension, dimension))
        mixture.append((generator.normal(size=dimension) * 4, square @ square.T / 2))
    vectors = np.concatenate([generator.multivariate_normal(*own, size=images) for own in mixture])
    rows = np.repeat(np.arange(3), images)
    source = gaussian(vectors.astype(np.float32), rows, "full")
    drawn, classes = replayed(source, 3 * samples, 0, 0, CPU)
    error = 5 * math.sqrt(1 / images + 1 / samples)
    for row, (mean, covariance) in enumerate(mixture):
        own = drawn[classes == row].double().numpy()
        assert len(own) == samples
        deviations = np.sqrt(np.diag(covariance))
        assert (np.abs(own.mean(axis=0) - mean) < error * deviations).all()
        spread = np.sqrt(covariance**2 + np.outer(deviations, deviations) ** 2)
        assert (np.abs(np.cov(own.T) - covariance) < error * spread).all()


def test_the_noise_is_not_one_number_for_all_dimensions():
    """As a released code has it, whose features lie on a line."""
    vectors, rows = few([200, 200], 4)
    for kind in KINDS:
        drawn, classes = replayed(gaussian(vectors, rows, kind), 100, 0, 0, CPU)
        own = drawn[classes == 1].double()
        assert torch.linalg.matrix_rank(own - own.mean(dim=0), rtol=1e-3) == 4


def test_each_identity_is_drawn_equally_often():
    vectors, rows = few([3] * 7, 4)
    source = gaussian(vectors, rows, "shared")
    for count, iterations in ((21, 4), (10, 7), (3, 14)):
        drawn = [replayed(source, count, 5, i, CPU)[1] for i in range(iterations)]
        for classes in drawn if count >= 7 else []:
            counts = torch.bincount(classes, minlength=7)
            assert counts.max() - counts.min() <= 1
        counts = torch.bincount(torch.cat(drawn), minlength=7)
        assert counts.max() == counts.min() == count * iterations / 7


@pytest.mark.parametrize("kind", KINDS)
def test_a_feature_depends_on_its_own_numbers_alone(kind):
    vectors, rows = few([9] * 90, 5)
    source = gaussian(vectors, rows, kind)
    noise, classes = torch.randn(90, 5), torch.randperm(90)
    every = source.features(classes, noise)
    for number in (0, 40, 89):
        own = source.features(classes[number : number + 1], noise[number : number + 1])
        torch.testing.assert_close(own[0], every[number])
    again, _ = replayed(source, 8, 3, 4, CPU)
    assert torch.equal(again, replayed(source, 8, 3, 4, CPU)[0])
    assert not torch.equal(again, replayed(source, 8, 3, 5, CPU)[0])
    assert not torch.equal(again, replayed(source, 8, 4, 4, CPU)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_units_of_any_size_make_the_same(kind):
    vectors, rows = few([3, 1, 8, 2, 5], 4)
    whole = grown(None, [moments(vectors, rows, kind)], 0, 5, kind)
    for cut in (1, 3):
        masks = rows < cut, rows >= cut
        parts = [moments(vectors[own], rows[own], kind) for own in masks]
        found = grown(None, parts, 0, 5, kind)
        for name in whole:
            torch.testing.assert_close(found[name], whole[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_earlier_identities_stay_as_they_were(kind):
    """But for a shared covariance, which is that of all."""
    vectors, rows = few([3, 1, 8, 2, 5], 4)
    old, new = rows < 3, rows >= 3
    before = grown(None, [moments(vectors[old], rows[old], kind)], 0, 3, kind)
    then = grown(before, [moments(vectors[new], rows[new], kind)], 3, 5, kind)
    once = grown(None, [moments(vectors, rows, kind)], 0, 5, kind)
    if kind == "shared":
        torch.testing.assert_close(then, once, rtol=1e-12, atol=1e-12)
    for name in ("means", "factors", "deviations"):
        if name in before:
            assert torch.equal(then[name][:3], before[name])
    # a step that brings nothing, as the first of a run that continues another
    assert all(torch.equal(own, before[n]) for n, own in grown(before, [], 0, 3, kind).items())


def test_what_cannot_be_drawn_is_refused(tmp_path):
    vectors, rows = few([3, 0, 8], 4)
    with pytest.raises(InputError, match="row 1 has no image"):
        grown(None, [moments(vectors, rows, "full")], 0, 3, "full")
    before = any_generator(3, 4, Gaussians("full"))
    longer, more = few([2, 2], 6)
    with pytest.raises(InputError, match="have 4 numbers, and embeddings are 6 long"):
        grown(before, [moments(longer, more + 3, "full")], 3, 5, "full")
    with pytest.raises(InputError, match="of 3 identities can be drawn, and there are 5"):
        grown(before, [], 0, 5, "full")
    save_folder(tmp_path / "g", *Gaussians("full").files(before), Ranks())
    found = Generator(Gaussians("full")).load(tmp_path / "g", Ranks(), CPU)
    assert torch.equal(found.means, before["means"])
    with pytest.raises(InputError, match="covariance = full, not shared"):
        Generator(Gaussians("shared")).load(tmp_path / "g", Ranks(), CPU)

    @dataclass(frozen=True)
    class Other(Gaussians):
        of = "other"

    with pytest.raises(InputError, match="of = gaussian, not other"):
        Other("full").read(Folder.at(tmp_path / "g"), CPU)


def test_a_generators_bytes_are_in_its_card():
    for kind, numbers in (("full", 10), ("diagonal", 4)):
        state = any_generator(7, 4, Gaussians(kind))
        assert Gaussians(kind).files(state)[1]["bytes"] == 7 * 4 * (4 + numbers)
    state = any_generator(7, 4, Gaussians("shared"))
    assert Gaussians("shared").files(state)[1]["bytes"] == 7 * 4 * 4 + 8 * 10 + 8
