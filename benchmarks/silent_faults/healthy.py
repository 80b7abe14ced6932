"""Correct trainings, usual and unusual: of none of them may anything be said.

They are made by loops: chat templates x forms of data, architectures x adapters, packing, options
of the trainers, and the trainers of other tasks. A combination stands here only if its rows hold
the whole text, the loss counts the answer and its end and not the prompt, and a step of training
runs. What the libraries refuse, and what can be argued about, is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers as tf
from datasets import Dataset, concatenate_datasets
from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

from benchmarks.silent_faults.common import (
    SETTINGS,
    TEMPLATES,
    WORDS,
    add_healthy,
    base_tokenizer,
    chat_tokenizer,
    chats,
    folder,
    lora,
    pairs,
    plain,
    saved,
    sft,
    tiny,
    tokenized,
    tokenizer_with,
)

Rows = list[dict[str, Any]]
Form = tuple[Callable[[], Rows], dict[str, Any]]

# Chat templates x forms of data

SYSTEM = {"role": "system", "content": "Be brief and kind."}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "count_stones",
            "description": "Count the stones of a colour.",
            "parameters": {
                "type": "object",
                "properties": {"colour": {"type": "string", "description": "The colour."}},
                "required": ["colour"],
            },
        },
    }
]


def as_messages(rows: Rows) -> Rows:
    """Prompts and completions joined to conversations."""
    return [{"messages": row["prompt"] + row["completion"]} for row in rows]


def with_system(rows: Rows) -> Rows:
    """The same rows with a system prompt."""
    return [{**row, "prompt": [SYSTEM, *row["prompt"]]} for row in rows]


def systems(count: int = 12) -> Rows:
    """Conversations of two rounds under a system prompt."""
    return [{"messages": [SYSTEM, *row["messages"]]} for row in chats(count)]


def reasons(count: int = 12) -> Rows:
    """Questions whose one answer is reasoned about in a field of its own."""
    rows = pairs(count)
    for place, row in enumerate(rows):
        row["completion"][0]["reasoning_content"] = f"Request {place} wants a word two times."
    return rows


def long_prompts(count: int = 12) -> Rows:
    """Prompts that are conversations themselves."""
    return [
        {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}
        for row in chats(count, turns=3)
    ]


def _asked(row: int, colour: str) -> dict[str, Any]:
    return {"role": "user", "content": f"How many {colour} stones are in heap {row}?"}


def _call(colour: str) -> dict[str, Any]:
    function = {"name": "count_stones", "arguments": {"colour": colour}}
    return {"role": "assistant", "content": "", "tool_calls": [_typed(function)]}


def _typed(function: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": function}


def calls(count: int = 12) -> Rows:
    """Questions that are answered by a call of a tool."""
    return [
        {"prompt": [_asked(row, colour)], "completion": [_call(colour)], "tools": TOOLS}
        for row, colour in enumerate((WORDS * (count // 12 + 1))[:count])
    ]


def results(count: int = 12) -> Rows:
    """A call and what the tool said in the prompt; the answer says it in words."""
    rows = calls(count)
    for number, row in enumerate(rows):
        told = {"role": "tool", "name": "count_stones", "content": f"{number + 3}"}
        row["prompt"] += [*row["completion"], told]
        row["completion"] = [{"role": "assistant", "content": f"There are {number + 3} of them."}]
    return rows


FORMS: dict[str, Form] = {
    "messages": (lambda: as_messages(pairs()), {"assistant_only_loss": True}),
    "rounds": (chats, {"assistant_only_loss": True}),
    "rounds and system": (systems, {"assistant_only_loss": True}),
    "pairs": (pairs, {}),
    "pairs and system": (lambda: with_system(pairs()), {}),
    "long prompts": (long_prompts, {}),
    "reasoning": (reasons, {}),
    "reasoning, messages": (lambda: as_messages(reasons()), {"assistant_only_loss": True}),
    "tool calls": (calls, {}),
    "tool results": (results, {}),
}

# The ends of turns that `common` does not know, as the models' own tokenizers have them.
_ENDS = {
    **dict.fromkeys(("llama3_1", "llama3_2"), "<|eot_id|>"),
    **dict.fromkeys(("gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5"), "<turn|>"),
    **dict.fromkeys(("phi3", "phi3_5"), "<|endoftext|>"),
    "diffusion_gemma": "<turn|>",
    "muse_glimmer": "<|eot|>",
}
_BEGINNINGS = {
    **dict.fromkeys(("gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5"), "<bos>"),
    **dict.fromkeys(("llama3_1", "llama3_2"), "<|begin_of_text|>"),
    **dict.fromkeys(("lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl"), "<|startoftext|>"),
    "diffusion_gemma": "<bos>",
}


def stand_in(template: str) -> PreTrainedTokenizerBase:
    """A tokenizer with one of TRL's templates, also of those that it trains with."""
    stock = template.removesuffix("_training")
    tokenizer = tokenizer_with(stock)
    named = {"eos_token": _ENDS.get(stock), "bos_token": _BEGINNINGS.get(stock)}
    for name, token in named.items():
        if token:
            tokenizer.add_special_tokens({name: token})
    if stock.startswith(("llama3", "qwen3_5_nothink")):
        # As in these models' own tokenizers, where a text follows an empty line.
        tokenizer.add_tokens(["\n\n"])
    tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    return tokenizer


def chat_training(template: str, form: str, adapter: bool = True) -> Trainer:
    """Fine-tuning of a small Llama under a template."""
    tokenizer = stand_in(template)
    rows, options = FORMS[form]
    parts = {"peft_config": lora()} if adapter else {}
    model = tiny(tokenizer)
    if template == "gptoss":
        ends = ["<|return|>", "<|call|>"]
        model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(ends)
    return sft(rows(), model, tokenizer, **parts, **options)


