"""`make replicate-memory`: the libraries of November 2024, and the published tables predicted.

They are installed once, into `build/libraries-of-2024`, for `benchmarks/tables_2024`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

from tools import bootstrap

ROOT = Path(__file__).resolve().parent.parent

REQUIREMENTS = ROOT / "benchmarks" / "tables_2024" / "requirements.txt"
FOLDER = ROOT / "build" / "libraries-of-2024"


def prepare(folder: Path = FOLDER) -> Path:
    """Make the environment if it is not there or the list has changed; returns its Python."""
    python = bootstrap.environment_python(folder)
    stamp = folder / ".installed"
    key = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == key and python.exists():
        return python
    print("Setting up the libraries of November 2024: about two minutes, once.", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    index = bootstrap.torch_index(bootstrap.has_nvidia_gpu())
    bootstrap.install(python, *index, "--requirement", str(REQUIREMENTS))
    stamp.write_text(key)
    return python


def main() -> None:
    """Prepare, then predict."""
    python = prepare()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    program = ROOT / "benchmarks" / "tables_2024" / "published_tables.py"
    sys.exit(subprocess.run([python, program, *sys.argv[1:]], env=environment).returncode)


if __name__ == "__main__":
    main()
