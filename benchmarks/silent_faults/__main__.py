"""Tries preflight on every fault and on every correct set-up.

    python -m benchmarks.silent_faults                     # all, into results/silent_faults.csv
    python -m benchmarks.silent_faults bos packing         # those whose name or kind has a word
    python -m benchmarks.silent_faults --faults --limit 5
    python -m benchmarks.silent_faults --summary           # what the rows say

A fault is found if a row that it names is raised; a raise of another row is "elsewhere" and does
not count. Its fix works if preflight has nothing to say of the mended training. Of a correct
set-up nothing may be said. Cases run in child processes, so that a crash or a hang costs one case.
Rows are written as they come, and a run that was stopped goes on; `--again` tries all of them anew.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import importlib
import importlib.metadata
import io
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from scipy.stats import binomtest

from course_utils._core.files import locked, replace_file

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "silent_faults.csv"
LIBRARIES = ("torch", "transformers", "trl", "peft")
COLUMNS = (
    *("name", "kind", "issues", "found", "raised", "text", "fix", "fix_works", "proof"),
    *("seconds", *LIBRARIES),
)
HEALTHY_KIND = "healthy"
# Of making a training with its proof, of preflight, and of the mended training.
SECONDS = 60
STARTING_SECONDS = 300
CASES_A_CHILD = 50
ITSELF = "this check itself failed"
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONWARNINGS": "ignore",
}

Row = dict[str, Any]
Phase = Callable[[str], None]


@functools.cache
def versions() -> dict[str, str]:
    """The installed versions that decide what is found."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def cases() -> tuple[dict[str, Any], dict[str, Any]]:
    """All faults and all correct set-ups, by name, from every module of this folder."""
    from benchmarks.silent_faults import common

    for path in sorted(HERE.glob("faults_*.py")):
        importlib.import_module(f"benchmarks.silent_faults.{path.stem}")
    importlib.import_module("benchmarks.silent_faults.healthy")
    return common.FAULTS, common.HEALTHY


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _raised(trainer: Any) -> tuple[dict[str, Any], float]:
    """Preflight's rows that are no pass, by name, and how long it took."""
    from course_utils.preflight import preflight

    start = time.perf_counter()
    report = preflight(trainer)
    seconds = time.perf_counter() - start
    return {row.name: row for row in report.rows if row.status != "pass"}, round(seconds, 2)


def _texts(rows: Iterable[Any]) -> Row:
    """What some rows found and the fixes that they name, as two cells."""
    rows = list(rows)
    texts = (f"{row.found}" if len(rows) == 1 else f"{row.name}: {row.found}" for row in rows)
    fixes = (row.fix for row in rows)
    return {name: " | ".join(each) for name, each in (("text", texts), ("fix", fixes))}


def _row(name: str, kind: str, issues: Iterable[str] = (), **told: Any) -> Row:
    return {
        **dict.fromkeys(COLUMNS, ""),
        **{"name": name, "kind": kind, "issues": " ".join(issues)},
        **versions(),
        **told,
    }


def _nothing(_: str) -> None:
    pass


def try_fault(fault: Any, phase: Phase = _nothing) -> Row:
    """Make a fault, prove that it is there, look what preflight says, and apply the fix.

    Args:
        fault: a `common.Fault`.
        phase: is told what begins; a watcher's clock starts anew with it.
    """
    row = functools.partial(_row, fault.name, fault.kind, fault.issues)
    phase("made")
    try:
        trainer = fault.make()
    except Exception as error:
        return row(found="crash", text=f"cannot be made: {_said(error)}")
    try:
        told: Row = {"proof": fault.proof(trainer)}
    except Exception as error:
        return row(found="unproven", text=f"the proof: {_said(error)}")
    # A proof may have read the batches or moved the weights.
    trainer = fault.make()
    phase("checked")
    try:
        raised, told["seconds"] = _raised(trainer)
    except Exception as error:
        return row(**told, found="crash", text=f"preflight: {_said(error)}")
    told["raised"] = "; ".join(raised)
    naming = [
        each
        for name, each in raised.items()
        if name in fault.rows and not each.found.startswith(ITSELF)
    ]
    told["found"] = "yes" if naming else "elsewhere" if raised else "no"
    told |= _texts(naming or raised.values())
    if fault.mended is not None:
        phase("mended")
        try:
            left, _ = _raised(fault.mended())
            told["fix_works"] = f"no: {'; '.join(left)}" if left else "yes"
        except Exception as error:
            told["fix_works"] = f"crash: {_said(error)}"
    return row(**told)


