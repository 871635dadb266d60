"""Ray on this machine listens on localhost alone and lets nobody in without the token."""

import json
import os
import subprocess
import sys
import tempfile

import pytest

from data_shards.settings import InputError
from launch.machine.ray_token import check_token

SCRIPT = """
import json, os, stat, subprocess, sys
from pathlib import Path
import psutil
from launch.execution.ray_cluster import cluster
from launch.config.cluster import ClusterSettings

with cluster(ClusterSettings()) as ray:
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    sockets = [c for p in family for c in p.net_connections("inet") if c.status == "LISTEN"]
    address = ray.get_runtime_context().gcs_address
    join = f"import ray; ray.init(address={address!r}, log_to_driver=False)"
    attempts = {
        name: subprocess.Popen(
            [sys.executable, "-c", join],
            env={**os.environ, **change},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name, change in (
            ("no token", {"RAY_AUTH_MODE": "disabled"}),
            ("wrong token", {"RAY_AUTH_TOKEN": "0" * 64}),
            ("the token", {}),
        )
    }
    codes = {name: attempt.wait() for name, attempt in attempts.items()}
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    made = list(Path(os.environ["TMPDIR"]).iterdir())
    modes = [stat.S_IMODE(path.lstat().st_mode) for path in made]
    assert any(session.is_relative_to(path) for path in made), session
gone = not any(path.exists() for path in made)
left = os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
print(json.dumps({"listening": [c.laddr.ip for c in sockets], "codes": codes, "left": left}
             | {"modes": modes, "gone": gone, "home": os.listdir(os.environ["HOME"])}))
"""


@pytest.mark.reliability(7, "Ray's token is in no file, and its folder in TMPDIR is 0700")
def test_ray_listens_on_localhost_and_wants_its_token(tmp_path):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # sockets' paths have 107 bytes at most
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**kept, "TMPDIR": short, "HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            umask=0,
        )
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["listening"]) > 3
    assert {ip.removeprefix("::ffff:") for ip in found["listening"]} == {"127.0.0.1"}
    assert found["left"] is None  # or a cluster that is started from here would refuse hosts
    codes = found["codes"]
    assert codes.pop("the token") == 0
    assert all(codes.values()), codes
    assert found["modes"] and not any(mode & 0o077 for mode in found["modes"])
    assert found["gone"] and ".ray" not in found["home"]


@pytest.mark.reliability(7, "a file with Ray's token that others can read is refused")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o622])
def test_a_token_that_others_can_read_is_refused(tmp_path, monkeypatch, mode):
    path = tmp_path / "token"
    path.write_text("0" * 64)
    path.chmod(mode)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    with pytest.raises(InputError, match=f"chmod 600 {path}"):
        check_token()
    path.chmod(0o600)
    check_token()
