"""`perennial plan`: right for any world size, refused where a run would be, quick to read."""

import io
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from data_shards.pipeline import PipelineSettings
from data_shards.settings import InputError
from data_shards.splits.benchmark import build_benchmark, counted_split
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.storage.neighbours import VIEWS
from data_shards.storage.remote import CacheSettings
from launch.config.load import load_config
from launch.inference.embed import units
from launch.inference.worker import ShardWorker
from launch.phases.execute import execute
from launch.phases.neighbours import write_answers
from launch.planning.hardware import MACHINES, Machine, machine, measure
from launch.planning.plan import plan_run
from launch.planning.split import split_of
from launch.planning.tables import plan_tables, size_text, time_text
from tests.trainer.test_footprint import tensor_bytes
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.dry_run import Collective, Operation
from trainer.footprint import images_by_rank, rows_by_rank
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.rows import ShardedRows
from trainer.methods.wants import Answers
from trainer.model import save_model
from trainer.teacher import TeacherSettings

COUNTS = {"identities": 5000, "images": 60_000}
TEXT = """
benchmark: {steps: 3, test_identities: 500}
data: {image_size: [32, 32]}
embedder: {width: 4, dimension: 16}
training: {iterations: 50, batch: 1024}
methods: {finetune: {}, baseline: {}, lwf: {}, fkd: {neighbours: 20}, joint: {}}
"""
JOINT = "methods={joint: {}}"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "c.yaml"
    path.write_text(f"dataset: {path.parent / 'no data'}\n{TEXT}")
    return path


def planned(config, *overrides, machine=None, counts=COUNTS):
    return planned_once(config, overrides, machine and machine.name, tuple(counts.items()))


@cache
def planned_once(config, overrides, machine, counts):
    """Plans are not changed, and several tests look at the same one."""
    settings = load_config(config, overrides)
    return plan_run(settings, split_of(settings, **dict(counts)), MACHINES.get(machine))


@given(first=st.integers(0, 1000), count=st.integers(1, 1000), world=st.integers(1, 40))
def test_every_row_is_owned_once_and_double_the_ranks_halve_each_share(first, count, world):
    alone, double = (rows_by_rank(first, first + count, w) for w in (world, 2 * world))
    assert sum(alone) == sum(double) == count
    assert max(double) - min(double) <= 1
    for rank in range(world):
        parts = double[rank], double[rank + world]
        assert sum(parts) == alone[rank]
        assert abs(parts[0] - parts[1]) <= 1


@given(batch=st.integers(1, 600), world=st.integers(1, 600))
def test_every_image_of_a_batch_is_taken_once(batch, world):
    counts = images_by_rank(batch, world)
    assert sum(counts) == batch
    assert max(counts) - min(counts) <= 1


def test_512_ranks_are_run_dry(config):
    plan = planned(config, "cluster.workers=512")
    last = {step.methods[0]: step for step in plan.steps if step.step == 2}
    fkd = last["fkd"]
    assert len(fkd.rows_by_rank) == len(fkd.images_by_rank) == 512
    assert sum(fkd.rows_by_rank) == fkd.old_identities + fkd.new_identities == 4500
    assert set(fkd.rows_by_rank) == {8, 9}  # 3000 / 512 and 1500 / 512, in uneven parts
    assert set(fkd.images_by_rank) == {2}
    assert fkd.memory["rows"] == 9 * 16 * 4


def test_more_ranks_hold_less_and_send_the_gradients_all_the_same(config):
    plans = [planned(config, JOINT, f"cluster.workers={n}").steps[-1] for n in (1, 2, 64)]
    for key in ("rows", "row optimiser", "activations"):
        sizes = [step.memory[key] for step in plans]
        assert sizes[0] > sizes[1] > sizes[2], key
    embedder = [step.memory["embedder"] for step in plans]
    assert embedder[0] == embedder[1] == embedder[2]
    gradients = [step.calls.get("embedder gradients", {"bytes": 0})["bytes"] for step in plans]
    assert gradients[0] == 0
    assert gradients[2] / gradients[1] == pytest.approx((2 * 63 / 64) / (2 * 1 / 2), rel=1e-3)


def test_row_state_in_fewer_bits_takes_fewer_bytes(config):
    sizes = [
        planned(config, JOINT, f"training.row_state={p}").steps[-1].memory["row optimiser"]
        for p in ("fp32", "bf16", "int8")
    ]
    rows = 4500
    assert sizes[0] - sizes[1] == rows * 16 * 2
    assert sizes[1] - sizes[2] == rows * (16 - 4)  # a byte a number, and a scale a row


