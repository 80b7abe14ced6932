"""The hand-off: real servers of llama.cpp, a tiny model, and each fault made on purpose."""

from __future__ import annotations

import contextlib
import copy
import random
import re
import resource
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gguf
import openai
import psutil
import pytest
import torch
from hub_stand_in import HubStandIn
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    PreTrainedTokenizerBase,
)

from course_utils import handoff
from course_utils.errors import (
    BadValue,
    CourseError,
    DamagedFile,
    ImpossibleSetup,
    NotEnoughDisk,
)
from course_utils.handoff import _compare
from course_utils.models import Runner, serve
from tools import notebooks

SYSTEM = {"role": "system", "content": "Say it as Yoda would."}
SENTENCES = (
    *("The cat is black.", "Who are you?", "Birds sing at dawn.", "We walk home."),
    *("It rains.", "Tea is hot.", "Open the door, please.", "Numbers never end."),
)
PROMPTS = [[SYSTEM, {"role": "user", "content": said}] for said in SENTENCES]
ASKED = [messages[1:] for messages in PROMPTS]
END = 2  # <|im_end|>
ALPACA = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}### assistant:\n"
PLAIN = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def base_of(tiny: Path, tokenizer: PreTrainedTokenizerBase, seed: int = 20) -> torch.nn.Module:
    """A model that says some English words, and after a few of them its EOS token."""
    config = LlamaConfig.from_pretrained(
        tiny,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    names = tokenizer.convert_ids_to_tokens(range(300, 3000))
    words = [300 + i for i, name in enumerate(names) if re.fullmatch(r"Ġ[A-Za-z]+", name)][:300]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.normal_(std=weight.shape[1] ** -0.5)
        model.get_input_embeddings().weight.normal_(std=1.0)
        output = model.get_output_embeddings().weight.normal_(std=0.02)
        output[words] = 0.5 * torch.randn(len(words), output.shape[1])
        output[END] = 1.0 * torch.randn(output.shape[1])
    model.generation_config.eos_token_id = END
    return model


def edited(file: Path, target: Path, key: str, value: float) -> Path:
    """A GGUF file with one of its numbers changed."""
    whole = bytearray(file.read_bytes())
    place = whole.index(key.encode()) + len(key) + 4  # after the number that names its type
    whole[place : place + 4] = struct.pack("<f" if isinstance(value, float) else "<I", value)
    target.write_bytes(whole)
    return target


class Chain:
    """A base model, an adapter on it, and what becomes of them."""

    def __init__(self, tiny: Path, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = AutoTokenizer.from_pretrained(tiny)
        base = base_of(tiny, self.tokenizer)
        base.save_pretrained(folder / "base")
        # Not on all layers, as a base in 4 bits is rounded in all.
        settings = LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
            task_type="CAUSAL_LM",
        )
        self.tuned = get_peft_model(base, settings).eval()
        torch.manual_seed(20)
        with torch.no_grad():
            for name, weight in self.tuned.named_parameters():
                if "lora_" in name:
                    weight.normal_(std=0.2)
        self.tuned.save_pretrained(folder / "adapter")
        self.merged = copy.deepcopy(self.tuned).merge_and_unload()
        self.merged.save_pretrained(folder / "merged")
        for name in ("base", "merged"):
            self.tokenizer.save_pretrained(folder / name)
        with ThreadPoolExecutor(2) as pool:
            made = [
                pool.submit(handoff.to_gguf, folder / "merged", folder / "m32.gguf", "f32"),
                pool.submit(handoff.to_gguf, folder / "merged", folder / "m16.gguf"),
                pool.submit(handoff.to_gguf, folder / "base", folder / "base.gguf"),
                pool.submit(
                    handoff.lora_to_gguf, folder / "adapter", folder / "base", folder / "lora.gguf"
                ),
            ]
        self.m32, self.m16, self.base, self.lora = (job.result() for job in made)
        # The second adapter takes away what the first one adds.
        self.second = Path(shutil.copy(self.lora, folder / "second.gguf"))
        for tensor in gguf.GGUFReader(self.second, "r+").tensors:
            if tensor.name.endswith("lora_b"):
                tensor.data[:] = -tensor.data
        self.reference = handoff.Reference(self.tuned, self.tokenizer, PROMPTS, max_tokens=16)

    def local(self, model: torch.nn.Module, tokenizer: object = None) -> handoff.Comparison:
        """The reference against a model in this process."""
        return self.reference.compare(handoff.Local(model, tokenizer or self.tokenizer))

    def served(self, file: Path, **how: object) -> handoff.Comparison:
        """The reference against llama.cpp's server."""
        with handoff.serve_gguf(file, **how) as url:
            return self.reference.compare(handoff.Server(url))

    def asked(self, first: float, second: float = 0.0) -> handoff.Comparison:
        """The reference against the base with its adapters at these strengths."""
        strengths = {0: first, 1: second}
        return self.reference.compare(handoff.Server(self.adapters_url, adapters=strengths))

    def adapted(self, base: torch.nn.Module) -> PeftModel:
        """The adapter on another base."""
        return PeftModel.from_pretrained(base, self.folder / "adapter")

    def in_4_bits(self) -> torch.nn.Module:
        """The base in nf4."""
        nf4 = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
        return AutoModelForCausalLM.from_pretrained(
            self.folder / "base", quantization_config=nf4, dtype=torch.float32
        )

    def with_template(self, text: str) -> PreTrainedTokenizerBase:
        """The tokenizer with another template."""
        found = copy.deepcopy(self.tokenizer)
        found.chat_template = text
        return found


@pytest.fixture(scope="module")
def chain(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """The chain, with two servers that run while its tests do: to start one takes seconds."""
    made = Chain(tiny_folder, tmp_path_factory.mktemp("handoff"))
    adapters = [made.lora, made.second]
    with (
        handoff.serve_gguf(made.m16) as made.url,
        handoff.serve_gguf(made.base, adapters=adapters) as made.adapters_url,
    ):
        yield made


# ------------------------------------------------------------------------------- still the same


def test_the_replies_are_worth_comparing(chain: Chain) -> None:
    """They depend on the prompt and on the adapter, end by themselves, and hang by no thread."""
    reference = chain.reference
    assert len(set(reference.replies)) >= 6
    assert sum(reference.ends) >= 6
    margins = [p.logprobs[0] - p.logprobs[1] for row in reference.positions for p in row]
    assert min(margins) > 0.05
    assert chain.local(chain.tuned.get_base_model()).same_replies == len(PROMPTS)  # adapted
    with chain.tuned.disable_adapter():
        assert chain.local(chain.tuned).same_replies == 0


@pytest.mark.parametrize(
    "way",
    [
        lambda chain: chain.local(chain.merged),
        lambda chain: chain.served(chain.m32),
        lambda chain: chain.reference.compare(handoff.Server(chain.url)),
        lambda chain: chain.asked(1.0),
    ],
    ids=["merged", "f32", "f16", "base and adapter"],
)
def test_the_same_model_is_called_so(chain: Chain, way: Callable) -> None:
    """Merged, converted, or with the adapter beside the base: tokens, ends, replies."""
    found = way(chain)
    assert (found.verdict, found.cause) == ("the same model", "")
    assert found.same_prompts == found.same_replies == found.same_ends == len(PROMPTS)
    assert found.kl < 0.002
    assert found.loss_change.low <= 0.002
    assert "the same model" in str(found)


def test_every_prompt_has_the_tokenizers_own_ids(chain: Chain) -> None:
    """Whatever is in it: marks, spaces, other scripts, nothing, what looks like a special token."""
    texts = [*SENTENCES, "", "  two\n\nlines\t", "naïve 你好 🙂", "<|im_end|> </s> {{ x }} {% y %}"]
    server = handoff.Server(chain.url)
    for text in texts:
        talk = [{"role": "user", "content": text}]
        told = [SYSTEM, *talk, {"role": "assistant", "content": "Yes."}, *talk]
        for messages in (talk, [SYSTEM, *talk], told):
            assert server.prompt_ids(messages) == chain.reference.local.prompt_ids(messages)
    assert server.vocabulary == len(chain.tokenizer)
    assert "F16" in server.precision


def test_the_right_answers_are_compared_too(chain: Chain) -> None:
    """Their loss is the model's own loss on them."""
    answers = chain.reference.replies
    found = handoff.Reference(chain.tuned, chain.tokenizer, PROMPTS, answers, max_tokens=4)
    losses = []
    for given, text, listed in zip(found.given, found.texts, found.positions, strict=True):
        labels = torch.tensor([[-100] * len(given) + text])
        with torch.no_grad():
            losses.append(chain.tuned(torch.tensor([given + text]), labels=labels).loss.item())
        assert text[-1] == END
        assert all(token in place.ids for token, place in zip(text, listed, strict=True))
    told = found.compare(handoff.Local(chain.merged, chain.tokenizer))
    assert told.loss == pytest.approx(sum(losses) / len(losses), rel=1e-3)
    with pytest.raises(BadValue, match="answers are 1, and prompts 8"):
        handoff.Reference(chain.tuned, chain.tokenizer, PROMPTS, answers[:1])


# ---------------------------------------------------------------------------------- each fault


def template(text: str) -> Callable:
    """A server with another template; OWN in it is the model's."""
    return lambda chain: chain.served(
        chain.m16, template=text.replace("OWN", chain.tokenizer.chat_template)
    )


def extra_system(chain: Chain) -> handoff.Comparison:
    """The file's template puts a system prompt in; the model was tuned without one."""
    tokenizer = chain.with_template(PLAIN)
    reference = handoff.Reference(chain.tuned, tokenizer, ASKED, max_tokens=16)
    return reference.compare(handoff.Server(chain.url))


def dropped(chain: Chain) -> handoff.Comparison:
    """A template that leaves the system prompt out."""
    text = PLAIN.replace("in messages", "in messages[1:]")
    return chain.local(chain.merged, chain.with_template(text))


def lost_default(chain: Chain) -> handoff.Comparison:
    """The model was tuned with the template's own system prompt, and the server has none."""
    reference = handoff.Reference(chain.tuned, chain.tokenizer, ASKED, max_tokens=16)
    return reference.compare(handoff.Local(chain.merged, chain.with_template(PLAIN)))


def other_default(chain: Chain) -> handoff.Comparison:
    """Another default system prompt."""
    own = chain.tokenizer.chat_template
    assert "named SmolLM" in own
    reference = handoff.Reference(chain.tuned, chain.tokenizer, ASKED, max_tokens=16)
    tokenizer = chain.with_template(own.replace("named SmolLM", "called Bob"))
    return reference.compare(handoff.Local(chain.merged, tokenizer))


def ended_by(token: int) -> Callable:
    """The merged model with another EOS token."""

    def compared(chain: Chain) -> handoff.Comparison:
        model = copy.deepcopy(chain.merged)
        model.generation_config.eos_token_id = token
        return chain.local(model)

    return compared


def ended_early(chain: Chain) -> handoff.Comparison:
    """Tuned to go on after <|im_end|>: llama.cpp ends there, whatever the file's EOS token is."""
    model = copy.deepcopy(chain.merged)
    model.generation_config.eos_token_id = 0
    reference = handoff.Reference(model, chain.tokenizer, PROMPTS, max_tokens=16)
    file = edited(
        chain.m16, chain.folder / "end.gguf", "tokenizer.ggml.eos_token_id", 0
    )  # <|endoftext|>
    with handoff.serve_gguf(file) as url:
        return reference.compare(handoff.Server(url))


def suppressed(chain: Chain) -> handoff.Comparison:
    """Words that generation_config.json suppresses, of which no server knows."""
    model = copy.deepcopy(chain.merged)
    used = {token for ids in chain.reference.reply_ids for token in ids[:1]}
    model.generation_config.suppress_tokens = sorted(used - {END})
    return chain.local(model)


def without_scale(chain: Chain) -> handoff.Comparison:
    """B·A added as it is."""
    model = copy.deepcopy(chain.tuned)
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] = 1.0
    return chain.local(model.merge_and_unload())


def twice_merged(chain: Chain) -> handoff.Comparison:
    """The adapter on a model that has it already."""
    return chain.local(chain.adapted(copy.deepcopy(chain.merged)))


def from_4_bits(chain: Chain) -> handoff.Comparison:
    """Merged into the base as 4 bits left it."""
    return chain.local(
        chain.adapted(chain.in_4_bits().dequantize(dtype=torch.float32)).merge_and_unload()
    )


def rope(chain: Chain) -> handoff.Comparison:
    """The converter lost the base frequency."""
    file = edited(chain.m16, chain.folder / "rope.gguf", "llama.rope.freq_base", 10_000.0)
    return chain.served(file)


def padded(chain: Chain) -> handoff.Comparison:
    """More rows than tokens."""
    model = copy.deepcopy(chain.merged)
    model.resize_token_embeddings(len(chain.tokenizer) + 1, pad_to_multiple_of=128)
    return chain.local(model)


def another_base(chain: Chain) -> handoff.Comparison:
    """The adapter on a base that it was not trained on."""
    return chain.local(chain.adapted(base_of(chain.folder / "base", chain.tokenizer, seed=7)))


FAULTS: dict[str, tuple[Callable, str]] = {
    "another template": (template(ALPACA), "another template"),
    "BOS twice": (template("<|im_start|>OWN"), "a BOS token too many"),
    "system prompt dropped": (dropped, "no system prompt"),
    "default system prompt put in": (extra_system, "an extra system prompt"),
    "default system prompt removed": (lost_default, "no system prompt"),
    "default system prompt changed": (other_default, "another system prompt"),
    "EOS token not known": (ended_by(0), "another EOS token: "),
    "EOS token that ends too early": (ended_early, "another EOS token: "),
    "other settings of generation": (suppressed, "generation_config.json"),
    "adapter loaded, not asked for": (
        lambda chain: chain.reference.compare(handoff.Server(chain.adapters_url)),
        "the adapter is not applied",
    ),
    "adapter with strength 2": (lambda chain: chain.asked(2.0), "the adapter is added twice"),
    "adapter with strength 1/2": (lambda chain: chain.asked(0.5), "lora_alpha / r, is left out"),
    "adapter merged twice": (twice_merged, "the adapter is added twice"),
    "scale left out": (without_scale, "lora_alpha / r, is left out"),
    "merged into a base from 4 bits": (from_4_bits, "the base was in 4 bits"),
    "rope_theta": (rope, "rope_theta is 10,000, and should be 100,000"),
    "padded vocabulary": (padded, "another vocabulary: 49,280 tokens, and 49,152"),
    "another base": (another_base, "other weights"),
    "another adapter": (lambda chain: chain.asked(0.0, 1.0), "other weights"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(chain: Chain, fault: str) -> None:
    """None of them gives an error by itself."""
    make, said = FAULTS[fault]
    found = make(chain)
    assert found.verdict == "another model"
    assert said in found.cause
    assert found.cause in str(found)


def test_merging_into_4_bits_is_seen(chain: Chain) -> None:
    """The adapter added to nf4 and rounded again: it is not called the same."""
    model = chain.adapted(chain.in_4_bits()).merge_and_unload()
    for module in model.modules():  # bitsandbytes' own kernels take no matrices of 32 columns
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    found = chain.local(model)
    assert found.verdict in ("rounded", "another model")
    assert found.cause
    assert "scale" not in found.cause
    assert "twice" not in found.cause


def test_rounding_to_4_bits_is_seen(chain: Chain, tmp_path: Path) -> None:
    """Of a model this small, little is left; a larger one keeps more. Nothing else is blamed."""
    four = handoff.to_4_bits(chain.m16, tmp_path / "q4.gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(four).tensors}
    name = "blk.0.ffn_up.weight"
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    assert tensors[name].tensor_type.name == "Q4_0"
    rounded = torch.from_numpy(gguf.dequantize(tensors[name].data, tensors[name].tensor_type))
    before = chain.merged.model.layers[0].mlp.up_proj.weight.detach()
    assert 0 < (rounded - before).abs().max() < 0.15 * before.abs().max()
    assert four.stat().st_size < chain.m16.stat().st_size
    found = chain.served(four)
    assert found.same_prompts == len(PROMPTS)
    assert found.verdict in ("rounded", "another model")
    assert found.cause.startswith(("weights in", "other weights"))
    with pytest.raises(ImpossibleSetup, match="rounding twice loses twice"):
        handoff.to_4_bits(four, tmp_path / "again.gguf")
    assert not (tmp_path / "again.gguf").exists()


def test_a_model_merged_long_ago_needs_its_base_to_tell(chain: Chain) -> None:
    """Without the adapter within, "not applied" is told if the base is given, else not."""
    with chain.tuned.disable_adapter():
        base = copy.deepcopy(chain.tuned).unload()
    for given, said in ((base, "not applied"), (None, "other weights")):
        reference = handoff.Reference(
            chain.merged, chain.tokenizer, PROMPTS, max_tokens=16, base=given
        )
        found = reference.compare(handoff.Local(base, chain.tokenizer))
        assert said in found.cause


def test_trying_faults_leaves_the_reference_as_it_was(chain: Chain) -> None:
    """Weights, scaling and rotary frequencies, after an error too."""

    def state() -> tuple[list, list, list]:
        modules = list(chain.tuned.modules())
        return (
            [value.clone() for value in chain.tuned.state_dict().values()],
            [dict(m.scaling) for m in modules if isinstance(getattr(m, "scaling", None), dict)],
            [m.inv_freq.clone() for m in modules if hasattr(m, "inv_freq")],
        )

    before, tried = state(), []
    clean = chain.reference.local.positions(chain.reference.given[0], [5, 6])
    for name, fault in _compare._faults(chain.tuned, None):
        with fault() as model:
            spoilt = handoff.Local(model, chain.tokenizer).positions(chain.reference.given[0], [5])
        assert spoilt[0].logprobs.tolist() != clean[0].logprobs.tolist(), name
        with pytest.raises(ZeroDivisionError), fault():
            raise ZeroDivisionError
        tried.append(name)
    assert len(tried) == 5
    after = state()
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert before[1] == after[1]
    assert before[1][0] == {"default": 2.0}
    assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))
    again = chain.reference.local.positions(chain.reference.given[0], [5, 6])
    assert [p.logprobs.tolist() for p in again] == [p.logprobs.tolist() for p in clean]
    assert not chain.tuned.training


# ------------------------------------------------------------------------ adapters on one server


def test_two_adapters_on_one_server(chain: Chain) -> None:
    """Chosen by request: one, the other, none, both."""
    turned = copy.deepcopy(chain.tuned)
    with torch.no_grad():
        for name, weight in turned.named_parameters():
            if "lora_B" in name:
                weight.neg_()
    other = handoff.Reference(turned, chain.tokenizer, PROMPTS, max_tokens=16)
    second = handoff.Server(chain.adapters_url, adapters={0: 0.0, 1: 1.0})
    for _ in range(2):  # the one does not stay when the other is asked
        assert chain.asked(1.0).verdict == "the same model"
        assert other.compare(second).verdict == "the same model"
    assert "not applied" in chain.asked(1.0, 1.0).cause  # they cancel out


def test_kept_prompts_are_those_of_another_adapter(chain: Chain) -> None:
    """A known fault of llama.cpp; if this fails, an update has mended it: tell it in notebook 10.

    github.com/ggml-org/llama.cpp/issues/26207
    """

    def first(messages: list, strength: float, keep: bool) -> float:
        reply = client.chat.completions.create(
            model="m",
            messages=messages,
            max_tokens=1,
            temperature=0,
            logprobs=True,
            top_logprobs=1,
            extra_body={"lora": [{"id": 0, "scale": strength}], "cache_prompt": keep},
        )
        return reply.choices[0].logprobs.content[0].logprob

    words = " ".join(SENTENCES).replace(".", "").split()
    draws = random.Random(0)
    long = [
        [SYSTEM, {"role": "user", "content": " ".join(draws.choices(words, k=60))}]
        for _ in range(3)
    ]
    with handoff.serve_gguf(chain.base, adapters=[chain.lora]) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        for messages in long:
            first(messages, 0.0, keep=True)
        kept = [first(messages, 1.0, keep=True) for messages in long]
        right = [first(messages, 1.0, keep=False) for messages in long]
        again = [first(messages, 1.0, keep=False) for messages in long]
    assert again == pytest.approx(right, abs=1e-3)
    assert max(abs(a - b) for a, b in zip(kept, right, strict=True)) > 0.05


# --------------------------------------------------------------------------------- other servers


def test_a_server_that_tells_little(chain: Chain) -> None:
    """Any server of chat completions can be compared by its replies; the rest is not told."""
    url = serve(Runner(chain.merged, chain.tokenizer, repetition_penalty=1.0))
    server = handoff.Server(url)
    assert server.prompt_ids(PROMPTS[0]) is None
    assert server.positions([1], [2]) is None
    assert server.vocabulary is None
    assert server.precision == "unknown"
    found = chain.reference.compare(server)
    assert (found.same_prompts, found.kl, found.loss_change) == (None, None, None)
    assert found.same_replies == len(PROMPTS)
    assert found.verdict == "the same model"
    assert "not told" in str(found)
    base = copy.deepcopy(chain.tuned).unload()
    found = chain.reference.compare(
        handoff.Server(serve(Runner(base, chain.tokenizer, repetition_penalty=1.0)))
    )
    assert found.verdict == "not told"
    assert "look at the replies" in found.cause


class Scripted(BaseHTTPRequestHandler):
    """It answers with what it was told, and breaks off where it was told."""

    script: list[tuple[bytes, bool]]
    answers: dict[str, bytes]
    seen: list[dict]

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Answer a question about the server itself."""
        self._send(200, self.answers.get(self.path, b"nonsense"))

    def do_POST(self) -> None:
        """Take the next answer of the script."""
        self.seen.append(dict(self.headers))
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path in self.answers:
            self._send(200, self.answers[self.path])
        elif not self.script:
            self._send(401, b'{"error": {"message": "wrong: %s"}}' % self._key())
        else:
            body, whole = self.script.pop(0)
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if body:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
            if whole:
                self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True

    def _key(self) -> bytes:
        return self.headers.get("Authorization", "").encode()

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def scripted() -> Iterator[type[Scripted]]:
    """A server that is told what to answer."""
    handler = type("Own", (Scripted,), {"script": [], "answers": {}, "seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()


def sent(*pieces: str, end: str = "stop") -> bytes:
    """A reply's events; without `end`, it is not said to be over."""
    said = [f'{{"choices": [{{"index": 0, "delta": {{"content": "{p}"}}}}]}}' for p in pieces]
    if end:
        said += [f'{{"choices": [{{"index": 0, "delta": {{}}, "finish_reason": "{end}"}}]}}']
    return "".join(f"data: {line}\n\n" for line in said).encode() + b"data: [DONE]\n\n" * bool(end)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ([(sent("Black, ", "the cat is."), True)], ["Black, ", "the cat is."]),
        (
            [(sent("Black, ", "th", end=""), False), (sent("Bla", "ck, the cat", " is."), True)],
            ["Black, ", "th", "e cat", " is."],
        ),
        ([(b"", False), (sent("Yes."), True)], ["Yes."]),
        ([(sent("Ye", end="") + b'data: {"choi', False), (sent("Yes."), True)], ["Ye", "s."]),
        # Some servers end a connection as if all was well.
        ([(sent("Ye", end=""), True), (sent("Yes."), True)], ["Ye", "s."]),
        ([(sent("Ye", end="") + b'data: {"choi\n\n', True), (sent("Yes."), True)], ["Ye", "s."]),
        ([(sent("Yes.", end="length"), True)], ["Yes."]),
        # Broken after its end: nothing is lost.
        ([(sent("Yes."), False)], ["Yes."]),
    ],
)
def test_a_broken_stream_begins_again(
    scripted: type[Scripted], script: list[tuple[bytes, bool]], said: list[str]
) -> None:
    """What came before is not given twice, and the rest is not lost."""
    scripted.script[:] = script
    client = openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=0)
    assert list(handoff.stream(client, model="m", messages=PROMPTS[0])) == said
    assert not scripted.script


