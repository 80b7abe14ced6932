"""Reaching the Hugging Face hub: one short probe, what is cached, safe downloads.

Used by `loading` and `doctor`; the learner meets it in notebook 01 as a printed line.
"""

from __future__ import annotations

import json
import shutil
import threading
import urllib.error
import urllib.request
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from course_utils.errors import (
    GatedModel,
    HubUnreachable,
    NotEnoughDisk,
    UnknownName,
    UnsafeFormat,
)

PROBE_SECONDS = 3.0

# All that a model needs, and nothing that would have to be unpickled or executed.
TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
# Not `*.safetensors`: some repositories hold a second copy under another name.
MODEL_FILES = (*TOKENIZER_FILES, "model*.safetensors")
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".msgpack", ".h5")
# The class that all of the HTTP client's own errors share (httpx or httpx2, by version).
_HTTP_ERROR = HfHubHTTPError.__bases__[0]
_INDEX = "model.safetensors.index.json"

_probe_lock = threading.Lock()
_probe_answer: bool | None = None


def _ask_hub(answers: list[bool]) -> None:
    request = urllib.request.Request(
        f"{constants.ENDPOINT}/api/models?limit=1", headers={"User-Agent": "course_utils"}
    )
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as response:
            # A captive portal answers 200 too, but not with a JSON list.
            answers.append(isinstance(json.load(response), list))
    except (OSError, ValueError):
        answers.append(False)


def reachable() -> bool:
    """Whether the hub answers; asked once per process, and never for longer than 3 s.

    Without this, each file of a model costs half a minute of retries on a machine that is offline.
    """
    global _probe_answer
    if constants.HF_HUB_OFFLINE:
        return False
    with _probe_lock:
        if _probe_answer is None:
            # In a thread of its own, because looking up a name ignores every timeout.
            answers: list[bool] = []
            thread = threading.Thread(target=_ask_hub, args=(answers,), daemon=True)
            thread.start()
            thread.join(PROBE_SECONDS)
            _probe_answer = bool(answers and answers[0])
        return _probe_answer


def forget_probe() -> None:
    """Let the next `reachable()` ask again (the network came back)."""
    global _probe_answer
    _probe_answer = None


def has_token() -> bool:
    """Whether a hub token is set up; the token itself is never shown."""
    return huggingface_hub.get_token() is not None


def gated_help(repo_id: str) -> str:
    """How to get access to a gated model."""
    token = "" if has_token() else " You have no token on this machine yet."
    return (
        f"{repo_id} is gated. To get access: (1) accept its licence on "
        f"https://huggingface.co/{repo_id}, (2) make a token with read access on "
        f"https://huggingface.co/settings/tokens, (3) run `hf auth login` and paste it.{token}"
    )


def has_access(repo_id: str) -> bool:
    """Whether this machine's token may download a repository. Ask only while `reachable()`."""
    try:
        huggingface_hub.auth_check(repo_id)
    except (_HTTP_ERROR, OSError):  # no licence accepted, no such repository, no answer
        return False
    return True


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a whole set of safetensors weights."""
    if (folder / "model.safetensors").exists():
        return True
    index = folder / _INDEX
    if not index.exists():
        return False
    shards = set(json.loads(index.read_text())["weight_map"].values())
    return all((folder / shard).exists() for shard in shards)


def cached(repo_id: str, revision: str, *, weights: bool = True) -> Path | None:
    """The folder of a model that was downloaded before, or None where it is not all there."""
    try:
        folder = Path(
            huggingface_hub.snapshot_download(repo_id, revision=revision, local_files_only=True)
        )
    except (LocalEntryNotFoundError, ValueError):
        return None
    wanted = has_weights(folder) if weights else (folder / "tokenizer_config.json").exists()
    return folder if wanted and (folder / "config.json").exists() else None


def check_formats(files: list[str], where: str) -> None:
    """Refuse a model whose weights come only as pickles.

    Raises:
        UnsafeFormat: no `.safetensors` among `files`.
    """
    if any(name.endswith(".safetensors") for name in files):
        return
    pickled = sorted(name for name in files if name.endswith(PICKLED_SUFFIXES))
    found = f"only {', '.join(pickled[:3])}" if pickled else "no weights at all"
    raise UnsafeFormat(
        f"{where} has {found}. Unpickling runs whatever code the file holds, so the course loads "
        "safetensors only. Look for a revision with safetensors (on the hub: `refs/pr/…` of the "
        "conversion bot), or convert the file yourself on a machine you can spare."
    )


def check_disk(folder: Path, needed_bytes: int, what: str) -> None:
    """Refuse a download that would not fit.

    Raises:
        NotEnoughDisk: less than `needed_bytes` free where `folder` is, or will be.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise NotEnoughDisk(
            f"{what} needs {needed_bytes / 1e9:.2f} GB on the disk of {existing}, where "
            f"{free / 1e9:.2f} GB are free. Free some, or put the caches elsewhere: set HF_HOME "
            "for the hub's, COURSE_CACHE for the course's."
        )


def download(repo_id: str, revision: str, *, weights: bool = True) -> Path:
    """Fetch a model's safetensors, configuration and tokenizer into the hub's own cache.

    Args:
        repo_id: the repository on the hub.
        revision: a commit, branch or tag.
        weights: without them, only the configuration and the tokenizer.

    Raises:
        UnknownName: the hub has no such repository or revision.
        GatedModel: it is gated, and this machine's token has no access.
        UnsafeFormat: it has no safetensors.
        NotEnoughDisk: it would not fit.
        HubUnreachable: the hub stopped answering on the way.
    """
    try:
        info = huggingface_hub.HfApi().model_info(repo_id, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        if weights:
            check_formats(list(sizes), f"{repo_id} at {revision}")
        wanted = MODEL_FILES if weights else TOKENIZER_FILES
        names = list(huggingface_hub.utils.filter_repo_objects(sizes, allow_patterns=list(wanted)))
        # Only the top level: folders hold other formats of the same weights.
        names = [name for name in names if "/" not in name]
        cache = Path(constants.HF_HUB_CACHE)
        check_disk(cache, sum(sizes[name] for name in names), f"{repo_id} (download)")
        return Path(
            huggingface_hub.snapshot_download(repo_id, revision=revision, allow_patterns=names)
        )
    except GatedRepoError:
        # `from None` here and below: the hub's errors can carry request headers.
        raise GatedModel(gated_help(repo_id)) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UnknownName(
            f"The hub has no model {repo_id!r} at revision {revision!r} (or it is private)."
        ) from None
    except (_HTTP_ERROR, OSError) as error:
        raise HubUnreachable(
            f"The hub stopped answering while fetching {repo_id}: {type(error).__name__}."
        ) from None
