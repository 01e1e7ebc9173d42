"""What a model was made from: data, models of origin with their own lineage, settings, versions.

A lineage is a small dictionary of plain values. Every phase writes one into the card of its
checkpoints; the lineage of an origin is copied into it, so that the chain can be read from the
last checkpoint alone.

    phase     the module's class
    data      "train", "validation", ... -> `source`, `sha256` of its content and `rows`
    origins   "policy", "reward", ... -> `source`, `sha256` or `revision`, and its `lineage`
    config    all settings of the command line, or null when the phase was run from Python
    versions  of the packages that computed
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from lit_rlhf import __version__
from lit_rlhf.cache import digest_file
from lit_rlhf.models.card import is_checkpoint, read_card, resolve_source

Lineage = dict[str, Any]

_PACKAGES = ("torch", "lightning", "transformers", "peft")
_MODEL_SUFFIXES = (".safetensors", ".bin", ".json", ".jinja")
_SHORT_DIGEST = 12


def make_lineage(
    phase: str,
    *,
    data: Mapping[str, Mapping[str, Any]],
    origins: Mapping[str, str],
    config: Mapping[str, Any] | None,
) -> Lineage:
    """Describe a run; reads the files of the origins once, to hash them.

    Args:
        phase: name of the module's class.
        data: of the data module, see `TextDataModule.provenance`.
        origins: role -> hub name, folder or checkpoint that the run started from.
        config: settings of the run as plain values, or None.
    """
    return {
        "phase": phase,
        "data": {name: dict(entry) for name, entry in data.items()},
        "origins": {role: describe_origin(source) for role, source in origins.items()},
        "config": None if config is None else dict(config),
        "versions": versions(),
    }


def describe_origin(source: str) -> dict[str, Any]:
    """Say which model a source is, so that another one under the same name can be told from it.

    Returns:
        `source`; `sha256` of a checkpoint file (as `sha256sum` gives it) or over the files of a
        folder, or the `revision` of a hub's model; and the `lineage` that a checkpoint carries.

    Raises:
        CheckpointError: there is no such model.
    """
    path = resolve_source(source)
    if is_checkpoint(path):
        digest = _digest_folder if Path(path).is_dir() else digest_file
        lineage = read_card(path).lineage
        return {"source": source, "sha256": digest(Path(path)), "lineage": lineage}
    if Path(path).is_dir():
        return {"source": source, "sha256": _digest_folder(Path(path)), "lineage": None}
    config = AutoConfig.from_pretrained(path)
    revision = getattr(config, "_commit_hash", None)
    return {"source": source, "revision": revision, "lineage": None}


def lineage_of(source: str) -> Lineage | None:
    """Return what a checkpoint says it was made from; None for other models and older files.

    Raises:
        CheckpointError: it is no checkpoint of ours.
    """
    path = resolve_source(source)
    return read_card(path).lineage if is_checkpoint(path) else None


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of those that compute."""
    own = {"python": platform.python_version(), "lit_rlhf": __version__}
    return own | {name: version(name) for name in _PACKAGES}


def render_lineage(lineage: Lineage | None, depth: int = 0) -> Iterator[str]:
    """Yield a lineage as lines of text, that of each origin indented below it.

    Args:
        lineage: of a checkpoint.
        depth: how far to indent.
    """
    indent = "  " * depth
    if lineage is None:
        yield f"{indent}no lineage is recorded"
        return
    installed = ", ".join(f"{name} {number}" for name, number in lineage["versions"].items())
    yield f"{indent}{lineage['phase']} ({installed})"
    for name, entry in lineage["data"].items():
        digest = entry["sha256"][:_SHORT_DIGEST]
        yield f"{indent}  data {name}: {entry['source']}, {entry['rows']} rows, sha256 {digest}"
    for role, origin in lineage["origins"].items():
        digest = origin.get("sha256") or origin.get("revision") or "unknown"
        name = "sha256" if origin.get("sha256") else "revision"
        yield f"{indent}  from {role}: {origin['source']}, {name} {digest[:_SHORT_DIGEST]}"
        if origin["lineage"] is not None:
            yield from render_lineage(origin["lineage"], depth + 2)


def _digest_folder(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in _MODEL_SUFFIXES:
            digest.update(f"{path.name} {digest_file(path)}\n".encode())
    return digest.hexdigest()
