"""The hub: refusals, faults, hangs and damage, each with its own sentence and within seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_stand_in import HubStandIn, Repository
from huggingface_hub import constants

from course_utils.data import load_data
from course_utils.errors import CourseError, GatedModel, HubUnreachable, UnknownName, UnsafeFormat
from course_utils.models import _hub as hub
from course_utils.models import _loading as loading
from course_utils.models._catalog import catalog
from course_utils.models._loading import load_tokenizer, resolve

TINY = "course/tiny"
SMOLLM = "HuggingFaceTB/SmolLM2-135M"
LISTING, FILES, HTML = r"^/api/models/.+/revision", r"/resolve/", b"<html>Please log in</html>"
TOKEN = "hf_" + "aBcDeFgH" * 4
PAGE = {"Content-Type": "text/html"}

# What the hub answers, where, and what has to be said of it.
ANSWERS = {
    "401 expired token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "403": (403, {}),
    "408": (408, {}),
    "418": (418, {}),
    "429": (429, {}),
    "429 an hour": (429, {"Retry-After": "3600"}),
    "429 a date": (429, {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}),
    "429 by ratelimit": (429, {"ratelimit": '"api";r=0;t=3600'}),
    "500": (500, {}),
    "502": (502, {}),
    "503": (503, {}),
    "503 an hour": (503, {"Retry-After": "3600"}),
    "504": (504, {}),
}
SAID = {"401": "refuses this machine's token", "408": "too long", "429": "too many requests"}
SAID |= {"403": "forbids", "500": "fault on its own side", "503": "not available"}


@pytest.fixture
def served(
    hub_server: HubStandIn, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> HubStandIn:
    """A hub with a small model, and a learner with a token."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub_server.repositories[TINY] = Repository(tiny_folder, commit="1" * 40)
    hub_server.repositories[SMOLLM] = Repository(
        tiny_folder, commit=catalog().models[SMOLLM].revision
    )
    return hub_server


def left_overs() -> list[Path]:
    return list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))


@pytest.mark.parametrize("where", ["listing", "files"])
@pytest.mark.parametrize("kind", ANSWERS)
def test_each_refusal_has_its_sentence(served: HubStandIn, kind: str, where: str) -> None:
    """Nobody waits as long as a server asks for; the next try, when it is well, works."""
    status, headers = ANSWERS[kind]
    served.answers[LISTING if where == "listing" else FILES] = (status, headers, b"{}")
    start = time.monotonic()
    with pytest.raises(HubUnreachable) as error:
        hub.download(TINY, "main")
    assert time.monotonic() - start < 60  # an hour, or 23 s for each file, without a bound
    assert TINY in str(error.value)
    assert str(status) in str(error.value)
    assert SAID.get(str(status), "") in str(error.value)
    assert TOKEN not in str(error.value)
    if "Retry-After" in headers and status == 429 and where == "listing":
        assert headers["Retry-After"][:20] in str(error.value)
    assert not left_overs()
    served.answers.clear()
    assert hub.has_weights(hub.download(TINY, "main"))


@pytest.mark.parametrize("where", ["listing", "tree", "files"])
def test_a_page_instead_of_an_answer(served: HubStandIn, where: str) -> None:
    """A captive portal's page is no JSON and no model."""
    pattern = {"listing": LISTING, "tree": "/tree/", "files": FILES}[where]
    served.answers[pattern] = (200, PAGE, HTML)
    with pytest.raises(HubUnreachable, match=TINY):
        hub.download(TINY, "main")
    served.answers.clear()
    assert hub.has_weights(hub.download(TINY, "main"))


def test_404_is_an_unknown_name(served: HubStandIn) -> None:
    """A repository that is not there, and a revision."""
    with pytest.raises(UnknownName, match="course/nothing"):
        hub.download("course/nothing", "main")


def test_a_gated_file(served: HubStandIn) -> None:
    """The listing is free, the files are not."""
    served.repositories[TINY].gated = True
    with pytest.raises(GatedModel, match="accept its licence"):
        hub.download(TINY, "main")


