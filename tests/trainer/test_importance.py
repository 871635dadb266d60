"""Importance of parameters: closed forms, each sample's own gradient, and however data are cut."""

import numpy as np
import pytest
import torch
from torch import nn

from data_shards.settings import InputError
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.importance import consolidated, importance_sums, read_sums, write_sums

SAMPLES, PIXELS, CLASSES = 37, 12, 5


class Linear(nn.Module):
    """W x of an image's pixels x."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(weight))
        self.eval()

    def forward(self, images):
        return images.flatten(1).to(self.weight.dtype) @ self.weight.T


@pytest.fixture(scope="module")
def case():
    """W [c, p], images [n, 3, 2, 2] and labels [n]."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(CLASSES, PIXELS)) / 4
    return weight, rng.normal(size=(SAMPLES, 3, 2, 2)), rng.integers(0, CLASSES, SAMPLES)


def measured(weight, images, labels, measure, batch=SAMPLES, logits=lambda x: x):
    """The product's mean over the samples, in batches of any size."""
    cut = [
        (torch.from_numpy(images[i : i + batch]), torch.from_numpy(labels[i : i + batch]))
        for i in range(0, len(images), batch)
    ]
    return importance_sums(Linear(weight), logits, measure, cut)["weight"].numpy() / len(images)


def gradients(weight, images, labels):
    """Of log softmax regression's log p(y | x), [n, c, p]: (1[k = y] - p_k) x_j."""
    x = images.reshape(len(images), -1)
    exponents = np.exp(x @ weight.T)
    shares = exponents / exponents.sum(axis=1, keepdims=True)
    return (np.eye(len(weight))[labels] - shares)[:, :, None] * x[:, None, :]


def test_logistic_regression_has_its_fisher_information(case):
    expected = np.mean(gradients(*case) ** 2, axis=0)
    np.testing.assert_allclose(measured(*case, "empirical-fisher"), expected, rtol=1e-12)


def test_logistic_regression_has_its_expected_information(case):
    """p_k (1 - p_k) x_j^2: the textbook's, which no label enters."""
    weight, images, labels = case
    x = images.reshape(SAMPLES, -1)
    exponents = np.exp(x @ weight.T)
    shares = exponents / exponents.sum(axis=1, keepdims=True)
    expected = np.mean((shares * (1 - shares))[:, :, None] * x[:, None, :] ** 2, axis=0)
    for given in (labels, labels[::-1].copy()):
        np.testing.assert_allclose(measured(weight, images, given, "fisher"), expected, rtol=1e-12)


def test_a_linear_map_has_its_sensitivity(case):
    """d ||W x||^2 / d W_kj = 2 (W x)_k x_j."""
    weight, images, _ = case
    x = images.reshape(SAMPLES, -1)
    expected = np.mean(np.abs(2 * (x @ weight.T)[:, :, None] * x[:, None, :]), axis=0)
    np.testing.assert_allclose(measured(*case, "sensitivity"), expected, rtol=1e-12)


def of_batch_means(case, batch, measure):
    """What many public implementations do: the gradient of a batch's mean, then its square."""
    weight, images, labels = case
    found = np.zeros_like(weight)
    for first in range(0, SAMPLES, batch):
        part = slice(first, first + batch)
        if measure == "empirical-fisher":
            mean = gradients(weight, images[part], labels[part]).mean(axis=0)
        else:
            x = images[part].reshape(len(images[part]), -1)
            mean = 2 * (x @ weight.T).T @ x / len(x)
        count = len(labels[part])
        found += (mean**2 if measure == "empirical-fisher" else np.abs(mean)) * count / SAMPLES
    return found


@pytest.mark.parametrize("measure", ["empirical-fisher", "sensitivity"])
def test_gradients_of_batch_means_are_refused(case, measure):
    """They are right for batches of one image only, and too small by more the larger the batch."""
    right = measured(*case, measure)
    np.testing.assert_allclose(of_batch_means(case, 1, measure), right, rtol=1e-12)
    shares = [of_batch_means(case, batch, measure).sum() / right.sum() for batch in (4, 12, 37)]
    assert 0.8 > shares[0] > shares[1] > shares[2]
    if measure == "empirical-fisher":
        assert shares[2] < 4 / 37, "about one over the batch's size"


