"""Models and tokenizers by role or id: embedded, from the local cache, or from the hub.

`load_model("chat")` loads the model for the machine's tier and prints which one it is. Introduced
in notebook 01.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    __version__,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from course_utils._core import checks
from course_utils._core.files import parse_json
from course_utils._core.undisturbed import quiet_libraries
from course_utils.errors import (
    DamagedFile,
    GatedModel,
    HubUnreachable,
    NotEnoughMemory,
    UnknownName,
    UnsafeFormat,
    near_matches,
    unknown,
)
from course_utils.hardware import Hardware, detect, pick_attention, pick_dtype, tier
from course_utils.models import _hub as hub
from course_utils.models import _packaged as embedded
from course_utils.models._catalog import catalog
from course_utils.models._quantization import (
    BYTES_PER_PARAMETER,
    check_quantization,
    keep_weights_trainable,
    quantization_config,
)

SOURCES = ("auto", "embedded", "cache", "hub")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# While a model loads, some tensors exist twice; this covers them for models of the course's sizes.
_LOADING_OVERHEAD = 1.1
_LARGEST_HEADER = 100_000_000  # bytes, the format's own limit
_ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Origin:
    """Where a model comes from: `where` is embedded, cache, hub or folder; `notes` explain why."""

    id: str
    revision: str
    folder: Path
    where: str
    notes: tuple[str, ...] = ()

    def announce(self, name: object, *more: str) -> None:
        """Print which model a name stands for, and why, one line per reason."""
        indent = " " * (len(str(name)) + 2)
        print(f"{name}: {self.id}, {self.where}")
        for note in (*self.notes, *more):
            print(f"{indent}{note}")


_remembered: dict[tuple[str, str, bool], Origin] = {}


def forget() -> None:
    """Forget which sources were chosen and whether the hub answered, so that both are redone."""
    _remembered.clear()
    hub.forget_probe()


def _own_origin(model_id: str, *why: str) -> Origin:
    entry = catalog().bundled[model_id]
    return Origin(entry.id, "", entry.path, "embedded", (*filter(None, why), entry.note))


def _embedded_origin(role_name: str, why: str = "") -> Origin:
    role = catalog().roles[role_name]
    if role.embedded in catalog().bundled:
        return _own_origin(role.embedded, why, role.embedded_note)
    entry = embedded.spec(role.embedded)
    notes = tuple(filter(None, (why, role.embedded_note, entry.note)))
    return Origin(entry.stands_for, entry.version, embedded.ensure(entry.name), "embedded", notes)


def _from_hub(candidates: list[str], *, role: bool, cache_only: bool, weights: bool) -> Origin:
    """The first of several hub ids that this machine can get."""
    models = catalog().models
    refused = ""
    for model_id in candidates:
        known = models.get(model_id)
        revision = known.revision if known else "main"
        folder = hub.cached(model_id, revision, weights=weights)
        if folder:
            return Origin(model_id, revision, folder, "cache")
        if cache_only:
            continue
        if not hub.reachable():
            raise HubUnreachable("the hub is out of reach")
        try:
            folder = hub.download(model_id, revision, weights=weights)
        except GatedModel as error:
            refused = str(error)
            continue
        except UnknownName as error:
            near = near_matches(model_id, list(models))
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            raise UnknownName(f"{error}{hint}") from None
        notes = (f"no access to {candidates[0]}",) if refused and role else ()
        return Origin(model_id, revision, folder, "hub", notes)
    if refused:
        raise GatedModel(refused)
    raise HubUnreachable(
        f"{', '.join(candidates)} is not whole in the cache of this machine"
        if len(candidates) == 1
        else f"none of {', '.join(candidates)} is in the cache of this machine"
    )


def _of_a_pair(
    role: str, level: str, *, cache_only: bool, weights: bool
) -> tuple[list[str], tuple[str, ...]]:
    """A role's models for a tier whose pairs this machine can get, too; and notes on the others.

    A pair that was chosen earlier in this process stays.
    """
    roles, models = catalog().roles, catalog().models
    own, other = roles[role].by_tier[level], roles[roles[role].pair].by_tier[level]
    for (name, *_), origin in _remembered.items():
        if name == roles[role].pair and origin.id in other:
            return [own[other.index(origin.id)]], ()

    def within_reach(model_id: str) -> bool:
        known = models[model_id]
        if hub.cached(model_id, known.revision, weights=weights):
            return True
        if cache_only or not hub.reachable():
            return False
        return not known.gated or hub.has_access(model_id)

    found, notes = [], []
    for mine, partner in zip(own, other, strict=True):
        if within_reach(partner):
            found.append(mine)
        elif not found:
            notes.append(f"not {mine}: {partner}, its pair, is out of this machine's reach")
    if not found:
        if not cache_only and not hub.reachable():
            raise HubUnreachable("the hub is out of reach")
        raise HubUnreachable(f"none of {', '.join(own)} is within reach together with its pair")
    return found, tuple(notes)


def _is_model_folder(path: Path) -> bool:
    try:
        return (path / "config.json").is_file()
    except OSError:  # such as a name that no file system accepts
        return False


def resolve(
    name: str | Path,
    source: str = "auto",
    *,
    weights: bool = True,
    fallback: bool = True,
    hardware: Hardware | None = None,
) -> Origin:
    """Decide where a model comes from, and make sure that its files are on disk.

    Args:
        name: a role ("base", "chat", "pythia"), a hub id, one of the course's own models, or the
            folder of a saved model.
        source: "auto" takes the embedded model for a role on the CPU tier, else the hub's;
            "embedded", "cache" and "hub" allow only that source.
        weights: whether the weights are needed, not only the configuration and the tokenizer.
        fallback: whether to take the embedded model of the same kind when the hub is unreachable.
        hardware: another machine to decide for.

    Raises:
        UnknownName: neither catalogue nor hub knows this role or id, or the source is unknown.
        GatedModel: no access to a gated model that was requested by its id.
        HubUnreachable: the hub is unreachable, and there is no fallback.
        UnsafeFormat, NotEnoughDisk, ChecksumMismatch: the model that was found is refused.
    """
    checks.one_of("source", source, SOURCES)
    checks.flag("weights", weights)
    checks.flag("fallback", fallback)
    if hardware is not None:
        checks.a("hardware", hardware, Hardware, "a Hardware, or None for this machine")
    roles, models = catalog().roles, catalog().models
    if not isinstance(name, str | Path) or not str(name).strip():
        raise unknown("model", name, [*roles, *models])
    key = checks.text("name", str(name))
    if key not in roles and _is_model_folder(Path(key)):
        return Origin(key, "", Path(key), "folder")
    own = catalog().bundled
    if key in own:
        return _own_origin(key)
    if hardware is None:
        # A tokenizer comes from the same source as its model, whatever has changed since.
        for earlier in ((key, source, True), (key, source, weights)):
            if earlier in _remembered:
                if (_remembered[earlier].folder / "config.json").is_file():
                    return _remembered[earlier]
                del _remembered[earlier]  # the cache has been emptied since

    is_role = key in roles
    kind = key if is_role else (models[key].kind if key in models else None)
    if not is_role and kind is None and not _HUB_ID.fullmatch(key):
        raise unknown("model", key, [*roles, *own, *models])
    level = tier(hardware).value

    if source == "embedded" or (source == "auto" and is_role and level == "cpu"):
        stood_for = {entry.stands_for for entry in catalog().packaged.values()}
        if not is_role and key not in stood_for:
            raise unknown("embedded model", key, [*roles, *own, *stood_for])
        origin = _embedded_origin(kind)
    else:
        candidates = roles[key].by_tier[level] if is_role else [key]
        cache_only = source == "cache"
        notes: tuple[str, ...] = ()
        try:
            if is_role and roles[key].pair:
                candidates, notes = _of_a_pair(key, level, cache_only=cache_only, weights=weights)
            origin = _from_hub(candidates, role=is_role, cache_only=cache_only, weights=weights)
            origin = replace(origin, notes=(*notes, *origin.notes))
        except HubUnreachable as error:
            if kind is None:
                raise unknown(
                    "model", key, [*roles, *own, *models], f"It might be on the hub, but {error}."
                ) from None
            if not fallback or source == "cache":
                raise HubUnreachable(
                    f'{key}: {error}. `source="embedded"` works without it.'
                ) from None
            origin = _embedded_origin(kind, f"in place of {', '.join(candidates)}: {error}")
    if hardware is None:
        _remembered[key, source, weights] = origin
    return origin


def _header(path: Path) -> dict[str, Any]:
    """Read the header of a safetensors file, which describes its tensors.

    Raises:
        DamagedFile: it is not such a file, or truncated. Format: README of github.com/huggingface/
            safetensors: 8 bytes with the header's length, at most 100 MB of JSON, the tensors.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_LARGEST_HEADER, size - 8):
                raise ValueError(f"its header would be {length:,} bytes long")
            header = parse_json(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if size != 8 + length + end:
            raise ValueError(f"it has {size:,} bytes, and {8 + length + end:,} were written")
    except (ValueError, struct.error, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DamagedFile(
            f"{path} is no whole safetensors file: {error}. Fetch or save the model anew."
        ) from None
    return header


def _tensor_sizes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in a folder's safetensors, read only from the headers."""
    named = hub.shards(folder)
    files = ["model.safetensors"] if named is None else named
    return {
        name: tuple(entry["shape"])
        for file in files
        for name, entry in _header(folder / file).items()
    }


def weight_bytes(folder: Path, dtype: torch.dtype, quantization: str | None = None) -> int:
    """Compute how many bytes a saved model's weights take once loaded.

    Args:
        folder: the folder with its safetensors.
        dtype: the dtype of weights that are not quantized.
        quantization: one of `quantization.NAMES`, applied to the linear layers between the
            embeddings and the output layer.
    """
    total = 0.0
    for name, shape in _tensor_sizes(folder).items():
        inner = len(shape) == 2 and not re.search(r"embed|wte|lm_head", name)
        each = BYTES_PER_PARAMETER[quantization] if quantization and inner else dtype.itemsize
        total += math.prod(shape) * each
    return int(total)


def check_memory(
    folder: Path,
    dtype: torch.dtype,
    quantization: str | None,
    free_bytes: int,
    what: str,
    where: str = "RAM",
) -> None:
    """Refuse a model whose weights would not fit into memory.

    Raises:
        NotEnoughMemory: names the quantizations and the course's models that would fit.
    """
    needed = weight_bytes(folder, dtype, quantization) * _LOADING_OVERHEAD
    if needed <= free_bytes:
        return
    smaller = {
        name: weight_bytes(folder, dtype, name) * _LOADING_OVERHEAD
        for name in ("8bit", "nf4")
        if name != quantization
    }
    fits = [f'quantization="{n}" ({b / 1e9:.1f} GB)' for n, b in smaller.items() if b <= free_bytes]
    fits += [
        entry.id
        for entry in sorted(catalog().models.values(), key=lambda entry: -entry.parameters)
        if entry.parameters * dtype.itemsize * _LOADING_OVERHEAD <= free_bytes
    ][:3]
    raise NotEnoughMemory(
        f"{what} needs about {needed / 1e9:.1f} GB of {where} to load, and "
        f"{free_bytes / 1e9:.1f} GB are free. What would fit: {'; '.join(fits) or 'nothing'}."
    )


def _read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file in a model's folder; empty if there is no such file.

    Raises:
        DamagedFile: the file contains something else.
    """
    try:
        settings = parse_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DamagedFile(f"{path} cannot be read: {error}. Fetch or save it anew.") from None
    if not isinstance(settings, dict):
        raise DamagedFile(f"{path} holds no JSON object. Fetch or save it anew.")
    return settings


def _refuse_own_code(origin: Origin) -> None:
    """Refuse a folder that refers to its own code, before anything else in it is read.

    Raises:
        UnsafeFormat: it has an `auto_map`. Only the catalogue's models at their pinned revisions
            may have one, if transformers knows their type: it is then ignored.
        DamagedFile: a configuration cannot be read.
    """
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        settings = _read_settings(origin.folder / name)
        if "auto_map" not in settings:
            continue
        pinned = origin.where in ("hub", "cache") and origin.id in catalog().models
        model_type = _read_settings(origin.folder / "config.json").get("model_type")
        if not (pinned and model_type in CONFIG_MAPPING_NAMES):
            raise UnsafeFormat(
                f"{origin.id}: its {name} names code of its own (auto_map), which the course never "
                "executes. Take a model that transformers knows by itself; or, where you know "
                "this one to be of a type that it knows, remove auto_map from a copy."
            )


def _check_loadable(origin: Origin) -> None:
    """Refuse pickles, models with their own code, and models that are not decoders.

    Raises:
        UnsafeFormat, DamagedFile: see `_refuse_own_code` and `hub.check_formats`.
        UnknownName: transformers does not know this model type, or it does not generate text.
    """
    hub.check_formats([path.name for path in origin.folder.iterdir()], origin.id)
    if not hub.has_weights(origin.folder):
        raise DamagedFile(
            f"{origin.id} is not whole: weights that it names are missing in {origin.folder}. "
            "Fetch or save it anew."
        )
    _read_settings(origin.folder / "generation_config.json")
    model_type = _read_settings(origin.folder / "config.json").get("model_type", "")
    if model_type not in CONFIG_MAPPING_NAMES:
        raise UnknownName(
            f"transformers {__version__} does not know the model type {model_type!r} of "
            f"{origin.id}."
        )
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnknownName(
            f"{origin.id} is of type {model_type!r}, which continues no text. Take a causal "
            "language model, such as a Llama, a Qwen or a GPT-NeoX."
        )


def _refuse_unsafe(options: dict[str, Any]) -> None:
    """Refuse options that would execute or unpickle downloaded files."""
    if options.pop("trust_remote_code", False):
        raise UnsafeFormat(
            "trust_remote_code would execute code from the model's repository on this machine; "
            "the course never does. Take a model that transformers knows by itself."
        )
    if options.pop("use_safetensors", True) is False or options.pop("weights_only", True) is False:
        raise UnsafeFormat("The course loads safetensors only: unpickling can run any code.")


def _dtype(given: torch.dtype | str) -> torch.dtype:
    """Return a dtype for weights, which may be given by name."""
    name = str(given).removeprefix("torch.")
    if name not in _DTYPES:
        raise unknown("dtype", given, list(_DTYPES))
    return _DTYPES[name]


def load_model(
    name: str | Path = "chat",
    quantization: str | BitsAndBytesConfig | None = None,
    *,
    source: str = "auto",
    dtype: torch.dtype | str | None = None,
    attn_implementation: str | None = None,
    fallback: bool = True,
    quiet: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """Load a causal language model in eval mode, on the GPU if there is one.

    Args:
        name: a role ("base", "chat", "pythia"), a hub id, one of the course's own models, or the
            folder of a saved model.
        quantization: None, "8bit", "nf4", "fp4", "nf4-double", "fp4-double", or a
            `BitsAndBytesConfig`.
        source: "auto", "embedded", "cache" or "hub"; see `resolve`.
        dtype: the weights' dtype, such as `torch.float32` or "float32"; by default the one that the
            hardware computes in (`pick_dtype`).
        attn_implementation: by default the choice of `pick_attention`.
        fallback: whether to use the embedded model when the hub is unreachable.
        quiet: whether to omit the line that says which model was loaded.
        options: further arguments of `AutoModelForCausalLM.from_pretrained`.

    Raises:
        UnknownName, GatedModel, HubUnreachable, NotEnoughDisk, NotEnoughMemory,
        ChecksumMismatch, UnsafeFormat: see `resolve`; each message says what is possible instead.
        DamagedFile: a file of the model is truncated or unreadable.
    """
    _refuse_unsafe(options)
    checks.flag("quiet", quiet)
    if attn_implementation is not None:
        # Only by name: transformers would fetch any other one from the hub, and run it.
        checks.one_of("attn_implementation", attn_implementation, _ATTENTIONS)
    check_quantization(quantization)
    hardware = detect()
    chosen = pick_dtype(hardware)
    dtype, reason = (chosen.value, chosen.reason) if dtype is None else (_dtype(dtype), "as asked")
    if isinstance(quantization, str):
        plain, config = quantization, quantization_config(quantization, dtype)
    else:
        plain, config = None, quantization

    origin = resolve(name, source, fallback=fallback)
    what = f"{origin.id} in {plain or str(dtype).removeprefix('torch.')}"
    _refuse_own_code(origin)
    _check_loadable(origin)
    if hardware.device == "cuda":
        check_memory(origin.folder, dtype, plain, torch.cuda.mem_get_info()[0], what, "GPU memory")
    else:
        check_memory(origin.folder, dtype, plain, psutil.virtual_memory().available, what)
    if config is not None or hardware.device == "cuda":
        options.setdefault("device_map", {"": hardware.device})
    with quiet_libraries():
        model = AutoModelForCausalLM.from_pretrained(
            origin.folder,
            dtype=dtype,
            quantization_config=config,
            attn_implementation=attn_implementation or pick_attention(hardware).value,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            **options,
        )
        if config is not None:
            keep_weights_trainable(model)
    # Adapters saved later use this to name their base model: the id, not a path on this machine.
    model.name_or_path = model.config._name_or_path = origin.id
    if not quiet:
        how = f"{plain} weights, computing in " if plain else ""
        origin.announce(name, f"{how}{str(dtype).removeprefix('torch.')}: {reason}")
    return model.eval()


def load_tokenizer(
    name: str | Path = "chat", *, source: str = "auto", fallback: bool = True, **options: Any
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model that `load_model` loads for the same `name` and `source`.

    Arguments and errors are those of `load_model`; `options` go to
    `AutoTokenizer.from_pretrained`.
    """
    _refuse_unsafe(options)
    origin = resolve(name, source, weights=False, fallback=fallback)
    _refuse_own_code(origin)
    for file in ("tokenizer.json", "special_tokens_map.json"):
        _read_settings(origin.folder / file)
    with quiet_libraries():
        tokenizer = AutoTokenizer.from_pretrained(
            origin.folder, trust_remote_code=False, local_files_only=True, **options
        )
    tokenizer.name_or_path = origin.id
    return tokenizer
