"""Run the faults of `tests/faults` and keep how many were tried and survived.

faults.py [--record] [pytest's own options]

With `--record` the numbers go to `benchmarks/results/faults.json`, which the README is made from.
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

ROOT = Path(__file__).resolve().parent.parent
FAULTS = ROOT / "tests" / "faults"
REPORT = ROOT / "build" / "faults.xml"
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"


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


def main() -> int:
    """The command line."""
    options = [option for option in sys.argv[1:] if option != "--record"]
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pytest", str(FAULTS), f"--junitxml={REPORT}", *options]
    status = subprocess.run(command, cwd=ROOT).returncode
    kinds = counted(REPORT)
    total = {
        name: sum(counts[name] for counts in kinds.values())
        for name in ("tried", "survived", "skipped")
    }
    print(f"{total['tried']} faults tried, {total['survived']} survived.")
    if "--record" in sys.argv[1:]:
        facts = {
            **total,
            "kinds": kinds,
            "python": platform.python_version(),
            "system": platform.system(),
            "cores": os.cpu_count(),
            "date": datetime.date.today().isoformat(),
            "command": "make faults",
        }
        RESULTS.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
