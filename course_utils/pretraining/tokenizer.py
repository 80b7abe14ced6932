"""The tokenizer of the course's own base model. Introduced in notebook 06."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END, PAD = "<|endoftext|>", "<|pad|>"
CHAT = ("<|im_start|>", "<|im_end|>")


def train_tokenizer(texts: Iterable[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that learned its pieces from some texts.

    It can write any text: what it has no piece for, it spells in bytes. The tokens of the ChatML
    template are in it, though no text of the corpus has them; their embeddings are untrained.

    Args:
        texts: to learn from.
        vocabulary: the number of tokens, the four special ones included.
        context: how many tokens the model is made for, `model_max_length`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD, *CHAT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=list(CHAT),
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
