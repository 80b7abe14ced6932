"""Compare two ways of running a model, and name the likely cause of what differs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from course_utils._core import checks
from course_utils.errors import BadValue
from course_utils.handoff._deployment import Answer, Deployment, Messages, Position
from course_utils.handoff._local import Local
from course_utils.handoff._server import Server
from course_utils.scoring import Interval, bootstrap_interval

# Nats per token. Below the first, the same numbers in another arithmetic; below the second, what
# rounding weights to 8 bits costs. Both were found by trying, see notebook 10.
_SAME_KL, _ROUNDED_KL = 0.002, 0.05
# Two tokens whose log-probabilities are nearer than this: any arithmetic may take either.
_TIE = 0.5
# A suspect is named if it is so much nearer to what is seen than the reference is.
_NEARER = 0.2
_SUSPECT_PROMPTS = 6
_DEFAULT_ROPE = 10_000.0
SAME, ROUNDED, OTHER, UNKNOWN = "the same model", "rounded", "another model", "not told"


@dataclass
class Comparison:
    """What `Reference.compare` found.

    Attributes:
        reference, other: the two names.
        prompts: the number of conversations.
        same_prompts: how many have the same prompt tokens in both; None where the other does not
            tell them.
        same_ends: how many replies end, or do not end, in both.
        same_replies: how many greedy replies are equal, letter by letter.
        near_ties: of the others, how many part at a token that the reference finds nearly as
            probable as its own: less than 0.5 nats below it.
        kl: the mean Kullback-Leibler divergence of the other's next-token probabilities from the
            reference's, in nats per token; None where the other does not tell them. Tokens that
            either does not list count together, so it is a lower bound.
        worst_kl: the largest of one token.
        loss: the reference's mean loss on the compared texts, in nats per token. A token that is
            not among the 200 likeliest counts as the last of them.
        loss_change: the other's loss less the reference's, with its 95% interval over prompts.
        verdict: "the same model", "rounded", "another model" or "not told".
        cause: the likely cause, or "".
        rows: for each prompt, its replies and what is compared of it.
    """

    reference: str
    other: str
    prompts: int
    same_prompts: int | None = None
    same_ends: int = 0
    same_replies: int = 0
    near_ties: int = 0
    kl: float | None = None
    worst_kl: float | None = None
    loss: float | None = None
    loss_change: Interval | None = None
    verdict: str = ""
    cause: str = ""
    rows: list[dict] = field(default_factory=list)

    def __str__(self) -> str:
        """What was compared, a line each."""
        told = "not told" if self.same_prompts is None else f"{self.same_prompts} of {self.prompts}"
        lines = [
            f"{self.other} against {self.reference}, {self.prompts} prompts",
            f"  same prompt tokens    {told}",
            f"  same end of the reply {self.same_ends} of {self.prompts}",
            f"  same greedy reply     {self.same_replies} of {self.prompts}"
            + f", {self.near_ties} part at a near tie" * bool(self.near_ties),
        ]
        if self.kl is not None:
            lines.append(f"  KL per token          {self.kl:.5f} nats, at most {self.worst_kl:.3f}")
        if self.loss_change is not None:
            low, high = self.loss_change.low, self.loss_change.high
            lines.append(
                f"  loss                  {self.loss:.3f} {self.loss_change.value:+.4f} "
                f"({low:+.4f} to {high:+.4f})"
            )
        return "\n".join([*lines, f"  {self.verdict}" + f": {self.cause}" * bool(self.cause)])


class Reference:
    """The model as it was trained: its replies and probabilities, recorded once.

    Probabilities are recorded along the right answers, if they are given, or else along the model's
    own greedy replies.

    Args:
        model: a causal language model of transformers, or a `PeftModel` of one.
        tokenizer: its tokenizer, with a chat template.
        prompts: conversations, each a list of messages that ends with the user's.
        answers: the right replies, one for each prompt.
        name: what tables call it.
        max_tokens: how long a reply may become.
        base: the model before its tuning, if this one is merged: then "the adapter is not applied"
            can be told. A `PeftModel` has it within.

    Attributes:
        replies: its greedy replies.

    Raises:
        BadValue: not such a model, no prompts, conversations that do not end with the user, or a
            number of answers that is not theirs.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Messages],
        answers: Sequence[str] | None = None,
        *,
        name: str = "the reference",
        max_tokens: int = 48,
        base: torch.nn.Module | None = None,
    ) -> None:
        self.local, self.base = Local(model, tokenizer, name), base
        if base is not None:
            checks.a("base", base, torch.nn.Module, "a model")
        self.prompts = _checked(prompts)
        self.max_tokens = checks.whole("max_tokens", max_tokens, least=1, most=10_000)
        if answers is not None and len(checks.texts("answers", answers)) != len(self.prompts):
            raise BadValue(
                f"answers are {len(answers)}, and prompts {len(self.prompts)}. Give one for each."
            )
        self.given = [self.local.prompt_ids(messages) for messages in self.prompts]
        self.reply_ids = self.local.reply_ids(self.given, max_tokens)
        self.replies = [tokenizer.decode(ids, skip_special_tokens=True) for ids in self.reply_ids]
        self.stops = self.local.stop_ids
        self.ends = [bool(ids) and ids[-1] in self.stops for ids in self.reply_ids]
        self.texts = self.reply_ids
        if answers is not None:
            stop = sorted(self.stops)[:1]
            self.texts = [tokenizer.encode(a, add_special_tokens=False) + stop for a in answers]
        self.positions = [
            self.local.positions(*pair) for pair in zip(self.given, self.texts, strict=True)
        ]

    def compare(self, other: Deployment) -> Comparison:
        """Compare how another model reads the prompts, replies to them, and ends.

        A difference is explained: from the prompts' tokens, or by trying known faults on the
        reference and looking which one brings about what is seen.

        Args:
            other: a `Local` or a `Server`.

        Raises:
            BadValue: neither of them.
            CourseError: the server does not answer.
        """
        checks.a("other", other, (Local, Server), "a Local or a Server")
        tokenizer = self.local.tokenizer
        found = Comparison(self.local.name, other.name, len(self.prompts))
        read = [other.prompt_ids(messages) for messages in self.prompts]
        told = [(a, b) for a, b in zip(self.given, read, strict=True) if b is not None]
        if told:
            found.same_prompts = sum(a == b for a, b in told)
        replies = other.replies(self.prompts, self.max_tokens)
        found.same_ends = sum(a == b.finished for a, b in zip(self.ends, replies, strict=True))
        same = [a.strip() == b.text.strip() for a, b in zip(self.replies, replies, strict=True)]
        found.same_replies = sum(same)
        for number, reply in enumerate(replies):
            if not same[number]:
                theirs = tokenizer.encode(reply.text, add_special_tokens=False)
                theirs += sorted(self.stops)[:1] if reply.finished else []
                found.near_ties += self._is_near_tie(number, theirs)

        there: list[list[Position]] = []
        for prompt, own, text in zip(self.given, read, self.texts, strict=True):
            listed = other.positions(prompt if own is None else own, text)
            if listed is None:
                break
            there.append(listed)
        if there:
            self._measure(found, there)
        for number, messages in enumerate(self.prompts):
            row = {"prompt": messages[-1]["content"], "reference": self.replies[number]}
            row |= {"other": replies[number].text, "same": same[number]}
            if there:
                pairs = zip(self.positions[number], there[number], strict=True)
                row["kl"] = float(np.mean([_kl(a, b) for a, b in pairs]))
            found.rows.append(row)
        found.verdict, found.cause = self._judge(found, other, told, replies, there)
        return found

    def _is_near_tie(self, number: int, theirs: list[int]) -> bool:
        """Whether another reply parts from the reference's at two nearly equal probabilities."""
        mine = self.reply_ids[number]
        pairs = enumerate(zip(mine, theirs, strict=False))
        at = next((place for place, (a, b) in pairs if a != b), None)
        if at is None:
            return False
        here = self.local.positions(self.given[number], mine[: at + 1])[-1]
        return bool(here.of(mine[at]) - here.of(theirs[at]) < _TIE)

    def _measure(self, found: Comparison, there: list[list[Position]]) -> None:
        apart, losses = [], []
        for mine, theirs, text in zip(self.positions, there, self.texts, strict=True):
            if text:
                apart.append([_kl(a, b) for a, b in zip(mine, theirs, strict=True)])
                losses.append([-np.mean([p.of(t) for p, t in zip(side, text, strict=True)])
                               for side in (mine, theirs)])  # fmt: skip
        found.kl = float(np.mean([np.mean(one) for one in apart]))
        found.worst_kl = float(max(map(max, apart)))
        found.loss = float(np.mean([mine for mine, _ in losses]))
        if len(losses) > 1:
            found.loss_change = bootstrap_interval([theirs - mine for mine, theirs in losses])

    def _judge(
        self,
        found: Comparison,
        other: Deployment,
        told: list[tuple[list[int], list[int]]],
        replies: list[Answer],
        there: list[list[Position]],
    ) -> tuple[str, str]:
        """The verdict and the cause: the first that explains what is seen."""
        for mine, its in told:
            if mine != its:
                return OTHER, _why_tokens(mine, its, self.local)
        counts = [reply.prompt_tokens for reply in replies]
        off = [n - len(ids) for n, ids in zip(counts, self.given, strict=True) if n is not None]
        if not told and any(off):
            return OTHER, (
                f"the prompts have {off[0]:+d} tokens there: another template, another system "
                "prompt, or a BOS token too many"
            )
        if other.vocabulary not in (None, self.local.vocabulary):
            return OTHER, (
                f"another vocabulary: {other.vocabulary:,} tokens, and {self.local.vocabulary:,} "
                "in the reference (padded to a round number, or another tokenizer's)"
            )
        on = sum(
            ended and not reply.finished and bool(text.strip()) and reply.text.startswith(text)
            for ended, reply, text in zip(self.ends, replies, self.replies, strict=True)
        )
        if on > len(replies) / 4:
            names = self.local.tokenizer.convert_ids_to_tokens(sorted(self.stops))
            return OTHER, (
                f"another EOS token: {on} replies go on where they should end with "
                f"{' or '.join(names)}"
            )
        if found.kl is None:
            if found.same_replies == len(replies):
                return SAME, ""
            return UNKNOWN, "this server does not tell probabilities; look at the replies"
        if found.kl < _SAME_KL:
            apart = len(replies) - found.same_replies - found.near_ties
            if apart <= len(replies) / 4:
                return SAME, ""
            pairs = [(own.strip(), reply) for own, reply in zip(self.replies, replies, strict=True)]
            early = sum(
                reply.finished and own.startswith(reply.text.strip()) and own != reply.text.strip()
                for own, reply in pairs
            )
            if early > len(replies) / 4:
                return OTHER, f"another EOS token: {early} replies end too early"
            return OTHER, (
                f"the same probabilities, and {apart} other replies: one side samples, or has a "
                "penalty for repetition (generation_config.json)"
            )
        name, nearest = self._suspect(there)
        if nearest < _NEARER * found.kl:
            return OTHER, f"{name} (with this fault, the reference is {nearest:.5f} nats away)"
        stored = other.precision != self.local.precision
        if found.kl < _ROUNDED_KL * (4 if stored else 1):
            return ROUNDED, f"weights in {other.precision}; {self.local.precision} in the reference"
        return OTHER, "other weights: another base model, or another adapter"

    def _suspect(self, there: list[list[Position]]) -> tuple[str, float]:
        """Try each known fault; return the nearest to the other model, and its KL."""
        best, nearest = "", float("inf")
        chosen = [number for number, text in enumerate(self.texts) if text][:_SUSPECT_PROMPTS]
        for name, fault in _faults(self.local.model, self.base):
            with fault() as model:
                tried = Local(model, self.local.tokenizer)
                apart = [
                    _kl(a, b)
                    for n in chosen
                    for a, b in zip(
                        tried.positions(self.given[n], self.texts[n]), there[n], strict=True
                    )
                ]
            if np.mean(apart) < nearest:
                best, nearest = name, float(np.mean(apart))
        return best, nearest


