"""Access to the Hugging Face hub: a short probe, the local cache, safe downloads.

A download runs in a separate process, which is ended when no more data arrives: the hub's client
itself waits as long as a server asks it to. Used by `loading`, `data` and `doctor`; the learner
sees it in notebook 01 as a printed line.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
from filelock import FileLock
from filelock import Timeout as LockTimeout
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from course_utils import errors
from course_utils._core import cache
from course_utils._core.files import locked, make_folder, parse_json
from course_utils.errors import (
    CourseError,
    DamagedFile,
    GatedModel,
    HubUnreachable,
    NotEnoughDisk,
    UnknownName,
    UnsafeFormat,
)

PROBE_SECONDS = 3.0
# A download is given up when less than this arrives within this time.
STALL_SECONDS, STALL_BYTES = 20.0, 100_000

# Everything that a model needs, and nothing that would have to be unpickled or executed.
TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
# Not `*.safetensors`: some repositories hold a second copy under another name.
MODEL_FILES = (*TOKENIZER_FILES, "model*.safetensors")
DATA_FILES = ("*.json", "*.jsonl", "*.csv", "*.parquet", "*.txt", "*.jsonl.gz", "README.md")
# Only a model's top level: subfolders hold other formats of the same weights.
_IN_FOLDERS = ["*/*"]
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
    """Whether the hub answers; checked once per process, for at most 3 s.

    Without this check, each file of a model costs half a minute of retries on an offline machine.
    """
    global _probe_answer
    if constants.HF_HUB_OFFLINE:
        return False
    with _probe_lock:
        if _probe_answer is None:
            # In a separate thread, because name resolution ignores every timeout.
            answers: list[bool] = []
            thread = threading.Thread(target=_ask_hub, args=(answers,), daemon=True)
            thread.start()
            thread.join(PROBE_SECONDS)
            _probe_answer = bool(answers and answers[0])
        return _probe_answer


def forget_probe() -> None:
    """Make the next `reachable()` ask again, for instance when the network is back."""
    global _probe_answer
    _probe_answer = None


def has_token() -> bool:
    """Whether a hub token is configured; the token itself is never shown."""
    return huggingface_hub.get_token() is not None


def hf() -> str:
    """The `hf` command for a shell: the one of this Python's environment, if it has one."""
    beside = Path(sys.executable).with_name("hf")
    return shlex.quote(str(beside)) if beside.exists() else "hf"


def gated_help(repo_id: str) -> str:
    """Explain how to get access to a gated model."""
    token = "" if has_token() else " You have no token on this machine yet."
    return (
        f"{repo_id} is gated. To get access: (1) accept its licence on "
        f"https://huggingface.co/{repo_id}, (2) make a token with read access on "
        f"https://huggingface.co/settings/tokens, (3) run `{hf()} auth login` and paste it.{token}"
    )


def has_access(repo_id: str) -> bool:
    """Whether this machine's token may download a repository. Call it only while `reachable()`.

    It waits no longer than the probe does.
    """
    address = f"{constants.ENDPOINT}/api/models/{repo_id}/auth-check"
    try:
        answer = huggingface_hub.get_session().get(
            address,
            headers=huggingface_hub.utils.build_hf_headers(),
            timeout=PROBE_SECONDS,
            follow_redirects=False,  # the headers contain the token
        )
    except (_HTTP_ERROR, OSError):
        return False
    return answer.status_code == 200


