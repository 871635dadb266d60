"""Every alert fires on its fault and resolves, and the run book says what to do."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from monitoring.documents import RULES, alerts, metrics_page, with_alerts
from monitoring.grafana import text
from monitoring.kubernetes import files
from monitoring.panels import DASHBOARDS

ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "docs" / "operations.md"
CASES = Path(__file__).with_name("alerts.test.yaml")
NAMES = [rule["alert"] for rule in alerts()]

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool here: apt-get install prometheus"
)


def promtool(*arguments):
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_rules_are_well_formed():
    promtool("check", "rules", *sorted(RULES.glob("*.yaml")))


@needs_promtool
def test_every_alert_fires_on_its_fault_and_resolves():
    promtool("test", "rules", CASES)


@pytest.mark.parametrize("name", NAMES)
def test_every_alert_has_a_case_that_sees_it_quiet_firing_and_resolved(name):
    checks = [
        bool(check.get("exp_alerts"))
        for case in yaml.safe_load(CASES.read_text())["tests"]
        for check in case["alert_rule_test"]
        if check["alertname"] == name
    ]
    first = checks.index(True)
    assert False in checks[:first]
    assert False in checks[first:]


@pytest.mark.parametrize("rule", alerts(), ids=NAMES)
def test_every_alert_leads_to_its_entry_in_the_run_book(rule):
    name = rule["alert"]
    assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"
    (entry,) = re.findall(rf"^### {name}\n(.*?)(?=^##|\Z)", OPERATIONS.read_text(), re.M | re.S)
    for part in ("**Means:**", "**Look at:**", "**Do:**"):
        assert part in entry


def test_the_run_book_has_no_entry_of_an_alert_that_is_gone():
    assert re.findall(r"^### (Perennial\w+)$", OPERATIONS.read_text(), re.M) == NAMES


def test_the_written_pages_and_dashboards_are_up_to_date():
    """Else: python -m monitoring.documents."""
    assert OPERATIONS.read_text() == with_alerts(OPERATIONS.read_text())
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics_page()
    folder = ROOT / "monitoring" / "dashboards"
    assert {file.stem: file.read_text() for file in folder.iterdir()} == {
        dashboard.uid: text(dashboard) for dashboard in DASHBOARDS
    }
    overlay = ROOT / "k8s" / "overlays" / "monitoring"
    for name, written in files(RULES, DASHBOARDS).items():
        assert (overlay / name).read_text() == written


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_dashboards_say_what_they_show(dashboard):
    drawn = dashboard.json()
    assert drawn["schemaVersion"] >= 38
    places = set()
    for panel in drawn["panels"]:
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        (link,) = panel["links"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & places, "panels overlap"
        assert place["x"] + place["w"] <= 24
        places |= cells
        assert link["url"].removeprefix("${runbook}") in ("", *(f"#{n.lower()}" for n in NAMES))
