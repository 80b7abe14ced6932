"""`python -m course_utils doctor`: can the course run here, and with what?

A table of what this machine has, what the course makes of it, and what is missing with the way
to get it. Exit status 1 where the course could not run.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.metadata
import json
import platform
import shutil
import textwrap
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from course_utils.catalog import catalog

if TYPE_CHECKING:
    from course_utils.hardware import Hardware

# The other modules of the course are imported late: with a package missing they may not import,
# and the report has to say so.

OK, NOTE, MISSING = "ok", "note", "MISSING"
_LEAST_RAM_GB = 8.0
_SHOWN = 0.9  # of what a machine is sold with, the system shows a little less
_LEAST_DISK_GB = 2.0
_ACCESS_SECONDS = 10
# Left out of the table, though checked: what a learner has no use for seeing.
_QUIET_PACKAGES = {"filelock", "packaging", "platformdirs", "psutil", "numpy", "tqdm", "jinja2"}


@dataclass(frozen=True)
class Finding:
    """A row of the report. `fix` says how to get what is missing."""

    part: str
    item: str
    value: str
    status: str = OK
    fix: str = ""


def _machine(hw: Hardware) -> list[Finding]:
    """What there is, held against the least that the course needs."""
    from course_utils.hardware import shown_features

    features = ", ".join(shown_features(hw)) or "none that matter here"
    python = Finding("machine", "Python", platform.python_version())
    ram = Finding("machine", "RAM", f"{hw.ram_gb:.1f} GB, {hw.ram_free_gb:.1f} GB free")
    if hw.ram_gb < _SHOWN * _LEAST_RAM_GB:
        ram = replace(ram, status=MISSING, fix=f"at least {_LEAST_RAM_GB:.0f} GB")
    disk = Finding("machine", "disk", f"{hw.disk_free_gb:.0f} GB free")
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
    """What the course makes of the machine."""
    from course_utils.hardware import pick_attention, pick_dtype, tier

    dtype = pick_dtype(hw)
    rows = {
        "tier": tier(hw),
        "dtype": dtype._replace(value=str(dtype.value).removeprefix("torch.")),
        "attention": pick_attention(hw),
    }
    return [Finding("choice", item, f"{c.value}: {c.reason}") for item, c in rows.items()]


def _packages(requirements: list[Requirement]) -> list[Finding]:
    """What is installed against what the package asks for."""
    rows = []
    for requirement in requirements:
        asked = f"{requirement.name}{requirement.specifier}"
        # Quotes, because a shell reads > otherwise.
        fix = f'pip install "{asked}"'
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            rows.append(Finding("package", requirement.name, "not installed", MISSING, fix))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            value = f"{version}, not {requirement.specifier}"
            rows.append(Finding("package", requirement.name, value, MISSING, fix))
        elif requirement.name not in _QUIET_PACKAGES:
            rows.append(Finding("package", requirement.name, version))
    return rows


def _requirements() -> list[Requirement]:
    """The course's own requirements, those of extras left out."""
    listed = importlib.metadata.requires("course-utils") or []
    found = [Requirement(line) for line in listed]
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]


def _models() -> list[Finding]:
    """The embedded models: there, or how to get them."""
    from course_utils import embedded

    rows = []
    for name, entry in catalog().embedded.items():
        item = entry.stands_for.split("/")[-1]
        if embedded.is_ready(name):
            rows.append(Finding("model", item, f"ready, embedded ({entry.note})"))
        else:
            rows.append(
                Finding(
                    "model",
                    item,
                    f"not fetched yet ({entry.download_mb} MB)",
                    MISSING,
                    "python -m course_utils prepare",
                )
            )
    return rows


def _hub() -> list[Finding]:
    """Whether the hub answers, and which gated models this machine may have."""
    from course_utils import hub

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
            fix = f"accept it on https://huggingface.co/{model_id}, then `hf auth login`"
            rows.append(Finding("hub", model_id, value, NOTE, fix))
    return rows


def _tools() -> list[Finding]:
    """Programs that part of the course can use."""
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


def examine(hardware: Hardware | None = None) -> list[Finding]:
    """Every finding, in the order of the report; only the packages where one is missing."""
    packages = _packages(_requirements())
    if not can_run(packages):
        return packages
    from course_utils.hardware import detect

    hw = hardware or detect()
    return [*_machine(hw), *_choices(hw), *packages, *_tools(), *_models(), *_hub()]


def can_run(findings: list[Finding]) -> bool:
    """Whether nothing is missing that the course cannot do without."""
    return not any(finding.status == MISSING for finding in findings)


def report(findings: list[Finding], width: int | None = None) -> str:
    """The findings as a plain-text table with a verdict below."""
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
    """`python -m course_utils doctor`."""
    findings = examine()
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        print(report(findings))
    return 0 if can_run(findings) else 1
