"""PPO's numbers: rewards a token, targets, the loss of a micro-batch, what is told of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.batches import RolloutBatch, TokenRows, response_window
from lit_rlhf.errors import TrainingError
from lit_rlhf.models.policy import TokenScores
from lit_rlhf.modules.metrics import NamedMeans
from lit_rlhf.objectives import (
    KLPenalty,
    LossAggregation,
    Moments,
    PolicyLoss,
    PolicyTokens,
    PPOClip,
    RewardedTokens,
    TokenMean,
    clipped_value_loss,
    kl_k2,
    token_rewards,
    truncated_importance_weights,
)
from lit_rlhf.ranges import require
from lit_rlhf.ranks import largest_over_ranks, sum_over_ranks
from lit_rlhf.rollout import UpdatePlan


@dataclass(frozen=True)
class UpdateConfig:
    """The numbers of PPO's update. Defaults: lm-human-preference-details, unless said.

    Attributes:
        num_epochs: passes over a rollout.
        num_minibatches: optimizer steps in a pass.
        micro_batch_size: rows in one forward of each process, null for whole minibatches.
        micro_batch_tokens: tokens of prompts and responses in it at most (a longer row is by
            itself), null for any number. Which rows share a forward follows their lengths.
        policy_loss: what the ratio of new to old policy counts, by `class_path` or short name.
        aggregation: how the losses of tokens become one, by `class_path` or short name.
        value_clip_range: how far a value may leave its old one before the gain stops counting, null
            for any.
        value_coef: weight of the value loss.
        entropy_coef: weight of the entropy bonus.
        max_grad_norm: gradients are scaled down to this norm, null for none. (OpenAI's 2019 code
            does not clip; most later code clips at 1.)
        max_first_log_ratio: the run stops when the first minibatch's largest |log ratio| is not
            below this.
        pretraining_coef: weight of the loss of `data.pretraining` (PPO-ptx), nats a token.
        critic_warmup_iterations: the first so many iterations train the critic alone.
        sampler_correction_cap: weigh each token's policy loss by how much likelier the trainer
            finds it than the sampler did, at most by this; null for no weights.
    """

    num_epochs: int = 4
    num_minibatches: int = 1
    micro_batch_size: int | None = None
    policy_loss: PolicyLoss = PPOClip()
    aggregation: LossAggregation = TokenMean()
    value_clip_range: float | None = 0.2
    value_coef: float = 0.1
    entropy_coef: float = 0.0
    max_grad_norm: float | None = 1.0
    max_first_log_ratio: float = 1e-3
    sampler_correction_cap: float | None = None
    micro_batch_tokens: int | None = None
    pretraining_coef: float = 0.0
    critic_warmup_iterations: int = 0

    def __post_init__(self) -> None:
        """Refuse what is out of range, by name."""
        require("model.update.num_epochs", self.num_epochs, least=1)
        require("model.update.num_minibatches", self.num_minibatches, least=1)
        require("model.update.micro_batch_size", self.micro_batch_size, least=1, is_optional=True)
        tokens = self.micro_batch_tokens
        require("model.update.micro_batch_tokens", tokens, least=1, is_optional=True)
        require("model.update.value_clip_range", self.value_clip_range, above=0, is_optional=True)
        require("model.update.value_coef", self.value_coef, least=0)
        require("model.update.entropy_coef", self.entropy_coef, least=0)
        require("model.update.max_grad_norm", self.max_grad_norm, above=0, is_optional=True)
        require("model.update.max_first_log_ratio", self.max_first_log_ratio, above=0)
        cap = self.sampler_correction_cap
        require("model.update.sampler_correction_cap", cap, least=1, is_optional=True)
        require("model.update.pretraining_coef", self.pretraining_coef, least=0)
        require("model.update.critic_warmup_iterations", self.critic_warmup_iterations, least=0)

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
        reference_logprobs: `[B, T]` where the loss has a KL penalty, else None.
    """

    rows: TokenRows
    prompt_lengths: Tensor
    response_mask: Tensor
    old_logprobs: Tensor
    old_values: Tensor | None
    advantages: Tensor
    returns: Tensor | None
    sampler_weights: Tensor | None = None
    reference_logprobs: Tensor | None = None

    def select(self, indices: Tensor) -> UpdateTargets:
        """Return those of a micro-batch's rows `[b]`, as `TokenRows.select_or_stand_in` does."""
        rows, targets = self.rows.select_or_stand_in(indices), self
        if len(indices) == 0:
            nothing = torch.zeros_like(self.response_mask)
            targets, indices = self._replace(response_mask=nothing), indices.new_zeros(1)
        others = (None if tensor is None else tensor[indices] for tensor in targets[1:])
        return UpdateTargets(rows, *others)  # type: ignore[arg-type]  # as it was


