"""Models that a program has in its hands: written into the cache once, and then read as any other.

So training leaves the given object as it is, the reference is the model as it was given, and a
folder of adapters has a model to name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from transformers import PreTrainedModel

from lit_rlhf.cache import keep
from lit_rlhf.errors import ConfigError
from lit_rlhf.models.saving import new_folder
from lit_rlhf.models.weights import weights_digest

if TYPE_CHECKING:
    ModelSource: TypeAlias = str | Path | PreTrainedModel
else:  # what the config parser offers on the command line, where there are no objects
    ModelSource = str


def model_source(model: ModelSource, option: str) -> str:
    """Return where a model can be read: its name or folder, or the cache's for one in memory.

    Args:
        model: hub name, folder, or a model of transformers with its whole weights.
        option: that it was given as, for messages.

    Raises:
        ConfigError: it is something else.
        CheckpointError: it cannot be written.
    """
    if isinstance(model, (str, Path)):
        return str(model)
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(
            f"{option}: give a hub name, a folder or a model of transformers, not "
            f"{type(model).__name__}; of a peft model its folder, or what merge_and_unload returns"
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise ConfigError(f"{option}: the model is quantized; give its name or folder instead")

    def write(folder: Path) -> str:
        whole = folder / "model"
        if not whole.is_dir():
            with new_folder(whole) as partial:
                model.save_pretrained(partial)
        return str(whole)

    inputs = {"weights": weights_digest(model.state_dict(), model.config)}
    return keep("models", inputs, write)
