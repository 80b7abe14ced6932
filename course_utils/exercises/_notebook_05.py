"""The checks of notebook 05."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from course_utils.exercises._check import Wrong, call, exercise, number

MODEL, TOKENS, RANK, EXAMPLES = "Qwen/Qwen2.5-7B", 1024, 16, 8
LARGEST, CALLS = 1000, 10
OPT, GRAIN, SMALL_GPU = "facebook/opt-350m", 100, "rtx3060"


@exercise(
    "05.1",
    "Try one length. `predict(just_fits(first), GPUS['rtx3060'])` says how much it reserves.",
    "Go up or down by 100 tokens until one length fits and the next longer one does not.",
    "For the explanation: which part of the peak grows with the square of the length (section 4)?",
)
def _just_fits(function: Callable[[Any], Any]) -> None:
    from course_utils.memory import Setup, fits, gpu, predict, usable_bytes

    first = Setup(
        OPT,
        trainer="trainer",
        seq_len=2000,
        dtype="float16",
        attention="eager",
        optimizer="adamw_torch",
    )
    setup = call(function, first)
    if not isinstance(setup, Setup):
        raise Wrong(f"A Setup is expected; this is {setup!r}.")
    if setup.replace(seq_len=first.seq_len) != first:
        raise Wrong("Something besides the length has changed. Only `seq_len` should.")
    card = gpu(SMALL_GPU)
    if fits(setup, card) is None:
        needed = predict(setup, card).peak_reserved_mb
        raise Wrong(
            f"With {setup.seq_len:,} tokens it reserves {needed:,.0f} MB; "
            f"there is room for {usable_bytes(card) / 1e6:,.0f}."
        )
    if fits(setup.replace(seq_len=setup.seq_len + GRAIN), card) is not None:
        raise Wrong(f"{setup.seq_len:,} tokens fit, but {GRAIN} more would fit as well.")


@exercise(
    "05.2",
    "In 16 bits, these 7.6 billion weights take 15 GB, and a T4 has 16 GB. With how many bits a "
    "weight is there room for the rest?",
    "Which fields of `Setup` make the activations smaller? With which one are they computed again?",
    "The eight examples of a step need not be in the model at once: `batch_size` times "
    "`accumulation` has to be eight.",
)
def _fits_t4(function: Callable[[], Any]) -> None:
    from course_utils.memory import Setup, fits, gpu, predict, usable_bytes

    setup = call(function)
    if not isinstance(setup, Setup):
        raise Wrong(f"A Setup is expected; this is {setup!r}.")
    t4 = gpu("t4")
    if setup.model != MODEL:
        raise Wrong(f"The model should be {MODEL}; this is {setup.name}.")
    if setup.seq_len < TOKENS:
        raise Wrong(f"Examples of {TOKENS:,} tokens are wished for; these have {setup.seq_len:,}.")
    if setup.sequences != "full" or setup.supervised_share < 1:
        raise Wrong("The examples should be full, and trained on as a whole.")
    if not setup.lora or setup.lora_targets != "all-linear" or setup.lora_rank < RANK:
        raise Wrong(f'LoRA of rank {RANK} or more on "all-linear" is wished for.')
    if setup.batch_size * setup.accumulation != EXAMPLES:
        raise Wrong(
            f"A step should see {EXAMPLES} examples; this one sees "
            f"{setup.batch_size} × {setup.accumulation}."
        )
    if setup.dtype != "float16":
        raise Wrong("A T4 does not compute in bfloat16 (see `GPUS`).")
    if setup.attention == "flash_attention_2":
        raise Wrong("FlashAttention 2 needs a GPU of capability 8.0; a T4 has 7.5.")
    # Two micro-batches per step need as much memory as eight, and are predicted faster.
    shorter = setup.replace(accumulation=min(2, setup.accumulation), micro_batches=None)
    if fits(shorter, t4) is None:
        needed = predict(shorter, t4).peak_reserved_mb
        raise Wrong(
            f"It does not fit into the {usable_bytes(t4) / 1e6:,.0f} MB that a T4 has for it: "
            f"it reserves {needed:,.0f} MB."
        )


@exercise(
    "05.3",
    "Choose each question so that it rules out half of the sizes that are still possible.",
    "Keep two numbers: the largest size that you know to fit, and the smallest that you know not "
    "to fit.",
    "Begin with 0 as a size that fits, and 1,001 as one that does not. Do not ask for either.",
)
def _largest_batch(function: Callable[..., Any]) -> None:
    for wanted in (8, 1, 0, LARGEST, 333, 512, LARGEST - 1):
        asked: list[Any] = []

        def fits(batch: Any, wanted: int = wanted, asked: list[Any] = asked) -> bool:
            asked.append(batch)
            if len(asked) > 2 * LARGEST:
                raise RuntimeError("this goes on and on")
            return batch <= wanted

        found = number(call(function, fits), "A whole number is expected", whole=True)
        if outside := [batch for batch in asked if batch not in range(1, LARGEST + 1)]:
            raise Wrong(f"You asked for a batch of {outside[0]}; they go from 1 to {LARGEST:,}.")
        if found != wanted:
            raise Wrong(f"Where batches of up to {wanted:,} fit, the answer was {found:,}.")
        if len(asked) > CALLS:
            raise Wrong(f"Where batches of up to {wanted:,} fit, it asked {len(asked):,} times.")
