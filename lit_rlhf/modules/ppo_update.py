"""PPO's numbers: rewards a token, the targets of the update, the loss of a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.batches import RolloutBatch, TokenRows, response_window
from lit_rlhf.models.policy import TokenScores
from lit_rlhf.modules.metrics import NamedMeans
from lit_rlhf.objectives import (
    MissingEOS,
    Moments,
    RewardedTokens,
    kl_k1,
    kl_k2,
    token_rewards,
    truncated_importance_weights,
)
from lit_rlhf.objectives.policy_gradient import clipped_policy_loss, clipped_value_loss
from lit_rlhf.ranges import require
from lit_rlhf.ranks import sum_over_ranks


@dataclass(frozen=True)
class UpdateConfig:
    """The numbers of PPO's update. Defaults: lm-human-preference-details, unless said.

    Attributes:
        num_epochs: passes over a rollout.
        num_minibatches: optimizer steps in a pass.
        micro_batch_size: rows in one forward of each process, null for whole minibatches.
        micro_batch_tokens: tokens of prompts and responses in it at most (a longer row is by
            itself), null for any number. Which rows share a forward follows their lengths.
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
    micro_batch_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of range, by name."""
        require("model.update.num_epochs", self.num_epochs, least=1)
        require("model.update.num_minibatches", self.num_minibatches, least=1)
        require("model.update.micro_batch_size", self.micro_batch_size, least=1, is_optional=True)
        tokens = self.micro_batch_tokens
        require("model.update.micro_batch_tokens", tokens, least=1, is_optional=True)
        require("model.update.clip_range", self.clip_range, above=0)
        require("model.update.value_clip_range", self.value_clip_range, above=0, is_optional=True)
        require("model.update.value_coef", self.value_coef, least=0)
        require("model.update.entropy_coef", self.entropy_coef, least=0)
        require("model.update.max_grad_norm", self.max_grad_norm, above=0, is_optional=True)
        require("model.update.max_first_log_ratio", self.max_first_log_ratio, above=0)
        cap = self.sampler_correction_cap
        require("model.update.sampler_correction_cap", cap, least=1, is_optional=True)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of one iteration."""
        return self.num_epochs * self.num_minibatches


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


def rewarded_tokens(
    rollout: RolloutBatch, missing_eos: MissingEOS, kl_coef: float
) -> RewardedTokens:
    """Return the responses with a reward a token, and their moments; call it on all processes.

    Args:
        rollout: `B` samples.
        missing_eos: what a response scores that did not end by itself.
        kl_coef: score per nat.
    """
    tokens = RewardedTokens(
        shape_rewards(rollout, missing_eos, kl_coef),
        rollout.samples.response_mask,
        rollout.samples.group_ids,
        rollout.values,
        rollout.greedy_scores,
    )
    moments = sum_over_ranks(torch.stack(tokens.own_moments()))
    return tokens._replace(moments=Moments(*moments))


def shape_rewards(rollout: RolloutBatch, missing_eos: MissingEOS, kl_coef: float) -> Tensor:
    """Return a reward a token `[B, T]`: the KL penalty, and the score at the last one.

    Args:
        rollout: `B` samples; without reference log-probabilities there is no penalty.
        missing_eos: what a response scores that did not end by itself.
        kl_coef: score per nat.
    """
    scores = missing_eos.apply(rollout.scores, rollout.samples.finished)
    if rollout.reference_logprobs is None:  # no penalty
        token_kl, kl_coef = torch.zeros_like(rollout.old_logprobs), 0.0
    else:
        token_kl = kl_k1(rollout.old_logprobs, rollout.reference_logprobs)
    return token_rewards(scores, token_kl, rollout.samples.response_mask, kl_coef)


def make_targets(
    rollout: RolloutBatch,
    advantages: Tensor,
    returns: Tensor | None,
    *,
    sampler_correction_cap: float | None,
) -> UpdateTargets:
    """Put together what the update compares each minibatch with.

    Args:
        rollout: `B` samples.
        advantages: `[B, T]`.
        returns: `[B, T]` or None without a critic.
        sampler_correction_cap: see `UpdateConfig`.
    """
    samples, old = rollout.samples, rollout.old_logprobs
    weights = None
    if sampler_correction_cap is not None:
        weights, _ = truncated_importance_weights(
            old, samples.sampler_logprobs, cap=sampler_correction_cap
        )
    rows, lengths, mask = samples.rows, samples.prompt_lengths, samples.response_mask
    return UpdateTargets(rows, lengths, mask, old, rollout.values, advantages, returns, weights)


def minibatch_loss(
    targets: UpdateTargets,
    forward: TokenScores,
    config: UpdateConfig,
    statistics: UpdateStatistics,
) -> Tensor:
    """Add up PPO's loss over the response tokens of a micro-batch.

    `sum_t [weight * policy loss + value_coef * value loss - entropy_coef * entropy]`, the weight
    being that of the sampler's correction, else 1; the caller divides by the tokens of the whole
    minibatch over all ranks. One joint loss, so that policy and critic share a backward.

    Args:
        targets: of these rows.
        forward: of policy and critic as they are now; entropy only with a bonus.
        config: clipping and coefficients.
        statistics: counted into, without gradient.

    Returns:
        Scalar sum.
    """
    mask, width = targets.response_mask, targets.response_mask.shape[1]
    new = response_window(forward.logprobs, targets.prompt_lengths, width)
    policy = clipped_policy_loss(
        new, targets.old_logprobs, targets.advantages, clip_range=config.clip_range
    )
    losses = policy.losses
    if targets.sampler_weights is not None:
        losses = losses * targets.sampler_weights
    total = (losses * mask).sum()
    seen = {"policy_loss": losses, "clip_fraction": policy.is_clipped}
    if forward.values is not None and targets.old_values is not None:
        assert targets.returns is not None  # an estimator that reads values makes returns
        value = clipped_value_loss(
            response_window(forward.values, targets.prompt_lengths, width),
            targets.old_values,
            targets.returns,
            clip_range=config.value_clip_range,
        )
        total = total + config.value_coef * (value.losses * mask).sum()
        seen |= {"value_loss": value.losses, "value_clip_fraction": value.is_clipped}
    if forward.entropy is not None:
        entropy = response_window(forward.entropy, targets.prompt_lengths, width)
        total = total - config.entropy_coef * (entropy * mask).sum()
    seen["approximate_kl"] = kl_k2(new, targets.old_logprobs)
    statistics.means.update(seen, mask)
    largest = float(((new.detach() - targets.old_logprobs) * mask).abs().max())
    statistics.largest_log_ratio = max(statistics.largest_log_ratio, largest)
    return total


@dataclass
class UpdateStatistics:
    """What an update is told by.

    Attributes:
        means: over the response tokens of all micro-batches, by the names of their metrics.
        num_steps: optimizer steps so far.
        largest_log_ratio: largest |log ratio| seen so far.
        first_log_ratio: the same in the first minibatch, before any step.
        gradient_norms: of each step, before clipping.
    """

    means: NamedMeans = field(default_factory=NamedMeans)
    num_steps: int = 0
    largest_log_ratio: float = 0.0
    first_log_ratio: float = 0.0
    gradient_norms: list[float] = field(default_factory=list)

    def report(self) -> dict[str, float]:
        """Return what is logged of the update, the same on all processes."""
        report = self.means.compute()
        report["first_log_ratio"] = self.first_log_ratio
        report["optimizer_steps"] = float(self.num_steps)
        norms = self.gradient_norms
        report["grad_norm"] = sum(norms) / len(norms) if norms else 0.0
        return report
