"""Test sets of their own: what a run must be given, and that it measures what the protocols say."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

from data_shards.pipeline import PipelineSettings
from data_shards.settings import InputError
from data_shards.storage.cache import CacheSettings
from launch.config.load import load_config
from launch.inference.test_sets import Embedding, Measurement, embed_test_set
from launch.inference.worker import ShardWorker
from launch.runs.run import Run
from launch.runs.test_sets import TestSet, open_tests
from tests.data_shards.servers import serving
from tests.own_test_sets import TESTS, configured, opened, spread
from trainer.evaluation.identification import identify
from trainer.evaluation.retrieval import retrieve
from trainer.evaluation.test_sets import open_protocol
from trainer.evaluation.vectors import StoredVectors
from trainer.evaluation.verification import grid_accuracy


def one_after_another(worker):
    """Does units of work as a run's actors do them."""

    def map_(unit, calls):
        return [unit(worker, *call) for call in calls]

    return map_


def measured(sets: Path, folder: Path, name: str):
    """Results of a test, its datasets and a random embedding of each of their samples."""
    datasets = dict(zip(("dataset", "distractors"), opened(sets, name), strict=False))
    protocol = open_protocol(configured(sets).tests[name], "cosine", **datasets)
    stored, embeddings = {}, {}
    for number, (part, samples) in enumerate(protocol.samples().items()):
        dataset = datasets[part]
        rng = np.random.default_rng(number + 1)
        noise = rng.normal(size=(len(dataset), 6)).astype(np.float32)
        centre = np.random.default_rng(9).normal(size=(500, 6)).astype(np.float32)
        identity = [int(str(n).removeprefix("id-")) for n in dataset.names[dataset.identity]]
        vectors = centre[identity] + noise
        np.save(folder / f"{part}.npy", vectors[samples])
        stored[part] = StoredVectors(folder / f"{part}.npy", samples, protocol.normalised)
        embeddings[part] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return protocol.measure(stored, spread), datasets, embeddings


def test_verification_compares_the_pairs_that_are_there(sets, tmp_path):
    found, datasets, embeddings = measured(sets, tmp_path, "lfw")
    table = datasets["dataset"].table("pairs")[1:]
    vectors = embeddings["dataset"]
    left, right = (vectors[table[side].to_numpy()] for side in ("left", "right"))
    apart = ((left - right) ** 2).sum(axis=1)
    same = table["same"].to_numpy()
    assert found["pairs_of_refused_images"] == 1
    assert found["pairs"] == 39
    assert 0.5 < found["accuracy"] < 1
    assert found["accuracy"] == pytest.approx(
        grid_accuracy(apart.astype(float), same, table["fold"].to_numpy())
    )
    false, true, _ = roc_curve(same, -apart, drop_intermediate=False)
    assert found["tar"] == {"0.1": pytest.approx(true[false <= 0.1].max())}


def test_identification_reports_raw_and_cleaned_lists_apart(sets, tmp_path):
    found, datasets, embeddings = measured(sets, tmp_path, "megaface")
    probe, others = (torch.from_numpy(embeddings[part]) for part in ("dataset", "distractors"))
    identity = datasets["dataset"].identity
    raw = identify(probe, identity, others)
    cleaned = identify(probe[3:], identity[3:], torch.cat([others[:1], others[2:]]))
    assert found["raw"]["rank1"] == pytest.approx(raw.cmc[0])
    assert found["cleaned"]["rank1"] == pytest.approx(cleaned.cmc[0])
    assert (found["raw"]["trials"], found["cleaned"]["trials"]) == (36, 30)
    assert (found["raw"]["distractors"], found["cleaned"]["distractors"]) == (30, 29)


def test_distractors_may_be_in_the_same_dataset(sets, tmp_path):
    found, datasets, embeddings = measured(sets, tmp_path, "glyphface")
    vectors, dataset = torch.from_numpy(embeddings["dataset"]), datasets["dataset"]
    probes = dataset.role == 0
    expected = identify(vectors[probes], dataset.identity[probes], vectors[~probes])
    assert found["rank1"] == pytest.approx(expected.cmc[0])
    assert found["distractors"] == 30


def test_retrieval_is_of_queries_in_the_gallery(sets, tmp_path):
    found, datasets, embeddings = measured(sets, tmp_path, "market")
    vectors, dataset = torch.from_numpy(embeddings["dataset"]), datasets["dataset"]
    query, gallery = dataset.role == 1, np.isin(dataset.role, (2, 3))
    camera = dataset.camera.astype(np.int64)
    expected = retrieve(
        vectors[query],
        vectors[gallery],
        dataset.identity[query],
        dataset.identity[gallery],
        camera[query],
        camera[gallery],
    )
    assert found["map"] == pytest.approx(expected.mean_average_precision)
    assert (found["gallery"], found["distractors"]) == (56, 8)
    assert found["queries_without_match"] == 4
    assert 0 < found["top1"] < 1


