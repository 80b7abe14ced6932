"""The catalogue: complete, consistent, and right about the architectures."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForCausalLM

from course_utils.errors import UnknownName, near_matches
from course_utils.hardware import TIERS
from course_utils.models import _catalog as module
from course_utils.models._catalog import KINDS, catalog

NAMED_BY_THE_COURSE = [
    "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-2-7b-chat-hf",
    "meta-llama/Llama-3.1-8B",
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.2-3B",
    "microsoft/Phi-3.5-mini-instruct",
    "mistralai/Mistral-7B-v0.1",
    "Qwen/Qwen2.5-7B",
    "allenai/OLMo-7B-hf",
    "tiiuae/falcon-7b",
    "facebook/opt-350m",
    *(f"EleutherAI/pythia-{s}" for s in ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b")),
    "EleutherAI/pythia-12b",
    *(f"HuggingFaceTB/SmolLM2-{s}{c}" for s in ("135M", "360M", "1.7B") for c in ("", "-Instruct")),
]
BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
TIER_GB = {"cpu": 16, "16gb": 15.8, "24gb": 23.7, "40gb": 42.4}


def test_all_that_the_sources_name_is_there() -> None:
    """Every model of the source documents has an entry."""
    assert set(NAMED_BY_THE_COURSE) <= set(catalog().models)


@pytest.mark.parametrize("model_id", catalog().models)
def test_architecture_has_the_published_parameters(model_id: str) -> None:
    """The shipped configuration builds (without memory) exactly the parameters stated."""
    entry = module.known_model(model_id)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(entry.config())
    assert sum(p.numel() for p in model.parameters()) == entry.parameters


@pytest.mark.parametrize("model_id", catalog().models)
def test_entries_are_whole(model_id: str) -> None:
    """Revision pinned to a commit, kind known, size in keeping with parameters and dtype."""
    entry = module.known_model(model_id)
    assert re.fullmatch(r"[0-9a-f]{40}", entry.revision)
    assert entry.kind in KINDS
    assert entry.licence
    # Pythia's files also hold the attention masks of old, up to 25 MB a layer.
    weights_mb = entry.parameters * BYTES[entry.dtype] / 1e6
    assert weights_mb * 0.99 <= entry.download_mb <= weights_mb * 1.05 + 60


def test_roles_name_known_models_of_their_kind() -> None:
    """Each tier of a role has models, of the right kind, that fit together with their partner."""
    roles = catalog().roles
    for name in KINDS:
        assert set(roles[name].by_tier) == set(TIERS)
        assert roles[name].embedded in {**catalog().packaged, **catalog().bundled}
    for tier in TIERS:
        pairs = zip(roles["base"].by_tier[tier], roles["chat"].by_tier[tier], strict=True)
        for base, chat in pairs:
            assert (module.known_model(base).kind, module.known_model(chat).kind) == (
                "base",
                "chat",
            )
            both = module.known_model(base).parameters + module.known_model(chat).parameters
            assert both * 2 / 1e9 < TIER_GB[tier]


def test_readme_names_each_tiers_models() -> None:
    """The README's table of tiers is the catalogue's."""
    readme = (ROOT / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", readme, flags=re.M))
    assert list(rows) == list(TIERS)
    for tier in TIERS:
        for model_id in catalog().roles["base"].by_tier[tier]:
            name = model_id.split("/")[1].removesuffix("-hf")
            assert name in rows[tier]


def test_every_tier_ends_in_a_model_that_is_open() -> None:
    """Nobody needs an account: the last choice of each tier is not gated."""
    for role in catalog().roles.values():
        for ids in role.by_tier.values():
            assert not module.known_model(ids[-1]).gated


def test_embedded_models_stand_for_catalogued_ones() -> None:
    """An embedded model is a known model, its checksums whole."""
    for entry in catalog().packaged.values():
        assert entry.stands_for in catalog().models
        assert all(len(h) == 64 for h in (entry.wheel_sha256, entry.file_sha256))


def test_pythia_by_tier() -> None:
    """Notebook 06 takes a real Pythia, from 70 million to 1.4 billion parameters."""
    sizes = [
        module.known_model(model_id).parameters
        for tier in TIERS
        for model_id in catalog().roles["pythia"].by_tier[tier]
    ]
    assert sizes == sorted(sizes)
    assert 70e6 < sizes[0] < sizes[-1] < 1.5e9
    for own in catalog().bundled.values():
        assert (own.path / "model.safetensors").is_file()


def test_data_sets_are_pinned() -> None:
    """Datasets have commits, rows and licences."""
    for entry in catalog().datasets.values():
        assert re.fullmatch(r"[0-9a-f]{40}", entry.revision)
        assert entry.rows > 0
        assert entry.licence
        assert entry.columns
        assert set(entry.tiers) <= set(TIERS)
    assert module.known_dataset("dvgodoy/yoda_sentences").rows == 720


def test_data_sets_by_role_and_tier() -> None:
    """A role on a tier gives what fits there; an unknown role names the known ones."""
    ids = [entry.id for entry in module.datasets_for("instructions", "16gb")]
    assert ids == ["databricks/databricks-dolly-15k"]
    assert module.datasets_for("chat", "cpu") == []
    with pytest.raises(UnknownName, match="instructions"):
        module.datasets_for("instruction", "cpu")


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M"),
        ("EleutherAI/pythia70m", "EleutherAI/pythia-70m"),
        ("meta-llama/Llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
        ("facebok/opt-350m", "facebook/opt-350m"),
    ],
)
def test_near_matches(wrong: str, meant: str) -> None:
    """A slip of the keyboard is recognised, and the error names what was meant."""
    assert meant in near_matches(wrong, list(catalog().models))
    with pytest.raises(UnknownName, match=re.escape(meant)):
        module.known_model(wrong)


def test_far_off_names_list_what_there_is() -> None:
    """Where nothing is near, everything is named."""
    with pytest.raises(UnknownName, match="databricks/databricks-dolly-15k"):
        module.known_dataset("zzzzzz")


def test_table_has_a_row_for_each_model() -> None:
    """The table is what notebooks and the command line show."""
    table = module.catalog_table()
    assert list(table["model"]) == list(catalog().models)
    assert table["gated"].dtype == bool
