"""Reads a run's settings and the lengths of its data, before any model is loaded."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from lit_rlhf.batches import ComparisonBatch, PromptBatch, TokenRows, cut_by_tokens
from lit_rlhf.dry_run.hollow import Kind, Rows
from lit_rlhf.dry_run.plan import Rollout, Setup
from lit_rlhf.errors import CheckpointError, ConfigError
from lit_rlhf.models.handover import check_kind, config_of, is_adapter
from lit_rlhf.models.packing import lay_end_to_end, pack_rows
from lit_rlhf.modules import DPOModule, PPOModule, RewardModule
from lit_rlhf.modules.phase import PhaseModule
from lit_rlhf.modules.ppo_update import UpdateConfig
from lit_rlhf.modules.rewarded_policy import RewardedPolicy
from lit_rlhf.modules.sharding import FSDP2Strategy
from lit_rlhf.rewards import LearnedReward, origins_of
from lit_rlhf.rollout import TorchGenerator
from lit_rlhf.rollout.cache_size import rows_for

# Batches of the first epoch that are looked at for the largest one.
_NUM_BATCHES = 50


def setup_of(trainer: Trainer, module: PhaseModule, data: LightningDataModule) -> Setup:
    """Read what the memory of a run depends on.

    Args:
        trainer: of the run.
        module: of the phase; its models are not loaded.
        data: its data module; the data are read and tokenised, as the run would.

    Raises:
        ConfigError: the phase has no training data.
    """
    data.prepare_data()
    data.setup("fit")
    loader: Any = data.train_dataloader()
    batches = list(itertools.islice(loader, min(_NUM_BATCHES, _batches_of_run(trainer, module))))
    if not batches:
        raise ConfigError("data.train: there is nothing to train on")
    on_cpu = trainer.strategy.root_device.type == "cpu" and module.cpu_paths
    trained = Kind(
        module.source,
        "reward" if isinstance(module, RewardModule) else "policy",
        trains=True,
        lora=module.lora,
        weights=module.optimizer.weights,
        precision=str(trainer.precision),
        checkpointing=module.activation_checkpointing,
        on_cpu=on_cpu,
    )
    num_batches = len(loader) * (trainer.max_epochs or 1)
    common: dict[str, Any] = {
        "phase": module.phase,
        "states": module.optimizer.states,
        "device": trainer.strategy.root_device.type,
        "strategy": _strategy_of(trainer),
        "num_processes": trainer.world_size,
    }
    if isinstance(module, RewardedPolicy):
        return _setup_of_rollouts(trainer, module, trained, batches, num_batches, common)
    shares = [_share(batch, trainer.world_size) for batch in batches]
    scored = isinstance(module, RewardModule)
    packed = [_packed(rows, module, common["device"], scores_rows=scored) for rows in shares]
    frozen = {}
    computes_reference = isinstance(module, DPOModule) and (
        module.loss.requires_reference and module.reference_logprobs == "on_the_fly"
    )
    if computes_reference and module.lora is None:
        frozen["reference"] = trained._replace(trains=False, checkpointing=False)
    accumulated = trainer.accumulate_grad_batches
    return Setup(
        trained={module.source_option: trained},
        frozen=frozen,
        rows=max(packed, key=lambda rows: rows.num_tokens),
        num_micro_batches=accumulated,
        num_steps=_limited(math.ceil(num_batches / accumulated), trainer),
        step_tokens=accumulated * trainer.world_size * _mean(shares),
        **common,
    )


def _setup_of_rollouts(
    trainer: Trainer,
    module: RewardedPolicy,
    policy: Kind,
    batches: list[PromptBatch],
    num_batches: int,
    common: dict[str, Any],
) -> Setup:
    update, samples = _update_of(module), module.samples_per_prompt
    longest = max(batches, key=lambda batch: int(batch.lengths.sum()))
    own = torch.arange(0, len(longest.lengths), trainer.world_size)
    rows = _full_rows(longest, own, samples, module.sampling.max_new_tokens)
    drawn = rows.lengths.tolist()
    if not isinstance(module, PPOModule):  # online DPO learns from two samples of each prompt
        rows = _full_rows(longest, own, 2, module.sampling.max_new_tokens)
    lengths = rows.lengths.tolist()
    size = -(-len(lengths) // update.num_minibatches)
    parts = cut_by_tokens(
        lengths[:size],
        update.micro_batch_size,
        update.micro_batch_tokens,
        padded=module.packing_width is None,
    )
    micro_batches = [
        _packed(rows.select(torch.arange(part.start, part.stop)), module, common["device"])
        for part in parts
    ]
    frozen = _frozen_beside(module, policy)
    scored = _scored_rows(module, drawn)
    accumulated = trainer.accumulate_grad_batches
    return Setup(
        trained={"policy": policy, **_critic_of(module, policy)},
        frozen=frozen,
        rows=max(micro_batches, key=lambda one: one.num_tokens),
        num_micro_batches=len(parts) * accumulated,
        scored=scored if any(kind.role == "reward" for kind in frozen.values()) else None,
        rollout=_rollout_of(module, longest.lengths[own], samples, common["device"]),
        judges=() if common["device"] == "cpu" else tuple(module.judges),
        num_steps=_limited(math.ceil(num_batches * update.num_steps / accumulated), trainer),
        step_tokens=accumulated * trainer.world_size * sum(lengths[:size]),
        **common,
    )


def _update_of(module: RewardedPolicy) -> UpdateConfig:
    """Return how often an iteration steps; online DPO takes one step with all of its pairs."""
    if isinstance(module, PPOModule):
        return module.update
    return UpdateConfig(num_epochs=1, num_minibatches=1)


def _critic_of(module: RewardedPolicy, policy: Kind) -> dict[str, Kind]:
    """Return PPO's critic, where it is a model of its own."""
    if not isinstance(module, PPOModule) or module.critic_kind != "separate":
        return {}
    if not module.advantage.requires_values or module.critic_source is None:
        return {}
    return {"critic": policy._replace(source=module.critic_source, role="reward", lora=None)}


