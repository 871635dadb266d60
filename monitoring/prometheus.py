"""A Prometheus on this machine for runs on this machine, with the rules beside this file.

    python -m monitoring.prometheus runs/demo

It listens on localhost only, and needs `prometheus` (Debian: ``apt-get install prometheus``).
"""

import argparse
import os
import re
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monitoring.run_folder import target_file
from untrusted.yaml_text import dump_yaml

RULES = Path(__file__).parent / "rules"
_PORT = 9090


def configuration(runs: Sequence[Path], seconds: float, rules: Sequence[Path]) -> dict[str, Any]:
    """Prometheus' configuration: every process of `runs` on this machine scraped every `seconds`.

    A run folder may be a stranger's: what it lists elsewhere, or under another path, is not asked.
    """
    here = ["localhost", r"127\.[0-9.]+", r"\[::1\]", re.escape(socket.gethostname())]
    relabel = [
        {"source_labels": ["__address__"], "regex": f"({'|'.join(here)}):[0-9]+", "action": "keep"},
        {"target_label": "__scheme__", "replacement": "http"},
        {"target_label": "__metrics_path__", "replacement": "/metrics"},
    ]
    files = [str(target_file(run.resolve(), "*")) for run in runs]
    targets = {"file_sd_configs": [{"files": files}], "relabel_configs": relabel}
    every = f"{round(1000 * seconds)}ms"
    return {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": [str(file) for file in rules],
        # each target names its own job: driver, trainer or actor
        "scrape_configs": [{"job_name": "perennial", **targets}],
    }


def command(config: Path, storage: Path, port: int) -> list[str]:
    """The command line. Raises FileNotFoundError where Prometheus is not installed."""
    program = shutil.which("prometheus")
    if program is None:
        raise FileNotFoundError("no prometheus on this machine: apt-get install prometheus")
    return [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={storage}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]


def main() -> None:
    """Becomes Prometheus."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, such as runs/demo")
    parser.add_argument("--port", type=int, default=_PORT)
    parser.add_argument("--seconds", type=float, default=5.0, help="between scrapes")
    parser.add_argument("--state", type=Path, default=Path("runs/.prometheus"))
    given = parser.parse_args()
    given.state.mkdir(parents=True, exist_ok=True)
    config = given.state / "prometheus.yml"
    rules = sorted(RULES.resolve().glob("*.yaml"))
    config.write_text(dump_yaml(configuration(given.runs, given.seconds, rules)), encoding="utf-8")
    try:
        line = command(config, given.state / "data", given.port)
    except FileNotFoundError as error:
        sys.exit(str(error))
    print(f"Prometheus: http://127.0.0.1:{given.port}/alerts", flush=True)
    os.execv(line[0], line)


if __name__ == "__main__":
    main()
