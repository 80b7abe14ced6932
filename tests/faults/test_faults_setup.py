"""Set-up: killed, damaged, misdirected, twice at once. On a small project, with the real bootstrap.

The project has `tools/bootstrap.py` and the `Makefile` of the course, a package of its own in place
of the course's, and a few real packages to install, whose wheels are fetched once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import ROOT
from killing import killed_at_random

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the Makefile is for Linux and macOS")
slow = pytest.mark.slow

# Three of them bring programs along.
PACKAGES = ("idna", "jsonpointer", "markdown-it-py", "mdurl", "pygments", "tabulate")
MODULES = ("idna", "jsonpointer", "markdown_it", "mdurl", "pygments", "tabulate")

PROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "course-utils"
version = "0.1.0"
"""
# Builds the project's wheel without anything installed.
BACKEND = """\
import zipfile
from pathlib import Path

NAME = "course_utils-0.1.0"


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    info = f"{NAME}.dist-info"
    needs = Path("needs.txt").read_text().split()
    metadata = "Metadata-Version: 2.1\\nName: course-utils\\nVersion: 0.1.0\\n"
    metadata += "Provides-Extra: dev\\n"
    metadata += "".join(f"Requires-Dist: {need}\\n" for need in needs)
    files = {
        "course_stand_in.pth": f"{Path.cwd()}\\n",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    name = f"{NAME}-py3-none-any.whl"
    with zipfile.ZipFile(Path(wheel_directory) / name, "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{p},,\\n" for p in [*files, f"{info}/RECORD"]))
    return name
"""
PACKAGE = f"""\
import importlib, sys
if sys.argv[1] == "prepare":
    print("Ready: the stand-in.")
else:
    for name in {MODULES}:
        try:
            importlib.import_module(name)
        except Exception as error:
            sys.exit(f"{{name}}: {{error}}")
    print("prefix", sys.prefix)
"""