def test_templates_are_verified_and_searched_in_both_galleries(sets, tmp_path):
    found, _, _ = measured(sets, tmp_path, "ijbc")
    stored = np.load(tmp_path / "dataset.npy").reshape(20, 4, 6)
    large, small = (stored[:, 0] + stored[:, 1]) / 2 + stored[:, 2], stored[:, 3]
    large, small = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (large, small))
    cosine = large @ small.T
    false, true, _ = roc_curve(np.eye(20).ravel(), cosine.ravel(), drop_intermediate=False)
    assert found["tar"] == {
        "0.01": pytest.approx(true[false <= 0.01].max()),
        "0.1": pytest.approx(true[false <= 0.1].max()),
    }
    half, tpir, rank1 = np.arange(10), [], []
    for own in (half, half + 10):
        mates, strangers = cosine[own][:, own], np.delete(cosine, np.setdiff1d(range(20), own), 0)
        alarm = np.sort(np.delete(strangers, own, axis=1).max(axis=0))[-2]  # 1 of 10 may pass
        first = mates.argmax(axis=0) == half
        rank1.append(first.mean())
        tpir.append((first & (mates.diagonal() > alarm)).mean())
    assert tpir[0] != tpir[1]
    assert rank1[0] != rank1[1]
    assert found["tpir"] == {"0.1": pytest.approx(np.mean(tpir))}
    assert found["rank1"] == pytest.approx(np.mean(rank1))
    assert found["galleries"] == 2


@pytest.mark.parametrize("name", list(TESTS))
def test_embeddings_of_a_model_that_diverged_are_an_error_of_the_test(sets, tmp_path, name):
    parts = dict(zip(("dataset", "distractors"), opened(sets, name), strict=False))
    protocol = open_protocol(configured(sets).tests[name], "cosine", **parts)

    def diverged(_, model, dataset, out, samples, *settings):
        out.parent.mkdir(parents=True, exist_ok=True)
        np.save(out, np.full((len(samples), 3), np.nan, np.float32))

    def how(unit, calls):
        unit = diverged if unit is embed_test_set else unit
        return one_after_another(None)(unit, calls)

    vectors = Embedding(tmp_path, PipelineSettings(), 8, how)
    measurement = Measurement(vectors, tmp_path / "scratch", how)
    with pytest.raises(InputError, match=f"evaluation.tests.{name}: .*are NaN or infinite"):
        measurement.measure({name: TestSet(parts, protocol, False)})


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ({"dataset": "none", "protocol": "retrieval"}, "tests.t: .*none holds no dataset"),
        ({"dataset": "pairs", "protocol": "retrieval"}, "tests.t: .*no image with role query"),
        ({"dataset": "market", "protocol": "verification"}, "tests.t: .*no table 'pairs'"),
        ({"dataset": "market", "protocol": "templates"}, "tests.t: .*no table 'templates'"),
        ({"dataset": "pairs", "protocol": "identification"}, "no image with role distractor"),
        (
            {"dataset": "pairs", "distractors": "gone", "protocol": "identification"},
            r"tests.t: .*gone holds no dataset",
        ),
    ],
)
def test_a_run_lacking_a_test_sets_data_does_not_begin(sets, small_folder, tmp_path, test, words):
    path = tmp_path / "c.yaml"
    path.write_text(f"dataset: {small_folder}\nmethods: {{finetune: {{}}}}\n")
    config = load_config(path)
    evaluation = configured(sets, {"t": test})
    with pytest.raises(InputError, match=words):
        Run.open(tmp_path / "run", config.model_copy(update={"evaluation": evaluation}))
    assert not (tmp_path / "run").exists()


def test_a_run_measures_its_test_sets_as_one_process_does(sets, small_folder, tmp_path):
    values = {
        "dataset": str(small_folder),
        "benchmark": {"steps": 1, "test_identities": 24, "pairs": 40, "seen_identities": 6},
        "embedder": {"architecture": "small", "width": 4, "dimension": 8},
        "training": {"iterations": 3, "batch": 24, "milestones": []},
        "evaluation": json.loads(configured(sets).model_dump_json()),
        "methods": {"finetune": {}},
        "cluster": {"workers": 0, "actors": 2},
    }
    (tmp_path / "c.json").write_text(json.dumps(values))  # JSON is YAML
    command = [sys.executable, "-m", "launch.cli", "run", tmp_path / "c.json"]
    ended = subprocess.run(
        [*command, "--out", tmp_path / "run"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    step = tmp_path / "run/chains/finetune/seed-0/steps/0"
    found = json.loads((step / "evaluation.json").read_text())["tests"]
    assert set(found) == set(TESTS)
    assert not list(step.glob("held-out-*"))
    config = load_config(tmp_path / "c.json")
    largest = max(path.stat().st_size for path in sets.rglob("*.tar"))
    cache = CacheSettings(folder=tmp_path / "cache", bytes=2 * largest, wait=0.001)
    alone = one_after_another(
        ShardWorker(str(small_folder), cache, 1, tmp_path / "target.json", "alone")
    )
    embedded, calls_left = [], [3]

    def interrupted(unit, calls):
        if unit is embed_test_set:
            embedded.extend(call[2] for call in calls[: calls_left[0]])
            alone(unit, calls[: calls_left[0]])
            if calls_left[0] < len(calls):
                raise KeyboardInterrupt
            return []
        return alone(unit, calls)

    data = config.data.model_copy(update={"image_size": (16, 16)})
    vectors = Embedding(step / "model", data, 7, interrupted)
    measurement = Measurement(vectors, tmp_path / "scratch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measurement.measure(open_tests(config.evaluation))
    calls_left[0] = 1000
    expected = measurement.measure(open_tests(config.evaluation))
    assert found == json.loads(json.dumps(expected))
    assert len(embedded) == len(set(embedded)) > 3  # nothing was embedded again
    with serving(sets) as server:  # the same sets by URL, through a cache of two shards
        server.faults["market/shard-00001.tar"] = ["corrupt", "drop"]
        tests = open_tests(configured(server.url), cache)
        assert measurement.measure(tests) == expected
    held = [path.stat().st_size for path in (cache.folder / "shards").glob("[!.]*")]
    assert 0 < sum(held) <= cache.bytes
    assert len(set(server.requests)) > 2 * len(held)
