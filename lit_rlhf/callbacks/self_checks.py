"""Checks on the run itself, cheap enough to be always on: each names its likely causes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from statistics import median
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_rlhf.callbacks.reference_sync import HasReference
from lit_rlhf.errors import ConfigError, TrainingError
from lit_rlhf.models.weights import spread_again
from lit_rlhf.ranges import require
from lit_rlhf.ranks import any_rank

# If the samples are the policy's own, the KL summed over the responses of an iteration is below
# minus this many nats with probability exp(-20.7) = 1e-9 at most, whatever the models: the mean of
# exp(-sum) = reference / policy under the policy is at most 1 (Markov's inequality).
LOWEST_TOTAL_KL = -20.7
_NUM_ITERATIONS = 5  # truncated responses are averaged over so many
_NUM_NORMS = 50  # a gradient norm is compared with the median of so many before it
_FEWEST_NORMS = 10
_WIDTH_OF_DTYPE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@runtime_checkable
class HasRatioCheck(Protocol):
    """A module that stops by itself where the first minibatch's ratio is not one."""

    checks_first_ratio: bool


@runtime_checkable
class HasPaddingGaps(Protocol):
    """A module that can compute numbers with and without padding."""

    def padding_gaps(self, batch: Any) -> dict[str, float]:  # noqa: ANN401 - the module's own
        """Return mean absolute differences by the name of the number."""


@runtime_checkable
class HasBatchCheck(Protocol):
    """A module that knows which batches it can read."""

    def require_batch(self, batch: Any) -> None:  # noqa: ANN401 - whatever a loader gives
        """Raise where it cannot read one."""


@runtime_checkable
class HasGradientNorm(Protocol):
    """A module that knows the gradient norm of its last step, before clipping."""

    @property
    def gradient_norm(self) -> float:
        """The norm."""


