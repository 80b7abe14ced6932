"""The hub: a bounded probe, downloads, gating, refusals and falling back, against a stand-in."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hub_stand_in import HubStandIn, Repository
from huggingface_hub import constants

from course_utils.errors import (
    GatedModel,
    HubUnreachable,
    NotEnoughDisk,
    UnknownName,
    UnsafeFormat,
)
from course_utils.hardware import Hardware
from course_utils.models import _hub as hub
from course_utils.models._catalog import catalog
from course_utils.models._loading import load_model, load_tokenizer, resolve

GPU_40GB = Hardware(gpu_name="A100", gpu_memory_gb=42.4, gpu_capability=(8, 0))
LLAMA = "meta-llama/Llama-2-7b-chat-hf"
SMOLLM = "HuggingFaceTB/SmolLM2-135M"


def test_no_answer_is_no_hub() -> None:
    """Where nothing listens, the hub is out of reach."""
    assert hub.reachable() is False


def test_an_answer_is_a_hub_and_is_remembered(hub_server: HubStandIn) -> None:
    """The hub is asked once per process."""
    assert hub.reachable() is True
    assert hub.reachable() is True
    assert hub_server.requests == ["/api/models"]


def test_the_probe_does_not_wait_for_a_hub_that_hangs(hub_server: HubStandIn) -> None:
    """The server accepts and stays silent for a minute; the probe answers before it does."""
    hub_server.hang = True
    assert hub.reachable() is False
    assert not hub_server.release.is_set()
    assert hub_server.requests == ["/api/models"]


def test_the_probe_does_not_wait_for_a_name_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name look-ups know no timeout, so the probe has its own."""
    let_go = threading.Event()

    def slow_lookup(*args: object, **kwargs: object) -> list:
        let_go.wait(60)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", slow_lookup)
    assert hub.reachable() is False
    assert not let_go.is_set()
    let_go.set()


def test_a_captive_portal_is_no_hub(
    monkeypatch: pytest.MonkeyPatch, hub_server: HubStandIn
) -> None:
    """A page that answers 200 to everything is not the hub."""
    monkeypatch.setattr(
        hub_server, "answer", lambda request: hub_server.send(request, 200, b"<html>", {})
    )
    assert hub.reachable() is False


def test_offline_by_wish_asks_nobody(
    monkeypatch: pytest.MonkeyPatch, hub_server: HubStandIn
) -> None:
    """HF_HUB_OFFLINE is honoured."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.reachable() is False
    assert hub_server.requests == []


def test_a_hub_model_loads_at_its_pinned_revision(
    hub_server: HubStandIn, tiny_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    """`source="hub"` downloads the catalogue's revision; the second time the cache serves."""
    revision = catalog().models[SMOLLM].revision
    hub_server.repositories[SMOLLM] = Repository(tiny_folder, commit=revision)
    model = load_model("base", source="hub", dtype=torch.float32)
    tokenizer = load_tokenizer("base", source="hub")
    assert model.config.hidden_size == 32
    assert model.name_or_path == SMOLLM
    assert len(tokenizer) == model.config.vocab_size
    assert f"base: {SMOLLM}, hub" in capsys.readouterr().out
    assert f"/api/models/{SMOLLM}/revision/{revision}" in hub_server.requests

    hub_server.requests.clear()
    from course_utils.models import _loading as loading

    loading.forget()
    assert resolve("base", "hub").where == "cache"
    assert hub_server.requests == []


def test_a_real_pythia_comes_from_the_hub(hub_server: HubStandIn) -> None:
    """Notebook 06's last section: the role's model of the tier, at its pinned revision."""
    known = catalog().models["EleutherAI/pythia-70m"]
    hub_server.repositories[known.id] = Repository(
        catalog().bundled["course/pythia-3m"].path, commit=known.revision
    )
    model = load_model("pythia", source="hub", quiet=True)
    assert model.name_or_path == known.id
    assert model.config.model_type == "gpt_neox"
    assert load_tokenizer("pythia", source="hub").name_or_path == known.id


def test_on_a_cpu_the_embedded_model_comes_first(hub_server: HubStandIn) -> None:
    """Even where the hub answers, so that a learner gets the results that are saved."""
    assert resolve("base").where == resolve("chat").where == "embedded"
    assert hub_server.requests == []


