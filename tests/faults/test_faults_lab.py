"""`make lab`: a notebook that is not there, a poor screen, a Jupyter that is set up to be open."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from conftest import ROOT
from jupyter_server.auth import passwd
from processes import family, running, tail, until
from test_lab import Lab, own_environment

from tools import notebooks

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the Makefile is for Linux and macOS")
slow = pytest.mark.slow
FIRST = "notebooks/01_base_vs_chat.ipynb"


# --- which notebook ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "named",
    [
        "99",
        pytest.param("0", marks=slow),
        pytest.param("", marks=slow),
        pytest.param("03_nothing.ipynb", marks=slow),
        pytest.param("base", marks=slow),
        pytest.param("/tmp/01_base_vs_chat.ipynb", marks=slow),
        pytest.param("../01", marks=slow),
        pytest.param('it\'s "quoted"', marks=slow),
        pytest.param("01; touch PLACE/done", marks=slow),
        pytest.param("`touch PLACE/done`", marks=slow),
    ],
)
@pytest.mark.parametrize("target", ["lab", pytest.param("notebook", marks=slow)])
def test_a_notebook_that_is_not_there_is_an_error(target: str, named: str, tmp_path: Path) -> None:
    """Nothing is opened or run; what there is, is named."""
    named = named.replace("PLACE", str(tmp_path))
    done = subprocess.run(
        ["make", target, f"NB={named}", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        env=own_environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "01_base_vs_chat" in done.stderr
    assert "Jupyter" not in done.stdout
    assert not (tmp_path / "done").exists()
    several = {"0": "fits 10 notebooks", "base": "fits 2 notebooks"}
    assert several.get(named, "There is no notebook") in done.stderr


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("3.1", "03.1_pig_latin"),
        ("03.1", "03.1_pig_latin"),
        ("3", "03_data_collators"),
        ("03_data_collators.ipynb", "03_data_collators"),
        ("03_data_collators", "03_data_collators"),
        ("notebooks/03.2_yoda.ipynb", "03.2_yoda"),
        ("./notebooks/solutions/03.2_yoda.py", "03.2_yoda"),
        (str(ROOT / "notebooks" / "08_response_quality.ipynb"), "08_response_quality"),
        (" 08 ", "08_response_quality"),
        ("Yoda", "03.2_yoda"),
    ],
)
def test_a_notebook_is_found_by(named: str, expected: str, capsys: pytest.CaptureFixture) -> None:
    """Number, file name, path, a part of the name."""
    notebooks.main(["path", named])
    assert capsys.readouterr().out == f"notebooks/{expected}.ipynb\n"


@pytest.mark.parametrize("encoding", ["C", pytest.param("latin-1", marks=slow)])
@pytest.mark.parametrize("command", ["check", pytest.param("path", marks=slow)])
def test_notebooks_on_a_poor_screen(command: str, encoding: str) -> None:
    """The notebooks' letters are read as UTF-8, whatever the screen has."""
    env = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"PYTHONIOENCODING": encoding}
    if encoding == "C":
        env |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
        del env["PYTHONIOENCODING"]
    done = subprocess.run(
        [sys.executable, "-m", "tools.notebooks", command, "01", "03.2"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1)  # 1: a notebook is not what its source says
    assert done.returncode == 0 or "make notebooks" in done.stdout


# --- who may come in --------------------------------------------------------------------------

OPEN_PROVIDER = """
from jupyter_server.auth import IdentityProvider, User


class Open(IdentityProvider):
    def get_user(self, handler):
        return User(username="anybody")


c.ServerApp.identity_provider_class = Open
"""
OPEN_LOGIN = """
from jupyter_server.auth.login import LegacyLoginHandler


class Open(LegacyLoginHandler):
    @classmethod
    def get_user(cls, handler):
        return "anybody"


c.ServerApp.login_handler_class = Open
"""
GUESS = "guess"
# For each: the user's files in Jupyter's configuration folder, and variables.
CONFIGURATIONS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "empty token": ({"jupyter_server_config.py": "c.IdentityProvider.token = ''"}, {}),
    "empty token, JSON": (
        {
            "jupyter_server_config.json": json.dumps(
                {"PasswordIdentityProvider": {"token": ""}, "IdentityProvider": {"token": ""}}
            )
        },
        {},
    ),
    "empty token, old name": ({"jupyter_server_config.py": "c.ServerApp.token = ''"}, {}),
    "empty token, Lab's file": (
        {"jupyter_lab_config.py": "c.ServerApp.token = ''\nc.IdentityProvider.token = ''"},
        {},
    ),
    "empty token and password": (
        {
            "jupyter_config.py": "c.ServerApp.token = ''\nc.ServerApp.password = ''\n"
            "c.PasswordIdentityProvider.token = ''\n"
            "c.PasswordIdentityProvider.hashed_password = ''"
        },
        {},
    ),
    "a token that is known": (
        {"jupyter_server_config.py": f"c.IdentityProvider.token = '{GUESS}'"},
        {},
    ),
    "a password that is known": (
        {
            "jupyter_server_config.json": json.dumps(
                {"PasswordIdentityProvider": {"hashed_password": passwd(GUESS, "sha1")}}
            )
        },
        {},
    ),
    "a password that is known, old name": (
        {"jupyter_lab_config.py": f"c.ServerApp.password = '{passwd(GUESS, 'sha1')}'"},
        {},
    ),
    "a provider that lets in all": ({"jupyter_server_config.py": OPEN_PROVIDER}, {}),
    "a log-in that lets in all": ({"jupyter_server_config.py": OPEN_LOGIN}, {}),
    "every address": ({"jupyter_server_config.json": '{"ServerApp": {"ip": "0.0.0.0"}}'}, {}),
    "every address, Lab's file": ({"jupyter_lab_config.py": "c.ServerApp.ip = '*'"}, {}),
    "a socket": ({"jupyter_server_config.py": "c.ServerApp.sock = 'FOLDER/socket'"}, {}),
    "every origin": (
        {
            "jupyter_server_config.py": "c.ServerApp.allow_origin = '*'\n"
            "c.ServerApp.allow_credentials = True\nc.ServerApp.allow_origin_pat = '.*'\n"
            "c.ServerApp.disable_check_xsrf = True"
        },
        {},
    ),
    "variable: a known token": ({}, {"JUPYTER_TOKEN": GUESS}),
    "variable: an empty token": (
        {"jupyter_server_config.py": "c.ServerApp.token = ''"},
        {"JUPYTER_TOKEN": ""},
    ),
    "variable: a token's file": ({"token": GUESS}, {"JUPYTER_TOKEN_FILE": "FOLDER/token"}),
}
QUICK = {"empty token, Lab's file"}


