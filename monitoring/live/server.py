"""The live page's HTTP server: a few read-only addresses over a folder of run folders."""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from monitoring.live.access import (
    HEADERS,
    REPORT_POLICY,
    bearer,
    host_is_local,
    is_local,
    matches,
)
from monitoring.live.alerts import Alerts
from monitoring.live.endpoints import Answer, Endpoints, processes
from monitoring.live.run import LiveRun, report_of
from monitoring.run_folder import CONFIG_FILE
from untrusted.files import Refused

_SCRIPTS = (
    "page.js",
    "list.js",
    "run.js",
    "charts.js",
    "classes.js",
    "compare.js",
    "logs.js",
    "words.js",
)
_PAGE = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    **{f"/{name}": (name, "text/javascript") for name in _SCRIPTS},
}
_FRESH = 1.0
"""Seconds that the list is given out again without looking."""
_READ = 1.0
"""Seconds that one request spends on reading a long file; the next one goes on."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Page:
    """What is served, and to whom."""

    folder: Path
    """Its run folders are shown."""
    host: str = "127.0.0.1"
    token: str | None = None
    """Asked for where it is given."""
    prometheus: str | None = None
    scrape: tuple[str, ...] = ()
    """Patterns of hosts whose endpoints may be asked, besides this machine."""


class Server:
    """The handlers and what they keep between two requests."""

    def __init__(self, page: Page, session: aiohttp.ClientSession) -> None:
        self.page, self._root = page, page.folder.resolve()
        self._runs: dict[str, LiveRun] = {}
        self._reading = asyncio.Lock()
        self._endpoints = Endpoints(session, page.scrape)
        self._alerts = Alerts(session, page.prometheus)
        self._list: tuple[float, dict[str, Any]] | None = None

    def _scan(self) -> list[LiveRun]:
        """The run folders there are; those that are links elsewhere are not."""
        found = {}
        with os.scandir(self._root) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) and _is_run(Path(entry.path)):
                    path = Path(entry.path)
                    found[entry.name] = self._runs.get(entry.name) or LiveRun(self._root, path)
        self._runs = found
        return list(found.values())

    def _look(self) -> list[LiveRun]:
        runs = self._scan()
        for run in runs:
            run.look()
        return runs

    async def runs(self, request: web.Request) -> web.StreamResponse:
        """All runs, a line each."""
        if self._list is None or time.monotonic() - self._list[0] > _FRESH:
            async with self._reading:
                runs = await asyncio.to_thread(self._look)
            answers = await self._endpoints.ask([run.driver for run in runs if run.driver])
            alerts, now = await self._alerts.of(), time.time()
            async with self._reading:
                lines = [run.overview(_answer(run, answers), now) for run in runs]
            self._list = time.monotonic(), {"now": now, "runs": lines, "alerts": alerts}
            self._endpoints.forget()
        return answer_json(self._list[1])

    async def run(self, request: web.Request) -> web.StreamResponse:
        """One run, but for its curves."""
        until = time.monotonic() + _READ
        while True:
            async with self._reading:  # in turns, so that a long file holds nobody up
                run = await self._find(request)
                await asyncio.to_thread(run.study)
            if not run.behind or time.monotonic() > until:
                break
        targets = list(run.targets)
        answers = await self._endpoints.ask(targets)
        alerts, now = await self._alerts.of(run.folder.name), time.time()
        async with self._reading:
            detail = run.detail(_answer(run, answers), now)
        lines = processes(targets, answers, self._endpoints)
        return answer_json({"now": now, **detail, "processes": lines, "alerts": alerts})

    async def curves(self, request: web.Request) -> web.StreamResponse:
        """The curves of one seed of a run."""
        seed = _seed(request)
        async with self._reading:
            run = await self._find(request)
            return answer_json(await asyncio.to_thread(run.curves, seed))

    async def classes(self, request: web.Request) -> web.StreamResponse:
        """The maps over learning steps and the exemplars of one seed of a run."""
        seed = _seed(request)
        async with self._reading:
            run = await self._find(request)
            return answer_json(await asyncio.to_thread(run.classes, seed))

    async def configuration(self, request: web.Request) -> web.StreamResponse:
        """A run's configuration, as text."""
        async with self._reading:
            run = await self._find(request)
            await asyncio.to_thread(run.look)
            return answer_json(run.configuration())

    async def logs(self, request: web.Request) -> web.StreamResponse:
        """The newest lines of the logs of all processes of a run, or of ?process=NAME."""
        async with self._reading:
            run = await self._find(request)
            return answer_json(await asyncio.to_thread(run.logs, request.query.get("process")))

    async def report(self, request: web.Request) -> web.StreamResponse:
        """A run's final report, unable to run anything."""
        async with self._reading:
            run = await self._find(request)
        try:
            body = await asyncio.to_thread(report_of, self._root, run.folder)
        except OSError as error:
            why = str(error) if isinstance(error, Refused) else "this run has no report yet"
            raise web.HTTPNotFound(text=why) from error
        headers = {"Content-Security-Policy": REPORT_POLICY}
        return web.Response(body=body, content_type="text/html", charset="utf-8", headers=headers)

    async def _find(self, request: web.Request) -> LiveRun:
        """The run that is named; only names that were found in the folder are known."""
        name = request.match_info["name"]
        run = self._runs.get(name)
        if run is None or not _is_run(run.folder):
            await asyncio.to_thread(self._scan)
            run = self._runs.get(name)
        if run is None:
            raise web.HTTPNotFound(text="no such run")
        return run


