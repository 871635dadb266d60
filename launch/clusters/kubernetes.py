"""Kubernetes manifests of a run: those of k8s/ with its name, configuration and sizes filled in."""

import copy
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.settings import InputError
from data_shards.storage.remote import is_remote
from launch.config.run import RunConfig
from launch.planning.plan import Plan
from launch.root import ROOT
from untrusted.yaml_text import dump_yaml, yaml_documents

MANIFESTS = ROOT / "k8s"
Files = dict[str, list[Any]]
"""YAML documents by their file's path."""

_MI, _GI = 2**20, 2**30
_PROCESS = 2 * _GI
"""Bytes of a process without any model: torch, DeepSpeed and DALI on a CPU, rounded up."""
_POD = 3 * _GI
"""Bytes of a pod beside the processes: Ray's own, and /dev/shm."""
_SAVED_PER_SECOND = 100e6
"""Bytes a second at which the run's volume can be written, at least; an assumption."""
_GRACE = 60
"""Seconds for ending, beside saving."""
_ROOM = 1.25
"""Size of the volume as a multiple of the plan's bytes."""
_METRICS_PORT = 9400
_MOST_RANKS = 8
"""Most ranks of a pod: the manifests open so many ports to Prometheus."""
_THREADS = 4
_SCRATCH = 10 * _GI
_RUNS, _CONFIG = "/perennial/runs", "/perennial/config/run.yaml"
_CACHE = "/tmp/cache/perennial"
_PLACEHOLDER_NAME, _PLACEHOLDER_IMAGE = "perennial", "perennial:0.1.0"
_INSTANCE = "app.kubernetes.io/instance"
_TAGGED = re.compile(r"[a-z0-9./:_-]+(:(?!latest$)[\w.-]+|@sha256:[0-9a-f]{64})")
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True)
class Sizes:
    """The resource requests of a run's pods, in bytes and seconds."""

    trainers: int
    """Pods, with ``ranks`` training workers each."""
    ranks: int
    threads: int
    """CPUs of a training worker."""
    trainer_memory: int
    actors: int
    """Most pods, with ``slots`` CPU actors each, of one CPU."""
    slots: int
    actor_memory: int
    rank_memory: int
    """Memory of a pod of ``ranks`` without Ray, which hold either an old model or training."""
    scratch: int
    """Disk of each pod: kernels, logs, and the cache of a remote dataset."""
    volume: int
    grace: int
    """Seconds from SIGTERM to SIGKILL: longer than the longest save."""


def sizes(config: RunConfig, plan: Plan, ranks: int) -> Sizes:
    """Sizes of a planned run with `ranks` training workers a pod. Raises InputError."""
    if plan.world % ranks or ranks > _MOST_RANKS:
        raise InputError(
            f"--ranks {ranks}: must divide cluster.workers = {plan.world} and be at most "
            f"{_MOST_RANKS}"
        )
    pods, dimension = plan.world // ranks, config.embedder.dimension
    peak = max(step.memory["peak"] for step in plan.steps)
    old_model = max(
        step.memory["embedder"] + 4 * dimension * (step.old_identities + step.new_identities)
        for step in plan.steps
    )
    actors = config.cluster.actors or _THREADS * pods
    slots = min(actors, _THREADS)
    disk = sum(sum(step.disk.values()) * len(step.methods) for step in plan.steps) * plan.seeds
    saved = max(step.disk["checkpoints"] for step in plan.steps)
    cache = config.data.cache.bytes if is_remote(config.dataset) else 0
    return Sizes(
        trainers=pods,
        ranks=ranks,
        threads=config.cluster.threads or _THREADS,
        trainer_memory=ranks * (peak + _PROCESS) + _POD,
        actors=math.ceil(actors / slots),
        slots=slots,
        actor_memory=slots * (old_model + _PROCESS) + _POD,
        rank_memory=ranks * (max(peak, old_model) + _PROCESS) + _POD,
        scratch=_SCRATCH + cache,
        volume=int(_ROOM * (disk + (plan.shards or 0))) + 10 * _GI,
        grace=_GRACE + math.ceil(saved / _SAVED_PER_SECOND),
    )


