"""A model of this machine behind OpenAI's protocol, asked with OpenAI's own client."""

from __future__ import annotations

import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from course_utils import runner
from course_utils.errors import BadValue
from course_utils.models import Runner, serve
from course_utils.scoring import Judge


@pytest.fixture(scope="module")
def ask() -> Runner:
    """A small model, with a template so plain that it leaves the prompt as it is."""
    found = runner("course/pythia-3m", template=True)
    found.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    return found


@pytest.fixture(scope="module")
def client(ask: Runner) -> openai.OpenAI:
    """OpenAI's client, at the address of that model."""
    return openai.OpenAI(base_url=serve(ask), api_key="none", timeout=60, max_retries=0)


def asked(client: openai.OpenAI, *messages: dict[str, str], **options: object):
    """The first choice of an answer."""
    made = client.chat.completions.create(model="tiny", messages=list(messages), **options)
    assert made.model == "tiny"
    return made.choices[0]


def user(text: str) -> dict[str, str]:
    """A user's message."""
    return {"role": "user", "content": text}


def test_the_reply_is_the_runners(ask: Runner, client: openai.OpenAI) -> None:
    """With the same prompt and limit; a reply that was cut off says so."""
    choice = asked(client, user("The capital of France"), temperature=0, max_tokens=5)
    assert choice.message.content == ask("The capital of France", max_new_tokens=5)
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "length"
    newer = asked(client, user("The capital of France"), max_completion_tokens=5)
    assert newer.message.content == choice.message.content


def test_a_system_prompt_and_a_seed(ask: Runner, client: openai.OpenAI) -> None:
    """Both arrive at the model."""
    system = {"role": "system", "content": "Facts about Peru."}
    told = asked(client, system, user("The capital of Peru"), max_tokens=5)
    assert told.message.content == ask(
        "The capital of Peru", system=system["content"], max_new_tokens=5
    )
    options = {"temperature": 1.0, "max_tokens": 8}
    drawn = [
        asked(client, user("The"), seed=seed, **options).message.content for seed in (1, 1, 2, 3)
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_several_at_once(client: openai.OpenAI, ask: Runner) -> None:
    """Each gets its own reply."""
    prompts = [f"The capital of {country}" for country in ("Peru", "Chile", "Norway", "Japan")]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: asked(client, user(text), max_tokens=6), prompts))
    expected = [ask(prompt, max_new_tokens=6) for prompt in prompts]
    assert [choice.message.content for choice in found] == expected


@pytest.mark.parametrize(
    ("messages", "options", "said"),
    [
        ([], {}, "one user message"),
        ([user("Who?"), user("Who?")], {}, "one user message"),
        ([user("")], {}, "empty prompt"),
        ([user("Who?")], {"temperature": -1}, "temperature is -1"),
        ([user("Who?")], {"max_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_what_is_refused(client: openai.OpenAI, messages: list, options: dict, said: str) -> None:
    """With a sentence, as an error of the client; and the server goes on."""
    if said == "empty prompt":
        messages = [{"role": "user", "content": None}]
        said = "prompt"
    with pytest.raises(openai.BadRequestError, match=said):
        client.chat.completions.create(model="tiny", messages=messages, **options)
    assert asked(client, user("Who?"), max_tokens=2)


def test_other_addresses(client: openai.OpenAI) -> None:
    """Only chat completions are answered, and only from this machine."""
    assert client.base_url.host == "127.0.0.1"
    with pytest.raises(openai.BadRequestError, match="only chat completions"):
        client.completions.create(model="tiny", prompt="Who?")
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(f"{client.base_url}models", timeout=10)


def test_a_judge_asks_it(client: openai.OpenAI) -> None:
    """As notebook 08 does: the client in a function, the function in a judge."""
    judge = Judge(
        lambda prompts: [
            asked(client, user(prompt), max_tokens=4).message.content or "" for prompt in prompts
        ]
    )
    verdicts = judge.compare(["Who?", "Why?"], ["a", "b"], ["c", "d"])
    assert [verdict.winner for verdict in verdicts] == [None, None]
    assert len(judge.replies) == 2


def test_no_runner() -> None:
    """What cannot be asked is not served."""
    with pytest.raises(BadValue, match="Runner"):
        serve("chat")
