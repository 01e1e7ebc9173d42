"""The loss of one micro-batch of PPO, and what is counted while updating."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.batches import RolloutBatch, TokenRows, response_window
from lit_rlhf.errors import ConfigError, TrainingError
from lit_rlhf.objectives import (
    AdvantageEstimator,
    MissingEOS,
    Moments,
    kl_k1,
    masked_moments,
    token_rewards,
    whiten,
)
from lit_rlhf.objectives.policy_gradient import (
    approximate_kl,
    clipped_policy_loss,
    clipped_value_loss,
)
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class UpdateSettings:
    """The numbers of PPO's update. Defaults: lm-human-preference-details, unless said.

    Attributes:
        num_epochs: passes over a rollout.
        num_minibatches: optimizer steps in a pass.
        micro_batch_size: rows in one forward of each process, null for whole minibatches.
        clip_range: how far the ratio may leave 1 before the gain stops counting.
        value_clip_range: the same for values, null for none.
        value_coef: weight of the value loss.
        entropy_coef: weight of the entropy bonus.
        max_grad_norm: gradients are scaled down to this norm, null for none. (OpenAI's 2019 code
            does not clip; most later code clips at 1.)
        max_first_log_ratio: the run stops when the first minibatch's largest |log ratio| is not
            below this.
        sampler_correction_cap: weigh each token's policy loss by how much likelier the trainer
            finds it than the sampler did, at most by this; null for no weights.
    """

    num_epochs: int = 4
    num_minibatches: int = 1
    micro_batch_size: int | None = None
    clip_range: float = 0.2
    value_clip_range: float | None = 0.2
    value_coef: float = 0.1
    entropy_coef: float = 0.0
    max_grad_norm: float | None = 1.0
    max_first_log_ratio: float = 1e-3
    sampler_correction_cap: float | None = None

    def __post_init__(self) -> None:
        """Refuse counts below one, by name."""
        for name in ("num_epochs", "num_minibatches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"update.{name} must be at least 1, got {getattr(self, name)}")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ConfigError(
                f"update.micro_batch_size must be at least 1 or null, got {self.micro_batch_size}"
            )
        require("model.update.clip_range", self.clip_range, above=0)
        require("model.update.value_clip_range", self.value_clip_range, above=0, is_optional=True)
        require("model.update.value_coef", self.value_coef, least=0)
        require("model.update.entropy_coef", self.entropy_coef, least=0)
        require("model.update.max_grad_norm", self.max_grad_norm, above=0, is_optional=True)
        require("model.update.max_first_log_ratio", self.max_first_log_ratio, above=0)
        if self.sampler_correction_cap is not None and not self.sampler_correction_cap >= 1:
            raise ConfigError(
                "update.sampler_correction_cap must be at least 1 (2 is usual) or null, got "
                f"{self.sampler_correction_cap}"
            )


class Forward(NamedTuple):
    """One look at the response tokens of `b` rows: `[b, L]` each, aligned with the rows.

    Attributes:
        logprobs: under the policy.
        values: of the critic, or None without one.
        entropy: of the policy's distributions, or None where it is not asked for.
    """

    logprobs: Tensor
    values: Tensor | None
    entropy: Tensor | None


class UpdateTargets(NamedTuple):
    """What every minibatch is compared with; fixed during the update.

    Attributes:
        rows: `B` rows of up to `L` tokens.
        prompt_lengths: `[B]`.
        response_mask: `[B, T]` bool.
        old_logprobs: `[B, T]`.
        old_values: `[B, T]` or None.
        advantages: `[B, T]`.
        returns: `[B, T]` or None.
        sampler_weights: `[B, T]` on the policy loss, or None.
    """

    rows: TokenRows
    prompt_lengths: Tensor
    response_mask: Tensor
    old_logprobs: Tensor
    old_values: Tensor | None
    advantages: Tensor
    returns: Tensor | None
    sampler_weights: Tensor | None = None


def select_rows(rows: TokenRows, indices: Tensor) -> TokenRows:
    """Return the rows of a micro-batch; of an empty one, a row in which nothing counts.

    Processes that share gradients or weights compute together: one without rows of its own has to
    take part.
    """
    if len(indices) == 0:
        return rows.select(torch.zeros(1, dtype=torch.int64, device=indices.device)).silenced()
    return rows.select(indices)


def select_targets(targets: UpdateTargets, indices: Tensor) -> UpdateTargets:
    """Return the targets of a micro-batch's rows `[b]`, as `select_rows` does."""
    rows = select_rows(targets.rows, indices)
    if len(indices) == 0:
        nothing = torch.zeros_like(targets.response_mask)
        targets, indices = targets._replace(response_mask=nothing), indices.new_zeros(1)
    others = (None if tensor is None else tensor[indices] for tensor in targets[1:])
    return UpdateTargets(rows, *others)  # type: ignore[arg-type]  # as it was


