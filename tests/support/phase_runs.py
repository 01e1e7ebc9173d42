"""Every phase as a tiny run of its own: what tests of several processes and of resuming compare."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.tensor import DTensor

from lit_rlhf.callbacks import AdaptiveKLCallback
from lit_rlhf.data import DPODataModule, PPODataModule, RewardDataModule, SFTDataModule
from lit_rlhf.models import LoRAConfig
from lit_rlhf.modules import (
    DPOModule,
    NormalizerConfig,
    OptimizerConfig,
    PPOModule,
    RewardModule,
    SFTModule,
    UpdateSettings,
)
from lit_rlhf.objectives import AdaptiveKL
from lit_rlhf.rewards import RewardSource
from lit_rlhf.rollout import Sampling
from tests.models.examples import save_policy
from tests.support.phases import (
    Recorder,
    demonstrations,
    judged_groups,
    phase_trainer,
    prompts,
    write_rows,
)

NUM_EPOCHS = 2  # PPO's passes over a rollout: optimizer steps of an iteration
# A large eps: Adam must not divide the rounding error of a gradient near zero by itself.
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, eps=1e-3)
LORA = LoRAConfig(rank=2, alpha=4.0)
# All that saves memory at once.
MEMORY = {
    "optimizer": replace(OPTIMIZER, states="bf16", weights="bf16"),
    "activation_checkpointing": True,
}
_HELD_OUT = "another: "  # how the prompts of validation begin


@dataclass(frozen=True)
class Listener(RewardSource):
    """Scores responses by their vowels, and keeps what it was asked about in training."""

    heard: list[list[tuple[str, str]]] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)

    def __call__(self, prompts, responses, batch):
        if not prompts[0].startswith(_HELD_OUT):
            self.heard.append(list(zip(prompts, responses, strict=True)))
            self.lengths.append(batch.response_mask.sum(1).tolist())
        scores = [float(sum(map(response.count, "aeiou"))) for response in responses]
        return torch.tensor(scores)


@dataclass
class Run:
    """What a run left behind, in plain types, so that it can travel between processes.

    Attributes:
        weights: everything that training changes, whole where it was sharded.
        metrics: logged after each training batch.
        held_out: of the last validation.
        heard: (prompt, response) of each rollout.
        lengths: of these responses in tokens.
        optimizer: the optimizer's state.
    """

    weights: dict[str, torch.Tensor]
    metrics: list[dict[str, float]]
    held_out: dict[str, float]
    heard: list[list[tuple[str, str]]]
    lengths: list[list[int]]
    optimizer: dict


def write_inputs(folder: Path) -> None:
    """Write a policy that ends its responses after different lengths, and data of all phases."""
    save_policy(folder, eos_token_id=list(range(1, 24)))
    write_rows(folder / "sft.jsonl", demonstrations(7))
    write_rows(folder / "groups.jsonl", judged_groups(7))
    write_rows(folder / "prompts.jsonl", prompts(14))
    # Three rows: a short last batch.
    write_rows(folder / "sft-validation.jsonl", demonstrations(3))
    write_rows(folder / "groups-validation.jsonl", judged_groups(3))
    held_out = [{"prompt": _HELD_OUT + row["prompt"]} for row in prompts(3)]
    write_rows(folder / "prompts-validation.jsonl", held_out)


def build(case: str, folder: Path, **changes):
    """Return module and data module of a case: a phase, perhaps with a variant behind a dash.

    Args:
        case: such as "sft" or "ppo-lora".
        folder: with the inputs.
        **changes: options of the module.
    """
    phase, _, variant = case.partition("-")
    policy = str(folder)
    variants = variant.split("-")
    shared = {"lora": LORA if "lora" in variants else None, "optimizer": OPTIMIZER}
    shared |= (MEMORY if "memory" in variants else {}) | changes
    if phase == "sft":
        return SFTModule(policy, **shared), SFTDataModule(policy, **_data(folder, "sft", 2))
    if phase == "dpo":
        # With each batch, the first margins are zero: no rounding decides who is right.
        mode = "cached" if "cached" in variants else "on_the_fly"
        module = DPOModule(policy, reference_logprobs=mode, **shared)
        return module, DPODataModule(policy, **_data(folder, "groups", 2))
    if phase == "reward":
        normalizer = NormalizerConfig(
            str(folder / "prompts.jsonl"), num_samples=4, max_new_tokens=4
        )
        module = RewardModule(policy, normalizer=normalizer, centering=0.01, **shared)
        return module, RewardDataModule(policy, **_data(folder, "groups", 2))
    assert phase == "ppo"
    critic = {}
    if variant == "separate":
        critic = {"critic": "separate", "critic_source": str(folder / "reward.ckpt")}
    module = PPOModule(
        policy,
        Listener(),
        update=UpdateSettings(NUM_EPOCHS, micro_batch_size=1, value_coef=0.5, entropy_coef=0.01),
        sampling=Sampling(max_new_tokens=10),
        kl_coef=0.2,
        **shared,
        **critic,
    )
    return module, PPODataModule(policy, **_data(folder, "prompts", 4))


def run(
    case: str, folder: Path, *, max_batches: int, ckpt_path=None, seed: int = 0, **options
) -> Run:
    """Fit a case and return what it left behind.

    Args:
        case: see `build`.
        folder: with the inputs.
        max_batches: training batches of the whole run.
        ckpt_path: resume from there.
        seed: of fresh heads and adapters, and of whatever else draws.
        **options: of the Trainer, but `callbacks` are added to ours; `save_as` writes a checkpoint
            at the end.
    """
    torch.manual_seed(seed)
    module, data = build(case, folder)
    recorder = Recorder()
    is_ppo = isinstance(module, PPOModule)
    controller = AdaptiveKL(initial=0.2, target=2.0, horizon=16.0)
    callbacks = [AdaptiveKLCallback(controller)] if is_ppo else []
    callbacks += [*options.pop("callbacks", []), recorder]
    save_as = options.pop("save_as", None)
    trainer = phase_trainer(
        folder,
        max_epochs=4,
        max_steps=max_batches * (NUM_EPOCHS if is_ppo else 1),
        precision="bf16-mixed" if case.endswith(("-bf16", "-memory")) else "32-true",
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in callbacks),
        **options,
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    if save_as is not None:
        trainer.save_checkpoint(save_as)
    heard = module.reward.heard if is_ppo else []
    lengths = module.reward.lengths if is_ppo else []
    optimizer = trainer.optimizers[0].state_dict()
    return Run(_state(module), recorder.batches, recorder.held_out, heard, lengths, optimizer)


def checkpoints_after(folder: Path, case: str, num_batches: int) -> ModelCheckpoint:
    """Return a callback that saves `last.ckpt` whenever so many batches have been trained on."""
    per_batch = NUM_EPOCHS if case.startswith("ppo") else 1
    return ModelCheckpoint(
        folder, "last", every_n_train_steps=num_batches * per_batch, enable_version_counter=False
    )


def _data(folder, name, batch_size):
    return {
        "train": str(folder / f"{name}.jsonl"),
        "validation": str(folder / f"{name}-validation.jsonl"),
        "batch_size": batch_size,
        "eval_batch_size": 2,
    }


def _state(module):
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in module.state_dict().items()
        if not name.startswith("reference.")
    }