def _seed(request: web.Request) -> int:
    """The seed that is asked for."""
    seed = request.query.get("seed", "")
    if not (seed.isascii() and seed.isdigit() and len(seed) < 10):
        raise web.HTTPBadRequest(text="seed must be a whole number")
    return int(seed)


def _is_run(folder: Path) -> bool:
    return not folder.is_symlink() and os.path.lexists(folder / CONFIG_FILE)


def _answer(run: LiveRun, answers: dict[str, Answer]) -> Answer | None:
    return answers.get(run.driver.address) if run.driver else None


def answer_json(content: dict[str, Any]) -> web.Response:
    """`content` as JSON, compressed where the browser can."""
    response = web.Response(
        body=json.dumps(content, allow_nan=False).encode(), content_type="application/json"
    )
    response.enable_compression()
    return response


async def _static(request: web.Request) -> web.StreamResponse:
    name, kind = _PAGE[request.path]
    body = (Path(__file__).parents[1] / "page" / name).read_bytes()
    return web.Response(body=body, content_type=kind, charset="utf-8")


def guard(page: Page, cookie: str) -> Any:
    """A middleware that lets in whom `page` allows, and adds the headers that browsers obey."""

    async def allowed(request: web.Request, handler: Handler) -> web.StreamResponse:
        if is_local(page.host) and not host_is_local(request.headers.get("Host")):
            raise web.HTTPMisdirectedRequest(text="this page answers to localhost only")
        if page.token is None:
            return await handler(request)
        if matches(request.query.get("token"), page.token):
            found = web.HTTPSeeOther("/")  # so that it stays in no address bar
            found.set_cookie(cookie, page.token, httponly=True, samesite="Strict", path="/")
            raise found
        given = bearer(request.headers.get("Authorization")), request.cookies.get(cookie)
        if not any(matches(one, page.token) for one in given):
            text = "this page needs the token that `perennial serve` printed: add ?token=TOKEN"
            raise web.HTTPUnauthorized(text=text, headers={"WWW-Authenticate": "Bearer"})
        return await handler(request)

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await allowed(request, handler)
        except web.HTTPException as error:
            for name, value in HEADERS.items():
                error.headers.setdefault(name, value)
            raise
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return guarded


def application(page: Page, port: int, session: aiohttp.ClientSession) -> web.Application:
    """The web application; `port` keeps the cookies of several on one machine apart."""
    server = Server(page, session)
    app = web.Application(middlewares=[guard(page, f"perennial-{port}")], client_max_size=1024)
    for address in _PAGE:
        app.router.add_get(address, _static)
    app.router.add_get("/api/runs", server.runs)
    app.router.add_get("/api/runs/{name}", server.run)
    app.router.add_get("/api/runs/{name}/curves", server.curves)
    app.router.add_get("/api/runs/{name}/classes", server.classes)
    app.router.add_get("/api/runs/{name}/configuration", server.configuration)
    app.router.add_get("/api/runs/{name}/logs", server.logs)
    app.router.add_get("/report/{name}", server.report)
    return app


async def serve(page: Page, port: int, ready: Callable[[int], None]) -> None:
    """Serves until it is cancelled; `ready` hears the port. Raises OSError when it is taken."""
    # nothing compressed is asked for or unpacked: a few bytes could become very many
    async with aiohttp.ClientSession(
        headers={"Accept-Encoding": "identity"},
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        # no access log: it would hold the tokens of addresses
        runner = web.AppRunner(application(page, port, session), access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, page.host, port).start()
            ready(runner.addresses[0][1])
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()