def shards(folder: Path) -> list[str] | None:
    """The weight files that a folder's index names, or None if it has no index.

    Raises:
        UnsafeFormat: one of them is not a safetensors file in this folder.
        DamagedFile: the index cannot be read.
    """
    index = folder / _INDEX
    if not index.exists():
        return None
    try:
        named = sorted(set(parse_json(index.read_bytes())["weight_map"].values()))
        strange = [name for name in named if not _is_shard(name)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(
            f"{index} cannot be read ({type(error).__name__}: {error}). Fetch or save the model "
            "anew."
        ) from None
    if strange:
        raise UnsafeFormat(
            f"{index} names {strange[0]!r} as weights. The course loads safetensors files of the "
            "model's own folder only: unpickling runs whatever code a file holds."
        )
    return named


def _is_shard(name: str) -> bool:
    return name.endswith(".safetensors") and Path(name).name == name


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a complete set of safetensors weights.

    Raises:
        UnsafeFormat, DamagedFile: see `shards`.
    """
    named = shards(folder)
    if named is None:
        return (folder / "model.safetensors").exists()
    return bool(named) and all((folder / shard).exists() for shard in named)


def _without_damaged(folder: Path, wanted: dict[str, Any]) -> bool:
    """Whether a snapshot's files match their checksums; those that do not are removed.

    Files in the hub's cache are links to blobs that are named by their checksums.
    """
    links = {
        path.relative_to(folder).as_posix(): path.resolve().name
        for path in folder.rglob("*")
        if path.is_symlink()
    }
    names = huggingface_hub.utils.filter_repo_objects(links, **wanted)
    digest = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
    bad = cache.damaged({folder / n: links[n] for n in names if digest.fullmatch(links[n])})
    for path in bad:
        with contextlib.suppress(OSError):
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    return not bad


def _wanted(kind: str, weights: bool) -> dict[str, Any]:
    """Which files of a repository are fetched, and looked up in the cache."""
    if kind == "dataset":
        return {"allow_patterns": list(DATA_FILES)}
    allowed = list(MODEL_FILES if weights else TOKENIZER_FILES)
    return {"allow_patterns": allowed, "ignore_patterns": _IN_FOLDERS}


def cached(
    repo_id: str, revision: str, *, weights: bool = True, kind: str = "model"
) -> Path | None:
    """The folder of an earlier download, or None if it is not complete.

    Files that do not match their checksums are removed, so that the next download replaces them.

    Args:
        repo_id, revision, weights, kind: see `download`.

    Raises:
        UnsafeFormat: see `shards`.
    """
    try:
        found = huggingface_hub.snapshot_download(
            repo_id,
            revision=revision,
            repo_type=kind,
            cache_dir=constants.HF_HUB_CACHE,
            local_files_only=True,
            **_wanted(kind, weights),
        )
    except (LocalEntryNotFoundError, ValueError, OSError):
        return None
    folder = Path(found)
    if not _without_damaged(folder, _wanted(kind, weights)):
        return None
    if kind == "dataset":
        return folder
    try:
        whole = has_weights(folder) if weights else (folder / "tokenizer_config.json").exists()
    except DamagedFile:
        return None
    return folder if whole and (folder / "config.json").exists() else None


def check_formats(files: list[str], where: str) -> None:
    """Refuse a model whose weights exist only as pickles.

    Raises:
        UnsafeFormat: there is no `.safetensors` file in `files`.
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
    """Refuse a download that would not fit on the disk.

    Raises:
        NotEnoughDisk: fewer than `needed_bytes` are free where `folder` is, or will be.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise NotEnoughDisk(
            f"{what} needs {needed_bytes / 1e9:.2f} GB on the disk of {existing}, where "
            f"{free / 1e9:.2f} GB are free. Free some, or put the caches elsewhere: set HF_HOME "
            "for the hub's, COURSE_CACHE for the course's."
        )


def download(repo_id: str, revision: str, *, weights: bool = True, kind: str = "model") -> Path:
    """Download a model's safetensors, configuration and tokenizer into the hub's own cache.

    The files are verified against the hub's checksums, and removed if they are damaged.

    Args:
        repo_id: the repository on the hub.
        revision: a commit, branch or tag.
        weights: whether to include the weights, not only the configuration and the tokenizer.
        kind: "model", or "dataset" for a dataset's files.

    Raises:
        UnknownName: the hub has no such repository or revision.
        GatedModel: the model is gated, and this machine's token has no access.
        UnsafeFormat: the repository has no safetensors.
        NotEnoughDisk: the files would not fit.
        CannotWrite: the hub's cache is not writable; set `HF_HOME` to use another folder.
        HubUnreachable: the hub refuses, has a fault, stops answering, or sends damaged files.
    """
    store = Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo_id.replace('/', '--')}"
    make_folder(store.parent)
    request = {
        "repo_id": repo_id,
        "revision": revision,
        "weights": weights,
        "kind": kind,
        "endpoint": constants.ENDPOINT,
        "cache_dir": constants.HF_HUB_CACHE,
        "token": huggingface_hub.get_token(),
    }
    with locked(store, seconds=-1):
        _remove_left_overs(store)
        try:
            folder = Path(_Fetching(request, store / "blobs").run())
        finally:
            _remove_left_overs(store)
        if not _without_damaged(folder, _wanted(kind, weights)):
            raise HubUnreachable(
                f"{repo_id} arrived damaged: its files are not what the hub says they are. They "
                "were removed; try again. If that repeats, look at the proxy between."
            )
    return folder


def _remove_left_overs(store: Path) -> None:
    """Remove partial files of killed downloads, unless they are being fetched now."""
    locks = store.parent / ".locks" / store.name
    for path in (store / "blobs").glob("*.incomplete"):
        with contextlib.suppress(OSError, LockTimeout):
            make_folder(locks)
            # The hub's client holds this lock while it fetches the file.
            with FileLock(locks / f"{path.name.split('.')[0]}.lock", timeout=0):
                path.unlink(missing_ok=True)


class _Fetching:
    """A download in a separate process, monitored from here."""

    def __init__(self, request: dict[str, Any], blobs: Path):
        self.request = request
        self.blobs = blobs
        self.told: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def run(self) -> str:
        """Return the snapshot's folder, or raise the error that the process reported."""
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(
                filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")))
            ),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONWARNINGS": "ignore",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "course_utils.models._hub"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the client's warnings can contain signed URLs
            text=True,
            env=environment,
        )
        try:
            # Not as an argument, where other users of this machine could read the token.
            process.stdin.write(json.dumps(self.request) + "\n")
            process.stdin.flush()
            threading.Thread(target=self._listen, args=(process.stdout,), daemon=True).start()
            return self._follow()
        finally:
            process.kill()
            process.wait()
            process.stdin.close()

    def _listen(self, stream: Any) -> None:
        with stream:
            for line in stream:
                with contextlib.suppress(ValueError):
                    self.told.put(parse_json(line))
        self.told.put(None)

    def _next(self, seconds: float) -> dict[str, Any]:
        """Return the process's next message; raise it if it is an error."""
        event = self.told.get(timeout=seconds)
        if event is None:
            raise HubUnreachable(
                f"The download of {self.request['repo_id']} ended without a word. Try again."
            )
        if "error" in event:
            raise getattr(errors, event["error"])(event["text"])
        return event

    def _follow(self) -> str:
        what = self.request["repo_id"]
        try:
            self._next(120)  # Python and the hub's client have been imported
            total = self._next(3 * PROBE_SECONDS)["bytes"]
        except queue.Empty:
            raise HubUnreachable(
                f"The hub did not answer within {3 * PROBE_SECONDS:.0f} s when asked for {what}. "
                "Try again later."
            ) from None
        from tqdm.auto import tqdm

        with tqdm(
            total=total, unit="B", unit_scale=True, desc=what, disable=total < 50e6, leave=False
        ) as bar:
            before = self._here()
            last, since = 0, time.monotonic()
            while True:
                try:
                    return self._next(0.2)["folder"]
                except queue.Empty:
                    pass
                here = self._here() - before
                bar.update(here - bar.n)
                if here - last >= min(STALL_BYTES, max(1, total - here)):
                    last, since = here, time.monotonic()
                elif time.monotonic() - since > STALL_SECONDS:
                    raise HubUnreachable(
                        f"The hub stopped answering while fetching {what}: next to nothing arrived "
                        f"for {STALL_SECONDS:.0f} s ({here / 1e6:.1f} of {total / 1e6:.1f} MB are "
                        "here). Try again; what is whole is kept."
                    )

    def _here(self) -> int:
        """The number of bytes in the repository's part of the cache."""
        size = 0
        for path in self.blobs.glob("*"):
            with contextlib.suppress(OSError):
                size += path.stat().st_size
        return size


