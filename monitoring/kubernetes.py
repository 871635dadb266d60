"""Rules and dashboards as objects of Kubernetes: for Prometheus' operator and Grafana's sidecar."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monitoring.grafana import Dashboard
from monitoring.grafana import text as dashboard_text
from untrusted.yaml_text import dump_yaml, read_yaml

_HEAD = "# Written by `python -m monitoring.documents`; a test holds it up to date.\n"
_LABELS = {"app.kubernetes.io/part-of": "perennial"}


def files(rules: Path, dashboards: Sequence[Dashboard]) -> dict[str, str]:
    """The files of the monitoring overlay drawn from a folder of rules and `dashboards`."""
    return {
        "rules.yaml": _text([rule_object(rules)]),
        "dashboards.yaml": _text([dashboard_object(dashboard) for dashboard in dashboards]),
    }


def rule_object(rules: Path) -> dict[str, Any]:
    """A PrometheusRule with every group of the rule files in a folder."""
    groups = [group for file in sorted(rules.glob("*.yaml")) for group in read_yaml(file)["groups"]]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "perennial", "labels": _LABELS},
        "spec": {"groups": groups},
    }


def dashboard_object(dashboard: Dashboard) -> dict[str, Any]:
    """A ConfigMap that Grafana's sidecar takes for a dashboard."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": dashboard.uid, "labels": {**_LABELS, "grafana_dashboard": "1"}},
        "data": {f"{dashboard.uid}.json": dashboard_text(dashboard)},
    }


def _text(objects: list[dict[str, Any]]) -> str:
    return _HEAD + dump_yaml(*objects)