def on_cluster(config: RunConfig, size: Sizes) -> dict[str, Any]:
    """The configuration as the pods read it, as plain values."""
    values = config.model_dump(mode="json")
    values["data"]["cache"]["folder"] = _CACHE
    values["cluster"] |= {
        "address": "auto",
        "worker_groups": True,
        "workers": size.trainers * size.ranks,
        "actors": size.actors * size.slots,
        "threads": size.threads,
        "metrics_port": _METRICS_PORT,
        "metrics_host": "0.0.0.0",  # a NetworkPolicy lets Prometheus in, and nobody else
    }
    return values


def read_manifests(folder: Path = MANIFESTS) -> Files:
    """Reads every YAML file of a folder of manifests."""
    return {
        str(path.relative_to(folder)): _plain(list(yaml_documents(path.read_bytes(), str(path))))
        for path in sorted(folder.rglob("*.yaml"))
    }


def write_manifests(files: Files, folder: Path) -> None:
    """Writes manifests to a folder for ``kubectl apply -k``."""
    for name, documents in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dump_yaml(*documents), encoding="utf-8")


def render(files: Files, config: RunConfig, size: Sizes, name: str, image: str) -> Files:
    """The manifests of the run called `name`. Raises InputError for a bad name or image."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"--name {name!r}: must be 1 to 40 of a-z, 0-9 and -, beginning with a letter and not "
            "ending with -"
        )
    if not _TAGGED.fullmatch(image):
        raise InputError(f"--image {image!r}: must name a tag (not latest) or a @sha256 digest")
    files = copy.deepcopy(files)
    for documents in files.values():
        for node in _mappings(documents):
            _fill_in(node, name, image)
    job, configuration = files["base/rayjob.yaml"][0], files["common/configuration.yaml"][0]
    job["metadata"]["name"] = configuration["metadata"]["name"] = name
    job["spec"]["entrypoint"] = f"perennial run {_CONFIG} --out {_RUNS}/{name}"
    written = dump_yaml(on_cluster(config, size))
    configuration["data"] = {"run.yaml": written}
    _size_job(job, size)
    volume = files["common/volume.yaml"][0]
    volume["spec"]["resources"]["requests"]["storage"] = f"{math.ceil(size.volume / _GI)}Gi"
    for budget in files["base/disruption.yaml"] + files["overlays/jobset/disruption.yaml"]:
        part = budget["metadata"]["name"].removeprefix(_PLACEHOLDER_NAME)
        budget["metadata"]["name"] = name + part
        if part != "-head":
            budget["spec"]["minAvailable"] = max(1, size.trainers - 1)
    _size_ranks(files["overlays/jobset/jobset.yaml"][0], config.cluster.gpu, size, name)
    _size_overlays(files, config.cluster.gpu, size, name)
    return files


def _fill_in(node: dict[str, Any], name: str, image: str) -> None:
    """Replaces the placeholders of name and image in one mapping of a manifest."""
    if node.get("image") == _PLACEHOLDER_IMAGE:
        node["image"] = image
    if _INSTANCE in node:
        node[_INSTANCE] = name
    if node.get("configMap") == {"name": _PLACEHOLDER_NAME}:
        node["configMap"] = {"name": name}
    if node.get("kind") == "RayJob" and node.get("name") == _PLACEHOLDER_NAME:  # a patch's target
        node["name"] = name


def _size_job(job: dict[str, Any], size: Sizes) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    trainers, actors = cluster["workerGroupSpecs"]
    for count in ("replicas", "minReplicas", "maxReplicas"):
        trainers[count] = size.trainers
    trainers["rayStartParams"] |= _offers("trainer", size.ranks)
    actors["maxReplicas"] = size.actors
    actors["rayStartParams"] |= _offers("actor", size.slots)
    pod = trainers["template"]["spec"]
    pod["terminationGracePeriodSeconds"] = size.grace
    head = cluster["headGroupSpec"]["template"]["spec"]
    head["terminationGracePeriodSeconds"] = size.grace
    for spec in (head, pod, actors["template"]["spec"]):
        _give_scratch(spec, size.scratch)
    container = pod["containers"][0]
    _ask(container, size.ranks * size.threads, size.trainer_memory)
    _ask(actors["template"]["spec"]["containers"][0], size.slots, size.actor_memory)
    for each in (container, head["containers"][0]):
        each["ports"] = _ports(each["ports"], size)


def _size_ranks(jobset: dict[str, Any], gpu: bool, size: Sizes, name: str) -> None:
    """Sizes the variant without Ray: as many pods as trainers, which also run the CPU phases."""
    jobset["metadata"]["name"] = name
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["completions"] = job["parallelism"] = size.trainers
    pod = job["template"]["spec"]
    pod["terminationGracePeriodSeconds"] = size.grace
    _give_scratch(pod, size.scratch)
    container = pod["containers"][0]
    _ask(container, size.ranks * size.threads, size.rank_memory)
    container["ports"] = _ports(container["ports"], size)
    container["command"] = [
        "torchrun",
        f"--nnodes={size.trainers}",
        f"--nproc-per-node={size.ranks}",
        "--node-rank=$(JOB_COMPLETION_INDEX)",
        f"--master-addr={name}-ranks-0-0.{name}",
        *container["command"][5:-1],
        f"--out={_RUNS}/{name}",
    ]
    if gpu:
        for kind in ("requests", "limits"):
            container["resources"][kind]["nvidia.com/gpu"] = str(size.ranks)
        pod["tolerations"] = [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        ]


def _ports(ports: list[dict[str, Any]], size: Sizes) -> list[dict[str, Any]]:
    """A container's metrics ports: those of its ranks, if it has any, and then the driver's."""
    driver = {"name": "driver", "containerPort": _METRICS_PORT + size.trainers * size.ranks}
    others = [driver if p["name"] == "driver" else p for p in ports if p["name"] != "trainer-0"]
    ranks = range(size.ranks if any(p["name"] == "trainer-0" for p in ports) else 0)
    return others + [
        {"name": f"trainer-{rank}", "containerPort": _METRICS_PORT + rank} for rank in ranks
    ]


def _offers(resource: str, number: int) -> dict[str, str]:
    """Ray's start parameters of a pod that offers `number` of a resource.

    Quoted once more than for YAML, as they pass through a shell.
    """
    return {"num-cpus": str(number), "resources": f"'{json.dumps({resource: number})}'"}


def _ask(container: dict[str, Any], cpus: int, memory: int) -> None:
    """Sets a container's requests and limits, to the same values."""
    for kind in ("requests", "limits"):
        container["resources"][kind] |= {
            "cpu": str(cpus),
            "memory": f"{math.ceil(memory / _MI)}Mi",
        }


def _give_scratch(spec: dict[str, Any], scratch: int) -> None:
    """Sets the size of a pod's room on the node's disk."""
    amount = f"{math.ceil(scratch / _GI)}Gi"
    for volume in spec["volumes"]:
        if volume["name"] == "scratch":
            volume["emptyDir"]["sizeLimit"] = amount
    for kind in ("requests", "limits"):
        spec["containers"][0]["resources"][kind]["ephemeral-storage"] = amount


def _size_overlays(files: Files, gpu: bool, size: Sizes, name: str) -> None:
    for patch in files["overlays/gpu/rayjob.yaml"][0]:
        if patch["path"].endswith("nvidia.com~1gpu"):
            patch["value"] = str(size.ranks)
    for patch in files["overlays/kueue/rayjob.yaml"][0]:
        if patch["path"].endswith("eplicas"):
            patch["value"] = size.actors
    if not gpu:
        files["overlays/kueue/kustomization.yaml"][0]["bases"] = ["../../base"]


def _mappings(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for value in inner:
        yield from _mappings(value)


def _plain(documents: list[Any]) -> list[Any]:
    """A copy of `documents` without nodes shared by aliases: changing one would change all."""
    plain: list[Any] = json.loads(json.dumps(documents))
    return plain
