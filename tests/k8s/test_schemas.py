"""Every overlay builds, with an old and a new kustomize, and holds only fields that exist."""

import copy

import pytest

from tests.k8s.manifests import KUBERNETES, OVERLAYS, ROOT, build, kubectls, problems


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_has_only_fields_that_exist(overlay, version):
    documents = build(ROOT / "k8s" / "overlays" / overlay)
    assert [line for one in documents for line in problems(one, version)] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_old_and_new_kustomize_build_the_same(overlay):
    if len(kubectls()) < 2:
        pytest.skip("one kubectl only: `make kubectl` fetches Debian's, with kustomize 2.0")
    first, second = (build(ROOT / "k8s" / "overlays" / overlay, k) for k in kubectls())

    def key(one):
        return one["kind"], one["metadata"]["name"]

    assert sorted(first, key=key) == sorted(second, key=key)


def _renamed(node, path):
    """Every way to misspell one key of a document: (path, the document with it)."""
    if isinstance(node, dict):
        for key, value in node.items():
            changed = {(k if k != key else key + "x"): v for k, v in node.items()}
            yield [*path, key], changed
            for where, inner in _renamed(value, [*path, key]):
                yield where, {**node, key: inner}
    elif isinstance(node, list):
        for place, value in enumerate(node):
            for where, inner in _renamed(value, [*path, place]):
                yield where, [*node[:place], inner, *node[place + 1 :]]


FREE = {"labels", "matchLabels", "annotations", "rayStartParams", "requests", "limits", "data"}
"""Mappings whose keys are the user's."""


@pytest.mark.parametrize("overlay", ["gpu", "jobset", "monitoring"])
def test_a_misspelt_field_is_refused_wherever_it_is(overlay):
    tried = 0
    for document in build(ROOT / "k8s" / "overlays" / overlay):
        for path, changed in _renamed(copy.deepcopy(document), []):
            if (len(path) > 1 and path[-2] in FREE) or path[0] in ("kind", "apiVersion"):
                continue
            tried += 1
            assert problems(changed, KUBERNETES[-1]), f"{document['kind']}: {path} may be misspelt"
    assert tried > 10


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "backoffLimit"], "3"),
        (["spec", "submissionMode"], "K8sjobMode"),
        (["spec", "shutdownAfterJobFinishes"], False),
        (["spec", "entrypoint"], "cd /runs && perennial run x"),
        (["spec", "rayClusterSpec", "authOptions", "mode"], "tokens"),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0, "rayStartParams", "num-cpus"], 1),
        (
            ["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "restartPolicy"],
            "Always",
        ),
        (["metadata", "name"], "x" * 48),
    ],
)
def test_a_rayjob_that_the_operator_would_refuse_is_refused(path, value):
    job = next(d for d in build(ROOT / "k8s" / "overlays" / "gpu") if d["kind"] == "RayJob")
    at = job
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert problems(job, KUBERNETES[-1])
