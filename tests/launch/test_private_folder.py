"""Folders that nobody else may enter, on machines with little room for them."""

import os
import stat
from pathlib import Path

import pytest

from data_shards.settings import InputError
from launch.machine.private_folder import (
    RAY_BYTES,
    kept_private,
    make_private,
    places,
    private_folder,
)


def test_a_long_tmpdir_is_left_for_one_that_rays_sockets_fit_into(tmp_path, monkeypatch):
    long = tmp_path / ("scratch" * 10)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    assert make_private().parent == long
    with private_folder(RAY_BYTES) as folder:
        assert len(os.fsencode(folder)) <= RAY_BYTES
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


def test_no_place_at_all_is_one_line_with_each_reason(monkeypatch):
    monkeypatch.setattr(
        "launch.machine.private_folder.places", lambda: [Path("/proc/1"), Path("/" + 99 * "x")]
    )
    with pytest.raises(InputError, match=r"/proc/1: .*too long.*set TMPDIR") as caught:
        make_private(RAY_BYTES)
    assert "\n" not in str(caught.value)


def test_a_missing_tmpdir_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    assert places()[0] == tmp_path / "missing"
    with private_folder() as folder:
        assert folder.parent != tmp_path / "missing"


def test_what_is_kept_is_found_again_and_never_somebody_elses(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    first = kept_private()
    assert first == kept_private()
    assert first.parent == tmp_path
    first.chmod(0o777)
    monkeypatch.setattr("launch.machine.private_folder.places", lambda: [tmp_path])
    assert kept_private() != first
    first.rmdir()
    (tmp_path / "elsewhere").mkdir()
    first.symlink_to(tmp_path / "elsewhere")
    assert kept_private() != first
