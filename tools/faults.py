"""Run the faults of `tests/faults` and keep how many were tried and survived.

faults.py [quick | slow] [pytest's own options]

The quick ones are those that `make test` tries, too; both parts are run where none is named. The
numbers go to `benchmarks/results/faults.json`, which the README is made from.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

from course_utils._core.files import replace_file

ROOT = Path(__file__).resolve().parent.parent

FAULTS = ROOT / "tests" / "faults"
REPORT = ROOT / "build" / "faults.xml"
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"
PARTS = ("quick", "slow")


def counted(report: Path) -> dict[str, dict[str, int]]:
    """Faults tried, survived and left out, by test module, from pytest's JUnit report."""
    found: dict[str, Counter[str]] = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        kind = case.get("classname", "").rpartition(".")[2].removeprefix("test_")
        outcomes = {child.tag for child in case} & {"failure", "error", "skipped"}
        counts = found.setdefault(kind, Counter(tried=0, survived=0, skipped=0))
        if "skipped" in outcomes:
            counts["skipped"] += 1
            continue
        counts["tried"] += 1
        counts["survived"] += not outcomes
    return {kind: dict(counts) for kind, counts in sorted(found.items())}


def run(part: str, options: list[str]) -> int:
    """Run a part, quick or slow, and keep its numbers; pytest's status."""
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    chosen = "not slow" if part == "quick" else "slow"
    command = [sys.executable, "-m", "pytest", str(FAULTS), "-m", chosen, f"--junitxml={REPORT}"]
    status = subprocess.run([*command, *options], cwd=ROOT).returncode
    kinds = counted(REPORT)
    names = ("tried", "survived", "skipped")
    total = {name: sum(counts[name] for counts in kinds.values()) for name in names}
    print(f"{part}: {total['tried']} faults tried, {total['survived']} survived.")
    parts = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    parts[part] = {
        **total,
        "kinds": kinds,
        "python": platform.python_version(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "date": datetime.date.today().isoformat(),
        "command": f"python -m tools.faults {part}",
    }
    replace_file(RESULTS, json.dumps(parts, indent=1) + "\n")
    return status


def main() -> int:
    """The command line."""
    parts = [part for part in sys.argv[1:2] if part in PARTS] or list(PARTS)
    options = sys.argv[2:] if sys.argv[1:2] == parts else sys.argv[1:]
    return max([run(part, options) for part in parts])


if __name__ == "__main__":
    sys.exit(main())
