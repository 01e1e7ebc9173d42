"""PPO's models: how policy, reference and critic are built, and what they say of responses."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_rlhf.batches import RolloutBatch, SampleBatch, TokenRows, response_window
from lit_rlhf.models.policy import TokenScores
from lit_rlhf.models.scalar_head import ScalarModel
from lit_rlhf.modules.building import build_critic
from lit_rlhf.modules.first_forward import FirstForward
from lit_rlhf.modules.ppo_update import UpdateConfig
from lit_rlhf.modules.rewarded_policy import RewardedPolicy
from lit_rlhf.modules.scored_samples import ScoredSamples
from lit_rlhf.modules.stand_ins import select_rows
from lit_rlhf.modules.unscored import mark_unscored
from lit_rlhf.objectives import AdvantageEstimator, KLPenalty, OverlongPenalty
from lit_rlhf.rollout import UpdatePlan


class PPOModels(RewardedPolicy):
    """A policy with a critic, and what both say of a rollout: all of PPO but its algorithm.

    Attributes: see the arguments of `PPOModule`, which sets them.
    """

    critic_kind: str
    critic_source: str | None
    advantage: AdvantageEstimator
    update: UpdateConfig
    overlong_penalty: OverlongPenalty | None
    max_refills: int
    whiten_advantages: bool
    kl_penalty: KLPenalty | None
    critic: ScalarModel | None

    @property
    def computes_kl(self) -> bool:
        """With a KL penalty."""
        return self.kl_penalty is not None

    @property
    def samples_per_prompt(self) -> int:
        """As many as the estimator compares."""
        return self.advantage.samples_per_prompt

    @property
    def forward_limits(self) -> dict[str, int | None]:
        """Those of the update."""
        update = self.update
        return {"max_rows": update.micro_batch_size, "max_tokens": update.micro_batch_tokens}

    @property
    def origins(self) -> dict[str, str]:
        """Also the critic's source."""
        critic = {} if self.critic_source is None else {"critic": self.critic_source}
        return {**super().origins, **critic}

    def configure_model(self) -> None:
        """Load policy, reference and critic, only those that are needed."""
        if self.policy is not None:
            return
        shares_trunk = self.advantage.requires_values and self.critic_kind == "shared"
        self.load_models(value_head=shares_trunk)
        if self.advantage.requires_values and self.critic_kind == "separate":
            self.critic = build_critic(self.critic_source, self.packing_width)
            self.prepare(self.critic)
        self.prepare(self.trained_model)

    def ruled_scores(self, scores: Tensor, samples: SampleBatch) -> Tensor:
        """Apply the rules for cut and overlong responses to scores `[B]`; NaN is left out."""
        ruled = self.missing_eos.apply(scores, samples.finished)
        if self.overlong_penalty is None:
            return ruled
        lengths = samples.response_mask.sum(1)
        return self.overlong_penalty.apply(ruled, lengths, self.sampling.max_new_tokens)

    def evaluate(self, drawn: ScoredSamples, plan: UpdatePlan, first: FirstForward) -> RolloutBatch:
        """Look at samples with policy, critic and reference, in the plan's first micro-batches.

        Args:
            drawn: `B` responses with their scores.
            plan: of the update.
            first: keeps the forward that the first step can use; where it is put off, the old
                log-probabilities are zero until that step fills them in.
        """
        samples, scores, greedy, details = drawn
        mask = samples.response_mask
        old = torch.zeros(mask.shape, device=mask.device)
        reference = torch.zeros_like(old) if self.kl_penalty else None
        values = torch.zeros_like(old) if self.advantage.requires_values else None
        first_epoch = [] if first.is_put_off else plan.epochs[0]
        for indices in (indices for minibatch in first_epoch for indices in minibatch):
            rows, starts = select_rows(samples.rows, indices), samples.prompt_lengths[indices]
            with torch.set_grad_enabled(first.keeps_graph):
                forward = self.score(rows)
            first.keep(forward)
            with torch.no_grad():
                old[indices] = response_window(forward.logprobs, starts, mask.shape[1])
                if values is not None and forward.values is not None:
                    values[indices] = response_window(forward.values, starts, mask.shape[1])
                if reference is not None:
                    logprobs = self.reference_logprobs(rows)
                    reference[indices] = response_window(logprobs, starts, mask.shape[1])
        rollout = RolloutBatch(samples, old, reference, values, scores, None, greedy, details)
        return mark_unscored(rollout) if self.reward.abstains else rollout

    def score(self, rows: TokenRows) -> TokenScores:
        """Score response tokens with policy and critic as they are now."""
        scores: TokenScores = self.trained_model(
            rows,
            temperature=self.sampling.temperature,
            with_entropy=self.update.entropy_coef != 0 and torch.is_grad_enabled(),
        )
        if self.critic is None:
            return scores
        return scores._replace(values=self.critic.token_values(rows))
