"""Make `.venv` ready: create it, install the pinned course, fetch the embedded model.

    bootstrap.py               set up; of a finished set-up, look at each file's size
    bootstrap.py --thorough    look at each file's hash as well, and import all that the course does
    bootstrap.py run ARGS      run the environment's Python with ARGS

What is damaged is installed anew. Runs on any Python from 3.11 on with nothing installed. The stamp
is finished last, so a run that was killed is simply repeated: what it left half installed is found.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import csv
import functools
import hashlib
import http.client
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)
# PyTorch's own index of builds without CUDA: 200 MB in place of several GB where no GPU is.
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NEEDED_GB = 3  # GB = 10^9 bytes
STAMP = ".course-installed"
UNFINISHED, WITH_PIP = "unfinished", "unfinished, with pip"
# What a virtual environment consists of. Made anew, it loses these and nothing else.
ENVIRONMENT_PARTS = (
    "bin", "etc", "include", "lib", "lib64", "share", "Include", "Lib", "Scripts", "pyvenv.cfg"
)  # fmt: skip

# Of Python's own variables, those that change neither what is imported nor whether it works. The
# others (PYTHONPATH, PYTHONHOME, PYTHONWARNINGS …) are kept away from the course's programs.
KEPT_PYTHON = {
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONFAULTHANDLER",
    "PYTHONHASHSEED",
    "PYTHONIOENCODING",
    "PYTHONPYCACHEPREFIX",
    "PYTHONUNBUFFERED",
    "PYTHONUTF8",
}
# Of a user's settings for pip, those that say where packages come from and how to get there. The
# others (user, dry-run, target, prefix, no-deps …) would change what is installed, and where.
KEPT_PIP = {
    "cache-dir",
    "cert",
    "client-cert",
    "default-timeout",
    "extra-index-url",
    "find-links",
    "index-url",
    "keyring-provider",
    "no-cache-dir",
    "no-index",
    "proxy",
    "resume-retries",
    "retries",
    "timeout",
    "trusted-host",
    "use-deprecated",
    "use-feature",
}


def environment_dir() -> Path:
    """The virtual environment's folder: `.venv`, or what `COURSE_VENV` names.

    A relative name counts from the course's folder; `~` is the home folder.
    """
    named = os.environ.get("COURSE_VENV", "").strip() or ".venv"
    return ROOT / Path(named).expanduser()


def environment_python(venv_dir: Path) -> Path:
    """The interpreter inside a virtual environment."""
    return venv_dir / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def site_packages(venv_dir: Path) -> Path:
    """Where an environment of this Python keeps its packages."""
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(venv_dir)}))


def fingerprint(root: Path = ROOT) -> str:
    """What an installed environment depends on, as a hash."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt", "tools/bootstrap.py"):
        digest.update((root / name).read_bytes())
    digest.update(f"{platform.python_version()} {root}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def clean_environment() -> dict[str, str]:
    """The process's variables, without those that make Python import or run something else."""
    return {
        name: text
        for name, text in os.environ.items()
        if name in KEPT_PYTHON or not name.startswith(("PYTHON", "__PYVENV"))
    }


@functools.cache
def pip_environment(python: Path) -> dict[str, str]:
    """Variables for pip: of the user's settings, from variables and files, only `KEPT_PIP`."""
    own = clean_environment()
    kept = {f"PIP_{name.replace('-', '_').upper()}" for name in KEPT_PIP} | {"PIP_CONFIG_FILE"}
    env = {name: text for name, text in own.items() if not name.startswith("PIP_") or name in kept}
    told = subprocess.run(
        [python, "-m", "pip", "config", "list"],
        env=env | {"PIP_QUIET": "0", "PIP_VERBOSE": "0"},
        stdout=subprocess.PIPE,
        text=True,
    )
    if told.returncode:
        sys.exit("pip cannot read its settings. Mend what it names above, then try again.")
    found = re.findall(r"^(global|install|:env:)\.([a-z-]+)=(.+)$", told.stdout, flags=re.M)
    for wanted in ("global", "install", ":env:"):  # the later, the stronger
        for section, name, text in found:
            if section == wanted and name in KEPT_PIP:
                env[f"PIP_{name.replace('-', '_').upper()}"] = ast.literal_eval(text)
    return env | {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def works(python: Path) -> bool:
    """Whether an environment's interpreter runs, and is of this Python's version."""
    try:
        told = subprocess.run(
            [python, "-c", "import platform; print(platform.python_version())"],
            capture_output=True,
            text=True,
            env=clean_environment(),
        )
    except OSError:
        return False
    return told.stdout.strip() == platform.python_version()


def pip_works(python: Path) -> bool:
    """Whether pip runs, and is not older than the one that Python brings along."""
    told = subprocess.run(
        [python, "-m", "pip", "--version"], capture_output=True, text=True, env=clean_environment()
    )
    version = re.match(r"pip (\d+)\.(\d+)", told.stdout)
    if told.returncode or not version:
        return False
    try:
        import ensurepip  # Debian has it as a package of its own
    except ImportError:
        return True
    return tuple(map(int, version.groups())) >= tuple(map(int, ensurepip.version().split(".")[:2]))


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver answers."""
    if not shutil.which("nvidia-smi"):
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0


def torch_index(gpu: bool) -> list[str]:
    """pip options that spare a Linux machine without a GPU the CUDA build, if within reach."""
    if gpu or platform.system() != "Linux":
        return []
    try:
        urllib.request.urlopen(f"{TORCH_CPU_INDEX}/torch/", timeout=3).close()
    except (OSError, ValueError, http.client.HTTPException):  # out of reach, or a broken proxy
        return []
    return ["--extra-index-url", TORCH_CPU_INDEX]


def canonical(name: str) -> str:
    """A package's name as all its spellings have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(site: Path) -> dict[str, list[Path]]:
    """The `.dist-info` folders by canonical name; more than one is a killed upgrade's."""
    found: dict[str, list[Path]] = {}
    for info in sorted(site.glob("[!~]*.dist-info")):
        found.setdefault(canonical(info.name.split("-")[0]), []).append(info)
    return found


def is_whole(info: Path, hashes: bool) -> bool:
    """Whether a package's files are those that pip wrote: there, of their sizes, perhaps hashes.

    pip lists them in RECORD. It writes RECORD last, with INSTALLER in it, which the RECORD that
    came with the package does not have.
    """
    try:
        text = (info / "RECORD").read_text(encoding="utf-8")
        rows = list(csv.reader(text.splitlines()))
        listed = {row[0].rpartition("/")[2] for row in rows if info.name in row[0]}
        if not text.endswith("\n") or not {"RECORD", "INSTALLER", "METADATA"} <= listed:
            return False
        for path, digest, size in rows:
            file = info.parent / path
            if size and file.stat().st_size != int(size):
                return False
            if hashes and digest:
                kind, _, expected = digest.partition("=")
                with file.open("rb") as stream:
                    found = hashlib.file_digest(stream, kind).digest()
                if base64.urlsafe_b64encode(found).decode().rstrip("=") != expected:
                    return False
    except (OSError, ValueError, csv.Error):
        return False
    return True


def damaged(site: Path, names: set[str], hashes: bool, absent_is_damage: bool) -> list[str]:
    """Which of the named packages are not whole, or not there."""
    there = installed(site)
    return sorted(
        name
        for name in names
        if (name in there or absent_is_damage)
        and not (len(there.get(name, [])) == 1 and is_whole(there[name][0], hashes))
    )


def pinned() -> set[str]:
    """The packages that the set-up may install, by canonical name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = {canonical(line.split("==")[0]) for line in lines if "==" in line and line[0] != "#"}
    project = re.search(
        r'^name = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M
    )
    return names | {canonical(project[1]), "pip", "setuptools"}


def read_stamp(venv_dir: Path) -> tuple[str, set[str]]:
    """The fingerprint of the finished set-up, and what it installed; "" where none was finished."""
    try:
        key, *names = (venv_dir / STAMP).read_text(encoding="utf-8").splitlines() or [""]
    except (OSError, ValueError):
        return "", set()
    return key, set(names)


def write_stamp(venv_dir: Path, key: str, names: set[str]) -> None:
    """Write the stamp in one step."""
    stamp = venv_dir / STAMP
    if stamp.is_dir() and not stamp.is_symlink():
        shutil.rmtree(stamp)
    partial = stamp.with_suffix(".partial")
    partial.write_text("\n".join([key, *sorted(names), ""]), encoding="utf-8")
    partial.replace(stamp)


def is_ready(venv_dir: Path, hashes: bool = False) -> bool:
    """Whether a set-up of this state of the course was finished, and all it installed is whole."""
    key, names = read_stamp(venv_dir)
    return (
        key == fingerprint()
        and environment_python(venv_dir).exists()
        and not damaged(site_packages(venv_dir), names, hashes, absent_is_damage=True)
    )


def check_place(venv_dir: Path) -> None:
    """Refuse a folder that is somebody's, or that nothing can be written to."""
    hint = "Name a new or an empty folder: COURSE_VENV=FOLDER make lab"
    there = next(path for path in (venv_dir, *venv_dir.parents) if os.path.lexists(path))
    if there.is_symlink() and not there.exists():
        sys.exit(
            f"{there} is a link to {there.readlink()}, which does not exist. Delete the "
            f"link, then run the same command again. {hint}"
        )
    if not there.is_dir():
        sys.exit(
            f"{there} is a file, and the environment needs a folder there. Move the file away, "
            f"then run the same command again. {hint}"
        )
    own = any((venv_dir / name).exists() for name in ("pyvenv.cfg", STAMP, f"{STAMP}.partial"))
    if venv_dir.is_dir() and not own and any(venv_dir.iterdir()):
        sys.exit(
            f"{venv_dir} holds files, and it is not a Python environment. Nothing in it was "
            f"changed. {hint}"
        )
    free = shutil.disk_usage(there).free / 1e9
    if not own and free < NEEDED_GB:
        sys.exit(
            f"The environment needs {NEEDED_GB} GB on the disk of {there}, where {free:.1f} GB "
            "are free. Free some, or name a folder on another disk: COURSE_VENV=FOLDER make lab"
        )


@contextlib.contextmanager
def one_at_a_time(venv_dir: Path) -> Iterator[None]:
    """Wait until no other set-up works on the same environment, and keep others waiting.

    The system lets go of the lock when this process, and what it started, has ended.
    """
    venv_dir.parent.mkdir(parents=True, exist_ok=True)
    # Beside the environment, so that making that anew does not remove it.
    with venv_dir.with_name(f"{venv_dir.name}.lock").open("a") as file:
        if os.name == "nt":
            import msvcrt

            lock = functools.partial(msvcrt.locking, file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            lock = functools.partial(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        waiting = False
        while True:
            try:
                lock()
                break
            except (BlockingIOError, PermissionError):
                if not waiting:
                    print(f"Waiting for another set-up of {venv_dir.name}.", flush=True)
                waiting = True
                time.sleep(1)
            except OSError:  # a file system without locks
                break
        # A pip whose parent was killed works on for a while; the lock is its own, too.
        os.set_inheritable(file.fileno(), True)
        yield


def run(*command: str | Path) -> None:
    """Run a step; leave with its status where it fails."""
    env = pip_environment(Path(command[0]))
    done = subprocess.run([str(part) for part in command], cwd=ROOT, env=env, close_fds=False)
    if done.returncode:
        sys.exit(f"This step failed (status {done.returncode}): {' '.join(map(str, command))}")


def install(python: Path, *arguments: str) -> None:
    """`pip install` with one line of progress in place of hundreds; all of it where it fails."""
    command = [str(python), "-m", "pip", "install", *arguments]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=pip_environment(python),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        close_fds=False,
    )
    lines: list[str] = []
    packages = 0
    for line in process.stdout:
        lines.append(line)
        packages += line.startswith("Collecting ")
        if sys.stdout.isatty() and not line[0].isspace():
            text = f"  {packages} packages; {' '.join(line.split()[:2])}"
            print(f"\r{text[:78]:<78}", end="", flush=True)
    if sys.stdout.isatty():
        print(f"\r{'':<78}\r", end="")
    if process.wait():
        sys.exit(f"{''.join(lines)}\nThe installation failed: {' '.join(command)}")


def remove(path: Path) -> None:
    """Delete a file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def create(venv_dir: Path) -> None:
    """An environment without packages, in place of what there was of one."""
    for name in ENVIRONMENT_PARTS:
        remove(venv_dir / name)
    # The standard library's own command, because where a part of it is missing (Debian has it as
    # a package) it says so.
    # The base's interpreter: ours may be the one in the folder.
    line = [sys._base_executable, "-I", "-m", "venv", "--without-pip", str(venv_dir)]
    if subprocess.run(line, close_fds=False).returncode:
        sys.exit(f"{venv_dir} could not be created (see above).")


def ensure_pip(python: Path, site: Path, finished: bool) -> None:
    """Install pip as Python brings it along, where it is missing, broken or too old.

    Args:
        python: the environment's interpreter.
        site: the environment's packages.
        finished: this came to its end before. Python may bring more along than pip.
    """
    if pip_works(python):
        if finished:
            return
    else:
        for path in (site / "pip", *site.glob("pip-*.dist-info")):
            remove(path)
    done = subprocess.run(
        [str(python), "-I", "-m", "ensurepip", "--upgrade", "--default-pip"],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        close_fds=False,
    )
    if done.returncode:
        sys.exit(
            f"{done.stdout}\npip could not be installed. Where Python comes in parts, as on Debian "
            "and Ubuntu, install python3-venv; else name another Python: "
            "make lab PYTHON=/path/to/python3"
        )


def set_up(venv_dir: Path, anew: bool = False) -> None:
    """Bring the environment up to date, and fetch the model.

    Args:
        venv_dir: the environment's folder.
        anew: install all of it again, whatever is there.
    """
    start = time.monotonic()
    python, site = environment_python(venv_dir), site_packages(venv_dir)
    key, names = read_stamp(venv_dir)
    with_pip = key not in ("", UNFINISHED)
    broken = damaged(site, names or pinned(), hashes=True, absent_is_damage=key == fingerprint())
    if anew or key != fingerprint() or not broken:
        print(f"Setting up {venv_dir.name}: about two minutes and 2 GB, once.", flush=True)
    else:
        shown = ", ".join(broken[:5]) + (f" and {len(broken) - 5} more" if broken[5:] else "")
        print(f"Mending {venv_dir.name}: files are missing or damaged in {shown}.", flush=True)
    venv_dir.mkdir(parents=True, exist_ok=True)
    write_stamp(venv_dir, UNFINISHED, set())  # from here on the folder is known as the course's
    if anew or not works(python):
        create(venv_dir)
        broken, with_pip = [], False
    if {"pip", "setuptools"} & set(broken):
        with_pip = False
    for name in broken:  # pip takes what has no such folder for not installed
        for info in installed(site).get(name, []):
            remove(info)
    for rest in site.glob("~*"):  # a killed pip had set it aside
        remove(rest)
    ensure_pip(python, site, finished=with_pip)
    write_stamp(venv_dir, WITH_PIP, set())
    gpu = has_nvidia_gpu()
    extras = "dev,gpu" if gpu else "dev"
    pins = ["--constraint", "constraints.txt"]
    install(python, *pins, *torch_index(gpu), "--editable", f".[{extras}]")
    run(python, "-m", "course_utils", "prepare")
    # Two packages may have a file in common: such a one would never be found whole.
    there = pinned() & set(installed(site))
    there -= set(damaged(site, there, hashes=False, absent_is_damage=True))
    write_stamp(venv_dir, fingerprint(), there)
    print(f"Ready after {(time.monotonic() - start) / 60:.1f} minutes.\n", flush=True)


def imports(python: Path) -> bool:
    """Whether all that the course imports can be imported; what cannot is printed."""
    line = [str(python), "-m", "course_utils", "doctor", "--imports"]
    return subprocess.run(line, cwd=ROOT, env=clean_environment()).returncode == 0


def main(arguments: Sequence[str] = ()) -> None:
    """The command line."""
    if sys.version_info < OLDEST_PYTHON:
        sys.exit(
            f"The course needs Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or later; "
            f"this is {platform.python_version()} ({sys.executable}).\n"
            "Get one from https://www.python.org/downloads/ or your package manager, then:\n"
            "  make lab PYTHON=/path/to/python3"
        )
    if not Path(os.path.expanduser("~")).is_absolute():  # noqa: PTH111 (the other one raises)
        sys.exit(
            "There is no home folder here, and caches and settings need one. Name it: "
            "HOME=FOLDER make lab"
        )
    venv_dir = environment_dir()
    python = environment_python(venv_dir)
    if arguments[:1] == ["run"]:
        line = [str(python), *arguments[1:]]
        if os.name == "nt":  # there, a replaced process would not be waited for
            sys.exit(subprocess.run(line, env=clean_environment()).returncode)
        os.execve(line[0], line, clean_environment())
    thorough = "--thorough" in arguments
    if not thorough and is_ready(venv_dir):
        return
    check_place(venv_dir)
    with one_at_a_time(venv_dir):
        check_place(venv_dir)
        finished = is_ready(venv_dir, hashes=thorough) and works(python) and pip_works(python)
        if not finished:
            set_up(venv_dir)
        if not thorough:
            return
        if finished:
            run(python, "-m", "course_utils", "prepare")
            # What damages no file that pip has written: a stray module, a broken compiled file.
            if not imports(python):
                set_up(venv_dir, anew=True)
                finished = False
        if not finished and not imports(python):
            sys.exit("The environment was set up, and the course cannot be imported (see above).")


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # a folder's name may have letters the screen has not
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("\nStopped. Run the same command again to go on.")
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        sys.exit(f"The set-up cannot go on: {error.strerror}{where}.")