def test_steps_know_their_images_and_iterations(config):
    plan = planned(config)
    steps = {(step.step, name): step for step in plan.steps for name in step.methods}
    assert [s.methods for s in plan.steps if s.step == 0] == [
        ("finetune", "baseline", "lwf", "fkd", "joint")
    ]
    each = 60_000 * 1500 // 5000
    held_out = BenchmarkSettings().seen_identities
    assert steps[0, "fkd"].images == each - held_out
    assert steps[2, "fkd"].images == each
    assert steps[2, "joint"].images == 3 * each - held_out
    assert (steps[2, "fkd"].iterations, steps[2, "joint"].iterations) == (50, 150)
    assert steps[2, "fkd"].epochs == 50 * 1024 / each


def test_counts_are_those_of_the_dataset(small, small_folder, config):
    settings = BenchmarkSettings(steps=2, test_identities=24, pairs=40, seen_identities=6)
    built = build_benchmark(small, settings)
    images = tuple(map(len, built.steps))
    assert counted_split(60, 240, settings) == (built.row_ends, images)
    held = settings.model_copy(update={"evaluate": "validation", "validation_identities": 20})
    built = build_benchmark(small, held)
    assert counted_split(60, 240, held)[0] == built.row_ends
    text = "benchmark={steps: 2, test_identities: 24, pairs: 40, seen_identities: 6}"
    read = split_of(load_config(config, [f"dataset={small_folder}", text]), None, None)
    assert (read.row_ends, read.images) == counted_split(60, 240, settings)
    assert read.shards == sum(
        f.stat().st_size for f in small_folder.iterdir() if f.suffix in (".tar", ".idx", ".parquet")
    )


def test_the_neighbourhood_files_take_the_planned_bytes(small, small_folder, tmp_path, config):
    settings = BenchmarkSettings(steps=2, test_identities=24, pairs=40, seen_identities=6)
    embedder, ranks = EmbedderSettings(width=4, dimension=8), Ranks()
    rows = ShardedRows.new(0, 18, 8, 0, ranks)
    network = build_embedder(embedder)
    classifier = MarginLoss(ClassifierSettings(), 0, torch.device("cpu"))
    names = [f"id-{row}" for row in range(18)]
    save_model(tmp_path / "model", embedder, (16, 16), classifier, network, [rows], names, ranks)
    shard, samples = units(small, build_benchmark(small, settings).steps[1])[0]
    actor = ShardWorker(str(small_folder), CacheSettings(), 1, tmp_path / "target.json", "0")
    plan = planned(
        config,
        "benchmark={steps: 2, test_identities: 24, pairs: 40, seen_identities: 6}",
        "data={image_size: [16, 16], augmentation: {flip: true}}",
        "embedder={width: 4, dimension: 8}",
        "methods={lwf: {}, fkd: {neighbours: 5}}",
        counts={"identities": 60, "images": 240},
    )
    for name, wanted in {"lwf": Answers(embeddings=True), "fkd": Answers(top_k=5)}.items():
        given = (wanted, PipelineSettings(), TeacherSettings(batch=8))
        actor.run(write_answers, tmp_path / "model", tmp_path, shard, name, samples, *given)
        (step,) = [s for s in plan.steps if s.step == 1 and s.methods == (name,)]
        image = tensor_bytes(tmp_path / f"shard-{shard:05d}-{name}.safetensors") / len(samples)
        assert step.disk["neighbourhoods"] == len(VIEWS) * step.images * image


@pytest.mark.parametrize(
    ("overrides", "counts", "words"),
    [
        ([], {"identities": None, "images": None}, "holds no dataset.*--identities and --images"),
        ([], {"identities": 5, "images": None}, "go together"),
        ([], {"identities": 400, "images": 4000}, "test_identities is 500, but only 400"),
        (["cluster.workers=1025"], COUNTS, r"training\.batch is 1024, fewer than.*1025"),
        (["cluster.workers=1024", "benchmark.steps=5"], COUNTS, "learning step 0 has 900 ident"),
        (["benchmark.steps=4501"], COUNTS, "4500 identities cannot fill"),
        (["data.image_size=null"], COUNTS, r"set data\.image_size"),
    ],
)
def test_impossible_set_ups_are_refused(config, overrides, counts, words):
    with pytest.raises(InputError, match=words) as caught:
        planned(config, *overrides, counts=counts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override", ["cluster.workers=20", "benchmark.steps=40", "benchmark.test_identities=61"]
)
def test_a_run_is_refused_with_the_same_words(config, small_folder, tmp_path, override):
    overrides = [
        f"dataset={small_folder}",
        "benchmark={steps: 2, test_identities: 24, pairs: 40}",
        override,
    ]
    said = []
    for counts in ({"identities": None, "images": None}, {"identities": 60, "images": 240}):
        with pytest.raises(InputError) as caught:
            planned(config, *overrides, counts=counts)
        said.append(str(caught.value))
    with pytest.raises(InputError) as caught:
        execute(load_config(config, overrides), tmp_path / "r", Console(quiet=True))
    assert said == [str(caught.value)] * 2


