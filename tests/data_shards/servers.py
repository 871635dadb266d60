"""A web server of files, and a bucket's, that misbehave as told."""

import contextlib
import http.client
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FileServer(ThreadingHTTPServer):
    """Serves `folder` on localhost. `faults[name]` are what goes wrong with the next requests.

    `seconds` are what each file takes besides.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[str] = []
        self.sent: dict[str, int] = defaultdict(int)
        self.seconds = 0.0


class Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_HEAD(self) -> None:
        path = self.server.folder / self.path.strip("/")
        self.send_response(200 if path.is_file() else 404)
        self.send_header("Content-Length", str(path.stat().st_size if path.is_file() else 0))
        self.end_headers()

    def do_GET(self) -> None:
        name = self.path.strip("/")
        self.server.requests.append(name)
        path, faults = self.server.folder / name, self.server.faults[name]
        fault = faults.pop(0) if faults else None
        if not path.is_file() or fault == "error":
            self.send_error(503 if fault else 404)
            return
        time.sleep(self.server.seconds)
        if fault == "endless":
            self._send_without_end(name)
            return
        content = path.read_bytes()
        half = len(content) // 2
        if fault == "truncate":
            content = content[:half]
        if fault == "corrupt":
            content = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault in ("drop", "hang"):
            self.wfile.write(content[:half])
            self.wfile.flush()
            if fault == "hang":
                threading.Event().wait()
            self.connection.close()
            return
        self.wfile.write(content)

    def _send_without_end(self, name: str) -> None:
        self.send_response(200)
        self.end_headers()
        block = bytes(1 << 20)
        with contextlib.suppress(ConnectionError):
            while self.server.sent[name] < 1 << 34:
                self.server.sent[name] += self.connection.send(block)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[FileServer]:
    """A server of `folder` while the context lasts."""
    with FileServer(folder) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


class Bucket(ThreadingHTTPServer):
    """Passes requests on to an S3-compatible server.

    `faults[name]` are what goes wrong with the next uploads of an object whose key ends in `name`;
    `hung` is set when one of them is held up for ever.
    """

    daemon_threads = True

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), BucketHandler)
        self.target = target
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.uploads: list[str] = []
        self.hung = threading.Event()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server_port}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


class BucketHandler(BaseHTTPRequestHandler):
    server: Bucket
    protocol_version = "HTTP/1.1"  # clients of S3 wait for "100 Continue"

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {
            key: value
            for key, value in self.headers.items()
            if key != "Expect" and "checksum" not in key.lower()  # not every store has them
        }
        if self.command == "PUT":
            name = self.path.split("?")[0].rsplit("/", 1)[-1]
            self.server.uploads.append(name)
            faults = self.server.faults[name]
            fault, half = faults.pop(0) if faults else None, len(body) // 2
            if fault in ("error", "denied"):
                self.send_error(503 if fault == "error" else 403)
                return
            if fault == "drop":
                self.close_connection = True
                return
            if fault == "hang":
                self.server.hung.set()
                threading.Event().wait()
            if fault == "truncate":
                body = body[:half]
                headers["Content-Length"] = str(half)
            if fault == "corrupt":
                body = body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :]
        store = http.client.HTTPConnection(*self.server.target)
        store.request(self.command, self.path, body, headers)
        answer = store.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in {"transfer-encoding", "connection", "date", "server"}:
                self.send_header(key, value)
        if answer.getheader("Content-Length") is None:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def bucket() -> Iterator[Bucket]:
    """A server of buckets while the context lasts."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    store = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    store.start()
    try:
        with Bucket(store.get_host_and_port()) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            yield server
            server.shutdown()
    finally:
        reset = http.client.HTTPConnection(*store.get_host_and_port())
        reset.request("POST", "/moto-api/reset")  # its buckets are this process's
        reset.getresponse().read()
        store.stop()
