"""The mask drawing: what it says of a batch is what the labels say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from course_utils import masks
from course_utils._core.documents import split_documents
from course_utils.models._loading import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(chat_folder: Path) -> PreTrainedTokenizerBase:
    """The chat model's tokenizer."""
    return load_tokenizer("chat")


def padded_batch(tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """Two examples, prompt and answer, the shorter one padded."""
    rows = []
    for prompt, answer in (("Say hi:", " hi there<|im_end|>"), ("Count:", " one<|im_end|>")):
        a = tokenizer(prompt)["input_ids"]
        b = tokenizer(answer)["input_ids"]
        rows.append((a + b, [-100] * len(a) + b))
    longest = max(len(ids) for ids, _ in rows)
    pad = tokenizer.pad_token_id
    return {
        "input_ids": torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([lab + [-100] * (longest - len(lab)) for _, lab in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]
        ),
    }


def test_kinds_and_counts(tokenizer: PreTrainedTokenizerBase) -> None:
    """Prompt masked, answer trained on, the EOS token special, the rest padding."""
    batch = padded_batch(tokenizer)
    first, second = masks.examples(batch, tokenizer)
    assert first.trained_text() == " hi there<|im_end|>"
    assert second.trained_text() == " one<|im_end|>"
    for index, example in enumerate((first, second)):
        counts = example.counts()
        assert counts["trained"] == (batch["labels"][index] != -100).sum()
        assert counts["padding"] == (batch["attention_mask"][index] == 0).sum()
        assert sum(counts.values()) == batch["input_ids"].shape[1]
    # The EOS token and the padding behind it are the same token here; only one is trained on.
    assert second.special == 1 + second.counts()["padding"]


def test_padding_is_what_is_not_read(tokenizer: PreTrainedTokenizerBase) -> None:
    """The attention mask says so, whatever the token: an unread word, a read padding token."""
    ids = [*tokenizer("One two")["input_ids"], tokenizer.pad_token_id]
    batch = {"input_ids": [ids], "labels": [[-100] * 3], "attention_mask": [[0, 1, 1]]}
    (example,) = masks.examples(batch, tokenizer)
    assert [token.kind for token in example.tokens] == ["padding", "masked", "masked"]


def test_plain_text(tokenizer: PreTrainedTokenizerBase) -> None:
    """Brackets around what is trained on, so that nothing hangs on colour."""
    text = str(masks.show(padded_batch(tokenizer), tokenizer))
    assert "Say hi:[ hi there<|im_end|>]" in text
    assert "Example 2" in text
    assert "padding" in text


def test_html_escapes_what_the_tokens_say(tokenizer: PreTrainedTokenizerBase) -> None:
    """Data with markup in it is drawn, not rendered."""
    ids = tokenizer("<b>bold</b>\n<script>x</script>", return_tensors="pt")["input_ids"]
    bundle = masks.show({"input_ids": ids, "labels": ids}, tokenizer)._repr_mimebundle_()
    assert "<script>" not in bundle["text/html"]
    assert "<b>bold" not in bundle["text/html"]
    assert "↵" in bundle["text/html"]
    assert "text/plain" in bundle


def test_packed_rows_are_cut_up(tokenizer: PreTrainedTokenizerBase) -> None:
    """Where positions start anew, another example begins."""
    ids = tokenizer("one two three four")["input_ids"]
    batch = {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([ids]),
        "position_ids": torch.tensor([[0, 1, 0, 1][: len(ids)]]),
    }
    assert [len(e.tokens) for e in masks.examples(batch, tokenizer)] == [2, 2]


def test_rows_that_are_filled_up(tokenizer: PreTrainedTokenizerBase) -> None:
    """A padding-free row, filled up to a multiple: the filling is padding, and no texts."""
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 2, 2, 2]]),
        "labels": torch.tensor([[-100, 6, -100, 8, -100, -100, -100]]),
        "position_ids": torch.tensor([[0, 1, 0, 1, 0, 0, 0]]),
    }
    first, second = masks.examples(batch, tokenizer)
    assert first.counts() == {"trained": 1, "masked": 1, "padding": 0}
    assert second.counts() == {"trained": 1, "masked": 1, "padding": 3}
    assert [sum(document.read) for document in split_documents(batch)] == [2, 2]


