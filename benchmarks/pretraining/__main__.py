"""The command line: the course's base model, or with `--control` one that lacks some facts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import __version__ as transformers_version

from benchmarks.pretraining import train
from benchmarks.pretraining.recall import recall
from benchmarks.pretraining.train import MODELS, Settings, check_replaceable, save
from course_utils._core import checks
from course_utils._core.files import user_path
from course_utils.data import split_of_countries
from course_utils.errors import CannotWrite, CourseError


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(prog="python -m benchmarks.pretraining", description=__doc__)
    found.add_argument("--control", action="store_true", help="without some countries' facts")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--steps", type=int, help="fewer than the usual ones, for a try")
    found.add_argument("--threads", type=int, help="another number gives another model")
    found.add_argument("--out", type=Path, help="where to save: an empty or a new folder")
    found.add_argument("--ship", action="store_true", help="of `make pretrain`: the shipped one")
    return found


def _out(args: argparse.Namespace, settings: Settings) -> Path:
    """Where the model goes; checked before the training, not after it.

    Raises:
        CannotWrite: the shipped models are asked to be replaced by something else.
    """
    if not args.ship:
        if args.out is None:
            raise CannotWrite(
                "Name a folder for the model: --out FOLDER. The models that travel with the course "
                "are made by `make pretrain` alone."
            )
        out = user_path(args.out)
        if MODELS in (out.resolve(), *out.resolve().parents):
            raise CannotWrite(
                f"{out} is where the course keeps its own models, which `make pretrain` alone "
                "makes. Name another folder."
            )
    elif args.out is not None or settings != Settings() or args.seed:
        raise CannotWrite(
            "--ship makes the models that travel with the course, with their own settings: leave "
            "out --out, --steps, --threads and --seed."
        )
    else:
        out = MODELS / ("control" if args.control else "base")
    check_replaceable(out)
    return out


def run(args: argparse.Namespace) -> None:
    """Train, save and say what the model knows.

    Raises:
        BadValue: an option that no training can have.
        CannotWrite, NotEnoughDisk: see `train.save`.
    """
    hidden = split_of_countries()["hidden"] if args.control else ()
    changed = {name: getattr(args, name) for name in ("steps", "threads")}
    for name, value in changed.items():
        if value is not None:
            checks.whole(f"--{name}", value, least=1, most=10**7 if name == "steps" else 1024)
    checks.whole("--seed", args.seed, least=0, most=2**32 - 1)
    settings = Settings(**{name: value for name, value in changed.items() if value is not None})
    out = _out(args, settings)
    model, tokenizer, log = train.pretrain(args.seed, hidden, settings)
    facts = {
        "seed": args.seed,
        "without the facts of": list(hidden),
        "settings": asdict(settings),
        "parameters": model.num_parameters(),
        "minutes": round(log[-1]["seconds"] / 60, 1) if log else None,
        "torch": torch.__version__,
        "transformers": transformers_version,
        "log": log,
    }
    save(out, model, tokenizer, facts)
    table = recall(model, tokenizer)
    print("The share of facts with which it ends a sentence:")
    print(table.round(2).to_string())
    print(f"Saved under {out}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Train; an error of the course's own is a line on stderr and status 1."""
    args = parser().parse_args(argv)
    try:
        run(args)
    except CourseError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
