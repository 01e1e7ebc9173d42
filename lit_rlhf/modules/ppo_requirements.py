"""Settings of PPO that contradict each other, or the data: refused before the first step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_rlhf.data.loading import TrainingLoader
from lit_rlhf.data.ppo import PPODataModule
from lit_rlhf.errors import ConfigError
from lit_rlhf.models.handover import first_context_length
from lit_rlhf.modules.ppo_update import UpdateConfig
from lit_rlhf.objectives import GRPO, AdvantageEstimator
from lit_rlhf.ranges import require
from lit_rlhf.rewards import RewardSource
from lit_rlhf.rollout import Sampling, require_room

if TYPE_CHECKING:
    from lit_rlhf.modules.ppo import PPOModule
    from lit_rlhf.modules.rewarded_policy import RewardedPolicy


def refuse_idle_settings(module: PPOModule) -> None:
    """Refuse settings that have no effect beside the others.

    Raises:
        ConfigError: the message says which one, and beside which.
    """
    advantage = module.advantage
    _refuse_unused_critic(module.critic_kind, module.critic_source, advantage)
    _refuse_idle_value_loss(module.update, advantage)
    if module.reference_source is not None and module.kl_penalty is None:
        raise ConfigError(
            f"model.reference={module.reference_source} has no effect with model.kl_penalty null, "
            "which charges no KL to it: leave it out, or set a penalty"
        )
    _refuse_idle_warmup(module.update, module.critic_kind, advantage)
    _refuse_idle_refills(module.max_refills, advantage)
    _refuse_idle_scale(advantage, is_whitened=module.whiten_advantages)
    if module.overlong_penalty is not None:
        module.overlong_penalty.check(module.sampling.max_new_tokens)


def _refuse_unused_critic(
    critic: str, critic_source: str | None, advantage: AdvantageEstimator
) -> None:
    """Refuse a critic that nothing would read.

    Raises:
        ConfigError: it is asked for in vain.
    """
    if critic == "separate" and not advantage.requires_values:
        raise ConfigError(
            f"model.critic separate: {type(advantage).__name__} reads no values, so that no critic "
            "would be built; leave model.critic out, or set model.advantage to GAE"
        )
    if critic_source is not None and critic != "separate":
        raise ConfigError(
            f"model.critic_source={critic_source} is only read with model.critic separate; set "
            "that, or leave it out"
        )


def _refuse_idle_value_loss(update: UpdateConfig, advantage: AdvantageEstimator) -> None:
    """Refuse settings of the value loss where there are no values.

    Raises:
        ConfigError: one is set in vain.
    """
    for name in ("value_coef", "value_clip_range"):
        value = getattr(update, name)
        if not advantage.requires_values and value != getattr(UpdateConfig, name):
            raise ConfigError(
                f"model.update.{name}={value} has no effect with {type(advantage).__name__}, which "
                "reads no values: leave it out, or set model.advantage to GAE"
            )
    if advantage.requires_values and not update.value_coef:
        for name in ("value_clip_range", "critic_warmup_iterations"):
            if getattr(update, name) != getattr(UpdateConfig, name):
                raise ConfigError(
                    f"model.update.{name} has no effect with model.update.value_coef 0, which "
                    "trains no critic: leave it out, or raise value_coef"
                )


def _refuse_idle_warmup(update: UpdateConfig, critic: str, advantage: AdvantageEstimator) -> None:
    """Refuse to train the critic alone where there is none, or where it moves the policy.

    Raises:
        ConfigError: it is asked for in vain.
    """
    if update.critic_warmup_iterations and not (advantage.requires_values and critic == "separate"):
        raise ConfigError(
            f"model.update.critic_warmup_iterations={update.critic_warmup_iterations} trains the "
            "critic alone: set model.critic to separate, with an estimator that reads values (a "
            "shared critic has the policy's weights)"
        )


def _refuse_idle_refills(max_refills: int, advantage: AdvantageEstimator) -> None:
    """Refuse to replace groups that score alike where that does not make advantages zero.

    Raises:
        ConfigError: it is asked for in vain.
    """
    require("model.max_refills", max_refills, least=0)
    if max_refills and not advantage.compares_samples:
        raise ConfigError(
            f"model.max_refills={max_refills} replaces prompts whose samples all score alike, but "
            f"{type(advantage).__name__} does not compare samples: leave it out, or set "
            "model.advantage to one that does, such as GRPO or RLOO"
        )


def _refuse_idle_scale(advantage: AdvantageEstimator, *, is_whitened: bool) -> None:
    """Refuse a division by the deviation of the batch where whitening divides anyhow.

    Raises:
        ConfigError: it would have no effect.
    """
    if is_whitened and isinstance(advantage, GRPO) and advantage.scale == "batch":
        raise ConfigError(
            "model.advantage.scale batch has no effect with model.whiten_advantages true, which "
            "brings the batch to deviation 1 anyhow: set one of them to none or false"
        )


def refuse_lone_samples(reward: RewardSource, advantage: AdvantageEstimator) -> None:
    """Refuse a reward that compares the samples of a prompt where there is one of each.

    Raises:
        ConfigError: there is nothing to compare.
    """
    if reward.compares_samples and advantage.samples_per_prompt < 2:
        raise ConfigError(
            f"model.reward {type(reward).__name__} compares the samples of a prompt, but "
            f"model.advantage {type(advantage).__name__} draws one of each: take an estimator that "
            "draws several, such as RLOO or GRPO"
        )


def tell_max_steps(trainer: Trainer, update: UpdateConfig) -> None:
    """Say in iterations what `max_steps` means, which counts the optimizer's steps."""
    if trainer.max_steps > 0:
        epochs = trainer.max_epochs or 0
        other = f", unless trainer.max_epochs={epochs} ends it before" if epochs > 0 else ""
        rank_zero_info(
            f"trainer.max_steps={trainer.max_steps} counts optimizer steps: the run ends after "
            f"{math.ceil(trainer.max_steps / update.num_steps)} iterations of {update.num_steps} "
            f"steps{other}"
        )


