"""What a checkpoint holds of its run, and what a run requires and tells that goes on with one.

A run that goes on with other settings, data or models than it began with says which ones win.
"""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lit_rlhf.checkpoints import read_verified
from lit_rlhf.errors import CheckpointError
from lit_rlhf.modules.arguments import packed, unpacked

if TYPE_CHECKING:
    from lit_rlhf.modules.phase import PhaseModule

    Module = TypeVar("Module", bound=PhaseModule)

# A callback that averages weights puts the average in the place of the weights, which then are
# under a name of their own.
_WEIGHTS = ("state_dict", "current_model_state")
REFERENCE = "reference."  # how the names of the reference's weights begin
# In a checkpoint: how optimizer states and weights are stored.
_STORAGE_KEY = "lit_rlhf_storage"
_PHASE_KEY = "lit_rlhf_phase"
_SKIPPED_KEY = "lit_rlhf_skipped_steps"
_RUN_KEY = "lit_rlhf_run"
_ARGUMENTS_KEY = "lit_rlhf_arguments"

# Their values are in the states of optimizer and KL controller, which the checkpoint restores.
_SAVED = {
    *(f"model.optimizer.{name}" for name in ("learning_rate", "weight_decay", "beta1", "beta2")),
    "model.optimizer.eps",
    "kl.coefficient",
}
# Where a run is kept and shown changes no result.
_SILENT = ("trainer.logger", "trainer.callbacks", "last_checkpoint", "trainer.enable_")

_log = logging.getLogger(__name__)


def keep_trained(checkpoint: dict[str, Any], module: PhaseModule) -> None:
    """Take out of a checkpoint what the run can load again."""
    for key in _WEIGHTS:
        if key in checkpoint:
            state = checkpoint[key]
            checkpoint[key] = {name: state[name] for name in _kept_names(module, state)}


def fill_left_out(checkpoint: dict[str, Any], module: PhaseModule) -> None:
    """Put into the checkpoint of an averaged run what was taken out, as the module has it now.

    Lightning reads an average by all of its names.
    """
    if _WEIGHTS[1] in checkpoint:
        own = module.state_dict()
        for key in _WEIGHTS:
            checkpoint[key] = own | checkpoint[key]


def leave_marks(checkpoint: dict[str, Any], module: PhaseModule) -> None:
    """Say in a checkpoint which phase wrote it, how it is stored and what its run began with."""
    checkpoint[_STORAGE_KEY] = _storage(module)
    checkpoint[_PHASE_KEY] = module.phase
    checkpoint[_SKIPPED_KEY] = module.guard.num_skipped
    checkpoint[_ARGUMENTS_KEY] = packed(module.arguments)
    if (lineage := module.lineage) is not None:
        settings = module.run_config or {}
        checkpoint[_RUN_KEY] = {"settings": settings, "digests": digests_of(lineage)}


def load_module(
    cls: type[Module], path: Path, map_location: object, changes: Mapping[str, Any]
) -> Module:
    """Make the module that a checkpoint was saved of, see `PhaseModule.load_from_checkpoint`.

    Raises:
        CheckpointError: it is not there, damaged, or of another phase.
        ConfigError: an argument is not in it, and is not given.
    """
    checkpoint = read_verified(path, map_location=map_location or "cpu")
    _require_phase(checkpoint, cls)
    saved = checkpoint[_ARGUMENTS_KEY]
    kept = {name: value for name, value in saved.items() if name not in changes}
    module = cls(**unpacked(kept), **changes)
    module.configure_model()
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=False)  # checked by name just before
    return module


def require_resumable(checkpoint: Mapping[str, Any], module: PhaseModule) -> None:
    """Check by name that everything trained is there, and tell what has changed.

    Raises:
        CheckpointError: another phase wrote it, its weights are not those that this run trains,
            or are stored in another way.
    """
    _require_phase(checkpoint, type(module))
    module.guard.num_skipped = checkpoint[_SKIPPED_KEY]
    saved, own = checkpoint[_STORAGE_KEY], _storage(module)
    if saved != own:
        raise CheckpointError(
            f"the checkpoint's run had model.optimizer {saved}, this one has {own}: "
            "go on with the same, or start again without --ckpt_path"
        )
    if "state_dict" not in checkpoint:  # a sharded strategy has loaded the weights already
        return
    _require_weights(checkpoint["state_dict"], module)
    _tell_changes(checkpoint.get(_RUN_KEY), module)


def saved_rate(checkpoint: Mapping[str, Any]) -> float | None:
    """Return the peak learning rate of the run that wrote a checkpoint, if it was given one."""
    arguments = checkpoint.get(_ARGUMENTS_KEY) or {}
    rate: float | None = arguments.get("optimizer", {}).get("learning_rate")
    return rate


def _kept_names(module: PhaseModule, state: Iterable[str]) -> list[str]:
    names = [n for n in state if module.reference_moves or not n.startswith(REFERENCE)]
    if module.lora is None:
        return names
    # Under all of their names: a tied output is the embedding once more.
    parameters = module.named_parameters(remove_duplicate=False)
    frozen = {name for name, value in parameters if not value.requires_grad}
    return [name for name in names if name not in frozen]


def _require_phase(checkpoint: Mapping[str, Any], cls: type[PhaseModule]) -> None:
    phase = checkpoint.get(_PHASE_KEY)
    if phase is None:
        raise CheckpointError(
            "ckpt_path: no phase of lit_rlhf wrote this checkpoint, or an older version did: start "
            f"from a model folder, with --model.{cls.source_option}"
        )
    if phase != cls.phase:
        raise CheckpointError(
            f"ckpt_path: the checkpoint is of the phase {phase}, and {cls.phase} cannot go on "
            "with it: go on with the phase that wrote it, or start from the model folder that "
            f"it leaves, with --model.{cls.source_option}"
        )


def _require_weights(state: Mapping[str, Any], module: PhaseModule) -> None:
    expected = {name for name, value in module.named_parameters() if value.requires_grad}
    if missing := sorted(expected - state.keys()):
        raise CheckpointError(
            f"the checkpoint lacks {len(missing)} trained weights, for one {missing[0]}: "
            "was it made with another phase, model or lora setting?"
        )
    if unknown := sorted(state.keys() - module.state_dict().keys()):
        raise CheckpointError(
            f"the checkpoint has {len(unknown)} weights that this run does not train, for one "
            f"{unknown[0]}: go on with the same model.advantage, critic and lora settings, or "
            "start again without --ckpt_path"
        )


def _tell_changes(saved: Mapping[str, Any] | None, module: PhaseModule) -> None:
    """Say on rank zero which settings and inputs are others than the run began with."""
    if saved is None or (lineage := module.lineage) is None:
        return
    lines = changed_inputs(saved["digests"], digests_of(lineage))
    if saved["settings"] and module.run_config:
        lines += changed_settings(saved["settings"], module.run_config)
        _name_saved(saved["settings"], module.run_config)
    for line in lines:
        _log.warning("resumed: %s", line)


def _storage(module: PhaseModule) -> dict[str, str]:
    return {"states": module.optimizer.states, "weights": module.optimizer.weights}


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


def _name_saved(saved: Mapping[str, Any], own: dict[str, Any]) -> None:
    """Put what the checkpoint decides into the settings, which the lineage and a later part read.

    Otherwise the later part would be told of a value that never counted.
    """
    before, now = dict(_flat(saved)), dict(_flat(own))
    for name in _SAVED & before.keys() & now.keys():
        *groups, last = name.split(".")
        functools.reduce(operator.getitem, groups, own)[last] = before[name]


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