class _Refusal(Exception):
    """An HTTP status on which the hub's client would wait and retry."""

    def __init__(self, status: int, wait: str):
        super().__init__(status)
        self.status, self.wait = status, wait


def _stop_at_refusals(response: Any) -> None:
    if response.status_code in (408, 429) or response.status_code >= 500:
        raise _Refusal(response.status_code, response.headers.get("retry-after", ""))


def _fetch(request: dict[str, Any], tell: Callable[..., None]) -> str:
    """Run a download in its process: return the snapshot's folder, or raise a `CourseError`."""
    repo_id, revision, kind = request["repo_id"], request["revision"], request["kind"]
    access = {"endpoint": request["endpoint"], "token": request["token"] or False}
    client = huggingface_hub.get_session()
    client.timeout = 2 * PROBE_SECONDS
    client.event_hooks = {
        "request": client.event_hooks["request"],
        "response": [*client.event_hooks["response"], _stop_at_refusals],
    }
    wanted = _wanted(kind, request["weights"])
    try:
        info = huggingface_hub.HfApi(**access).repo_info(
            repo_id,
            revision=revision,
            repo_type=kind,
            files_metadata=True,
            timeout=2 * PROBE_SECONDS,
        )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        if kind == "model" and request["weights"]:
            check_formats([name for name in sizes if "/" not in name], f"{repo_id} at {revision}")
        names = list(huggingface_hub.utils.filter_repo_objects(sizes, **wanted))
        total = sum(sizes[name] for name in names)
        check_disk(Path(request["cache_dir"]), total, f"{repo_id} (download)")
        tell(bytes=total)
        return huggingface_hub.snapshot_download(
            repo_id,
            revision=revision,
            repo_type=kind,
            cache_dir=request["cache_dir"],
            etag_timeout=2 * PROBE_SECONDS,
            **access,
            **wanted,
        )
    except CourseError:
        raise
    except GatedRepoError:
        raise GatedModel(gated_help(repo_id)) from None
    except Exception as error:
        raise _explained(error, repo_id, revision, bool(request["token"])) from None


