"""A small dataset and a way to run a function on several gloo ranks."""

import gc
import io
import os
import signal
from pathlib import Path

# threads that wait by spinning take the cores from those they wait for, where others run, too
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when Ray is imported, by whatever test
# Ray's own 15 leaves its workers a thirtieth of a core beside another file's tests, and all waits
os.environ.setdefault("RAY_worker_niceness", "0")

import hypothesis
import numpy as np
import pytest
from PIL import Image

from data_shards.sources import SourceImage
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.writer import write_dataset

hypothesis.settings.register_profile("perennial", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("perennial")
# a shell's background job ignores Ctrl-C, and so would every process that a test starts
signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = (
    "chaos/test_processes.py",
    "integration/test_resume.py",
    "integration/test_photographs.py",
    "chaos/test_two_hosts.py",
    "chaos/test_alerts.py",
    "integration/test_walk.py",
    "chaos/test_ssh.py",
    "integration/test_jobs.py",
    "integration/test_ranks.py",
    "integration/test_toy_paper.py",
    "chaos/test_between_jobs.py",
    "chaos/test_phase_kills.py",
    "integration/test_prometheus.py",
    "perennial/test_wheel.py",
    "k8s/test_entrypoint.py",
    "integration/test_bare_machine.py",
    "data_shards/test_destination.py",
    "trainer/test_processors.py",
    "launch/test_net.py",
    "launch/test_plan.py",
    "launch/test_expert.py",
    "launch/test_mnemonics.py",
    "chaos/test_futile_restarts.py",
    "launch/test_slurm.py",
)
"""Files that take a minute and more, the longest first; see docs/results/ci.md."""


@pytest.fixture(scope="module", autouse=True)
def _what_is_imported_stays():
    """A job ends with a collection of garbage, which need not go through all of torch each time."""
    gc.collect()
    gc.freeze()


def jpeg(identity: int, camera: int, size: int = 16) -> bytes:
    """A picture of coarse blocks that depends on the identity, with the camera's noise."""
    shape = np.random.default_rng(identity).integers(0, 255, (4, 4, 3))
    picture = np.kron(shape, np.ones((size // 4, size // 4, 1)))
    noise = np.random.default_rng(1000 * identity + camera).integers(-30, 30, picture.shape)
    out = io.BytesIO()
    Image.fromarray(np.clip(picture + noise, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=95)
    return out.getvalue()


def source(identities: int, cameras: int) -> list[SourceImage]:
    return [
        SourceImage(jpeg(i, c), f"id-{i}", f"camera-{c}", f"{i}_{c}")
        for i in range(identities)
        for c in range(cameras)
    ]


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 60 identities seen by 4 cameras each, in shards of 50."""
    folder = tmp_path_factory.mktemp("small") / "dataset"
    write_dataset(source(60, 4), folder, {"kind": "blocks"}, shard_samples=50)
    return folder


@pytest.fixture(scope="session")
def small(small_folder: Path) -> ShardDataset:
    return ShardDataset.open(small_folder)


def pytest_configure(config: pytest.Config) -> None:
    told = "reliability(kind, done): a line of docs/reliability.md, see tests/reliability.py"
    config.addinivalue_line("markers", told)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of several processes none may begin with a long file when the others are done.

    In one process tests keep their order, which docs/reliability.md has, too.
    """
    if not hasattr(config, "workerinput"):
        return
    tests = Path(__file__).parent
    begin = {tests / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: begin.get(item.path, len(LONGEST)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="write the golden losses anew")
    told = "write what the chaos tests tried into docs/ anew"
    parser.addoption("--reliability", action="store_true", help=told)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small datasets of each kind of test set."""
    from tests.own_test_sets import write_sets

    root = tmp_path_factory.mktemp("sets")
    write_sets(root)
    return root
