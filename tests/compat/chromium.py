"""A headless Chromium, driven by its DevTools protocol over a websocket.

Source: chromedevtools.github.io/devtools-protocol.
"""

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

PROGRAMS: Final = ("chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell")
START_S: Final = 60
WAIT_S: Final = 100

_OPTIONS: Final = (
    "--headless=new",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


CLICKS: Final = 20
_AIM: Final = """(async () => {
    const e = ELEMENT;
    window.clickArrived = false;
    e.addEventListener('click', () => { window.clickArrived = true; }, { once: true, capture: true });
    e.scrollIntoView({ block: 'nearest', behavior: 'instant' });
    await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
    const r = e.getBoundingClientRect();
    return [r.x + r.width / 2, r.y + r.height / 2];
})()"""
"""Where an element is once the page has been drawn with it in sight; notes that a click has come to it."""


def require_chromium() -> str:
    """Find Chromium, or skip the test."""
    for name in PROGRAMS:
        path = shutil.which(name)
        if path is not None:
            return path
    pytest.skip(f"needs Chromium, found none of {', '.join(PROGRAMS)} (Debian: chromium)")


class ScriptError(Exception):
    """A script that a test ran in a page failed."""


@dataclass(slots=True)
class Tab:
    """A page of the browser. `complaints` are what its console would show in red: none is right."""

    socket: aiohttp.ClientWebSocketResponse
    session: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    _answers: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol. Raises: ScriptError: it failed."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        await self.socket.send_json(message | ({"sessionId": self.session} if self.session else {}))
        got = await answer
        if "error" in got:
            raise ScriptError(f"{method}: {got['error']}")
        result: dict[str, Any] = got["result"]
        return result

    async def run(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        got = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in got:
            details = got["exceptionDetails"]
            raise ScriptError(details.get("exception", {}).get("description", details["text"]))
        return got["result"].get("value")

    async def until(self, condition: str) -> Any:
        """Wait until an expression is true, and return it; tells what the page shows if it never is."""
        script = f"""new Promise((resolve) => {{
            const end = performance.now() + {WAIT_S * 1000};
            (function look() {{
                let value = null;
                try {{ value = ({condition}); }} catch {{}}
                if (value || performance.now() > end) resolve(value);
                else setTimeout(look, 20);
            }})();
        }})"""
        value = await self.run(script)
        if not value:
            shown = await self.run("document.body.innerText")
            raise AssertionError(f"never came true: {condition}\n{self.complaints}\n{shown[:2000]}")
        return value

    async def shows(self, text: str, within: str = "body") -> None:
        """Wait until an element shows a text; white space does not count: boxes have some between them."""
        shown = f"document.querySelector({json.dumps(within)}).innerText.replace(/\\s+/g, '')"
        await self.until(f"{shown}.includes({json.dumps(''.join(text.split()))})")

    async def click(self, selector: str) -> None:
        """Click on the first element that the selector names, which has to be seen.

        A click that misses, because the page moves on a busy machine while it is on its way, is repeated.
        """
        element = f"document.querySelector({json.dumps(selector)})"
        for _ in range(CLICKS):
            await self.until(f"{element}?.checkVisibility()")
            x, y = await self.run(_AIM.replace("ELEMENT", element))
            for kind in ("mousePressed", "mouseReleased"):
                await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
            if await self.run("window.clickArrived"):
                return
        raise AssertionError(f"no click arrived: {selector}\n{self.complaints}")

    async def press(self, key: str, code: int = 0, text: str = "") -> None:
        """Press and release a key, as `KeyboardEvent.key` names it."""
        more = {"windowsVirtualKeyCode": code} if code else {}
        await self.call(
            "Input.dispatchKeyEvent", type="keyDown", key=key, **more, **({"text": text} if text else {})
        )
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **more)

    async def type(self, text: str) -> None:
        await self.call("Input.insertText", text=text)

    async def look(self, *, width: int, height: int, dark: bool = False, scale: int = 1) -> None:
        """Give the page a size in pixels, and a scheme of colours."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=width < 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def photograph(self, path: Path) -> None:
        shot = await self.call("Page.captureScreenshot", format="png")
        await asyncio.to_thread(path.write_bytes, base64.b64decode(shot["data"]))

    async def listen(self) -> None:
        """Take in what the browser says, until it ends."""
        async for message in self.socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                self._take(json.loads(message.data))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers.pop(message["id"]).set_result(message)
            return
        params = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif message["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif message["method"] == "Runtime.consoleAPICalled" and params["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.complaints.append(str([each.get("value") for each in params["args"]]))
        elif message["method"] == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])


@asynccontextmanager
async def open_tab(folder: Path) -> AsyncIterator[Tab]:
    """A Chromium of its own, with one empty page; nothing of it is left afterwards but files in `folder`."""
    profile = folder / "chromium"
    sandbox = () if os.geteuid() else ("--no-sandbox",)
    with (folder / "chromium.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            require_chromium(), *_OPTIONS, *sandbox, f"--user-data-dir={profile}", "about:blank",
            stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "HOME": str(folder)},
        )  # fmt: skip
    try:
        address = await _address(profile / "DevToolsActivePort", process)
        async with (
            aiohttp.ClientSession() as client,
            client.ws_connect(address, max_msg_size=0) as socket,
        ):
            tab = Tab(socket, "")
            listening = asyncio.create_task(tab.listen())
            try:
                await _attach(tab)
                yield tab
            finally:
                await socket.close()
                await listening
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _attach(tab: Tab) -> None:
    target = await tab.call("Target.createTarget", url="about:blank")
    attached = await tab.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
    tab.session = attached["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
        await tab.call(f"{domain}.enable")


async def _address(file: Path, process: asyncio.subprocess.Process) -> str:
    """Where the browser listens: it writes that down when it is ready."""
    async with asyncio.timeout(START_S):
        while process.returncode is None:
            lines = _lines(file)
            if len(lines) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            await asyncio.sleep(0.05)
    pytest.fail(f"Chromium ended with {process.returncode}: {_lines(file.parent.with_suffix('.log'))[-200:]}")


def _lines(file: Path) -> list[str]:
    return file.read_text(errors="replace").split() if file.exists() else []