def _checked(prompts: Sequence[Messages]) -> list[list[dict[str, str]]]:
    found = checks.items("prompts", prompts, empty=False)
    for messages in found:
        good = isinstance(messages, list | tuple) and all(
            isinstance(m, dict) and {"role", "content"} <= set(m) for m in messages
        )
        if not (messages and good and messages[-1]["role"] == "user"):
            raise checks.refuse(
                "prompts",
                messages,
                'conversations, such as [{"role": "user", "content": "Hello"}], which end with '
                "the user",
            )
    return found


def _kl(a: Position, b: Position) -> float:
    """KL(a || b) over the tokens that both list, all others counted as one token: a lower bound."""
    ids, first, second = np.intersect1d(a.ids, b.ids, return_indices=True)
    if not len(ids):
        return float(-a.logprobs.max() + abs(b.logprobs.min()))
    p, q = np.exp(a.logprobs[first]), np.exp(b.logprobs[second])
    rest_p, rest_q = max(1 - p.sum(), 1e-9), max(1 - q.sum(), 1e-9)
    inside = (p * (a.logprobs[first] - b.logprobs[second])).sum()
    return float(max(0.0, inside + rest_p * np.log(rest_p / rest_q)))


def _why_tokens(mine: list[int], its: list[int], reference: Local) -> str:
    """Explain why a prompt's tokens differ."""
    tokenizer = reference.tokenizer
    if its[1:] == mine and its[0] in {mine[0], tokenizer.bos_token_id}:
        return f"a BOS token too many: the prompt begins with {tokenizer.decode(its[:1])!r} twice"
    if mine[1:] == its:
        return f"no BOS token: the prompt should begin with {tokenizer.decode(mine[:1])!r}"
    a, b = tokenizer.decode(mine), tokenizer.decode(its)
    if a == b:
        return "another tokenizer: the same text, and other tokens"
    end = 0
    while end < min(len(mine), len(its)) and mine[-1 - end] == its[-1 - end]:
        end += 1
    # From the user's message on, both are alike: what differs is before it.
    if end and "user" in tokenizer.decode(mine[len(mine) - end :]).lower():
        extra = tokenizer.decode(its[: len(its) - end])
        lost = tokenizer.decode(mine[: len(mine) - end])
        if "system" in (extra + lost).lower():
            kind = "no system prompt" if len(its) < len(mine) and "system" not in b else (
                "an extra system prompt" if "system" not in a else "another system prompt"
            )  # fmt: skip
            return f"{kind}: {extra[-40:]!r} in place of {lost[-40:]!r}"
    return f"another template: {b[:32]!r} in place of {a[:32]!r}"


