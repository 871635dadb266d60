"""A dataset with exemplars behind it is read as one, under one numbering."""

import numpy as np
import pytest

from data_shards.orders.order import IdentitySettings, make_order
from data_shards.settings import InputError
from data_shards.sources import SourceImage
from data_shards.splits.benchmark import build_benchmark
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.joined import joined
from data_shards.writing.writer import write_dataset
from tests.conftest import jpeg


def write(folder, identities, images, shard_samples=3):
    items = [
        SourceImage(jpeg(i, n), f"id-{i}", f"camera-{n}", f"{folder.name}/{i}/{n}")
        for i in identities
        for n in images
    ]
    write_dataset(items, folder, {}, shard_samples=shard_samples)
    return ShardDataset.open(folder)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("joined")
    return write(root / "main", range(3, 9), range(4)), write(root / "memory", range(5), (7, 8))


def test_samples_of_both_parts_are_what_they_were(parts):
    first, second = parts
    both = joined(first, second)
    assert len(both) == len(first) + len(second)
    at = 0
    for part in parts:
        for sample in range(len(part)):
            assert both.image(at) == part.image(sample)
            assert both.keys(np.array([at])) == part.keys(np.array([sample]))
            assert both.names[both.identity[at]] == part.names[part.identity[sample]]
            cameras = both.manifest["cameras"], part.manifest["cameras"]
            assert cameras[0][both.camera[at]] == cameras[1][part.camera[sample]]
            assert both.key_hashes[at] == part.key_hashes[sample]
            at += 1
    assert both.manifest["samples"] == at and both.manifest["image_size"] == [16, 16]
    assert both.shard.max() + 1 == len(both.manifest["shards"])
    both.verify()


def test_an_identity_of_both_parts_is_one(parts):
    both = joined(*parts)
    names = both.names.tolist()
    assert len(set(names)) == len(names) == both.manifest["identities"] == 9
    samples = np.arange(len(both))
    settings = IdentitySettings(kind="identities", images_per_identity=6)
    order = make_order(
        settings=settings,
        samples=samples,
        identity=both.identity,
        shard=both.shard,
        batch=12,
        seed=0,
    )
    groups = order.at(np.arange(9 * 6)).reshape(9, 6)
    of_both = [g for g in groups if both.names[both.identity[g[0]]] in ("id-3", "id-4")]
    assert len(of_both) == 2
    for group in of_both:
        assert len(set(group.tolist())) == 6, "four images of the dataset and two exemplars"


def test_another_memory_is_another_dataset(parts, tmp_path):
    other = write(tmp_path / "other", range(4), (7, 8))
    assert joined(*parts).fingerprint != joined(parts[0], other).fingerprint
    assert joined(*parts).fingerprint not in {part.fingerprint for part in parts}


def test_exemplars_have_the_rows_of_their_identities(parts, tmp_path):
    """Also those whose identity the dataset has no image of, in a run that continues another."""
    first, _ = parts
    settings = BenchmarkSettings(steps=1, test_identities=4, pairs=2, seen_identities=0, seed=3)
    benchmark = build_benchmark(first, settings, known=["id-2", "id-0", "id-1"])
    names = benchmark.names.tolist()
    known = write(tmp_path / "known", [int(n.removeprefix("id-")) for n in names], (7, 8))
    both = joined(first, known)
    with_memory = benchmark.with_exemplars(both)
    assert with_memory.exemplars.tolist() == [*range(len(first), len(both))]
    for sample in with_memory.exemplars.tolist():
        row = with_memory.row_of_identity[both.identity[sample]]
        assert names[row] == both.names[both.identity[sample]]
    assert with_memory.row_of_identity[: len(first.names)].tolist() == (
        benchmark.row_of_identity.tolist()
    )
    stranger = next(n for n in first.names.tolist() if n not in names)
    foreign = write(tmp_path / "foreign", [int(stranger.removeprefix("id-"))], (7,))
    with pytest.raises(InputError, match=rf"exemplar of '{stranger}', which no learning step"):
        benchmark.with_exemplars(joined(first, foreign))


def test_a_damaged_exemplar_is_named_and_quarantined_like_any_sample(parts, tmp_path):
    first, _ = parts
    memory = write(tmp_path / "memory", range(2), (7, 8))
    path = tmp_path / "memory" / memory.manifest["shards"][0]
    content = bytearray(path.read_bytes())
    middle = int(memory.offset[1] + memory.size[1] // 2)
    content[middle : middle + 2] = b"\0\0"
    path.write_bytes(content)
    both = joined(first, ShardDataset.open(tmp_path / "memory"))
    images = both.images(np.arange(len(first), len(both)))
    assert [image is None for image in images] == [False, True, False, False]
    with pytest.raises(ValueError, match=f"sample {len(first) + 1} at byte"):
        both.image(len(first) + 1)