def rewarded_tokens(
    rollout: RolloutBatch, scores: Tensor, penalty: KLPenalty | None, kl_coef: float
) -> RewardedTokens:
    """Return the responses with a reward a token, and their moments; call it on all processes.

    Args:
        rollout: `B` samples.
        scores: `[B]`, behind the rules for cut and overlong responses; of the last token each.
        penalty: in the reward, in the loss, or None.
        kl_coef: score per nat.
    """
    samples, old, reference = rollout.samples, rollout.old_logprobs, rollout.reference_logprobs
    token_kl, charge = torch.zeros_like(old), 0.0
    if penalty is not None and penalty.place == "reward" and reference is not None:
        token_kl, charge = penalty.of_tokens(old, reference), kl_coef
    tokens = RewardedTokens(
        token_rewards(scores, token_kl, samples.response_mask, charge),
        samples.response_mask,
        samples.group_ids,
        rollout.values,
        rollout.greedy_scores,
    )
    moments = sum_over_ranks(torch.stack(tokens.own_moments()))
    return tokens._replace(moments=Moments(*moments))


def make_targets(
    rollout: RolloutBatch,
    advantages: Tensor,
    returns: Tensor | None,
    *,
    sampler_correction_cap: float | None,
    penalty: KLPenalty | None,
) -> UpdateTargets:
    """Put together what the update compares each minibatch with.

    Args:
        rollout: `B` samples.
        advantages: `[B, T]`.
        returns: `[B, T]` or None without a critic.
        sampler_correction_cap: see `UpdateConfig`.
        penalty: in the reward, in the loss, or None.
    """
    samples, old = rollout.samples, rollout.old_logprobs
    weights = None
    if sampler_correction_cap is not None:
        weights, _ = truncated_importance_weights(
            old, samples.sampler_logprobs, cap=sampler_correction_cap
        )
    rows, lengths, mask = samples.rows, samples.prompt_lengths, samples.response_mask
    reference = rollout.reference_logprobs if penalty and penalty.place == "loss" else None
    return UpdateTargets(
        rows, lengths, mask, old, rollout.values, advantages, returns, weights, reference
    )


def minibatch_loss(
    targets: UpdateTargets,
    forward: TokenScores,
    config: UpdateConfig,
    statistics: UpdateStatistics,
    kl: tuple[KLPenalty, float] | None = None,
) -> Tensor:
    """Add up PPO's loss over the response tokens of a micro-batch.

    `sum_t weight of aggregation * [sampler's weight * policy loss + kl_coef * KL + value_coef *
    value loss - entropy_coef * entropy]`; the caller divides by the aggregation's size of the whole
    minibatch over all ranks. One joint loss, so that policy and critic share a backward.

    Args:
        targets: of these rows.
        forward: of policy and critic as they are now; entropy only with a bonus.
        config: clipping and coefficients.
        statistics: counted into, without gradient.
        kl: the penalty and its coefficient, where it is in the loss.

    Returns:
        Scalar sum.
    """
    mask, width = targets.response_mask, targets.response_mask.shape[1]
    new = response_window(forward.logprobs, targets.prompt_lengths, width)
    weights = config.aggregation.weights(mask)
    policy = config.policy_loss(PolicyTokens(new, targets.old_logprobs, targets.advantages, mask))
    losses = policy.losses
    if targets.sampler_weights is not None:
        losses = losses * targets.sampler_weights
    total = (losses * weights).sum()
    seen = {"policy_loss": losses, "clip_fraction": policy.is_clipped}
    if kl is not None and targets.reference_logprobs is not None:
        penalty, kl_coef = kl
        token_kl = penalty.loss(new, targets.old_logprobs, targets.reference_logprobs)
        total = total + kl_coef * (token_kl * weights).sum()
        seen["kl_loss"] = token_kl
    if forward.values is not None and targets.old_values is not None:
        assert targets.returns is not None  # an estimator that reads values makes returns
        value = clipped_value_loss(
            response_window(forward.values, targets.prompt_lengths, width),
            targets.old_values,
            targets.returns,
            clip_range=config.value_clip_range,
        )
        total = total + config.value_coef * (value.losses * weights).sum()
        seen |= {"value_loss": value.losses, "value_clip_fraction": value.is_clipped}
    if forward.entropy is not None:
        entropy = response_window(forward.entropy, targets.prompt_lengths, width)
        total = total - config.entropy_coef * (entropy * weights).sum()
    seen["approximate_kl"] = kl_k2(new, targets.old_logprobs)
    statistics.means.update(seen, mask)
    largest = ((new.detach() - targets.old_logprobs) * mask).abs().max()
    # Of a NaN the other one is taken: a broken step is skipped, and is no disagreement.
    statistics.largest_log_ratio = torch.fmax(
        statistics.largest_log_ratio.to(largest.device), largest
    )
    return total


