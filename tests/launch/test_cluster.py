"""Ray on this machine listens on localhost alone and lets nobody in without the token."""

import json
import subprocess
import sys

SCRIPT = """
import json, os, subprocess, sys
import psutil
from launch.cluster import cluster
from launch.cluster_settings import ClusterSettings

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
left = os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
print(json.dumps({"listening": [c.laddr.ip for c in sockets], "codes": codes, "left": left}))
"""


def test_ray_listens_on_localhost_and_wants_its_token():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["listening"]) > 3
    assert {ip.removeprefix("::ffff:") for ip in found["listening"]} == {"127.0.0.1"}
    assert found["left"] is None  # or a cluster that is started from here would refuse hosts
    codes = found["codes"]
    assert codes.pop("the token") == 0
    assert all(codes.values()), codes
