"""What `perennial launch k8s` refuses, and says."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_shards.settings import InputError
from launch.cli import app
from launch.clusters.kubernetes import read_manifests, render, sizes
from launch.config.load import load_config
from launch.planning.plan import plan_run
from launch.planning.split import split_of

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


@pytest.fixture(scope="module")
def demo():
    config = load_config(DEMO, ["cluster.workers=4"])
    return config, plan_run(config, split_of(config, 1500, 13000), None)


@pytest.mark.parametrize("ranks", [3, 16])
def test_ranks_that_make_no_whole_pods(demo, ranks):
    with pytest.raises(InputError, match=r"must divide cluster.workers = 4 and be at most 8"):
        sizes(*demo, ranks)


@pytest.mark.parametrize("name", ["", "Faces", "1st", "a-", "a" * 41, "a/../b", "a b"])
def test_names_that_no_object_may_have(demo, name):
    with pytest.raises(InputError, match="--name"):
        render(read_manifests(), demo[0], sizes(*demo, 1), name, "perennial:1")


@pytest.mark.parametrize("image", ["perennial", "perennial:latest", "x/y@sha256:12", "a b:1"])
def test_images_without_a_version(demo, image):
    with pytest.raises(InputError, match="must name a tag"):
        render(read_manifests(), demo[0], sizes(*demo, 1), "faces", image)


def test_rendering_leaves_what_it_was_given_alone(demo):
    files = read_manifests()
    render(files, demo[0], sizes(*demo, 1), "faces", "perennial:1")
    assert files == read_manifests()


def test_the_command_writes_a_folder_and_says_what_to_apply(tmp_path):
    words = ["launch", "k8s", str(DEMO), "--image", "perennial:1", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, "--identities", "1500", "--images", "13000"])
    assert done.exit_code == 0, done.output
    assert "1 trainer pods of 1 ranks" in done.output
    assert done.output.replace("\n", "").endswith(f"kubectl apply -k {tmp_path}/out/overlays/dev")
    assert (tmp_path / "out" / "overlays" / "dev" / "kustomization.yaml").exists()
