"""What others say of the same trainings: the libraries' own warnings, and tools from PyPI.

    python -m venv TOOLS
    TOOLS/bin/pip install --no-deps guardtower peft-doctor finelint chatlint trainproof
    TOOLS/bin/pip install rich typer pyyaml jinja2 packaging requests
    python -m benchmarks.silent_faults.others --tools TOOLS      # results/silent_faults_others.csv
    python -m benchmarks.silent_faults.others --summary

Each tool is given what it takes: the trainer (guardtower, in one step of the trainer's own loss),
the rows as a file of JSON lines (peft-doctor, finelint, trainproof), the chat template (chatlint),
or nothing (the warnings that the libraries give while the trainer is made and takes a step). A tool
speaks where it gives a warning or an error; hints and what it passes do not count.

It names a fault where its words match `NAMED`: one regular expression for a kind of faults,
written so that a warning about the thing at fault counts even where it names no fix. The words are
kept, so that each judgement can be checked by hand. So that talking much is no merit, every tool is
also given correct set-ups, evenly spaced over `healthy.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.metadata
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.silent_faults import common
from benchmarks.silent_faults.__main__ import HEALTHY_KIND, cases, versions
from course_utils._core.files import locked, replace_file

RESULTS = Path(__file__).parent.parent / "results" / "silent_faults_others.csv"
COLUMNS = ("name", "kind", "tool", "version", "takes", "speaks", "names", "text")
SECONDS = 120
CORRECT = 60
MOST = 400
# By kind: a fault is named where a tool's words match.
NAMED = {
    "Text that is lost or doubled": r"chat.?template|\bBOS\b|prefix|reasoning|tool|lost|absent",
    "Prompts that are trained on, and answers that are not": r"assistant|completion|mask|label",
    "Ends that generation does not know": r"\beos\b|pad.?token|end.of.(turn|text|sequence)|\bend",
    "Documents that see each other": r"contaminat|flash.?attention|packing|padding.free|position",
    "What the Trainer does with the data": r"column|truncat|length|empty|ignored|duplicate|order",
    "Images": r"image|pixel|vision",
    "A loss that is not the one you think": r"\bloss\b|label|smooth|ignore.?index",
    "Accumulation that changes the gradient": r"accumulat|num_items",
    "What will be learned": r"adapter|lora|frozen|freez|requires?_grad|no grad|trainable|float16|"
    r"learning.?rate|\blr\b|optimizer|schedul|warm|clip|decay|dtype|target_modules",
    "What will be kept": r"sav(e|ed|ing)|checkpoint|\btied?\b|embedding|resum|best",
    "Time and steps": r"step|epoch|batch|warm|padding",
    "Preference data and rewards": r"reward|chosen|rejected|reference|ref_model|prefer|\bbeta\b|"
    r"completion|generation|duplicate",
}
# What every training here is told, of this machine or of libraries to come.
NOISE = re.compile(
    r"deprecat|will be removed|Failed to load CPU|torchvision|use_cache=True|pin_memory|"
    r"No such file|kernels|HF_TOKEN|experimental|falling back to its reference",
    re.IGNORECASE,
)

# The columns that tools for files can read; token ids are not among them.
TEXTS = {"messages", "conversations", "prompt", "completion", "text", "chosen", "rejected"}

Row = dict[str, Any]


class TooLong(BaseException):
    """A case that took more than its time."""


@contextlib.contextmanager
def words_of_libraries() -> Iterator[list[str]]:
    """What is warned of while it is entered, by the warnings module and by logging."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler = Handler(logging.WARNING)
    names = ["", "transformers", "trl", "peft", "datasets", "accelerate", "torch"]
    loggers = [logging.getLogger(name) for name in names]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for logger in loggers:
            logger.addHandler(handler)
        try:
            yield said
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
            ignored = (DeprecationWarning, FutureWarning, ResourceWarning)
            said += [str(w.message) for w in caught if not issubclass(w.category, ignored)]
    kept = dict.fromkeys(" ".join(text.split()) for text in said)
    said[:] = [text for text in kept if not NOISE.search(text)]