class SelfChecks(Callback):
    """Watches a run for what makes its numbers meaningless.

    Errors, since the run is surely broken: the first minibatch's ratio is not one (checked by
    `PPOModule`), the KL is far below zero, a frozen weight has changed, a score or log-probability
    depends on padding. Warnings: nearly all responses are cut at the limit, the gradient norm has
    exploded or is zero.

    Args:
        enabled: the one switch for all of them.
        max_truncated_share: warn where more responses than this share did not end by themselves,
            over five iterations.
        max_gradient_growth: warn where a gradient norm is more than so many times the median of the
            last fifty.

    Raises:
        ConfigError: a limit is out of range, or set where nothing is checked.
    """

    def __init__(
        self,
        enabled: bool = True,
        max_truncated_share: float = 0.9,
        max_gradient_growth: float = 100.0,
    ) -> None:
        require("self_checks.max_truncated_share", max_truncated_share, above=0, most=1)
        require("self_checks.max_gradient_growth", max_gradient_growth, above=1)
        if not enabled and (max_truncated_share, max_gradient_growth) != (0.9, 100.0):
            raise ConfigError(
                "self_checks: max_truncated_share and max_gradient_growth have no effect with "
                "self_checks.enabled false: leave them out, or enabled as it is"
            )
        self.enabled = enabled
        self.max_truncated_share = max_truncated_share
        self.max_gradient_growth = max_gradient_growth
        self._checksum: Tensor | None = None
        self._is_padding_checked = False
        self._truncated: deque[float] = deque(maxlen=_NUM_ITERATIONS)
        self._norms: deque[float] = deque(maxlen=_NUM_NORMS)
        self._warned: set[str] = set()
        self._first_step: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hand the switch on to the module's own check."""
        if isinstance(pl_module, HasRatioCheck):
            pl_module.checks_first_ratio = self.enabled

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the frozen weights, as loaded, and begin again."""
        self._first_step = trainer.global_step
        self._is_padding_checked = not self.enabled
        self._checksum = frozen_checksum(pl_module) if self.enabled else None
        self._truncated.clear()
        self._norms.clear()
        self._warned.clear()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Once: compare what the module computes with and without padding.

        Raises:
            TrainingError: it depends on padding.
        """
        if self._is_padding_checked or not isinstance(pl_module, HasPaddingGaps):
            return
        self._is_padding_checked = True
        if isinstance(pl_module, HasBatchCheck):  # whose own hook comes later
            pl_module.require_batch(batch)
        limit = 1e-2 if str(trainer.precision).startswith(("32", "64")) else 0.25
        with trainer.precision_plugin.forward_context():
            gaps = pl_module.padding_gaps(batch)
        worst = max(gaps, key=lambda name: _or_infinite(gaps[name]), default=None)
        is_broken = worst is not None and not gaps[worst] <= limit
        if any_rank(is_broken, pl_module.device):
            shown = f"{worst} differs by {gaps[worst]:.2g}" if is_broken and worst else "it differs"
            raise TrainingError(
                f"self-check: {shown} between a row by itself and the same row padded, at most "
                f"{limit} is rounding. Likely causes: an architecture that ignores position ids or "
                "attends to padding, or a batch normalisation. Try --model.packing_width=null; "
                "--self_checks.enabled=false trains anyway"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, *_: object
    ) -> None:
        """Look at the KL, the truncated responses and the gradient of the batch.

        Raises:
            TrainingError: the KL is far below zero.
        """
        if self._first_step is not None and trainer.global_step > self._first_step:
            self._first_step = None  # what training logs is known
            if _all_is_known(trainer):
                refuse_unknown_monitors(trainer, "training")
        if not self.enabled:
            return
        if isinstance(outputs, Mapping):
            self._check_kl(outputs.get("kl"), outputs.get("num_episodes", 0))
            self._check_truncated(outputs.get("truncated"))
        if isinstance(pl_module, HasGradientNorm):
            norm: Any = pl_module.gradient_norm  # not the Tensor that modules may hold
            self._check_gradient(float(norm))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the frozen weights with those of the start, and monitors with what was logged.

        Raises:
            ConfigError: a callback monitors a metric of validation that there is not.
            TrainingError: a frozen weight has changed.
        """
        if trainer.state.fn == TrainerFn.FITTING:
            refuse_unknown_monitors(trainer, "validation")
        self._check_frozen(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise, at the end."""
        self._check_frozen(trainer, pl_module)

    def _check_frozen(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._checksum is None:
            return
        has_changed = not torch.equal(frozen_checksum(pl_module), self._checksum)
        if any_rank(has_changed, pl_module.device):
            raise TrainingError(
                "self-check: a frozen weight (the reference, or what stands under the adapters) "
                "has changed since training began. Likely causes: a callback or a reward that "
                "writes into the model, a weight shared with one that trains, or faulty memory. "
                "KL and rewards since then are not to be trusted"
            )

    def _check_kl(self, kl: Any, num_episodes: Any) -> None:  # noqa: ANN401 - tensor or number
        if kl is None or not float(kl) * int(num_episodes) < LOWEST_TOTAL_KL:
            return
        raise TrainingError(
            f"self-check: the KL to the reference is {float(kl):.3g} nats a response over "
            f"{int(num_episodes)} responses, and a KL is never negative: chance makes it so small "
            "less than once in 1e9. Likely causes: the responses were not drawn from the policy "
            "that scores them (another temperature or other weights in the sampler), or "
            "log-probabilities that stand at other tokens than they belong to"
        )

    def _check_truncated(self, share: Any) -> None:  # noqa: ANN401 - tensor, number or None
        if share is None:
            return
        self._truncated.append(float(share))
        mean = sum(self._truncated) / len(self._truncated)
        if len(self._truncated) == _NUM_ITERATIONS and mean > self.max_truncated_share:
            self._warn_once(
                "truncated",
                f"self-check: {mean:.0%} of the responses were cut at the limit and did not end by "
                "themselves. Likely causes: model.sampling.max_new_tokens too small for the task, "
                "a policy that never learned its end-of-sequence token (SFT with "
                "data.append_eos false), or stop tokens that the prompt's format does not use",
            )

    def _check_gradient(self, norm: float) -> None:
        if not math.isfinite(norm):  # the module has skipped the step, and says so itself
            return
        usual = median(self._norms) if len(self._norms) >= _FEWEST_NORMS else None
        self._norms.append(norm)
        if usual is None:
            return
        if usual > 0 and norm > self.max_gradient_growth * usual:
            self._warn_once(
                "grown",
                f"self-check: the gradient norm is {norm:.3g}, and was {usual:.3g} (median of the "
                f"last {_NUM_NORMS} steps). Likely causes: a learning rate too high, a reward of "
                "another scale, or a row unlike the others; clipping (trainer.gradient_clip_val, "
                "in PPO model.update.max_grad_norm) bounds its effect",
            )
        elif usual == 0 and norm == 0:
            self._warn_once(
                "zero",
                f"self-check: the gradient has been zero for {_FEWEST_NORMS} steps: nothing is "
                "learned. Likely causes: every response of a group scores alike, no weight is "
                "trained, or rows in which no token counts",
            )

    def _warn_once(self, name: str, message: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            rank_zero_warn(message)


def refuse_unknown_monitors(trainer: Trainer, stage: Literal["training", "validation"]) -> None:
    """Refuse what monitors a metric that is not among those that were logged.

    Args:
        trainer: has logged all that the stage logs.
        stage: "training" looks at monitors with "train" in their name, "validation" at all others.

    Raises:
        ConfigError: a callback or schedule watches a metric that there is not.
    """
    known = sorted(trainer.callback_metrics)
    counted = ("step", "epoch")  # which every ModelCheckpoint knows
    for name, monitor in _monitors(trainer):
        if monitor in (*known, *counted) or ("train" in monitor) != (stage == "training"):
            continue
        near = get_close_matches(monitor, known, n=1)
        meant = f"did you mean '{near[0]}'" if near else f"there are: {', '.join(known)}"
        raise ConfigError(
            f"trainer.callbacks: {name} monitors '{monitor}', and {stage} has no such metric; "
            f"{meant}"
        )


def _monitors(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """Yield what cannot do without a metric, and its name."""
    for one in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it
        is_strict = isinstance(one, ModelCheckpoint) or getattr(one, "strict", False)
        if isinstance(one, EarlyStopping | ModelCheckpoint) and is_strict and one.monitor:
            yield type(one).__name__, one.monitor
    for schedule in trainer.lr_scheduler_configs:
        if schedule.reduce_on_plateau and schedule.strict and schedule.monitor:
            yield type(schedule.scheduler).__name__, schedule.monitor


def _all_is_known(trainer: Trainer) -> bool:
    """Tell whether nobody else's code logs, perhaps only at the end of an epoch."""
    own = (trainer.lightning_module, *trainer.callbacks)  # type: ignore[attr-defined]  # likewise
    return all(type(one).__module__.startswith(("lit_rlhf.", "lightning.")) for one in own)


@torch.no_grad()
def frozen_checksum(module: torch.nn.Module) -> Tensor:
    """Add up the bits of all parameters that do not train, as integers: any changed bit shows.

    What a forward has gathered of a sharded model is spread again, so that the same part is added
    up each time. Not between a forward and its backward. A reference that follows the policy is
    left out.

    Returns:
        `[n]` int64 on the CPU, a number for each such parameter, of sharded ones this rank's part.
    """
    spread_again(module)
    moved = set()
    if isinstance(module, HasReference) and module.reference_moves and module.reference is not None:
        moved = set(module.reference.parameters())
    frozen = [value for value in module.parameters() if not value.requires_grad]
    sums = [_bit_sum(value) for value in frozen if value not in moved]
    return torch.stack(sums).cpu() if sums else torch.zeros(0, dtype=torch.int64)


def _bit_sum(parameter: Tensor) -> Tensor:
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    integers = local.detach().contiguous().view(_WIDTH_OF_DTYPE[local.element_size()])
    return integers.sum(dtype=torch.int64)


def _or_infinite(gap: float) -> float:
    return math.inf if math.isnan(gap) else gap
