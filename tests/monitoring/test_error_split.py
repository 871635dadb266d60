"""Confusion and forgetting in tables and the report: means over seeds, paired differences."""

import json
import xml.etree.ElementTree as ET

import pytest

from monitoring.error_split import (
    PARTS,
    difference_table,
    error_split,
    split_charts,
    split_tables,
    told_differences,
)
from tests.monitoring.whole_run import ANALYSES


def chain(method, seed, *steps):
    names = ("images", "wrong", "confusion", "forgetting", "other")
    made = [{"step": n, **dict(zip(names, own, strict=True))} for n, own in enumerate(steps)]
    return {"method": method, "seed": seed, "steps": made}


CHAINS = [
    chain("host", 0, (100, 10, 6, 0, 4), (200, 50, 20, 25, 5)),
    chain("host", 1, (100, 12, 6, 0, 6), (200, 60, 20, 30, 10)),
    chain("plug", 0, (100, 10, 6, 0, 4), (200, 40, 14, 22, 4)),
    chain("plug", 1, (100, 12, 6, 0, 6), (200, 46, 16, 24, 6)),
]


def test_tables_have_means_and_deviations_over_seeds():
    tables = {str(t.title): [list(c.cells) for c in t.columns] for t in split_tables(CHAINS)}
    assert len(tables) == len(PARTS)
    (forgotten,) = (own for title, own in tables.items() if title.startswith("forgetting"))
    assert [list(map(str, column)) for column in forgotten] == [
        ["host", "plug"],
        ["0 ± 0", "0 ± 0"],
        ["28 ± 4", "23 ± 1"],
    ]


def test_a_difference_is_the_sum_of_its_parts():
    told = {(d["part"], d["step"]): d for d in told_differences(CHAINS, "plug", "host")}
    assert {key: one["mean"] for key, one in told.items() if key[1] == 1} == {
        ("wrong", 1): -12,
        ("confusion", 1): -5,
        ("forgetting", 1): -4.5,
        ("other", 1): -2.5,
    }
    assert told["confusion", 1]["low"] == pytest.approx(-5 - 12.7062)
    assert told["wrong", 0]["mean"] == told["wrong", 0]["low"] == 0, "step 0 is the same"
    (parts, _, last) = (list(c.cells) for c in difference_table(CHAINS, "plug", "host").columns)
    assert parts == list(PARTS) and last[1] == "-5.0 [-17.7, +7.7]"
    one = told_differences(CHAINS[::2], "plug", "host")
    assert "low" not in one[0] and one[0]["seeds"] == 1


def test_charts_are_shares_of_the_test_images():
    charts = split_charts(CHAINS, ["plug", "host", "absent"], {"plug": 0, "host": 1, "absent": 2})
    assert [title for title, _ in charts] == list(PARTS.values())[1:]
    told = [t.text for t in ET.fromstring(charts[0][1]).iter("title")]
    assert "host, 1: 10.00" in told and "plug, 1: 7.50 ± 6.35" in told


def test_a_damaged_file_is_left_out_and_said(tmp_path):
    assert error_split(tmp_path) is None
    file = tmp_path / "analyses/confusion.json"
    file.parent.mkdir()
    for damaged in ("[]", json.dumps(ANALYSES["confusion.json"]).replace(": 3", ": -3")):
        file.write_text(damaged)
        damage = {}
        assert error_split(tmp_path, damage) is None
        assert list(damage) == ["analyses/confusion.json"]