def with_old_logprobs(
    targets: UpdateTargets, indices: Tensor, selected: UpdateTargets, forward: Forward
) -> UpdateTargets:
    """Take the first look at a micro-batch as its old log-probabilities, here and in the whole.

    Args:
        targets: of all rows, written to.
        indices: `[b]` the rows of the micro-batch.
        selected: their targets, from `select_targets`.
        forward: of the policy before its first step.

    Returns:
        The micro-batch's targets.
    """
    width = targets.response_mask.shape[1]
    old = response_window(forward.logprobs, selected.prompt_lengths, width).detach()
    if len(indices):  # else a row in which nothing counts
        targets.old_logprobs[indices.to(old.device)] = old
    return selected._replace(old_logprobs=old)


def compute_targets(
    rollout: RolloutBatch, advantage: AdvantageEstimator, missing_eos: MissingEOS, kl_coef: float
) -> UpdateTargets:
    """Turn scores and KL into advantages and returns.

    Args:
        rollout: `B` samples; without reference log-probabilities the KL counts as zero.
        advantage: the estimator.
        missing_eos: what a response scores that did not end by itself.
        kl_coef: score per nat.

    Returns:
        The targets, advantages not whitened.
    """
    samples = rollout.samples
    token_kl = torch.zeros_like(rollout.old_logprobs)
    if rollout.reference_logprobs is not None:
        token_kl = kl_k1(rollout.old_logprobs, rollout.reference_logprobs)
    scores = missing_eos.apply(rollout.scores, samples.finished)
    rewards = token_rewards(scores, token_kl, samples.response_mask, kl_coef)
    advantages, returns = advantage(
        rewards, rollout.values, samples.response_mask, samples.group_ids
    )
    return UpdateTargets(
        samples.rows,
        samples.prompt_lengths,
        samples.response_mask,
        rollout.old_logprobs,
        rollout.values,
        advantages,
        returns,
    )


def whiten_advantages(
    targets: UpdateTargets, sum_over_ranks: Callable[[Tensor], Tensor]
) -> UpdateTargets:
    """Scale the advantages to mean 0, deviation 1 over the response tokens of all ranks."""
    local = masked_moments(targets.advantages, targets.response_mask)
    moments = Moments(*sum_over_ranks(torch.stack(local)))
    whitened = whiten(targets.advantages, targets.response_mask, moments)
    return targets._replace(advantages=whitened)