def test_times_are_a_roofline_and_a_ring():
    slow = Machine(
        "slow",
        {"fp32": 100.0, "tf32": 200.0, "bf16": 400.0},
        memory=1e9,
        bandwidth=10.0,
        link=5.0,
        network=2.0,
        source="made up",
        ranks=4,
        kernel=0.5,
        latency=1.0,
    )
    assert slow.compute_seconds([Operation(1000, 10)]) == 10
    assert slow.compute_seconds([Operation(1000, 10, "tf32")]) == 5
    assert slow.compute_seconds([Operation(1000, 10, "bf16")]) == 2.5
    assert slow.compute_seconds([Operation(10, 300)]) == 30
    assert slow.compute_seconds([Operation(0, 0), Operation(0, 1)]) == 1
    assert slow.compute_seconds([Operation(0, 0), Operation(0, 1)], started=False) == 0.1
    reduce, gather = Collective("all-reduce", 100), Collective("all-gather", 100)
    assert slow.communication_seconds([reduce, gather], 1) == 0
    assert slow.communication_seconds([reduce], 4) == 2 * 75 / 5 + 2
    assert slow.communication_seconds([reduce], 8) == 2 * 87.5 / 2 + 3
    assert slow.communication_seconds([gather], 4) == 300 / 5 + 2


def test_a_faster_machine_takes_less_time(config):
    overrides = "benchmark.steps=1", "embedder.width=64", "methods={finetune: {}}"
    a100, h100, h200 = (
        planned(config, *overrides, machine=MACHINES[name]).steps[-1].seconds["step"]
        for name in ("a100", "h100", "h200")
    )
    assert a100 > h100 > h200


def test_this_machine_is_measured(config):
    found = measure(1, 2)
    assert found.rates["fp32"] == found.rates["tf32"] > 1e9
    assert found.bandwidth > 1e8 and found.link > 1e7
    assert 0 < found.kernel < 1e-2 and 0 < found.latency < 1e-1
    with pytest.raises(InputError, match=r"no machine is called 'h300'.*this, a100, h100, h200"):
        machine("h300", 1, 1)


@pytest.mark.parametrize(
    "overrides",
    [
        ["classifier={margin: {kind: cosface}, sampled: 0.1}", "cluster.workers=8"],
        ["classifier={margin: {kind: adaface}, memory: 1000000, precision: bf16}"],
        ["teacher.mode=online", "training={batch: 64, optimizer: adam, row_state: int8, zero: 2}"],
    ],
)
def test_every_kind_of_classifier_and_teacher_is_run_dry_for_gpus(config, overrides):
    gpu = "cluster.gpu=true", "embedder.architecture=resnet18"
    taught = "benchmark.steps=2", "methods={lwf: {}, fkd: {neighbours: 20}}"
    plan = planned(
        config, *gpu, *taught, *overrides, "training.precision=bf16", machine=MACHINES["h100"]
    )
    assert all(step.seconds["step"] > 0 for step in plan.steps)


def written(plan):
    console = Console(width=80, file=io.StringIO())
    for part in plan_tables(plan):
        console.print(part)
    return console.file.getvalue()


def test_the_tables_fit_eighty_columns(config):
    counts = {"identities": 1_200_000, "images": 90_000_000}
    text = written(planned(config, "cluster.workers=512", machine=MACHINES["h100"], counts=counts))
    assert "…" not in text
    for word in ("399,834", "embedder gradients", "neighbourhoods", "images/s", "at least"):
        assert word in text