def test_only_safe_files_are_downloaded(
    hub_server: HubStandIn, tiny_folder: Path, tmp_path: Path
) -> None:
    """Pickles, code and other copies of the weights stay on the hub."""
    folder = tmp_path / "repository"
    shutil.copytree(tiny_folder, folder)
    for name in ("pytorch_model.bin", "modeling.py", "consolidated.safetensors"):
        (folder / name).write_bytes(b"not to be fetched")
    hub_server.repositories["course/mixed"] = Repository(folder)
    fetched = hub.download("course/mixed", "main")
    names = {path.name for path in fetched.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    assert not names & {"pytorch_model.bin", "modeling.py", "consolidated.safetensors"}


def test_a_tokenizer_does_not_pull_the_weights(hub_server: HubStandIn, tiny_folder: Path) -> None:
    """`load_tokenizer` of a large model is a small download."""
    hub_server.repositories["course/tiny"] = Repository(tiny_folder)
    load_tokenizer("course/tiny")
    assert not any("safetensors" in path for path in hub_server.requests)
    model = load_model("course/tiny", quiet=True)  # and the model still comes whole
    assert model.config.hidden_size == 32


def test_an_unknown_id_names_near_matches(hub_server: HubStandIn) -> None:
    """The hub says no; the catalogue says what was perhaps meant."""
    with pytest.raises(UnknownName, match="SmolLM2-135M-Instruct"):
        load_model("HuggingFaceTB/SmolLM2-135M-Instrct", source="hub")


def test_a_gated_model_says_how_to_get_access(hub_server: HubStandIn, tiny_folder: Path) -> None:
    """Asked for by id, a gated model is refused with the way to get it."""
    hub_server.repositories[LLAMA] = Repository(tiny_folder, gated=True)
    with pytest.raises(GatedModel) as error:
        load_model(LLAMA)
    assert f"https://huggingface.co/{LLAMA}" in str(error.value)
    assert "hf auth login" in str(error.value)


def test_an_uncatalogued_gated_model_is_refused_too(
    hub_server: HubStandIn, tiny_folder: Path
) -> None:
    """The hub's own refusal, met while downloading, reads the same."""
    hub_server.repositories["course/gated"] = Repository(tiny_folder, gated=True)
    with pytest.raises(GatedModel, match="accept its licence"):
        load_model("course/gated")


def test_a_token_opens_a_gated_model_and_is_never_shown(
    hub_server: HubStandIn,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """With access the model loads; the token is in no output and in no error."""
    token = "hf_" + "s3cr3t" * 5
    monkeypatch.setenv("HF_TOKEN", token)
    revision = catalog().models[LLAMA].revision
    hub_server.repositories[LLAMA] = Repository(tiny_folder, commit=revision, gated=True)
    with pytest.raises(GatedModel) as error:
        load_model(LLAMA)
    assert token not in str(error.value)
    hub_server.accepted_tokens.add(token)
    load_model(LLAMA)
    printed = capsys.readouterr()
    assert LLAMA in printed.out
    assert token not in printed.out + printed.err


def test_a_role_goes_on_to_the_next_model_without_access(
    hub_server: HubStandIn, tiny_folder: Path
) -> None:
    """On a large GPU the pair is Llama 2 where access is granted, else Qwen."""
    qwen = "Qwen/Qwen2.5-7B-Instruct"
    hub_server.repositories[LLAMA] = Repository(tiny_folder, gated=True)
    hub_server.repositories[qwen] = Repository(tiny_folder, commit=catalog().models[qwen].revision)
    origin = resolve("chat", hardware=GPU_40GB)
    assert origin.id == qwen
    assert origin.where == "hub"
    assert f"no access to {LLAMA}" in origin.notes


PAIRS = {
    "Llama": ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"),
    "Qwen": ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"),
}


@pytest.mark.parametrize("first", ["tuning_base", "tuning_chat"])
@pytest.mark.parametrize(
    ("refused", "family"), [((), "Llama"), ((0,), "Qwen"), ((1,), "Qwen"), ((0, 1), "Qwen")]
)
def test_roles_in_pairs_get_a_pair(
    hub_server: HubStandIn,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    refused: tuple[int, ...],
    family: str,
) -> None:
    """A licence that is missing for one of two models moves both roles to the next pair, whichever
    role is asked for first."""
    monkeypatch.setenv("HF_TOKEN", "hf_" + "t0k3n" * 5)
    for ids in PAIRS.values():
        for place, model_id in enumerate(ids):
            gated = model_id in PAIRS["Llama"] and place in refused
            hub_server.repositories[model_id] = Repository(
                tiny_folder, commit=catalog().models[model_id].revision, gated=gated
            )
    roles = ["tuning_base", "tuning_chat"]
    found = {
        role: resolve(role, hardware=GPU_40GB, weights=False)
        for role in sorted(roles, key=lambda role: role != first)
    }
    assert tuple(found[role].id for role in roles) == PAIRS[family]
    assert any("its pair" in note or "no access" in note for note in found[first].notes) == bool(
        refused
    )


def test_a_pair_that_was_chosen_stays(
    hub_server: HubStandIn, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A licence that is accepted between two cells does not part a pair."""
    from course_utils.models import _loading as loading

    for ids in PAIRS.values():
        for model_id in ids:
            hub_server.repositories[model_id] = Repository(
                tiny_folder,
                commit=catalog().models[model_id].revision,
                gated=model_id == PAIRS["Llama"][1],
            )
    monkeypatch.setattr(loading, "tier", lambda machine: SimpleNamespace(value="40gb"))
    assert resolve("tuning_base", weights=False).id == PAIRS["Qwen"][0]
    hub_server.repositories[PAIRS["Llama"][1]].gated = False
    assert resolve("tuning_chat", weights=False).id == PAIRS["Qwen"][1]


def test_out_of_reach_falls_back_with_a_word(capsys: pytest.CaptureFixture) -> None:
    """A role or a known id on a machine without the hub gets the embedded model."""
    origin = resolve("chat", hardware=GPU_40GB)
    assert origin.where == "embedded"
    assert any("out of reach" in note for note in origin.notes)
    load_model(SMOLLM)
    printed = capsys.readouterr().out
    assert "embedded" in printed
    assert f"in place of {SMOLLM}: the hub is out of reach" in printed


def test_fallback_can_be_refused() -> None:
    """Who needs that very model gets an error instead of another one."""
    with pytest.raises(HubUnreachable, match="out of reach"):
        load_model(SMOLLM, fallback=False)
    with pytest.raises(HubUnreachable, match="cache of this machine"):
        load_model(SMOLLM, source="cache")


def test_a_hub_that_fails_midway_falls_back(hub_server: HubStandIn, tiny_folder: Path) -> None:
    """The listing answers, the files do not."""
    revision = catalog().models[SMOLLM].revision
    hub_server.repositories[SMOLLM] = Repository(
        tiny_folder, commit=revision, fails_downloading=True
    )
    origin = resolve(SMOLLM)
    assert origin.where == "embedded"
    assert any("status 400" in note for note in origin.notes)


def test_half_a_model_in_the_cache_is_no_model(hub_server: HubStandIn, tiny_folder: Path) -> None:
    """A download that was cut leaves a folder; it does not count as cached."""
    hub_server.repositories["course/tiny"] = Repository(tiny_folder)
    folder = hub.download("course/tiny", "main")
    assert hub.cached("course/tiny", "main") == folder
    (folder / "model.safetensors").unlink()
    assert hub.cached("course/tiny", "main") is None
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").touch()
    assert not hub.has_weights(folder)
    (folder / "model-2.safetensors").touch()
    assert hub.has_weights(folder)


def test_pickled_weights_are_refused_before_the_download(
    hub_server: HubStandIn, tiny_folder: Path, tmp_path: Path
) -> None:
    """A repository with `.bin` weights only is refused, and nothing of it is fetched."""
    folder = tmp_path / "pickled"
    folder.mkdir()
    shutil.copy(tiny_folder / "config.json", folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    hub_server.repositories["course/pickled"] = Repository(folder)
    with pytest.raises(UnsafeFormat, match=r"pytorch_model\.bin"):
        load_model("course/pickled")
    assert not any("/resolve/" in path for path in hub_server.requests)


def test_a_download_that_would_not_fit_is_refused(
    hub_server: HubStandIn, tiny_folder: Path
) -> None:
    """A petabyte does not fit; the error names the sizes and the ways out."""
    hub_server.repositories["course/huge"] = Repository(
        tiny_folder, sizes={"model.safetensors": 10**15}
    )
    with pytest.raises(NotEnoughDisk, match="HF_HOME"):
        load_model("course/huge")
    assert not any("/resolve/" in path for path in hub_server.requests)


def test_a_model_with_code_of_its_own_is_refused(
    hub_server: HubStandIn, tiny_folder: Path, tmp_path: Path
) -> None:
    """`auto_map` with a model type that transformers does not know means remote code."""
    folder = tmp_path / "own_code"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "wholly_new", "auto_map": {"AutoModelForCausalLM": "modeling.New"}}
    (folder / "config.json").write_text(json.dumps(config))
    hub_server.repositories["course/own-code"] = Repository(folder)
    with pytest.raises(UnsafeFormat, match="never executes"):
        load_model("course/own-code")