def try_healthy(healthy: Any, phase: Phase = _nothing) -> Row:
    """Make a correct set-up and look whether preflight is quiet.

    Args: those of `try_fault`, of a `common.Healthy`.
    """
    row = functools.partial(_row, healthy.name, HEALTHY_KIND)
    phase("made")
    try:
        trainer = healthy.make()
    except Exception as error:
        return row(found="crash", text=f"cannot be made: {_said(error)}")
    phase("checked")
    try:
        raised, seconds = _raised(trainer)
    except Exception as error:
        return row(found="crash", text=f"preflight: {_said(error)}")
    told = {"found": "false alarm" if raised else "quiet", "raised": "; ".join(raised)}
    return row(**told, **_texts(raised.values()), seconds=seconds)


# The file of results


def read(path: Path = RESULTS) -> list[dict[str, str]]:
    """The last row of each case, in the order of the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    # A kill may have left half a line.
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    return list({row["name"]: row for row in rows}.values())


def _lines(rows: Iterable[Row], heading: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    if heading:
        writer.writeheader()
    # A cell stays on its case's one line.
    shown = ({name: " ".join(str(row.get(name, "")).split()) for name in COLUMNS} for row in rows)
    writer.writerows(shown)
    return text.getvalue()


def append(path: Path, row: Row) -> None:
    """Add a row; a new file begins with the columns' names."""
    with locked(path), path.open("a", encoding="utf-8", newline="") as file:
        file.write(_lines([row], heading=file.tell() == 0))


def settle(path: Path, order: Iterable[str] = ()) -> None:
    """Leave a file with a line for each case.

    Args:
        path: the file of results.
        order: the names of all cases, in the order wanted; rows of others are dropped. Without
            it, all stay where they are.
    """
    with locked(path):
        rows = {row["name"]: row for row in read(path)}
        names = [name for name in order if name in rows] or list(rows)
        replace_file(path, _lines((rows[name] for name in names), heading=True))


# Child processes


def _work(names: list[str], told: TextIO) -> None:
    """Try cases one after the other, and write what is found as lines of JSON."""
    import datasets
    import torch
    import transformers

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    faults, healthy = cases()

    def tell(what: str, value: Any) -> None:
        told.write(json.dumps([what, value]) + "\n")
        told.flush()

    for name in names:
        tell("case", name)
        phase = functools.partial(tell, "phase")
        if name in faults:
            tell("row", try_fault(faults[name], phase))
        else:
            tell("row", try_healthy(healthy[name], phase))
    tell("end", None)


@contextlib.contextmanager
def _child(names: list[str]) -> Iterator[tuple[subprocess.Popen[str], queue.Queue[Any]]]:
    """A child that works on some cases, and a queue of what it says; None where it has ended."""
    with tempfile.TemporaryDirectory(prefix="silent-", ignore_cleanup_errors=True) as scratch:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.silent_faults", "--child"],
            cwd=HERE.parent.parent,
            env=os.environ | _ENVIRONMENT | {"SILENT_FAULTS_TMP": scratch, "TMPDIR": scratch},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        told: queue.Queue[Any] = queue.Queue()

        def listen() -> None:
            for line in process.stdout:
                told.put(json.loads(line))
            told.put(None)

        threading.Thread(target=listen, daemon=True).start()
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(names))
                process.stdin.close()
            yield process, told
        finally:
            process.kill()
            process.wait()


def _some(names: list[str], seconds: float) -> Iterator[tuple[str, Row | str]]:
    """The rows of one child's cases; a text instead of a row where it crashed or hung."""
    with _child(names) as (process, told):
        current, doing, limit = names[0], "started", float(STARTING_SECONDS)
        while True:
            try:
                found = told.get(timeout=limit)
            except queue.Empty:
                yield current, f"more than {limit:.0f} s when {doing}"
                return
            if found is None:
                yield current, f"its process ended with {process.wait()} when {doing}"
                return
            what, value = found
            limit = seconds
            if what == "end":
                return
            if what == "case":
                current = value
            elif what == "phase":
                doing = value
            else:
                yield current, value


def done(path: Path) -> set[str]:
    """The cases whose rows are there for the versions that are installed."""
    now = versions()
    rows = (row for row in read(path) if row["found"] != "crash")
    return {row["name"] for row in rows if row.items() >= now.items()}