@torch.no_grad()
def update_numbers(targets: UpdateTargets, forward: TokenScores) -> dict[str, Tensor | None]:
    """Return what a micro-batch computed of each row, by the names that reports give it."""
    width = targets.response_mask.shape[1]
    new = response_window(forward.logprobs, targets.prompt_lengths, width)
    return {
        "logprobs": forward.logprobs,
        "ratio": ((new - targets.old_logprobs) * targets.response_mask).exp(),
        "advantages": targets.advantages,
        "values": forward.values,
        "returns": targets.returns,
    }


@dataclass
class UpdateStatistics:
    """What an update is told by.

    Attributes:
        means: over the response tokens of all micro-batches, by the names of their metrics.
        num_steps: optimizer steps so far.
        largest_log_ratio: largest |log ratio| seen so far, where it was computed: reading it makes
            the host wait for a GPU.
        first_log_ratio: the same in the first minibatch, before any step.
        gradient_norms: of each step, before clipping.
    """

    means: NamedMeans = field(default_factory=NamedMeans)
    num_steps: int = 0
    largest_log_ratio: Tensor = field(default_factory=lambda: torch.zeros(()))
    first_log_ratio: float = 0.0
    gradient_norms: list[float] = field(default_factory=list)

    def check_first_ratio(self, limit: float, device: torch.device) -> None:
        """Stop where the training forward disagrees with itself: the policy has not moved yet.

        Args:
            limit: |log ratio| of the first minibatch must be below, on all ranks.
            device: of this process.

        Raises:
            TrainingError: it is not; the message names the likely causes.
        """
        self.first_log_ratio = largest_over_ranks(float(self.largest_log_ratio), device)
        if not self.first_log_ratio < limit:
            raise TrainingError(
                f"the first minibatch's largest |log ratio| is {self.first_log_ratio:.2e}, not "
                f"below {limit:.0e}: the training forward disagrees with itself. Likely causes: "
                "dropout, weights changed between rollout and update, or a kernel that is not "
                "deterministic."
            )

    def report(self) -> dict[str, float]:
        """Return what is logged of the update, the same on all processes."""
        report = self.means.compute()
        report["first_log_ratio"] = self.first_log_ratio
        report["optimizer_steps"] = float(self.num_steps)
        norms = self.gradient_norms
        report["grad_norm"] = sum(norms) / len(norms) if norms else 0.0
        return report


class FirstForward:
    """Saves a forward where the first step takes the whole rollout: no weight moves in between.

    A rollout in one micro-batch keeps the graph of its forward, and the step goes on with it. The
    graphs of several micro-batches would not fit into memory. There the rollout goes without a
    forward if nothing reads it before the step, whose own log-probabilities are then the old ones.

    Args:
        plan: of the update.
        is_read_before: the rewards, the advantages or the loss's weights need the forward.
    """

    def __init__(self, plan: UpdatePlan, *, is_read_before: bool) -> None:
        first_epoch = plan.epochs[0]
        takes_all, num_micro_batches = len(first_epoch) == 1, len(first_epoch[0])
        self.keeps_graph = takes_all and num_micro_batches == 1
        self.is_put_off = takes_all and num_micro_batches > 1 and not is_read_before
        self._num_missing = num_micro_batches if self.is_put_off else 0
        self._kept: TokenScores | None = None

    def keep(self, forward: TokenScores) -> None:
        """Keep the rollout's forward, if the step can use it."""
        self._kept = forward if self.keeps_graph else None

    def take(self) -> TokenScores | None:
        """Return the forward that was kept, once."""
        kept, self._kept = self._kept, None
        return kept

    def fill_in(
        self, targets: UpdateTargets, rows: Tensor, selected: UpdateTargets, forward: TokenScores
    ) -> UpdateTargets:
        """Write missing old log-probabilities, and return the micro-batch's targets with them.

        Args:
            targets: of the whole rollout.
            rows: `[b]` of the micro-batch.
            selected: its targets.
            forward: of the policy, in the first step or later.
        """
        if self._num_missing == 0:
            return selected
        self._num_missing -= 1
        width = targets.response_mask.shape[1]
        old = response_window(forward.logprobs, selected.prompt_lengths, width).detach()
        targets.old_logprobs[rows] = old  # of no rows: nothing
        return selected._replace(old_logprobs=old)
