"""PPO-ptx: demonstrations or plain texts that the policy learns beside the rewards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Trainer

from lit_rlhf.data.ppo import PPODataModule
from lit_rlhf.errors import ConfigError
from lit_rlhf.modules.ppo_update import UpdateConfig, UpdateStatistics
from lit_rlhf.objectives import response_nll

if TYPE_CHECKING:
    from lit_rlhf.modules.ppo import PPOModule


def mix_in(module: PPOModule, step: int, statistics: UpdateStatistics) -> None:
    """Add the gradient of the mixed rows to a step that goes on with others; on all processes.

    `loss = pretraining_coef * sum of nll / number of tokens that count`, over all processes.
    Source: Ouyang et al. 2022 (InstructGPT), eq. 2; its mean over texts is one over tokens here.

    Args:
        module: whose policy learns; its coefficient is positive.
        step: of this iteration, from 0. Counted since the run began, it names the rows.
        statistics: counted into.
    """
    data = module.trainer.datamodule  # type: ignore[attr-defined]  # checked at the start
    number = int(module.num_iterations) * module.update.num_steps + step
    rows = data.pretraining_rows(number, module.global_rank, module.trainer.world_size)
    rows = rows.to(module.device)
    logprobs = module.trained_model(rows).logprobs
    total = response_nll(logprobs, rows.response_mask).sum()
    loss = module.global_mean(total, rows.num_response_tokens)
    module.guard.watch(rows, loss, logprobs=logprobs)
    with module.reduces_gradients(is_last=False):
        module.manual_backward(module.update.pretraining_coef * loss)
    seen = {"pretraining_loss": -logprobs}
    statistics.means.update(seen, rows.response_mask)


def refuse_idle_mixing(trainer: Trainer, update: UpdateConfig) -> None:
    """Refuse a coefficient without rows, and rows without a coefficient.

    Raises:
        ConfigError: one of them would do nothing.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]  # set by the Trainer
    has_rows = isinstance(data, PPODataModule) and data.pretraining is not None
    if has_rows and not update.pretraining_coef:
        raise ConfigError(
            "data.pretraining has no effect with model.update.pretraining_coef 0: set that "
            "(InstructGPT has 27.8), or leave data.pretraining out"
        )
    if update.pretraining_coef and not has_rows:
        raise ConfigError(
            f"model.update.pretraining_coef={update.pretraining_coef} weighs the rows of "
            "data.pretraining, and there are none: set it to a file of demonstrations or texts"
        )
