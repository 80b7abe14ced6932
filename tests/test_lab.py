"""`make lab` for real: JupyterLab on loopback, its notebook in a browser, cells that run there."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
from conftest import ROOT
from processes import alive, family, running, tail, until

from tools import bootstrap
from tools import lab as lab_tool

if TYPE_CHECKING:
    from playwright.sync_api import Page


NOTEBOOK = next((ROOT / "notebooks").glob("01_*.ipynb"))
TITLE = "Base or chat?"
IMPORT_LINE = "from course_utils import describe"
OUTPUT_LINE = "Machine:"
SCREENSHOT = ROOT / "build" / "test_lab.png"

needs_sessions = pytest.mark.skipif(os.name == "nt", reason="needs Linux's or macOS's processes")
needs_make = pytest.mark.skipif(not shutil.which("make") or os.name == "nt", reason="needs make")


@dataclass
class Lab:
    """A JupyterLab that `make lab` started."""

    address: str
    log: Path
    make: subprocess.Popen

    @property
    def port(self) -> int:
        """The port in its address."""
        return urlsplit(self.address).port

    @property
    def token(self) -> str:
        """The token in its address."""
        return parse_qs(urlsplit(self.address).query)["token"][0]

    def get(self, path: str) -> tuple[int, str]:
        """The status of an answer, and where it sends the browser."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        response = connection.getresponse()
        connection.close()
        return response.status, response.getheader("Location", "")

    def listening(self) -> set[tuple[str, int]]:
        """Where the server, and what it started, wait for connections."""
        found = set()
        for process in family(self.make.pid):
            with suppress(psutil.NoSuchProcess):  # a short-lived helper
                for connection in process.net_connections("inet"):
                    if connection.status == psutil.CONN_LISTEN:
                        found.add(tuple(connection.laddr))
        return found

    def kernels(self) -> int:
        """How many kernels run."""
        count = 0
        for process in family(self.make.pid):
            with suppress(psutil.NoSuchProcess):
                count += "ipykernel_launcher" in process.cmdline()
        return count


def own_environment(folder: Path) -> dict[str, str]:
    """Settings of the test's own, so that nothing is read from or left in the learner's."""
    # A stand-in for .venv that is up to date and runs this very Python: whatever state .venv is
    # in, no test makes it anew while the tests run in it.
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    bootstrap.write_stamp(folder / "venv", bootstrap.fingerprint(), set())

    settings = {
        "docmanager-extension/plugin": {"autosave": False},  # the notebook's file is tracked
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }
    for name, content in settings.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    (folder / "config").mkdir()
    checkpoints = {"FileCheckpoints": {"checkpoint_dir": str(folder / "checkpoints")}}
    (folder / "config" / "jupyter_server_config.json").write_text(json.dumps(checkpoints))

    # An outer `make test` hands its options down, and a token from outside would be taken over.
    dropped = ("MAKE", "MFLAGS", "JUPYTER")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(dropped)}
    return kept | {
        "COURSE_VENV": str(folder / "venv"),
        "HF_HUB_OFFLINE": "1",
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
    }


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """`make lab NB=01` on a free port; the notebook's file has to outlive it unchanged."""
    before = NOTEBOOK.read_bytes()
    folder = tmp_path_factory.mktemp("lab")
    log = folder / "make-lab.log"
    options = "--no-browser --ServerApp.port=0 --ServerApp.port_retries=0"
    command = ["make", "lab", "NB=01", f"PYTHON={sys.executable}", f"LAB_OPTIONS={options}"]
    with running(command, log, cwd=ROOT, env=own_environment(folder)) as make:

        def address() -> str:
            assert make.poll() is None, f"`make lab` has ended\n\n{tail(log)}"
            found = re.search(r"^\s*(http://127\.0\.0\.1\S+token=\w+)\s*$", log.read_text(), re.M)
            return found[1] if found else ""

        yield Lab(until(address, "an address in its output", lambda: tail(log)), log, make)
    assert NOTEBOOK.read_bytes() == before, f"{NOTEBOOK.name} was written"


@pytest.fixture(scope="module")
def notebook(lab: Lab, page: Page) -> Page:
    """A browser at the address that was printed, when it shows the notebook's title."""
    page.goto(lab.address)
    page.locator(".jp-MarkdownCell h1", has_text=TITLE).first.wait_for()
    return page


def test_the_server_listens_on_loopback_and_asks_for_its_token() -> None:
    """No command line sets another address, a token or a password."""
    line = lab_tool.options("notebooks/a.ipynb", ["--ServerApp.port=9999"])
    assert "--LabApp.default_url=/lab/tree/notebooks/a.ipynb" in line
    assert [part for part in line if "ip=" in part] == ["--ServerApp.ip=127.0.0.1"]
    options = [part.split("=")[0].lower() for part in line if part.startswith("-")]
    assert not [name for name in options if "token" in name or "password" in name]
    assert line[-1] == "--ServerApp.port=9999"