def _explained(error: BaseException, repo_id: str, revision: str, has_token: bool) -> CourseError:
    """Explain what went wrong; the hub's own errors can contain headers and signed URLs."""
    where = f"The hub, asked for {repo_id},"
    if isinstance(error, _Refusal):
        wait = f" It asks to wait for {error.wait[:40]} s." if error.wait else ""
        said = {
            408: "says that the request took too long (408). Try again.",
            429: f"answers that there were too many requests (429).{wait} Try again later; with a "
            f"token (`{hf()} auth login`) more requests are free.",
            503: f"is not available at the moment (503).{wait} Try again later.",
        }
        usual = f"has a fault on its own side ({error.status}). Try again later."
        return HubUnreachable(f"{where} {said.get(error.status, usual)}")
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__  # what happened before the client looked into its cache
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401 and has_token:
        return HubUnreachable(
            f"{where} refuses this machine's token (401): it is wrong, or has expired. Make a new "
            f"one on https://huggingface.co/settings/tokens and run `{hf()} auth login`. Or remove "
            f"it with `{hf()} auth logout`: public models need none."
        )
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return UnknownName(
            f"The hub has no repository {repo_id!r} at revision {revision!r} (or it is private)."
        )
    if status == 401:
        return HubUnreachable(f"{where} wants a token (401). Run `{hf()} auth login`.")
    if status == 403:
        return HubUnreachable(
            f"{where} forbids it (403): this machine's token, or its network, may not have it."
        )
    if status == 404:
        return UnknownName(f"The hub has no such file of {repo_id!r} at {revision!r} (404).")
    if status:
        return HubUnreachable(f"{where} answers with status {status}. Try again later.")
    if isinstance(error, ValueError):
        return HubUnreachable(
            f"{where} answers with something that is no JSON. Is it a proxy's log-in page, or is "
            "HF_ENDPOINT another server?"
        )
    if isinstance(error, OSError) and error.errno:
        return errors.CannotWrite(
            f"{repo_id} could not be written into the hub's cache: {os.strerror(error.errno)}. Set "
            "HF_HOME to a folder with space that you may write."
        )
    return HubUnreachable(
        f"The hub stopped answering while fetching {repo_id} ({type(error).__name__}). Try again."
    )


def _main() -> None:
    """Run a download's process: read a request from one line, write JSON lines."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print must not be taken for an answer

    def tell(**event: Any) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    request = parse_json(sys.stdin.readline())

    def end_with_the_parent() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=end_with_the_parent, daemon=True).start()
    tell(ready=True)
    try:
        tell(folder=_fetch(request, tell))
    except CourseError as error:
        tell(error=type(error).__name__, text=str(error))
    os._exit(0)  # without waiting for the client's threads


if __name__ == "__main__":
    _main()