@pytest.mark.parametrize("second", ["A dog", "Blac", ""])
def test_another_reply_is_refused(scripted: type[Scripted], second: str) -> None:
    """One that begins differently, or ends before what was given."""
    scripted.script[:] = [(sent("Black", end=""), False), (sent(second), True)]
    client = openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=0)
    pieces = handoff.stream(client, model="m", messages=PROMPTS[0])
    assert next(pieces) == "Black"
    with pytest.raises(CourseError, match="begins differently"):
        next(pieces)


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_stream_gives_up(scripted: type[Scripted], retries: int) -> None:
    """After so many retries, with what came."""
    scripted.script[:] = [(sent("Bla", end=""), False)] * (retries + 1)
    client = openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(CourseError, match=rf"{retries + 1} times .*'Bla'"):
        list(handoff.stream(client, retries=retries, model="m", messages=PROMPTS[0]))
    assert len(scripted.seen) == retries + 1


def test_a_stream_from_a_real_server(chain: Chain) -> None:
    """Its pieces are the reply."""
    client = openai.OpenAI(base_url=f"{chain.url}/v1", api_key="none", max_retries=0)
    replies = chain.reference.replies
    number = max(range(len(replies)), key=lambda n: len(replies[n]))
    request = {"model": "m", "messages": PROMPTS[number], "max_tokens": 16, "temperature": 0}
    pieces = list(handoff.stream(client, **request))
    assert len(pieces) >= 4
    assert "".join(pieces) == replies[number]


