"""Asks other estimators about the trainings of `measured/`, for `replay` to write beside ours.

    pip install --no-deps --target build/others fitcheck-llm==0.3.1 canifinetune==0.4.1
    PYTHONPATH=build/others python -m benchmarks.estimates

They get a folder of their own, since the course does not need them. What they say goes to
`measured/estimates.csv`, in MB = 10^6 bytes.
"""

from __future__ import annotations

import csv
import importlib.metadata
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from benchmarks import replay
from course_utils._core.undisturbed import quiet_libraries
from course_utils.memory import Setup

RESULTS = Path(__file__).parent / "measured" / "estimates.csv"
MIB, GIB = 2**20, 2**30
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def parameters(setup: Setup) -> int:
    """How many the model has."""
    import torch

    with torch.device("meta"), quiet_libraries():
        return AutoModelForCausalLM.from_config(setup.config()).num_parameters()


def by_accelerate(setup: Setup, count: int) -> dict[str, float]:
    """`accelerate estimate-memory`: training all weights with Adam; it knows no other settings."""
    from accelerate.commands.estimate import estimate_training_usage

    sizes = estimate_training_usage(4 * count, setup.dtype)
    return {"accelerate_allocated_mb": max(sizes.values()) / 1e6}


def by_fitcheck(setup: Setup, count: int) -> dict[str, float]:
    """fitcheck-llm: tensors alone, and the whole process with its CUDA context."""
    from fitcheck.config_parser import ModelConfig
    from fitcheck.estimator import TrainingConfig, estimate
    from fitcheck.gpu_db import get_gpu

    config = setup.config()
    heads = config.num_attention_heads
    said = estimate(
        ModelConfig(
            name=setup.name,
            num_params=count,
            hidden_size=config.hidden_size,
            num_layers=config.num_hidden_layers,
            num_attention_heads=heads,
            num_kv_heads=config.num_key_value_heads,
            intermediate_size=config.intermediate_size,
            vocab_size=config.vocab_size,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            tie_word_embeddings=config.tie_word_embeddings,
        ),
        TrainingConfig(
            precision="fp16",
            quantization=setup.quantization or "none",
            batch_size=setup.batch_size,
            seq_len=setup.seq_len,
            lora_rank=setup.lora_rank,
            lora_targets=TARGETS,
            grad_checkpoint=True,
            flash_attn=setup.attention != "eager",
        ),
        get_gpu("t4"),
    )
    return {
        "fitcheck_allocated_mb": (said.total_mib - said.overhead_mib) * MIB / 1e6,
        "fitcheck_process_mb": said.total_mib * MIB / 1e6,
    }


def by_canifinetune(setup: Setup, count: int) -> dict[str, float]:
    """canifinetune: what is reserved, without its safety margin."""
    from canifinetune.estimator.memory import EstimateRequest, estimate

    config = setup.config()
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    names += ("intermediate_size", "vocab_size", "tie_word_embeddings")
    family = "qwen2" if config.model_type == "qwen2" else "llama"
    memory = estimate(
        EstimateRequest(
            model_id=setup.name,
            method="qlora" if setup.quantization else "lora",
            quantization=setup.quantization or "none",
            base_dtype="fp16",
            seq_len=setup.seq_len,
            micro_batch_size=setup.batch_size,
            lora_rank=setup.lora_rank,
            lora_dropout=0.0,
            optimizer="adamw_torch",
            attention_implementation=setup.attention,
            gpu_vram_gb=14912 / 1024,
            use_network=False,
            override={name: getattr(config, name) for name in names}
            | {"family": family, "total_params": count},
        )
    ).memory
    reserved = memory.total_estimated_gb - memory.safety_margin_gb
    return {"canifinetune_reserved_mb": reserved * GIB / 1e6}


def main() -> None:
    """Ask, write."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    counts: dict[str, int] = {}
    for name, (as_setup, _) in replay.SOURCES.items():
        for row in replay.rows_of(name):
            setup = as_setup(row)
            key = replay.estimated(setup)
            if key in rows:
                continue
            count = counts.setdefault(setup.name, parameters(setup))
            told: dict[str, Any] = dict(zip(replay.ESTIMATED, key, strict=True))
            for ask in (by_fitcheck, by_accelerate, by_canifinetune):
                told |= {column: round(size, 1) for column, size in ask(setup, count).items()}
            rows[key] = told
    versions = {
        name: importlib.metadata.version(name)
        for name in ("fitcheck-llm", "accelerate", "canifinetune")
    }
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        columns = [*replay.ESTIMATED, *replay.OTHERS]
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
    print(f"{len(rows)} trainings, {versions}")


if __name__ == "__main__":
    main()
