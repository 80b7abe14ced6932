"""`python -m course_utils memory …`: predict, measure, grid and fit on the command line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from course_utils._core import checks
from course_utils.memory import Setup
from course_utils.memory import _optimizers as optimizers
from course_utils.memory import _setup as setups
from course_utils.memory._gpus import DEFAULT, GPUS, this_gpu
from course_utils.memory._gpus import gpu as gpu_by_name
from course_utils.memory.grid import NAMED, READINGS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's subcommands and their options."""
    commands = parser.add_subparsers(dest="memory_command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    _add_setup(common)
    common.add_argument("--json", action="store_true", help="as JSON")
    predicting = commands.add_parser(
        "predict", parents=[common], help="what a training will need, told without a GPU"
    )
    predicting.add_argument("--gpu", help=f"for which GPU: {', '.join(GPUS)}")
    measuring = commands.add_parser("measure", parents=[common], help="the same on this GPU")
    measuring.add_argument("--timeout", type=float, default=600, help="seconds")
    table = commands.add_parser("grid", help="a table of the workshop, anew")
    table.add_argument("name", help=", ".join(NAMED))
    table.add_argument("--measure", action="store_true", help="on this GPU, instead of predicting")
    table.add_argument("--out", type=Path, help="rows as JSON lines; a second run goes on there")
    table.add_argument("--reading", default="published", help=", ".join(READINGS))
    table.add_argument("--gpu", help="for which GPU to predict")
    fitting = commands.add_parser("fit", parents=[common], help="what fits on a GPU")
    fitting.add_argument("--gpu", required=True, help=", ".join(GPUS))
    fitting.add_argument(
        "--lengths", type=int, nargs="+", help="a table of the largest batches for these lengths"
    )


def _add_setup(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, help="a model's id, or a folder with its config.json")
    add("--quantization", help=", ".join(setups.QUANTIZATIONS))
    add("--dtype", help=f"{', '.join(setups.DTYPES)}; by default what the GPU computes in")
    add("--attention", default="auto", help=", ".join(setups.ATTENTIONS))
    add(
        "--kbit-preparation",
        action=argparse.BooleanOptionalAction,
        help="prepare_model_for_kbit_training; by default as is usual for the trainer",
    )
    add("--trainer", default="sft", help=", ".join(setups.TRAINERS))
    add("--no-attention-mask", action="store_true", help="of a loop written by hand")
    add("--outputs-dropped", action="store_true", help="in a loop by hand, before its backward")
    add("--seq-len", type=int, default=512)
    add("--batch-size", type=int, default=1)
    add("--supervised-share", type=float, default=1.0, help="of an example's tokens, at its end")
    add("--lora", action="store_true")
    add("--lora-rank", type=int, default=16)
    add("--lora-dropout", type=float, default=0.05)
    add("--lora-targets", default="default", help="default, all-linear, or names with commas")
    add(
        "--checkpointing",
        nargs="?",
        const="non-reentrant",
        help=f"{', '.join(setups.CHECKPOINTING)}; by default what the trainer does",
    )
    add(
        "--optimizer",
        default="adamw_torch_fused",
        help="as the Trainer's `optim`: " + ", ".join(optimizers.known()),
    )
    add("--accumulation", type=int, default=1)
    add(
        "--mixed-precision",
        nargs="?",
        const=True,
        help=f"{', '.join(setups.MIXED_PRECISION)}; by default what the trainer does",
    )
    add("--sequences", default="full", help=", ".join(setups.SEQUENCES))
    add("--micro-batches", type=int, help="how many to run; by default two optimizer steps")
    add("--devices", type=int, default=1, help="GPUs; what the first of them needs is told")
    add("--strategy", help=f"how they share the training: {', '.join(setups.STRATEGIES)}")
    add("--offload", help="what waits in the CPU's memory, with fsdp2: all")


def _setup(args: argparse.Namespace) -> Setup:
    names = Setup.__dataclass_fields__.keys() & vars(args).keys()
    given = {name: getattr(args, name) for name in names}
    given["attention_mask"] = not args.no_attention_mask
    given["keep_outputs"] = not args.outputs_dropped
    if given["dtype"] is None:
        asked = getattr(args, "gpu", None)
        gpu = (this_gpu() or DEFAULT) if asked is None else gpu_by_name(asked)
        given["dtype"] = "bfloat16" if gpu.computes_bfloat16 else "float16"
    return Setup(**given)


def main(args: argparse.Namespace) -> int:
    """Run a subcommand; return 0 on success, 1 if training does not fit or failed."""
    return {"predict": _predict, "measure": _measure, "grid": _grid, "fit": _fit}[
        args.memory_command
    ](args)


def _predict(args: argparse.Namespace) -> int:
    from course_utils.memory import predict

    found = predict(_setup(args), None if args.gpu is None else gpu_by_name(args.gpu))
    if args.json:
        print(json.dumps(found.to_dict(), indent=1))
        return 0
    print(f"{found.setup}, on a {found.gpu.name}")
    print(f"peak allocated  {found.peak_allocated_mb:10,.0f} MB, in {found.peak_op}")
    print(f"peak reserved   {found.peak_reserved_mb:10,.0f} MB")
    verdict = "fits" if found.fits else "does not fit"
    print(f"process         {found.process_mb:10,.0f} MB, which {verdict}")
    for warning in found.warnings:
        print(f"\nNote: {warning}")
    for title, sizes in (("peak by phase", found.phases), ("at the peak", found.at_peak)):
        print(f"\n{title}")
        for name, size in sizes.items():
            print(f"  {name:<13} {size:10,.0f} MB")
    print("\nassuming " + "; ".join(found.assumptions))
    print("for " + ", ".join(f"{name} {version}" for name, version in found.versions.items()))
    return 0


def _measure(args: argparse.Namespace) -> int:
    from course_utils.memory import measure

    row = measure(_setup(args), args.timeout)
    if args.json or row["status"] != "ok":
        print(json.dumps(row, indent=1))
        return 0 if row["status"] == "ok" else 1
    print(f"{_setup(args)}, on {row['gpu']}")
    for name in ("peak_allocated_mb", "peak_reserved_mb", "context_mb"):
        print(f"{name:<18} {row[name]:10,.0f}")
    print(f"{row['step_seconds']:.3f} s a step, {row['tokens_per_second']:,.0f} tokens/s")
    return 0


def _grid(args: argparse.Namespace) -> int:
    from course_utils.memory import grid

    combinations = [grid.as_setup(cell, args.reading) for cell in grid.published(args.name)]
    how = "measure" if args.measure else "predict"
    gpu = None if args.gpu is None else gpu_by_name(args.gpu)
    rows = grid.run(combinations, how, args.out, gpu)
    found = {"measured": rows} if args.measure else {"predicted": rows}
    compared = grid.compare(args.name, **found, reading=args.reading)
    column = "measured" if args.measure else "predicted"
    for shown in (column, "published"):
        table = grid.layout(compared, shown)
        print(f"{shown}, MB\n{table.to_string(float_format='{:,.0f}'.format)}\n")
    return 0


def _fit(args: argparse.Namespace) -> int:
    from course_utils.memory._fit import fit, ways_to_fit

    if args.lengths:
        shortest = min(checks.whole("lengths", length, 1, setups.MOST) for length in args.lengths)
        # Settings that the table does not try must be possible too.
        _setup(argparse.Namespace(**{**vars(args), "seq_len": shortest}))
        print(fit(args.model, args.gpu, args.lengths).to_string())
        return 0
    answers = ways_to_fit(_setup(args), args.gpu)
    if answers.empty:
        print("It does not fit, and no combination of the known changes is enough.")
        return 1
    if args.json:
        answers["setup"] = [setup.to_dict() for setup in answers["setup"]]
        print(answers.to_json(orient="records", indent=1))
    else:
        print(answers.drop(columns="setup").to_string(index=False))
    return 0