def _audit(trainer: Any, tools: Path) -> list[str] | None:
    """What guardtower finds in a step of the trainer's own loss, on its first batch."""
    packages = next((tools / "lib").glob("python*/site-packages"))
    with mock.patch.object(sys, "path", [*sys.path, str(packages)]):
        import guardtower

    batch = trainer._prepare_inputs(dict(next(iter(trainer.get_train_dataloader()))))
    optimizer = trainer.create_optimizer()
    trainer.model.train()
    step = lambda: trainer.compute_loss(trainer.model, dict(batch))  # noqa: E731
    findings = guardtower.audit(trainer.model, step, optimizer=optimizer).findings
    if any("step_fn raised" in each.message for each in findings):
        return None
    loud = [each for each in findings if each.severity.name in ("WARN", "ERROR")]
    return [f"{each.severity.name} {each.check}: {each.message}" for each in loud]


def _command(tools: Path, *words: str) -> str:
    done = subprocess.run(
        [tools / "bin" / words[0], *words[1:]],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "300", "PYTHONPATH": ""},
        timeout=SECONDS,
    )
    return done.stdout + done.stderr


def _peft_doctor(data: Path, trainer: Any, tools: Path) -> list[str]:
    length = getattr(trainer.args, "max_length", None)
    words = ["--sequence-length", str(length)] if length else []
    told = _command(tools, "peft-doctor", "dataset-doctor", str(data), *words, "--output", "json")
    issues = json.loads(told[told.index("{") :])["issues"]
    loud = [issue for issue in issues if issue["severity"] in ("error", "warning")]
    return [f"{issue['title']}: {issue['message']}" for issue in loud]


def _finelint(data: Path, trainer: Any, tools: Path) -> list[str] | None:
    report = data.with_suffix(".report.json")
    told = _command(tools, "finelint", "inspect", str(data), "--report", str(report))
    if not report.exists():  # no schema that it knows
        return None
    findings = json.loads(report.read_text()).get("findings", [])
    return [f"{each.get('code')}: {each.get('message')}" for each in findings] if told else []


def _trainproof(data: Path, trainer: Any, tools: Path) -> list[str] | None:
    with data.open(encoding="utf-8") as file:
        if "text" not in json.loads(file.readline()):
            return None
    length = getattr(trainer.args, "max_length", None)
    words = ["--max-len", str(length)] if length else []
    told = _command(tools, "trainproof", "preflight", str(data), *words)
    return re.findall(r"\[(?:WARN|FAIL)\] (TP-.*)", told)


def _chatlint(template: Path, trainer: Any, tools: Path) -> list[str]:
    told = _command(tools, "chatlint", "check", str(template))
    return [" ".join(found) for found in re.findall(r"\[(error|warning)\] (.*\n.*)", told)]


ON_DATA: dict[str, Callable[[Path, Any, Path], list[str] | None]] = {
    "peft-doctor": _peft_doctor,
    "finelint": _finelint,
    "trainproof": _trainproof,
}
TOOLS = ("libraries", "guardtower", *ON_DATA, "chatlint")


def _version(tool: str, tools: Path) -> str:
    if tool == "libraries":
        return " ".join(f"{name} {version}" for name, version in versions().items())
    where = str(next((tools / "lib").glob("python*/site-packages")))
    found = importlib.metadata.distributions(name=tool, path=[where])
    return next(iter(found)).version


def heard(case: Any, tools: Path, folder: Path) -> dict[str, list[str] | None]:
    """What each tool says of a case; None where it cannot take what the case has.

    Args:
        case: a fault or a correct set-up.
        tools: the virtual environment with the tools.
        folder: an empty folder.
    """
    rows: list[Any] = []
    make_data = common._data

    def kept(given: Any) -> Any:
        if not rows and isinstance(given, list):
            rows.extend(given)
        return make_data(given)

    told: dict[str, list[str] | None] = dict.fromkeys(TOOLS)
    with words_of_libraries() as said, mock.patch.object(common, "_data", kept):
        trainer = case.make()
        trainer.args.max_steps = 1
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            trainer.train()
    told["libraries"] = said
    data = folder / "data.jsonl"
    with contextlib.suppress(TypeError):  # tensors and pictures are no JSON
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if rows and TEXTS & set(rows[0]) and data.exists() and data.stat().st_size:
        for tool, work in ON_DATA.items():
            told[tool] = work(data, trainer, tools)
    tokenizer = trainer.processing_class
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, str):
        path = folder / "chat_template.jinja"
        path.write_text(template, encoding="utf-8")
        told["chatlint"] = _chatlint(path, trainer, tools)
    with mock.patch.object(common, "_data", make_data):
        trainer = case.make()
        trainer.args.max_steps = 1
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                told["guardtower"] = _audit(trainer, tools)
            except Exception:  # a batch or a loss that it cannot take
                told["guardtower"] = None
    return told


