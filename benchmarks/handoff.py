"""Is a served model the one that was trained? An adapter for Yoda's word order, step by step.

    python -m benchmarks.handoff                    every step that is not measured yet
    python -m benchmarks.handoff "GGUF, 8 bits"     one of them
    python -m benchmarks.handoff --adapter FOLDER   an adapter of your own on the chat model

The reference is notebook 10's model, trained by `scripts/finetune.py` with 20 steps of notebook
00's settings (float32, seed 0) and kept for the other rows. Each step is compared with it on 200
sentences without a content word of the training data: prompts' tokens, greedy replies, and the
probabilities along the right answers. Rows go to results/handoff.jsonl as they come; a step that is
there is not measured again. Shown in notebook 10.
"""

from __future__ import annotations

import argparse
import logging
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xllamacpp
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from course_utils import handoff, load_data
from course_utils.hardware import detect
from course_utils.models import ensure
from course_utils.results import append_row, whole_rows

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results" / "handoff.jsonl"
SYSTEM = {"role": "system", "content": "Say it as Yoda would."}


def trained(base: Path, out: Path) -> Path:
    """Train notebook 10's adapter; return its folder."""
    command = [sys.executable, "scripts/finetune.py", "--config", "configs/finetune/yoda.yaml"]
    command += ["--model_name_or_path", str(base), "--output_dir", str(out), "--max_steps", "20"]
    command += ["--per_device_train_batch_size", "8", "--use_cpu", "true"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return out / "final"


class Steps:
    """What becomes of an adapter on its way to a server; each step is made when it is measured."""

    def __init__(self, base: Path, adapter: Path, work: Path, prompts: int) -> None:
        self.base, self.adapter, self.work = base, adapter, work
        self.tokenizer = AutoTokenizer.from_pretrained(adapter)
        rows = load_data("yoda")["unseen"].select(range(prompts))
        self.asked = [[SYSTEM, {"role": "user", "content": text}] for text in rows["sentence"]]
        tuned = PeftModel.from_pretrained(self.model(), adapter)
        self.reference = handoff.Reference(tuned, self.tokenizer, self.asked, list(rows["yoda"]))
        merged = self.merged(self.model())
        merged.save_pretrained(work / "merged")
        self.tokenizer.save_pretrained(work / "merged")

    def model(self, **how: Any) -> torch.nn.Module:
        """The base model."""
        return AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32, **how)

    def merged(self, model: torch.nn.Module) -> torch.nn.Module:
        """The adapter merged into a model."""
        return PeftModel.from_pretrained(model, self.adapter).merge_and_unload()

    def in_4_bits(self) -> torch.nn.Module:
        """The base model in nf4."""
        return self.model(
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
            )
        )

    def local(self, model: torch.nn.Module) -> handoff.Comparison:
        """Compare a model in this process."""
        return self.reference.compare(handoff.Local(model, self.tokenizer))

    def served(self, file: Path, adapters: tuple[Path, ...] = ()) -> handoff.Comparison:
        """Compare a file at llama.cpp's server."""
        with handoff.serve_gguf(file, adapters=adapters) as url:
            strengths = dict.fromkeys(range(len(adapters)), 1.0) if adapters else None
            return self.reference.compare(handoff.Server(url, adapters=strengths))

    def gguf(self, outtype: str) -> Path:
        """The merged model as a GGUF file."""
        return handoff.to_gguf(self.work / "merged", self.work / f"{outtype}.gguf", outtype)

    def lora(self) -> tuple[Path, Path]:
        """The base and the adapter as files of their own."""
        base = handoff.to_gguf(self.base, self.work / "base.gguf")
        return base, handoff.lora_to_gguf(self.adapter, self.base, self.work / "lora.gguf")

    def named(self) -> dict[str, Callable[[], handoff.Comparison]]:
        """Each step by its name."""
        return {
            "merged, float32": lambda: self.local(self.merged(self.model())),
            "saved in bfloat16": lambda: self.local(
                AutoModelForCausalLM.from_pretrained(self.work / "merged", dtype=torch.bfloat16)
            ),
            "merged into a base from 4 bits": lambda: self.local(
                self.merged(self.in_4_bits().dequantize(dtype=torch.float32))
            ),
            "merged into 4 bits": lambda: self.local(self.merged(self.in_4_bits())),
            "GGUF, 16 bits": lambda: self.served(self.gguf("f16")),
            "GGUF, adapter beside the base": lambda: self.served(
                self.lora()[0], adapters=self.lora()[1:]
            ),
            "GGUF, 8 bits": lambda: self.served(self.gguf("q8_0")),
            "GGUF, 4 bits": lambda: self.served(
                handoff.to_4_bits(self.gguf("f16"), self.work / "q4_0.gguf")
            ),
        }


NAMES = tuple(Steps.named(object()))  # type: ignore[arg-type]


def row_of(name: str, found: handoff.Comparison, seconds: float) -> dict[str, Any]:
    """A comparison as a row of the results."""
    row: dict[str, Any] = {"step": name, "prompts": found.prompts}
    row |= {"same_prompts": found.same_prompts, "same_ends": found.same_ends}
    row |= {"same_replies": found.same_replies, "near_ties": found.near_ties}
    row |= {"kl": found.kl, "worst_kl": found.worst_kl, "loss": found.loss}
    if found.loss_change:
        change = found.loss_change
        row |= {"change": change.value, "change_low": change.low, "change_high": change.high}
    machine = detect()
    row |= {"verdict": found.verdict, "cause": found.cause, "seconds": round(seconds, 1)}
    row["machine"] = machine.gpu_name or f"{machine.cpu_name}, {machine.cpu_cores} cores"
    versions = {"torch": torch.__version__, "xllamacpp": xllamacpp.__version__}
    return row | versions | {"python": platform.python_version()}


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", help=f"of: {'; '.join(NAMES)}")
    parser.add_argument("--adapter", type=Path, help="its folder; else one is trained")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    if unknown := set(args.steps) - set(NAMES):
        parser.error(f"no step {', '.join(map(repr, unknown))}; there are: {'; '.join(NAMES)}")
    if args.adapter and not (args.adapter / "adapter_config.json").is_file():
        parser.error(f"{args.adapter} is not the folder of an adapter: no adapter_config.json")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    done = {(row["step"], row["prompts"]) for row in whole_rows(args.results)}
    missing = [name for name in args.steps or NAMES if (name, args.prompts) not in done]
    if not missing:
        return 0
    with tempfile.TemporaryDirectory() as made:
        work, base = Path(made), ensure("smollm2-135m-instruct")
        steps = Steps(base, args.adapter or trained(base, work / "yoda"), work, args.prompts)
        for name in missing:
            start = time.perf_counter()
            row = row_of(name, steps.named()[name](), time.perf_counter() - start)
            append_row(args.results, row)
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