def test_exemplars_are_planned_as_a_run_counts_them(config):
    """Class by class: each keeps its share, and all images where it has no more."""
    methods = "methods={a: {kind: finetune, over: all, memory: {total: 9999}}, "
    methods += "b: {kind: finetune, over: all, memory: {per_class: 20}, predict: nearest-mean}, "
    plan = planned(config, methods + "finetune: {over: all}}")
    images = COUNTS["images"] // COUNTS["identities"]  # of each class
    ends = (1500, 3000, 4500)
    kept = {(one.method, one.step): one for one in plan.exemplars}
    assert kept.keys() == {(name, step) for name in "ab" for step in range(3)}
    for step, end in enumerate(ends):
        a, b = kept["a", step], kept["b", step]
        assert a.images == sum(min(9999 // end, images) for _ in range(end))
        held_out = BenchmarkSettings().seen_identities
        assert b.images == end * images - held_out  # fewer than 20 a class are there
        assert b.pixel_bytes == 3 * 32 * 32 * b.images
    trained = {(s.step, name): s for s in plan.steps for name in s.methods}
    for step in (1, 2):
        own = trained[step, "a"]
        assert own.exemplars == kept["a", step - 1].images
        assert own.images == own.exemplars + trained[step, "finetune"].images
        assert trained[step, "finetune"].exemplars == 0
        assert trained[step, "b"].disk["class means"] == 4 * 16 * ends[step]
        assert "class means" not in own.disk
    text = written(plan)
    assert "exemplars kept" in text and "9,000" in text and "…" not in text
    assert "exemplars kept" not in written(planned(config))


@pytest.mark.parametrize("world", [1, 2])
def test_class_incremental_methods_are_run_dry(config, world):
    kept = "{memory: {per_class: 20}}"
    methods = f"methods={{icarl: {kept}, lucir: {kept}, bic: {kept}, finetune: {{}}}}"
    plan = planned(config, methods, f"cluster.workers={world}", machine=MACHINES["h100"])
    last = {step.methods[0]: step for step in plan.steps if step.step == 2}
    plain = last.pop("finetune").memory["peak"]
    assert last.keys() == {"icarl", "lucir", "bic"}
    assert all(step.memory["peak"] > plain and step.seconds["step"] > 0 for step in last.values())


SINGLE = "benchmark={steps: 3, first_share: 0.9, test_identities: 24, pairs: 40}"
SINGLE_METHODS = (
    "methods={finetune: {}, ewc: {}, lwf: {}, joint: {}, told: {kind: lwf, over: all}, "
    "icarl: {memory: {per_class: 2}}}"
)


def test_steps_of_one_class_that_teach_nothing_are_named_before_any_work(
    config, small_folder, tmp_path
):
    overrides = [f"dataset={small_folder}", SINGLE, SINGLE_METHODS, "cluster.workers=1"]

    def said(counts, *more):
        plan = planned(config, *overrides, "training.batch=64", *more, counts=counts)
        text = " ".join(written(plan).split())
        assert all(note in text for note in plan.notes)
        return plan.notes

    few, more = "benchmark.train_identities=20", "benchmark.train_identities=22"
    (line,) = said({"identities": None, "images": None}, few)
    assert "learning steps 1, 2 has one class, and finetune, ewc, lwf classify" in line
    assert "methods.NAME.over=all" in line and "\n" not in line
    assert said({"identities": 60, "images": 240}, few) == [line]
    assert said({"identities": 60, "images": 240}, "benchmark.first_share=0.5", more) == []
    whole = said({"identities": 60, "images": 240}, "benchmark.train_identities=3")
    assert [name in whole[0] for name in ("joint", "told", "ewc")] == [False, False, True]
    assert whole[1].startswith("learning step 0 ") and "joint, told" in whole[1]

    told = Console(file=io.StringIO(), width=500)

    def at_work(cluster):
        assert line in told.file.getvalue()
        raise InputError("work would begin here")

    with pytest.raises(InputError, match="would begin"):
        execute(load_config(config, [*overrides, few]), tmp_path / "r", told, at_work)
    assert told.file.getvalue().count("has one class") == 1


def test_what_does_not_fit_is_said(config):
    overrides = "embedder.dimension=4000000", "methods={finetune: {}}"
    text = written(planned(config, *overrides, machine=MACHINES["h100"]))
    assert "does not fit: a rank holds" in text
    assert "does not fit" not in written(planned(config, machine=MACHINES["h100"]))


def test_sizes_and_times_are_short():
    assert [size_text(n) for n in (0, 999, 1000, 1.5e6, 999_600, 2e9, 3.25e12)] == [
        *("0 B", "999 B", "1 kB", "1.5 MB", "1 MB", "2 GB", "3.2 TB"),
    ]
    assert [time_text(s) for s in (2e-6, 0.0125, 90, 600, 7200, 86_400 * 3)] == [
        *("2 µs", "12.5 ms", "90 s", "10 min", "2 h", "3 days"),
    ]


def test_the_command_needs_neither_data_nor_ranks(tmp_path):
    demo = Path(__file__).parents[2] / "configs" / "demo.yaml"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "launch.cli", "plan", str(demo), "training.batch=512"),
            *("--identities", "2000", "--images", "40000", "--world", "256", "--json"),
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(demo.parents[1])},
    )
    plan = json.loads(done.stdout)
    assert plan["world"] == 256
    assert {step["step"] for step in plan["steps"]} == {0, 1, 2}
    assert np.sum([len(step["rows_by_rank"]) for step in plan["steps"]]) == 256 * len(plan["steps"])
    assert not list(tmp_path.iterdir())
