"""Phase 3: proximal policy optimization against a reward, held near the SFT policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from lit_rlhf.batches import PromptBatch, RolloutBatch, SampleBatch, TokenRows, response_window
from lit_rlhf.callbacks import KLControl, OveroptimizationMonitor
from lit_rlhf.data.ppo import PPODataModule
from lit_rlhf.models.given import ModelSource
from lit_rlhf.models.policy import TokenScores
from lit_rlhf.models.scalar_head import ScalarModel
from lit_rlhf.modules.building import build_critic, prepare
from lit_rlhf.modules.mixing import mix_in, refuse_idle_mixing
from lit_rlhf.modules.optimizers import OptimizerConfig
from lit_rlhf.modules.ppo_metrics import iteration_means
from lit_rlhf.modules.ppo_requirements import (
    refuse_distortions,
    refuse_idle_settings,
    refuse_lone_samples,
    refuse_uneven_deal,
    refuse_unfilled_minibatches,
    refuse_unfit_rollouts,
    tell_max_steps,
)
from lit_rlhf.modules.ppo_update import (
    FirstForward,
    UpdateConfig,
    UpdateStatistics,
    UpdateTargets,
    make_targets,
    minibatch_loss,
    rewarded_tokens,
    update_numbers,
)
from lit_rlhf.modules.refilling import refill
from lit_rlhf.modules.rewarded_policy import RewardedPolicy, ScoredSamples
from lit_rlhf.modules.unscored import mark_unscored, without_unscored
from lit_rlhf.objectives import (
    GAE,
    AdvantageEstimator,
    KLPenalty,
    Moments,
    OverlongPenalty,
    masked_moments,
    whiten,
)
from lit_rlhf.ranks import of_all_ranks, sum_over_ranks
from lit_rlhf.rewards import RewardSource
from lit_rlhf.rollout import (
    TokenLimit,
    UpdatePlan,
    plan_update,
)


class PPOModule(RewardedPolicy):
    """Sample responses, score them, and raise the likelihood of those better than expected.

    Manual optimization: one training batch is one iteration (rollout, then `num_epochs` passes
    of `num_minibatches` optimizer steps). Source: Schulman et al. 2017; Ziegler et al. 2019 for
    the KL penalty inside the reward.

    Args:
        policy: the SFT policy: hub name or Hugging Face folder. The reference is this same model,
            frozen: a copy, or with LoRA the policy with its adapter switched off; unless
            `reference` names another one.
        reward: the reward that is optimised, by `class_path`; in Python also a function, see
            `FunctionReward`.
        optimizer: AdamW and its schedule, stepped once an iteration.
        critic: "shared" puts a value head on the policy's trunk, "separate" trains a model of its
            own; only built when the estimator needs values.
        critic_source: the reward model that a separate critic starts from.
        advantage: the advantage estimator, by `class_path` or short name.
        update: epochs, minibatches, clipping and coefficients of the update.
        overlong_penalty: what a response costs that comes near the length limit; null for nothing.
        max_refills: how often the groups of an iteration are drawn anew, from other prompts, whose
            responses all score alike.
        kl_penalty: charge the KL to the reference in rewards or loss, with the coefficient of
            `KLControl`; null for none, and then no reference computes and no KL is logged.
        whiten_advantages: scale advantages to mean 0, deviation 1 over all ranks.
        **kwargs: the settings of `RewardedPolicy`.

    Attributes:
        rollout: of the iteration that has just ended, for callbacks: prompts, responses, fields,
            scores `[B]`, values and log-probabilities `[B, T]`, see `RolloutBatch`. Of this
            process. None before the first one, and while the next is drawn.
        targets: what the update was made with: advantages and returns `[B, T]`, see
            `UpdateTargets`; likewise. Where nothing but the first step reads the policy's old
            log-probabilities, only `targets` has them.
    """

    phase = "ppo"
    automatic_optimization = False
    own_callbacks = (KLControl, OveroptimizationMonitor)
    checks_first_ratio = True  # switched off by the self-checks' one switch

    def __init__(  # noqa: PLR0913 - settings, given by keyword from YAML
        self,
        policy: ModelSource,
        reward: RewardSource | Callable[..., Any],
        *,
        optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5, eps=1e-5),
        critic: Literal["shared", "separate"] = "shared",
        critic_source: str | None = None,
        advantage: AdvantageEstimator = GAE(),
        update: UpdateConfig = UpdateConfig(),
        overlong_penalty: OverlongPenalty | None = None,
        max_refills: int = 0,
        kl_penalty: KLPenalty | None = KLPenalty(),
        whiten_advantages: bool = True,
        **kwargs: Any,  # passed on as they are; the config parser finds them there
    ) -> None:
        super().__init__(policy, reward, optimizer=optimizer, **kwargs)
        refuse_lone_samples(self.reward, advantage)
        self.critic_kind = critic
        self.critic_source = critic_source
        self.advantage = advantage
        self.update = update
        self.overlong_penalty = overlong_penalty
        self.max_refills = max_refills
        self.kl_penalty = kl_penalty
        self.kl_coef = math.nan  # KLControl sets it
        self.whiten_advantages = whiten_advantages
        refuse_idle_settings(self)
        self.critic: ScalarModel | None = None
        self.rollout: RolloutBatch | None = None
        self.targets: UpdateTargets | None = None

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
            prepare(self, self.critic)
        prepare(self, self.trained_model)

    @property
    def num_scheduler_steps(self) -> int:
        """Iterations of the whole run: the Trainer's `max_steps` counts optimizer steps."""
        num_iterations = super().num_scheduler_steps
        if self.trainer.max_steps > 0:
            num_iterations = min(
                num_iterations, math.ceil(self.trainer.max_steps / self.update.num_steps)
            )
        return num_iterations

    def setup(self, stage: str) -> None:
        """Refuse to train on samples that are not the policy's own."""
        if stage == "fit":
            refuse_distortions(self.sampling)

    def prepare_fit(self) -> None:
        """Refuse settings that do not fit the data, see `refuse_unfit_rollouts`."""
        tell_max_steps(self.trainer, self.update)
        refuse_unfit_rollouts(self)
        refuse_idle_mixing(self.trainer, self.update)
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # set by the Trainer
        if isinstance(data, PPODataModule):
            longest = max(data.longest("train"), data.longest("validation"))
            self.generator.expect(longest + self.sampling.max_new_tokens)

    def on_train_start(self) -> None:
        """Refuse batches that cannot fill the minibatches, before the first of them."""
        refuse_unfilled_minibatches(self.trainer.train_dataloader, self.advantage, self.update)

    # One iteration -------------------------------------------------------------------------

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Any]:
        """Roll out, score, shape the rewards, estimate advantages, update the policy.

        Returns:
            What callbacks read: the KL, the number of responses, the share that was cut.
        """
        self.rollout = self.targets = None  # gives their memory back before the next ones
        drawn, plan = self._roll_out(batch)  # responses and their scores
        first = FirstForward(plan, is_read_before=self._needs_old_logprobs)
        rollout = self.evaluate(drawn, plan, first)  # log-probabilities before the update, values
        targets = self._targets(rollout)  # the KL penalty, rewards a token, advantages
        statistics = UpdateStatistics()
        warms_up = int(self.num_iterations) < self.update.critic_warmup_iterations
        kl = None if self.kl_penalty is None else (self.kl_penalty, self.kl_coef)
        minibatches = plan.minibatches if self.is_sound() else []  # of all epochs
        for step, minibatch in enumerate(minibatches):
            if self.update.pretraining_coef:
                mix_in(self, step, statistics)
            scale = self._loss_scale(targets, minibatch)
            for number, rows in enumerate(minibatch, start=1):
                selected = targets.select(rows)
                forward = first.take() or self.score(selected.rows)
                selected = first.fill_in(targets, rows, selected, forward)
                # The ratio of new to old policy, and its clipping.
                loss = minibatch_loss(selected, forward, self.update, statistics, kl)
                self.guard.watch(selected.rows, loss, **update_numbers(selected, forward))
                with self.reduces_gradients(is_last=number == len(minibatch)):
                    self.manual_backward(loss * scale)
            self._step(statistics, of_critic_alone=warms_up)
        self.lr_schedulers().step()  # type: ignore[union-attr]  # one, see `configure_optimizers`
        # Behind the rollout: until the weights move, all that is saved is as it was before it.
        self.num_iterations += 1
        self.rollout, self.targets = rollout, targets
        report = self._report(batch, rollout, targets, statistics)
        # The KL of a policy that does not move is none to steer a coefficient by.
        return report | ({"kl": math.nan} if warms_up and self.kl_penalty else {})

    def _roll_out(self, batch: PromptBatch) -> tuple[ScoredSamples, UpdatePlan]:
        """Draw and score responses, and plan which of them share an optimizer step."""
        seed = self.seed + int(self.num_iterations)
        num_own = int((batch.prompt_ids >= 0).sum())
        num_prompts = int(sum_over_ranks(torch.tensor(num_own, device=self.device)))
        rank, world_size = self.global_rank, self.trainer.world_size
        refuse_uneven_deal(num_own, num_prompts, rank, world_size)
        scored = self.score_samples(batch, seed=seed)
        if self.max_refills:
            scored = refill(self, scored, counts=batch.prompt_ids >= 0, seed=seed)
        if self.advantage.requires_greedy:
            scored = self._with_greedy(batch, scored)
        plan = plan_update(
            num_prompts,
            num_epochs=self.update.num_epochs,
            num_minibatches=self.update.num_minibatches,
            micro_batch_size=self.update.micro_batch_size,
            token_limit=self._token_limit(scored.samples.rows),
            seed=seed * 100_003,
            samples_per_prompt=self.advantage.samples_per_prompt,
            rank=rank,
            world_size=world_size,
        )
        return scored, plan

    def _with_greedy(self, batch: PromptBatch, drawn: ScoredSamples) -> ScoredSamples:
        """Add the scores of greedy responses; without one of them, a response has no score.

        One that was cut keeps its score where the missing-EOS rule leaves samples out.
        """
        greedy = self.score_samples(batch, seed=0, is_greedy=True)
        ruled = self.ruled_scores(greedy.scores, greedy.samples)
        of_rows = torch.where(torch.isnan(ruled), greedy.scores, ruled)[drawn.samples.group_ids]
        known = drawn.scores.masked_fill(torch.isnan(of_rows), torch.nan)
        return drawn._replace(scores=known, greedy_scores=of_rows.nan_to_num())

    def _token_limit(self, rows: TokenRows) -> TokenLimit | None:
        """Return what bounds the tokens of a micro-batch, alike on all processes."""
        tokens = self.update.micro_batch_tokens
        if tokens is None:
            return None
        lengths = of_all_ranks(rows.lengths.tolist())
        return TokenLimit(tokens, lengths, padded=self.trained_model.packing_width is None)

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
            rows, starts = samples.rows.select_or_stand_in(indices), samples.prompt_lengths[indices]
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
        if self.reward.abstains:
            rollout = mark_unscored(rollout)
        numbers = {"logprobs": old, "reference_logprobs": reference, "values": values}
        self.guard.watch(samples.rows, reward=rollout.scores, **numbers)
        return rollout

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

    @property
    def _needs_old_logprobs(self) -> bool:
        """Whether the targets of the update depend on a forward of policy and critic."""
        needs_them = self.kl_penalty is not None or self.advantage.requires_values
        return needs_them or self.update.sampler_correction_cap is not None

    def ruled_scores(self, scores: Tensor, samples: SampleBatch) -> Tensor:
        """Apply the rules for cut and overlong responses to scores `[B]`; NaN is left out."""
        ruled = self.missing_eos.apply(scores, samples.finished)
        if self.overlong_penalty is None:
            return ruled
        lengths = samples.response_mask.sum(1)
        return self.overlong_penalty.apply(ruled, lengths, self.sampling.max_new_tokens)

    def _targets(self, rollout: RolloutBatch) -> UpdateTargets:
        """Put the KL penalty into the rewards, and estimate advantages and returns."""
        rollout = without_unscored(rollout, self.missing_eos)
        scores = self.ruled_scores(rollout.scores, rollout.samples)
        advantages, returns = self.advantage(
            rewarded_tokens(rollout, scores, self.kl_penalty, self.kl_coef)
        )
        if self.whiten_advantages:
            mask = rollout.samples.response_mask
            moments = sum_over_ranks(torch.stack(masked_moments(advantages, mask)))
            advantages = whiten(advantages, mask, Moments(*moments))
        cap = self.update.sampler_correction_cap
        return make_targets(
            rollout, advantages, returns, sampler_correction_cap=cap, penalty=self.kl_penalty
        )

    def _loss_scale(self, targets: UpdateTargets, minibatch: list[Tensor]) -> Tensor:
        """Return what makes a sum over tokens the loss of the minibatch on all processes."""
        size = self.update.aggregation.size(targets.response_mask[torch.cat(minibatch)])
        # DDP averages the gradients of the processes.
        return self.trainer.world_size / sum_over_ranks(size).clamp(min=1)

    def _step(self, statistics: UpdateStatistics, *, of_critic_alone: bool) -> None:
        if of_critic_alone:
            for parameter in self.trained_model.parameters():
                parameter.grad = None  # so that the optimizer changes neither weight nor state
        if not self.allow_step():
            return
        statistics.gradient_norms.append(self.guard.gradient_norm)
        if statistics.num_steps == 0 and self.checks_first_ratio:
            # The policy has not moved yet: the ratio must be one, on all ranks.
            statistics.check_first_ratio(self.update.max_first_log_ratio, self.device)
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        if self.update.max_grad_norm:
            self.configure_gradient_clipping(
                optimizer.optimizer, self.update.max_grad_norm * self.gradient_scale
            )
        optimizer.step()
        optimizer.zero_grad()
        statistics.num_steps += 1
        # Lightning's autocast keeps no casts; a plugin that does would go on with the weights as
        # they were before this step.
        torch.clear_autocast_cache()

    def _report(
        self,
        batch: PromptBatch,
        rollout: RolloutBatch,
        targets: UpdateTargets,
        statistics: UpdateStatistics,
    ) -> dict[str, Any]:
        """Log the iteration as means over all ranks."""
        counts = (batch.prompt_ids >= 0).repeat_interleave(self.advantage.samples_per_prompt)
        cap = self.update.sampler_correction_cap
        means = iteration_means(rollout, targets, statistics, counts, cap)
        if self.kl_penalty and self.kl_penalty.place == "reward":
            means["penalized_reward"] = means["reward"] - self.kl_coef * means["kl"]
        means["skipped_steps"] = float(self.guard.num_skipped)
        for name, value in means.items():
            self.log(f"train/ppo/{name}", value, prog_bar=name in ("reward", "kl"))
        num_episodes, truncated = int(sum_over_ranks(counts.sum())), 1.0 - means["finished"]
        return {"kl": means.get("kl"), "num_episodes": num_episodes, "truncated": truncated}
