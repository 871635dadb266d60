"""What the Prometheus beside a run asks: this machine, whatever the run folder lists."""

import re
import shutil
import socket
import subprocess

import pytest
import yaml

from monitoring.prometheus import configuration


@pytest.mark.reliability(6, "our Prometheus asks no other machine that a run folder lists")
def test_only_this_machine_is_scraped(tmp_path):
    values = configuration([tmp_path], 5.0, [])
    keep, *fixed = values["scrape_configs"][0]["relabel_configs"]
    assert keep["action"] == "keep" and keep["source_labels"] == ["__address__"]
    mine = ["127.0.0.1:9", "localhost:9", "[::1]:9", f"{socket.gethostname()}:9"]
    theirs = ["10.0.0.1:9", "evil.example:80", "127.evil.example:80", "localhost:9@evil.example:1"]
    # Prometheus anchors its expressions at both ends
    assert all(re.fullmatch(keep["regex"], address) for address in mine)
    assert not any(re.fullmatch(keep["regex"], address) for address in theirs)
    assert {rule["target_label"] for rule in fixed} == {"__scheme__", "__metrics_path__"}
    if shutil.which("promtool"):
        (tmp_path / "p.yml").write_text(yaml.safe_dump(values))
        subprocess.run(["promtool", "check", "config", str(tmp_path / "p.yml")], check=True)
