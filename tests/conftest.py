"""Fixtures of the tests. The hub's address is a stand-in on loopback for all of them."""

from __future__ import annotations

import collections
import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from nbformat.v4 import new_code_cell
from nbval.plugin import IPyNbCell

# Side by side, two processes of one thread each do half as much again as one process of two threads
# does. Before torch is imported, and for the notebooks' kernels too.
if _workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _workers)))

ROOT = Path(__file__).resolve().parent.parent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


HUB_PORT = _free_port()
HUB_URL = f"http://127.0.0.1:{HUB_PORT}"

# What tests and notebooks solve here is nobody's progress, and nobody's votes are counted.
os.environ["COURSE_PROGRESS"] = str(Path(tempfile.mkdtemp(prefix="course-")) / "progress.json")
os.environ["COURSE_VOTES"] = tempfile.mkdtemp(prefix="course-")

# huggingface_hub reads these once, on import. They are put back at once, so that the notebooks'
# kernels, which this process starts too, see the machine as it is.
_own = {"HF_ENDPOINT": HUB_URL, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
_before = {name: os.environ.get(name) for name in [*_own, "HF_TOKEN", "HF_HUB_OFFLINE"]}
for _name in _before:
    os.environ.pop(_name, None)
os.environ.update(_own)
from huggingface_hub import constants  # noqa: E402

for _name, _value in _before.items():
    os.environ.pop(_name, None)
    if _value is not None:
        os.environ[_name] = _value

from hub_stand_in import HubStandIn  # noqa: E402

from course_utils import hardware  # noqa: E402
from course_utils.models import _loading as loading  # noqa: E402
from course_utils.models import _packaged as packaged  # noqa: E402
from tools import notebooks, slides  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# What a file's tests cost; what stands in none, and is no fault, takes seconds: `make check`.
COSTS = {
    "notebook": ("test_faults_cells", "test_solved_notebooks"),
    "browser": ("test_site", "test_slides", "test_atlas"),
    "network": ("test_setup", "test_notebooks", "test_package", "test_lab", "test_handoff"),
    "training": (
        *("test_memory_predict", "test_memory_trainers", "test_memory_loading", "test_preflight"),
        *("test_preflight_use", "test_pretraining", "test_replay", "test_silent_faults"),
        *("test_exercises", "test_training", "test_drift", "test_rehearse"),
        *("test_engines",),
    ),
}


def _cost(item: pytest.Item) -> str:
    if item.path.suffix == ".ipynb":
        return "notebook"
    for cost, files in COSTS.items():
        if item.path.stem in files:
            return cost
    return "fault" if item.path.parent.name == "faults" else "unit"


def _with_claims(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """After a notebook's cell, what its source claims there: run in the same kernel."""
    claims: dict[Path, dict[int, list[str]]] = {}
    for item in items:
        yield item
        if not isinstance(item, IPyNbCell):
            continue
        if item.path not in claims:
            source = notebooks.SOURCES / f"{item.path.stem}.py"
            claims[item.path] = notebooks.claims(source) if source.exists() else {}
        for number, code in enumerate(claims[item.path].get(item.cell_num, ()), start=1):
            yield IPyNbCell.from_parent(
                item.parent,
                name=f"Claim {number} after cell {item.cell_num}",
                cell_num=item.cell_num,
                cell=new_code_cell(code),
                options=collections.defaultdict(bool, check=False),
            )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what a test costs. Notebooks first, being the longest."""
    items[:] = _with_claims(items)
    for item in items:
        item.add_marker(_cost(item))
    items.sort(key=lambda item: item.path.suffix != ".ipynb")


@pytest.fixture(autouse=True)
def _fresh_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has a hub cache and a token file of its own, and asks the hub anew."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    loading.forget()
    yield
    loading.forget()


@pytest.fixture
def hub_server() -> Iterator[HubStandIn]:
    """A hub that answers; without this fixture the hub is out of reach."""
    server = HubStandIn(HUB_PORT)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _cpu_tier(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The unit tests hold on the CPU tier, whatever this machine has."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    hardware._fixed_facts.cache_clear()
    yield
    hardware._fixed_facts.cache_clear()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The system's Chromium: Playwright brings none. Where there is none, its tests are skipped."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = slides.browser()
    if not program:
        pytest.skip("needs Chromium, Chrome or Edge")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=program,
            chromium_sandbox=False,  # containers run as root, where it does not start
            args=["--disable-dev-shm-usage"],  # 64 MB in a container: too little for a page
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(chromium: Browser) -> Iterator[Page]:
    """A page of it, which waits two minutes for what is asked: other tests keep the cores busy."""
    with contextlib.closing(chromium.new_context(viewport={"width": 1280, "height": 1600})) as own:
        own.set_default_timeout(120_000)
        yield own.new_page()


@pytest.fixture(scope="session")
def chat_folder() -> Path:
    """The embedded chat model, converted."""
    return packaged.ensure("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, chat_folder: Path) -> Path:
    """A Llama with random weights and the chat model's tokenizer: the real format, 3 MB."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
