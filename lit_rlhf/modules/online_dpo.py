"""Online preference optimisation: pairs are what the policy says now, ranked by a reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.batches import ComparisonBatch, PromptBatch, SampleBatch
from lit_rlhf.errors import ConfigError
from lit_rlhf.models.given import ModelSource
from lit_rlhf.modules.metrics import NamedMeans
from lit_rlhf.modules.optimizers import OptimizerConfig
from lit_rlhf.modules.ppo_requirements import refuse_unfit_rollouts
from lit_rlhf.modules.preference import preference_losses
from lit_rlhf.modules.rewarded_policy import RewardedPolicy, ScoredSamples
from lit_rlhf.modules.unscored import scored_columns
from lit_rlhf.objectives.preference import DPO, PreferenceLoss, PreferencePairs
from lit_rlhf.ranges import require
from lit_rlhf.rewards import RewardSource
from lit_rlhf.rollout import Sampling


class OnlineDPOModule(RewardedPolicy):
    """Draw responses, let a reward choose between them, and prefer what it prefers.

    Of each prompt's samples the best and the worst by the reward are a pair for a preference loss.
    One batch is one optimizer step, so that every pair is of the policy as it is. Source: Guo et
    al. 2024 (OAIF). There is no critic, and the loss holds the policy near the reference. As in
    PPO, log-probabilities are those at the temperature of the samples.

    Args:
        policy: the SFT policy: hub name or Hugging Face folder. The reference is this same model,
            frozen: a copy, or with LoRA the policy with its adapter switched off; unless
            `reference` names another one.
        reward: what ranks responses, by `class_path`; in Python also a function, see
            `FunctionReward`.
        optimizer: AdamW and its schedule, stepped once a batch.
        loss: the preference loss, by `class_path` or short name.
        samples_per_prompt: responses to each prompt, of which two become a pair.
        **kwargs: the settings of `RewardedPolicy`.
    """

    phase = "online_dpo"

    def __init__(
        self,
        policy: ModelSource,
        reward: RewardSource | Callable[..., Any],
        *,
        optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6),
        loss: PreferenceLoss = DPO(),
        samples_per_prompt: int = 2,
        **kwargs: Any,  # passed on as they are; the config parser finds them there
    ) -> None:
        super().__init__(policy, reward, optimizer=optimizer, **kwargs)
        require("model.samples_per_prompt", samples_per_prompt, least=2)
        _refuse_misfits(loss, self.sampling, self.reference_source)
        self.loss = loss
        self.num_samples = samples_per_prompt

    @property
    def computes_kl(self) -> bool:
        """Where the loss reads a reference."""
        return self.loss.requires_reference

    @property
    def samples_per_prompt(self) -> int:
        """As the argument says."""
        return self.num_samples

    def prepare_fit(self) -> None:
        """Refuse settings that do not fit the data, see `refuse_unfit_rollouts`.

        Raises:
            ConfigError: prompts leave no room for a response, or there is data for PPO-ptx.
        """
        refuse_unfit_rollouts(self)
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # set by the Trainer
        if getattr(data, "pretraining", None) is not None:
            raise ConfigError(
                "data.pretraining has no effect on online-dpo, which mixes no other loss in: leave "
                "it out, or take ppo"
            )

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Any]:
        """Draw responses, make pairs of them, and return the preference loss.

        Returns:
            The loss, and the share of responses that were cut, which callbacks read.
        """
        drawn = self.score_samples(batch, seed=self.seed + int(self.num_iterations))
        scores = self.missing_eos.apply(drawn.scores, drawn.samples.finished)
        pairs = pairs_of(drawn.samples, scores, self.samples_per_prompt, batch.prompt_ids >= 0)
        self._watch_scores(drawn)
        means = NamedMeans()
        losses = self._compare(pairs, means)
        by_prompt = {"pairs": pairs.weight}
        means.update(by_prompt, (batch.prompt_ids >= 0).float())
        report = means.compute() | self._sample_means(drawn, batch.prompt_ids >= 0)
        for name, mean in report.items():
            self.log(f"train/online_dpo/{name}", mean, prog_bar=name in ("reward", "kl"))
        weight = pairs.weight.sum()
        loss = self.global_mean((losses * pairs.weight).sum(), weight)
        self.guard.watch(pairs.rows, loss)
        return {"loss": self.step_loss(loss, weight), "truncated": 1.0 - report["finished"]}

    def on_after_backward(self) -> None:
        """Count the batch: until here, all that is saved is as it was before it."""
        self.num_iterations += 1

    def _compare(self, pairs: ComparisonBatch, means: NamedMeans) -> Tensor:
        """Return the loss of each pair, `[M]`, and add what is logged of them to some means."""
        logprobs, reference = self.policy_logprobs(pairs.rows).sum(1), None  # [N]
        if self.computes_kl:
            with torch.no_grad():
                reference = self.reference_logprobs(pairs.rows).sum(1)
            by_response = {"kl": logprobs - reference}
            means.update(by_response, pairs.weight.repeat(2))
        self.guard.watch(pairs.rows, logprobs=logprobs, reference_logprobs=reference)
        read = PreferencePairs.of(pairs, logprobs, reference)
        return preference_losses(self.loss, read, pairs, logprobs, means)

    def _watch_scores(self, drawn: ScoredSamples) -> None:
        """Let a score that is not a number skip the step, unless it says "cannot be scored"."""
        scores, is_unscored = drawn.scores, torch.isnan(drawn.scores)
        scores = scores.masked_fill(is_unscored, 0.0) if self.reward.abstains else scores
        self.guard.watch(drawn.samples.rows, reward=scores)

    def _sample_means(self, drawn: ScoredSamples, is_own: Tensor) -> dict[str, float]:
        """Return means over all samples of all processes."""
        counts = is_own.repeat_interleave(self.samples_per_prompt)
        columns = {"reward": drawn.scores}
        columns |= {f"reward_{name}": values for name, values in drawn.details.items()}
        scored, weights = scored_columns(columns, columns if self.reward.abstains else (), counts)
        scored["length"] = drawn.samples.response_mask.sum(1).float()
        scored["finished"] = drawn.samples.finished.float()
        means = NamedMeans()
        means.update(scored, counts, **weights)
        return means.compute()


def pairs_of(
    samples: SampleBatch, scores: Tensor, samples_per_prompt: int, is_own: Tensor
) -> ComparisonBatch:
    """Return a pair a prompt: of its samples, the best and the worst.

    A prompt whose samples all score alike, or of which fewer than two have a score, has a pair
    without weight: processes compute together, so each has as many pairs as prompts.

    Args:
        samples: `P * K` responses, those to one prompt beside each other.
        scores: `[P * K]`, NaN where there is none.
        samples_per_prompt: `K`.
        is_own: `[P]` bool, False for a stand-in.

    Returns:
        `P` pairs of `2P` rows: the chosen ones first.
    """
    by_prompt = scores.view(-1, samples_per_prompt)  # [P, K]
    is_unscored = torch.isnan(by_prompt)
    best = by_prompt.masked_fill(is_unscored, -torch.inf).argmax(1)  # [P]
    worst = by_prompt.masked_fill(is_unscored, torch.inf).argmin(1)
    first = torch.arange(len(by_prompt), device=scores.device) * samples_per_prompt
    rows = torch.cat([first + best, first + worst])
    is_pair = scores[first + best] > scores[first + worst]  # False beside NaN
    places = torch.arange(len(by_prompt), device=scores.device)
    return ComparisonBatch(
        rows=samples.rows.select(rows),
        chosen=places,
        rejected=places + len(places),
        probability=torch.ones_like(scores[: len(places)]),
        weight=(is_pair & is_own).float(),
        group=places.repeat(2),
        ratings=scores[rows],
        margin=torch.zeros_like(scores[: len(places)]),
    )


def _refuse_misfits(loss: PreferenceLoss, sampling: Sampling, reference: str | None) -> None:
    if loss.is_unpaired:
        raise ConfigError(
            f"model.loss {type(loss).__name__} reads responses with labels, and a reward ranks "
            "pairs: choose a loss of pairs, such as DPO or IPO"
        )
    if sampling.temperature == 0:
        raise ConfigError(
            "model.sampling.temperature 0 draws the same response again, and there would be no "
            "pair: set it above 0"
        )
    if reference is not None and not loss.requires_reference:
        raise ConfigError(
            f"model.reference has no effect: model.loss {type(loss).__name__} reads no reference; "
            "leave the option out"
        )
