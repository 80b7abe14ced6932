"""How long predictions take on this machine, into results/memory_speed.jsonl.

Each setup is predicted three times in one process, after one that is not counted; the row holds all
three in seconds. The last row is the workshop's whole 16-bit table with a new process's imports.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from course_utils.hardware import detect
from course_utils.memory import Setup
from course_utils.memory._predict import predict, versions
from course_utils.results import append_row, whole_rows

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "memory_speed.jsonl"
OPT = Setup("facebook/opt-350m", seq_len=2000)
LLAMA = Setup("meta-llama/Llama-3.1-8B", seq_len=2048)
ON_ALL = {"lora": True, "lora_targets": "all-linear"}
SETUPS = (
    OPT,
    OPT.replace(attention="eager", checkpointing="non-reentrant"),
    OPT.replace(quantization="8bit", lora=True),
    LLAMA,
    LLAMA.replace(**ON_ALL, checkpointing="non-reentrant"),
    LLAMA.replace(
        **ON_ALL, quantization="nf4-double", checkpointing="non-reentrant", accumulation=4
    ),
)


def timed(setup: Setup) -> float:
    """Seconds for one prediction."""
    start = time.perf_counter()
    predict(setup)
    return round(time.perf_counter() - start, 2)


def main() -> None:
    """Time what is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    here = detect()
    machine = {"machine": f"{here.cpu_name}, {here.cpu_cores} cores", "versions": versions()}
    done = [row["what"] for row in whole_rows(args.results)]
    predict(Setup("course/pythia-3m", seq_len=32))
    for setup in SETUPS:
        if str(setup) not in done:
            seconds = [timed(setup) for _ in range(3)]
            append_row(args.results, {"what": str(setup), "seconds": seconds, **machine})
            print(seconds, setup, flush=True)
    table = "opt-350m-16bit, 48 cells"
    if table not in done:
        start = time.perf_counter()
        command = [sys.executable, "-m", "course_utils", "memory", "grid", "opt-350m-16bit"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        seconds = [round(time.perf_counter() - start, 1)]
        append_row(args.results, {"what": table, "seconds": seconds, **machine})
        print(seconds, table)


if __name__ == "__main__":
    main()
