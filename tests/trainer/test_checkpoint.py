"""Checkpoints: whole, verified, and free of the world size they were saved at."""

import json
import shutil

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from data_shards.settings import InputError
from monitoring.metrics import Metrics
from tests.ranks import on_ranks
from trainer.checkpoint import Checkpoints, DamagedError, Folder
from trainer.checkpoint.format import encode
from trainer.checkpoint.policy import superfluous
from trainer.checkpoint.rows import load_rows, part_name, rows_tensors
from trainer.heads.collectives import Ranks
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows
from trainer.optimizers import TrainingSettings, for_all_data, learning_rate, schedule

FIRST, LAST, SETTINGS = 5, 18, TrainingSettings(iterations=1)


class Disk(LocalFileSystem):
    """Files that several processes see, of which nothing is used but fsspec's interface."""

    protocol = "disk"


fsspec.register_implementation("disk", Disk)


class Opened(Checkpoints):
    """Checkpoints whose metrics and words can be looked at."""

    def __init__(self, location, ranks=Ranks(), **settings):  # noqa: B008
        self.metrics, self.told = Metrics(), []
        settings = TrainingSettings(iterations=1000, **settings)
        super().__init__(str(location), settings, ranks, self.metrics, self.told.append)

    def count(self, what):
        return self.metrics.registry.get_sample_value(f"perennial_checkpoints_{what}_total")


def row_values(ids, scale):
    return torch.stack([ids * scale, ids * scale + 0.5], dim=1).float()


def save_on_rank(*locations):
    ranks = Ranks.default()
    rows = ShardedRows.new(FIRST, LAST, 2, 0, ranks)
    rows.weight.data.copy_(row_values(rows.own_ids(), 1))
    optimizer = RowOptimizer(rows, SETTINGS)
    optimizer.state["momentum"].copy_(row_values(rows.own_ids(), -1))
    files = {part_name("rows", ranks): rows_tensors(rows, optimizer)}
    saved = []
    for location in locations:
        with Opened(location, ranks) as checkpoints:
            checkpoints.save(30, files, {})
        saved.append((checkpoints.count("saved"), checkpoints.told))
    return saved


@pytest.mark.parametrize("world", [1, 2, 3])
def test_rows_and_momentum_load_at_another_world_size(world, tmp_path):
    """On a local disk, and where there is no rename."""
    locations = [str(tmp_path / "local"), f"disk://{tmp_path / 'remote'}"]
    saved = on_ranks(world, save_on_rank, *locations, folder=tmp_path / "ranks")
    assert saved == [[(1 - min(rank, 1), [])] * 2 for rank in range(world)]
    for location in locations:
        folder = Opened(location).newest()
        assert folder is not None
        assert sorted(folder._files.ls(folder.path, False)) == sorted(
            f"{folder.path}/{name}" for name in (*folder.hashes, "manifest.json")
        )
        for other in (1, 2, 3, 20):
            for rank in range(other):
                ranks = Ranks(rank, other)
                ids = ShardedRows.new(FIRST, LAST, 2, 0, ranks).own_ids()
                found = load_rows(folder, "rows", FIRST, LAST, ranks)
                assert torch.equal(found["weight"], row_values(ids, 1))
                assert torch.equal(found["state.momentum"], row_values(ids, -1))


def saved(location, iterations=(10, 20, 30), **settings):
    with Opened(location, **settings) as checkpoints:
        for iteration in iterations:
            files = {"embedder": {"x": torch.full((4,), float(iteration))}}
            checkpoints.save(iteration, files, {})
    return checkpoints


def test_only_the_newest_are_kept(tmp_path):
    saved(tmp_path / "c")
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["20", "30", "latest"]
    assert (tmp_path / "c" / "latest").read_text() == "30"


