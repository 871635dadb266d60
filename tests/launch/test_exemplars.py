"""The memory of a run: within its budget at every step, and each image as it came."""

import json
import shutil
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from data_shards.pipeline import PipelineSettings
from data_shards.settings import InputError
from data_shards.sources import SourceImage
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.remote import CacheSettings
from data_shards.writing.writer import write_dataset
from launch.config.load import load_config
from launch.inference.worker import ShardWorker
from launch.phases.exemplars import choose
from launch.phases.planning import pending, phases
from launch.runs.ledger import Ledger
from launch.runs.run import Chain, Run
from monitoring.metrics import Metrics
from tests.alone import execute_alone
from tests.conftest import jpeg
from tests.launch.classes import CLASSES, TRAINED, write_classes, write_config
from tests.ranks import on_ranks
from trainer.decisions import Decision
from trainer.exemplars import herding
from trainer.heads.collectives import Ranks
from trainer.loop import train
from trainer.model import Model

TOTAL = 25
MIRRORED = {"augmentation": {"flip": True}}
METHODS = {
    "replay": {"kind": "finetune", "over": "all", "memory": {"per_class": 2}},
    "nme": {
        "kind": "finetune",
        "over": "all",
        "memory": {"per_class": 2},
        "predict": "nearest-mean",
    },
    "lwf": {"over": "all", "memory": {"total": TOTAL, "choose": "random"}},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = write_classes(tmp_path_factory.mktemp("classes"))
    config = load_config(write_config(root, METHODS, data=MIRRORED))
    execute_alone(config, root / "run")
    return Run.open(root / "run", config)


def by_class(memory):
    names = memory.names[memory.identity].tolist()
    return {name: [i for i, n in enumerate(names) if n == name] for name in dict.fromkeys(names)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step", [0, 1, 2])
def test_every_class_so_far_has_its_share_and_no_more(finished, method, step):
    memory = finished.exemplars(Chain(method, 0), step)
    classes = finished.benchmark.names[: finished.benchmark.row_ends[step]].tolist()
    share = min(TRAINED, TOTAL // len(classes)) if method == "lwf" else 2
    assert list(by_class(memory)) == classes
    assert {len(own) for own in by_class(memory).values()} == {share}
    assert len(memory) <= TOTAL


@pytest.mark.parametrize("method", METHODS)
def test_a_smaller_share_is_the_first_of_a_larger_one(finished, method):
    before: dict = {}
    for step in range(3):
        memory = finished.exemplars(Chain(method, 0), step)
        now = {
            name: [bytes(memory.image(sample)) for sample in own]
            for name, own in by_class(memory).items()
        }
        for name, images in before.items():
            assert now[name] == images[: len(now[name])]
        before = now


def test_exemplars_are_training_images_byte_for_byte(finished):
    data = finished.dataset
    trained = np.concatenate(finished.benchmark.steps)
    known = {bytes(data.image(s)): data.names[data.identity[s]] for s in trained.tolist()}
    for method in METHODS:
        memory = finished.exemplars(Chain(method, 0), 2)
        for sample in range(len(memory)):
            assert known[bytes(memory.image(sample))] == memory.names[memory.identity[sample]]


def embedded(model, jpegs, flip=()):
    """Embeddings by another decoder, of images flipped along the axes `flip` of [n, 3, H, W]."""
    pixels = [np.asarray(Image.open(BytesIO(j)).convert("RGB")) for j in jpegs]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    with torch.no_grad():
        return model.embedder()(images.flip(flip))


def test_herding_asks_the_model_of_the_step(finished):
    chain, data, step = Chain("replay", 0), finished.dataset, 1
    model = Model.open(finished.step_folder(chain, step) / "model")
    memory = finished.exemplars(chain, step)
    new = finished.benchmark.steps[step]
    hashes = dict(zip(new.tolist(), data.key_hashes[new].tolist(), strict=True))
    for name, own in by_class(memory).items():
        samples = [s for s in new.tolist() if data.names[data.identity[s]] == name]
        samples.sort(key=hashes.__getitem__)
        if samples:
            jpegs = [bytes(data.image(s)) for s in samples]
            picked = herding(embedded(model, jpegs).numpy(), 2)
            assert [bytes(memory.image(s)) for s in own] == [jpegs[i] for i in picked]


def mean_of(model, jpegs, flip):
    """The mean of images and of the same flipped, all of unit length."""
    plain, flipped = (F.normalize(embedded(model, jpegs, axes)) for axes in ((), flip))
    return F.normalize((plain + flipped).mean(dim=0), dim=0)


def test_means_are_of_exemplars_and_their_mirror_images(finished):
    chain = Chain("nme", 0)
    folder, memory = finished.step_folder(chain, 2), finished.exemplars(chain, 2)
    model = Model.open(folder / "model")
    decision = Decision.open(folder / "decision", model)
    found = decision.prepared["means"]
    assert len(found) == CLASSES
    for row, own in enumerate(by_class(memory).values()):
        jpegs = [bytes(memory.image(sample)) for sample in own]
        right = mean_of(model, jpegs, (3,))
        torch.testing.assert_close(found[row], right, rtol=1e-4, atol=1e-5)
        # no mirror image, one upside down, and one with red and blue swapped, a known bug
        for wrong in ((), (2,), (1,)):
            other = mean_of(model, jpegs, wrong)
            assert not torch.allclose(found[row], other, rtol=1e-4, atol=1e-5)


def test_exemplars_are_not_mirrored_where_training_mirrors_no_image(tmp_path):
    """A mirrored character is another one, or none: a model not trained on it may say anything."""
    write_classes(tmp_path)
    config = load_config(write_config(tmp_path, {"nme": METHODS["nme"]}))
    execute_alone(config, tmp_path / "run")
    run, chain = Run.open(tmp_path / "run", config), Chain("nme", 0)
    folder, memory = run.step_folder(chain, 2), run.exemplars(chain, 2)
    model = Model.open(folder / "model")
    found = Decision.open(folder / "decision", model).prepared["means"]
    for row, own in enumerate(by_class(memory).values()):
        right = mean_of(model, [bytes(memory.image(sample)) for sample in own], ())
        torch.testing.assert_close(found[row], right, rtol=1e-4, atol=1e-5)


def test_the_rule_decides_by_the_nearest_mean(finished):
    chain = Chain("nme", 0)
    folder = finished.step_folder(chain, 2)
    model = Model.open(folder / "model")
    decision = Decision.open(folder / "decision", model)
    vectors = torch.randn(40, 8)
    for vector, chosen in zip(vectors, decision.classes(model, vectors).tolist(), strict=True):
        unit = vector.double() / vector.double().norm()
        distances = [float((unit - mean.double()).norm()) for mean in decision.prepared["means"]]
        assert chosen == int(np.argmin(distances))


def test_methods_that_differ_in_their_rule_alone_share_their_trainings(finished):
    records = {
        json.loads(line)["phase"]: json.loads(line)
        for line in (finished.folder / "ledger.jsonl").read_text().splitlines()
    }
    for step in range(3):
        twin = records[f"nme/seed-0/step-{step}/train"]["same_as"]
        assert twin in (f"replay/seed-0/step-{step}/train", "replay/seed-0/step-0/train")
    first = {m: records[f"{m}/seed-0/step-0/train"]["fingerprint"] for m in METHODS}
    assert len(set(first.values())) == 1, "step 0 is trained once, whatever follows"


def test_another_choice_is_another_memory_and_another_training(finished, tmp_path):
    changed = {"replay": {**METHODS["replay"], "memory": {"per_class": 2, "choose": "random"}}}
    root = finished.folder.parent
    config = load_config(write_config(root, changed, data=MIRRORED))
    every = phases(Run.open(finished.folder, config))
    left = pending(every, Ledger.open(finished.folder / "ledger.jsonl"))
    assert [p.name.removeprefix("replay/seed-0/") for p in left] == [
        *("step-0/exemplars", "step-1/train", "step-1/exemplars", "step-1/evaluate"),
        *("step-2/train", "step-2/exemplars", "step-2/evaluate"),
    ]


def test_a_run_that_continues_carries_the_memory_along(finished, tmp_path):
    """Its dataset has no image of the classes known before."""
    images = [
        SourceImage(jpeg(50 + c, n), f"later-{c}", f"camera-{n}", f"{c}/{n}")
        for c in range(8)
        for n in range(6)
    ]
    write_dataset(images, tmp_path / "d", {})
    values = {
        "dataset": str(tmp_path / "d"),
        "continues": str(finished.folder),
        "benchmark": {"steps": 1, "test_identities": 4, "pairs": 4, "seen_identities": 0},
    }
    config = load_config(write_config(tmp_path, {"replay": METHODS["replay"]}, **values))
    execute_alone(config, tmp_path / "run")
    run = Run.open(tmp_path / "run", config)
    chain = Chain("replay", 0)
    before, carried = finished.exemplars(chain, 2), run.exemplars(chain, 0)
    assert [bytes(carried.image(s)) for s in range(len(carried))] == [
        bytes(before.image(s)) for s in range(len(before))
    ]
    names = list(by_class(run.exemplars(chain, 1)))
    assert names[:CLASSES] == list(by_class(before)) and len(names) == CLASSES + 4
    without = load_config(
        write_config(tmp_path, {"lwf": {**METHODS["lwf"], "memory": {"total": 8}}}, **values)
    )
    with pytest.raises(InputError, match=r"lwf.memory.total = 8 exemplars cannot be shared by"):
        execute_alone(without, tmp_path / "other")


def test_a_run_cannot_carry_along_what_was_not_kept(finished, tmp_path):
    root = finished.folder.parent
    plain = load_config(write_config(root, {"finetune": {"over": "all"}}))
    execute_alone(plain, root / "plain")
    values = {"continues": str(root / "plain"), "dataset": str(tmp_path / "d")}
    images = [
        SourceImage(jpeg(60 + c, n), f"l-{c}", f"camera-{n}", f"{c}/{n}")
        for c in range(8)
        for n in range(6)
    ]
    write_dataset(images, tmp_path / "d", {})
    values["benchmark"] = {"steps": 1, "test_identities": 4, "pairs": 4, "seen_identities": 0}
    methods = {"finetune": {"over": "all", "memory": {"per_class": 2}}}
    config = load_config(write_config(tmp_path, methods, **values))
    with pytest.raises(InputError, match="has kept no exemplars for finetune/seed-0"):
        execute_alone(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"memory": {"per_class": 2}}, "over all rows: set over=all"),
        ({"over": "all", "memory": {}}, "say either total or per_class"),
        ({"over": "all", "memory": {"total": 5, "per_class": 1}}, "say either total or per_class"),
        ({"over": "all", "predict": "nearest-mean"}, "there is no memory: say which"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_at_once(tmp_path, method, message):
    path = write_config(tmp_path, {"finetune": method})
    with pytest.raises(InputError, match=message) as refused:
        load_config(path)
    assert "\n" not in str(refused.value)


def test_a_class_with_fewer_images_gives_all_and_it_is_said(finished, capsys):
    root = finished.folder.parent
    methods = {"finetune": {"over": "all", "memory": {"per_class": TRAINED + 1}}}
    config = load_config(write_config(root, methods))
    execute_alone(config, root / "few")
    memory = Run.open(root / "few", config).exemplars(Chain("finetune", 0), 2)
    assert {len(own) for own in by_class(memory).values()} == {TRAINED}
    told = " ".join(capsys.readouterr().out.split())
    assert f"{TRAINED + 1} each, but of 3 that have fewer all" in told


def test_a_damaged_exemplar_is_named(tmp_path):
    root = write_classes(tmp_path)
    config = load_config(write_config(root, {"replay": METHODS["replay"]}))
    run = Run.open(root / "run", config)
    execute_alone(config, root / "run")
    chain = Chain("replay", 0)
    memory = run.exemplars(chain, 0)
    shard = run.step_folder(chain, 0) / "exemplars" / memory.manifest["shards"][0]
    content = bytearray(shard.read_bytes())
    middle = int(memory.offset[3] + memory.size[3] // 2)
    content[middle : middle + 2] = b"\0\0"
    shard.write_bytes(content)
    (root / "run" / "ledger.jsonl").write_text(
        "".join(
            line + "\n"
            for line in (root / "run" / "ledger.jsonl").read_text().splitlines()
            if "step-0" in line or "step-1/train" in line
        )
    )
    with pytest.raises(InputError, match=r"sample 3 at byte .* is damaged: restore the folder"):
        execute_alone(config, root / "run")


def test_a_damaged_image_is_not_chosen(finished, tmp_path):
    """It was whole when the run began: a run whose shards have another hash does not begin."""
    folder = shutil.copytree(finished.dataset.folder, tmp_path / "d")
    data, chain = ShardDataset.open(folder), Chain("replay", 0)
    own = finished.benchmark.steps[0]
    own = own[data.identity[own] == data.identity[own[0]]]
    rows = np.zeros(len(own), dtype=np.int64)
    worker = ShardWorker(str(folder), CacheSettings(), 1, tmp_path / "run" / "targets" / "a", "0")
    model = (finished.step_folder(chain, 0) / "model").resolve()

    def chosen(how):
        file = tmp_path / f"{how}.json"
        choose(worker, file, model, own, rows, how, 2, 0, PipelineSettings(), 8)
        return json.loads(file.read_text())[0]

    ways = ("herding", "random")
    before = {how: chosen(how) for how in ways}
    for sample in {picked[0] for picked in before.values()}:
        path = folder / data.manifest["shards"][data.shard[sample]]
        content = bytearray(path.read_bytes())
        middle = int(data.offset[sample] + data.size[sample] // 2)
        content[middle : middle + 2] = b"\0\0"
        path.write_bytes(content)
    data.files.rest()
    worker.dataset.files.rest()
    for how in ways:
        assert before[how][0] not in chosen(how) and len(chosen(how)) == 2
    worker.close()


def losses_on_rank(folder, config, out):
    """The losses of a step that trains on new images and exemplars, on this rank."""
    run = Run.open(folder, load_config(config))
    spec = replace(run.training_spec(Chain("lwf", 0), 1), folder=out, checkpoints="")
    records = []
    spec = replace(spec, training=spec.training.model_copy(update={"log_every": 1}))
    train(spec, Ranks.default(), torch.device("cpu"), Metrics(), records.append)
    return [(r["loss"], r["classify"], r["distill"]) for r in records if "loss" in r]


def test_a_step_with_a_memory_is_the_same_on_any_number_of_ranks(finished, tmp_path):
    config = write_config(tmp_path, METHODS)
    values = json.loads(config.read_text())
    root = finished.folder.parent
    values |= {"dataset": str(root / "d"), "benchmark": {"file": str(root / "b.json"), "steps": 3}}
    config.write_text(json.dumps(values))
    one, *others = (
        np.array(
            on_ranks(
                world,
                *(losses_on_rank, finished.folder, config, tmp_path / f"{world}"),
                folder=tmp_path / f"store-{world}",
            )
        )
        for world in (1, 2, 3)
    )
    for several in others:
        for rank in several:
            np.testing.assert_allclose(rank, one[0], rtol=2e-4)
    assert len(one[0]) == 12 and np.isfinite(one).all()
