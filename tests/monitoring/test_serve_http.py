"""The live page over HTTP: who is let in, what is given out, what is asked of others."""

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager
from importlib.resources import files

import pytest

from monitoring.exporter import serving
from monitoring.live import files as live_files
from monitoring.live.server import Page
from monitoring.run_metrics import RunMetrics
from tests.monitoring.live_runs import (
    add,
    ask,
    ask_json,
    driver,
    evaluate,
    record,
    served,
    wait_for,
    write_run,
)
from untrusted import files as untrusted_files

TOKEN = "a-token-of-the-user"


@pytest.fixture
def runs(tmp_path):
    """A folder with one run, and a secret beside it."""
    (tmp_path / "secret").write_text('{"phase": "secret/seed-0/step-0/train", "loss": 1}\n')
    root = tmp_path / "runs"
    folder = write_run(root, "one", steps=1)
    add(folder, "metrics.jsonl", record("fkd/seed-0/step-0/train", 10))
    (folder / "report.html").write_text("<title>report</title><script>alert(1)</script>")
    return root


@pytest.fixture
def port(runs):
    with served(Page(runs)) as port:
        yield port


def test_pages_forbid_what_they_do_not_need(port):
    for path in ("/", "/style.css", "/page.js", "/run.js", "/api/runs", "/api/runs/one", "/none"):
        _, headers, body = ask(port, path)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in headers
        assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https://" not in body
    assert ask(port, "/")[1]["Content-Type"] == "text/html; charset=utf-8"