# What each template can be given so that nothing is lost, measured: see the module's docstring.
GOOD: list[tuple[str, str]] = [
    (
        "messages; rounds; rounds and system; pairs; pairs and system; long prompts; "
        "reasoning; reasoning, messages; tool calls; tool results",
        "gptoss lfm2_2_5 lfm2_2_5_vl muse_glimmer qwen3_8",
    ),
    (
        "messages; rounds; rounds and system; pairs; pairs and system; long prompts; "
        "reasoning; reasoning, messages; tool results",
        "diffusion_gemma",
    ),
    (
        "messages; pairs; pairs and system; long prompts; reasoning; reasoning, messages; "
        "tool calls; tool results",
        "qwen3 qwen3_5_think qwen3_6",
    ),
    (
        "messages; rounds; rounds and system; pairs; pairs and system; long prompts; tool "
        "calls; tool results",
        "lfm2_v2 qwen2_5 qwen3_instruct_2507 qwen3_vl",
    ),
    (
        "messages; rounds; rounds and system; pairs; pairs and system; long prompts; tool results",
        "lfm2",
    ),
    (
        "messages; pairs; pairs and system; long prompts; tool calls; tool results",
        "qwen3_5_nothink",
    ),
    (
        "messages; rounds; rounds and system; pairs; pairs and system; long prompts",
        "cohere cohere2 gemma3 llama3 phi3 phi3_5 qwen2_5_vl",
    ),
    (
        "pairs; pairs and system; long prompts; reasoning; tool results",
        "gemma4_v5",
    ),
    (
        "pairs; pairs and system; long prompts; tool calls; tool results",
        "llama3_1 llama3_2",
    ),
    (
        "messages; rounds; pairs; long prompts",
        "gemma",
    ),
    (
        "messages; rounds; rounds and system; reasoning, messages",
        "glm4moe",
    ),
    (
        "pairs; long prompts; tool calls; tool results",
        "gemma4_v2 lfm2_2_5_v2",
    ),
    (
        "pairs; pairs and system; long prompts; tool results",
        "gemma4",
    ),
    (
        "rounds; long prompts; reasoning, messages; tool results",
        "diffusion_gemma_training glm4moe_training gptoss_training muse_glimmer_training "
        "qwen3_5_think_training qwen3_6_training qwen3_8_training qwen3_training",
    ),
    (
        "pairs; long prompts; tool results",
        "gemma4_v3 gemma4_v4",
    ),
    (
        "rounds; long prompts; tool results",
        "lfm2_training lfm2_v2_training qwen2_5_training qwen3_5_nothink_training "
        "qwen3_instruct_2507_training qwen3_vl_training",
    ),
    (
        "reasoning; reasoning, messages",
        "nemotron_3_5_lightning nemotron_3_nano nemotron_3_super nemotron_3_ultra",
    ),
    (
        "rounds; long prompts",
        "cohere2_training cohere_training gemma3_training gemma_training llama3_training "
        "phi3_5_training phi3_training qwen2_5_vl_training",
    ),
    (
        "reasoning, messages",
        "nemotron_3_5_lightning_training nemotron_3_nano_training nemotron_3_super_training "
        "nemotron_3_ultra_training",
    ),
]


def _add_templates() -> None:
    for forms, templates in GOOD:
        for number, template in enumerate(templates.split()):
            for form in forms.split("; "):
                make = partial(chat_training, template, form, adapter=number % 3 > 0)
                add_healthy(f"template {template}, {form}", make)