PROPS = b'{"chat_template": "", "total_slots": 1}'


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"/v1/models": b'{"data": 3}', "/props": b"[]"},
        {"/v1/models": b'{"data": [{"id": 7, "meta": [1]}]}'},
        {"/v1/models": b'{"data": [{"meta": {"n_vocab": "many"}}]}', "/props": PROPS},
        {"/props": PROPS, "/apply-template": b'{"text": "a"}'},
        {"/props": PROPS, "/apply-template": b'{"prompt": "a"}', "/tokenize": b'{"tokens": ["a"]}'},
        {"/props": PROPS, "/apply-template": b"\xff"},
        {"/v1/chat/completions": b"[]"},
        {"/v1/chat/completions": b'{"choices": []}'},
        {"/v1/chat/completions": b'{"choices": [{"message": {"content": 3}}]}'},
        {
            "/v1/chat/completions": b'{"choices": [{"message": {"content": "a"},'
            b' "finish_reason": "stop"}], "usage": [1]}'
        },
        {
            "/props": PROPS,
            "/apply-template": b'{"prompt": "a"}',
            "/tokenize": b'{"tokens": [1]}',
            "/v1/chat/completions": b'{"choices": [{"message": {"content": "a"},'
            b' "finish_reason": "stop"}]}',
            "/completion": b'{"completion_probabilities": []}',
        },
    ],
)
def test_a_server_that_answers_nonsense(
    chain: Chain, scripted: type[Scripted], answers: dict[str, bytes]
) -> None:
    """It is named, with what it answered, and no traceback from within."""
    scripted.answers.update(answers)
    server = handoff.Server(scripted.url, "that one")
    with pytest.raises(CourseError, match=rf"^that one at {scripted.url}"):
        chain.reference.compare(server)


