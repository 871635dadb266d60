"""What DALI decodes is what the order asked for, at any world size."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from data_shards.augmentation import AugmentationSettings, augment
from data_shards.orders.order import IdentitySettings, UniformOrder, make_order
from data_shards.pipeline import PipelineSettings, training_batches
from data_shards.quarantine import Quarantine
from data_shards.settings import InputError
from data_shards.splits.benchmark import build_benchmark
from data_shards.splits.benchmark_settings import BenchmarkSettings

SETTINGS = PipelineSettings(
    augmentation=AugmentationSettings(flip=True, shift=2, fill=7, erase=0.5), max_quarantined=3
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def benchmark(small):
    return build_benchmark(small, BenchmarkSettings(steps=2, test_identities=20, pairs=20))


def identities(small, benchmark):
    settings = IdentitySettings(kind="identities", images_per_identity=3)
    return make_order(settings, benchmark.steps[0], small.identity, small.shard, 30, 5)


def batches(small, benchmark, rank=0, world=1, iterations=range(4), settings=SETTINGS, **other):
    order = other.pop("order", UniformOrder(benchmark.steps[0], 5))
    quarantine = other.pop("quarantine", Quarantine(None, settings.max_quarantined))
    return list(
        training_batches(
            small,
            benchmark.row_of_identity,
            order,
            5,
            iterations,
            30,
            rank,
            world,
            settings,
            CPU,
            quarantine,
        )
    )


def expected_image(dataset, sample, flipped, shift, erased):
    """Decoded by PIL; moved, mirrored and erased by NumPy."""
    image = np.asarray(Image.open(io.BytesIO(dataset.image(sample))).convert("RGB"))
    moved = np.full_like(image, 7)
    height, width, _ = image.shape
    for row in range(height):
        for column in range(width):
            y, x = row - shift[0], column - shift[1]
            if 0 <= y < height and 0 <= x < width:
                moved[row, column] = image[y, x]
    done = moved[:, ::-1].copy() if flipped else moved
    top, left, height, width = erased
    done[top : top + height, left : left + width] = (124, 116, 104)
    return done


def test_images_and_labels_are_those_of_the_samples(small, benchmark):
    order = UniformOrder(benchmark.steps[0], 5)
    for number, batch in enumerate(batches(small, benchmark)):
        positions = np.arange(30 * number, 30 * number + 30)
        assert np.array_equal(batch.samples, order.at(positions))
        drawn = augment(SETTINGS.augmentation, 5, order.epoch(positions), batch.samples, (16, 16))
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for i, sample in enumerate(batch.samples.tolist()):
            assert batch.labels[i] == benchmark.row_of_identity[small.identity[sample]]
            wanted = expected_image(
                small, sample, drawn.flipped[i], drawn.shift[i], drawn.erased[i]
            )
            found = batch.images[i].permute(1, 2, 0).numpy().astype(int)
            assert np.abs(found - wanted).max() <= 4  # two JPEG decoders


@pytest.mark.parametrize(("world", "balanced"), [(2, False), (3, False), (7, False), (2, True)])
def test_ranks_together_see_the_same_batches_bit_for_bit(small, benchmark, world, balanced):
    order = identities(small, benchmark) if balanced else UniformOrder(benchmark.steps[0], 5)
    alone = batches(small, benchmark, order=order)
    parts = [batches(small, benchmark, rank, world, order=order) for rank in range(world)]
    for number, whole in enumerate(alone):
        together = torch.cat([part[number].images for part in parts])
        assert torch.equal(together, whole.images)
        assert torch.equal(torch.cat([part[number].labels for part in parts]), whole.labels)


def test_starting_later_gives_the_same_batches(small, benchmark):
    late = batches(small, benchmark, iterations=range(2, 4))
    for a, b in zip(batches(small, benchmark)[2:], late, strict=True):
        assert torch.equal(a.images, b.images)


def damaged(small, samples):
    crc = small.crc32.copy()
    crc[samples] ^= 1
    return dataclasses.replace(small, crc32=crc)


def test_a_damaged_sample_is_replaced_by_the_next_in_order_and_listed(small, benchmark, tmp_path):
    order = UniformOrder(benchmark.steps[0], 5)
    stream = order.at(np.arange(200))
    bad = stream[[3, 4]]
    log, counted = tmp_path / "quarantine.jsonl", []
    quarantine = Quarantine(log, 3, lambda: counted.append(1))
    first = batches(damaged(small, bad), benchmark, quarantine=quarantine, iterations=range(1))[0]
    assert first.samples[[3, 4]].tolist() == [stream[5], stream[5]]
    assert first.labels[3] == benchmark.row_of_identity[small.identity[stream[5]]]
    listed = [json.loads(line)["sample"] for line in log.read_text().splitlines()]
    assert sorted(listed) == sorted(bad.tolist())
    assert len(counted) == 2


@pytest.mark.parametrize("world", [1, 4])
def test_in_balanced_batches_a_damaged_sample_is_replaced_by_its_identity(small, benchmark, world):
    order = identities(small, benchmark)
    whole = batches(small, benchmark, order=order, iterations=range(2))[1]
    bad = damaged(small, whole.samples[[4, 20]])
    parts = [
        batches(bad, benchmark, rank, world, range(2), order=order)[1] for rank in range(world)
    ]
    samples = np.concatenate([part.samples for part in parts])
    assert not np.isin(samples[[4, 20]], whole.samples[[4, 20]]).any()
    assert np.array_equal(small.identity[samples], small.identity[whole.samples])
    kept = ~np.isin(np.arange(30), [4, 20])
    assert np.array_equal(samples[kept], whole.samples[kept])


def test_more_damage_than_the_budget_stops_with_an_explanation(small, benchmark):
    with pytest.raises(InputError, match=r"4 samples are damaged.*max_quarantined = 3"):
        batches(damaged(small, benchmark.steps[0]), benchmark)


def test_images_of_another_size_are_resized(small, benchmark):
    settings = PipelineSettings(image_size=(20, 12))
    assert batches(small, benchmark, settings=settings)[0].images.shape == (30, 3, 20, 12)


def test_unknown_image_size_is_an_error(small, benchmark):
    unknown = dataclasses.replace(small, manifest={**small.manifest, "image_size": None})
    with pytest.raises(InputError, match=r"set data\.image_size"):
        batches(unknown, benchmark)
