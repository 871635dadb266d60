"""A web server of files that misbehaves as told."""

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

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[FileServer]:
    """A server of `folder` while the context lasts."""
    with FileServer(folder) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
