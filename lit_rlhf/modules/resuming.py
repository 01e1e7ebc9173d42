"""A run that goes on with other settings, data or models than it began with says which ones win."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Their values are in the states of optimizer and KL controller, which the checkpoint restores.
_SAVED = {
    *(f"model.optimizer.{name}" for name in ("learning_rate", "weight_decay", "beta1", "beta2")),
    "model.optimizer.eps",
    "kl.coefficient",
}
# Where a run is kept and shown changes no result.
_SILENT = ("trainer.logger", "trainer.callbacks", "last_checkpoint", "trainer.enable_")


def changed_settings(saved: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting that differs: its name, both values and which one wins.

    Args:
        saved: settings of the run that wrote the checkpoint, nested.
        own: settings of this run.
    """
    before, now = dict(_flat(saved)), dict(_flat(own))
    lines = []
    for name in sorted({*before, *now}):
        if before.get(name) == now.get(name) or name.startswith(_SILENT):
            continue
        winner = "checkpoint's" if name in _SAVED else "new one"
        lines.append(f"{name} was {before.get(name)}, is {now.get(name)}: the {winner} counts")
    return lines


def changed_inputs(saved: Mapping[str, str | None], own: Mapping[str, str | None]) -> list[str]:
    """Return a line for each data set or model whose digest differs; the new ones count.

    Args:
        saved: digest by name of the run that wrote the checkpoint.
        own: of this run.
    """
    return [
        f"{name} has other contents than the run began with: the new ones count"
        for name in sorted(saved.keys() & own.keys())
        if None not in (saved[name], own[name]) and saved[name] != own[name]
    ]


def digests_of(lineage: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the SHA-256 of each data set and model in a lineage, by its setting."""
    data = {f"data.{name}": entry.get("sha256") for name, entry in lineage["data"].items()}
    models = {f"model {role}": entry.get("sha256") for role, entry in lineage["origins"].items()}
    return data | models


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
