"""How the phases take optimizer steps: a loss over all ranks, and no step that is not finite."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from lit_rlhf.modules.number_guard import NumberGuard, gradient_squares
from lit_rlhf.ranks import any_rank, sum_over_ranks


class SteppingModule(lightning.LightningModule, abc.ABC):
    """A LightningModule whose steps are means over all that counts, on all ranks.

    Args:
        max_skipped_steps: the run stops when more steps than these had a number that was not
            finite; up to then such a step is left out.
    """

    phase: str  # its name on the command line and in metrics

    def __init__(self, max_skipped_steps: int) -> None:
        super().__init__()
        self.guard = NumberGuard(max_skipped_steps)
        self._accumulated_count = 0.0

    @property
    @abc.abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model that is trained."""

    @property
    def gradient_norm(self) -> float:
        """The norm of all gradients in the last step, before clipping; 0 before the first."""
        return self.guard.gradient_norm

    def global_mean(self, total: Tensor, count: Tensor) -> Tensor:
        """Return a loss whose average over ranks is the global `sum(total) / sum(count)`.

        DDP averages gradients over ranks; a mean of each rank's own mean would weigh tokens by
        how few of them a rank has.
        """
        global_count = sum_over_ranks(count.to(total.dtype))
        global_count = global_count.clamp(min=1e-8)  # guards a batch in which nothing counts
        return total * (self.trainer.world_size / global_count)

    def step_loss(self, mean: Tensor, count: Tensor) -> Tensor:
        """Return what `training_step` returns, so that a step is a mean over all that it counts.

        Lightning averages the batches of `trainer.accumulate_grad_batches` as if each counted the
        same. Here each enters by its sum, and the gradient is divided by the count of them all
        before it is clipped: 8 batches of one row make the step of one batch of 8 rows.

        Args:
            mean: of this batch over all ranks, from `global_mean`.
            count: what counts in this rank's batch.
        """
        num_batches = self.trainer.accumulate_grad_batches
        if num_batches == 1:
            return mean
        global_count = sum_over_ranks(count.to(mean.dtype))
        self._accumulated_count += float(global_count)
        return mean * (global_count * num_batches)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide accumulated gradients by all that they count; skip a step that is not finite."""
        if self._accumulated_count:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad /= self._accumulated_count
            self._accumulated_count = 0.0
        if self.automatic_optimization:
            self.allow_step()
            self.log(f"train/{self.phase}/grad_norm", self.guard.gradient_norm)
            self.log(f"train/{self.phase}/skipped_steps", float(self.guard.num_skipped))

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take the step, and drop the gradients before the next forward needs room.

        Lightning drops them after the next forward, which would be beside them at its peak.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients as Lightning does, also before a fused step.

        Its mixed precision refuses those for a scaler's sake, even where there is none.
        """
        algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
        plugin = self.trainer.precision_plugin
        Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0.0, algorithm)

    @contextmanager
    def reduces_gradients(self, *, is_last: bool) -> Iterator[None]:
        """Run a backward pass of manual optimization; under ddp, only the last one is added up.

        Sharded gradients (fsdp2) are added up each time: kept whole until the last one, they would
        take the memory that sharding saves.

        Args:
            is_last: no other backward pass is before the optimizer's step.
        """
        model = self.trainer.strategy.model
        if isinstance(model, DistributedDataParallel) and not is_last:
            with model.no_sync():
                yield
        else:
            yield

    @property
    def gradient_scale(self) -> float:
        """By how much the gradients of manual optimization are too large before the step.

        Under 16-mixed the scaler takes its scale off within the step. Automatic optimization looks
        at the gradients behind that.
        """
        scaler = self.trainer.scaler
        if scaler is None or self.automatic_optimization:
            return 1.0
        return float(scaler.get_scale())

    def allow_step(self) -> bool:
        """Decide, the same on all processes, whether the gradients may move the weights.

        Where a watched number or a gradient is not finite, the gradients are dropped: an optimizer
        that then takes its step changes neither weights nor its state.
        Infinite gradients under a gradient scaler (16-mixed) are the scaler's to skip, and are not
        counted.

        Raises:
            TrainingError: too many steps were skipped.
        """
        own_squares, whole_squares = gradient_squares(self.parameters(), self.device)
        scaler = self.trainer.scaler
        is_broken = self.guard.is_broken.to(self.device)
        if scaler is None:
            is_broken = is_broken + (~torch.isfinite(own_squares + whole_squares)).float()
        sharded, num_broken = sum_over_ranks(torch.stack([own_squares, is_broken]))
        norm, num_broken = torch.stack([(sharded + whole_squares).sqrt(), num_broken]).tolist()
        norm /= self.gradient_scale
        self.guard.gradient_norm = norm
        if num_broken == 0:
            self.guard.forget()
            return True
        for parameter in self.parameters():
            parameter.grad = None
        self.skip_step()
        return False

    def is_sound(self) -> bool:
        """Skip the step, on all processes, where a number that was watched so far is not finite.

        Raises:
            TrainingError: too many steps were skipped.
        """
        if any_rank(bool(self.guard.is_broken), self.device):
            self.skip_step()
            return False
        self.guard.forget()
        return True

    def skip_step(self) -> None:
        """Count a step that is not taken and keep its rows; call it on all processes.

        Raises:
            TrainingError: too many steps were skipped.
        """
        folder = self.trainer.log_dir or self.trainer.default_root_dir
        self.guard.skip(self.trainer.global_step, Path(folder), self.tokenizer)
