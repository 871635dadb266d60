"""Cores by a container's quota, as both versions of control groups write it."""

import math
import os

import pytest

from data_shards.cores import cores, quota


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.mark.reliability(15, "a container's quota of cores counts, not the cores of its machine")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", math.inf),
        ("150000 100000\n", 1.5),
        ("50000 100000\n", 0.5),
        ("?", math.inf),
    ],
)
def test_version_2(tmp_path, text, expected):
    own = tmp_path / "own"
    own.write_text("0::/pod/container\n")
    group(tmp_path / "cgroup" / "pod", cpu__max="400000 100000\n")
    group(tmp_path / "cgroup" / "pod" / "container", cpu__max=text)
    assert quota(tmp_path / "cgroup", own) == min(expected, 4.0)
    own.write_text("0::/../elsewhere\n")  # from outside of the container's name space
    group(tmp_path / "cgroup", cpu__max="200000 100000\n")
    assert quota(tmp_path / "cgroup", own) == 2.0


def test_version_1(tmp_path):
    own = tmp_path / "own"
    own.write_text("9:name=systemd:/\n4:cpuset:/\n3:cpu,cpuacct:/docker/abc\n")
    root = tmp_path / "cgroup" / "cpu,cpuacct"
    group(root, cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert quota(tmp_path / "cgroup", own) == math.inf
    group(root, cpu__cfs_quota_us="250000\n")  # the host's path is not there: the mount is it
    assert quota(tmp_path / "cgroup", own) == 2.5


def test_without_groups_there_is_no_limit(tmp_path):
    assert quota(tmp_path, tmp_path / "missing") == math.inf
    assert 1 <= cores() <= len(os.sched_getaffinity(0))
