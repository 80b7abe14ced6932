"""The checks of notebook 01."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import torch

from course_utils.exercises._check import Wrong, call, exercise


@exercise(
    "01.1",
    "Temperature acts on the logits, before they become probabilities.",
    "A higher temperature brings the logits nearer to one another.",
    "At temperature 0, one token gets a probability of 1, and all others get 0. Which token?",
)
def _temperature(function: Callable[[torch.Tensor, float], torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    for size, temperature in itertools.product((3, 50), (1.0, 0.5, 2.0, 0.0)):
        logits = torch.randn(size, generator=generator)
        given = call(function, logits.clone(), temperature)
        if not isinstance(given, torch.Tensor) or given.shape != logits.shape:
            raise Wrong(f"For {size} logits, a tensor of {size} probabilities is expected.")
        if not torch.isfinite(given).all():
            raise Wrong(f"At temperature {temperature:g} there are values that are not finite.")
        if (given < 0).any() or abs(given.sum().item() - 1) > 1e-4:
            raise Wrong(
                f"At temperature {temperature:g} the values sum to {given.sum().item():.3f}; "
                "probabilities are positive and sum to 1."
            )
        if temperature == 0:
            right = torch.zeros(size).scatter(0, logits.argmax(0, keepdim=True), 1.0)
        else:
            right = torch.softmax(logits / temperature, 0)
        if not torch.allclose(given.float(), right, atol=1e-4):
            flatter = given.max() < right.max()
            raise Wrong(
                f"At temperature {temperature:g} the likeliest token has {given.max().item():.3f}, "
                f"which is too {'little' if flatter else 'much'}."
            )


@exercise(
    "01.2",
    'Compare your text with `print(repr(chat.prompt("Is 7 prime?")))`, character by character.',
    "Each message ends with <|im_end|> and a line break. So does the system's message.",
    "The model answers in the assistant's turn, so the prompt has to open this turn at its end.",
)
def _chatml(function: Callable[[str, str], str]) -> None:
    cases = (("You are a poet.", "Describe rain."), ("Be brief.", "Is 7 prime?\nWhy?"))
    for system, question in cases:
        given = call(function, system, question)
        if not isinstance(given, str):
            raise Wrong(f"A text is expected, and this is {type(given).__name__}.")
        for part, role in ((system, "system"), (question, "user")):
            if part not in given:
                raise Wrong(f"The {role}'s text {part!r} is not in the prompt.")
            if f"<|im_start|>{role}\n{part}" not in given:
                raise Wrong(f"The {role}'s message does not open as in the template.")
            if f"{part}<|im_end|>" not in given:
                raise Wrong(f"The {role}'s message does not close as in the template.")
        if "<|im_start|>assistant" not in given:
            raise Wrong("Nothing asks the assistant to speak.")
        right = "".join(
            f"<|im_start|>{role}\n{text}<|im_end|>\n"
            for role, text in (("system", system), ("user", question))
        )
        right += "<|im_start|>assistant\n"
        if given != right:
            pairs = zip(given, right, strict=False)
            same = "".join(
                a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
            )
            raise Wrong(
                f"Nearly: behind {same[-20:]!r}, the template does not go on with "
                f"{given[len(same) :][:10]!r} as yours does. A line break, a blank?"
            )


_OPPOSITES = {
    "fast": "slow",
    "cold": "hot",
    "full": "empty",
    "day": "night",
    "young": "old",
    "open": "closed",
    "up": "down",
    "left": "right",
    "rich": "poor",
    "early": "late",
}
_OPPOSITES_NEEDED = 5


@exercise(
    "01.3",
    "Without a template, the model continues your text. After which text would the opposite be "
    "the natural next word?",
    "Show a few pairs of opposites first, all in the same form. Then begin one more pair, and stop "
    "before its second word.",
    "Do not end the prompt with a space: the space belongs to the first token of the answer.",
)
def _opposites(function: Callable[[str], str], ask: Any) -> None:
    prompts = []
    for word, opposite in _OPPOSITES.items():
        prompt = call(function, word)
        if not isinstance(prompt, str):
            raise Wrong(f"A text is expected, and this is {type(prompt).__name__}.")
        if word not in prompt:
            raise Wrong(f"The prompt for {word!r} does not hold the word.")
        if opposite in re.findall(r"\w+", prompt.lower()):
            raise Wrong(
                f"The prompt for {word!r} gives its opposite away. These words are the test: "
                "use other pairs as examples."
            )
        prompts.append(prompt)
    replies = ask(prompts, template=False, max_new_tokens=6)
    first = [reply.strip().split("\n")[0].strip(" .,!\"'*").lower() for reply in replies]
    right = sum(a == b for a, b in zip(first, _OPPOSITES.values(), strict=True))
    if right < _OPPOSITES_NEEDED:
        shown = ", ".join(f"{a} → {b!r}" for a, b in zip(_OPPOSITES, first, strict=True))
        raise Wrong(
            f"{right} of {len(_OPPOSITES)} are right, and {_OPPOSITES_NEEDED} are needed; the "
            f"reply's first line has to be the word alone. It was: {shown}."
        )
