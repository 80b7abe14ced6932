"""Asking a model: templates, lists, streaming, seeds and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from course_utils import runner
from course_utils.models._loading import load_model, load_tokenizer
from course_utils.models._running import Reply, Runner

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def ask(chat_folder: Path) -> Runner:
    """The embedded chat model in float32, so that a batch and a single prompt agree exactly."""
    model = load_model("chat", dtype=torch.float32, quiet=True)
    return Runner(model, load_tokenizer("chat"), max_new_tokens=12)


def test_one_line_is_enough(chat_folder: Path, capsys: pytest.CaptureFixture) -> None:
    """`runner("chat")` answers; the reply knows its length and that it ended by itself."""
    reply = runner("chat")(QUESTION)
    assert "Paris" in reply
    assert isinstance(reply, Reply)
    assert reply.finished
    assert 0 < reply.tokens < 30
    assert reply.seconds > 0
    assert "chat: HuggingFaceTB/SmolLM2-135M-Instruct, embedded" in capsys.readouterr().out


def test_runners_share_weights(chat_folder: Path, capsys: pytest.CaptureFixture) -> None:
    """Two of the same weights take the memory once; a base model gets no template."""
    chat, same = runner("chat"), runner("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert chat.model is same.model
    assert "in memory already" in capsys.readouterr().out
    assert runner("base").prompt(QUESTION) == QUESTION
    assert chat.prompt(QUESTION).endswith("<|im_start|>assistant\n")


def test_reply_is_what_generate_gives(ask: Runner) -> None:
    """The runner is the two calls of transformers, no more."""
    inputs = ask.tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = ask.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    new = output[0, inputs["input_ids"].shape[1] :]
    assert ask(QUESTION) == ask.tokenizer.decode(new, skip_special_tokens=True)
    assert ask(QUESTION).tokens == len(new)


def test_a_list_gives_what_each_alone_gives(ask: Runner) -> None:
    """Padding changes nothing, over more prompts than one batch takes, and order is kept."""
    countries = ("France", "Japan", "Kenya", "Egypt", "Peru", "Cuba", "Norway", "Poland", "Italy")
    prompts = [f"What is the capital of {name}?" for name in countries]
    prompts[3] = "Name the capital of Egypt, which lies by the river Nile, in a short sentence."
    together = ask(prompts)
    assert together == [ask(prompt) for prompt in prompts]
    assert ask([]) == []


def test_templates(ask: Runner) -> None:
    """The model's own, none, another one, and a system prompt."""
    assert ask.prompt("Hi", template=False) == "Hi"
    assert ask.prompt("Hi {x}", template="[INST] {prompt} [/INST]") == "[INST] Hi {x} [/INST]"
    assert "<|im_start|>system\nBe brief.<|im_end|>" in ask.prompt("Hi", system="Be brief.")
    with pytest.raises(ValueError, match=r"\{prompt\}"):
        ask.prompt("Hi", template="[INST]")
    with pytest.raises(ValueError, match="system prompt"):
        ask.prompt("Hi", template=False, system="Be brief.")


def test_bare_texts_get_the_tokens_that_a_model_expects(ask: Runner) -> None:
    """A tokenizer that opens each text, as Llama's does, opens bare ones and no template twice."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer("chat")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    seen: list[list[int]] = []
    opening = Runner(ask.model, tokenizer, max_new_tokens=1)
    inner = opening.model.generate
    opening.model.generate = lambda **inputs: (
        seen.append(inputs["input_ids"][0].tolist()) or inner(**inputs)
    )
    try:
        opening("Hi", template=False)
        opening("Hi", template="[INST] {prompt} [/INST]")
        opening("Hi")
    finally:
        del opening.model.generate
    assert [ids.count(0) for ids in seen] == [1, 1, 0]


def test_a_model_without_a_template_says_so(ask: Runner) -> None:
    """As base models are."""
    tokenizer = load_tokenizer("chat")
    tokenizer.chat_template = None
    bare = Runner(ask.model, tokenizer, template=True)
    with pytest.raises(ValueError, match="template=False"):
        bare(QUESTION)


def test_streaming_prints_the_reply(ask: Runner, capsys: pytest.CaptureFixture) -> None:
    """What is printed piece by piece is the reply."""
    reply = ask(QUESTION, stream=True)
    assert capsys.readouterr().out.strip() == reply.strip()


def test_streaming_to_a_function(ask: Runner) -> None:
    """The pieces come one after the other and make up the reply; lists stream in turn."""
    pieces: list[str] = []
    reply = ask(QUESTION, stream=pieces.append)
    assert "".join(pieces) == reply
    assert len([piece for piece in pieces if piece]) > 2
    pieces.clear()
    replies = ask([QUESTION, "What is the capital of Japan?"], stream=pieces.append)
    assert "".join(pieces) == "".join(replies)


def test_sampling_is_seeded_and_leaves_the_random_state(ask: Runner) -> None:
    """The same seed, the same reply; another seed, another; outside nothing changes."""
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first = ask("Tell me a story", temperature=1.0, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert ask("Tell me a story", temperature=1.0, seed=1) == first
    assert ask("Tell me a story", temperature=1.0, seed=2) != first
    assert ask("Tell me a story") == ask("Tell me a story")


def test_a_cut_reply_is_not_finished(ask: Runner) -> None:
    """Running out of tokens is told apart from ending."""
    reply = ask("Tell me a long story", max_new_tokens=5)
    assert not reply.finished
    assert reply.tokens == 5


def test_hub_sampling_defaults_do_not_leak(ask: Runner) -> None:
    """Llama-2's files set a temperature; temperature 0 stays greedy all the same."""
    expected = ask(QUESTION)
    config = ask.model.generation_config
    config.update(do_sample=True, temperature=1.9, top_p=0.9)
    try:
        assert ask(QUESTION) == expected
    finally:
        config.update(do_sample=False, temperature=None, top_p=None)


def test_what_is_refused(ask: Runner) -> None:
    """Bad input is named."""
    with pytest.raises(ValueError, match="max_tokens"):
        ask(QUESTION, max_tokens=5)
    with pytest.raises(ValueError, match="-1"):
        ask(QUESTION, temperature=-1)
    with pytest.raises(ValueError, match="empty prompt"):
        ask("", template=False)


def test_the_callers_tokenizer_stays_as_it_was(ask: Runner) -> None:
    """Left padding is the runner's own affair: training pads on the right."""
    tokenizer = load_tokenizer("chat")
    side = tokenizer.padding_side
    Runner(ask.model, tokenizer)
    assert tokenizer.padding_side == side