def test_without_a_screen_no_browser_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Linux without a display, Jupyter is told so and still listens on loopback only."""
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    assert lab_tool.has_browser() is False
    line = lab_tool.options("notebooks/a.ipynb", [])
    assert "--no-browser" in line
    assert "--ServerApp.ip=127.0.0.1" in line


@pytest.mark.parametrize("name", ["DISPLAY", "WAYLAND_DISPLAY", "BROWSER"])
def test_with_a_screen_the_browser_is_opened(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any of the three variables is enough, where Python finds a browser."""
    for other in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, ":0")
    monkeypatch.setattr(webbrowser, "get", lambda: None)
    assert lab_tool.has_browser() is True
    assert "--no-browser" not in lab_tool.options("notebooks/a.ipynb", [])


def test_a_screen_without_any_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    """A display alone does not help where Python finds no browser."""

    def find_none() -> None:
        raise webbrowser.Error

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(webbrowser, "get", find_none)
    assert lab_tool.has_browser() is False


@needs_sessions
def test_a_failed_test_leaves_no_process(tmp_path: Path) -> None:
    """A child with a session of its own, as a kernel has, ends with its program too."""
    sleep = "import time; time.sleep(600)"
    child = f"subprocess.Popen([sys.executable, '-c', '{sleep}'], start_new_session=True)"
    command = [sys.executable, "-c", f"import subprocess, sys; {child}; {sleep}"]
    started = set()
    with (  # noqa: PT012
        pytest.raises(ZeroDivisionError),
        running(command, tmp_path / "log") as program,
    ):
        until(lambda: len(family(program.pid)) == 2, "a child", lambda: tail(tmp_path / "log"))
        started = family(program.pid)
        raise ZeroDivisionError
    assert len(started) == 2
    assert not alive(started)


@needs_make
def test_make_lab_prints_the_notebooks_address(lab: Lab) -> None:
    """The address names loopback, the notebook and a token that Jupyter made."""
    assert lab.address.startswith(f"http://127.0.0.1:{lab.port}/lab/tree/notebooks/")
    assert urlsplit(lab.address).path.endswith(NOTEBOOK.name)
    assert len(lab.token) >= 32


@needs_make
def test_make_lab_listens_on_loopback_only(lab: Lab) -> None:
    """Nothing but 127.0.0.1 is listened on."""
    listening = lab.listening()
    assert ("127.0.0.1", lab.port) in listening, tail(lab.log)
    assert {address for address, _ in listening} == {"127.0.0.1"}


@needs_make
@pytest.mark.parametrize("query", ["", "?token=" + "0" * 48])
def test_without_the_token_nothing_is_answered(lab: Lab, query: str) -> None:
    """The page leads to the log-in, the interface behind it refuses; a wrong token is none."""
    status, location = lab.get(urlsplit(lab.address).path + query)
    assert status == 403 or (status == 302 and location.startswith("/login")), tail(lab.log)
    assert lab.get(f"/api/contents{query}") == (403, ""), tail(lab.log)


@needs_make
def test_with_the_token_the_page_is_answered(lab: Lab) -> None:
    """The token in the address is enough."""
    address = urlsplit(lab.address)
    assert lab.get(f"{address.path}?{address.query}") == (200, ""), tail(lab.log)
    assert lab.get(f"/api/contents?{address.query}") == (200, ""), tail(lab.log)


@needs_make
def test_the_browser_shows_the_notebook(notebook: Page) -> None:
    """The address that was printed, opened as it is, shows the notebook's text and code."""
    notebook.locator(".jp-CodeCell .cm-content", has_text=IMPORT_LINE).first.wait_for()
    count = "() => document.querySelectorAll('.jp-Notebook .jp-Cell').length > 10"
    notebook.wait_for_function(count)
    notebook.screenshot(path=SCREENSHOT)


@needs_make
def test_cells_run_in_the_page(lab: Lab, notebook: Page) -> None:
    """With the saved outputs cleared, Shift+Enter down to `describe()` brings its output."""
    idle = notebook.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first
    idle.wait_for(state="attached")

    notebook.locator(".lm-MenuBar-item", has_text="Edit").click()
    notebook.locator(".lm-Menu-item[data-command='editmenu:clear-all']").click()
    outputs = "() => document.querySelectorAll('.jp-OutputArea-output').length"
    notebook.wait_for_function(f"{outputs} == 0")

    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    last = next(i for i, cell in enumerate(cells) if IMPORT_LINE in "".join(cell["source"]))
    notebook.locator(".jp-MarkdownCell h1", has_text=TITLE).first.click()
    for index in range(last + 1):
        active = f".jp-Cell.jp-mod-active[data-windowed-list-index='{index}']"
        notebook.locator(active).wait_for(state="attached")
        assert notebook.evaluate(outputs) == 0
        notebook.keyboard.press("Shift+Enter")
    notebook.locator(".jp-OutputArea-output", has_text=OUTPUT_LINE).first.wait_for()

    assert lab.kernels() == 1, tail(lab.log)
    assert {address for address, _ in lab.listening()} == {"127.0.0.1"}
