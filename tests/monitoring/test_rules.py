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
from tests.monitoring.prometheus import every_rule, hastened

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


def test_every_alert_was_fired_by_a_real_fault_or_says_why_not():
    """Else: pytest tests/chaos/test_alerts.py --reliability."""
    (tried,) = re.findall("<!-- fired -->\n(.*)<!-- /fired -->", OPERATIONS.read_text(), re.S)
    assert re.findall(r"^\| (Perennial\w+) \|", tried, re.M) == NAMES


def seconds(rules):
    """Every duration and threshold in seconds, in order, by Prometheus' own notation."""
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
    found = []
    for rule in every_rule(rules):
        words = f"[{rule.get('for', '0s')}] {rule['expr']}"
        found += [int(n) * units[u] for n, u in re.findall(r"\[(\d+)([a-z]+)\]", words)]
        found += [float(n) for n in re.findall(r"_seconds > ([\d.]+)", words)]
    return found


@pytest.mark.parametrize("file", sorted(RULES.glob("*.yaml")), ids=lambda file: file.stem)
def test_hastened_rules_are_the_same_rules_in_less_time(file, tmp_path):
    rules = yaml.safe_load(file.read_text())
    hurried = hastened(rules, 90)
    assert len(seconds(rules)) > 10
    assert seconds(hurried) == pytest.approx([s / 90 for s in seconds(rules)], abs=1e-3)
    for ours, theirs in zip(every_rule(rules), every_rule(hurried), strict=True):
        masked = [re.sub(r"\d+m?[smhd]\]|_seconds > \S+", "", r["expr"]) for r in (ours, theirs)]
        assert masked[0].split() == masked[1].split()
    assert yaml.safe_load(file.read_text()) == rules
    (tmp_path / "hurried.yaml").write_text(yaml.safe_dump(hurried))
    if shutil.which("promtool"):
        promtool("check", "rules", tmp_path / "hurried.yaml")


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


def test_what_turns_red_is_what_an_alert_fires_at():
    of = {rule["alert"]: " ".join(rule["expr"].split()) for rule in alerts()}
    limited = [panel for board in DASHBOARDS for panel in board.panels]
    limited = [panel for panel in limited if (panel.at_most, panel.at_least) != (None, None)]
    assert len(limited) >= 5
    for panel in limited:
        limit = f"> {panel.at_most}" if panel.at_most is not None else f"< {panel.at_least}"
        assert of[panel.alert].endswith(limit), panel.title


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
