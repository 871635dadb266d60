"""Writes what is drawn from the metrics and rules: ``python -m monitoring.documents``.

docs/metrics.md, the table of alerts in docs/operations.md, the dashboards, and rules and dashboards
as objects of Kubernetes.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from monitoring import grafana, kubernetes
from monitoring.metrics import Metrics
from monitoring.panels import DASHBOARDS
from monitoring.run_metrics import RunMetrics
from untrusted.yaml_text import read_yaml

ROOT = Path(__file__).parents[1]
RULES = Path(__file__).parent / "rules"
_HEAD = """# Metrics

Written by `python -m monitoring.documents` from the registries; a test holds it up to date. Base
units, counters end in `_total`, times are timestamps and not ages. Prometheus adds the labels of
the target: `run` (the run folder's name), `job` (`driver`, `trainer` or `actor`), `rank` or
`actor`. Each process also serves `process_cpu_seconds_total` and `process_resident_memory_bytes`.
"""


def rows(registry: CollectorRegistry, served: str) -> Iterator[tuple[str, ...]]:
    """Name, type, labels, who serves it and its meaning, for each metric of a registry."""
    for collector in dict.fromkeys(registry._collector_to_names):
        assert isinstance(collector, MetricWrapperBase)
        (family,) = collector.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in collector._labelnames)
        yield f"`{name}`", family.type, labels, served, family.documentation


def series(registry: CollectorRegistry) -> int:
    """Time series that a fresh registry serves."""
    return sum(len(family.samples) for family in registry.collect())


def metrics_page() -> str:
    """docs/metrics.md."""
    process, run = Metrics().registry, RunMetrics(ROOT, 1, 0).registry
    head = ("metric", "type", "labels", "served by", "meaning")
    driver, others = rows(run, "driver"), rows(process, "trainers, actors")
    count = (
        f"A trainer or actor serves {series(process)} series, and one more for each thing that a\n"
        "rank does (about ten) and each term of its loss. The driver serves one a measure,\n"
        "method, seed and learning step besides its own.\n"
    )
    return "\n".join([_HEAD, table(head, [*driver]), table(head, [*others]), count])


def alerts() -> list[dict[str, Any]]:
    """Every alert of the rule files."""
    groups = read_yaml(RULES / "alerts.yaml")["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alert_table() -> str:
    """A table of the alerts, with links to the run book below it."""
    found = [
        (
            f"[{rule['alert']}](#{rule['alert'].lower()})",
            rule["labels"]["severity"],
            f"`{' '.join(rule['expr'].split())}`".replace("|", "\\|"),
            rule.get("for", "–"),
        )
        for rule in alerts()
    ]
    return table(("alert", "severity", "fires where", "for"), found)


def with_alerts(page: str) -> str:
    """docs/operations.md with its table of alerts written anew."""
    return with_part(page, "alerts", alert_table())


def with_part(page: str, mark: str, text: str) -> str:
    """A page with the part between the comments `mark` and /`mark` written anew."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    return re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{text}{end}", page, flags=re.DOTALL)


def table(head: tuple[str, ...], body: Sequence[tuple[str, ...]]) -> str:
    """A table of Markdown."""
    lines = [head, tuple("---" for _ in head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Writes all of them."""
    (ROOT / "docs" / "metrics.md").write_text(metrics_page(), encoding="utf-8")
    operations = ROOT / "docs" / "operations.md"
    operations.write_text(with_alerts(operations.read_text(encoding="utf-8")), encoding="utf-8")
    grafana.write(DASHBOARDS, Path(__file__).parent / "dashboards")
    for name, text in kubernetes.files(RULES, DASHBOARDS).items():
        (ROOT / "k8s" / "overlays" / "monitoring" / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
