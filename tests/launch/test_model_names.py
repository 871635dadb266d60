"""Which model is meant by RUN:METHOD[:SEED[:STEP]], and what is said of folders that are none."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from data_shards.settings import InputError
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.importing import import_source, source_settings
from launch.cli import app
from launch.config.load import kept_config, load_config
from launch.models.compare import compatibility
from launch.models.embed import Images, run_embed
from launch.runs.continuing import first_model
from launch.runs.model_names import model_folder, named
from launch.runs.run import Run
from tests.monitoring.whole_run import write_whole_run
from trainer.checkpoint import Folder
from trainer.model import Model

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def run(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 0 and 1 of two methods; of finetune also seed 3, which has finished step 0 alone."""
    folder = write_whole_run(tmp_path_factory.mktemp("runs") / "nov", small_folder)
    steps = folder / "chains/finetune/seed-0/steps"
    shutil.copytree(steps / "0", folder / "chains/finetune/seed-3/steps/0")
    (folder / "chains/finetune/seed-3/steps/1/model").mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "mine"
    for who in ("ada", "bob"):
        (folder / who).mkdir(parents=True)
        for n in range(3):
            Image.new("RGB", (16, 16), (40 * n, 9, 200)).save(folder / who / f"{n}.jpg")
    return folder


def refused(of: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        Model.open(model_folder(of))
    message = str(caught.value)
    assert "\n" not in message and "delete" not in message
    return message


@pytest.mark.reliability(17, "RUN:METHOD[:SEED[:STEP]] names a model wherever one is given")
@pytest.mark.parametrize(
    ("name", "place"),
    [
        (":fkd", "fkd/seed-0/steps/1"),
        (":fkd:0:0", "fkd/seed-0/steps/0"),
        (":finetune", "finetune/seed-0/steps/1"),
        (":finetune:3", "finetune/seed-3/steps/0"),
        ("/chains/fkd/seed-0/steps/0/model", "fkd/seed-0/steps/0"),
    ],
)
def test_a_model_is_named_by_run_method_seed_and_step(run, name, place):
    assert model_folder(f"{run}{name}") == run / "chains" / place / "model"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "is a run, which holds many models: name one, such as"),
        ("", "(methods: finetune, fkd;"),
        (":fdk", "has no finished model of a method 'fdk', only of: finetune, fkd"),
        (":", "of a method '', only of"),
        (":finetune:2", "has no seed '2', only 0, 3"),
        (":finetune:3:1", "has no finished learning step '1', only 0"),
        (":fkd:0:x", "has no finished learning step 'x', only 0, 1"),
        (":fkd:0:1:2", "does not exist"),
        ("/chains/fkd/seed-0/steps/0", "holds one: give"),
        ("/chains/fkd", "chains/fkd/seed-0/steps/"),
        ("/run.yaml", "is a file: give a model's folder"),
    ],
)
def test_what_is_no_model_is_told_with_what_there_is(run, name, said):
    assert said in refused(f"{run}{name}")


@pytest.mark.reliability(
    17, "a folder given in place of a model is called what it is; no advice deletes it"
)
def test_a_folder_of_another_kind_is_called_what_it_is(run, small_folder, photos, tmp_path):
    assert "is a dataset, not a model" in refused(small_folder)
    told = str(CliRunner().invoke(app, ["inspect", str(small_folder)]).exception)
    assert "is a dataset, not a model" in told
    assert "is a folder of images, not a model" in refused(photos)
    assert "does not exist" in refused(tmp_path / "none")
    assert "is no model or checkpoint" in refused(tmp_path)
    with pytest.raises(InputError, match="is a run, which holds many models") as caught:
        Folder.at(run).verify()
    assert "delete" not in str(caught.value)


@pytest.mark.reliability(17, "a folder of photographs in place of a dataset: how to import it")
def test_photographs_in_place_of_a_dataset_are_to_be_imported(run, photos):
    for folder, said in (
        (
            photos,
            f"is a folder of images, not a dataset: import it with `perennial shards import "
            f"folder {photos}",
        ),
        (run, "is a run, not a dataset"),
        (model_folder(f"{run}:fkd"), "is a model, not a dataset"),
    ):
        with pytest.raises(InputError) as caught:
            ShardDataset.open(folder)
        assert said in str(caught.value)
        assert "glyphs --out" not in str(caught.value)


def test_a_manifest_of_nothing_but_brackets_is_said_to_be_none(tmp_path):
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"manifest\.json cannot be read, or is none: restore it"):
        Folder.at(tmp_path).verify()


def test_every_command_that_takes_a_model_takes_its_name(run, small_folder, tmp_path):
    result = CliRunner().invoke(app, ["inspect", f"{run}:fkd"])
    assert result.exit_code == 0, result.output
    new, old = f"{run}:fkd", f"{run}:finetune:0:0"
    found = compatibility(Path(new), Path(old), str(run / "run.yaml"), None, {}, None, QUIET)
    assert found["new"] == new
    for command in (
        ["embed", f"{run}:f", str(small_folder), "--out", str(tmp_path / "v")],
        ["evaluate", f"{run}:f", "--on", str(small_folder), "--protocol", "retrieval"],
        ["backfill", "x", "--model", f"{run}:f", "--shards", str(small_folder), "--budget", "1"],
    ):
        error = CliRunner().invoke(app, command).exception
        assert "no finished model of a method 'f', only of: finetune, fkd" in str(error)


def test_adopted_takes_a_name_and_continues_the_run_alone(run, tmp_path):
    config = kept_config(run)
    given = Run.open(tmp_path, config.model_copy(update={"adopted": Path(f"{run}:fkd")}))
    assert given.adopted and given.adopted.folder == named(f"{run}:fkd")
    config = load_config(run / "run.yaml", [f"continues={run}:fkd"])
    with pytest.raises(InputError, match="names one model: give the run alone"):
        first_model(config, tmp_path, "fkd/seed-0")


@pytest.mark.reliability(20, "`embed --out vectors.csv` is refused: a known ending, or a folder")
@pytest.mark.parametrize("name", ["vectors.csv", "v.NPY", "v.feather"])
def test_vectors_are_not_written_to_a_folder_called_as_a_file(run, small_folder, tmp_path, name):
    model = Model.open(model_folder(f"{run}:fkd"))
    images = Images.open(str(small_folder), None, model)
    with pytest.raises(InputError, match=r"end its name in \.npy, \.safetensors, "):
        run_embed(model, images, tmp_path / name, lambda *_: None, QUIET)
    assert not list(tmp_path.iterdir())


def _import(path: Path, out: Path) -> int:
    settings = source_settings("folder", str(path), [])
    return int(import_source("folder", settings, out)["samples"])


@pytest.mark.reliability(17, "an import whose path has a typo leaves nothing that blocks the next")
def test_a_typo_in_an_imports_path_blocks_nothing(photos, tmp_path):
    for wrong in ("nowhere", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError):
            _import(tmp_path / wrong, tmp_path / "out")
    assert _import(photos, tmp_path / "out") == 6


def test_the_mark_of_an_import_that_wrote_no_shard_blocks_nothing(photos, tmp_path):
    """All that it found was refused, or it was killed before its first shard."""
    wrong = tmp_path / "wrong" / "who"
    wrong.mkdir(parents=True)
    (wrong / "0.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="no readable image"):
        _import(wrong.parent, tmp_path / "out")
    assert _import(photos, tmp_path / "out") == 6
    assert np.bincount(ShardDataset.open(tmp_path / "out").identity).tolist() == [3, 3]
