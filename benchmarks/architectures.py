"""Tries every decoder that transformers has: can its training be predicted?

    python -m benchmarks.architectures      # all, into results/architectures.csv

For each model type in transformers' list of causal language models, a model of two layers and a
small vocabulary is made on the meta device, otherwise as its configuration is by default, and two
trainings are predicted: of all weights, and QLoRA on all linear layers. What is refused is
written down with the reason. Each prediction has a minute.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import io
import signal
from pathlib import Path
from typing import Any

from course_utils._core.files import replace_file
from course_utils.memory import Setup, predict

RESULTS = Path(__file__).parent / "results" / "architectures.csv"
COLUMNS = ("model_type", "full", "qlora", "reason", "transformers")
SECONDS = 60
QLORA = {"quantization": "nf4", "lora": True, "lora_targets": "all-linear", "lora_dropout": 0.0}
SMALL = {"vocab_size": 1000, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
# Where the defaults do not make a model.
NEEDED: dict[str, dict[str, Any]] = {
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 4, "moe_topk": 2},
    "nemotron": {"head_dim": 128, "num_key_value_heads": 8},
    "dots1": {
        **{"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
        **{"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    },
    "gemma3n_text": {"num_kv_shared_layers": 0},
}


class TooLong(Exception):
    """A prediction that took more than its minute."""


def _stop(*_: Any) -> None:
    raise TooLong


def configuration(kind: str) -> dict[str, Any]:
    """A model type's default configuration with two layers and a small vocabulary."""
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[kind](**NEEDED.get(kind, {}))
    values: dict[str, Any] = {"model_type": kind, **NEEDED.get(kind, {})}
    values |= {name: value for name, value in SMALL.items() if hasattr(config, name)}
    values |= {name: 2 for name in LAYERS if hasattr(config, name)}
    if isinstance(types := config.to_dict().get("layer_types"), list):
        values["layer_types"] = list(dict.fromkeys(types))[:2] * (1 if len(set(types)) > 1 else 2)
    return values


def tried(kind: str, options: dict[str, Any]) -> str:
    """Empty where the training is predicted, else why it is not."""
    signal.alarm(SECONDS)
    try:
        predict(Setup(configuration(kind), seq_len=64, dtype="bfloat16", **options), "a100-80gb")
        return ""
    except TooLong:
        return f"more than {SECONDS} s"
    except Exception as error:
        said = " ".join(str(error).split())
        said = said.split("the installed libraries stop at this with ")[-1]
        return f"{said[:160]}" or type(error).__name__
    finally:
        signal.alarm(0)


def main() -> None:
    """Try all of them."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    # What is imported once must not be stopped in the middle.
    predict(Setup("course/pythia-3m", seq_len=32, **QLORA))
    signal.signal(signal.SIGALRM, _stop)
    version = importlib.metadata.version("transformers")
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for kind in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        reasons = {"full": tried(kind, {}), "qlora": tried(kind, QLORA)}
        told = {name: "refused" if reason else "predicted" for name, reason in reasons.items()}
        reason = reasons["full"] or reasons["qlora"]
        writer.writerow({"model_type": kind, **told, "reason": reason, "transformers": version})
        print(kind, told, reason[:100], flush=True)
    replace_file(args.results, text.getvalue())


if __name__ == "__main__":
    main()
