"""What a run is given from Python: batches of its phase's kind, and the same on all processes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lit_rlhf.data import DATA_MODULES
from lit_rlhf.errors import ConfigError
from lit_rlhf.ranks import of_all_ranks

if TYPE_CHECKING:
    from lit_rlhf.modules.phase import PhaseModule


def require_own_batch(module: PhaseModule, batch: object) -> None:
    """Refuse a batch of a plain loader, or of another phase's data module.

    A step says by its annotation what it reads; of one without, nothing is known.

    Raises:
        ConfigError: it is of another kind; names the data module to give.
    """
    step = module.training_step if module.trainer.training else module.validation_step
    hint = step.__annotations__.get("batch")
    expected = vars(sys.modules[step.__module__]).get(hint) if isinstance(hint, str) else hint
    if not isinstance(expected, type) or isinstance(batch, expected):
        return
    data = DATA_MODULES[module.phase.replace("_", "-")].__name__
    raise ConfigError(
        f"{type(module).__name__} reads batches of {expected.__name__}, not {type(batch).__name__}:"
        f" give the Trainer a {data}(tokenizer=..., train=...), which takes a file, a hub name, a "
        "list of rows or a datasets.Dataset, in place of a loader or data module of another kind"
    )


def require_same_models(models: Mapping[str, str]) -> None:
    """Refuse models from memory that are not the same on all processes.

    Args:
        models: option -> the folder in the cache, which is named by the weights.

    Raises:
        ConfigError: the weights of one differ.
    """
    everywhere = of_all_ranks({option: Path(path).parent.name for option, path in models.items()})
    for option in models:
        if len({digests.get(option) for digests in everywhere}) > 1:
            raise ConfigError(
                f"model.{option}: the processes were given models with different weights; make it "
                "behind seed_everything(...), or save it once and give its folder"
            )