def refuse_distortions(sampling: Sampling) -> None:
    """Refuse to train on samples that are not the policy's own.

    Raises:
        ConfigError: the sampling truncates or shifts the policy's distribution.
    """
    if sampling.distortions:
        raise ConfigError(
            f"model.sampling: {', '.join(sampling.distortions)} would make samples differ from the "
            "policy that PPO trains; leave them out to train (validate takes them)"
        )


def refuse_unfilled_minibatches(
    loader: object, advantage: AdvantageEstimator, update: UpdateConfig
) -> None:
    """Refuse batches that cannot fill the minibatches.

    Raises:
        ConfigError: a batch, perhaps a short last one, has fewer responses than minibatches.
    """
    if not isinstance(loader, TrainingLoader):
        return
    num_responses = loader.smallest_batch * advantage.samples_per_prompt
    if num_responses < update.num_minibatches:
        raise ConfigError(
            f"model.update.num_minibatches={update.num_minibatches} is more than the "
            f"{num_responses} responses of the smallest batch: lower it, or raise "
            "data.batch_size; a short last batch is left out by data.last_batch drop"
        )


def refuse_unfit_rollouts(module: RewardedPolicy) -> None:
    """Refuse prompts that leave no room for a response, warn of rotations that change in it.

    Raises:
        ConfigError: the longest prompt and a response are longer than the model's context.
    """
    data, sampling = getattr(module.trainer, "datamodule", None), module.sampling
    if not isinstance(data, PPODataModule):
        return
    longest = max(data.longest("train"), data.longest("validation"))
    require_room(module.trained_model, longest, sampling)
    first = first_context_length(module.source)
    if first is not None and longest + sampling.max_new_tokens > first:
        rank_zero_warn(
            f"the model turns tokens otherwise once a row has more than {first} (dynamic RoPE): "
            f"with prompts of up to {longest} tokens and "
            f"model.sampling.max_new_tokens={sampling.max_new_tokens}, responses are sampled from "
            "another policy than the one that trains; keep their sum below"
        )


def refuse_uneven_deal(num_own: int, num_prompts: int, rank: int, world_size: int) -> None:
    """Refuse a batch whose prompts were not dealt out to the processes in turn.

    Raises:
        ConfigError: this process has another number of prompts than its turn would give it.
    """
    if num_own != len(range(rank, num_prompts, world_size)):
        raise ConfigError(
            f"process {rank} of {world_size} got {num_own} of {num_prompts} prompts: PPO "
            "needs the prompts of a batch dealt out in turn, as PPODataModule does"
        )
