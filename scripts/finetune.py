"""Fine-tune a language model from a configuration file: notebook 00's recipe on any engine.

    python scripts/finetune.py --config configs/finetune/yoda.yaml
    accelerate launch --config_file configs/accelerate/ddp.yaml \
        scripts/finetune.py --config configs/finetune/yoda.yaml --output_dir /shared/yoda

The settings are those of `Settings` below, of TRL's `ModelConfig` (model, LoRA, 4 bits) and of
`SFTConfig` (everything else). The command line overrides the file. To check a training without
starting it, run `python -m course_utils preflight scripts/finetune.py --config FILE`.

`output_dir` gets the checkpoints and, at the end, the folder `final` with the adapter or the model.
All nodes must be able to read it. Started again with the same command, a training continues from
its last complete checkpoint, also on another number of processes.

Exit status: 0 when the training is finished, 1 when something is wrong (the message says what), 143
when SIGTERM ended it: then the checkpoint of the last step is saved, and the same command goes on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset, load_dataset
from safetensors import safe_open
from transformers import TrainerCallback, set_seed
from trl import (
    ModelConfig,
    SFTConfig,
    SFTTrainer,
    TrlParser,
    get_peft_config,
    get_quantization_config,
)

from course_utils.preflight import preflight
from course_utils.training import last_checkpoint

FILES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
TRACKERS = ("tensorboard", "trackio")
STOPPED = 128 + signal.SIGTERM
# A checkpoint continues only a training that has these values in common with it.
FIXED = (
    *("model_name_or_path", "model_revision", "use_peft", "load_in_4bit", "lora_r", "lora_alpha"),
    *("lora_target_modules", "use_dora", "data", "split", "seed"),
)


@dataclass
class Settings:
    """What the libraries' own settings do not say.

    Attributes:
        data: a file (JSONL, JSON, CSV or Parquet), a folder, or the name of a dataset on the hub.
        split: which split of a folder or of a dataset on the hub.
        eval_data: the same for the evaluation, if `eval_strategy` asks for one.
        prompt_column, completion_column: the columns with question and answer. Not needed for data
            with the columns `prompt` and `completion`, `messages`, or `text`.
        system_prompt: put in front of each conversation that is made from the two columns.
        effective_batch_size: examples an update, over all processes. `gradient_accumulation_steps`
            follows from it, so that the training stays the same on another number of processes.
    """

    data: str
    split: str = "train"
    eval_data: str | None = None
    prompt_column: str | None = None
    completion_column: str | None = None
    system_prompt: str | None = None
    effective_batch_size: int | None = None


def stop(message: str) -> NoReturn:
    """End this process. One process of each node says why; the others leave it time to do so."""
    if int(os.environ.get("LOCAL_RANK", 0)):
        time.sleep(3)
        sys.exit(1)
    sys.exit(message)


def load(source: str, settings: Settings) -> Dataset:
    """Load a dataset in a form that `SFTTrainer` knows."""
    kind = FILES.get(Path(source).suffix)
    if kind and not Path(source).is_file():
        stop(f"There is no file {source} (looked for from {Path.cwd()}).")
    try:
        if kind:
            data = load_dataset(kind, data_files=source, split="train")
        else:
            data = load_dataset(source, split=settings.split)
    except Exception as error:  # a file or a hub can fail in many ways
        stop(f"The data {source} cannot be read: {error}")
    columns = data.column_names
    wanted = [settings.prompt_column, settings.completion_column]
    if wanted == [None, None]:
        if {"prompt", "completion"} <= {*columns} or {"messages", "text"} & {*columns}:
            return data
        wanted = ["prompt", "completion"]
    elif None in wanted:
        stop("prompt_column and completion_column go together: name both, or neither.")
    if missing := [name for name in wanted if name not in columns]:
        stop(
            f"{source} has no column {' and no column '.join(missing)}. It has the columns "
            f"{', '.join(columns)}: name two of them as prompt_column and completion_column."
        )
    system = [{"role": "system", "content": settings.system_prompt}]

    def as_chat(row: dict[str, Any]) -> dict[str, Any]:
        user = {"role": "user", "content": row[settings.prompt_column]}
        answer = {"role": "assistant", "content": row[settings.completion_column]}
        start = system if settings.system_prompt else []
        return {"prompt": [*start, user], "completion": [answer]}

    return data.map(as_chat, remove_columns=columns)


def check_machine(training: SFTConfig, model: ModelConfig) -> None:
    """Stop if the processes do not fit this machine, or something is not installed."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if training.device.type == "cpu" and processes > 1 and not training.use_cpu:
        stop(
            f"{processes} processes were started here, and no GPU was found. Lower num_processes, "
            "or set use_cpu to train on the CPU."
        )
    if training.n_gpu > 1:
        stop(f"{training.n_gpu} GPUs for one process: start this program with accelerate launch.")
    for name in [training.report_to] if isinstance(training.report_to, str) else training.report_to:
        if name in TRACKERS and importlib.util.find_spec(name) is None:
            stop(f"report_to names {name}, which is not installed: pip install {name}")
    if training.trust_remote_code:
        stop("This program runs no code from a model's folder: leave trust_remote_code out.")
    if not model.model_name_or_path:
        stop("model_name_or_path is missing: a folder, or a model's name on the hub.")


