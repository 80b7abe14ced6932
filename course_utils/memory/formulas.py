"""Textbook estimates of training memory, in bytes, each with its source.

They cover the transformer blocks only: no embeddings, logits, kernel workspaces, LoRA or
quantization. What is left out is often the larger part. Introduced in notebook 04.
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

_MOST = 10**15  # for any count; more is a typing error
_MOST_BYTES = 64  # per item
ATTENTIONS = ("eager", "flash_attention_2")
# The models that notebook 04 computes the formulas for, and the sequence lengths to go with them.
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
    """The dimensions of a model that the formulas need: layers, heads, and widths in elements.

    Attributes:
        layers, hidden: L blocks of width h.
        heads, key_value_heads: n query heads; n_kv key-value heads, fewer with grouped queries.
        head_width: d, the width of each head; n·d equals h in most models.
        mlp_width: m, the inner width of the MLP; None for the classic 4·h.
        mlp_matrices: 2, or 3 for an MLP with a gate.

    Raises:
        ValueError: a number is not an integer, or is below 1.
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
        """Read the shape from a transformers configuration.

        Raises:
            ValueError: not a configuration, or one without attention heads.
        """
        wanted = ("num_attention_heads", "num_hidden_layers", "hidden_size")
        if missing := [name for name in wanted if not hasattr(config, name)]:
            raise BadValue(
                f"config is {checks.shown(config)}, without {', '.join(missing)}. It has to be the "
                "configuration of a transformer."
            )
        heads = config.num_attention_heads
        multi_query = getattr(config, "multi_query", False)  # Falcon's name for one key-value head
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


# Architectures whose MLP has two matrices; recent ones have a gate as a third.
_WITHOUT_GATE = (
    *("opt", "gpt2", "gpt_neo", "gpt_neox", "gptj", "falcon", "bloom", "mpt", "phi", "codegen"),
    *("starcoder2", "gpt_bigcode", "persimmon", "stablelm_epoch", "nemotron"),
)


def _mlp_width(config: PretrainedConfig) -> int | None:
    """Return the inner width of the MLP, whatever the architecture calls it."""
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
    """Return 12·L·h², the number of weights in L blocks of width h, for GPT-2's architecture.

    Four h × h matrices in the attention and two of h × 4h in the MLP. Source: Kaplan et al.,
    "Scaling Laws for Neural Language Models" (2020), section 2.1. It is an approximation: most
    recent models have fewer key-value heads, which makes it too large, and a wide MLP with a gate,
    which makes it too small. `block_weights` gives the exact count.
    """
    _check(shape)
    return 12 * shape.layers * shape.hidden**2


def block_weights(shape: Shape) -> int:
    """Return L·(2·h·d·(n + n_kv) + g·h·m), the number of weights in the blocks' matrices.

    The query and output projections are h × n·d each, keys and values h × n_kv·d each, and the g
    matrices of the MLP h × m. With d = h/n, n_kv = n, g = 2 and m = 4h, this is 12·L·h². Biases and
    norms, a few thousand numbers per block, are left out; of several experts, only one is counted.
    """
    _check(shape)
    width = 4 * shape.hidden if shape.mlp_width is None else shape.mlp_width
    attention = 2 * shape.hidden * shape.head_width * (shape.heads + shape.key_value_heads)
    return shape.layers * (attention + shape.mlp_matrices * shape.hidden * width)


def activation_bytes(
    shape: Shape, batch_size: int, seq_len: int, attention: str = "eager", item_bytes: int = 2
) -> float:
    """Return L·(34·h·b·s + 5·n·b·s²), the bytes that a forward pass keeps for the backward pass.

    Source: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models"
    (2022), which counts bytes for 16-bit activations and 8-bit dropout masks. The second term is
    the attention matrix, which flash attention does not keep (Dao et al., 2022).

    Args:
        shape: the model.
        batch_size, seq_len: b examples of s tokens each.
        attention: "eager" or "flash_attention_2".
        item_bytes: bytes per activation: 2 as in the source; 4 for float32, scaled accordingly.

    Raises:
        UnknownName: any other `attention`.
        ValueError: the batch size or length is below 1.
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
    """Return the ratio of the blocks' activations to their weights.

    That is `activation_bytes` over `block_weights`; or, as an approximation, over 12·L·h², which
    gives (34·b·s/12h + 5·n·b·s²/12h²) · p_comp/p_model, where p_comp/p_model is the size of a
    computed number over that of a stored weight, and the 34, a count of bytes at 16 bits, is
    divided by two. With flash attention, that is about 1.4·b·s/h at 16 bits. Sources that give
    about 3·s/h have taken the 34 for a number of elements and multiplied by their size again.

    Args:
        shape, batch_size, seq_len, attention: as in `activation_bytes`.
        compute_bytes: p_comp, bytes per computed number.
        weight_bytes: p_model, bytes per stored weight.
        exact: count weights with `block_weights`.

    Raises:
        UnknownName: any other `attention`.
        ValueError: the batch size or length is below 1, or a size is 0 or less.
    """
    _check(shape, compute_bytes=compute_bytes, weight_bytes=weight_bytes)
    checks.flag("exact", exact)
    activations = activation_bytes(shape, batch_size, seq_len, attention, compute_bytes)
    weights = block_weights(shape) if exact else block_parameters(shape)
    return activations / (weights * weight_bytes)


def states_bytes(
    parameters: int, trained: int | None = None, item_bytes: int = 4
) -> dict[str, int]:
    """Return p, p, 2p: weights, gradients and Adam's two moments, in bytes.

    Source: Rajbhandari et al., "ZeRO" (2020), section 3.1.

    Args:
        parameters: the model's number of parameters.
        trained: how many of them are trained; None for all.
        item_bytes: bytes per weight, gradient or moment.

    Raises:
        ValueError: more are trained than there are, or a number is out of range.
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
    """Return 2·L·n_kv·d·b·s, the size in bytes of the key-value cache used in generation.

    A key and a value of width d for each key-value head, layer and token. Source: Pope et al.,
    "Efficiently Scaling Transformer Inference" (2022).

    Raises:
        ValueError: the batch size or length is below 1.
    """
    _check(shape, batch_size=batch_size, seq_len=seq_len, item_bytes=item_bytes)
    each = 2 * shape.key_value_heads * shape.head_width * item_bytes
    return shape.layers * each * batch_size * seq_len


def seven_models() -> pd.DataFrame:
    """Evaluate the formulas for seven models, one row each.

    For one example of the length in `SEVEN`, at 16 bits. GB = 10^9 bytes.
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
