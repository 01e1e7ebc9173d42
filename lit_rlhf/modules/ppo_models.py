"""PPO's models: how they are built, what they say of responses, and validation by samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.batches import PromptBatch, RolloutBatch, SampleBatch, TokenRows, response_window
from lit_rlhf.models.policy import PolicyModel, TokenScores
from lit_rlhf.models.scalar_head import ScalarModel
from lit_rlhf.modules.building import build_critic, build_policy, build_reference
from lit_rlhf.modules.first_forward import FirstForward
from lit_rlhf.modules.metrics import NamedMeans
from lit_rlhf.modules.padding_gap import rollout_padding_gaps
from lit_rlhf.modules.phase import PhaseModule
from lit_rlhf.modules.ppo_metrics import held_out_columns, sample_records
from lit_rlhf.modules.ppo_update import UpdateConfig
from lit_rlhf.modules.scored_samples import ScoredSamples
from lit_rlhf.modules.sharding import gathered
from lit_rlhf.modules.stand_ins import score_in_parts, select_rows
from lit_rlhf.modules.unscored import abstaining_columns, mark_unscored, scored_columns
from lit_rlhf.objectives import AdvantageEstimator, KLPenalty, MissingEOS, OverlongPenalty, kl_k1
from lit_rlhf.ranks import of_all_ranks, world_size
from lit_rlhf.rewards import RewardSource, origins_of
from lit_rlhf.rollout import Generator, Sampling, UpdatePlan, collect_samples

# A validation prompt keeps its random stream whatever the training seed is.
_VALIDATION_SEED = 20_220_304
_REWARDS_KEY = "lit_rlhf_rewards"  # in a checkpoint


class PPOModels(PhaseModule):
    """Policy, reference, critic, reward and judges of PPO: all but its algorithm.

    Attributes: see the arguments of `PPOModule`, which sets them.
    """

    reward: RewardSource
    judges: dict[str, RewardSource]
    critic_kind: str
    critic_source: str | None
    reference_source: str | None
    advantage: AdvantageEstimator
    update: UpdateConfig
    sampling: Sampling
    generator: Generator
    missing_eos: MissingEOS
    overlong_penalty: OverlongPenalty | None
    max_refills: int
    whiten_advantages: bool
    kl_penalty: KLPenalty | None
    policy: PolicyModel | None
    reference: PolicyModel | None
    critic: ScalarModel | None
    validation_means: NamedMeans
    validation_samples: list[dict[str, Any]]
    validation_values: list[dict[str, Tensor]]

    @property
    def origins(self) -> dict[str, str]:
        """The policy, the critic's source, and the models behind reward and judges."""
        named = {"critic": self.critic_source, "reference": self.reference_source}
        given = {role: source for role, source in named.items() if source is not None}
        return {**super().origins, **given, **origins_of(self.sources)}

    @property
    def sources(self) -> dict[str, RewardSource]:
        """The reward and the judges by name."""
        return {"reward": self.reward, **self.judges}

    @property
    def best_metric(self) -> str | None:
        """What the judge `validation` says, where there is one."""
        return "val/ppo/validation" if "validation" in self.judges else None

    @property
    def trained_model(self) -> PolicyModel:
        """The policy, once `configure_model` has loaded it."""
        assert self.policy is not None
        return self.policy

    def configure_model(self) -> None:
        """Load policy, reference and critic, only those that are needed."""
        if self.policy is not None:
            return
        shares_trunk = self.advantage.requires_values and self.critic_kind == "shared"
        self.policy = build_policy(
            self.source,
            self.lora,
            frozen_dtype=self.frozen_dtype,
            packing_width=self.packing_width,
            value_head=shares_trunk,
        )
        if self.kl_penalty and (self.lora is None or self.reference_source is not None):
            self.reference = build_reference(
                self.reference_source or self.source,
                frozen_dtype=self.frozen_dtype,
                packing_width=self.packing_width,
            )
            self.prepare(self.reference)
        if self.lora is not None and self.device_mesh is None:
            # One trunk for all roles; the reference is the adapter switched off.
            for source in self.sources.values():
                source.share_trunk(self.policy)
        if self.advantage.requires_values and self.critic_kind == "separate":
            self.critic = build_critic(self.critic_source, self.packing_width)
            self.prepare(self.critic)
        self.prepare(self.policy)

    def sample(
        self,
        batch: PromptBatch,
        *,
        seed: int,
        samples_per_prompt: int = 1,
        sampling: Sampling | None = None,
    ) -> SampleBatch:
        """Draw responses from the policy as it is now, by its settings unless others are given."""
        with gathered(self.trained_model):
            return collect_samples(
                self.trained_model,
                self.generator,
                batch,
                self.tokenizer,
                sampling or self.sampling,
                samples_per_prompt=samples_per_prompt,
                seed=seed,
            )

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

    def reference_logprobs(self, rows: TokenRows) -> Tensor:
        """Score response tokens with the reference: its own model, or the adapter switched off."""
        model, with_adapter = self.reference or self.trained_model, self.reference is not None
        temperature = self.sampling.temperature
        scores: TokenScores = model(rows, temperature=temperature, with_adapter=with_adapter)
        return scores.logprobs

    def _policy_logprobs(self, rows: TokenRows) -> Tensor:
        scores: TokenScores = self.trained_model(rows, temperature=self.sampling.temperature)
        return scores.logprobs

    def _in_parts(self, rows: TokenRows, compute: Callable[[TokenRows], Tensor]) -> Tensor:
        """Score held-out samples in forwards no larger than those of the update."""
        limits = {
            "max_rows": self.update.micro_batch_size,
            "max_tokens": self.update.micro_batch_tokens,
        }
        return score_in_parts(rows, compute, **limits)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the states of rewards and judges, of each process its own."""
        super().on_save_checkpoint(checkpoint)
        states = {name: source.state_dict() for name, source in self.sources.items()}
        checkpoint[_REWARDS_KEY] = of_all_ranks(
            {name: state for name, state in states.items() if state}
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Hand the states back; on another number of processes, those of the first."""
        super().on_load_checkpoint(checkpoint)
        states = checkpoint.get(_REWARDS_KEY, [{}])
        own = states[self.global_rank if len(states) == world_size() else 0]
        for name, state in own.items():
            if name in self.sources:
                self.sources[name].load_state_dict(state)

    def padding_gaps(self, batch: PromptBatch) -> dict[str, float]:
        """Return how much the policy's log-probabilities and learned rewards depend on padding."""
        with self.trainer.precision_plugin.forward_context():
            return rollout_padding_gaps(self.trained_model, self.sources, batch)

    def on_validation_epoch_start(self) -> None:
        """Forget the samples of the last validation."""
        self.validation_samples = []
        self.validation_values = []

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Sample held-out prompts, each from its fixed stream, and ask reward and judges."""
        samples = self.sample(batch, seed=_VALIDATION_SEED)
        logprobs = self._in_parts(samples.rows, self._policy_logprobs)
        token_kl = None
        if self.kl_penalty:
            token_kl = kl_k1(logprobs, self._in_parts(samples.rows, self.reference_logprobs))
        columns = held_out_columns(samples, self.sources, logprobs, token_kl)
        counts = (batch.prompt_ids >= 0).float()  # stand-ins of an uneven last batch do not count
        scored, weights = scored_columns(columns, abstaining_columns(self.sources), counts)
        self.validation_means.update(scored, counts, **weights)
        self.validation_samples += sample_records(samples, columns, counts)
        self.validation_values.append({"prompt_id": batch.prompt_ids, **columns})

    def on_validation_epoch_end(self) -> None:
        """Log the means over all held-out prompts."""
        for name, mean in self.validation_means.compute().items():
            self.log(f"{self.stage}/ppo/{name}", mean, prog_bar=name == "reward")

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end