def effective_batch_size(training: SFTConfig, wanted: int | None) -> int:
    """Accumulate as many batches as make the effective batch size, and return it."""
    # Processes that share a sequence (context parallel) read the same examples.
    readers = training.world_size // int(os.environ.get("PARALLELISM_CONFIG_CP_SIZE", 1))
    size = training.per_device_train_batch_size * readers
    if wanted is not None:
        if wanted < size or wanted % size:
            stop(
                f"effective_batch_size {wanted} cannot be divided into batches of "
                f"{training.per_device_train_batch_size} on {readers} processes: take a multiple "
                f"of {size}, or another per_device_train_batch_size."
            )
        training.gradient_accumulation_steps = wanted // size
    return size * training.gradient_accumulation_steps


def engine() -> str:
    """Name what writes the checkpoints: each of these can read only its own."""
    for name in ("fsdp", "deepspeed"):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() == "true":
            return name
    return "one process or DDP"


def checkpoint_of(folder: Path, fixed: dict[str, Any], steps: int) -> tuple[str | None, bool, str]:
    """Find where to go on: the last complete checkpoint, whether it is the end, what is wrong."""
    record = folder / "settings.json"
    before = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    changed = [
        f"{name} was {before[name]} and is {value}"
        for name, value in fixed.items()
        if name in before and before[name] != value
    ]
    saved = {int(path.name[11:]): path for path in folder.glob("checkpoint-[0-9]*")}
    if changed and saved:
        told = f"{saved[min(saved)]} belongs to another training: {'; '.join(changed)}. "
        return None, False, f"{told}Set these back, or take another output_dir."
    found = last_checkpoint(folder)
    step = int(Path(found).name[11:]) if found else -1
    for later in saved.keys() - range(step + 1):
        print(f"{saved[later]} is incomplete and will be deleted.")
        shutil.rmtree(saved[later])
    ended = False
    if found:
        state = json.loads(Path(found, "trainer_state.json").read_text(encoding="utf-8"))
        ended = step >= (steps if steps > 0 else state["max_steps"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json.part").write_text(json.dumps(fixed, indent=1), encoding="utf-8")
    (folder / "settings.json.part").replace(record)
    return found, ended, ""


class Finished(Exception):
    """The checkpoint holds the last step: resumed there, the trainer would do one step more."""


class StopOnSigterm(TrainerCallback):
    """Save a checkpoint and stop after the step in which any process gets SIGTERM.

    The signal reaches the processes at different steps, or only those of one node. They agree after
    each step, because a checkpoint needs all of them.
    """

    asked = stopped = False

    def _note(self, *_: object) -> None:
        self.asked = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Listen to the signal. Before the first step, it simply ends the program."""
        if state.global_step >= state.max_steps:
            raise Finished
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """From here on, the signal ends the program at once."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop all processes if one of them was asked to."""
        asked = torch.tensor(float(self.asked), device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        if asked.item():
            self.stopped = state.global_step < state.max_steps
            control.should_save = control.should_training_stop = True


def check_training(trainer: SFTTrainer) -> None:
    """Run preflight on the first process, and stop all of them if a check fails."""
    failed = [False]
    if trainer.is_world_process_zero():
        report = preflight(trainer)
        print(report, flush=True)
        failed = [not report.ok]
    if broadcast_object_list(failed)[0]:
        stop("The training is not ready: see the rows marked with a cross.")


def save(trainer: SFTTrainer, folder: Path) -> None:
    """Write the adapter or the model from one process, so that the folder is whole or not there."""
    if trainer.is_fsdp_enabled:  # with sharded checkpoints, nothing would be written here
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    part, old = folder.with_name(f"{folder.name}.part"), folder.with_name(f"{folder.name}.old")
    first = trainer.is_world_process_zero()
    if first:
        for path in (part, old):
            shutil.rmtree(path, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(part))  # all processes take part: each has a share of the weights
    bad = [""]
    if first:
        sizes = {}
        for file in part.glob("*.safetensors"):
            with safe_open(file, "pt") as tensors:
                sizes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        if not sizes or any(0 in size for size in sizes.values()):
            bad = [f"{part} holds no weights, or empty ones: is zero3_save_16bit_model set?"]
        else:
            if folder.exists():
                folder.rename(old)
            part.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
            print(f"{folder}: {len(sizes)} tensors.", flush=True)
    if problem := broadcast_object_list(bad)[0]:
        stop(problem)


def main(arguments: list[str] | None = None) -> tuple[SFTTrainer, int]:
    """Train as the configuration says; return the trainer and the exit status."""
    gpus, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if 0 < gpus < processes:
        stop(f"{processes} processes were started, and this node has {gpus} GPUs.")
    try:
        parser = TrlParser((Settings, SFTConfig, ModelConfig))
        settings, training, model = parser.parse_args_and_config(arguments)
    except (OSError, ValueError) as error:
        stop(f"The configuration cannot be used: {error}")
    check_machine(training, model)
    size = effective_batch_size(training, settings.effective_batch_size)
    if training.data_seed is None:
        training.data_seed = training.seed

    output, everything = Path(training.output_dir), vars(settings) | vars(training) | vars(model)
    fixed = {name: everything[name] for name in FIXED}
    fixed |= {"effective_batch_size": size, "engine": engine()}
    found = [(None, False, "")]
    if training.process_index == 0:
        found = [checkpoint_of(output, fixed, training.max_steps)]
    checkpoint, ended, wrong = broadcast_object_list(found)[0]
    if wrong:
        stop(wrong)
    if checkpoint and not all(gather_object([Path(checkpoint).is_dir()])):
        stop(f"Not every node can read {checkpoint}: output_dir must be on shared storage.")
    training.resume_from_checkpoint = checkpoint

    # The same adapter on all processes; after that, each draws its own dropout.
    set_seed(training.seed)
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "dtype": model.dtype,
        "attn_implementation": model.attn_implementation,
    } | (training.model_init_kwargs or {})
    listener = StopOnSigterm()
    wants_eval = training.eval_strategy != "no" and settings.eval_data
    try:
        trainer = SFTTrainer(
            model=model.model_name_or_path,
            args=training,
            train_dataset=load(settings.data, settings),
            eval_dataset=load(settings.eval_data, settings) if wants_eval else None,
            quantization_config=get_quantization_config(model),
            peft_config=get_peft_config(model),
            callbacks=[listener],
        )
    except OSError as error:
        stop(f"The model {model.model_name_or_path} cannot be loaded: {error}")
    set_seed(training.seed + training.process_index)

    if not ended:
        check_training(trainer)
    with contextlib.suppress(Finished):
        trainer.train(resume_from_checkpoint=checkpoint)
    if listener.stopped:
        trainer.accelerator.print(f"Stopped by SIGTERM at step {trainer.state.global_step}.")
    else:
        save(trainer, output / "final")
    trainer.accelerator.end_training()
    return trainer, STOPPED if listener.stopped else 0


if __name__ == "__main__":
    trainer, status = main()
    # All is written. Python's own end would free the trainer, and there gloo can wait forever.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
