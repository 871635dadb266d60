"""Embedding a dataset and upgrading the gallery: right, within the budget, whole after kills."""

import csv
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file

from data_shards.files import write_atomically
from data_shards.pipeline import PipelineSettings
from data_shards.settings import InputError
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.remote import CacheSettings
from launch.inference.embed import embed
from launch.inference.worker import ShardWorker, images_of
from launch.models.backfill import run_backfill
from launch.models.embed import Images, embed_part, run_embed
from tests.data_shards.import_kills import die_at
from tests.integration.test_resume import kill_everything, wait_for
from trainer.adopted import Pixels, read_embedder
from trainer.arrays import write_embeddings
from trainer.gallery import Gallery, chosen, crowding, upgraded
from trainer.heads.margin_loss import ClassifierSettings
from trainer.model import Model, save_adopted

QUIET = Console(quiet=True)


def adopted(folder: Path, seed: int, dimension: int) -> Model:
    """A random network of one layer, as ONNX."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, dimension))
    given, file = (torch.randn(2, 3, 8, 8),), folder.with_suffix(".onnx")
    free = {"pixels": {0: "images"}}
    torch.onnx.export(net, given, file, dynamo=False, input_names=["pixels"], dynamic_axes=free)
    pixels = Pixels(size=(8, 8), mean=(127.5,) * 3, std=(127.5,) * 3)
    settings, tensors = read_embedder(file, None, None, pixels)
    save_adopted(folder, settings, tensors, ClassifierSettings(), torch.empty(0, dimension), [])
    return Model.open(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return adopted(folder / "old", 0, 8), adopted(folder / "new", 1, 12)


def here(images, calls, done):
    """Does the work in this process."""
    targets = calls[0][1].parent / "targets"
    worker = ShardWorker(images.location, CacheSettings(), 1, targets / "actor-0.json", "0")
    for call in calls:
        worker.run(embed_part, *call)
    worker.close()


@pytest.fixture(scope="module")
def galleries(models, small_folder, tmp_path_factory):
    """The gallery of the old model, which tests copy."""
    folder = tmp_path_factory.mktemp("galleries")
    images = Images.open(str(small_folder), None, models[0])
    for name in ("folder", "flat.npy", "flat.safetensors"):
        run_embed(models[0], images, folder / name, here, QUIET)
    return folder


def naive(model: Model, dataset: ShardDataset) -> np.ndarray:
    return embed(model.embedder(), dataset, np.arange(len(dataset)), PipelineSettings(), 240)


def test_every_output_has_each_image_in_the_datasets_order(galleries, models, small):
    expected = naive(models[0], small)
    flat = np.load(galleries / "flat.npy")
    np.testing.assert_allclose(flat, expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(load_file(galleries / "flat.safetensors")["vectors"], flat)
    gallery = Gallery.open(galleries / "folder")
    parts = gallery.vectors(models[0].fingerprint)
    samples, vectors = (np.concatenate(c) for c in zip(*parts, strict=True))
    assert np.array_equal(samples, np.arange(240))
    assert np.array_equal(vectors, flat)
    assert len(gallery.parts) == 5
    everyone = small.keys(np.arange(240)), small.names[small.identity]
    for ids in (galleries / "folder" / "ids.tsv", galleries / "flat.ids.tsv"):
        with ids.open() as file:
            rows = list(csv.reader(file, delimiter="\t"))
        assert rows == [["key", "identity"], *map(list, zip(*everyone, strict=True))]
    card = json.loads((galleries / "flat.json").read_text())
    assert (card["model"], card["dimension"]) == (models[0].fingerprint, 8)
    assert not list(galleries.glob(".*"))


def test_vectors_of_another_model_are_neither_mixed_nor_overwritten(
    galleries, models, small_folder, tmp_path
):
    images = Images.open(str(small_folder), None, models[0])
    for name in ("folder", "flat.npy"):
        before = {p: p.read_bytes() for p in galleries.rglob("*") if p.is_file()}
        with pytest.raises(InputError, match="--out"):
            run_embed(models[1], images, galleries / name, here, QUIET)
        run_embed(models[0], images, galleries / name, None, QUIET)
        assert before == {p: p.read_bytes() for p in galleries.rglob("*") if p.is_file()}

    def stopped(images, calls, done):
        here(images, calls[:2], done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_embed(models[0], images, tmp_path / "g", stopped, QUIET)
    with pytest.raises(InputError, match=f"model {models[0].fingerprint}, not"):
        run_embed(models[1], images, tmp_path / "g", here, QUIET)
    counted = []

    def counting(images, calls, done):
        counted.append((len(calls), done + sum(map(images_of, calls)), done > 0))
        here(images, calls, done)

    run_embed(models[0], images, tmp_path / "g", counting, QUIET)
    assert counted == [(3, len(images.dataset), True)], "calls and images, with those done before"
    assert Gallery.open(tmp_path / "g").parts == Gallery.open(galleries / "folder").parts


def nearest(vectors: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """The cosine to the nearest other identity's mean direction, one identity after another."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    means = np.array([unit[identity == i].sum(0) for i in range(identity.max() + 1)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosines = means @ means.T
    return np.array([max(np.delete(row, i)) for i, row in enumerate(cosines)])