@contextmanager
def jupyter(folder: Path, name: str) -> Iterator[Lab]:
    """JupyterLab as `make lab` starts it, for a user with a configuration."""
    env = own_environment(folder)
    files, variables = CONFIGURATIONS[name]
    for file, text in files.items():
        (folder / "config" / file).write_text(text.replace("FOLDER", str(folder)))
    for variable, text in variables.items():
        env[variable] = text.replace("FOLDER", str(folder / "config"))
    log = folder / "lab.log"
    line = [sys.executable, "-m", "tools.lab", FIRST, "--no-browser"]
    line += ["--ServerApp.port=0", "--ServerApp.port_retries=0"]
    with running(line, log, cwd=ROOT, env=env) as process:

        def address() -> str:
            assert process.poll() is None, tail(log)
            found = re.search(r"^\s*(http://127\.0\.0\.1\S+token=\w+)\s*$", log.read_text(), re.M)
            return found[1] if found else ""

        yield Lab(until(address, "an address with a token", lambda: tail(log)), log, process)


def answer(lab: Lab, method: str, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", lab.port, timeout=60)
    connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    response = connection.getresponse()
    response.read()
    return response


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=slow) for n in CONFIGURATIONS]
)
def test_a_jupyter_that_is_set_up_open_is_closed(name: str, tmp_path: Path) -> None:
    """Only the token that was made for this run lets in, from this machine and this page only."""
    with jupyter(tmp_path, name) as lab:
        assert len(lab.token) >= 32
        assert lab.token != GUESS
        assert {address for address, _ in lab.listening()} == {"127.0.0.1"}
        assert lab.get("/api/contents")[0] == 403
        for wrong in ("", GUESS):
            assert lab.get(f"/api/contents?token={wrong}")[0] == 403
            assert answer(lab, "GET", "/api/contents", Authorization=f"token {wrong}").status == 403
        # A password is nobody's way in.
        form = answer(lab, "GET", "/login")
        cookies = SimpleCookie(form.getheader("Set-Cookie", ""))
        xsrf = cookies["_xsrf"].value if "_xsrf" in cookies else ""
        headers = {"Cookie": f"_xsrf={xsrf}", "X_XSRFToken": xsrf}
        tried = answer(lab, "POST", f"/login?password={GUESS}", **headers)
        assert "username" not in (tried.getheader("Set-Cookie") or "")
        assert tried.status != 302
        # Another page, which has no more than the cookie, can read nothing and start nothing.
        page = urlsplit(lab.address)
        opened = answer(lab, "GET", f"{page.path}?{page.query}")
        jar = SimpleCookie()
        for header, text in opened.getheaders():
            if header.lower() == "set-cookie":
                jar.load(text)
        cookie = "; ".join(f"{key}={morsel.value}" for key, morsel in jar.items())
        assert answer(lab, "GET", "/api/contents", Cookie=cookie).status == 200
        read = answer(lab, "GET", "/api/contents", Cookie=cookie, Origin="http://evil.io")
        assert not read.getheader("Access-Control-Allow-Origin")
        assert answer(lab, "POST", "/api/kernels", Cookie=cookie).status == 403
        # Other users of this machine see command lines.
        for process in family(lab.make.pid):
            line: list[str] = []
            with suppress(psutil.Error):  # a short-lived helper
                line = psutil.Process(process.pid).cmdline()
            assert not any(lab.token in part for part in line)