def _frozen_beside(module: RewardedPolicy, policy: Kind) -> dict[str, Kind]:
    """Return the reference, and the reward models that are not adapters on the policy's weights."""
    frozen = {}
    fixed = policy._replace(trains=False, lora=None, weights="float32", checkpointing=False)
    if module.computes_kl and (module.lora is None or module.reference_source is not None):
        reference = fixed._replace(source=module.reference_source or module.source)
        frozen["reference"] = reference
    for name, source in origins_of(module.sources).items():
        try:
            check_kind(source, "reward")
        except CheckpointError:
            continue  # a policy, or what no folder describes
        if not (module.lora is not None and is_adapter(source)):
            frozen[name] = fixed._replace(source=source, role="reward")
    return frozen


def _scored_rows(module: RewardedPolicy, lengths: list[int]) -> Rows | None:
    """Return the largest forward of a reward model, closed by its EOS."""
    learned = [one for one in module.sources.values() if isinstance(one, LearnedReward)]
    if not learned:
        return None
    ordered = sorted(length + 1 for length in lengths)
    sizes = [
        Rows(part.stop - part.start, ordered[part.stop - 1], part.stop - part.start, True)
        for one in learned
        for part in cut_by_tokens(ordered, one.batch_size, one.batch_tokens)
    ]
    return max(sizes, key=lambda rows: rows.num_tokens)


def _rollout_of(
    module: RewardedPolicy, lengths: torch.Tensor, samples: int, device: str
) -> Rollout | None:
    generator = module.generator
    if not isinstance(generator, TorchGenerator):
        return None
    longest_prompt = int(lengths.max())
    most_rows = generator.max_rows or rows_for(torch.device(device))
    return Rollout(
        min(most_rows, len(lengths) * samples),
        samples,
        longest_prompt,
        longest_prompt + module.sampling.max_new_tokens,
        config_of(module.source).get_text_config().vocab_size,
        generator.prefill_tokens,
        generator.max_cached_tokens,
    )


def _full_rows(batch: PromptBatch, own: torch.Tensor, samples: int, num_new: int) -> TokenRows:
    """Return rows of these prompts with responses as long as they can be."""
    prompts = own.repeat_interleave(samples)
    starts = batch.lengths[prompts]
    lengths = starts + num_new
    columns = torch.arange(int(lengths.max()))
    ids = torch.zeros(len(prompts), len(columns), dtype=torch.long)
    width = min(batch.input_ids.shape[1], len(columns))
    ids[:, :width] = batch.input_ids[prompts, :width]
    mask = (columns >= starts[:, None]) & (columns < lengths[:, None])
    return TokenRows(torch.where(columns < starts[:, None], ids, 0), lengths, mask)


def _share(batch: TokenRows | ComparisonBatch, num_processes: int) -> TokenRows:
    """Return the rows of one process, about."""
    rows = batch if isinstance(batch, TokenRows) else batch.rows
    return rows.select(torch.arange(0, len(rows.lengths), num_processes))


def _packed(
    rows: TokenRows, module: PhaseModule, device: str, *, scores_rows: bool = False
) -> Rows:
    """Return the forward that the rows become."""
    num_scored = len(rows.lengths) if scores_rows else int(rows.response_mask.sum())
    prompts = rows.response_mask.int().argmax(1)
    width = module.packing_width
    if width is not None and device == "cuda":
        packed, _ = lay_end_to_end(rows.input_ids, rows.lengths, prompts)
    else:
        packed = pack_rows(rows.input_ids, rows.lengths, prompts, width)
    num_rows, row_width = packed.input_ids.shape
    return Rows(num_rows, row_width, num_scored, device != "cuda")


def _batches_of_run(trainer: Trainer, module: PhaseModule) -> int:
    """Return how many batches a run with `max_steps` sees, at most."""
    if trainer.max_steps <= 0:
        return _NUM_BATCHES
    if isinstance(module, PPOModule):
        return math.ceil(trainer.max_steps / module.update.num_steps)
    return trainer.max_steps * trainer.accumulate_grad_batches


def _strategy_of(trainer: Trainer) -> str:
    if isinstance(trainer.strategy, FSDP2Strategy):
        return "fsdp2"
    return "ddp" if isinstance(trainer.strategy, DDPStrategy) else "single"


def _limited(num_steps: int, trainer: Trainer) -> int | None:
    if trainer.max_steps > 0:
        return min(num_steps, trainer.max_steps) if trainer.max_epochs else trainer.max_steps
    return None if trainer.max_epochs == -1 else num_steps


def _mean(batches: list[TokenRows]) -> int:
    """Return the tokens of a batch on average."""
    return sum(int(rows.lengths.sum()) for rows in batches) // len(batches)