def run(
    names: Iterable[str],
    path: Path = RESULTS,
    seconds: float = SECONDS,
    show: Callable[[Row], None] = _nothing,
    again: bool = True,
) -> None:
    """Try cases in child processes and write a row for each.

    Args:
        names: of faults and correct set-ups.
        path: the file of results, which is continued.
        seconds: how long a phase of a case may take.
        show: is given each row.
        again: also those that another program has tried meanwhile.
    """
    faults, _ = cases()
    left = list(names)
    while left:
        if not again:
            there = done(path)
            left = [name for name in left if name not in there]
            if not left:
                break
        for name, found in _some(left[:CASES_A_CHILD], seconds):
            if isinstance(found, str):
                fault = faults.get(name)
                whose = (fault.kind, fault.issues) if fault else (HEALTHY_KIND,)
                found = _row(name, *whose, found="crash", text=found)
            left.remove(name)
            append(path, found)
            show(found)


# What the rows say


def _share(part: int, total: int) -> str:
    return f"{part} of {total} ({part / total:.1%})" if total else "none"


def _interval(part: int, total: int) -> str:
    """A 95% interval of a share by Clopper and Pearson."""
    low, high = binomtest(part, total).proportion_ci(0.95, method="exact")
    return f"95% interval {low:.1%} to {high:.1%}"


def summary(rows: list[dict[str, str]]) -> str:
    """How many faults are found, whose fixes work, and how many false alarms there are."""
    faults = [row for row in rows if row["kind"] != HEALTHY_KIND]
    healthy = [row for row in rows if row["kind"] == HEALTHY_KIND]
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in faults):
        own = [row["found"] for row in faults if row["kind"] == kind]
        lines.append(f"{kind}: {_share(own.count('yes'), len(own))}")
    if faults:
        found = sum(row["found"] == "yes" for row in faults)
        missed = [f"{row['name']} ({row['found']})" for row in faults if row["found"] != "yes"]
        lines.append(f"found: {_share(found, len(faults))}, {_interval(found, len(faults))}")
        lines += [f"not found: {', '.join(missed)}"] if missed else []
        tried = [row for row in faults if row["fix_works"]]
        works = sum(row["fix_works"] == "yes" for row in tried)
        lines.append(f"fixes that work: {_share(works, len(tried))}")
    if healthy:
        wrong = [row for row in healthy if row["found"] != "quiet"]
        alarms = _share(len(wrong), len(healthy))
        lines.append(f"false alarms and crashes: {alarms}, {_interval(len(wrong), len(healthy))}")
        lines += [f"  {row['name']}: {row['raised'] or row['text']}" for row in wrong]
    seconds = [float(row["seconds"]) for row in rows if row["seconds"]]
    if seconds:
        median = statistics.median(seconds)
        lines.append(f"preflight took {median:.1f} s in the median, {max(seconds):.1f} s at most")
    return "\n".join(lines)


def chosen(args: argparse.Namespace) -> list[str]:
    """The names of the cases that were asked for and are not yet there for these versions."""
    faults, healthy = cases()
    kinds = {name: fault.kind for name, fault in faults.items()} | dict.fromkeys(healthy, "")
    if args.faults:
        kinds = {name: kind for name, kind in kinds.items() if name in faults}
    if args.healthy:
        kinds = {name: kind for name, kind in kinds.items() if name in healthy}
    names = [
        name
        for name, kind in kinds.items()
        if not args.words or any(word in f"{name} {kind}" for word in args.words)
    ]
    if not args.again:
        there = done(args.results)
        names = [name for name in names if name not in there]
    return names[: args.limit]


def main() -> None:
    """Try cases, or say what the rows say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="of names or kinds; without any, all cases")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--healthy", action="store_true", help="only correct set-ups")
    which.add_argument("--faults", action="store_true", help="only faults")
    parser.add_argument("--limit", type=int, help="how many cases at most")
    parser.add_argument("--again", action="store_true", help="also those that are there")
    parser.add_argument("--summary", action="store_true", help="try nothing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        told, sys.stdout = sys.stdout, Path(os.devnull).open("w")  # noqa: SIM115
        _work(json.load(sys.stdin), told)
        return
    if not args.summary:
        names = chosen(args)
        count = iter(range(1, len(names) + 1))

        def show(row: Row) -> None:
            told = f"{row['found']}: {row['raised'] or row['text'] or '-'}"
            fix = f", fix {row['fix_works']}" if row["fix_works"] else ""
            took = f", {row['seconds']} s" if row["seconds"] else ""
            place = f"{next(count)}/{len(names)}"
            print(f"{place} {row['name']}: {told[:150]}{fix[:80]}{took}", flush=True)

        run(names, args.results, show=show, again=args.again)
        if names:
            faults, healthy = cases()
            settle(args.results, [*faults, *healthy])
    print(summary(read(args.results)))


if __name__ == "__main__":
    main()