def test_crowding_is_the_cosine_to_the_nearest_other_identity(monkeypatch):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 6)).astype(np.float32)
    identity = np.concatenate([np.arange(40), rng.integers(0, 40, 260)])
    samples = np.arange(300)
    parts = [(samples[:90], vectors[:90]), (samples[90:], vectors[90:])]
    monkeypatch.setattr("trainer.gallery._BLOCK", 7)
    np.testing.assert_allclose(crowding(parts, identity), nearest(vectors, identity), rtol=1e-5)


@pytest.mark.parametrize("order", ["isolated", "random"])
def test_a_gallery_is_upgraded_budget_by_budget(
    order, galleries, models, small_folder, small, tmp_path
):
    old, new = models
    folder = shutil.copytree(galleries / "folder", tmp_path / "g")
    images = Images.open(str(small_folder), None, old)
    expected = {m.fingerprint: naive(m, small) for m in models}
    ranked = np.argsort(nearest(expected[old.fingerprint], small.identity), kind="stable")
    for done in (10, 20, 30):
        run_backfill(folder, images, new, 10, order, here, QUIET)
        gallery = Gallery.open(folder)
        assert gallery.dimensions == {old.fingerprint: 8, new.fingerprint: 12}
        column = np.array(gallery.models(240))
        for model, vectors in expected.items():
            for samples, held in gallery.vectors(model):
                assert (column[samples] == model).all()
                np.testing.assert_allclose(held, vectors[samples], rtol=1e-4, atol=1e-5)
        upgraded_now = np.flatnonzero(column == new.fingerprint)
        assert len(upgraded_now) == done
        people = np.bincount(small.identity[upgraded_now], minlength=60)
        assert (people == 4).sum() == done // 4  # whole, but for the last
        assert (people > 0).sum() == -(-done // 4)
        if order == "isolated" and done == 10:  # later the rest's own neighbours count
            assert set(np.flatnonzero(people)) == set(ranked[:3])
    run_backfill(folder, images, new, 1000, order, here, QUIET)
    run_backfill(folder, images, new, 1000, order, None, QUIET)
    gallery = Gallery.open(folder)
    assert gallery.dimensions == {new.fingerprint: 12}
    assert gallery.rows(new.fingerprint) == 240
    kept = {path.name for path in folder.iterdir()}
    assert kept == {part.name for part in gallery.parts} | {"gallery.json", "ids.tsv", ".lock"}


@pytest.mark.parametrize("order", ["isolated", "random"])
def test_an_identity_that_was_begun_with_is_finished_first(
    order, galleries, models, small, tmp_path
):
    folder = shutil.copytree(galleries / "folder", tmp_path / "g")
    old, new = (model.fingerprint for model in models)
    last = chosen(Gallery.open(folder), new, small.identity, 239, order)
    (left,) = set(range(240)) - set(last.tolist())  # of the identity whose turn comes last
    mine = np.flatnonzero(small.identity == small.identity[left])
    shard = int(small.shard[left])
    fresh = [(shard, np.array([left]), np.zeros((1, 12), np.float32))]
    begun = upgraded(Gallery.open(folder), new, 12, fresh)
    assert begun.rows(new) == 1 and begun.rows(old) == 239
    found = chosen(begun, new, small.identity, 3, order)
    assert sorted([*found, left]) == mine.tolist()


def test_upgrades_that_would_mix_things_up_are_refused(galleries, models, small_folder, tmp_path):
    folder = shutil.copytree(galleries / "folder", tmp_path / "g")
    old, new = models
    images = Images.open(str(small_folder), None, old)

    def stopped(images, calls, done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_backfill(folder, images, new, 10, "random", stopped, QUIET)
    with pytest.raises(InputError, match="budget 10, not 20: finish it first"):
        run_backfill(folder, images, new, 20, "random", here, QUIET)
    run_backfill(folder, images, new, 10, "random", here, QUIET)
    third = adopted(tmp_path / "third", 2, 8)
    with pytest.raises(InputError, match="on the way from model"):
        run_backfill(folder, images, third, 10, "random", here, QUIET)
    part = Gallery.open(folder).parts[0]
    (folder / part.name).write_bytes((folder / part.name).read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="was changed"):
        run_backfill(folder, images, new, 10, "random", here, QUIET)
    with pytest.raises(InputError, match="holds no gallery"):
        run_backfill(tmp_path, images, new, 10, "random", here, QUIET)


def killed_at(n: int, work) -> int:
    """Does `work` in a child that dies by SIGKILL at its n-th write boundary; how it ended."""
    gc.disable()  # ending the parent's DALI pipelines would wait there for threads of the parent
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        try:
            die_at(n)
            work()
        finally:
            os._exit(0)
    gc.enable()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def instead_of(vectors: dict[str, np.ndarray]):
    """Writes `vectors` [n, d] of each model: DALI's threads do not survive a fork."""

    def spread(images, calls, done):
        for model, out, samples, *_ in calls:
            found = Model.open(model).fingerprint
            lines = zip(
                images.dataset.keys(samples),
                images.dataset.names[images.dataset.identity[samples]],
                strict=True,
            )
            text = "".join(f"{key}\t{name}\n" for key, name in lines)
            write_atomically(out.with_suffix(".tsv"), text.encode())
            write_embeddings(out, samples, vectors[found][samples], found)

    return spread


def test_an_embedding_killed_anywhere_goes_on_and_ends_alike(
    galleries, models, small_folder, small, tmp_path
):
    images = Images.open(str(small_folder), None, models[0])
    vectors = {models[0].fingerprint: np.load(galleries / "flat.npy")}
    n, ended = 0, {"folder": -signal.SIGKILL, "flat.npy": -signal.SIGKILL}
    while -signal.SIGKILL in ended.values():
        n += 1
        name = ("folder", "flat.npy")[n % 2]
        out = tmp_path / str(n) / name
        out.parent.mkdir()
        work = instead_of(vectors)
        ended[name] = killed_at(n, lambda o=out, w=work: run_embed(models[0], images, o, w, QUIET))
        if out.exists():  # then it is whole
            work = None
        run_embed(models[0], images, out, work, QUIET)
        if name == "folder":
            assert Gallery.open(out).parts == Gallery.open(galleries / "folder").parts
            assert (out / "ids.tsv").read_bytes() == (galleries / "flat.ids.tsv").read_bytes()
        else:
            for part in ("flat.npy", "flat.ids.tsv", "flat.json"):
                assert out.with_name(part).read_bytes() == (galleries / part).read_bytes()
        assert not list(out.parent.glob(".*"))
        shutil.rmtree(out.parent)
    assert n > 30


def test_what_actors_embedded_before_the_command_was_killed_is_kept(
    galleries, models, small_folder, tmp_path
):
    out, work = tmp_path / "g", tmp_path / ".g.embedding" / "gallery"
    command = [sys.executable, "-m", "launch.cli", "embed", str(models[0].folder)]
    command += [str(small_folder), "--out", str(out), "--actors", "1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(process, lambda: any(work.glob("shard-*.safetensors")) or out.exists())
    kill_everything(process)
    before = {path.name: path.stat().st_ino for path in work.glob("shard-*.safetensors")}
    images = Images.open(str(small_folder), None, models[0])
    run_embed(models[0], images, out, here, QUIET)
    after = {path.name: path.stat().st_ino for path in out.glob("shard-*.safetensors")}
    assert before.items() <= after.items()
    vectors = [v for _, v in Gallery.open(out).vectors(models[0].fingerprint)]
    expected = np.load(galleries / "flat.npy")
    np.testing.assert_allclose(np.concatenate(vectors), expected, rtol=1e-5, atol=1e-6)


def test_a_gallery_is_the_old_or_the_new_one_wherever_an_upgrade_is_killed(
    galleries, models, small_folder, tmp_path
):
    old, new = models
    images = Images.open(str(small_folder), None, old)
    made = {"old": Gallery.open(galleries / "folder")}
    work = shutil.copytree(galleries / "folder", tmp_path / "whole")
    run_backfill(work, images, new, 8, "random", here, QUIET)
    made["new"] = Gallery.open(work)
    answers = {
        name: {(m, s) for m in g.dimensions for s, _ in rows(g, m)} for name, g in made.items()
    }
    vectors = {m.fingerprint: naive(m, images.dataset) for m in models}

    instead = instead_of(vectors)
    seen, n, ended = set(), 0, -signal.SIGKILL
    while ended == -signal.SIGKILL:
        n += 1
        folder = shutil.copytree(galleries / "folder", tmp_path / str(n))
        ended = killed_at(
            n, lambda f=folder: run_backfill(f, images, new, 8, "random", instead, QUIET)
        )
        gallery = Gallery.open(folder)
        held = {(m, s) for m in gallery.dimensions for s, _ in rows(gallery, m)}
        which = [name for name, answer in answers.items() if answer == held]
        assert len(which) == 1
        seen.add(which[0])
        if which == ["old"] or (folder / "upgrade" / "plan.json").exists():
            run_backfill(folder, images, new, 8, "random", instead, QUIET)
        now = Gallery.open(folder)
        now.sweep()
        held = {(m, s) for m in now.dimensions for s, _ in rows(now, m)}
        assert held == answers["new"], f"killed at boundary {n}"
        shutil.rmtree(folder)
    assert seen == {"old", "new"}
    assert n > 15


def rows(gallery: Gallery, model: str):
    for samples, vectors in gallery.vectors(model):
        yield from zip(samples.tolist(), vectors, strict=True)
