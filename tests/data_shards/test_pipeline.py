"""What DALI decodes is what the order asked for, at any world size."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_shards.augmentation import AugmentationSettings, augment, centres
from data_shards.orders.order import IdentitySettings, UniformOrder, make_order
from data_shards.pipeline import (
    ImageStream,
    PipelineSettings,
    Request,
    stored_sizes,
    training_batches,
)
from data_shards.quarantine import Quarantine
from data_shards.settings import InputError
from data_shards.sources import SourceImage
from data_shards.splits.benchmark import build_benchmark
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.writer import write_dataset
from untrusted.pictures import BadPicture, jpeg_size

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


CROPPED = PipelineSettings(
    image_size=(24, 20), centre=0.8, augmentation=AugmentationSettings(crop=(0.3, 1.0), flip=True)
)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Smooth images of many sizes and shapes, coloured and grey."""
    images = []
    for number in range(40):
        height, width = 30 + 3 * number, 100 - 2 * number
        y, x = np.mgrid[0:height, 0:width]
        planes = [x * 255 / width, y * 255 / height, 128 + 60 * np.sin((x + y) / 20)]
        picture = Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))
        picture = picture.convert("L") if number % 5 == 4 else picture
        picture.save(out := io.BytesIO(), "JPEG", quality=95, progressive=number % 3 == 1)
        images.append(SourceImage(out.getvalue(), f"id-{number // 4}", "", f"{number}"))
    folder = tmp_path_factory.mktemp("uneven")
    write_dataset(images, folder / "d", {}, shard_samples=16)
    return ShardDataset.open(folder / "d")


def uneven_batches(dataset, rank=0, world=1, iterations=range(3)):
    order = UniformOrder(np.arange(len(dataset)), 5)
    rows = np.arange(len(dataset.names))
    given = dataset, rows, order, 5, iterations, 30, rank, world, CROPPED, CPU
    return [*training_batches(*given, Quarantine(None, 3))], order


def shown(dataset, sample, part, flipped):
    """Cut out and scaled by PIL."""
    image = Image.open(io.BytesIO(dataset.image(sample))).convert("RGB")
    top, left, height, width = part
    box = (left, top, left + width, top + height)
    scaled = image.crop(box).resize((20, 24), Image.Resampling.BILINEAR)
    return np.asarray(scaled)[:, ::-1] if flipped else np.asarray(scaled)


def test_parts_are_cut_out_as_drawn_and_scaled(uneven):
    sizes = stored_sizes(uneven, [uneven.image(sample) for sample in range(len(uneven))])
    for sample, (height, width) in enumerate(sizes.tolist()):
        opened = Image.open(io.BytesIO(uneven.image(sample)))
        assert (opened.height, opened.width) == (height, width)
    found, order = uneven_batches(uneven)
    for number, batch in enumerate(found):
        positions = np.arange(30 * number, 30 * number + 30)
        given = CROPPED.augmentation, 5, order.epoch(positions), batch.samples, (24, 20)
        drawn = augment(*given, sizes[batch.samples])
        for i, sample in enumerate(batch.samples.tolist()):
            wanted = shown(uneven, sample, drawn.cropped[i], drawn.flipped[i])
            image = batch.images[i].permute(1, 2, 0).numpy().astype(int)
            assert np.abs(image - wanted).mean() < 2 and np.abs(image - wanted).max() < 16


def test_parts_are_the_same_on_any_number_of_ranks_and_from_any_iteration_on(uneven):
    alone, _ = uneven_batches(uneven)
    for world in (2, 3):
        ranks = [uneven_batches(uneven, rank, world)[0] for rank in range(world)]
        for whole, *parts in zip(alone, *ranks, strict=True):
            assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    late, _ = uneven_batches(uneven, iterations=range(2, 3))
    assert torch.equal(late[0].images, alone[2].images)


def test_images_that_are_not_augmented_show_their_middle(uneven):
    samples = np.arange(len(uneven))
    requests = iter([Request.plain(uneven, samples, flipped=True)])
    ((_, images),) = ImageStream(uneven, requests, len(samples), CROPPED, augmented=False)
    sizes = stored_sizes(uneven, [uneven.image(sample) for sample in samples.tolist()])
    parts = centres(0.8, (24, 20), sizes)
    for sample in samples.tolist():
        wanted = shown(uneven, sample, parts[sample], True)
        found = images[sample].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(found - wanted).mean() < 2 and np.abs(found - wanted).max() < 16


@given(place=st.integers(0, 400), byte=st.integers(0, 255), end=st.integers(0, 2000))
def test_a_damaged_header_gives_a_size_or_an_error(place, byte, end):
    Image.new("RGB", (30, 20), "red").save(out := io.BytesIO(), "JPEG", quality=95)
    content = bytearray(out.getvalue())
    assert jpeg_size(bytes(content)) == (20, 30)
    content[place % len(content)] = byte
    try:
        height, width = jpeg_size(memoryview(bytes(content[:end])))
    except BadPicture:
        return
    assert height > 0 and width > 0
