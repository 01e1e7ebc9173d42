"""Writing what a phase trained as a folder that transformers loads, and reading it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_rlhf.errors import CheckpointError
from lit_rlhf.models.lineage import write_lineage
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.models.saving import (
    load_saved_weights,
    new_folder,
    save_policy,
    save_reward_model,
)
from lit_rlhf.modules.sharding import gathered_weights
from lit_rlhf.ranks import from_rank_zero, world_size

if TYPE_CHECKING:
    from lit_rlhf.modules.phase import PhaseModule


def save_trained(
    module: PhaseModule, folder: Path, *, merge: bool, facts: Mapping[str, Any]
) -> None:
    """Write the trained model, see `PhaseModule.save_pretrained`.

    Raises:
        CheckpointError: the folder could not be written.
    """
    model = module.trained_model
    save: Callable[..., None] = save_policy if isinstance(model, PolicyModel) else save_reward_model
    weights = gathered_weights(model)
    fault = None
    if module.global_rank == 0:
        try:
            with new_folder(folder) as partial:
                options = {"base": module.source, "merge": merge, "weights": weights}
                save(model, module.tokenizer, partial, **options)
                if module.lineage is not None:
                    write_lineage({**module.lineage, **facts}, partial)
        except CheckpointError as error:
            fault = str(error)
    fault = from_rank_zero(fault)
    if fault is not None:
        raise CheckpointError(fault)


def load_trained(module: PhaseModule, folder: Path) -> None:
    """Put back what `save_trained` wrote, see `PhaseModule.load_saved`."""
    model = module.trained_model
    assert isinstance(model, PolicyModel)
    if module.global_rank == 0:
        load_saved_weights(model, folder)
    if world_size() > 1:
        model.load_state_dict(from_rank_zero(model.state_dict()))
