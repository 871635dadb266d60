"""A rendered RayJob's own words, run on this machine in what stands for its pods."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.clusters.kubernetes import read_manifests, render, sizes, write_manifests
from launch.config.load import load_config
from launch.planning.plan import plan_run
from launch.planning.split import split_of
from tests.k8s.manifests import ROOT, build, pods

CONFIG = """
dataset: data/small
benchmark: {steps: 1, train_identities: 36, test_identities: 24, pairs: 40}
embedder: {architecture: small, dimension: 16}
training: {iterations: 4, batch: 16, log_every: 2, checkpoint_every: 2}
teacher: {compile: false}
methods: {finetune: {}}
cluster: {actors: 1, threads: 1}
"""


def namespaces():
    """Whether this machine lets us make a pod."""
    if os.geteuid() or not all(map(shutil.which, ("unshare", "setpriv", "chroot", "ip"))):
        return False
    return subprocess.run(["unshare", "-mpnf", "true"], check=False).returncode == 0


@pytest.fixture
def documents(tmp_path, small_folder):
    """The objects of a small run, as built."""
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG)
    config = load_config(path)
    split = split_of(load_config(path, [f"dataset={small_folder}"]), None, None)
    size = sizes(config, plan_run(config, split, None), 1)
    write_manifests(render(read_manifests(), config, size, "small", "perennial:1"), tmp_path / "k")
    return build(tmp_path / "k" / "overlays" / "dev")


def started(parameters):
    """`ray start` with a group's parameters, as KubeRay writes it."""
    return "ray start " + " ".join(f"--{name}={value}" for name, value in parameters.items())


@pytest.mark.skipif(not namespaces(), reason="needs root, and the right to make namespaces")
def test_the_entrypoint_trains_as_it_is_written(documents, small_folder, tmp_path):
    job = next(one for one in documents if one["kind"] == "RayJob")
    written = next(one for one in documents if one["kind"] == "ConfigMap")["data"]
    cluster = job["spec"]["rayClusterSpec"]
    container = pods(job)["head"]["spec"]["containers"][0]

    volumes = tmp_path / "volumes"  # + stands for a slash
    config, runs = volumes / "perennial+config", volumes / "perennial+runs"
    for folder in (config, runs, volumes / "tmp"):
        folder.mkdir(parents=True)
    for name, text in written.items():
        (config / name).write_text(text)
    shutil.copytree(small_folder, runs / "data" / "small")

    groups = [group["rayStartParams"] for group in cluster["workerGroupSpecs"]]
    small = {"object-store-memory": "100000000", "node-ip-address": "127.0.0.1"}
    head = {**cluster["headGroupSpec"]["rayStartParams"], **small}
    probe = container["livenessProbe"]["exec"]["command"]
    command = "\n".join(
        [
            "set -e",
            f"cd {container['workingDir']}",
            f"{started(head)} --head >/tmp/head 2>&1",
            *(
                f"{started({**group, **small})} --address=127.0.0.1:6379 >/tmp/group 2>&1"
                for group in groups
            ),
            # targets are listed while they serve
            "until cat small/targets/trainer-0.json >/tmp/target; do sleep 0.1; done 2>/dev/null &",
            "export RAY_ADDRESS=127.0.0.1:6379",
            job["spec"]["entrypoint"],
            f"for i in $(seq 60); do {shlex.join(probe)} && break; done",
            shlex.join(probe),
            "! touch /usr/x /etc/x /x /perennial/x 2>/dev/null",
        ]
    )
    paths = [ROOT, sys.prefix, sys.base_prefix, *os.environ.get("PYTHONPATH", "").split(":")]
    shown = {str(Path(p).resolve()) for p in paths if p and not str(p).startswith("/usr")}
    environment = {
        **{variable["name"]: variable["value"] for variable in container["env"]},
        "PATH": f"{sys.prefix}/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "RAY_AUTH_MODE": "token",  # KubeRay sets these two from authOptions
        "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
        "SHOWN": " ".join(sorted(shown)),
    }
    pod = [
        "unshare",
        "-mpnf",
        "--mount-proc",
        "--kill-child",
        "bash",
        Path(__file__).with_name("pod.sh"),
    ]
    (tmp_path / "root").mkdir()
    done = subprocess.run(
        [*pod, tmp_path / "root", volumes, command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=560,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = runs / "small"
    phases = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert [phase["kind"] for phase in phases] == ["train", "evaluate"]
    assert (run / "report.html").exists()
    targets = json.loads((volumes / "tmp" / "target").read_text())
    assert targets[0]["targets"][0].endswith(":9400")
    assert (run / "ledger.jsonl").stat().st_uid == 10001