def _rows(case: Any, told: dict[str, list[str] | None], tools: Path) -> list[Row]:
    kind = getattr(case, "kind", HEALTHY_KIND)
    pattern = NAMED.get(kind)
    rows = []
    for tool, said in told.items():
        texts = [" ".join(text.split()) for text in said or ()]
        naming = [text for text in texts if pattern and re.search(pattern, text, re.IGNORECASE)]
        row = {"name": case.name, "kind": kind, "tool": tool, "version": _version(tool, tools)}
        row |= {"takes": "no" if said is None else "yes", "speaks": "yes" if texts else "no"}
        row |= {"names": "yes" if naming else "no"}
        rows.append(row | {"text": " | ".join(naming or texts)[:MOST]})
    return rows


def read(path: Path = RESULTS) -> list[dict[str, str]]:
    """The last row of each case and tool."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return list({(row["name"], row["tool"]): row for row in csv.DictReader(file)}.values())


def _write(path: Path, rows: list[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with locked(path):
        replace_file(path, text.getvalue())


def counts(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """By tool: the faults that it takes, speaks of and names; the correct set-ups it speaks of."""
    found = []
    for tool in dict.fromkeys(row["tool"] for row in rows):
        own = [row for row in rows if row["tool"] == tool]
        faults = [row for row in own if row["kind"] != HEALTHY_KIND]
        correct = [row for row in own if row["kind"] == HEALTHY_KIND]
        found.append(
            {
                "tool": f"{tool} {own[0]['version']}" if tool != "libraries" else "the libraries",
                "faults": len(faults),
                **{n: sum(r[n] == "yes" for r in faults) for n in ("takes", "speaks", "names")},
                "wrong": sum(row["speaks"] == "yes" for row in correct),
                "correct": len(correct),
            }
        )
    return found


def summary(rows: list[dict[str, str]]) -> str:
    """The counts of every tool, a line each."""
    return "\n".join(
        "{tool}: takes {takes} of {faults} faults, speaks of {speaks}, names {names}; speaks of "
        "{wrong} of {correct} correct set-ups".format_map(each)
        for each in counts(rows)
    )


def main() -> None:
    """Listen to the others, or say what the rows say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="of names; without any, all cases")
    parser.add_argument("--tools", type=Path, help="the virtual environment with the tools")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--summary", action="store_true", help="try nothing")
    args = parser.parse_args()
    rows = read(args.results)
    if not args.summary:
        if args.tools is None:
            parser.error("--tools is missing; see the beginning of this help")

        def stop(*_: Any) -> None:
            raise TooLong

        signal.signal(signal.SIGALRM, stop)
        faults, healthy = cases()
        some = list(healthy.values())[:: max(1, len(healthy) // CORRECT)][:CORRECT]
        done = {row["name"] for row in rows}
        for case in [*faults.values(), *some]:
            wanted = not args.words or any(word in case.name for word in args.words)
            if not wanted or case.name in done:
                continue
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                os.environ["SILENT_FAULTS_TMP"] = folder
                signal.alarm(SECONDS)
                try:
                    told = heard(case, args.tools, Path(folder))
                except (Exception, TooLong) as error:
                    print(f"{case.name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
                    continue
                finally:
                    signal.alarm(0)
            rows += _rows(case, told, args.tools)
            _write(args.results, rows)
            shown = {tool: len(said) for tool, said in told.items() if said is not None}
            print(f"{case.name}: {shown}", flush=True)
    print(summary(rows))


if __name__ == "__main__":
    main()
