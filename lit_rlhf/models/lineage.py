"""What a model was made from: data, models of origin, settings, versions.

Every phase writes its lineage as `lineage.json` into the model folder that it leaves:

    phase     the module's class
    data      "train", "validation", ... -> `source`, `sha256` of its content and `rows`
    origins   "policy", "reward", ... -> `source`, `sha256` or `revision`, and its `lineage`
    config    all settings of the command line, or null when the phase was run from Python
    versions  of the packages that computed

Of an origin's own lineage one level is kept, without its settings: what lies further back is named
by source and digest, and can be read in the folders themselves.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from lit_rlhf import __version__
from lit_rlhf.cache import digest_file
from lit_rlhf.errors import CheckpointError
from lit_rlhf.models.handover import resolve_source

Lineage = dict[str, Any]

LINEAGE_FILE = "lineage.json"
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
    """Describe a run; reads the files of each origin once, to hash them.

    Args:
        phase: name of the module's class.
        data: of the data module, see `TextDataModule.provenance`.
        origins: role -> hub name or folder that the run started from.
        config: settings of the run as plain values, or None.
    """
    described = {source: describe_origin(source) for source in set(origins.values())}
    return {
        "phase": phase,
        "data": {name: dict(entry) for name, entry in data.items()},
        "origins": {role: described[source] for role, source in origins.items()},
        "config": None if config is None else dict(config),
        "versions": versions(),
    }


def describe_origin(source: str) -> dict[str, Any]:
    """Say which model a source is, so that another one under the same name can be told from it.

    Returns:
        `source`; `sha256` over the files of a folder, or the `revision` of a hub's model; and one
        level of the `lineage` in the folder, None where there is none.

    Raises:
        CheckpointError: there is no such model.
    """
    path = resolve_source(source)
    if not Path(path).is_dir():
        return {"source": source, "revision": _cached_revision(path), "lineage": None}
    lineage = read_lineage(path)
    if lineage is not None:
        further = {
            role: {key: value for key, value in origin.items() if key != "lineage"}
            for role, origin in lineage["origins"].items()
        }
        lineage = {**lineage, "origins": further}
        lineage.pop("config", None)
    return {"source": source, "sha256": _digest_folder(Path(path)), "lineage": lineage}


def _cached_revision(name: str) -> str | None:
    """Return the commit of a hub's model as it is in the cache, from which it was loaded."""
    file = try_to_load_from_cache(name, "config.json")
    return Path(file).parent.name if isinstance(file, str) else None  # .../snapshots/COMMIT/...


def read_lineage(folder: str) -> Lineage | None:
    """Return what a model folder says it was made from; None for models from elsewhere.

    Raises:
        CheckpointError: there is no such folder, or its `lineage.json` is not one of ours.
    """
    file = Path(resolve_source(folder)) / LINEAGE_FILE
    if not file.is_file():
        return None
    try:
        lineage: Lineage = json.loads(file.read_text(encoding="utf-8"))
        list(render_lineage(lineage))  # reads all that is read of it anywhere
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: not a lineage of lit_rlhf ({error}); remove the file to go on without"
        ) from error
    return lineage


def write_lineage(lineage: Lineage, folder: Path) -> None:
    """Write a lineage into a model folder."""
    text = json.dumps(lineage, indent=1, default=str)
    (folder / LINEAGE_FILE).write_text(text + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of those that compute."""
    own = {"python": platform.python_version(), "lit_rlhf": __version__}
    return own | {name: version(name) for name in _PACKAGES}


def render_lineage(lineage: Lineage | None, depth: int = 0) -> Iterator[str]:
    """Yield a lineage as lines of text, that of each origin indented below it.

    Args:
        lineage: of a model folder.
        depth: how far to indent.
    """
    indent = "  " * depth
    if lineage is None:
        yield f"{indent}no lineage is recorded"
        return
    installed = ", ".join(f"{name} {number}" for name, number in lineage["versions"].items())
    yield f"{indent}{lineage['phase']} ({installed})"
    for name, entry in lineage["data"].items():
        digest = str(entry.get("sha256"))[:_SHORT_DIGEST]
        yield f"{indent}  data {name}: {entry['source']}, {entry.get('rows')} rows, sha256 {digest}"
    for role, origin in lineage["origins"].items():
        digest = str(origin.get("sha256") or origin.get("revision") or "unknown")
        name = "sha256" if origin.get("sha256") else "revision"
        yield f"{indent}  from {role}: {origin['source']}, {name} {digest[:_SHORT_DIGEST]}"
        if origin.get("lineage") is not None:
            yield from render_lineage(origin["lineage"], depth + 2)


def _digest_folder(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in _MODEL_SUFFIXES:
            digest.update(f"{path.name} {digest_file(path)}\n".encode())
    return digest.hexdigest()