def _faults(
    model: torch.nn.Module, base: torch.nn.Module | None
) -> Iterator[tuple[str, Callable[[], contextlib.AbstractContextManager]]]:
    """The known faults that can be tried on this model, each as a context that undoes itself."""
    layers = [m for m in model.modules() if isinstance(getattr(m, "scaling", None), dict)]

    @contextlib.contextmanager
    def scaled(by: float | None) -> Iterator[torch.nn.Module]:
        before = [dict(layer.scaling) for layer in layers]
        try:
            for layer in layers:
                for name in layer.scaling:
                    layer.scaling[name] = 1.0 if by is None else by * layer.scaling[name]
            yield model
        finally:
            for layer, kept in zip(layers, before, strict=True):
                layer.scaling.update(kept)

    @contextlib.contextmanager
    def as_is(other: torch.nn.Module) -> Iterator[torch.nn.Module]:
        yield other

    @contextlib.contextmanager
    def turned() -> Iterator[torch.nn.Module]:
        """With the default base frequency of rotary embeddings."""
        kept = []
        try:
            for module in model.modules():
                if isinstance(getattr(module, "inv_freq", None), torch.Tensor):
                    kept.append((module, module.inv_freq))
                    size = module.inv_freq.shape[0]
                    powers = torch.arange(size, device=module.inv_freq.device) / size
                    module.inv_freq = 1.0 / _DEFAULT_ROPE ** powers.float()
            yield model
        finally:
            for module, before in kept:
                module.inv_freq = before

    if layers:
        yield "the adapter is not applied", lambda: scaled(0.0)
        yield "the adapter is added twice", lambda: scaled(2.0)
        if any(abs(value - 1) > 1e-6 for layer in layers for value in layer.scaling.values()):
            yield "the adapter's scale, lora_alpha / r, is left out", lambda: scaled(None)
        yield (
            "the base was in 4 bits (nf4) when the adapter was merged",
            lambda: _rounded(model),
        )
    elif base is not None:
        yield "the adapter is not applied", lambda: as_is(base)
    theta = _rope_theta(model)
    if theta and theta != _DEFAULT_ROPE:
        what = f"rope_theta is {_DEFAULT_ROPE:,.0f}, and should be {theta:,.0f}"
        yield what, turned


def _rope_theta(model: torch.nn.Module) -> float | None:
    config = model.config
    parameters = getattr(config, "rope_parameters", None) or {}
    return parameters.get("rope_theta") or getattr(config, "rope_theta", None)


@contextlib.contextmanager
def _rounded(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """With the base's matrices rounded to nf4, as merging into a 4-bit model finds them.

    All linear layers but the output layer, whether they have an adapter or not.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    output, kept = model.get_output_embeddings(), []
    try:
        for name, module in model.named_modules():
            if not isinstance(module, torch.nn.Linear) or ".lora_" in name or module is output:
                continue
            weight = module.weight
            if weight.is_floating_point():
                kept.append((weight, weight.data))
                packed, state = quantize_4bit(weight.data.contiguous(), quant_type="nf4")
                weight.data = dequantize_4bit(packed, state).to(weight.dtype)
        yield model
    finally:
        for weight, before in kept:
            weight.data = before