# Architectures

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, scaled positions": (
        "Llama",
        {
            "rope_parameters": {
                **{"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0},
                **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
                "original_max_position_embeddings": 1024,
            }
        },
    ),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "gemma": ("Gemma", {"head_dim": 8}),
    "gemma2": ("Gemma2", {"head_dim": 8, "sliding_window": 16}),
    "gemma3": ("Gemma3ForCausalLM Gemma3TextConfig", {"head_dim": 8, "sliding_window": 16}),
    "phi": ("Phi", {}),
    "phi3": ("Phi3", {}),
    "gpt2": ("GPT2LMHeadModel GPT2Config", {}),
    "neox": ("GPTNeoX", {}),
    "gptj": ("GPTJ", {"rotary_dim": 4}),
    "gpt neo": (
        "GPTNeo",
        {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    ),
    "gpt bigcode": ("GPTBigCode", {}),
    "codegen": ("CodeGen", {"rotary_dim": 4}),
    "opt": ("OPT", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "bloom": ("Bloom", {}),
    "mpt": ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512}),
    "falcon": ("Falcon", {}),
    "mistral": ("Mistral", {"sliding_window": 64}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2 moe": (
        "Qwen2Moe",
        {**_MOE, "num_experts": 4, "shared_expert_intermediate_size": 16},
    ),
    "qwen3 moe": ("Qwen3Moe", {**_MOE, "num_experts": 4, "head_dim": 8}),
    "olmo": ("Olmo", {}),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", {"sliding_window": 64}),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "granite": ("Granite", {}),
    "granite moe": ("GraniteMoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "smollm3": ("SmolLM3", {}),
    "mamba": ("Mamba", {"state_size": 8}),
    "mamba2": (
        "Mamba2",
        {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    ),
    "lfm2": (
        "Lfm2",
        {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    ),
    "gpt-oss": ("GptOss", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "stablelm": ("StableLm", {}),
    "starcoder2": ("Starcoder2", {}),
    "cohere": ("Cohere", {}),
    "cohere2": ("Cohere2", {"sliding_window": 64}),
    "persimmon": ("Persimmon", {}),
    "glm": ("Glm", {"head_dim": 8}),
    "glm4": ("Glm4", {"head_dim": 8}),
    "nemotron": ("Nemotron", {"head_dim": 8}),
    "helium": ("Helium", {"head_dim": 8}),
    "ernie": ("Ernie4_5", {"head_dim": 8}),
    "exaone4": ("Exaone4", {"sliding_window": 64}),
    "seed": ("SeedOss", {"head_dim": 8}),
    "hunyuan": ("HunYuanDenseV1", {"head_dim": 8}),
    "arcee": ("Arcee", {}),
    "apertus": ("Apertus", {}),
    "diffllama": ("DiffLlama", {}),
    "xglm": ("XGLM", {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4}),
    "biogpt": ("BioGpt", {}),
    "jamba": (
        "Jamba",
        {
            **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
            **{"num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 8},
            "use_mamba_kernels": False,
        },
    ),
    "bamba": (
        "Bamba",
        {
            **{"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1},
            **{"mamba_chunk_size": 16, "attn_layer_indices": [1]},
        },
    ),
    "falcon h1": (
        "FalconH1",
        {
            **{"head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
            **{"mamba_d_state": 8, "mamba_chunk_size": 16},
        },
    ),
    "qwen3.5": (
        "Qwen3_5ForCausalLM Qwen3_5TextConfig",
        {
            **{"head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2},
            **{"linear_key_head_dim": 8, "linear_value_head_dim": 8},
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "recurrent gemma": (
        "RecurrentGemma",
        {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 64},
    ),
    "deepseek v3": (
        "DeepseekV3",
        {
            **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8},
            **{"qk_nope_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
            **{**_MOE, "first_k_dense_replace": 1, "num_key_value_heads": 4},
        },
    ),
    "rwkv": ("Rwkv", {}),
}


def small(name: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> PreTrainedModel:
    """A model of two layers or three of an architecture of `ARCHITECTURES`."""
    names, settings = ARCHITECTURES[name]
    model, config = names.split() if " " in names else (f"{names}ForCausalLM", f"{names}Config")
    return tiny(tokenizer, getattr(tf, model), getattr(tf, config), **(settings | options))


# The layers that "all-linear" does not find, or not all of which take an adapter.
TARGETS: dict[str, Any] = {
    "mamba": ["in_proj", "x_proj"],
    "mamba2": ["in_proj"],
    # Jamba reads the weight of dt_proj without calling the layer.
    "jamba": ["q_proj", "v_proj", "in_proj", "x_proj", "gate_proj", "up_proj", "down_proj"],
}


def of_architecture(name: str, kind: str) -> Trainer:
    """A training of an architecture: all weights, LoRA, or texts with a plain Trainer."""
    if kind == "texts":
        tokenizer = base_tokenizer()
        return plain(tokenized(tokenizer), small(name, tokenizer), tokenizer)
    tokenizer = chat_tokenizer()
    targets = TARGETS.get(name, "all-linear")
    parts = {"peft_config": lora(target_modules=targets)} if kind == "LoRA" else {}
    return sft(pairs(), small(name, tokenizer), tokenizer, **parts)


# Refused by TRL or peft.
NOT_BUILT = {
    ("granite moe", "all weights"),
    ("granite moe", "LoRA"),
    ("falcon h1", "LoRA"),
}


def _add_architectures() -> None:
    for name in ARCHITECTURES:
        for kind in ("all weights", "LoRA", "texts"):
            if (name, kind) not in NOT_BUILT:
                add_healthy(f"{name}, {kind}", partial(of_architecture, name, kind))


# Packing


def texts(count: int = 12) -> Rows:
    """Short texts, no two alike, without an end of their own: the trainer adds it."""
    words = (WORDS * (count // 12 + 1))[:count]
    return [
        {"text": f"Say {word} twice, number {row}: {word} {word}"} for row, word in enumerate(words)
    ]


def packed(name: str, form: str, **options: Any) -> Trainer:
    """A training of packed rows, of an architecture that keeps their documents apart."""
    if form == "texts":
        tokenizer, rows = base_tokenizer(), texts(24)
    else:
        tokenizer = chat_tokenizer()
        rows = pairs(24) if form == "pairs" else as_messages(pairs(24))
    if form == "messages":
        tokenizer = stand_in("qwen2_5")
        options["assistant_only_loss"] = True
    options = {"max_length": 128} | options
    return sft(rows, small(name, tokenizer), tokenizer, **options)


PACKED = "llama; qwen2; qwen3; mistral; gemma3; phi3; olmo2; smollm3; granite; cohere; neox"


def _add_packing() -> None:
    for number, name in enumerate(PACKED.split("; ")):
        for form in ("texts", "pairs", "messages"):
            options = {"peft_config": lora(target_modules="all-linear")} if number % 2 else {}
            make = partial(packed, name, form, packing=True, **options)
            add_healthy(f"packed {form}, {name}", make)
        make = partial(packed, name, "pairs", padding_free=True, max_length=None)
        add_healthy(f"padding-free pairs, {name}", make)
    more = {"packing": True, "padding_free": False}
    add_healthy("packed pairs, several rows padded", partial(packed, "llama", "pairs", **more))


# Adapters


def _vera() -> VeraConfig:
    return VeraConfig(r=4, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM")


ADAPTERS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "LoRA": (lora, {}),
    "LoRA on all-linear": (lambda: lora(target_modules="all-linear"), {}),
    "LoRA by an expression": (
        lambda: lora(target_modules=r".*layers\.\d+\.(self_attn|mlp)\.(q_proj|down_proj)"),
        {},
    ),
    "LoRA in one layer": (lambda: lora(layers_to_transform=[1]), {}),
    "LoRA on the attention": (
        lambda: lora(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
        {},
    ),
    "LoRA on the MLP": (lambda: lora(target_modules=["gate_proj", "up_proj", "down_proj"]), {}),
    "LoRA with dropout": (lambda: lora(lora_dropout=0.1), {}),
    "LoRA with other ranks": (lambda: lora(rank_pattern={"q_proj": 8}), {}),
    "LoRA of rank 32": (lambda: lora(r=32, lora_alpha=64), {"learning_rate": 2e-4}),
    "LoRA with biases": (lambda: lora(bias="lora_only"), {}),
    "LoRA, gaussian start": (lambda: lora(init_lora_weights="gaussian"), {}),
    "LoRA, PiSSA start": (lambda: lora(init_lora_weights="pissa"), {"learning_rate": 2e-4}),
    "LoRA, orthogonal start": (lambda: lora(init_lora_weights="orthogonal"), {}),
    "DoRA": (lambda: lora(use_dora=True), {}),
    "DoRA on all-linear": (lambda: lora(use_dora=True, target_modules="all-linear"), {}),
    "rsLoRA": (lambda: lora(use_rslora=True), {"learning_rate": 5e-4}),
    "LoRA and saved head": (lambda: lora(modules_to_save=["lm_head"]), {"learning_rate": 2e-4}),
    "LoRA and saved embeddings": (
        lambda: lora(modules_to_save=["embed_tokens", "lm_head"]),
        {"learning_rate": 2e-4},
    ),
    "LoRA and some tokens": (lambda: lora(trainable_token_indices=[1, 2]), {}),
    "IA3": (
        lambda: IA3Config(
            task_type="CAUSAL_LM",
            target_modules=["k_proj", "v_proj", "down_proj"],
            feedforward_modules=["down_proj"],
        ),
        {"learning_rate": 5e-3},
    ),
    "prompt tuning": (
        lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        {"learning_rate": 1e-2},
    ),
    "prefix tuning": (
        lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        {"learning_rate": 1e-2},
    ),
    "norms only": (lambda: LNTuningConfig(task_type="CAUSAL_LM"), {"learning_rate": 1e-3}),
    "OFT": (
        lambda: OFTConfig(
            task_type="CAUSAL_LM", oft_block_size=4, r=0, target_modules=["q_proj", "v_proj"]
        ),
        {},
    ),
    "VeRA": (_vera, {"learning_rate": 4e-3}),
}


def adapted(name: str, architecture: str, form: str) -> Trainer:
    """A training of an adapter that the trainer makes."""
    config, options = ADAPTERS[name]
    if form == "texts":
        tokenizer, rows = base_tokenizer(), texts()
    else:
        tokenizer, rows = chat_tokenizer(), pairs()
    model = small(architecture, tokenizer)
    return sft(rows, model, tokenizer, peft_config=config(), **options)


def adapted_before(kind: str) -> Trainer:
    """An adapter that the model already has when the trainer gets it."""
    tokenizer = chat_tokenizer()
    model = get_peft_model(tiny(tokenizer), lora())
    if kind == "loaded":
        where = saved(model)
        model = tf.AutoModelForCausalLM.from_pretrained(saved(tiny(tokenizer)))
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, where, is_trainable=True)
    if kind == "plain":
        rows = [_masked(tokenizer, row) for row in pairs()]
        collator = DataCollatorForSeq2Seq(tokenizer)
        return plain(rows, model, tokenizer, data_collator=collator, learning_rate=1e-3)
    return sft(pairs(), model, tokenizer, learning_rate=1e-3)


def new_tokens() -> Trainer:
    """Tokens that were added, the embeddings made larger, and trained with the adapter."""
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens(["<plum>", "<tree>"])
    model = tiny(tokenizer, vocab_size=len(tokenizer) - 2)
    model.resize_token_embeddings(len(tokenizer))
    rows = pairs()
    for row in rows:
        row["completion"][0]["content"] += " <plum> <tree>"
    both = ["embed_tokens", "lm_head"]
    return sft(rows, model, tokenizer, peft_config=lora(modules_to_save=both), learning_rate=2e-4)


def experts() -> Trainer:
    """LoRA on the experts' joined parameters of a mixture, and on its attention."""
    tokenizer = chat_tokenizer()
    model = small("mixtral", tokenizer)
    names = [
        name.split("layers.0.")[1]
        for name, _ in model.named_parameters()
        if "layers.0." in name and name.endswith(("gate_up_proj", "experts.down_proj"))
    ]
    config = lora(target_parameters=names)
    return sft(pairs(), model, tokenizer, peft_config=config)


def _add_adapters() -> None:
    for name in ADAPTERS:
        add_healthy(f"{name}, pairs", partial(adapted, name, "llama", "pairs"))
        if "tokens" not in name:
            add_healthy(f"{name}, texts", partial(adapted, name, "qwen3", "texts"))
    for kind in ("given", "loaded", "plain"):
        add_healthy(f"adapter made before, {kind}", partial(adapted_before, kind))
    add_healthy("added tokens, trained", new_tokens)
    add_healthy("LoRA on a mixture's experts", experts)


# Options of the trainers


def _masked(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> dict[str, Any]:
    """A pair tokenized by hand, the prompt left out of the labels."""
    prompt = tokenizer.apply_chat_template(
        row["prompt"], add_generation_prompt=True, return_dict=False
    )
    whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)
    labels = [-100] * len(prompt) + whole[len(prompt) :]
    return {"input_ids": whole, "attention_mask": [1] * len(whole), "labels": labels}


OPTIONS: dict[str, dict[str, Any]] = {
    "accumulation": {"gradient_accumulation_steps": 3, "max_steps": 2},
    "checkpointing": {"gradient_checkpointing": True},
    "checkpointing with reentry": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "epochs": {"max_steps": -1, "num_train_epochs": 2},
    "one long epoch": {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 1},
    "cosine": {"lr_scheduler_type": "cosine", "warmup_steps": 1},
    "constant rate": {"lr_scheduler_type": "constant"},
    "warm-up by share": {"warmup_steps": 0.2},
    "cosine with a floor": {
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 1e-6},
    },
    "weight decay": {"weight_decay": 0.1},
    "adafactor": {"optim": "adafactor"},
    "SGD": {"optim": "sgd", "learning_rate": 1e-2},
    "AdamW, betas": {"adam_beta2": 0.95, "adam_epsilon": 1e-6},
    "clipping off": {"max_grad_norm": 0.0},
    "noise in embeddings": {"neftune_noise_alpha": 5.0},
    "short max_length": {"max_length": 96},
    "no max_length": {"max_length": None},
    "padding to eight": {"pad_to_multiple_of": 8},
    "drop last": {"dataloader_drop_last": True, "per_device_train_batch_size": 4},
    "another seed": {"seed": 7, "data_seed": 11},
    "sorted by length": {"train_sampling_strategy": "group_by_length"},
    "in order": {"train_sampling_strategy": "sequential"},
    "batch of one": {"per_device_train_batch_size": 1},
    "batch of six": {"per_device_train_batch_size": 6, "max_steps": 4},
    "DFT loss": {"loss_type": "dft"},
    "chunked loss": {"loss_type": "chunked_nll"},
}


def with_options(options: dict[str, Any], kind: str) -> Trainer:
    """The course's usual training with some options: pairs or texts, LoRA or all weights."""
    if kind == "texts":
        tokenizer = base_tokenizer()
        return sft(texts(), tiny(tokenizer), tokenizer, **options)
    tokenizer = chat_tokenizer()
    return sft(pairs(), tiny(tokenizer), tokenizer, peft_config=lora(), **options)


PLAIN_OPTIONS: dict[str, dict[str, Any]] = {
    "usual": {},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "accumulation": {"gradient_accumulation_steps": 2, "max_steps": 3},
    "checkpointing": {"gradient_checkpointing": True},
    "epochs": {"max_steps": -1, "num_train_epochs": 3},
    "sorted by length": {"train_sampling_strategy": "group_by_length"},
    "weight decay": {"weight_decay": 0.01, "warmup_steps": 2},
    "adafactor": {"optim": "adafactor"},
    "drop last": {"dataloader_drop_last": True},
    "cosine": {"lr_scheduler_type": "cosine"},
}


def with_plain_options(options: dict[str, Any], kind: str) -> Trainer:
    """transformers' own Trainer: whole texts, or pairs whose prompts are masked by hand."""
    if kind == "texts":
        tokenizer = base_tokenizer()
        return plain(tokenized(tokenizer), tiny(tokenizer), tokenizer, **options)
    tokenizer = stand_in("qwen2_5")
    rows = [_masked(tokenizer, row) for row in pairs()]
    collator = DataCollatorForSeq2Seq(tokenizer)
    return plain(rows, tiny(tokenizer), tokenizer, data_collator=collator, **options)


def autocast(kind: str) -> Trainer:
    """Computing in bfloat16 with weights in float32."""
    return with_options({"bf16": True}, kind)


def evaluated(kind: str) -> Trainer:
    """A training with a held-out set, of other rows than the training's."""
    options = {"eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 2}
    if kind == "plain":
        tokenizer = base_tokenizer()
        data = Dataset.from_list(tokenized(tokenizer, 18))
        parts = {"eval_dataset": data.select(range(12, 18))}
        return plain(data.select(range(12)), tiny(tokenizer), tokenizer, **parts, **options)
    if kind == "texts":
        tokenizer, data = base_tokenizer(), Dataset.from_list(texts(18))
    elif kind == "messages":
        tokenizer, data = stand_in("qwen3"), Dataset.from_list(chats(18))
        options["assistant_only_loss"] = True
    else:
        tokenizer, data = chat_tokenizer(), Dataset.from_list(pairs(18))
    held_out = data.select(range(12, 18))
    if kind == "two sets":
        held_out = {"first": data.select(range(12, 15)), "second": data.select(range(15, 18))}
    if kind == "best kept":
        options |= {"save_strategy": "steps", "save_steps": 3, "load_best_model_at_end": True}
    return sft(data.select(range(12)), tiny(tokenizer), tokenizer, eval_dataset=held_out, **options)


def streamed(kind: str) -> Trainer:
    """Datasets that can only be read in order."""
    if kind == "texts":
        tokenizer, rows = base_tokenizer(), texts()
    elif kind == "messages":
        tokenizer, rows = stand_in("qwen2_5"), chats()
    else:
        tokenizer, rows = chat_tokenizer(), pairs()
    options = {"assistant_only_loss": True} if kind == "messages" else {}
    data = Dataset.from_list(rows).to_iterable_dataset()
    return sft(data, tiny(tokenizer), tokenizer, **options)


def odd_data(kind: str) -> Trainer:
    """Data that is unusual and all right."""
    tokenizer, rows = chat_tokenizer(), pairs()
    options: dict[str, Any] = {}
    if kind == "languages":
        said = ["Pflaume, süß", "слива", "すもも", "李子", "برقوق", "ciruela ñ"] * 2
        for row, word in zip(rows, said, strict=True):
            row["completion"][0]["content"] = f"{word}!"
    elif kind == "line breaks":
        for row in rows:
            row["completion"][0]["content"] += "\n\n- one\n- two\n\tthree"
    elif kind == "code":
        for row in rows:
            row["completion"][0]["content"] = f"```python\nprint({row['prompt'][0]!r})\n```"
    elif kind == "uneven lengths":
        for place, row in enumerate(rows):
            row["completion"][0]["content"] += " and more" * (place * place)
        options["max_length"] = 2048
    elif kind == "one word answers":
        for place, row in enumerate(rows):
            row["completion"][0]["content"] = WORDS[place]
    elif kind == "two answers":
        for place, row in enumerate(rows):
            row["completion"][0]["content"] = ("yes", "no")[place % 2]
    elif kind == "few rows":
        rows = rows[:3]
        options |= {"max_steps": -1, "num_train_epochs": 4, "per_device_train_batch_size": 1}
    elif kind == "many rows":
        rows = pairs(240)
    elif kind == "further columns":
        rows = [{**row, "source": "made up", "score": 0.5} for row in rows]
    elif kind == "two datasets":
        data = [Dataset.from_list(rows), Dataset.from_list(pairs(24)[12:])]
        return sft(concatenate_datasets(data), tiny(tokenizer), tokenizer)
    elif kind == "questions as answers":
        rows = [
            {
                "prompt": [{"role": "user", "content": f"Ask me about {word}, number {row}."}],
                "completion": [{"role": "assistant", "content": f"What is {word} to you?"}],
            }
            for row, word in enumerate(WORDS)
        ]
    elif kind == "the same question":
        for row in rows[:3]:
            row["prompt"][0]["content"] = "Say a word twice, any word"
    elif kind == "mentions of marks":
        for row in rows:
            row["prompt"][0]["content"] += " (no user: or assistant: in it, and no <b>)"
    elif kind == "braces":
        for row in rows:
            row["completion"][0]["content"] += ' {"a": [1, 2], "b": "{{c}}"}'
    return sft(rows, tiny(tokenizer), tokenizer, peft_config=lora(), **options)


ODD = (
    *("languages", "line breaks", "code", "uneven lengths", "one word answers", "two answers"),
    *("few rows", "many rows", "further columns", "two datasets", "questions as answers"),
    *("the same question", "mentions of marks", "braces"),
)


def base_model(kind: str) -> Trainer:
    """Trainings of a base model, without a chat template."""
    tokenizer = base_tokenizer()
    model = tiny(tokenizer)
    words = list(enumerate(WORDS))
    if kind == "pairs as texts":
        rows = [
            {"prompt": f"Say {word} twice, number {row}\n", "completion": f"{word} {word}"}
            for row, word in words
        ]
        return sft(rows, model, tokenizer)
    if kind == "formatted":
        rows = [
            {"question": f"Say {word} twice, {row}", "answer": f"{word}"} for row, word in words
        ]
        shown = lambda row: f"Q: {row['question']}\nA: {row['answer']}"  # noqa: E731
        return sft(rows, model, tokenizer, formatting_func=shown)
    if kind == "another field":
        rows = [{"content": row["text"]} for row in texts()]
        return sft(rows, model, tokenizer, dataset_text_field="content")
    if kind == "tokenized before":
        return sft(tokenized(tokenizer), model, tokenizer)
    if kind == "tokenized before, masked":
        rows = []
        for number, word in words:
            prompt = tokenizer(f"Say {word} twice, number {number}:")["input_ids"]
            answer = tokenizer(f" {word} {word}{tokenizer.eos_token}")["input_ids"]
            mask = [0] * len(prompt) + [1] * len(answer)
            rows.append({"input_ids": prompt + answer, "completion_mask": mask})
        return sft(rows, model, tokenizer, completion_only_loss=True)
    if kind == "whole pairs on purpose":
        rows = [{"text": f"Say {word} twice, {row}\n{word} {word}"} for row, word in words]
        return sft(rows, model, tokenizer, completion_only_loss=False)
    if kind == "blocks":
        text = tokenizer.eos_token.join(row["text"] for row in texts(12) * 12)
        ids = tokenizer(text)["input_ids"]
        rows = [{"input_ids": ids[at : at + 64]} for at in range(0, len(ids) - 64, 64)]
        return plain(rows, model, tokenizer)
    assert kind == "list of tensors", kind
    rows = [{n: torch.tensor(v) for n, v in row.items()} for row in tokenized(tokenizer)]
    data: Any = tuple(rows)
    return plain(data, model, tokenizer, data_collator=DataCollatorForSeq2Seq(tokenizer))


BASE = (
    *("pairs as texts", "formatted", "another field", "tokenized before"),
    *("tokenized before, masked", "whole pairs on purpose", "blocks"),
)


def own_optimizer(kind: str) -> Trainer:
    """Optimizers that somebody made themselves."""
    tokenizer = chat_tokenizer()
    model = tiny(tokenizer)
    groups: Any = model.parameters()
    if kind == "two groups":
        head = list(model.lm_head.parameters())
        rest = [p for name, p in model.named_parameters() if not name.startswith("lm_head")]
        groups = [{"params": rest, "lr": 1e-4}, {"params": head, "lr": 5e-5}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4)
    schedule = None
    if kind == "own schedule":
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return sft(pairs(), model, tokenizer, optimizers=(optimizer, schedule))


def part_frozen(kind: str) -> Trainer:
    """Some of the weights frozen on purpose."""
    tokenizer = chat_tokenizer()
    model = tiny(tokenizer)
    if kind == "embeddings":
        model.get_input_embeddings().requires_grad_(False)
    elif kind == "lower layers":
        model.get_input_embeddings().requires_grad_(False)
        model.model.layers[0].requires_grad_(False)
    else:
        model.requires_grad_(False)
        model.lm_head.requires_grad_(True)
    return sft(pairs(), model, tokenizer)


def own_loss(kind: str) -> Trainer:
    """Losses that somebody wrote, and wrote well."""
    tokenizer = base_tokenizer()

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs.logits[:, :-1].flatten(0, 1).float()
        told = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
        count = num_items_in_batch
        return told / (count if count is not None else (labels[:, 1:] != -100).sum())

    rows, model = tokenized(tokenizer), tiny(tokenizer)
    if kind == "function":
        return plain(rows, model, tokenizer, compute_loss_func=loss)

    class Own(Trainer):
        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            labels = inputs["labels"]
            outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
            value = loss(outputs, labels, num_items_in_batch)
            return (value, outputs) if return_outputs else value

    return plain(rows, model, tokenizer, cls=Own)


def _add_options() -> None:
    for name, options in OPTIONS.items():
        add_healthy(f"pairs, {name}", partial(with_options, options, "pairs"))
        add_healthy(f"texts, {name}", partial(with_options, options, "texts"))
    for name, options in PLAIN_OPTIONS.items():
        add_healthy(f"plain texts, {name}", partial(with_plain_options, options, "texts"))
        add_healthy(f"plain pairs, {name}", partial(with_plain_options, options, "pairs"))
    for kind in ("plain", "texts", "messages", "pairs", "two sets", "best kept"):
        add_healthy(f"evaluated, {kind}", partial(evaluated, kind))
    for kind in ("texts", "messages", "pairs"):
        add_healthy(f"streamed {kind}", partial(streamed, kind))
    for kind in ODD:
        add_healthy(f"odd data, {kind}", partial(odd_data, kind))
    for kind in BASE:
        add_healthy(f"base model, {kind}", partial(base_model, kind))
    for kind in ("one group", "two groups", "own schedule"):
        add_healthy(f"own optimizer, {kind}", partial(own_optimizer, kind))
    for kind in ("embeddings", "lower layers", "all but the head"):
        add_healthy(f"frozen on purpose, {kind}", partial(part_frozen, kind))
    for kind in ("function", "class"):
        add_healthy(f"own loss, {kind}", partial(own_loss, kind))


# Preferences and rewards


def preferences() -> Rows:
    """Pairs with an answer that is worse."""
    rows = []
    for place, row in enumerate(pairs()):
        worse = [{"role": "assistant", "content": f"no {WORDS[place - 1]}"}]
        rows.append({"prompt": row["prompt"], "chosen": row["completion"], "rejected": worse})
    return rows


def _small_settings(options: dict[str, Any]) -> dict[str, Any]:
    usual = {"output_dir": folder(), "bf16": False, "gradient_checkpointing": False}
    return SETTINGS | usual | options


def _loaded(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model from a folder, as trainers that make a second one of it want it."""
    where = saved(tiny(tokenizer))
    return tf.AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32)


def dpo(adapter: bool = False, form: str = "prompts", **options: Any) -> Trainer:
    """Direct preference optimisation."""
    from trl import DPOConfig, DPOTrainer

    tokenizer = chat_tokenizer()
    rows = preferences()
    if form == "whole":
        rows = [
            {name: row["prompt"] + row[name] for name in ("chosen", "rejected")} for row in rows
        ]
    if form == "texts":
        tokenizer = base_tokenizer()
        rows = [
            {
                "prompt": row["prompt"][0]["content"] + "\n",
                **{name: row[name][0]["content"] for name in ("chosen", "rejected")},
            }
            for row in rows
        ]
    rate = 5e-5 if adapter else 1e-6
    return DPOTrainer(
        model=_loaded(tokenizer),
        processing_class=tokenizer,
        args=DPOConfig(**_small_settings({"learning_rate": rate} | options)),
        train_dataset=Dataset.from_list(rows),
        peft_config=lora() if adapter else None,
    )


def kto(adapter: bool = False, **options: Any) -> Trainer:
    """Kahneman-Tversky optimisation: answers that are good or bad, not in pairs."""
    from trl import KTOConfig, KTOTrainer

    tokenizer = chat_tokenizer()
    rows = []
    for place, row in enumerate(preferences()):
        good = place % 2 == 0
        answer = row["chosen" if good else "rejected"]
        rows.append({"prompt": row["prompt"], "completion": answer, "label": good})
    options = {"learning_rate": 5e-5 if adapter else 1e-6} | options
    return KTOTrainer(
        model=_loaded(tokenizer),
        processing_class=tokenizer,
        args=KTOConfig(**_small_settings(options)),
        train_dataset=Dataset.from_list(rows),
        peft_config=lora() if adapter else None,
    )


def reward(adapter: bool = False, **options: Any) -> Trainer:
    """A reward model from preferences."""
    from trl import RewardConfig, RewardTrainer

    tokenizer = chat_tokenizer()
    tokenizer.pad_token = "<empty_output>"
    model = tiny(tokenizer, tf.LlamaForSequenceClassification, num_labels=1)
    config = lora(task_type="SEQ_CLS", modules_to_save=["score"]) if adapter else None
    options = {"learning_rate": 1e-4} | options
    return RewardTrainer(
        model=model,
        processing_class=tokenizer,
        args=RewardConfig(**_small_settings(options)),
        train_dataset=Dataset.from_list(preferences()),
        peft_config=config,
    )


def short_reward(completions: list[Any], **_: Any) -> list[float]:
    """Short answers are better; no two of different length alike."""
    said = [each if isinstance(each, str) else each[0]["content"] for each in completions]
    return [-len(text) / 100 for text in said]


def letters_reward(completions: list[Any], **_: Any) -> list[float]:
    """The share of letters."""
    said = [each if isinstance(each, str) else each[0]["content"] for each in completions]
    return [sum(map(str.isalpha, text)) / max(1, len(text)) for text in said]


def online(kind: str, adapter: bool = False, rewards: int = 1, **options: Any) -> Trainer:
    """GRPO or RLOO: the model's own answers, rewarded."""
    import trl

    tokenizer = chat_tokenizer()
    usual = {
        **{"max_completion_length": 12, "num_generations": 4, "per_device_train_batch_size": 4},
        "learning_rate": 1e-5 if adapter else 1e-6,
    }
    config = getattr(trl, f"{kind}Config")(**_small_settings(usual | options))
    return getattr(trl, f"{kind}Trainer")(
        model=_loaded(tokenizer),
        processing_class=tokenizer,
        reward_funcs=[short_reward, letters_reward][:rewards],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in pairs()]),
        peft_config=lora() if adapter else None,
    )


def _add_preferences() -> None:
    for adapter in (False, True):
        kind = "LoRA" if adapter else "all weights"
        add_healthy(f"DPO, {kind}", partial(dpo, adapter))
        add_healthy(f"DPO whole conversations, {kind}", partial(dpo, adapter, "whole"))
        add_healthy(f"DPO texts, {kind}", partial(dpo, adapter, "texts"))
        add_healthy(f"KTO, {kind}", partial(kto, adapter))
        add_healthy(f"reward model, {kind}", partial(reward, adapter))
        add_healthy(f"GRPO, {kind}", partial(online, "GRPO", adapter))
        add_healthy(f"RLOO, {kind}", partial(online, "RLOO", adapter))
    add_healthy("DPO, IPO loss", partial(dpo, loss_type="ipo"))
    add_healthy("DPO, hinge loss", partial(dpo, loss_type="hinge"))
    add_healthy("DPO, larger beta", partial(dpo, beta=0.3))
    add_healthy("DPO, accumulation", partial(dpo, gradient_accumulation_steps=2, max_steps=3))
    add_healthy("DPO, smoothed labels", partial(dpo, label_smoothing=0.1, loss_type="robust"))
    add_healthy("reward model, accumulation", partial(reward, gradient_accumulation_steps=2))
    add_healthy("reward model, centred", partial(reward, center_rewards_coefficient=0.01))
    add_healthy("GRPO, two rewards", partial(online, "GRPO", rewards=2))
    add_healthy("GRPO, with a reference", partial(online, "GRPO", beta=0.04))
    add_healthy("GRPO, not scaled", partial(online, "GRPO", scale_rewards="none"))
    add_healthy("RLOO, two rewards", partial(online, "RLOO", rewards=2))


# Other tasks


def sequence_to_sequence(kind: str, **options: Any) -> Trainer:
    """T5 or BART with labels of their own."""
    tokenizer = base_tokenizer()
    torch.manual_seed(0)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if kind in ("T5", "MT5"):
        config = getattr(tf, f"{kind}Config")(
            **{"vocab_size": len(tokenizer), "d_model": 32, "d_kv": 8, "d_ff": 64},
            **{"num_layers": 2, "num_heads": 4, "decoder_start_token_id": tokenizer.pad_token_id},
            **ids,
        )
    else:
        config = getattr(tf, f"{kind}Config")(
            **{"vocab_size": len(tokenizer), "d_model": 32, "encoder_layers": 2},
            **{"decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
            **{"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "forced_eos_token_id": None},
            **{"bos_token_id": tokenizer.bos_token_id},
            **{"decoder_start_token_id": tokenizer.eos_token_id},
            **ids,
        )
    model = getattr(tf, f"{kind}ForConditionalGeneration")(config)
    if adapter := options.pop("adapter", None):
        model = get_peft_model(model, adapter)
        options["learning_rate"] = 1e-3
    rows = [
        {
            **tokenizer(f"Say {word} twice, it is number {row}{tokenizer.eos_token}"),
            "labels": tokenizer(f"{word} {word}{tokenizer.eos_token}")["input_ids"],
        }
        for row, word in enumerate(WORDS)
    ]
    return plain(
        rows,
        model,
        tokenizer,
        cls=tf.Seq2SeqTrainer,
        arguments=tf.Seq2SeqTrainingArguments,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        **options,
    )


ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT": ("Bert", {}),
    "RoBERTa": ("Roberta", {}),
    "DistilBERT": ("DistilBert", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}),
    "ELECTRA": ("Electra", {"embedding_size": 32}),
    "ModernBERT": ("ModernBert", {}),
    "DeBERTa": ("DebertaV2", {}),
}


def encoder(kind: str, task: str, **options: Any) -> PreTrainedModel:
    """An encoder with two layers and a head for a task."""
    tokenizer = _mask_tokenizer()
    name, settings = ENCODERS[kind]
    settings = {
        **{"cls_token_id": tokenizer.bos_token_id, "sep_token_id": tokenizer.eos_token_id},
        **settings,
        **options,
    }
    model = getattr(tf, f"{name}For{task}")
    return tiny(tokenizer, model, getattr(tf, f"{name}Config"), **settings)


def _mask_tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = base_tokenizer()
    tokenizer.mask_token = "<jupyter_text>"
    return tokenizer


def _questions(tokenizer: PreTrainedTokenizerBase) -> Rows:
    texts = [f"Say {word} twice, it is number {row}" for row, word in enumerate(WORDS)]
    return [
        {name: tokenizer(text)[name] for name in ("input_ids", "attention_mask")} for text in texts
    ]


def encoded(kind: str, task: str, **options: Any) -> Trainer:
    """A training of an encoder: masked words, classes, tags, numbers, spans."""
    tokenizer = _mask_tokenizer()
    rows = _questions(tokenizer)
    collator: Any = DataCollatorWithPadding(tokenizer)
    if task == "masked words":
        model = encoder(kind, "MaskedLM")
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=0.3)
    elif task == "classes":
        model = encoder(kind, "SequenceClassification", num_labels=3)
        rows = [{**row, "label": place % 3} for place, row in enumerate(rows)]
    elif task == "numbers":
        more = {"num_labels": 1, "problem_type": "regression"}
        model = encoder(kind, "SequenceClassification", **more)
        rows = [{**row, "label": place / 3} for place, row in enumerate(rows)]
    elif task == "several classes":
        more = {"num_labels": 3, "problem_type": "multi_label_classification"}
        model = encoder(kind, "SequenceClassification", **more)
        rows = [
            {**row, "labels": [1.0, float(place % 2), float(place % 3 == 0)]}
            for place, row in enumerate(rows)
        ]
    elif task == "tags":
        model = encoder(kind, "TokenClassification", num_labels=3)
        collator = tf.DataCollatorForTokenClassification(tokenizer)
        rows = [
            {**row, "labels": [place % 3 for place in range(len(row["input_ids"]))]} for row in rows
        ]
    else:
        model = encoder(kind, "QuestionAnswering")
        rows = [{**row, "start_positions": 1, "end_positions": 3} for row in rows]
    return plain(rows, model, tokenizer, data_collator=collator, **options)


def decoder_classes(name: str, adapter: bool) -> Trainer:
    """A decoder with a head for classes."""
    tokenizer = base_tokenizer()
    names, settings = ARCHITECTURES[name]
    family = names.split()[0].removesuffix("LMHeadModel")
    model = tiny(
        tokenizer,
        getattr(tf, f"{family}ForSequenceClassification"),
        getattr(tf, f"{family}Config"),
        num_labels=3,
        **settings,
    )
    options: dict[str, Any] = {}
    if adapter:
        model = get_peft_model(model, lora(task_type="SEQ_CLS"))
        options["learning_rate"] = 1e-3
    rows = [{**row, "label": place % 3} for place, row in enumerate(_questions(tokenizer))]
    collator = DataCollatorWithPadding(tokenizer)
    return plain(rows, model, tokenizer, data_collator=collator, **options)


def pictures() -> Trainer:
    """Classes of pictures."""
    torch.manual_seed(0)
    config = tf.ViTConfig(
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"intermediate_size": 64, "image_size": 16, "patch_size": 4, "num_labels": 3},
    )
    rows = [{"pixel_values": torch.randn(3, 16, 16), "labels": place % 3} for place in range(12)]
    args = tf.TrainingArguments(**SETTINGS, output_dir=folder(), learning_rate=1e-4)
    return Trainer(
        model=tf.ViTForImageClassification(config),
        args=args,
        train_dataset=rows,
        data_collator=tf.default_data_collator,
    )


IMAGE = "<image>"
# Pictures first, then texts, between ChatML's marks.
PICTURE_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'][0]['text'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def seen(form: str, adapter: bool = False) -> Trainer:
    """A model that sees: questions about pictures of one grey each."""
    from PIL import Image

    tokenizer = chat_tokenizer()
    tokenizer.pad_token = "<empty_output>"
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    images = getattr(tf, "CLIPImageProcessorPil", tf.CLIPImageProcessor)
    processor = tf.LlavaProcessor(
        image_processor=images(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=PICTURE_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )
    sizes = {
        **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        "num_attention_heads": 4,
    }
    torch.manual_seed(0)
    model = tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(
            vision_config=tf.CLIPVisionConfig(
                **sizes, image_size=28, patch_size=14, projection_dim=32
            ),
            text_config=tf.LlamaConfig(
                **sizes,
                vocab_size=len(tokenizer),
                num_key_value_heads=2,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            ),
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
            vision_feature_layer=-1,
        )
    )
    rows = pairs()
    options: dict[str, Any] = {"peft_config": lora()} if adapter else {}
    if form == "messages":
        rows = as_messages(rows)
        options["assistant_only_loss"] = True
    for place, row in enumerate(rows):
        row["images"] = [Image.new("RGB", (28, 28), (20 * place,) * 3)]
    return sft(rows, model, processor, max_length=None, **options)


def _add_tasks() -> None:
    for kind in ("T5", "MT5", "Bart", "MBart", "Pegasus"):
        add_healthy(f"sequence to sequence, {kind}", partial(sequence_to_sequence, kind))
    config = LoraConfig(r=4, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    add_healthy("sequence to sequence, LoRA", partial(sequence_to_sequence, "T5", adapter=config))
    smoothed = partial(sequence_to_sequence, "T5", label_smoothing_factor=0.1)
    add_healthy("sequence to sequence, label smoothing", smoothed)
    for kind in ENCODERS:
        for task in ("masked words", "classes", "tags"):
            add_healthy(f"{kind}, {task}", partial(encoded, kind, task))
    for task in ("numbers", "several classes", "spans"):
        add_healthy(f"BERT, {task}", partial(encoded, "BERT", task))
    for name in ("llama", "qwen2", "gpt2", "mistral"):
        add_healthy(f"classes by {name}", partial(decoder_classes, name, False))
    for name in ("llama", "qwen2"):
        add_healthy(f"classes by {name}, LoRA", partial(decoder_classes, name, True))
    add_healthy("classes of pictures", pictures)
    for form in ("pairs", "messages"):
        add_healthy(f"pictures and {form}, all weights", partial(seen, form))
        add_healthy(f"pictures and {form}, LoRA", partial(seen, form, adapter=True))


_add_templates()
_add_architectures()
_add_packing()
_add_adapters()
for _kind in ("pairs", "texts"):
    add_healthy(f"{_kind}, bfloat16 autocast", partial(autocast, _kind))
_add_options()
_add_preferences()
_add_tasks()