def test_packed_rows_with_a_mask(tokenizer: PreTrainedTokenizerBase) -> None:
    """Positions that start anew part texts beside a mask too; padding on the left does not."""
    ids = [[2, 2, 5, 6, 7, 8]]
    batch = {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor(ids),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]]),
        "position_ids": torch.tensor([[0, 0, 0, 1, 0, 1]]),
    }
    assert [len(example.tokens) for example in masks.examples(batch, tokenizer)] == [4, 2]
    assert [document.start for document in split_documents(batch)] == [0, 4]


def test_what_is_learned_is_shown(tokenizer: PreTrainedTokenizerBase) -> None:
    """Labels that were shifted, and one that is no token at all, are drawn beside what is read."""
    ids = tokenizer("one two three", return_tensors="pt")["input_ids"]
    labels = torch.roll(ids, -1, 1)
    labels[0, -1] = -7
    drawing = masks.show({"input_ids": ids, "labels": labels}, tokenizer)
    assert "one→ two" in str(drawing)
    assert "→<-7>" in str(drawing)
    assert drawing.examples[0].trained_text() == " two three<-7>"
    page = drawing._repr_mimebundle_()["text/html"]
    assert "read → learned, where they differ" in page
    same = masks.show({"input_ids": ids, "labels": ids}, tokenizer)
    assert "→" not in str(same)
    assert "where they differ" not in same._repr_mimebundle_()["text/html"]


def test_trained_padding_is_seen(tokenizer: PreTrainedTokenizerBase) -> None:
    """A collator's slip, labels on padding, is drawn as what it is."""
    batch = padded_batch(tokenizer)
    batch["labels"] = batch["input_ids"].clone()
    assert masks.examples(batch, tokenizer)[1].counts()["padding"] == 0


def test_long_padding_is_cut_short(tokenizer: PreTrainedTokenizerBase) -> None:
    """Forty tokens of padding are not forty on the page, but they are counted."""
    ids = torch.full((1, 40), tokenizer.pad_token_id)
    batch = {"input_ids": ids, "labels": torch.full((1, 40), -100), "attention_mask": ids * 0}
    text = str(masks.show(batch, tokenizer))
    assert "40 padding" in text
    assert text.count("<|im_end|>") == 3


def test_lists_of_unequal_length(tokenizer: PreTrainedTokenizerBase) -> None:
    """Rows that nothing has collated yet can be drawn too."""
    batch = {"input_ids": [[5, 6, 7], [8]], "labels": [[-100, 6, 7], [8]]}
    assert [len(e.tokens) for e in masks.examples(batch, tokenizer)] == [3, 1]


def test_what_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    """A batch without labels, and labels of another length."""
    with pytest.raises(ValueError, match="labels"):
        masks.show({"input_ids": [[1]]}, tokenizer)
    with pytest.raises(ValueError, match="2 input ids, but 1"):
        masks.show({"input_ids": [[1, 2]], "labels": [[1]]}, tokenizer)


def test_examples_are_numbered_from_one(tokenizer: PreTrainedTokenizerBase) -> None:
    """In a notebook as in a text, the first is number 1."""
    batch = padded_batch(tokenizer)
    shown = masks.show(batch, tokenizer)
    drawn = shown._repr_mimebundle_()["text/html"]
    assert re.findall(r"Example (\d+)", drawn) == ["1", "2"]
    assert re.findall(r"Example (\d+)", str(shown)) == ["1", "2"]


@pytest.mark.parametrize("token", [-1, 10**6])
def test_an_id_that_the_tokenizer_does_not_have(
    token: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    """It is named, not drawn as the last token of the vocabulary."""
    with pytest.raises(ValueError, match=str(token)):
        masks.show({"input_ids": [[5, token]], "labels": [[5, 6]]}, tokenizer)


def test_a_label_of_token_zero_is_a_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Its text is shown; and where nothing is learned, there is no trained text."""
    (example,) = masks.examples({"input_ids": [[5, 6]], "labels": [[-100, 0]]}, tokenizer)
    assert example.trained_text() == tokenizer.decode([0])
