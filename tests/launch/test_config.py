"""Configurations: what is wrong is named, with the nearest right key."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_shards.settings import InputError
from launch.cli import app
from launch.config.cluster import ClusterSettings
from launch.config.load import differences, fields, load_config
from launch.config.run import RunConfig
from launch.phases.planning import phases
from tests.launch.test_net import run_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_configuration_is_valid(path):
    config = load_config(path)
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("dataset: d\nmethods: {finetune: {}, fkd: {neighbours: 5}}\n")
    return path


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "training.iteratons=3",
            r"unknown key training\.iteratons; did you mean training\.iterations",
        ),
        ("trainin.batch=3", r"unknown key trainin; did you mean training"),
        (
            "training.iterations=0",
            r"training\.iterations: .*greater than or equal to 1 \(given: 0\)",
        ),
        ("training.iterations=many", r"training\.iterations: .*valid integer.*'many'"),
        ("training.milestones=[500]", r"milestones \[500\] must ascend"),
        ("methods.fdk={}", r"fdk: say its kind.*did you mean fkd"),
        ("methods.fkd.neighbors=3", r"unknown key methods\.fkd\.neighbors"),
        ("methods.fkd.neighbours=0", r"methods\.fkd\.neighbours: .*greater than or equal to 1"),
        ("methods.my/method={kind: fkd}", "is no name"),
        ("methods={}", "methods: .*at least 1"),
        ("seeds=[1,1]", "repeat a value"),
        ("training.batch=1 cluster.workers=2", r"fewer than cluster\.workers"),
        ("data.order.kind=identites", r"data\.order: .*'identities'"),
        ("data.order.kind=blocks data.order.windw=3", r"order\.windw; did you mean.*\.window"),
        (
            "data.order.kind=identities training.batch=30",
            r"batch = 30 is no multiple of data\.order\.images_per_identity = 4",
        ),
        ("training", "no override"),
        ("training.batch.size=3", "not a group of keys|valid integer"),
        ("training.batch=[", "no YAML"),
        (
            "evaluation.tests.lfw.dataset=d evaluation.tests.lfw.protocl=verification",
            r"evaluation\.tests\.lfw\.protocl; did you mean evaluation\.tests\.lfw\.protocol",
        ),
        (
            "evaluation.tests.lfw.dataset=d evaluation.tests.lfw.protocol=retreival",
            r"evaluation\.tests\.lfw\.protocol: .*'retrieval'",
        ),
        (
            "evaluation.tests.lfw.dataset=d evaluation.tests.lfw.protocol=retrieval "
            "evaluation.tests.lfw.distractors=e",
            r"evaluation\.tests\.lfw: distractors are for protocol identification, not retrieval",
        ),
        (
            "evaluation.tests.a/b.dataset=d evaluation.tests.a/b.protocol=retrieval",
            "'a/b' is no name",
        ),
        ("embedder.architecture=vgg", r"embedder\.architecture: .*resnet50"),
    ],
)
def test_what_is_wrong_is_named(file, override, words):
    overrides = [part for part in override.split(" ") if "=" in part or "." not in part]
    if override.startswith(("methods.my", "methods={}")):
        overrides = [override]
    with pytest.raises(InputError, match=words) as caught:
        load_config(file, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.reliability(
    3, "shift or erase is refused beside a cached teacher, which answers for the image without them"
)
@pytest.mark.parametrize("change", ["shift=2", "erase=0.5"])
@pytest.mark.parametrize("method", ["fkd", "lwf", "lfl", "l2", "bct-kd", "bct-lwf"])
def test_a_cached_teacher_is_not_asked_about_images_it_has_not_seen(file, method, change):
    given = [f"methods={{{method}: {{}}}}", f"data.augmentation.{change}"]
    named = (
        rf"data\.augmentation\.{change.replace('=', ' = ')}, and {method} .*teacher\.mode=online"
    )
    with pytest.raises(InputError, match=named) as caught:
        load_config(file, given)
    assert "\n" not in str(caught.value)
    load_config(file, [*given, "teacher.mode=online"])
    load_config(file, [f"methods={{{method}: {{}}}}", "data.augmentation.flip=true"])


@pytest.mark.parametrize("method", ["finetune", "joint", "bct", "bct-sys"])
def test_methods_that_ask_no_teacher_may_shift_and_erase(file, method):
    load_config(file, [f"methods={{{method}: {{}}}}", "data.augmentation={shift: 2, erase: 0.5}"])


def test_missing_and_broken_files_are_named(tmp_path):
    (tmp_path / "demo.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"other\.yaml does not exist.*demo\.yaml"):
        load_config(tmp_path / "other.yaml")
    with pytest.raises(InputError, match=r"demo\.yaml, line 2: this is no YAML"):
        load_config(tmp_path / "demo.yaml")
    (tmp_path / "demo.yaml").write_text("- 1")
    with pytest.raises(InputError, match="must hold keys"):
        load_config(tmp_path / "demo.yaml")


def test_overrides_reach_every_depth(file):
    config = load_config(file, ["methods.fkd.relaxation=0.5", "cluster.workers=3", "seeds=[4,5]"])
    assert config.methods["fkd"].relaxation == 0.5
    assert config.cluster.workers == 3
    assert config.seeds == (4, 5)


def test_a_method_changes_the_runs_model_where_it_says_so(file):
    given = [
        "embedder={dimension: 64, width: 8}",
        "classifier={margin: {kind: cosface}, precision: bf16}",
        "methods.wide={kind: bct, embedder: {dimension: 256}}",
        "methods.other={kind: joint, classifier: {margin: {kind: norm_softmax}}}",
    ]
    config = load_config(file, given)
    wide, other = config.methods["wide"], config.methods["other"]
    assert wide.network(config.embedder, 0) == config.embedder
    assert wide.network(config.embedder, 1) == config.embedder.model_copy(update={"dimension": 256})
    assert wide.loss(config.classifier, 1) == config.classifier
    assert other.loss(config.classifier, 1).margin.kind == "norm_softmax"
    assert other.loss(config.classifier, 1).precision == "bf16"
    with pytest.raises(InputError, match=r"unknown key methods\.finetune\.embedder"):
        load_config(file, ["methods.finetune.embedder={dimension: 7}"])


def test_a_method_has_a_schedule_of_its_own(file, tmp_path):
    """iCaRL's authors learn at 2, divided by 5: another schedule than those it is compared with."""
    given = ["training={iterations: 30, batch: 24}", "cluster.workers=2"]
    own = "methods.finetune.training={learning_rate: 2, decay: 5, milestones: [20]}"
    plain, config = load_config(file, given), load_config(file, [*given, own])
    lessons = config.methods["finetune"].lessons(config.training)
    assert (lessons.iterations, lessons.batch, lessons.learning_rate) == (30, 24, 2)
    assert config.methods["fkd"].lessons(config.training) == config.training
    before, after = (
        {phase.name: phase.fingerprint for phase in phases(run_of(c, tmp_path))}
        for c in (plain, config)
    )
    changed = {name for name, own in after.items() if before[name] != own}
    assert "finetune/seed-0/step-0/train" in changed
    assert all(name.startswith("finetune/") for name in changed)
    with pytest.raises(InputError, match=r"methods\.finetune\.training\.batch is 1, fewer than"):
        load_config(file, [*given, "methods.finetune.training={batch: 1}"])
    with pytest.raises(InputError, match=r"say training of the combination, not of fkd"):
        load_config(
            file, ["methods.both={kind: combination, of: {fkd: {training: {batch: 8}}, bct: }}"]
        )