@dataclass
class UpdateStatistics:
    """Sums over tokens and micro-batches, reduced over ranks at the end.

    Attributes:
        sums: `[6]` float64: tokens, policy loss, value loss, approximate KL, clipped ratios,
            clipped values.
        num_steps: optimizer steps so far.
        largest_log_ratio: largest |log ratio| seen so far.
        first_log_ratio: the same in the first minibatch, before any step.
        gradient_norms: of each step, before clipping.
    """

    sums: Tensor = field(default_factory=lambda: torch.zeros(6, dtype=torch.float64))
    num_steps: int = 0
    largest_log_ratio: float = 0.0
    first_log_ratio: float = 0.0
    gradient_norms: list[float] = field(default_factory=list)

    def means(self, sums: Tensor) -> dict[str, float]:
        """Return means per token out of sums over all ranks."""
        num_tokens, *totals = sums.tolist()
        names = ("policy_loss", "value_loss", "approximate_kl", "clip_fraction")
        return {
            name: total / max(1.0, num_tokens)
            for name, total in zip((*names, "value_clip_fraction"), totals, strict=True)
        }


def minibatch_loss(
    targets: UpdateTargets,
    forward: Forward,
    settings: UpdateSettings,
    statistics: UpdateStatistics,
) -> Tensor:
    """Add up the loss over the response tokens of a micro-batch.

    `sum_t [weight * policy loss + value_coef * value loss - entropy_coef * entropy]`, the weight
    being that of the sampler's correction, else 1; the caller divides by the tokens of the whole
    minibatch over all ranks. One joint loss, so that policy and critic share a backward.

    Args:
        targets: of these rows.
        forward: of policy and critic as they are now; entropy only with a bonus.
        settings: clipping and coefficients.
        statistics: counted into, without gradient.

    Returns:
        Scalar sum.
    """
    logprobs, values, entropy = forward
    mask, width = targets.response_mask, targets.response_mask.shape[1]
    new = response_window(logprobs, targets.prompt_lengths, width)
    policy = clipped_policy_loss(
        new, targets.old_logprobs, targets.advantages, clip_range=settings.clip_range
    )
    losses = policy.losses
    if targets.sampler_weights is not None:
        losses = losses * targets.sampler_weights
    total = (losses * mask).sum()
    parts = [mask.sum(), total, torch.zeros_like(total)]
    parts.append((approximate_kl(new, targets.old_logprobs) * mask).sum())
    parts += [(policy.is_clipped & mask).sum(), torch.zeros_like(total)]
    if values is not None and targets.old_values is not None and targets.returns is not None:
        value = clipped_value_loss(
            response_window(values, targets.prompt_lengths, width),
            targets.old_values,
            targets.returns,
            clip_range=settings.value_clip_range,
        )
        value_total = (value.losses * mask).sum()
        total = total + settings.value_coef * value_total
        parts[2], parts[5] = value_total, (value.is_clipped & mask).sum()
    if entropy is not None:
        total = total - settings.entropy_coef * entropy.sum()
    statistics.sums += torch.stack([part.detach().double().cpu() for part in parts])
    log_ratio = ((new.detach() - targets.old_logprobs) * mask).abs().max()
    statistics.largest_log_ratio = max(statistics.largest_log_ratio, float(log_ratio))
    return total


@torch.no_grad()
def update_numbers(targets: UpdateTargets, forward: Forward) -> dict[str, Tensor | None]:
    """Return what a micro-batch computed of each row, by the names that reports give it."""
    width = targets.response_mask.shape[1]
    new = response_window(forward.logprobs, targets.prompt_lengths, width)
    ratio = ((new - targets.old_logprobs) * targets.response_mask).exp()
    numbers = {"logprobs": forward.logprobs, "ratio": ratio, "advantages": targets.advantages}
    return {**numbers, "values": forward.values, "returns": targets.returns}


def check_first_ratio(largest: float, limit: float) -> None:
    """Stop where the training forward disagrees with itself: the policy has not moved yet.

    Args:
        largest: |log ratio| of the first minibatch, over all ranks.
        limit: it must be below.

    Raises:
        TrainingError: it is not; the message names the likely causes.
    """
    if not largest < limit:
        raise TrainingError(
            f"the first minibatch's largest |log ratio| is {largest:.2e}, not below {limit:.0e}: "
            "the training forward disagrees with itself. Likely causes: dropout, weights changed "
            "between rollout and update, or a kernel that is not deterministic."
        )
