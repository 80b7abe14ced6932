"""Textbook estimates of a training's memory, in bytes, each with its source.

They see the transformer's blocks and nothing else: no embeddings, no logits, no kernel's scratch,
no LoRA, no quantization. What is left out is often the larger part. Introduced in notebook 04.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from course_utils._core import checks
from course_utils.errors import BadValue
from course_utils.models import _catalog as catalog

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PretrainedConfig

_MOST = 10**15  # of anything that is counted; more is a slip
_MOST_BYTES = 64  # an item's
ATTENTIONS = ("eager", "flash_attention_2")
# The models that the formulas are computed for in notebook 04, with the lengths that go with them.
SEVEN = {
    "facebook/opt-350m": 2048,
    "microsoft/Phi-3.5-mini-instruct": 4096,
    "meta-llama/Llama-2-7b-hf": 4096,
    "meta-llama/Llama-3.2-3B": 8192,
    "mistralai/Mistral-7B-v0.1": 32768,
    "Qwen/Qwen2.5-7B": 32768,
    "allenai/OLMo-7B-hf": 2048,
}


@dataclass(frozen=True)
class Shape:
    """What the formulas know of a model: numbers of layers and heads, and widths in elements.

    Attributes:
        layers, hidden: L blocks of width h.
        heads, key_value_heads: n query heads; n_kv for keys and values, fewer where queries share.
        head_width: d, of each head; n·d is h in most models.
        mlp_width: m, between the MLP's matrices; None for the classic 4·h.
        mlp_matrices: 2, or 3 where the MLP has a gate.

    Raises:
        ValueError: a number that is not whole, or below 1.
    """

    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_width: int
    mlp_width: int | None = None
    mlp_matrices: int = 2

    def __post_init__(self) -> None:
        for name, count in vars(self).items():
            if name != "mlp_width" or count is not None:
                checks.whole(name, count, 1, _MOST)

    @classmethod
    def of(cls, config: PretrainedConfig) -> Shape:
        """The shape that a configuration of transformers describes.

        Raises:
            ValueError: no configuration, or one without attention heads.
        """
        wanted = ("num_attention_heads", "num_hidden_layers", "hidden_size")
        if missing := [name for name in wanted if not hasattr(config, name)]:
            raise BadValue(
                f"config is {checks.shown(config)}, without {', '.join(missing)}. It has to be the "
                "configuration of a transformer."
            )
        heads = config.num_attention_heads
        multi_query = getattr(config, "multi_query", False)  # Falcon's word for one key-value head
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=heads,
            key_value_heads=1
            if multi_query
            else getattr(config, "num_key_value_heads", 0) or heads,
            head_width=getattr(config, "head_dim", 0) or config.hidden_size // heads,
            mlp_width=_mlp_width(config),
            mlp_matrices=2 if config.model_type in _WITHOUT_GATE else 3,
        )


# Architectures whose MLP has two matrices; today's have a gate as a third one.
_WITHOUT_GATE = (
    *("opt", "gpt2", "gpt_neo", "gpt_neox", "gptj", "falcon", "bloom", "mpt", "phi", "codegen"),
    *("starcoder2", "gpt_bigcode", "persimmon", "stablelm_epoch", "nemotron"),
)


def _mlp_width(config: PretrainedConfig) -> int | None:
    """Under the name that an architecture gives it."""
    for name in ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"):
        if width := getattr(config, name, None):
            return width
    return None


def _check(shape: Shape, attention: str = "eager", **counts: int) -> None:
    checks.a("shape", shape, Shape, "a Shape, such as Shape.of(config)")
    checks.one_of("attention", attention, ATTENTIONS)
    for name, count in counts.items():
        if name.endswith("_bytes"):
            checks.number(name, count, above=0, most=_MOST_BYTES)
        else:
            checks.whole(name, count, 1, _MOST)


def block_parameters(shape: Shape) -> int:
    """12·L·h², the number of weights in L blocks of width h, if they are GPT-2's.

    Four h × h matrices of the attention and two of h × 4h of the MLP. Source: Kaplan and others,
    "Scaling Laws for Neural Language Models" (2020), section 2.1. It is an approximation: most
    models of today have fewer key-value heads, which makes it too large, and a wide MLP with a
    gate, which makes it too small. `block_weights` counts them.
    """
    _check(shape)
    return 12 * shape.layers * shape.hidden**2


def block_weights(shape: Shape) -> int:
    """L·(2·h·d·(n + n_kv) + g·h·m), the number of weights in the blocks' matrices.

    Queries and the output are h × n·d each, keys and values h × n_kv·d each, and g matrices of the
    MLP h × m. With d = h/n, n_kv = n, g = 2 and m = 4h it is 12·L·h². Biases and norms, a few
    thousand numbers a block, are left out; so are experts, of which only one is counted.
    """
    _check(shape)
    width = 4 * shape.hidden if shape.mlp_width is None else shape.mlp_width
    attention = 2 * shape.hidden * shape.head_width * (shape.heads + shape.key_value_heads)
    return shape.layers * (attention + shape.mlp_matrices * shape.hidden * width)


def activation_bytes(
    shape: Shape, batch_size: int, seq_len: int, attention: str = "eager", item_bytes: int = 2
) -> float:
    """L·(34·h·b·s + 5·n·b·s²): what a forward pass keeps for the backward pass, in bytes.

    Source: Korthikanti and others, "Reducing Activation Recomputation in Large Transformer Models"
    (2022), which counts bytes with 16-bit activations and 8-bit dropout masks. The
    second term is the attention matrix; flash attention does not keep it (Dao and others, 2022).

    Args:
        shape: the model.
        batch_size, seq_len: b examples of s tokens each.
        attention: "eager" or "flash_attention_2".
        item_bytes: of an activation; 2 as in the source, 4 in float32, to which it is scaled.

    Raises:
        UnknownName: another attention.
        ValueError: a batch size or a length below 1.
    """
    _check(shape, attention, batch_size=batch_size, seq_len=seq_len, item_bytes=item_bytes)
    tokens = batch_size * seq_len
    each = 34 * shape.hidden * tokens
    if attention == "eager":
        each += 5 * shape.heads * tokens * seq_len
    return shape.layers * each * item_bytes / 2


def activations_to_weights(
    shape: Shape,
    batch_size: int,
    seq_len: int,
    attention: str = "eager",
    compute_bytes: int = 2,
    weight_bytes: int = 2,
    exact: bool = True,
) -> float:
    """How many times the blocks' weights their activations take.

    `activation_bytes` over `block_weights`; or, as the approximation, over 12·L·h², which gives
    (34·b·s/12h + 5·n·b·s²/12h²) · p_comp/p_model, with p_comp/p_model as the size of a computed
    number over that of a stored weight, and the 34 as a count of bytes at 16 bits, divided by two.
    With flash attention that is about 1.4·b·s/h at 16 bits. Where one reads about 3·s/h, the 34 was
    taken for a number of elements and multiplied by their size again.

    Args:
        shape, batch_size, seq_len, attention: as in `activation_bytes`.
        compute_bytes: p_comp, of a computed number.
        weight_bytes: p_model, of a stored weight.
        exact: whether weights are counted by `block_weights`.

    Raises:
        UnknownName: another attention.
        ValueError: a batch size or a length below 1, or a size of 0 or less.
    """
    _check(shape, compute_bytes=compute_bytes, weight_bytes=weight_bytes)
    checks.flag("exact", exact)
    activations = activation_bytes(shape, batch_size, seq_len, attention, compute_bytes)
    weights = block_weights(shape) if exact else block_parameters(shape)
    return activations / (weights * weight_bytes)


def states_bytes(
    parameters: int, trained: int | None = None, item_bytes: int = 4
) -> dict[str, int]:
    """p, p, 2p: weights, gradients and Adam's two moments, in bytes.

    Source: Rajbhandari and others, "ZeRO" (2020), section 3.1.

    Args:
        parameters: of the model.
        trained: how many of them are trained; None for all.
        item_bytes: of each of the four.

    Raises:
        ValueError: more are trained than there are, or a number that cannot be.
    """
    checks.whole("parameters", parameters, 0, _MOST)
    checks.number("item_bytes", item_bytes, above=0, most=_MOST_BYTES)
    trained = parameters if trained is None else trained
    checks.whole("trained", trained, 0, _MOST)
    if trained > parameters:
        raise ValueError(f"trained is {trained}: {trained} of {parameters} parameters cannot be.")
    return {
        "weights": parameters * item_bytes,
        "gradients": trained * item_bytes,
        "optimizer": 2 * trained * item_bytes,
    }


def key_value_cache_bytes(shape: Shape, batch_size: int, seq_len: int, item_bytes: int = 2) -> int:
    """2·L·n_kv·d·b·s: what generation keeps of the tokens so far, in bytes.

    A key and a value of width d for each key-value head, layer and token. Source: Pope and others,
    "Efficiently Scaling Transformer Inference" (2022).

    Raises:
        ValueError: a batch size or a length below 1.
    """
    _check(shape, batch_size=batch_size, seq_len=seq_len, item_bytes=item_bytes)
    each = 2 * shape.key_value_heads * shape.head_width * item_bytes
    return shape.layers * each * batch_size * seq_len


def seven_models() -> pd.DataFrame:
    """The formulas for seven models: a row each, one example of `SEVEN`'s length, 16 bits.

    GB = 10^9 bytes.
    """
    import pandas as pd

    rows = []
    for name, length in SEVEN.items():
        shape = Shape.of(catalog.known_model(name).config())
        rows.append(
            {
                "model": name,
                "h": shape.hidden,
                "s": length,
                "n_heads": shape.heads,
                "L": shape.layers,
                "n_kv": shape.key_value_heads,
                "m": shape.mlp_width or 4 * shape.hidden,
                "blocks (GB)": 2 * block_weights(shape) / 1e9,
                "12·L·h² (GB)": 2 * block_parameters(shape) / 1e9,
                **{
                    f"activations, {kind} (GB)": activation_bytes(shape, 1, length, attention) / 1e9
                    for kind, attention in (("eager", "eager"), ("flash", "flash_attention_2"))
                },
                "ratio, eager": activations_to_weights(shape, 1, length),
                "ratio, flash": activations_to_weights(shape, 1, length, "flash_attention_2"),
                "approximate ratio, flash": activations_to_weights(
                    shape, 1, length, "flash_attention_2", exact=False
                ),
                "KV cache (GB)": key_value_cache_bytes(shape, 1, length) / 1e9,
            }
        )
    return pd.DataFrame(rows).set_index("model")