@pytest.mark.parametrize("where", ["listing", "tree", "files"])
def test_a_hub_that_hangs(served: HubStandIn, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts and stays silent: given up, and the learner is told."""
    monkeypatch.setattr(hub, "STALL_SECONDS", 3.0)
    served.hang = {"listing": LISTING, "tree": "/tree/", "files": FILES}[where]
    start = time.monotonic()
    with pytest.raises(HubUnreachable, match=TINY):
        hub.download(TINY, "main")
    assert time.monotonic() - start < 60
    assert not served.release.is_set()
    served.release.set()
    served.hang = False
    assert hub.has_weights(hub.download(TINY, "main"))
    assert not left_overs()


def test_a_hub_that_trickles(served: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte a second is no download; what it left is removed, and the next try works."""
    monkeypatch.setattr(hub, "STALL_SECONDS", 3.0)
    served.trickle = True
    with pytest.raises(HubUnreachable, match="next to nothing arrived"):
        hub.download(TINY, "main")
    served.release.set()
    served.trickle = False
    assert not left_overs()
    assert hub.has_weights(hub.download(TINY, "main"))


def flipped(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


SPOILT = {
    "cut in half": lambda body: body[: len(body) // 2],
    "a bit flipped": flipped,
    "zeroed": lambda body: bytes(len(body)),
    "a page": lambda body: HTML,
    "longer": lambda body: body + b"!",
    "empty": lambda body: b"",
}


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("kind", SPOILT)
def test_a_file_that_is_damaged_on_the_way(served: HubStandIn, kind: str, file: str) -> None:
    """It is held against the hub's checksum, removed, and the next try brings it whole."""
    served.repositories[TINY].spoil = lambda name, body: (
        SPOILT[kind](body) if name == file else body
    )
    with pytest.raises(HubUnreachable, match=TINY):
        hub.download(TINY, "main")
    assert hub.cached(TINY, "main") is None
    served.repositories[TINY].spoil = None
    assert hub.has_weights(hub.download(TINY, "main"))
    assert hub.cached(TINY, "main")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["cut in half", "a bit flipped", "zeroed", "empty"])
def test_a_file_that_is_damaged_in_the_cache(served: HubStandIn, kind: str, file: str) -> None:
    """A disk that forgets: noticed at the next look, removed, and fetched anew."""
    folder = hub.download(TINY, "main")
    blob = (folder / file).resolve()
    blob.write_bytes(SPOILT[kind](blob.read_bytes()))
    assert hub.cached(TINY, "main") is None
    loading.forget()
    origin = resolve(TINY, "hub")
    assert origin.where == "hub"
    assert load_tokenizer(TINY, source="hub")("a b")["input_ids"]


def test_a_checksum_is_taken_once(served: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files are not read again and again: not in this process, and not in the next."""
    from course_utils._core import cache

    monkeypatch.setattr(cache, "_checked", {})
    folder = hub.download(TINY, "main")
    read: list[Path] = []
    monkeypatch.setattr(cache, "sha256", lambda path: read.append(path) or "")
    assert hub.cached(TINY, "main") == folder
    monkeypatch.setattr(cache, "_checked", {})  # another process
    assert hub.cached(TINY, "main") == folder
    assert not read
    os.utime((folder / "model.safetensors").resolve())
    assert hub.cached(TINY, "main") is None  # read again, and sha256 is a lie here
    assert read


@pytest.mark.parametrize("revision", ["main", "1" * 40])
def test_a_downloaded_model_is_found_offline(
    served: HubStandIn, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a README, other formats of the weights and folders in its repository, as all have."""
    folder = hub.download(TINY, revision)
    served.close()
    loading.forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.cached(TINY, revision) == folder
    assert not list(folder.glob("*.bin"))
    assert not (folder / "onnx").exists()
    if revision == "main":
        assert resolve(TINY).where == "cache"


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json", "config.json"])
def test_half_a_download_is_not_taken(served: HubStandIn, missing: str) -> None:
    """A snapshot without one of its files does not count as cached."""
    folder = hub.download(TINY, "main")
    (folder / missing).unlink()
    assert hub.cached(TINY, "main") is None
    assert (hub.download(TINY, "main") / missing).exists()


def test_a_cache_that_is_deleted_meanwhile(served: HubStandIn) -> None:
    """Within a process, the next load fetches again."""
    import shutil

    assert resolve(TINY, "hub").folder.is_dir()
    shutil.rmtree(constants.HF_HUB_CACHE)
    assert resolve(TINY, "hub").folder.is_dir()


def test_a_cache_that_is_a_file(
    served: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`HF_HOME` is a file: said in words."""
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(CourseError, match="file"):
        hub.download(TINY, "main")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_fall_back_says_what_happened(
    served: HubStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learner whose token has expired is told so, beside the model that stands in."""
    served.answers[LISTING] = (*ANSWERS["401 expired token"], b"{}")
    origin = resolve(SMOLLM)
    assert origin.where == "embedded"
    assert any("token (401)" in note for note in origin.notes)


INDEXES = {
    "a pickle": {"weight_map": {"a": "pytorch_model.bin"}},
    "a pickle among safetensors": {"weight_map": {"a": "m.safetensors", "b": "x.pt"}},
    "another folder": {"weight_map": {"a": "../other/model.safetensors"}},
    "an absolute path": {"weight_map": {"a": "/etc/model.safetensors"}},
}


@pytest.mark.parametrize("kind", INDEXES)
def test_an_index_that_leads_elsewhere(served: HubStandIn, tmp_path: Path, kind: str) -> None:
    """Every file of an index must be safetensors of the same folder: on the hub as in a folder."""
    import shutil

    folder = tmp_path / "sharded"
    shutil.copytree(served.repositories[TINY].folder, folder)
    (folder / "model.safetensors").rename(folder / "m.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "model.safetensors.index.json").write_text(json.dumps(INDEXES[kind]))
    with pytest.raises(UnsafeFormat, match="safetensors"):
        loading.load_model(folder)
    served.repositories["course/sharded"] = Repository(folder)
    with pytest.raises(UnsafeFormat, match="safetensors"):
        loading.load_model("course/sharded", quiet=True)


YODA = "dvgodoy/yoda_sentences"


@pytest.fixture
def data(served: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubStandIn:
    """The hub has a dataset, too."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    folder = tmp_path / "yoda"
    folder.mkdir()
    rows = [{"sentence": "I go.", "translation": "Go, I do.", "translation_extra": ""}] * 5
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    served.repositories[YODA] = Repository(
        folder, commit=catalog().datasets[YODA].revision, beside={"README.md": b"# Yoda\n"}
    )
    return served


def test_a_data_set_comes_and_is_found_offline(
    data: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetched as models are, at its pinned revision, and from then on without the hub."""
    assert len(load_data(YODA)["train"]) == 5
    data.close()
    loading.forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_data(YODA)["train"][0]["sentence"] == "I go."


@pytest.mark.parametrize("kind", ["401 expired token", "429 an hour", "500", "503", "hangs", "cut"])
def test_a_data_set_that_does_not_come(
    data: HubStandIn, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded and said, as for models; the next try works."""
    monkeypatch.setattr(hub, "STALL_SECONDS", 3.0)
    pattern = r"yoda_sentences/(resolve|revision)"
    if kind == "hangs":
        data.hang = pattern
    elif kind == "cut":
        data.repositories[YODA].spoil = lambda name, body: body[:-9]
    else:
        data.answers[pattern] = (*ANSWERS[kind], b"{}")
    with pytest.raises(HubUnreachable, match=YODA):
        load_data(YODA)
    data.release.set()
    data.hang, data.repositories[YODA].spoil = False, None
    data.answers.clear()
    assert len(load_data(YODA)["train"]) == 5


FETCH = """
import sys
from huggingface_hub import constants
constants.HF_HUB_CACHE = sys.argv[2]
from course_utils.models import _hub as hub
print("go", flush=True)
print(hub.download(sys.argv[1], "main"))
"""


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_HUB_DISABLE_XET": "1",
        "COURSE_CACHE": str(Path(constants.HF_HUB_CACHE).parent / "course"),
    }


@pytest.mark.parametrize("moment", [0.0, 1.0, 2.0])
def test_a_download_that_is_killed(served: HubStandIn, moment: float) -> None:
    """Its own process ends with it; what it left is removed by the next, which works."""
    served.trickle = True
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH, TINY, constants.HF_HUB_CACHE],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout.readline() == "go\n"
    deadline = time.monotonic() + 60
    while moment and not left_overs() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    served.trickle = False
    served.release.set()
    time.sleep(1)  # the orphan sees that nobody listens
    folder = hub.download(TINY, "main")
    assert hub.cached(TINY, "main") == folder
    assert not left_overs()


def test_two_at_once_fetch_once(served: HubStandIn) -> None:
    """The second waits for the first, and finds all there."""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", FETCH, TINY, constants.HF_HUB_CACHE],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for _ in range(2)
    ]
    told = {process.communicate()[0].splitlines()[-1] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(told) == 1
    assert hub.cached(TINY, "main") == Path(told.pop())


def test_the_token_is_in_no_command_line(served: HubStandIn) -> None:
    """Other users of a machine can read those."""
    import psutil

    served.hang = FILES
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH, TINY, constants.HF_HUB_CACHE],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        deadline = time.monotonic() + 60
        children: list[psutil.Process] = []
        while not children and time.monotonic() < deadline:
            children = psutil.Process(process.pid).children()
            time.sleep(0.05)
        assert children
        assert TOKEN not in " ".join(children[0].cmdline())
    finally:
        process.kill()
        process.wait()
        served.release.set()
