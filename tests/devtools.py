"""Programs that end with their test, and headless Chromium over its DevTools protocol."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import websocket

WAIT_S = 120
GRACE_S = 10
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # containers run as root, where Chromium's sandbox does not start
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",  # 64 MB in a container: too little for a page
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1600",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)
_SHIFT = 8

Answer = TypeVar("Answer")


class DevToolsError(Exception):
    """The browser refused a command, or a script in the page failed."""


def until(condition: Callable[[], Answer], what: str, evidence: Callable[[], str]) -> Answer:
    """The first true answer of `condition`; without one in time, a failure with the evidence."""
    deadline = time.monotonic() + WAIT_S
    while True:
        refusal = ""
        try:
            if answer := condition():
                return answer
        except DevToolsError as error:  # a page that is just being replaced runs no script
            refusal = f"\n{error}"
        except (websocket.WebSocketException, OSError) as error:  # the browser has gone
            raise AssertionError(f"{what}: {error}\n\n{evidence()}") from error
        if time.monotonic() > deadline:
            raise AssertionError(f"Not within {WAIT_S} s: {what}{refusal}\n\n{evidence()}")
        time.sleep(0.1)


def tail(log: Path, lines: int = 40) -> str:
    """The last lines of a log, under its name."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join([f"--- {log.name}, its last lines", *text.splitlines()[-lines:]])


def session(leader: int) -> set[psutil.Process]:
    """The processes of a session, also those whose parent has gone."""
    found = set()
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == leader:
                found.add(process)
    return found


def family(leader: int) -> set[psutil.Process]:
    """A session and its descendants: a Jupyter kernel has a session of its own."""
    found = session(leader)
    for process in list(found):
        with suppress(psutil.NoSuchProcess):
            found.update(process.children(recursive=True))
    return found


def alive(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    """Those that still run; a zombie waits only for its parent to take note."""
    found = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process)
    return found


def _gone(processes: Callable[[], Iterable[psutil.Process]]) -> bool:
    """Whether the processes end within the grace period."""
    deadline = time.monotonic() + GRACE_S
    while alive(processes()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _end(program: subprocess.Popen) -> None:
    """End a program and all that it started: asked first, then killed."""
    started = family(program.pid)
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGTERM)
    _gone(lambda: session(program.pid))
    started |= family(program.pid)
    for process in alive(started):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    ended = _gone(lambda: started)
    program.wait(GRACE_S)
    assert ended, f"still running: {alive(started)}"


@contextmanager
def running(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen]:
    """A program in a session of its own; on leaving, nothing that it started is left."""
    with log.open("wb") as output:
        program = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
    try:
        yield program
    finally:
        _end(program)


class Page:
    """A page of the browser."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=WAIT_S)
        self._calls = 0

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._calls:
                break
        if "error" in message:
            raise DevToolsError(f"{method}: {message['error']['message']}")
        return message["result"]

    def evaluate(self, script: str, *values: object) -> Any:
        """The value of a JavaScript function in the page."""
        listed = ", ".join(map(json.dumps, values))
        answer = self.call(
            "Runtime.evaluate", expression=f"({script})({listed})", returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise DevToolsError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def text(self) -> str:
        """What the page shows, as text; or why that cannot be said."""
        try:
            return self.evaluate('() => document.body?.innerText ?? ""')
        except (DevToolsError, websocket.WebSocketException, OSError) as error:
            return f"({error})"

    def where(self, selector: str, text: str = "") -> list[float]:
        """The middle of the first element with this text that is in view; empty without one."""
        return self.evaluate(
            """(selector, text) => {
                for (const element of document.querySelectorAll(selector)) {
                    const box = element.getBoundingClientRect();
                    const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
                    const inside = 0 < x && x < innerWidth && 0 < y && y < innerHeight;
                    if (inside && element.checkVisibility() && element.innerText.includes(text))
                        return [x, y];
                }
                return [];
            }""",
            selector,
            text,
        )

    def click(self, spot: list[float]) -> None:
        """Press and release the mouse's left button."""
        x, y = spot
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press_shift_enter(self) -> None:
        """Press and release Shift and Enter."""
        enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "modifiers": _SHIFT}
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **enter)

    def screenshot(self, path: Path) -> None:
        """Write what the page shows as a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


def _page_address(profile: Path, browser: subprocess.Popen) -> str:
    """Where the browser's first page takes commands; empty while it does not yet."""
    assert browser.poll() is None, "the browser has ended"
    with suppress(OSError, IndexError, ValueError, StopIteration):
        port = int((profile / "DevToolsActivePort").read_text().splitlines()[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        connection.request("GET", "/json/list")
        pages = json.load(connection.getresponse())
        return next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
    return ""


@contextmanager
def chromium(program: str, log: Path) -> Iterator[Page]:
    """An empty page of a browser with a profile of its own, which is removed on leaving."""
    profile = Path(tempfile.mkdtemp(prefix="profile-", dir=log.parent))
    command = [program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    environment = {**os.environ, "HOME": str(profile)}  # the certificate store goes there too
    try:
        with running(command, log, env=environment) as browser:
            address = until(
                lambda: _page_address(profile, browser), "the browser's start", lambda: tail(log)
            )
            page = Page(address)
            try:
                yield page
            finally:
                page.close()
    finally:
        shutil.rmtree(profile)