def test_a_combination_names_its_methods_and_their_mistakes(file):
    config = load_config(file, ["methods.both={kind: combination, of: {fkd: {weight: 2}, bct: }}"])
    assert config.methods["both"].of["fkd"].weight == 2
    with pytest.raises(
        InputError, match=r"of\.fkd\.weigth; did you mean methods\.both\.of\.fkd\.weight"
    ):
        load_config(file, ["methods.both={kind: combination, of: {fkd: {weigth: 2}, bct: {}}}"])
    with pytest.raises(InputError, match=r"methods\.both\.of\.nonsense"):
        load_config(file, ["methods.both={kind: combination, of: {fkd: {}, nonsense: {}}}"])


def test_every_key_is_documented():
    undocumented = [key for key, _, meaning in fields() if not meaning]
    assert undocumented == []


def test_where_it_runs_does_not_decide_the_result(file):
    a = load_config(file)
    b = load_config(file, ["cluster.workers=7", "data.threads=3", "training.log_every=3"])
    assert differences(a.deciding(), b.deciding()) == []
    c = load_config(file, ["training.batch=64"])
    assert differences(a.deciding(), c.deciding()) == ["training.batch (was 128, now 64)"]


def test_a_yaml_file_cannot_run_code(tmp_path):
    target = tmp_path / "hit"
    path = tmp_path / "c.yaml"
    path.write_text(f"dataset: !!python/object/apply:os.mkdir ['{target}']\nmethods: {{fkd: }}\n")
    with pytest.raises(InputError):
        load_config(path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("classifier.margin={kind: cosface, scal: 3}", "classifier.margin.scal; did you mean"),
        ("classifier.margin={scale: 3}", "classifier.margin: say which, by classifier.margin.kind"),
        ("classifier.margin={kind: cosfac}", "classifier.margin: .*'cosface'"),
        ("classifier.margin={kind: cosface, margin: -1}", "classifier.margin.margin: .*given: -1"),
    ],
)
def test_a_margin_that_cannot_be_is_explained(file, override, message):
    with pytest.raises(InputError, match=message):
        load_config(file, [override])


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_driver_and_every_rank_listen_on_ports_of_their_own(workers):
    cluster = ClusterSettings(workers=workers, metrics_port=9000)
    ranks = {cluster.metrics_endpoint(rank)["port"] for rank in range(max(1, workers))}
    assert len(ranks | {cluster.driver_endpoint()["port"]}) == max(1, workers) + 1


