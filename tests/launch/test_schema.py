"""The schema of configurations is that of the models, and takes what they take."""

import copy
import json

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from data_shards.settings import InputError, parse_bytes, parse_side
from launch.cli import app
from launch.config.keys import FIRST, keys, kinds_of_methods, read_schema
from launch.config.load import fields, load_config
from launch.config.schema import made_schema
from launch.config.templates import template, templates
from trainer.methods import METHODS

SCHEMA = jsonschema.Draft202012Validator(read_schema())
GOOD = {"dataset": "d", "methods": {"fkd": {"neighbours": 5}, "mine": {"kind": "fkd"}, "bct": None}}


def test_the_file_is_that_of_the_models():
    assert made_schema() == read_schema(), "run: python -m launch.config.schema"
    jsonschema.Draft202012Validator.check_schema(read_schema())


def test_it_lists_the_keys_of_the_models():
    of_models = {key for key, _, _ in fields()}
    for kind, model in METHODS.items():
        own = {key for key, _, _ in fields(model, f"methods.{kind}.")}
        of_models |= {key for key in own if not key.endswith(".kind")}
    listed = {key.name: key for key in keys(read_schema())}
    assert listed.keys() == of_models
    assert all(key.meaning for key in listed.values())
    assert set(FIRST) <= listed.keys()
    assert kinds_of_methods(read_schema()).keys() == METHODS.keys()


@pytest.mark.parametrize("name", templates())
def test_it_takes_what_comes_along(name):
    SCHEMA.validate(yaml.safe_load(template(name).read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "change",
    [
        {"trainin": {}},
        {"methods": {"fkd": {"neighbors": 5}}},
        {"methods": {"mine": {}}},
        {"methods": {"mine": {"kind": "fdk"}}},
        {"data": {"image_size": "64"}},
        {"data": {"cache": {"bytes": "20 gigabytes"}}},
    ],
    ids=str,
)
def test_what_the_models_refuse_it_refuses(change, tmp_path):
    path = tmp_path / "c.yaml"
    for part, accepted in ((copy.deepcopy(GOOD), True), ({**GOOD, **change}, False)):
        path.write_text(json.dumps(part), encoding="utf-8")
        assert SCHEMA.is_valid(part) is accepted
        if accepted:
            load_config(path)
        else:
            with pytest.raises(InputError):
                load_config(path)


@pytest.mark.parametrize(
    ("text", "count"),
    [("20GB", 20 * 10**9), ("1.5 GiB", 3 << 29), ("512KiB", 1 << 19), ("8kB", 8000), ("7B", 7)],
)
def test_amounts_have_units(text, count, tmp_path):
    assert parse_bytes(text) == count
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(GOOD), encoding="utf-8")
    config = load_config(path, [f"data.cache.bytes={text}", "classifier.memory=2GB"])
    assert (config.data.cache.bytes, config.classifier.memory) == (count, 2 * 10**9)
    with pytest.raises(InputError, match=r"classifier\.memory.*one with a unit: 20GB"):
        load_config(path, ["classifier.memory=many"])


def test_sides_of_squares_are_sizes():
    assert parse_side("32x32") == parse_side("32") == 32
    with pytest.raises(InputError, match="square"):
        parse_side("32x16")


def test_config_prints_little_and_with_all_everything():
    few, every = (
        CliRunner().invoke(app, ["config", *more], env={"COLUMNS": "200"}).output
        for more in ([], ["--all"])
    )
    assert "training.batch" in few and "training.guard.window" not in few
    assert "training.guard.window" in every and "methods.fkd.neighbours" in every
    assert json.loads(CliRunner().invoke(app, ["config", "--schema"]).output) == read_schema()
