"""Ollama's Modelfile for a GGUF file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from course_utils._core import checks
from course_utils.errors import BadValue

# Ollama fills these in.
_MARKS = {"system": "{{ .System }}", "user": "{{ .Prompt }}", "assistant": "{{ .Response }}"}


def modelfile(
    gguf: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    system: str,
    *,
    stop: Iterable[str] = (),
) -> str:
    """Write a Modelfile whose template is the tokenizer's own, for `ollama create`.

    The template is found by rendering a conversation of marks, so it is right for templates that
    write each message alike. It takes one system prompt, one user's message and the reply.

    Args:
        gguf: the file, as the Modelfile should name it.
        tokenizer: the model's tokenizer, with a chat template.
        system: the system prompt that the model was tuned with. Without a SYSTEM, Ollama would
            leave its place in the template empty.
        stop: texts that end a reply, beside the tokenizer's EOS token.

    Returns:
        The Modelfile's text: FROM, TEMPLATE, SYSTEM, and PARAMETER stop and temperature.

    Raises:
        BadValue: no chat template, one that drops or changes what it is given, or quotation marks
            that would end the Modelfile's own quotation.
    """
    checks.a("tokenizer", tokenizer, PreTrainedTokenizerBase, "a tokenizer of transformers")
    checks.path("gguf", gguf)
    checks.text("system", system)
    stops = [tokenizer.eos_token, *checks.texts("stop", stop)]
    messages = [{"role": role, "content": mark} for role, mark in _MARKS.items()]
    if not tokenizer.chat_template:
        raise BadValue("tokenizer has no chat template to write down.")
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    asked = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    begun = whole.find(_MARKS["assistant"])
    alone = all(whole.count(mark) == 1 for mark in _MARKS.values())
    if not alone or whole.count("{{") != len(_MARKS) or whole[:begun] != asked:
        raise BadValue(
            "The chat template does not write a system prompt, a message and a reply one after the "
            "other, each once, so Ollama's {{ .System }}, {{ .Prompt }} and {{ .Response }} "
            "cannot stand for them. Write the TEMPLATE by hand, or serve the GGUF with llama.cpp."
        )
    if any('"""' in text or text.endswith('"') for text in (whole, system)):
        raise BadValue('The template or the system prompt has """ in it, which ends a quotation.')
    if any('"' in text for text in stops if text):
        raise BadValue('stop has " in it, which ends a quotation.')
    lines = [f"FROM {gguf}", f'TEMPLATE """{whole}"""', f'SYSTEM """{system}"""']
    lines += [f'PARAMETER stop "{text}"' for text in dict.fromkeys(stops) if text]
    return "\n".join([*lines, "PARAMETER temperature 0", ""])