def listing(folder: Path) -> dict[str, str]:
    """Each file of an environment with its hash; what is compiled, and the stamp, left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".pyc" and path.name != ".course-installed"
    }


class Project:
    """A project whose environment is made by the course's set-up."""

    def __init__(self, root: Path, wheels: Path) -> None:
        self.root = root
        self.home = root.parent / "home"
        self.home.mkdir(exist_ok=True)
        self.venv = root / ".venv"
        (root / "tools").mkdir(parents=True)
        (root / "course_utils").mkdir()
        shutil.copy(ROOT / "tools" / "bootstrap.py", root / "tools")
        shutil.copy(ROOT / "Makefile", root)
        pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        chosen = [pin for pin in pins if pin.lower().split("==")[0] in PACKAGES]
        assert len(chosen) == len(PACKAGES)
        (root / "constraints.txt").write_text("\n".join(chosen) + "\n")
        (root / "needs.txt").write_text("\n".join(PACKAGES))
        (root / "pyproject.toml").write_text(PROJECT)
        (root / "backend.py").write_text(BACKEND)
        (root / "course_utils" / "__init__.py").touch()
        (root / "course_utils" / "__main__.py").write_text(PACKAGE)
        dropped = ("MAKE", "MFLAGS", "COURSE_VENV", "PIP_", "PYTHON")
        kept = {name: text for name, text in os.environ.items() if not name.startswith(dropped)}
        # Where packages come from is the user's to say, and that is how these tests say it.
        self.env = kept | {
            "HOME": str(self.home),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
            "PIP_CACHE_DIR": str(root.parent / "pip-cache"),
        }

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def site(self) -> Path:
        return next(self.venv.glob("lib/python*/site-packages"))

    @property
    def stamp(self) -> Path:
        return self.venv / ".course-installed"

    def info(self, name: str) -> Path:
        return next(self.site.glob(f"{name.replace('-', '_')}-*.dist-info"))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-I", str(self.root / "tools" / "bootstrap.py"), *arguments]

    def run(
        self, *command: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A program in the project's folder; what it prints in `stdout`."""
        return subprocess.run(
            command,
            cwd=cwd or self.root,
            env={**self.env, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )

    def set_up(
        self, *arguments: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.run(*self.command(*arguments), env=env)

    def unfinished(self) -> None:
        """As a kill before the end leaves the stamp."""
        self.stamp.write_text("unfinished\n")


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages' wheels, as the course pins them."""
    folder = tmp_path_factory.mktemp("wheels")
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    chosen = [pin for pin in pins if pin.lower().split("==")[0] in PACKAGES]
    line = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), *chosen]
    subprocess.run(line, check=True)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Project:
    """A project that is set up, with a copy of its environment, and what that consists of."""
    project = Project(tmp_path_factory.mktemp("setup") / "course", wheels)
    done = project.set_up()
    assert done.returncode == 0, done.stdout
    assert "Ready" in done.stdout
    shutil.copytree(project.venv, project.root.parent / "copy", symlinks=True)
    return project


@pytest.fixture
def project(made: Project) -> Project:
    """The project as the set-up left it."""
    copy = made.root.parent / "copy"
    remove(made.venv)
    shutil.copytree(copy, made.venv, symlinks=True)
    return made


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def assert_whole(project: Project, done: subprocess.CompletedProcess[str]) -> None:
    """The set-up went well, and the environment is as one that was made undisturbed."""
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout
    wanted = listing(project.root.parent / "copy")
    found = listing(project.venv)
    different = [path for path, digest in wanted.items() if found.get(path) != digest]
    assert not different, done.stdout
    assert not list(project.site.glob("~*"))
    for program in ("markdown-it", "pygmentize", "jsonpointer", "tabulate"):
        ran = project.run(str(project.venv / "bin" / program), "--help")
        assert ran.returncode == 0, ran.stdout
    again = project.set_up()  # and it is known as finished
    assert (again.returncode, again.stdout) == (0, "")


# --- a place that is somebody's ---------------------------------------------------------------


def photos(project: Project, folder: Path) -> str:
    folder.mkdir()
    (folder / "summer.jpg").write_bytes(b"a picture")
    return str(folder)


def a_file(project: Project, folder: Path) -> str:
    folder.write_text("my notes")
    return str(folder)


def below_a_file(project: Project, folder: Path) -> str:
    folder.write_text("my notes")
    return str(folder / "env")


def dangling(project: Project, folder: Path) -> str:
    folder.symlink_to(folder.parent / "gone")
    return str(folder)


def link_to_photos(project: Project, folder: Path) -> str:
    photos(project, folder.with_name("album"))
    folder.symlink_to(folder.with_name("album"))
    return str(folder)


def the_clone(project: Project, folder: Path) -> str:
    return "."


def above_the_clone(project: Project, folder: Path) -> str:
    return ".."


def the_home(project: Project, folder: Path) -> str:
    (project.home / "letters.txt").write_text("dear")
    return "~"


def the_root(project: Project, folder: Path) -> str:
    return "/"


@pytest.mark.parametrize(
    "place",
    [
        photos,
        a_file,
        below_a_file,
        dangling,
        link_to_photos,
        the_clone,
        above_the_clone,
        the_home,
        the_root,
    ],
    ids=lambda place: place.__name__,
)
@pytest.mark.parametrize("arguments", [[], ["--thorough"]], ids=["look", "thorough"])
def test_a_place_that_is_somebodys_is_left_alone(
    place: Callable, arguments: list[str], made: Project, tmp_path: Path
) -> None:
    """Nothing is changed there; the folder is named, and what to name instead."""
    named = place(made, tmp_path / "mine")
    before = listing(tmp_path) | listing(made.root) | listing(made.home)
    done = made.set_up(*arguments, env={"COURSE_VENV": named})
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    shown = {"~": made.home, ".": made.root, "..": made.root}.get(named, tmp_path / "mine")
    assert str(shown if named != "/" else "/ holds") in done.stdout
    assert "COURSE_VENV=FOLDER" in done.stdout
    assert listing(tmp_path) | listing(made.root) | listing(made.home) == before


@pytest.mark.parametrize("named", ["", " "], ids=["empty", "blank"])
def test_an_empty_name_is_the_usual_place(named: str, project: Project) -> None:
    """Not the folder that the set-up runs in."""
    before = listing(project.root)
    done = project.set_up(env={"COURSE_VENV": named})
    assert (done.returncode, done.stdout) == (0, "")
    assert listing(project.root) == before


@pytest.mark.parametrize(
    "named",
    [
        "my env",
        pytest.param("~/an env", marks=slow),
        pytest.param("below/env", marks=slow),
        pytest.param("ümlaut's $HOME", marks=slow),
    ],
)
def test_any_name_of_a_new_folder_does(named: str, project: Project) -> None:
    """With a blank, with `~`, relative: what `make` runs is the Python that was set up."""
    env = {"COURSE_VENV": named}
    for target in ("setup", "doctor"):
        done = project.run("make", target, f"PYTHON={sys.executable}", env=env)
        assert done.returncode == 0, done.stdout
    folder = project.home / named[2:] if named.startswith("~/") else project.root / named
    assert f"prefix {folder}" in done.stdout
    assert not (project.root / "~").exists()
    remove(folder)


@slow
def test_files_beside_an_environment_stay(project: Project) -> None:
    """Somebody has made an environment right in a folder with his files; its Python is gone."""
    (project.venv / "thesis.md").write_text("years of work")
    project.python.unlink()
    assert_whole(project, project.set_up())
    assert (project.venv / "thesis.md").read_text() == "years of work"


# --- what a kill leaves behind ----------------------------------------------------------------


def half_a_pip(project: Project) -> None:
    """`import pip` succeeds; there is no more of it."""
    shutil.rmtree(project.site / "pip" / "_internal")


def pip_without_metadata(project: Project) -> None:
    shutil.rmtree(project.info("pip"))
    shutil.rmtree(project.site / "pip" / "_vendor" / "rich")


def half_a_setuptools(project: Project) -> None:
    """Python 3.11 brings it along; its pip was there already when the kill came."""
    folder = project.site / "setuptools"
    if not folder.exists():
        pytest.skip("this Python brings no setuptools along")
    shutil.rmtree(project.info("setuptools"))
    shutil.rmtree(folder / "command")


def only_folders(project: Project) -> None:
    """Killed before the interpreter was there."""
    for path in project.venv.iterdir():
        if path.name != ".course-installed":
            remove(path)
    (project.venv / "bin").mkdir()


def empty_record(project: Project) -> None:
    """As pip leaves it between METADATA and the end; the package's program is not there either."""
    (project.info("tabulate") / "RECORD").write_bytes(b"")
    (project.venv / "bin" / "tabulate").unlink()


def no_record(project: Project) -> None:
    (project.info("pygments") / "RECORD").unlink()
    (project.site / "pygments" / "lexer.py").write_bytes(b"")


def the_wheels_record(project: Project) -> None:
    """What was unpacked last is the RECORD of the package itself, without programs."""
    info = project.info("jsonpointer")
    lines = (info / "RECORD").read_text().splitlines(keepends=True)
    kept = [line for line in lines if "INSTALLER" not in line and "bin/" not in line]
    (info / "RECORD").write_text("".join(kept))
    (info / "INSTALLER").unlink()
    (project.venv / "bin" / "jsonpointer").unlink()


def half_a_record(project: Project) -> None:
    record = project.info("markdown-it-py") / "RECORD"
    record.write_bytes(record.read_bytes()[: record.stat().st_size // 2])


def only_metadata(project: Project) -> None:
    for path in project.info("idna").iterdir():
        if path.name != "METADATA":
            remove(path)


def files_without_metadata(project: Project) -> None:
    shutil.rmtree(project.info("mdurl"))
    (project.site / "mdurl" / "_parse.py").unlink()


def killed_upgrade(project: Project) -> None:
    """An old version's folder has been set aside, and the new one is not there."""
    (project.site / "pygments").rename(project.site / "~ygments")
    info = project.info("pygments")
    info.rename(info.with_name("~" + info.name[1:]))


def two_versions(project: Project) -> None:
    info = project.info("tabulate")
    shutil.copytree(info, info.with_name("tabulate-0.1.dist-info"))
    (project.site / "tabulate.py").exists() and (project.site / "tabulate.py").unlink()


def zeros(project: Project) -> None:
    """A power cut: the size was written, the content was not."""
    file = project.site / "idna" / "core.py"
    file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize(
    "left",
    [
        half_a_pip,
        empty_record,
        *(
            pytest.param(left, marks=slow)
            for left in (
                the_wheels_record,
                pip_without_metadata,
                half_a_setuptools,
                only_folders,
                no_record,
                half_a_record,
                only_metadata,
                files_without_metadata,
                killed_upgrade,
                two_versions,
                zeros,
            )
        ),
    ],
    ids=lambda left: left.__name__,
)
def test_what_a_kill_leaves_is_mended(left: Callable, project: Project) -> None:
    """Without a finished stamp, the next run finds it and ends well."""
    project.unfinished()
    left(project)
    assert_whole(project, project.set_up())


@slow
def test_twenty_random_kills(made: Project, wheels: Path, tmp_path: Path) -> None:
    """Killed at twenty moments, from a new folder and from where the last kill stopped."""
    rng = random.Random(15)
    remove(made.venv)
    start = time.monotonic()
    done = made.set_up()
    longest = time.monotonic() - start
    assert_whole(made, done)
    killed = 0
    while killed < 20:
        if rng.random() < 0.5:
            remove(made.venv)
        ended, _ = killed_at_random(made.command(), rng, longest, env=made.env, cwd=made.root)
        killed += ended
        if not ended or rng.random() < 0.5:
            assert_whole(made, made.set_up())
            made.unfinished()
    assert_whole(made, made.set_up())


@slow
def test_a_killed_set_up_whose_pip_lives_on(project: Project) -> None:
    """Only the set-up is killed, as by a memory limit: the next one waits for what it started."""
    remove(project.venv)
    first = subprocess.Popen(
        project.command(), cwd=project.root, env=project.env, stdout=subprocess.DEVNULL
    )
    time.sleep(3)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert_whole(project, project.set_up())


def test_two_set_ups_at_once(project: Project) -> None:
    """The second waits for the first, and then has nothing to do."""
    remove(project.venv)
    with contextlib.ExitStack() as stack:
        started = []
        for _ in range(2):
            started.append(
                stack.enter_context(
                    subprocess.Popen(
                        project.command(),
                        cwd=project.root,
                        env=project.env,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        text=True,
                    )
                )
            )
            time.sleep(1)
        told = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    assert sum("Ready after" in text for text in told) == 1
    assert sum("Waiting for another set-up" in text for text in told) == 1
    assert_whole(project, project.set_up())


@pytest.mark.parametrize("signal_name", ["SIGINT", pytest.param("SIGTERM", marks=slow)])
def test_stopped_by_hand(signal_name: str, project: Project) -> None:
    """Ctrl-C, or an end that is asked for: no traceback, and the lock is free."""
    project.unfinished()
    process = subprocess.Popen(
        project.command(),
        cwd=project.root,
        env=project.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert "Setting up" in process.stdout.readline()
    os.killpg(process.pid, signal.Signals[signal_name])
    assert "Traceback" not in process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert_whole(project, project.set_up())


# --- damaged after it was finished ------------------------------------------------------------


def package_deleted(project: Project) -> None:
    shutil.rmtree(project.site / "pygments")


def package_and_metadata_deleted(project: Project) -> None:
    shutil.rmtree(project.site / "idna")
    shutil.rmtree(project.info("idna"))


def package_truncated(project: Project) -> None:
    file = project.site / "markdown_it" / "main.py"
    file.write_bytes(file.read_bytes()[:100])


def program_deleted(project: Project) -> None:
    (project.venv / "bin" / "pygmentize").unlink()


def python_deleted(project: Project) -> None:
    for path in (project.venv / "bin").glob("python*"):
        path.unlink()


def python_dangling(project: Project) -> None:
    """The Python that the environment was made of has been upgraded away."""
    for path in (project.venv / "bin").glob("python*"):
        path.unlink()
        path.symlink_to("/nowhere/python3")


def stamp_a_folder(project: Project) -> None:
    project.stamp.unlink()
    project.stamp.mkdir()
    (project.stamp / "file").touch()


def stamp_is_noise(project: Project) -> None:
    project.stamp.write_bytes(bytes(range(256)))


def stamp_empty(project: Project) -> None:
    project.stamp.write_bytes(b"")


@pytest.mark.parametrize(
    "damage",
    [
        package_truncated,
        *(
            pytest.param(damage, marks=slow)
            for damage in (
                package_deleted,
                stamp_a_folder,
                package_and_metadata_deleted,
                program_deleted,
                python_deleted,
                python_dangling,
                stamp_is_noise,
                stamp_empty,
            )
        ),
    ],
    ids=lambda damage: damage.__name__,
)
def test_what_was_damaged_later_is_mended(damage: Callable, project: Project) -> None:
    """A finished environment is looked at each time."""
    damage(project)
    assert_whole(project, project.set_up())


def bytes_flipped(project: Project) -> None:
    """Of the right size: only the hash tells."""
    file = project.site / "mdurl" / "_parse.py"
    file.write_bytes(file.read_bytes().replace(b"def ", b"dfe "))


def compiled_file_cut(project: Project) -> None:
    """pip lists compiled files without a size."""
    file = next((project.site / "idna" / "__pycache__").glob("core.*.pyc"))
    file.write_bytes(file.read_bytes()[:60])


def stray_module(project: Project) -> None:
    """A file of nobody's takes a package's name."""
    (project.site / "pygments.py").touch()
    (project.site / "sitecustomize.py").write_text("import sys\nsys.modules['mdurl'] = None\n")


@slow
@pytest.mark.parametrize(
    "damage",
    [
        bytes_flipped,
        compiled_file_cut,
        stray_module,
        package_and_metadata_deleted,
        half_a_pip,
    ],
    ids=lambda damage: damage.__name__,
)
def test_make_setup_looks_closer(damage: Callable, project: Project) -> None:
    """`make setup` compares hashes and imports everything, and mends what that finds."""
    damage(project)
    done = project.run("make", "setup", f"PYTHON={sys.executable}")
    assert_whole(project, done)
    done = project.run("make", "doctor", f"PYTHON={sys.executable}")
    assert done.returncode == 0, done.stdout


@slow
def test_an_old_pip_is_replaced(project: Project) -> None:
    """One that is older than what Python brings along cannot install the course."""
    project.unfinished()
    file = project.site / "pip" / "__init__.py"
    file.write_text('__version__ = "9.0.1"\n\n\ndef main(args=None):\n    raise SystemExit(2)\n')
    assert_whole(project, project.set_up())


# --- a user's own settings --------------------------------------------------------------------


def shadowing(folder: Path) -> dict[str, str]:
    """Modules of the names of Python's and pip's own, first on the path."""
    for name in ("json", "venv", "pip", "idna", "course_utils", "sitecustomize"):
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    return {"PYTHONPATH": str(folder)}


def pip_file(folder: Path, text: str) -> dict[str, str]:
    (folder / "pip.conf").write_text(text)
    return {"PIP_CONFIG_FILE": str(folder / "pip.conf")}


SETTINGS: dict[str, Callable[[Path], dict[str, str]]] = {
    "PIP_USER": lambda folder: {"PIP_USER": "1"},
    "PIP_DRY_RUN": lambda folder: {"PIP_DRY_RUN": "1"},
    "PIP_TARGET": lambda folder: {"PIP_TARGET": str(folder / "target")},
    "PIP_PREFIX": lambda folder: {"PIP_PREFIX": str(folder / "prefix")},
    "PIP_ROOT": lambda folder: {"PIP_ROOT": str(folder / "root")},
    "PIP_NO_DEPS": lambda folder: {"PIP_NO_DEPS": "1"},
    "PIP_REQUIRE_HASHES": lambda folder: {"PIP_REQUIRE_HASHES": "1"},
    "PIP_NO_BINARY": lambda folder: {"PIP_NO_BINARY": ":all:"},
    "PIP_PYTHON": lambda folder: {"PIP_PYTHON": "/nowhere/python"},
    "PIP_QUIET": lambda folder: {"PIP_QUIET": "3"},
    "PIP_CONSTRAINT": lambda folder: {"PIP_CONSTRAINT": str(folder / "not-there.txt")},
    "file: user": lambda folder: pip_file(folder, "[install]\nuser = true\n"),
    "file: target": lambda folder: pip_file(folder, f"[global]\ntarget = {folder}/target\n"),
    "PYTHONWARNINGS": lambda folder: {"PYTHONWARNINGS": "error"},
    "PYTHONPATH": shadowing,
    "PYTHONHOME": lambda folder: {"PYTHONHOME": "/nowhere"},
    "PYTHONINSPECT": lambda folder: {"PYTHONINSPECT": "1"},
    "PYTHONSAFEPATH": lambda folder: {"PYTHONSAFEPATH": "1"},
    "PYTHONOPTIMIZE": lambda folder: {"PYTHONOPTIMIZE": "2"},
}
QUICK = {"PIP_USER", "PYTHONPATH"}


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=slow) for n in SETTINGS]
)
def test_a_users_settings_do_not_misdirect(name: str, project: Project, tmp_path: Path) -> None:
    """Packages are missing, and the set-up puts them where they belong; `make` finds them there."""
    for package in ("idna", "tabulate"):
        remove(project.info(package))
    remove(project.site / "idna")
    env = SETTINGS[name](tmp_path)
    done = project.run("make", "doctor", env=env)
    assert done.returncode == 0, done.stdout
    assert f"prefix {project.venv}" in done.stdout
    assert_whole(project, done)
    for place in ("target", "prefix", "root"):
        assert not (tmp_path / place).exists()


@slow
@pytest.mark.parametrize("where", ["variable", "file"])
def test_a_users_mirror_goes_on_working(where: str, project: Project, wheels: Path) -> None:
    """Where packages come from is the user's to say; the file's other settings are left out."""
    remove(project.info("idna"))
    env = {}
    if where == "file":
        file = project.home / ".config" / "pip" / "pip.conf"
        file.parent.mkdir(parents=True)
        file.write_text(
            f"[global]\nfind-links = {wheels}\n[install]\nno-index = true\nuser = true\n"
        )
        env = {"PIP_NO_INDEX": "", "PIP_FIND_LINKS": ""}
    done = project.set_up(env=env)
    if where == "file":
        shutil.rmtree(project.home / ".config")
    assert_whole(project, done)


@slow
def test_a_broken_settings_file_is_named(project: Project, tmp_path: Path) -> None:
    """pip's own words for it, and no traceback."""
    remove(project.info("idna"))
    done = project.set_up(env=pip_file(tmp_path, "no section = 1\n"))
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    assert "pip.conf" in done.stdout
    assert "Mend what it names" in done.stdout


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root can be another")
def test_no_home_folder(made: Project) -> None:
    """A container's user without an entry and without HOME: what is missing is said."""
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is not installed")
    line = ["setpriv", "--reuid=54321", "--clear-groups", "env", "-u", "HOME"]
    # Root's folders are closed to others; the base Python has to be open to them.
    python = next((p for p in ("/usr/bin/python3",) if Path(p).exists()), None)
    if python is None:
        pytest.skip("no Python that another user may run")
    program = "import sys; sys.argv = sys.argv[1:]; exec(sys.stdin.read())"
    source = (made.root / "tools" / "bootstrap.py").read_text()
    source = source.replace("Path(__file__).resolve()", "Path('/tmp/course/tools/bootstrap.py')")
    done = subprocess.run(
        [*line, python, "-I", "-c", program, "bootstrap.py"],
        input=source,
        cwd="/",
        env={"PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    assert "HOME=FOLDER" in done.stdout