def test_workers_find_every_location_in_whatever_folder_they_work(tmp_path, monkeypatch):
    path = tmp_path / "c.yaml"
    path.write_text(
        "{dataset: d, adopted: m, benchmark: {file: b.json, steps: 2}, methods: {bct-sys: {}}, "
        "evaluation: {tests: {a: {dataset: t, protocol: identification, distractors: 's3://x/y'}, "
        "b: {dataset: u, protocol: retrieval}}}}"
    )
    monkeypatch.chdir(tmp_path)
    placed = RunConfig.model_validate(load_config(path).placed())
    tests = placed.evaluation.tests
    assert [placed.dataset, tests["a"].dataset, tests["b"].dataset] == [
        str(tmp_path / name) for name in "dtu"
    ]
    assert (tests["a"].distractors, tests["b"].distractors) == ("s3://x/y", None)
    assert (placed.adopted, placed.benchmark.file) == (tmp_path / "m", tmp_path / "b.json")


@pytest.mark.reliability(20, "sizes are written HxW everywhere, in commands and configurations")
def test_sizes_are_written_alike_everywhere(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("{dataset: d, methods: {finetune: {}}, data: {image_size: 32x48}}")
    assert load_config(path).data.image_size == (32, 48)
    assert load_config(path, ["data.image_size=[8,9]"]).data.image_size == (8, 9)
    with pytest.raises(InputError, match=r"data\.image_size: size '32': write height x width"):
        load_config(path, ["data.image_size='32'"])
    for command in (["shards", "import"], ["compat"], ["embed"], ["evaluate"], ["adopt"]):
        asked = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).output
        assert re.search(r"--size\b.*HxW", asked), asked
