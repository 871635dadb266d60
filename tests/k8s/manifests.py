"""Kustomize builds, and schemas that refuse what they do not know."""

import importlib.util
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

ROOT = Path(__file__).parents[2]
OVERLAYS = ("dev", "gpu", "kueue", "jobset", "monitoring")
KUBERNETES = ("1.30.0", "1.37.0")
"""The oldest and the newest whose schemas the manifests are held to."""
_OWN = Path(__file__).parent / "schemas"
_OLD = ROOT / ".tools" / "usr" / "bin" / "kubectl"
_REFERENCE = "/api/_definitions.json"


def kubectls() -> list[str]:
    """Every kubectl of this machine: the one in the path, and `make kubectl`'s from Debian."""
    found = [shutil.which("kubectl"), shutil.which(_OLD)]
    return list(dict.fromkeys(path for path in found if path))


def build(folder: Path, kubectl: str | None = None) -> list[dict[str, Any]]:
    """The documents of a kustomization."""
    if not kubectls():
        pytest.skip("no kubectl: `make kubectl` fetches Debian's")
    command = [kubectl or kubectls()[0], "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@cache
def validator(kind: str, api: str, version: str) -> Draft202012Validator:
    """Of one kind of object, in one Kubernetes version."""
    spec = importlib.util.find_spec("kubernetes_validate")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("kubernetes-validate, which carries the schemas, is missing: `make setup`")
    data = Path(spec.submodule_search_locations[0]) / "kubernetes-json-schema"
    folder = data / f"v{version}-local-strict"
    definitions = json.loads((folder / "_definitions.json").read_text())
    own = _OWN / f"{api.replace('/', '-')}-{kind}.yaml"
    if own.exists():
        schema = {"$id": f"/own/{kind}", **yaml.safe_load(own.read_text())}
    else:
        group, _, number = api.rpartition("/")
        name = "-".join(filter(None, [kind.lower(), group.split(".")[0], number]))
        schema = json.loads((folder / f"{name}.json").read_text())
    registry = Registry().with_resources(
        [(_REFERENCE, Resource.from_contents(definitions)), *_named(schema)]
    )
    return Draft202012Validator(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, registry=registry
    )


def _named(schema: dict[str, Any]) -> list[tuple[str, Any]]:
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return (
        [(schema["$id"], Resource.from_contents({**dialect, **schema}))] if "$id" in schema else []
    )


def problems(document: dict[str, Any], version: str) -> list[str]:
    """What the schema of a document's kind holds against it."""
    errors = validator(document["kind"], document["apiVersion"], version).iter_errors(document)
    return [f"{document['kind']} {e.json_path}: {e.message[:300]}" for e in errors]


def pods(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The pod templates of a RayJob or JobSet, by what they are."""
    spec = document["spec"]
    if document["kind"] == "JobSet":
        return {job["name"]: job["template"]["spec"]["template"] for job in spec["replicatedJobs"]}
    cluster = spec["rayClusterSpec"]
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    head = cluster["headGroupSpec"]["template"]
    return {"submitter": spec["submitterPodTemplate"], "head": head, **groups}
