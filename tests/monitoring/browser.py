"""A headless Chromium, driven over its own debugging protocol."""

import asyncio
import base64
import itertools
import json
import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--remote-debugging-address=127.0.0.1",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--no-first-run",
    "--no-default-browser-check",
    "--mute-audio",
)


class Browser:
    """One tab. `complaints` are uncaught errors and what its console was told of errors."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._tab = ""
        self.complaints: list[str] = []

    async def listen(self) -> None:
        """Hands answers to whoever waits for them, until the browser ends."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._waiting.pop(said["id"]).set_result(said)
            elif said["method"] == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(said["params"]["exceptionDetails"]))
            elif said["method"] == "Log.entryAdded":
                entry = said["params"]["entry"]
                if entry["level"] == "error":
                    self.complaints.append(f"{entry['text']} {entry.get('url', '')}")

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol and its result."""
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        command = {"id": number, "method": method, "params": params}
        await self._socket.send_json({**command, **({"sessionId": self._tab} if self._tab else {})})
        said = await asyncio.wait_for(self._waiting[number], 60)
        if "error" in said:
            raise RuntimeError(f"{method}: {said['error']}")
        return said["result"]

    async def open_tab(self) -> None:
        """Opens the tab."""
        target = (await self.send("Target.createTarget", url="about:blank"))["targetId"]
        found = await self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._tab = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")

    async def go(self, address: str) -> None:
        """Opens an address."""
        await self.send("Page.navigate", url=address)

    async def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = await self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    async def until(self, expression: str, seconds: float = 60) -> Any:
        """The value of an expression as soon as it is true of the page."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if value := await self.ask(expression):
                    return value
            except RuntimeError:  # a page that is being left has no values
                pass
            if time.monotonic() > deadline:
                text = await self.ask("document.body.innerText")
                raise AssertionError(f"never true: {expression}\n{text}\n{self.complaints}")
            await asyncio.sleep(0.05)

    async def look(self, file: Path, width: int, dark: bool = False, height: int = 900) -> None:
        """A picture of the whole page at a width, in a theme."""
        phone = width < 600
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[theme])
        await self.ask("new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)))")
        size = (await self.send("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": width, "height": min(size["height"], 4000), "scale": 1}
        found = await self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))


@asynccontextmanager
async def browsing(profile: Path) -> AsyncIterator[Browser]:
    """A browser with an empty profile; it ends with the block."""
    assert PROGRAM
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses root otherwise
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        *_FLAGS,
        *sandbox,
        f"--user-data-dir={profile}",
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stderr
    try:
        address = ""
        while not address:
            line = await asyncio.wait_for(process.stderr.readline(), 60)
            assert line, "Chromium ended"
            _, _, address = line.decode(errors="replace").partition("DevTools listening on ")
        drained = asyncio.create_task(process.stderr.read())
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(address.strip(), max_msg_size=0) as socket,
        ):
            browser = Browser(socket)
            listening = asyncio.create_task(browser.listen())
            await browser.open_tab()
            yield browser
            listening.cancel()
        drained.cancel()
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
                await process.wait()
