"""The tokenizer of the course's own base model. Introduced in notebook 06."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from course_utils._core import checks

END, PAD = "<|endoftext|>", "<|pad|>"
CHAT = ("<|im_start|>", "<|im_end|>")
_MOST = 10**7  # tokens


def train_tokenizer(texts: Iterable[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that learned its pieces from some texts.

    It can write any text: what it has no piece for, it spells in bytes. The tokens of the ChatML
    template are in it, though no text of the corpus has them; their embeddings are untrained.

    Args:
        texts: to learn from.
        vocabulary: the number of tokens, the four special ones included.
        context: how many tokens the model is made for, `model_max_length`.

    Raises:
        ValueError: no texts, fewer tokens than bytes and special tokens, or no context.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [END, PAD, *CHAT]
    checks.whole("vocabulary", vocabulary, len(alphabet) + len(special), _MOST)
    checks.whole("context", context, 1, _MOST)
    if isinstance(texts, str | bytes | dict) or not isinstance(texts, Iterable):
        raise checks.refuse("texts", texts, "texts to go through, such as a list of them")
    texts = (checks.text("texts", text) for text in texts)  # one at a time: they may be many
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=alphabet,
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
