"""What being watched costs: the endpoints of 1,024 ranks, each scraped every 15 seconds.

One process serves them all, a real Prometheus scrapes them; every endpoint costs what it would cost
its rank, threads that wait included. A rank may spend 1 % of a core on it.
"""

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from prometheus_client import generate_latest

from benchmarks import report
from monitoring.exporter import serving
from monitoring.metrics import SKIP_REASONS, Metrics

_SECONDS = 15
_DOINGS = ("reading input", "asking the teacher", "forward", "backward", "updating", "saving")


def watched_rank() -> Metrics:
    """The metrics of a rank that has trained for a while."""
    metrics = Metrics()
    for doing in _DOINGS:
        metrics.count_doing(doing, 1.0)
    for reason in SKIP_REASONS:
        metrics.skipped.labels(reason).inc()
    for _ in range(1000):
        metrics.iteration_seconds.observe(0.3)
    return metrics


def scraped(port: int) -> tuple[float, int]:
    """Seconds of the last scrapes, together, and the series that Prometheus holds."""

    def ask(query: str) -> float:
        url = f"http://127.0.0.1:{port}/api/v1/query?query={query}"
        with urllib.request.urlopen(url) as answer:
            found = json.load(answer)["data"]["result"]
        return float(found[0]["value"][1]) if found else 0.0

    return ask("sum(up)"), int(ask("sum(scrape_samples_scraped)"))


def main() -> None:
    """Measures and prints. Needs Debian's package prometheus."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="256 ranks, two scrapes of each")
    quick = parser.parse_args().quick
    ranks, scrapes = (256, 2) if quick else (1024, 8)
    if shutil.which("prometheus") is None:
        sys.exit("there is no prometheus here: apt-get install prometheus")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name) / "run"
        for rank in range(ranks):
            labels = {"job": "trainer", "rank": str(rank)}
            file = folder / "targets" / f"trainer-{rank}.json"
            registry = watched_rank().registry
            stack.enter_context(serving(registry, file, labels))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        (Path(name) / "prometheus.yml").write_text(
            f"global: {{scrape_interval: {_SECONDS}s}}\n"
            "scrape_configs:\n"
            f"- {{job_name: ranks, file_sd_configs: [{{files: ['{folder}/targets/*.json']}}]}}\n",
            encoding="utf-8",
        )
        command = ["prometheus", f"--config.file={name}/prometheus.yml"]
        command += [f"--storage.tsdb.path={name}/data", f"--web.listen-address=127.0.0.1:{port}"]
        with (Path(name) / "log").open("w", encoding="utf-8") as log:
            prometheus = subprocess.Popen(command, stdout=log, stderr=log)
        stack.callback(prometheus.wait)
        stack.callback(prometheus.terminate)
        time.sleep(2 * _SECONDS)  # until every rank has been found and scraped once
        begun, spent = time.monotonic(), time.process_time()
        time.sleep(scrapes * _SECONDS)
        seconds, spent = time.monotonic() - begun, time.process_time() - spent
        up, series = scraped(port)
    share = spent / seconds / ranks
    size = len(generate_latest(watched_rank().registry))
    figures = {
        "ranks": ranks,
        "ranks up": up,
        "CPU share of a core, a rank": share,
        "series a rank": series / ranks,
        "series": series,
        "bytes a scrape": size,
    }
    rows = [{"figure": key, "value": value} for key, value in figures.items()]
    rows.append({"figure": "asked: a share below", "value": 0.01})
    report("exporter", rows, figures)


if __name__ == "__main__":
    main()
