"""Make `.venv` ready: create it, install the pinned course, fetch the embedded model.

Runs on any Python from 3.11 on with nothing installed. A second run finds its stamp and does
nothing. The stamp is written last, so a run that was killed is simply repeated.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)
# PyTorch's own index of builds without CUDA: 200 MB in place of several GB where no GPU is.
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def environment_dir() -> Path:
    """The virtual environment's folder: `.venv`, or what `COURSE_VENV` names."""
    return Path(os.environ.get("COURSE_VENV", ROOT / ".venv"))


def environment_python(venv_dir: Path) -> Path:
    """The interpreter inside a virtual environment."""
    return venv_dir / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def fingerprint(root: Path = ROOT) -> str:
    """What an installed environment depends on, as a hash."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt", "tools/bootstrap.py"):
        digest.update((root / name).read_bytes())
    digest.update(f"{platform.python_version()} {root}".encode())
    return digest.hexdigest()


def is_usable(venv_dir: Path) -> bool:
    """Whether an environment is there and of this Python's version."""
    try:
        told = subprocess.run(
            [
                environment_python(venv_dir),
                "-c",
                "import pip, platform as p; print(p.python_version())",
            ],
            capture_output=True,
            text=True,
        )
    except OSError:
        return False
    return told.stdout.strip() == platform.python_version()


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
    except OSError:
        return []
    return ["--extra-index-url", TORCH_CPU_INDEX]


def run(*command: str | Path) -> None:
    """Run a step; leave with its status where it fails."""
    done = subprocess.run([str(part) for part in command], cwd=ROOT)
    if done.returncode:
        sys.exit(f"This step failed (status {done.returncode}): {' '.join(map(str, command))}")


def install(python: Path, *arguments: str) -> None:
    """`pip install` with one line of progress in place of hundreds; all of it where it fails."""
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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


def main() -> None:
    """Bring the environment up to date."""
    if sys.version_info < OLDEST_PYTHON:
        sys.exit(
            f"The course needs Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or later; "
            f"this is {platform.python_version()} ({sys.executable}).\n"
            "Get one from https://www.python.org/downloads/ or your package manager, then:\n"
            "  make lab PYTHON=/path/to/python3"
        )
    venv_dir = environment_dir()
    python = environment_python(venv_dir)
    stamp = venv_dir / ".course-installed"
    key = fingerprint()
    if stamp.exists() and stamp.read_text() == key and python.exists():
        return

    start = time.monotonic()
    print(f"Setting up {venv_dir.name}: about two minutes and 2 GB, once.", flush=True)
    stamp.unlink(missing_ok=True)
    if not is_usable(venv_dir):
        venv.create(venv_dir, with_pip=True, clear=True)
    gpu = has_nvidia_gpu()
    extras = "dev,gpu" if gpu else "dev"
    pins = ["--constraint", "constraints.txt"]
    install(python, *pins, *torch_index(gpu), "--editable", f".[{extras}]")
    run(python, "-m", "course_utils", "prepare")
    partial = stamp.with_suffix(".partial")
    partial.write_text(key)
    partial.replace(stamp)
    print(f"Ready after {(time.monotonic() - start) / 60:.1f} minutes.\n", flush=True)


if __name__ == "__main__":
    main()
