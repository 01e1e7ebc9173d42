"""The average of the weights over a run's steps, equal or exponential."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lit_rlhf.ranges import require


class AveragedWeights(WeightAveraging):
    """Lightning's `WeightAveraging`, of what trains alone.

    Lightning's own default averages a run's counters, one of which seeds PPO's samples. Its
    `EMAWeightAveraging` rounds frozen weights, of which the self-checks know every bit. torch's
    function for many tensors leaves equal numbers as they are.

    Args:
        decay: the share that an exponential moving average keeps of itself at each update, such as
            0.999; None for the equal average, which is what SWA computes.
        update_every_n_steps: optimizer steps from one update to the next.
        update_starting_at_step: the first step that counts, from 0.
        device: where the average is kept, such as "cpu"; None for that of the model.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(
        self,
        decay: float | None = None,
        update_every_n_steps: int = 1,
        update_starting_at_step: int = 0,
        device: str | None = None,
    ) -> None:
        options: dict[str, Any] = {}
        if decay is not None:
            require("AveragedWeights.decay", decay, above=0, below=1)
            options["multi_avg_fn"] = get_ema_multi_avg_fn(decay)
        require("AveragedWeights.update_every_n_steps", update_every_n_steps, least=1)
        super().__init__(device, use_buffers=False, **options)
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Tell whether the weights behind a step, counted from 0, go into the average."""
        return (
            step_idx is not None
            and step_idx >= self.update_starting_at_step
            and step_idx % self.update_every_n_steps == 0
        )