def test_a_server_that_dies(chain: Chain, scripted: type[Scripted]) -> None:
    """In the middle of an answer, before it, and before anything."""
    server = handoff.Server(scripted.url, "that one")
    for body in (b"", b'{"choices": [{"mess'):
        scripted.script[:] = [(body, False)] * 2
        with pytest.raises(CourseError, match=r"that one at .* is gone .*so ask again"):
            server.replies(PROMPTS, 4)
        scripted.script.clear()
    with handoff.serve_gguf(chain.m16) as url:
        server = handoff.Server(url, "llama.cpp")
        assert server.replies(PROMPTS[:1], 4)
    with pytest.raises(CourseError, match=r"llama\.cpp at .* is gone"):
        server.replies(PROMPTS[:1], 4)
    with pytest.raises(CourseError, match=r"is gone .*Is it running"):
        handoff.Server(url)


def test_a_server_that_takes_too_long(
    scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not waited for without end."""
    server = handoff.Server(scripted.url)
    server._client.timeout = 0.2
    monkeypatch.setattr(scripted, "do_POST", lambda self: time.sleep(0.5))
    with pytest.raises(CourseError, match="did not answer in time"):
        server.replies(PROMPTS, 4)


def test_keys_stay_where_they_are(
    scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the environment; not over plain http to another machine; in no message, in no repr."""
    monkeypatch.setenv("SOME_KEY", " sk-secret\n")  # as `$(cat file)` may leave it
    server = handoff.Server(scripted.url, key_variable="SOME_KEY")
    with pytest.raises(CourseError, match="status 401") as told:
        server.replies(PROMPTS, 4)
    assert scripted.seen[-1]["Authorization"] == "Bearer sk-secret"
    scripted.answers["/v1/chat/completions"] = b'{"choices": "Bearer sk-secret"}'
    with pytest.raises(CourseError, match="did not answer as OpenAI") as repeated:
        server.replies(PROMPTS, 4)
    for said in (str(told.value), str(repeated.value), repr(server), repr(vars(server))):
        assert "secret" not in said
    for elsewhere in ("http://example.com", "http://127.0.0.1.example.com", "http://10.0.0.1:80"):
        with pytest.raises(BadValue, match="unencrypted"):
            handoff.Server(elsewhere, key_variable="SOME_KEY")
    with pytest.raises(BadValue, match="ABSENT is not set"):
        handoff.Server(scripted.url, key_variable="ABSENT")
    monkeypatch.setenv("SOME_KEY", "sk-sécret")
    with pytest.raises(BadValue, match="SOME_KEY holds is no key") as odd:
        handoff.Server(scripted.url, key_variable="SOME_KEY")
    with pytest.raises(BadValue, match="a name or a password") as within:
        handoff.Server("http://me:sk-secret@127.0.0.1:9")
    assert "cret" not in str(odd.value) + str(within.value)


def test_no_proxy_is_asked_for_this_machine(
    scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on loopback stays there, whatever the environment says."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert handoff.Server(scripted.url).model == "model"


# ------------------------------------------------------------------------------------- bad input


def test_a_file_that_was_cut_short(chain: Chain, tmp_path: Path) -> None:
    """At many places, it is refused before llama.cpp sees it."""
    whole = chain.m16.read_bytes()
    cut = tmp_path / "cut.gguf"
    for place in (len(whole) // 2, -1, 4, 7, 20, 23, 100, 1000, 100_000):
        cut.write_bytes(whole[:place])
        with pytest.raises(DamagedFile, match=r"cut\.gguf"):
            handoff.check_gguf(cut)
    with pytest.raises(DamagedFile):
        handoff.serve_gguf(cut)
    with pytest.raises(DamagedFile):
        handoff.serve_gguf(chain.lora, adapters=[cut])
    with pytest.raises(DamagedFile):
        handoff.to_4_bits(cut, tmp_path / "q4.gguf")
    assert not (tmp_path / "q4.gguf").exists()


def test_junk_is_no_model(chain: Chain, tmp_path: Path) -> None:
    """Text, an empty file, a header with absurd numbers, bytes changed anywhere in it."""
    file = tmp_path / "junk.gguf"
    header = chain.m16.read_bytes()[:4000]
    draws = torch.Generator().manual_seed(0)
    changed = []
    for _ in range(60):
        places = torch.randint(4, 2000, (8,), generator=draws)
        spoilt = bytearray(header)
        for place in places.tolist():
            spoilt[place] = 255 - spoilt[place]
        changed.append(bytes(spoilt))
    for junk in (b"", b"GGUF", b"PK\x03\x04", b"GGUF\x03\0\0\0" + b"\xff" * 16, *changed):
        file.write_bytes(junk)
        with pytest.raises(DamagedFile, match=r"junk\.gguf"):
            handoff.check_gguf(file)
    with pytest.raises(BadValue, match="that is there"):
        handoff.check_gguf(tmp_path / "absent.gguf")


def with_its_template(chain: Chain, target: Path, before: bytes, after: bytes) -> Path:
    """A file whose template was changed, in as many bytes."""
    whole = chain.m16.read_bytes()
    assert whole.count(before) == 1
    assert len(before) == len(after)
    target.write_bytes(whole.replace(before, after))
    return target


def test_a_template_that_does_not_parse(chain: Chain, tmp_path: Path) -> None:
    """In the file, and one that is given."""
    broken = with_its_template(chain, tmp_path / "a.gguf", b"{% for", b"{% fox")
    with pytest.raises(DamagedFile, match=r"a\.gguf does not parse"):
        handoff.check_gguf(broken)
    for text in ("{% for m in %}", "{{ " + "(" * 5000, "{% nonsense %}"):
        with pytest.raises(ImpossibleSetup, match="does not parse"):
            handoff.serve_gguf(chain.m16, template=text)


def test_a_template_is_not_run_by_looking(chain: Chain, tmp_path: Path) -> None:
    """One that would take forever, or would reach out, is parsed and nothing more."""
    own = chain.tokenizer.chat_template.encode()
    evil = b"{% for a in range(10**9) %}{% for b in range(10**9) %}{{ a.__class__.__mro__ }}"
    evil += b"{% endfor %}{% endfor %}"
    changed = with_its_template(chain, tmp_path / "a.gguf", own, evil.ljust(len(own)))
    began = time.monotonic()
    assert (
        handoff.check_gguf(changed)
        .fields["tokenizer.chat_template"]
        .contents()
        .startswith("{% for a")
    )
    assert time.monotonic() - began < 10


def test_a_template_that_marks_the_models_words(chain: Chain) -> None:
    """The tag {% generation %} is of transformers and llama.cpp, and both read it alike."""
    marked = PLAIN.replace("{{ '<|im", "{% generation %}{{ '<|im", 1)
    marked = marked.replace("{% endfor %}", "{% endgeneration %}{% endfor %}")
    wanted = chain.with_template(marked).apply_chat_template(
        PROMPTS[0], add_generation_prompt=True, return_dict=True
    )
    with handoff.serve_gguf(chain.m16, template=marked) as url:
        assert handoff.Server(url).prompt_ids(PROMPTS[0]) == list(wanted["input_ids"])


def test_what_llama_cpp_cannot_load(chain: Chain) -> None:
    """A template that fails when it is filled in, and an adapter in place of a model."""
    with (
        pytest.raises(CourseError, match="could not load"),
        handoff.serve_gguf(chain.m16, template="{{ raise_exception('no') }}"),
    ):
        pass
    with pytest.raises(CourseError, match="could not load"), handoff.serve_gguf(chain.lora):
        pass


def test_an_adapter_of_another_model(chain: Chain, chat_folder: Path, tmp_path: Path) -> None:
    """Refused by its shapes, as a folder and as a file; and a model is no adapter."""
    with pytest.raises(ImpossibleSetup, match="for another model"):
        handoff.lora_to_gguf(chain.folder / "adapter", chat_folder, tmp_path / "no.gguf")
    nothing = tmp_path / "nothing.gguf"
    writer = gguf.GGUFWriter(nothing, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ImpossibleSetup, match="not an adapter"):
        handoff.serve_gguf(chain.lora, adapters=[nothing])
    nothing.write_bytes(nothing.read_bytes().replace(b"general.archit", b"general.ARCHIT"))
    with pytest.raises(DamagedFile, match="no model"):
        handoff.to_4_bits(nothing, tmp_path / "no.gguf")
    other = tmp_path / "other.gguf"
    other.write_bytes(chain.lora.read_bytes().replace(b"blk.1.", b"blk.7."))
    with pytest.raises(ImpossibleSetup, match=r"does not fit blk\.7.* not there"):
        handoff.serve_gguf(chain.base, adapters=[other])
    assert not list(tmp_path.glob("no.gguf*"))


def test_folders_that_cannot_be_converted(chain: Chain, tmp_path: Path) -> None:
    """Each with what was given; what was there stays."""
    target = tmp_path / "model.gguf"
    target.write_text("kept")
    adapter, base = chain.folder / "adapter", chain.folder / "base"
    with pytest.raises(BadValue, match="merge it first, or use lora_to_gguf"):
        handoff.to_gguf(adapter, target)
    with pytest.raises(BadValue, match="adapter_config"):
        handoff.lora_to_gguf(base, base, target)
    with pytest.raises(BadValue, match="the folder of the base model"):
        handoff.lora_to_gguf(adapter, adapter, target)
    bare = tmp_path / "bare"
    shutil.copytree(base, bare, ignore=shutil.ignore_patterns("*token*"))
    with pytest.raises(BadValue, match="the tokenizer as well"):
        handoff.to_gguf(bare, target)
    for folder, name in ((bare, "model"), (tmp_path / "half", "adapter_model")):
        if name == "adapter_model":
            shutil.copytree(adapter, folder)
        file = folder / f"{name}.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(DamagedFile, match=r"model\.safetensors is not whole"):
        handoff.lora_to_gguf(adapter, bare, target)
    with pytest.raises(DamagedFile, match=r"adapter_model\.safetensors is not whole"):
        handoff.lora_to_gguf(tmp_path / "half", base, target)
    assert target.read_text() == "kept"
    assert not list(tmp_path.glob("*.partial"))


@contextlib.contextmanager
def room(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, of this process and those that it starts."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk(chain: Chain, tmp_path: Path) -> None:
    """In the converter's tensors and in ours: it is said, and what was there stays."""
    target = tmp_path / "model.gguf"
    target.write_text("kept")
    with room(5_000_000), pytest.raises(NotEnoughDisk, match="full"):
        handoff.to_gguf(chain.folder / "merged", target)
    with room(100_000), pytest.raises(NotEnoughDisk, match="full"):
        handoff.to_4_bits(chain.m16, target)
    assert target.read_text() == "kept"
    assert {path.name for path in tmp_path.iterdir()} <= {"model.gguf", ".model.gguf.lock"}


def test_a_converter_that_is_killed(chain: Chain, tmp_path: Path) -> None:
    """As by a system without memory, while it writes; scraps of an earlier one do not matter."""
    target, partial = tmp_path / "model.gguf", tmp_path / "model.gguf.partial"
    target.write_text("kept")
    partial.write_text("of an earlier kill")
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(handoff.to_gguf, chain.folder / "merged", target)
        deadline = time.monotonic() + 60
        while partial.exists() and partial.stat().st_size < 10_000:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        for child in psutil.Process().children():
            if str(partial) in child.cmdline():
                child.kill()
        with pytest.raises(CourseError, match=r"signal 9.*\n.*is unchanged"):
            job.result()
    assert target.read_text() == "kept"
    assert not partial.exists()


def test_a_port_that_is_taken(chain: Chain) -> None:
    """By another server of the same kind; one that is free is had, on this machine only."""
    port = int(chain.url.rsplit(":", 1)[1])
    assert chain.url == f"http://127.0.0.1:{port}"
    with pytest.raises(ImpossibleSetup, match=f"Port {port} cannot be had"):
        handoff.serve_gguf(chain.m16, port=port)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    with handoff.serve_gguf(chain.m16, port=free) as url:
        assert url == f"http://127.0.0.1:{free}"
        listening = [
            found.laddr
            for found in psutil.Process().net_connections("tcp")
            if found.status == psutil.CONN_LISTEN and found.laddr.port in (port, free)
        ]
        assert {address.ip for address in listening} == {"127.0.0.1"}


# ------------------------------------------------------------------------- Ollama's Modelfile


def parsed(text: str) -> dict[str, list[str]]:
    """A Modelfile's instructions, by Ollama's rules: a value ends with its quotation or line."""
    found: dict[str, list[str]] = {}
    while text := text.lstrip():
        word, text = re.match(r"([A-Z]+) +(.*)", text, re.S).groups()
        if word == "PARAMETER":
            name, text = re.match(r"(\w+) +(.*)", text, re.S).groups()
            word = f"PARAMETER {name}"
        mark = next((m for m in ('"""', '"') if text.startswith(m)), None)
        if mark:
            value, _, text = text[len(mark) :].partition(mark)
            assert text.startswith("\n"), text[:40]
        else:
            value, _, text = text.partition("\n")
        found.setdefault(word, []).append(value)
    return found


@pytest.mark.parametrize("own", [None, ALPACA.replace("### assistant:\n", "")])
def test_a_modelfile_has_the_models_own_template(chain: Chain, own: str | None) -> None:
    """Read by Ollama's rules and filled in, it gives the prompt that transformers gives."""
    tokenizer = chain.tokenizer if own is None else chain.with_template(
        own + "{% if add_generation_prompt %}### assistant:\n{% endif %}"
    )  # fmt: skip
    text = handoff.modelfile("m.gguf", tokenizer, SYSTEM["content"], stop=["###", "\n\n"])
    found = parsed(text)
    assert found["FROM"] == ["m.gguf"]
    assert found["SYSTEM"] == [SYSTEM["content"]]
    assert found["PARAMETER stop"] == ["<|im_end|>", "###", "\n\n"]
    assert found["PARAMETER temperature"] == ["0"]
    asked = found["TEMPLATE"][0].partition("{{ .Response }}")[0]
    for said in (*SENTENCES, 'It is "so".', "{{ x }}", "two\nlines"):
        messages = [SYSTEM, {"role": "user", "content": said}]
        filled = asked.replace("{{ .System }}", found["SYSTEM"][0]).replace("{{ .Prompt }}", said)
        assert filled == tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )


def test_modelfiles_that_cannot_be_written(chain: Chain) -> None:
    """A template that changes or drops its input, and quotations that would end too early."""
    for text in (
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        PLAIN.replace("m.content", "m.content | replace(' ', '')"),
        PLAIN.replace("in messages", "in messages[1:]"),
        PLAIN.replace("'<|im_start|>assistant", "'<|other|>assistant"),
        PLAIN + "{{ messages[0].content }}",
        "{{ '{{ .Tools }}' }}" + PLAIN,
    ):
        with pytest.raises(BadValue, match="by hand"):
            handoff.modelfile("m.gguf", chain.with_template(text), "Be brief.")
    for system, stop in (('Say """.', ()), ('Say "', ()), ("Be brief.", ['"']), ("A", ['a"\nb'])):
        with pytest.raises(BadValue, match="quotation"):
            handoff.modelfile("m.gguf", chain.tokenizer, system, stop=stop)
    with pytest.raises(BadValue, match="no chat template"):
        handoff.modelfile("m.gguf", chain.with_template(""), "Be brief.")


# ------------------------------------------------------------------------------------- upload


def test_what_goes_to_the_hub_is_what_was_listed(
    chain: Chain, hub_server: HubStandIn, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Notebook 10's dry run, and its upload: the same files, whole, and no pickle."""
    adapter = tmp_path / "final"
    shutil.copytree(chain.folder / "adapter", adapter)
    for name in ("training_args.bin", "optimizer.pt", "chat_template.jinja"):
        (adapter / name).write_text(f"this is {name}")
    text = (notebooks.SOURCES / "10_hand_off.py").read_text()
    cell = next(c for c in text.split("# %%") if c.lstrip().startswith("NAME ="))
    given: dict = {"adapter": adapter}
    exec(cell, given)  # the course's own text
    listed = set(re.findall(rf"→ {given['NAME']}/(\S+)", capsys.readouterr().out))
    block = re.search(r"```python\n((?:# [^`]*?\n)*?# api\.upload_folder.*?)# ```", text, re.S)
    calls = "\n".join(re.findall(r"^# (.*)$", block[1], re.M))
    assert "create_repo" in calls
    api = HfApi(token="hf_none")
    exec(calls.replace("huggingface_hub.HfApi()", "own"), given | {"own": api})
    arrived = hub_server.uploaded[given["NAME"]]
    assert set(arrived) - {".gitattributes"} == listed
    assert "adapter_model.safetensors" in listed
    assert not {"training_args.bin", "optimizer.pt"} & set(arrived)
    for name in listed:
        assert arrived[name] == (adapter / name).read_bytes()
    assert hub_server.private == {given["NAME"]}
