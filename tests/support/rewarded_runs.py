"""Small runs of PPO and online DPO, whose few steps move the weights far."""

from pathlib import Path

import torch

from lit_rlhf.data import PPODataModule
from lit_rlhf.modules import OptimizerConfig
from lit_rlhf.rewards import FunctionReward
from lit_rlhf.rollout import Sampling
from tests.support.phases import Recorder, phase_trainer, prompts, write_rows

LENGTH = FunctionReward("tests.support.toy_rewards.length")
# A large eps: AdamW must not divide the rounding error of a tiny gradient by itself.
FAST = OptimizerConfig(learning_rate=1e-2, eps=1e-3, schedule="constant", warmup_fraction=0.0)
SHORT = Sampling(max_new_tokens=6)


def fit_rewarded(
    module_class,
    policy: str,
    reward,
    folder: Path,
    *callbacks,
    num_iterations: int = 1,
    num_prompts: int = 12,
    batch_size: int = 4,
    trainer: dict | None = None,
    ckpt_path=None,
    **settings,
):
    """Train a module on prompts, and return it.

    Its `recorder` has the metrics; validation, where the trainer has any, is on the same prompts.
    """
    path = write_rows(folder / "prompts.jsonl", prompts(num_prompts))
    torch.manual_seed(0)  # of adapters
    module = module_class(policy, reward, **{"optimizer": FAST, "sampling": SHORT} | settings)
    module.recorder = Recorder()
    sizes = {"batch_size": batch_size, "eval_batch_size": 5}
    options = {"limit_train_batches": num_iterations, "limit_val_batches": 0} | (trainer or {})
    own = phase_trainer(folder, callbacks=[*callbacks, module.recorder], **options)
    data = PPODataModule(policy, train=path, validation=path, **sizes)
    own.fit(module, data, ckpt_path=ckpt_path)
    return module
