"""Configurations that come along are called by name, from any folder."""

from pathlib import Path

import pytest

from data_shards.settings import InputError
from launch.config.load import load_config
from launch.config.templates import config_file, template, templates

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def test_every_one_says_what_it_is():
    assert list(templates()) == NAMES
    for name, told in templates().items():
        assert len(told) > 20 and not told.endswith("Sec"), name


@pytest.mark.parametrize("given", ["demo", "configs/demo.yaml"])
def test_a_name_stands_for_the_file_where_there_is_none(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(Path(given)) == load_config(ROOT / "configs" / "demo.yaml")
    own = tmp_path / given
    own.parent.mkdir(exist_ok=True)
    own.write_text("dataset: mine\nmethods: {finetune: {}}\n")
    assert load_config(Path(given)).dataset == "mine"


def test_a_folder_of_that_name_is_no_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    assert config_file(Path("photos")) == template("photos")


def test_other_files_are_as_they_are_given():
    for given in ("demo.yaml", "elsewhere/demo.yaml", "elsewhere/demo"):
        assert config_file(Path(given)) == Path(given)


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(InputError, match=r"'crl_face_5steps' .* crl_face_5step"):
        load_config(Path("crl_face_5steps"))
    with pytest.raises(InputError, match="one of ablation_ns_cr"):
        template("zzzzzzzzz")
