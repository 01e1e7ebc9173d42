"""Which weights a checkpoint holds: those that are trained, once or beside their average."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_rlhf.modules.phase import PhaseModule

# A callback that averages weights puts the average in the place of the weights, which then are
# under a name of their own.
_STATES = ("state_dict", "current_model_state")


def keep_trained(checkpoint: dict[str, Any], module: PhaseModule) -> None:
    """Take out of a checkpoint what the run can load again."""
    for key in _STATES:
        if key in checkpoint:
            state = checkpoint[key]
            checkpoint[key] = {name: state[name] for name in _kept_names(module, state)}


def fill_left_out(checkpoint: dict[str, Any], module: PhaseModule) -> None:
    """Put into the checkpoint of an averaged run what was taken out, as the module has it now.

    Lightning reads an average by all of its names.
    """
    if _STATES[1] in checkpoint:
        own = module.state_dict()
        for key in _STATES:
            checkpoint[key] = own | checkpoint[key]


def _kept_names(module: PhaseModule, state: Iterable[str]) -> list[str]:
    names = [name for name in state if not name.startswith("reference.")]
    if module.lora is None:
        return names
    # Under all of their names: a tied output is the embedding once more.
    parameters = module.named_parameters(remove_duplicate=False)
    frozen = {name for name, value in parameters if not value.requires_grad}
    return [name for name in names if name not in frozen]