@pytest.mark.parametrize("measure", ["empirical-fisher", "fisher", "sensitivity"])
def test_no_bit_depends_on_how_the_data_are_cut(case, measure):
    whole = measured(*case, measure)
    for batch in (1, 3, 36):
        assert np.array_equal(measured(*case, measure, batch), whole)


@pytest.fixture(scope="module")
def network():
    """A finished network, in float64, whose batch normalisation has seen something."""
    embedder = build_embedder(EmbedderSettings(width=2, depth=1, dimension=4), seed=3).double()
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (9, 3, 16, 16), generator=generator, dtype=torch.uint8)
    embedder.train()(images)
    rows = torch.randn(CLASSES, 4, generator=generator, dtype=torch.float64)
    return embedder.eval(), images, torch.arange(9) % CLASSES, rows


@pytest.mark.parametrize("measure", ["empirical-fisher", "sensitivity"])
def test_a_networks_importance_is_that_of_finite_differences(network, measure):
    embedder, images, labels, rows = network
    found = importance_sums(embedder, lambda e: e @ rows.T, measure, [(images, labels)])

    def said():
        """Each sample's own log probability, or its logits' squared length: [n]."""
        with torch.no_grad():
            logits = embedder(images) @ rows.T
        if measure == "sensitivity":
            return (logits * logits).sum(dim=1)
        exponents = (logits - logits.max()).exp()
        return (exponents[torch.arange(9), labels] / exponents.sum(dim=1)).log()

    rng = np.random.default_rng(0)
    for name, parameter in embedder.named_parameters():
        flat = parameter.data.view(-1)
        for place in rng.integers(0, len(flat), 3):
            kept, ends = float(flat[place]), []
            for way in (1e-6, -1e-6):
                flat[place] = kept + way
                ends.append(said())
            flat[place] = kept
            slope = (ends[0] - ends[1]) / 2e-6
            expected = (slope.square() if measure == "empirical-fisher" else slope.abs()).sum()
            assert float(found[name].view(-1)[place]) == pytest.approx(
                float(expected), rel=1e-4, abs=1e-7
            ), name


def test_a_network_that_trains_is_refused(network):
    """In training mode a sample's answer depends on its batch, so it has no gradient of its own."""
    embedder, images, labels, rows = network
    embedder.train()
    with pytest.raises(ValueError, match="eval"):
        importance_sums(embedder, lambda e: e @ rows.T, "empirical-fisher", [(images, labels)])
    embedder.eval()


def test_parts_of_any_size_add_up_to_the_mean_of_all_on_top_of_the_steps_before():
    rng = np.random.default_rng(0)
    samples = rng.random((10, 3))
    before, parameters = {"w": torch.full((3,), 2.0)}, {"w": torch.zeros(3)}
    parts = [
        ({"w": torch.from_numpy(own.sum(axis=0))}, len(own)) for own in np.split(samples, [1, 2, 7])
    ]
    for known, least in ((None, 0.0), (before, 2.0)):
        found, count = consolidated(parts, parameters, known)
        assert count == 10
        assert found.importance["w"].dtype == torch.float32
        np.testing.assert_allclose(found.importance["w"], samples.mean(axis=0) + least, rtol=1e-6)
        assert torch.equal(found.parameters["w"], parameters["w"])
    # the mean of the parts' means would weigh images by their shard's size
    wrong = np.mean([own["w"].numpy() / count for own, count in parts], axis=0)
    assert np.abs(wrong - samples.mean(axis=0)).max() > 0.01


def test_a_part_comes_back_and_only_for_its_model(tmp_path):
    sums = {"a.weight": torch.rand(3, 2, dtype=torch.float64), "b": torch.rand(1).double()}
    write_sums(tmp_path / "p.safetensors", sums, 7, "f" * 64)
    found, count = read_sums(tmp_path / "p.safetensors", "f" * 64)
    assert count == 7 and found.keys() == sums.keys()
    assert all(torch.equal(found[name], sums[name]) for name in sums)
    with pytest.raises(InputError, match="comes from model"):
        read_sums(tmp_path / "p.safetensors", "0" * 64)
