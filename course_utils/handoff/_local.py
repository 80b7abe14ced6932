"""A model of transformers or peft in this process, as `Reference.compare` takes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from course_utils._core import checks
from course_utils.errors import BadValue
from course_utils.handoff._deployment import LISTED, Answer, Messages, Position

_BATCH = 8


class Local:
    """A model in this process.

    Args:
        model: a causal language model of transformers, or a `PeftModel` of one.
        tokenizer: its tokenizer, with a chat template.
        name: what tables call it.

    Raises:
        BadValue: not such a model, not a tokenizer, or one without a chat template.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        name: str = "transformers",
    ) -> None:
        if not (isinstance(model, torch.nn.Module) and hasattr(model, "generate")):
            raise checks.refuse("model", model, "a causal language model of transformers or peft")
        checks.a("tokenizer", tokenizer, PreTrainedTokenizerBase, "a tokenizer of transformers")
        if not tokenizer.chat_template:
            raise BadValue(
                "tokenizer has no chat template, so no conversation can be put to the model. Load "
                "it from the folder of a chat model, or set tokenizer.chat_template."
            )
        self.model, self.tokenizer = model, tokenizer
        self.name = checks.text("name", name, empty=False)

    @property
    def precision(self) -> str:
        """The dtype of the weights, or how they are quantized."""
        quantized = getattr(self.model.config, "quantization_config", None)
        if quantized is not None:
            method = getattr(quantized, "quant_method", "quantized")
            return str(getattr(method, "value", method))
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    @property
    def vocabulary(self) -> int:
        """The number of rows of the output layer."""
        return self.model.get_output_embeddings().weight.shape[0]

    @property
    def stop_ids(self) -> set[int]:
        """The tokens that end a reply."""
        told = self.model.generation_config.eos_token_id
        if told is None:
            told = self.tokenizer.eos_token_id
        return set(told) if isinstance(told, list | tuple) else {told} - {None}

    def prompt_ids(self, messages: Messages) -> list[int]:
        """The tokens of a conversation, up to where the reply begins."""
        given = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=True
        )
        return list(given["input_ids"])

    @torch.inference_mode()
    def reply_ids(self, prompts: Sequence[list[int]], max_tokens: int) -> list[list[int]]:
        """The tokens of greedy replies, with the one that ends them if it comes in time."""
        stops, found = self.stop_ids, []
        pad = self.tokenizer.pad_token_id
        greedy = GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=sorted(stops) or None,
            pad_token_id=next(iter(stops), 0) if pad is None else pad,
        )
        training = self.model.training
        self.model.eval()
        try:
            for start in range(0, len(prompts), _BATCH):
                batch = prompts[start : start + _BATCH]
                width = max(map(len, batch))
                left = [width - len(ids) for ids in batch]
                ids = torch.tensor(
                    [[greedy.pad_token_id] * n + row for n, row in zip(left, batch, strict=True)]
                )
                mask = torch.tensor([[0] * n + [1] * (width - n) for n in left])
                out = self.model.generate(
                    input_ids=ids.to(self.model.device),
                    attention_mask=mask.to(self.model.device),
                    generation_config=greedy,
                )
                for row in out[:, width:].tolist():
                    end = next((i + 1 for i, token in enumerate(row) if token in stops), len(row))
                    found.append(row[:end])
        finally:
            self.model.train(training)
        return found

    def replies(self, prompts: Sequence[Messages], max_tokens: int) -> list[Answer]:
        """Greedy replies to conversations."""
        asked = [self.prompt_ids(messages) for messages in prompts]
        return [
            Answer(
                self.tokenizer.decode(ids, skip_special_tokens=True),
                bool(ids) and ids[-1] in self.stop_ids,
                len(given),
            )
            for given, ids in zip(asked, self.reply_ids(asked, max_tokens), strict=True)
        ]

    @torch.inference_mode()
    def positions(self, prompt: list[int], reply: list[int]) -> list[Position]:
        """The probabilities before each token of the reply, from one forward pass."""
        training = self.model.training
        self.model.eval()
        try:
            ids = torch.tensor([prompt + reply], device=self.model.device)
            logits = self.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        finally:
            self.model.train(training)
        logprobs, tokens = logits.double().log_softmax(-1).topk(min(LISTED, logits.shape[-1]))
        return [
            Position(np.asarray(t.tolist(), dtype=np.int64), np.asarray(p.tolist()))
            for t, p in zip(tokens.cpu(), logprobs.cpu(), strict=True)
        ]