def test_the_report_is_sandboxed(port):
    status, headers, body = ask(port, "/report/one")
    assert status == 200 and b"report" in body
    policy = headers["Content-Security-Policy"].split("; ")
    assert "sandbox allow-downloads" in policy and "default-src 'none'" in policy
    assert not any(part.startswith("script-src") for part in policy)


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"]
)
def test_other_methods_than_get_are_refused(port, method):
    for path in ("/", "/api/runs", "/report/one"):
        assert ask(port, path, method=method)[0] == 405
    assert ask(port, "/", method="HEAD")[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", ""])
def test_another_name_for_this_machine_is_refused(port, host):
    for path in ("/", "/api/runs", "/report/one", "/style.css"):
        assert ask(port, path, {"Host": host})[0] in (400, 421)
    assert ask(port, "/", {"Host": f"localhost:{port}"})[0] == 200


@pytest.mark.parametrize(
    "name",
    [
        "..", "%2e%2e", "..%2f..", "one%2f..%2f..", ".", "", "%00", "one/../../secret", "../secret",
        "%2e%2e%2fsecret", "one%5c..", "/etc/passwd", "%2fetc", "run.yaml", "ONE", "%ff", "link",
        "hidden", "linked",
    ],
)  # fmt: skip
def test_nothing_but_runs_of_the_folder_is_given_out(runs, port, name):
    outside = write_run(runs.parent, "outside")
    (outside / "report.html").write_text("outside")
    (runs / "link").symlink_to(outside)
    (runs / "hidden").mkdir()
    (runs / "hidden" / "report.html").write_text("hidden")
    (runs / "linked").symlink_to(runs / "one")
    for path in (
        f"/api/runs/{name}",
        f"/api/runs/{name}/curves?seed=0",
        f"/report/{name}",
        f"/{name}",
    ):
        status, _, body = ask(port, path)
        if (path, name) in (("/api/runs/", ""), ("/", ""), ("/.", "."), ("/..", "..")):
            continue  # that is /api/runs, or the page itself
        assert status in (400, 404), path
        assert b"secret" not in body and b"root:" not in body and b"outside" not in body
    assert [run["name"] for run in ask_json(port, "/api/runs")["runs"]] == ["one"]


def test_links_in_a_run_do_not_lead_out_of_the_folder(runs, port):
    folder, secret = runs / "one", runs.parent / "secret"
    for name in ("metrics.jsonl", "report.html", "run.yaml", "events.jsonl", "ledger.jsonl"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret)
    (folder / "targets").symlink_to(runs.parent)
    (runs.parent / "driver.json").write_text('[{"targets": ["127.0.0.1:1"]}]')
    found = ask_json(port, "/api/runs/one")
    assert found["state"] == "damaged" and found["loss"] is None and found["processes"] == []
    assert ask(port, "/report/one")[0] == 404
    assert "secret" not in json.dumps(ask_json(port, "/api/runs/one/curves?seed=0"))


@pytest.mark.parametrize("seed", ["", "-1", "x", "1e3", "9" * 20, "0&seed=x", "²"])
def test_a_seed_is_a_number(port, seed):
    assert ask(port, f"/api/runs/one/curves?seed={seed.replace('²', '%C2%B2')}")[0] in (200, 400)
    assert ask(port, "/api/runs/one/curves")[0] == 400


def test_one_damaged_run_leaves_the_others_listed(runs, port):
    for number, text in enumerate(["", "[", "{methods: 3}", "a: b: c"]):
        (runs / f"damaged-{number}").mkdir()
        (runs / f"damaged-{number}" / "run.yaml").write_text(text)
    (runs / "unreadable").mkdir()
    (runs / "unreadable" / "run.yaml").mkdir()
    (runs / "a file").write_text("x")
    (runs / os.fsdecode(b"not-utf8-\xff")).mkdir()
    (runs / os.fsdecode(b"not-utf8-\xff") / "run.yaml").write_text("[")
    states = wait_for(
        lambda: (
            (found := {r["name"]: r["state"] for r in ask_json(port, "/api/runs")["runs"]})
            and len(found) == 7
            and found
        )
    )
    assert states.pop("one") == "stopped"
    assert set(states.values()) == {"damaged"}
    assert "not-utf8-\N{REPLACEMENT CHARACTER}" in states


def test_a_token_is_asked_for_where_there_is_one(runs):
    with served(Page(runs, "0.0.0.0", TOKEN)) as port:
        for path in ("/", "/api/runs", "/style.css", "/report/one", "/none"):
            assert ask(port, path)[0] == 401
            assert ask(port, path, {"Authorization": "Bearer wrong"})[0] == 401
            assert ask(port, path, {"Cookie": "perennial-0=wrong"})[0] == 401
        assert ask(port, "/?token=wrong")[0] == 401
        assert ask(port, "/api/runs", {"Authorization": f"Bearer {TOKEN}"})[0] == 200
        assert (
            ask(port, "/api/runs", {"Host": "far.example", "Authorization": f"Bearer {TOKEN}"})[0]
            == 200
        )
        status, headers, _ = ask(port, f"//evil.example/?token={TOKEN}")
        assert (status, headers["Location"]) == (303, "/")
        cookie = headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert ask(port, "/api/runs", {"Cookie": cookie.partition(";")[0]})[0] == 200


def test_a_list_that_did_not_change_opens_no_file(runs, monkeypatch):
    for number in range(200):
        folder = write_run(runs, f"run-{number:03}")
        add(folder, "metrics.jsonl", record("fkd/seed-0/step-0/train", number))
        evaluate(folder, "fkd", 0, 0, top1=0.5)
    opened, real = [], untrusted_files.open_regular
    for module in (live_files, untrusted_files):
        monkeypatch.setattr(
            module, "open_regular", lambda *given: opened.append(given) or real(*given)
        )
    with served(Page(runs)) as port:
        assert len(ask_json(port, "/api/runs")["runs"]) == 201
        assert len(opened) > 400
        opened.clear()
        before = ask_json(port, "/api/runs")["now"]
        wait_for(lambda: ask_json(port, "/api/runs")["now"] > before)
        assert opened == []
        add(runs / "run-007", "metrics.jsonl", record("fkd/seed-0/step-0/train", 77, loss=7.0))
        wait_for(lambda: 7.0 in [run["loss"] for run in ask_json(port, "/api/runs")["runs"]])
        assert len(opened) == 1


def test_a_driver_that_is_killed_is_missed_and_one_that_ends_well_is_not(runs):
    folder = runs / "one"
    with served(Page(runs)) as port:
        with driver(folder) as process:
            found = ask_json(port, "/api/runs/one")
            assert found["state"] == "running"
            assert found["phase"] == "fkd/seed-0/step-0/train"
            lines = {line["job"]: line for line in found["processes"]}
            assert (lines["driver"]["missing"], lines["trainer"]["missing"]) == (False, False)
            assert lines["trainer"]["iteration_seconds"] == pytest.approx(0.25)
            assert lines["trainer"]["data_wait"] == pytest.approx(0.25)
            assert lines["trainer"]["loss"] == 7.5
            process.kill()
            process.wait()
            wait_for(lambda: ask_json(port, "/api/runs/one")["state"] == "lost")
            assert all(line["missing"] for line in ask_json(port, "/api/runs/one")["processes"])
        with driver(folder) as process:
            wait_for(lambda: ask_json(port, "/api/runs/one")["state"] == "running")
            process.stdin.close()
            wait_for(lambda: ask_json(port, "/api/runs/one")["state"] == "stopped")
            assert ask_json(port, "/api/runs/one")["processes"] == []


@contextmanager
def answering(body, status=200, headers=()):
    """A server on this machine that says `body` to everybody; gives its port and what it heard."""
    heard = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            heard.append(self.path)
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, heard
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def list_target(folder, address, job="driver"):
    (folder / "targets").mkdir(exist_ok=True)
    listed = [{"targets": [address], "labels": {"job": job, "run": folder.name}}]
    (folder / "targets" / "driver.json").write_text(json.dumps(listed))


@pytest.mark.parametrize(
    ("body", "status", "headers"),
    [
        (b"", 302, [("Location", "http://127.0.0.1:{other}/admin")]),
        (b"perennial_loss " + b"1" * 3_000_000, 200, []),
        (b"\xff\xfe", 200, []),
        (b"perennial_x{", 200, []),
        (b"", 500, []),
        (b"not gzip", 200, [("Content-Encoding", "gzip")]),
    ],
)
def test_an_endpoint_that_misbehaves_is_a_missing_one(runs, body, status, headers):
    with answering(b"") as (other, reached):
        headers = [(name, value.format(other=other)) for name, value in headers]
        with answering(body, status, headers) as (at, heard), served(Page(runs)) as port:
            list_target(runs / "one", f"127.0.0.1:{at}")
            found = ask_json(port, "/api/runs/one")
            assert heard == ["/metrics"]
            assert reached == []
            assert found["state"] in ("lost", "running")
            if b"not gzip" not in body:
                assert found["state"] == "lost" and found["processes"][0]["why"]


def test_hosts_elsewhere_are_not_asked_unless_named(runs, port):
    list_target(runs / "one", "192.0.2.1:9100")
    found = ask_json(port, "/api/runs/one")
    assert found["state"] == "unasked"
    assert found["processes"][0]["missing"] is None
    assert "--scrape" in found["processes"][0]["why"]


def test_alerts_come_from_the_prometheus_that_was_given(runs):
    labels = {"alertname": "PerennialLossSpike", "severity": "warning", "run": "one"}
    alert = {"labels": labels, "annotations": {"summary": "it jumped"}, "state": "firing"}
    body = json.dumps({"status": "success", "data": {"alerts": [alert]}}).encode()
    with answering(body) as (at, heard):
        page = Page(runs, prometheus=f"http://127.0.0.1:{at}/")
        with served(page) as port:
            alerts = ask_json(port, "/api/runs/one")["alerts"]
            assert (alerts["asked"], alerts["error"]) == (True, "")
            assert alerts["list"][0]["summary"] == "it jumped"
            assert heard == ["/api/v1/alerts"]
            assert ask_json(port, "/api/runs")["alerts"]["list"][0]["run"] == "one"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        page = Page(runs, prometheus=f"http://127.0.0.1:{closed.getsockname()[1]}")
        with served(page) as port:
            alerts = ask_json(port, "/api/runs")["alerts"]
            assert alerts["asked"] and alerts["error"] and not alerts["list"]
    with served(Page(runs)) as port:
        assert ask_json(port, "/api/runs")["alerts"]["asked"] is False


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus: apt-get install it")
def test_a_real_prometheus_is_understood(runs, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = free.getsockname()[1]
    given = ["--port", str(at), "--state", str(tmp_path / "state"), "--seconds", "1"]
    line = [sys.executable, "-m", "monitoring.prometheus", str(runs / "one"), *given]
    driver = serving(
        RunMetrics(runs / "one", 3, 1).registry,
        runs / "one" / "targets" / "driver.json",
        {"job": "driver"},
    )

    def scraped():
        query = f"http://127.0.0.1:{at}/api/v1/query?query=perennial_run_start_timestamp_seconds"
        try:
            with urllib.request.urlopen(query) as answer:
                return json.load(answer)["data"]["result"]
        except OSError:  # it is not there yet
            return []

    process = subprocess.Popen(line)
    try:
        with driver as bound:
            wait_for(scraped, 120)
        list_target(runs / "one", f"127.0.0.1:{bound}")
        with served(Page(runs, prometheus=f"http://127.0.0.1:{at}")) as port:
            alerts = wait_for(lambda: ask_json(port, "/api/runs/one")["alerts"]["list"], 120)
    finally:
        process.kill()
        process.wait()
    assert (alerts[0]["name"], alerts[0]["state"]) == ("PerennialDriverLost", "pending")
    assert alerts[0]["summary"] == "The driver of one ended before its run was finished."


def test_configuration_and_logs_are_told_and_lead_to_no_other_file(runs, port):
    secret = {"time": 1.0, "level": "info", "message": "secret"}
    logs = runs / "one" / "logs"
    logs.mkdir()
    (runs.parent / "other.jsonl").write_text(json.dumps(secret) + "\n")
    (logs / "link.jsonl").symlink_to(runs.parent / "other.jsonl")
    line = {"time": 2.0, "level": "warning", "message": "<b>\x1b[31m", "rank": 3}
    (logs / "trainer-3.jsonl").write_text("{torn\n[]\n" + json.dumps(line) + "\n")
    (logs / "driver.jsonl").write_text(json.dumps({**line, "time": 1.0, "message": "a"}) + "\n")
    found = ask_json(port, "/api/runs/one/logs")
    assert found["lines"][0]["message"] == "a"
    assert [one["process"] for one in found["lines"]] == ["driver", "trainer-3"]
    assert "\x1b" not in found["lines"][1]["message"]
    (own,) = ask_json(port, "/api/runs/one/logs?process=trainer-3")["lines"]
    assert own["level"] == "warning"
    for name in ("link", "../../../other", "..%2F..%2F..%2Fother", "*", ""):
        assert ask_json(port, f"/api/runs/one/logs?process={name}")["lines"] == []
    told = ask_json(port, "/api/runs/one/configuration")["text"]
    assert told == (runs / "one" / "run.yaml").read_text()


def test_the_scripts_set_text_and_never_markup():
    scripts = list((files("monitoring") / "page").iterdir())
    assert len(scripts) == 10
    for script in scripts:
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
            "Function(",
        ):
            assert word not in script.read_text(), script
