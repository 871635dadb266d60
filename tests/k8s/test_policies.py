"""What a cluster's operator asks of pods, of every overlay and of a rendered run."""

import json

import pytest
import yaml

from launch.clusters.kubernetes import read_manifests, render, sizes, write_manifests
from launch.config.cluster import ClusterSettings
from launch.config.load import load_config
from launch.planning.plan import plan_run
from launch.planning.split import split_of
from tests.k8s.manifests import KUBERNETES, OVERLAYS, ROOT, build, pods, problems

IMAGE = "images.example.com/perennial:0.1.0"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The face configuration on 16 GPUs of 8-GPU nodes: its folder, and its sizes."""
    folder = tmp_path_factory.mktemp("rendered")
    config = load_config(ROOT / "configs" / "demo.yaml", ["cluster.workers=16", "cluster.gpu=true"])
    size = sizes(config, plan_run(config, split_of(config, 1500, 13000), None), 8)
    write_manifests(render(read_manifests(), config, size, "faces", IMAGE), folder)
    return folder, size


@pytest.fixture(params=[f"{how}{o}" for how in ("", "rendered ") for o in OVERLAYS[:-1]])
def objects(request, rendered):
    """All objects of an overlay."""
    root = rendered[0] if " " in request.param else ROOT / "k8s"
    return build(root / "overlays" / request.param.split()[-1])


@pytest.fixture
def job(objects):
    return next(one for one in objects if one["kind"] in ("RayJob", "JobSet"))


def containers(job):
    for part, pod in pods(job).items():
        for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]:
            yield part, container


def test_a_rendered_run_has_only_fields_that_exist(objects):
    assert [line for one in objects for line in problems(one, KUBERNETES[-1])] == []


def test_pods_are_nobody_in_particular_and_can_write_nowhere_but_in_volumes(job):
    for part, pod in pods(job).items():
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] >= 10000, part
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, part
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod["spec"].keys(), part
        assert not any("hostPath" in volume for volume in pod["spec"]["volumes"]), part
    autoscaler = job["spec"].get("rayClusterSpec", {}).get("autoscalerOptions")
    held = [*(c for _, c in containers(job)), *([autoscaler] if autoscaler else [])]
    for one in held:
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_every_container_asks_for_what_it_may_use(job):
    for part, container in containers(job):
        asked = container["resources"]
        assert asked["requests"] == asked["limits"], part  # trainers: the guaranteed class
        assert {"cpu", "memory", "ephemeral-storage"} <= asked["limits"].keys(), part


def test_volumes_in_memory_are_bounded_below_the_memory_of_their_pod(job):
    gibibytes = {"Mi": 2**-10, "Gi": 1}
    for part, pod in pods(job).items():
        memory = pod["spec"]["containers"][0]["resources"]["limits"]["memory"]
        limit = float(memory[:-2]) * gibibytes[memory[-2:]]
        shm = [v["emptyDir"] for v in pod["spec"]["volumes"] if v["name"] == "shm"]
        assert all(float(v["sizeLimit"].removesuffix("Gi")) < limit for v in shm), part
        assert all(
            "sizeLimit" in v.get("emptyDir", {"sizeLimit": 1}) for v in pod["spec"]["volumes"]
        )
        stored = {c["name"]: c["volumeMounts"] for c in pod["spec"]["containers"]}
        for mounts in stored.values():
            names = {volume["name"] for volume in pod["spec"]["volumes"]}
            assert {mount["name"] for mount in mounts} <= names, part


def test_images_have_a_version(job):
    for part, container in containers(job):
        _, colon, tag = container["image"].rpartition(":")
        assert colon and tag != "latest", part


def test_lasting_containers_are_probed_and_their_ports_named(job):
    for part, container in containers(job):
        if part == "submitter":
            continue  # ends with the run, and nobody connects to it
        assert container["livenessProbe"] and container["readinessProbe"], part
        names = [port["name"] for port in container["ports"]]
        assert len(set(names)) == len(names) and all(0 < len(name) <= 15 for name in names), part


def test_trainers_have_time_to_save_and_a_machine_of_their_own(rendered):
    folder, size = rendered
    documents = build(folder / "overlays" / "gpu")
    job = next(one for one in documents if one["kind"] == "RayJob")
    spec = pods(job)["trainers"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == size.grace > 60
    (rule,) = spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert rule["topologyKey"] == "kubernetes.io/hostname"
    labels = pods(job)["trainers"]["metadata"]["labels"]
    assert rule["labelSelector"]["matchLabels"].items() <= labels.items()


def test_the_sizes_are_the_plans(rendered):
    folder, size = rendered
    documents = build(folder / "overlays" / "gpu")
    job = next(one for one in documents if one["kind"] == "RayJob")
    trainers, actors = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = pods(job)["trainers"]["spec"]["containers"][0]["resources"]["limits"]
    assert (trainers["replicas"], limits["nvidia.com/gpu"]) == (2, "8")
    assert int(limits["memory"].removesuffix("Mi")) * 2**20 >= size.trainer_memory
    assert json.loads(trainers["rayStartParams"]["resources"].strip("'")) == {"trainer": 8}
    assert actors["minReplicas"] == 0 < actors["maxReplicas"] == size.actors
    claim = next(one for one in documents if one["kind"] == "PersistentVolumeClaim")
    assert int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi")) * 2**30 >= (
        size.volume
    )


def test_torchrun_is_told_of_all_pods_and_waits_for_saves(rendered):
    folder, size = rendered
    documents = build(folder / "overlays" / "jobset")
    job = next(one for one in documents if one["kind"] == "JobSet")
    inner = job["spec"]["replicatedJobs"][0]
    assert inner["template"]["spec"]["completions"] == 2
    pod = pods(job)["ranks"]["spec"]
    (container,) = pod["containers"]
    command = dict(word.split("=") for word in container["command"] if "=" in word)
    assert (command["--nnodes"], command["--nproc-per-node"]) == ("2", "8")
    # JobSet's name of the first pod: NAME-JOB-0-0 in the service NAME
    name = job["metadata"]["name"]
    assert command["--master-addr"] == f"{name}-{inner['name']}-0-0.{name}"
    assert command["--out"] == f"/perennial/runs/{name}" == "/perennial/runs/faces"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert pod["terminationGracePeriodSeconds"] == size.grace
    assert "terminate" in container["lifecycle"]["preStop"]["exec"]["command"][-1]


def test_a_larger_run_asks_for_more(rendered):
    """More rows, more memory; more checkpoints, more time to save them and room to keep them."""
    config = load_config(ROOT / "configs" / "demo.yaml", ["cluster.workers=2"])
    small = sizes(config, plan_run(config, split_of(config, 1500, 13000), None), 1)
    config = load_config(
        ROOT / "configs" / "demo.yaml",
        ["cluster.workers=2", "embedder.architecture=resnet50", "embedder.dimension=512"],
    )
    large = sizes(config, plan_run(config, split_of(config, 1500, 13000), None), 1)
    for field in ("trainer_memory", "actor_memory", "volume", "grace"):
        assert getattr(large, field) > getattr(small, field), field


def test_budgets_and_network_policies_select_the_runs_pods(objects, job):
    labels = {part: pod["metadata"]["labels"] for part, pod in pods(job).items()}
    for one in objects:
        if one["kind"] == "PodDisruptionBudget":
            wanted = one["spec"]["selector"]["matchLabels"]
        elif one["kind"] == "NetworkPolicy":
            wanted = one["spec"]["podSelector"].get("matchLabels", {})
        else:
            continue
        assert any(wanted.items() <= own.items() for own in labels.values()), one["metadata"]
    denied = next(o for o in objects if o["metadata"]["name"] == "perennial-deny")
    assert denied["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_only_the_autoscaler_holds_a_token_of_the_api_server(job):
    for part, pod in pods(job).items():
        assert pod["spec"]["automountServiceAccountToken"] is False, part
        for container in pod["spec"]["containers"]:
            assert "api-token" not in {mount["name"] for mount in container["volumeMounts"]}, part


def test_the_metrics_ports_are_let_through(objects, job):
    policy = next(o for o in objects if o["metadata"]["name"] == "perennial-prometheus")
    low, high, named = policy["spec"]["ingress"][0]["ports"]
    ports = {p["name"]: p["containerPort"] for _, c in containers(job) for p in c.get("ports", [])}
    opened = {low["port"], *range(high["port"], high["endPort"] + 1), ports[named["port"]]}
    served = {
        port for name, port in ports.items() if name.startswith(("metrics", "trainer", "driver"))
    }
    assert served <= opened
    written = next(o for o in objects if o["kind"] == "ConfigMap")["data"]["run.yaml"]
    cluster = ClusterSettings.model_validate(yaml.safe_load(written)["cluster"])
    assert cluster.metrics_endpoint(0) == {"port": ports["trainer-0"], "host": "0.0.0.0"}
    assert cluster.driver_endpoint() == {"port": ports["driver"], "host": "0.0.0.0"}


def test_every_port_with_metrics_is_scraped_under_the_labels_that_rules_go_by(job):
    (monitor,) = (
        one
        for one in build(ROOT / "k8s" / "overlays" / "monitoring")
        if one["kind"] == "PodMonitor"
    )
    scraped = {
        each["port"]: {rule["targetLabel"]: rule["replacement"] for rule in each["relabelings"][1:]}
        for each in monitor["spec"]["podMetricsEndpoints"]
    }
    for _, container in containers(job):
        for name in (port["name"] for port in container.get("ports", [])):
            if name.startswith("trainer-"):
                number = name.removeprefix("trainer-")
                assert scraped[name] == {"job": "trainer", "rank": f"$1/{number}"}
            elif name == "driver":
                assert scraped[name] == {"job": "driver"}
    for each in monitor["spec"]["podMetricsEndpoints"]:
        assert each["relabelings"][0] == {
            "sourceLabels": ["__meta_kubernetes_pod_label_app_kubernetes_io_instance"],
            "targetLabel": "run",
        }


def test_a_remote_dataset_has_its_cache_on_scratch():
    """The default cache is in this machine's home, and larger than what pods otherwise get."""
    overrides = ["dataset=s3://glyphs/all", "glyphs=null", "data.image_size=[32,32]"]
    config = load_config(ROOT / "configs" / "demo.yaml", overrides)
    size = sizes(config, plan_run(config, split_of(config, 1500, 13000), None), 1)
    files = render(read_manifests(), config, size, "far", IMAGE)
    written = yaml.safe_load(files["common/configuration.yaml"][0]["data"]["run.yaml"])
    cache = written["data"]["cache"]
    for pod in list(pods(files["base/rayjob.yaml"][0]).values())[1:]:
        (scratch,) = (volume for volume in pod["spec"]["volumes"] if volume["name"] == "scratch")
        room = scratch["emptyDir"]["sizeLimit"]
        (mount,) = (
            one for one in pod["spec"]["containers"][0]["volumeMounts"] if one["name"] == "scratch"
        )
        assert cache["folder"].startswith(mount["mountPath"] + "/")
        assert int(room.removesuffix("Gi")) * 2**30 > cache["bytes"]
        assert pod["spec"]["containers"][0]["resources"]["limits"]["ephemeral-storage"] == room


def test_the_configuration_in_a_rendered_run_is_read_as_it_was(rendered, tmp_path):
    documents = build(rendered[0] / "overlays" / "gpu")
    written = next(one for one in documents if one["kind"] == "ConfigMap")["data"]["run.yaml"]
    (tmp_path / "run.yaml").write_text(written)
    config = load_config(ROOT / "configs" / "demo.yaml", ["cluster.workers=16"])
    read = load_config(tmp_path / "run.yaml")
    assert read.deciding() == config.deciding()
    assert (read.cluster.address, read.cluster.workers, read.cluster.gpu) == ("auto", 16, True)