def test_what_dead_attempts_left_goes_and_what_other_ranks_write_stays(tmp_path):
    with Opened(tmp_path) as checkpoints:
        next_one = tmp_path / f".20.{checkpoints._token}-2.part"
        dead = tmp_path / ".5.0123abcd-1.part"
        for part in (next_one, dead):
            part.mkdir()
        checkpoints.save(10, {"a": {"b": torch.zeros(1)}}, {})
    assert next_one.exists() and not dead.exists()


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=40),
    st.integers(1, 4),
    st.none() | st.integers(1, 200),
)
def test_the_policy_keeps_the_newest_and_the_first_of_each_span(gaps, last, span):
    """Deleting as checkpoints come keeps what looking at all of them at once would."""
    every = [sum(gaps[: n + 1]) for n in range(len(gaps))]
    held = []
    for iteration in every:
        held.append(iteration)
        held = [i for i in held if i not in superfluous(held, last, span)]
    spans = {i // span for i in every} if span else set()
    firsts = {min(i for i in every if i // span == s) for s in spans}
    assert set(held) == set(every[-last:]) | firsts


def test_some_are_kept_for_good_until_the_phase_ends(tmp_path):
    checkpoints = saved(tmp_path / "c", range(10, 100, 10), keep_checkpoints=1, keep_every=40)
    kept = sorted(p.name for p in (tmp_path / "c").iterdir())
    assert kept == ["10", "40", "80", "90", "latest"]
    checkpoints.clear()
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("scheme", ["", "memory://"])
@pytest.mark.parametrize("file", ["embedder.safetensors", "card.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, scheme, file, damage):
    location = f"{scheme}{tmp_path}"
    checkpoints = saved(location)
    files, path = fsspec.core.url_to_fs(f"{location}/30/{file}")
    content = bytearray(files.cat_file(path))
    if damage == "remove":
        files.rm(path)
    elif damage == "cut":
        files.pipe_file(path, bytes(content[:-1] if file != "manifest.json" else content[:-5]))
    else:
        content[len(content) // 2] ^= 255
        files.pipe_file(path, bytes(content))
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.name == "20"
    assert newest.tensors("embedder")["x"][0] == 20
    assert checkpoints.count("damaged") == 1
    assert len(checkpoints.told) == 1
    assert "newest good checkpoint" in checkpoints.told[0]
    assert "/30" in checkpoints.told[0]


def test_nothing_is_read_before_its_hash_is_checked(tmp_path):
    """Damage after `newest` has looked is found, too."""
    newest = saved(tmp_path).newest()
    path = tmp_path / "30" / "embedder.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(DamagedError, match=r"30/embedder\.safetensors is missing or damaged"):
        newest.tensors("embedder")


def test_an_attempt_cut_short_on_an_object_store_is_no_damage():
    checkpoints = saved("memory://cut")
    files = fsspec.filesystem("memory")
    files.pipe_file("/cut/40/embedder.safetensors", b"half")
    assert checkpoints.newest().name == "30"
    assert checkpoints.count("damaged") == 0
    checkpoints.clear()
    assert not files.exists("/cut")


def test_nothing_good_left_is_no_checkpoint(tmp_path):
    checkpoints = saved(tmp_path)
    for folder in ("20", "30"):
        shutil.rmtree(tmp_path / folder)
    assert checkpoints.newest() is None
    assert "latest names '30', which is not there" in checkpoints.told[0]


def test_training_may_change_its_tensors_once_save_returns(tmp_path):
    tensor = torch.zeros(1 << 22)
    with Opened(tmp_path) as checkpoints:
        for iteration in (1, 2):
            tensor.fill_(iteration)
            checkpoints.save(iteration, {"embedder": {"x": tensor}}, {})
            tensor.fill_(-1)
    for iteration in (1, 2):
        found = Folder.at(tmp_path / str(iteration)).tensors("embedder")["x"]
        assert torch.all(found == iteration)


def fail_on_rank_one(location):
    ranks = Ranks.default()
    files = {part_name("rows", ranks): {"x": torch.ones(3)}}
    with Opened(location, ranks) as checkpoints:
        checkpoints.save(1, files, {})
        checkpoints.wait()
        ranks.barrier()
        if ranks.rank == 1:  # a file stands where its part belongs
            token = f".2.{checkpoints._token}-2.part"
            (location / token / "rows-00001-of-00002.safetensors").mkdir(parents=True)
        checkpoints.save(2, files, {})
        checkpoints.wait()
        checkpoints.save(3, files, {})
    return checkpoints.count("saved"), checkpoints.count("failed"), checkpoints.told


def test_a_rank_that_cannot_write_costs_one_checkpoint_and_nothing_else(tmp_path):
    results = on_ranks(2, fail_on_rank_one, tmp_path / "c", folder=tmp_path / "ranks")
    assert [result[:2] for result in results] == [(2, 1), (0, 1)]
    assert "before iteration 2 could not be saved, training goes on: rank 1" in results[0][2][0]
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["1", "3", "latest"]
    Folder.at(tmp_path / "c" / "3").verify()


def test_due_in_iterations_or_in_minutes(tmp_path):
    by_count = Opened(tmp_path, checkpoint_every=30)
    assert [i for i in range(1, 100) if by_count.due(i)] == [30, 60, 90]
    never = Opened(tmp_path, checkpoint_minutes=1000, log_every=10)
    always = Opened(tmp_path, checkpoint_minutes=1e-9, log_every=10)
    assert [i for i in range(1, 40) if never.due(i)] == []
    assert [i for i in range(1, 40) if always.due(i)] == [10, 20, 30]


def test_checkpoints_go_to_the_same_place_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert TrainingSettings(checkpoint_url="c").checkpoint_url == str(tmp_path / "c")
    assert TrainingSettings(checkpoint_url="memory://c").checkpoint_url == "memory://c"


def test_a_url_that_nothing_can_open_is_one_clear_line():
    with pytest.raises(InputError, match="cannot open nothing://c"):
        Opened("nothing://c")


def test_an_incomplete_folder_is_named(tmp_path):
    with pytest.raises(DamagedError, match="is no model or checkpoint"):
        Folder.at(tmp_path).verify()


def test_a_folder_of_another_version_or_kind_is_refused(tmp_path):
    folder = saved(tmp_path).newest()
    with pytest.raises(DamagedError, match="has version 2, this program reads 1"):
        folder.card("model")


def test_files_are_what_the_safetensors_library_reads():
    tensors = {
        "a": torch.arange(3, dtype=torch.uint8),
        "b": torch.randn(4, 5),
        "empty": torch.empty(0, 7),
        "number": torch.tensor(2.5),
        "half": torch.randn(3).bfloat16(),
        "ids": torch.arange(5),
        "count": torch.arange(2, dtype=torch.int32),
        "flags": torch.tensor([True, False]),
        "small": torch.tensor([-3], dtype=torch.int8),
    }
    content = b"".join(encode(tensors))
    found = load(content)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    (length,) = torch.frombuffer(bytearray(content[:8]), dtype=torch.int64).tolist()
    header = json.loads(content[8 : 8 + length])
    for name, tensor in tensors.items():
        assert (8 + length + header[name]["data_offsets"][0]) % tensor.element_size() == 0


def test_new_rows_do_not_depend_on_the_world_size():
    whole = ShardedRows.new(3, 9000, 4, 7, Ranks())
    for world in (2, 3):
        for rank in range(world):
            part = ShardedRows.new(3, 9000, 4, 7, Ranks(rank, world))
            assert torch.equal(part.weight, whole.weight[part.own_ids() - 3])


def test_epochs_are_passes_over_the_images_of_the_step():
    settings = TrainingSettings(epochs=10, milestones=(4, 8), batch=32)
    found = schedule(settings, images=100, sees_all=False, rows=(5, 10), step=1)
    assert found.iterations == 32 and found.milestones == (13, 25)  # of 1,000, 400 and 800 images
    whole = schedule(settings, images=200, sees_all=True, rows=(5, 10), step=1)
    assert whole.iterations == 63, "not longer again for having more identities"
    assert schedule(found, images=7, sees_all=False, rows=(5, 10), step=1) == found
    with pytest.raises(ValueError, match="between 0 and epochs = 3"):
        TrainingSettings(epochs=3, milestones=(3,))


def test_epochs_leave_the_fingerprints_of_before_alone():
    assert "epochs" not in TrainingSettings().deciding()
    epochs = TrainingSettings(epochs=3)
    assert epochs.deciding()["epochs"] == 3
    assert epochs.deciding() == TrainingSettings(epochs=3, iterations=7).deciding()


def test_the_schedule_drops_at_milestones_and_stretches_for_all_data():
    settings = TrainingSettings(iterations=10, learning_rate=1.0, milestones=(4, 8), warmup=2)
    rates = [learning_rate(settings, i) for i in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])
    fifths = settings.model_copy(update={"decay": 5.0})
    rates = [learning_rate(fifths, i) for i in (3, 4, 8)]
    assert rates == pytest.approx([1, 0.2, 0.04])
    longer = for_all_data(settings, (5, 10, 15), 2)
    assert (longer.iterations, longer.milestones) == (30, (12, 24))
    assert for_all_data(settings, (9, 10), 1).iterations == 11


@pytest.mark.parametrize("milestones", [(8, 4), (0,), (10,), (3, 3)])
def test_impossible_milestones_are_refused(milestones):
    with pytest.raises(ValueError, match="must ascend"):
        TrainingSettings(iterations=10, milestones=milestones)


def other_rank_writes(location, checkpoints, iteration, attempt):
    """What a rank leaves that is a save ahead of rank 0; returns its file."""
    part = checkpoints._store.part(str(iteration), f"{checkpoints._token}-{attempt}")
    checkpoints._store.begin(part)
    checkpoints._store.write(f"{part}/rows.safetensors", [memoryview(b"rows")])
    return fsspec.core.url_to_fs(f"{location}/{part}/rows.safetensors")


@pytest.mark.parametrize("protocol", ["", "disk://"])
def test_a_save_that_ends_leaves_alone_what_a_faster_rank_writes_for_the_next(tmp_path, protocol):
    """It was swept, and rank 0 then waited ten minutes for it."""
    location = f"{protocol}{tmp_path}/c"
    with Opened(location, keep_checkpoints=1) as checkpoints:
        checkpoints.save(1, {"x": {"t": torch.ones(2)}}, {})
        checkpoints.wait()
        files, ahead = other_rank_writes(location, checkpoints, 3, 3)
        checkpoints.save(2, {"x": {"t": torch.ones(2)}}, {})
        checkpoints.wait()
        assert files.exists(ahead)
        assert not checkpoints.told
        assert checkpoints.newest().name == "2"
