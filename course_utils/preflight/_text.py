"""Check the texts: what is in the dataset must be in the batch, exactly once."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from trl import is_conversational

from course_utils.preflight import _kinds as kinds
from course_utils.preflight._report import FAIL, PASS, WARN, Finding, not_judged
from course_utils.preflight._snapshot import (
    Sample,
    TrainerSnapshot,
    common_prefix,
    plural,
    shorten,
)
from course_utils.preflight._templates import with_parsed_tools

_ROLES = {"system", "user", "assistant", "tool"}
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_TEXTS = ("messages", "prompt", "completion", "text", "input_ids", "labels")
# A shorter text may be in a row by chance, or twice.
_LONG_ENOUGH = 20
_RAW = re.compile(r"""\W{0,3}\[?\{['"]role['"]\s*:\s*['"]\w+['"]\s*,\s*['"]content['"]\s*:""")


def no_samples(ev: TrainerSnapshot) -> Finding | None:
    """Say why texts and labels cannot be checked; None if they can."""
    if ev.kind != kinds.CAUSAL:
        return not_judged(kinds.WHY[ev.kind])
    if not ev.samples:
        return not_judged("there are no labelled batches")
    return None


def dense(text: str) -> str:
    """Remove white space from a text."""
    return re.sub(r"\s+", "", text)


def _parts(content: Any) -> Iterator[str]:
    """Yield the texts in a message's content."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, str):
                yield part
            elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
                yield part["text"]


def _scalars(value: Any) -> Iterator[str]:
    """Yield the texts and numbers in an argument, at any depth."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _scalars(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _scalars(inner)
    elif isinstance(value, str) or (
        isinstance(value, (int, float)) and not isinstance(value, bool)
    ):
        yield str(value)


def _arguments(call: Mapping[str, Any]) -> tuple[str, Any]:
    """Return a tool call's name and arguments, parsing JSON if necessary."""
    function = call.get("function") or call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {"": arguments}
    return str(function.get("name") or ""), arguments or {}


def _messages(source: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return all messages of an example, in order."""
    found: list[Any] = []
    for column in ("messages", "prompt", "completion"):
        value = source.get(column)
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            found += value
    return found


class _Needles:
    """Searches a row for pieces of its example, as the tokenizer would write them."""

    def __init__(self, ev: TrainerSnapshot, text: str):
        self.ev, self.text = ev, dense(text)

    def lacks(self, piece: str) -> bool:
        """Return whether a piece of text is missing from the row."""
        wanted = dense(piece)
        if not wanted or wanted in self.text:
            return False
        tokenizer = self.ev.tokenizer
        ids = tokenizer.encode(piece, add_special_tokens=False)
        again = dense(tokenizer.decode(ids))  # a tokenizer may normalise characters
        escaped = dense(json.dumps(piece)[1:-1])
        return bool(again) and again not in self.text and escaped not in self.text


def _lost(ev: TrainerSnapshot, sample: Sample, row: _Needles) -> Iterator[str]:
    """Describe what is in an example but not in its row."""
    source = sample.source
    asked = source.get("prompt")
    only_read = len(asked) if isinstance(asked, list) else 0
    for place, message in enumerate(_messages(source)):
        role = message.get("role")
        # A prompt loses its reasoning at inference, too.
        read = place < only_read
        for content in _parts(message.get("content")):
            for thought in _THINK.findall(content):
                if not read and row.lacks(thought):
                    yield "the reasoning of an assistant's message"
            # Templates strip reasoning that they parse, and write it elsewhere.
            rest = content.split("</think>")[-1] if "</think>" in content else content
            if row.lacks(rest):
                yield f"the content of a message of {role!r}"
        for field in _THOUGHTS:
            if not read and isinstance(message.get(field), str) and row.lacks(message[field]):
                yield "the reasoning of an assistant's message"
        for call in message.get("tool_calls") or []:
            name, arguments = _arguments(call)
            if row.lacks(name) or any(row.lacks(value) for value in _scalars(arguments)):
                yield "a tool call"
    for tool in _tools(source):
        about = tool.get("description")
        if row.lacks(tool["name"]) or (isinstance(about, str) and row.lacks(about)):
            yield "the description of a tool"


def _tools(source: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the tools that an example describes, in any column: TRL takes them from `tools`."""
    for column, value in source.items():
        if column in _TEXTS or not isinstance(value, (str, list)):
            continue
        if isinstance(value, str):
            if not value.lstrip().startswith("["):
                continue
            try:
                value = json.loads(value)
            except ValueError:
                continue
        for tool in value:
            if not isinstance(tool, Mapping):
                break
            tool = tool.get("function") or tool
            if not isinstance(tool, Mapping) or not isinstance(tool.get("name"), str):
                continue
            if "parameters" in tool or "description" in tool:
                yield tool


def _nulls(value: Any) -> Iterator[str]:
    """Yield the keys whose value is None, at any depth."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if inner is None:
                yield str(key)
            yield from _nulls(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _nulls(inner)


def _filled(sample: Sample, text: str) -> set[str]:
    """Find keys that only other examples have, filled in by the table and rendered as null."""
    keys: set[str] = set()
    for message in _messages(sample.source):
        for call in message.get("tool_calls") or []:
            keys |= set(_nulls(_arguments(call)[1]))
    tools = sample.source.get("tools")
    if isinstance(tools, list):
        keys |= set(_nulls(tools))
    shown = re.findall(r"['\"](\w+)['\"]\s*:\s*(?:null|None)\b", text)
    return keys & set(shown)


def _strange_roles(ev: TrainerSnapshot, sample: Sample) -> set[str]:
    """Return roles that are neither in common use nor known to this template."""
    roles = {str(message.get("role")) for message in _messages(sample.source)}
    return {
        role
        for role in roles - _ROLES
        if f"'{role}'" not in ev.template.source and f'"{role}"' not in ev.template.source
    }


def _count(found: Counter[str], of: int, what: str) -> str:
    (name, count), *_ = found.most_common(1)
    return what.format(count=count, of=of, name=name)


def _beginning(ev: TrainerSnapshot) -> Finding | None:
    """Detect a BOS token that occurs twice, or never."""
    bos = getattr(ev.tokenizer, "bos_token_id", None)
    if bos is None:
        return None
    doubled = sum(sample.ids[:2] == [bos, bos] for sample in ev.samples)
    if doubled:
        return Finding(
            WARN,
            f"{doubled} of {plural(len(ev.samples), 'example')} begin with "
            f"{ev.decode([bos])} twice",
            "Take it out of the text: the tokenizer adds it too.",
        )
    adds = ev.tokenizer("a")["input_ids"][:1] == [bos]
    if not adds or ev.blocks or ev.packing or not ev.keeps_start:
        return None
    without = sum(bos not in sample.ids[:2] for sample in ev.samples)
    if without <= len(ev.samples) / 2:
        return None
    return Finding(
        WARN,
        f"{without} of {len(ev.samples)} examples begin without {ev.decode([bos])}, which this "
        "tokenizer puts before every other text",
        "Put {{ bos_token }} at the beginning of the chat template, or tokenize with "
        "add_special_tokens=True.",
    )


def _conversations(ev: TrainerSnapshot) -> Finding | None:
    """Compare messages with the rows made from them."""
    judged = [
        sample
        for sample in ev.samples
        if not ev.packing and is_conversational(dict(sample.source)) and not ev.truncated(sample)
    ]
    if not judged or not ev.tokenizer:
        return None
    lost: Counter[str] = Counter()
    nulls: Counter[str] = Counter()
    roles: Counter[str] = Counter()
    again: Counter[str] = Counter()
    python = doubled = 0
    for sample in judged:
        text = ev.decode(sample.ids)
        lost.update(set(_lost(ev, sample, _Needles(ev, text))))
        nulls.update(_filled(sample, text))
        roles.update(_strange_roles(ev, sample))
        prompt, completion = sample.source.get("prompt"), sample.source.get("completion")
        for message in _messages(sample.source):
            content = message.get("content")
            if isinstance(content, list) and dense(str(content)) in dense(text):
                python += 1
                break
        texts = [t for m in _messages(sample.source) for t in _parts(m.get("content"))]
        again.update({mark for mark in ev.template.special if any(mark in t for t in texts)})
        if isinstance(prompt, list) and isinstance(completion, list) and prompt and completion:
            asked = dense("".join(_parts(prompt[-1].get("content"))))
            answer = dense("".join(_parts(completion[0].get("content"))))
            doubled += len(asked) >= _LONG_ENOUGH and answer.startswith(asked)
    of = len(judged)
    if python:
        return Finding(
            FAIL,
            f"in {python} of {of} examples a message's content is a list of parts, and the "
            "template has written the list as Python shows it",
            "Give each message's content as one text, or take a template for lists of parts.",
        )
    if again:
        return Finding(
            WARN,
            _count(
                again,
                of,
                "{count} of {of} examples have the template's own {name} in their "
                "messages: what was rendered is rendered again",
            ),
            "Give the messages as they were written, without the template's marks.",
        )
    if lost:
        return Finding(
            FAIL if max(lost.values()) > of / 2 else WARN,
            _count(
                lost,
                of,
                "in {count} of {of} examples {name} is missing from the text that is "
                "trained on: the chat template leaves it out",
            ),
            "Look at tokenizer.decode(trainer.train_dataset[0]['input_ids']); take a chat template "
            "that renders it, or one row for each turn whose reasoning is to be learned.",
        )
    if nulls:
        return Finding(
            WARN,
            _count(
                nulls,
                of,
                "in {count} of {of} examples the argument {name!r} is empty and was "
                "rendered as null: it belongs to other rows of the table",
            ),
            "Give tools and arguments as JSON texts (json.dumps), so that no row gets the keys of "
            "another.",
        )
    if roles:
        return Finding(
            WARN,
            _count(
                roles,
                of,
                "{count} of {of} examples have messages of the role {name!r}, which "
                "this chat template has no name for",
            ),
            "Rename the roles to those that the model knows: system, user, assistant, tool.",
        )
    if doubled > of / 2:
        return Finding(
            WARN,
            f"in {doubled} of {of} examples the completion begins with the prompt",
            "Leave the prompt out of the completion: it would be learned as the answer.",
        )
    return None


def _strings(ev: TrainerSnapshot) -> Finding | None:
    """Compare plain-text prompts and completions with the rows made from them."""
    judged = [
        sample
        for sample in ev.samples
        if isinstance(sample.source.get("prompt"), str)
        and isinstance(sample.source.get("completion"), str)
    ]
    doubled = sum(
        len(dense(sample.source["prompt"])) >= _LONG_ENOUGH
        and dense(sample.source["completion"]).startswith(dense(sample.source["prompt"]))
        for sample in judged
    )
    if judged and doubled > len(judged) / 2:
        return Finding(
            WARN,
            f"in {doubled} of {len(judged)} examples the completion begins with the prompt",
            "Leave the prompt out of the completion: it would be learned as the answer.",
        )
    raw = sum(bool(_RAW.match(ev.decode(sample.ids))) for sample in ev.samples)
    if raw > len(ev.samples) / 2:
        return Finding(
            WARN,
            f"{raw} of {len(ev.samples)} examples are lists of messages as Python or JSON "
            "writes them, not conversations",
            "Give the messages themselves in a column 'messages': the trainer renders them.",
        )
    return None


def _boundary(ev: TrainerSnapshot) -> Finding | None:
    """Check that the prompt by itself is tokenized to the beginning of its row."""
    if ev.packing or not ev.tokenizer:
        return None
    broken: list[tuple[list[int], list[int]]] = []
    judged = 0
    for sample in ev.samples:
        prompt = sample.source.get("prompt")
        if not prompt or not ev.keeps_start:
            continue
        try:
            ids = ev.template.encode(prompt, sample.source)
            if not isinstance(prompt, str) and not _same_text(ev, sample):
                continue
        except Exception:  # a template may raise anything
            continue
        same = common_prefix(ids, sample.ids)
        if same < len(ids) / 2:
            continue  # not made from this column
        if not isinstance(prompt, str) and not ev.decode(ids[same:]).strip():
            continue  # line breaks of the template, tokenized differently
        judged += 1
        if same < min(len(ids), len(sample.ids)):
            broken.append((ids[same:], sample.ids[same : same + 2]))
    if len(broken) <= judged / 2 or not broken:
        return None
    alone, whole = broken[0]
    return Finding(
        WARN,
        f"in {len(broken)} of {judged} examples the prompt ends inside a token: alone it ends "
        f"{shorten(ev.decode(alone))!r}, in the example that is {shorten(ev.decode(whole))!r}",
        "End the prompt where a token ends: without a blank, which belongs to the completion.",
    )


def _same_text(ev: TrainerSnapshot, sample: Sample) -> bool:
    """Return whether the rendered prompt is a prefix, as text, of the rendered conversation.

    If it is not, the template itself renders a prompt differently from a finished turn, for
    example with an open <think>: the model was trained that way.
    """
    source = sample.source
    options = {"tools": with_parsed_tools(source), **(source.get("chat_template_kwargs") or {})}
    opened = ev.template.render(source["prompt"], opened=True, **options)
    if opened.rstrip().endswith(("<think>", "</think>")):
        return False
    return ev.template.render(source["prompt"] + source["completion"], **options).startswith(opened)


def text_and_template(ev: TrainerSnapshot) -> Finding:
    """Check that nothing is lost or doubled, and that the template's markers are there."""
    if missing := no_samples(ev):
        return missing
    for look in (_beginning, _conversations, _strings, _boundary):
        if found := look(ev):
            return found
    source = ev.samples[0].source
    chat = is_conversational(dict(source))
    start = f"begins {shorten(ev.decode(ev.samples[0].ids))}"
    marks = ev.template.marks
    if marks is None:
        why = "the tokenizer has no chat template"
        if ev.template.exists:
            why = "cannot tell: no marks are found in this chat template"
        return Finding(PASS, f"{why}; {start}")
    # Truncated texts may have lost their markers.
    whole = [sample for sample in ev.samples if not ev.truncated(sample)]
    header = dense(marks.header)
    without = [sample for sample in whole if header not in dense(ev.decode(sample.ids))]
    if without and ev.packing == "wrapped":
        without = [] if len(without) < len(whole) else without
    mark = shorten(marks.header)
    if not without:
        return Finding(PASS, f"the chat template's {mark} is there; {start}")
    lack = f"{len(without)} of {len(whole)} examples lack the chat template's {mark}"
    if chat:
        return Finding(
            FAIL,
            f"{lack}; the first {start}",
            "The conversations were not rendered with this tokenizer's template: give the trainer "
            "the tokenizer that will serve the model, and the messages as they are.",
        )
    return Finding(
        WARN,
        f"{lack}; the first {start}",
        "For a chat model, give conversations: prompt and completion as lists of messages, or a "
        "messages column. To train on plain text on purpose, set tokenizer.chat_template = None.",
    )
