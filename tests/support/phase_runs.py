"""Every phase as a tiny run of its own: what tests of several processes and of resuming compare."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.tensor import DTensor

from lit_rlhf.callbacks import KLControl, ReferenceSync
from lit_rlhf.data import DPODataModule, PPODataModule, RewardDataModule, SFTDataModule
from lit_rlhf.models import LoRAConfig
from lit_rlhf.modules import (
    DPOModule,
    NormalizerConfig,
    OnlineDPOModule,
    OptimizerConfig,
    PPOModule,
    RewardModule,
    SFTModule,
    UpdateConfig,
)
from lit_rlhf.objectives import DPO, GRPO, KTO, RLOO, BradleyTerryLoss
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
        gradients: before each optimizer step, whole where they are sharded.
        advantages: of each rollout by prompt and response, whitened, one a token.
        optimizer: the optimizer's state.
    """

    weights: dict[str, torch.Tensor]
    metrics: list[dict[str, float]]
    held_out: dict[str, float]
    heard: list[list[tuple[str, str]]]
    lengths: list[list[int]]
    gradients: list[dict[str, torch.Tensor]]
    advantages: list[list[tuple[str, str, list[float]]]]
    optimizer: dict


class GradientRecorder(pl.Callback):
    """Keeps the gradients of each optimizer step."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps.append(
            {
                name: _whole(parameter.grad)
                for name, parameter in pl_module.named_parameters()
                if parameter.grad is not None
            }
        )


def _record_advantages(module):
    """Keep what each rollout's responses are trained with; nothing public shows it."""
    rollouts = []
    compute = module._targets

    def compute_and_keep(rollout):
        targets = compute(rollout)
        samples = rollout.samples
        rows = zip(
            samples.prompts,
            samples.responses,
            targets.advantages,
            samples.response_mask,
            strict=True,
        )
        rollouts.append([(p, r, row[mask].tolist()) for p, r, row, mask in rows if mask.any()])
        return targets

    module._targets = compute_and_keep
    return rollouts


def write_inputs(folder: Path) -> None:
    """Write a policy that ends its responses after different lengths, and data of all phases."""
    save_policy(folder, eos_token_id=list(range(1, 24)))
    write_rows(folder / "sft.jsonl", demonstrations(7))
    write_rows(folder / "groups.jsonl", judged_groups(7))
    write_rows(folder / "prompts.jsonl", prompts(14))
    labels = [row | {"label": index % 2} for index, row in enumerate(demonstrations(7))]
    write_rows(folder / "labels.jsonl", labels)
    write_rows(folder / "labels-validation.jsonl", labels[:3])
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
        return SFTModule(policy, **shared), SFTDataModule(
            policy, **_data(folder, "sft", 2, *variants)
        )
    if phase == "dpo":
        # With each batch, the first margins are zero: no rounding decides who is right.
        mode = "precomputed" if "precomputed" in variants else "on_the_fly"
        rows, loss = ("labels", KTO()) if "kto" in variants else ("groups", DPO())
        module = DPOModule(policy, loss=loss, reference_logprobs=mode, **shared)
        return module, DPODataModule(policy, **_data(folder, rows, 2, *variants))
    if phase == "reward":
        normalizer = NormalizerConfig(
            str(folder / "prompts.jsonl"), num_samples=4, max_new_tokens=4
        )
        module = RewardModule(
            policy, normalizer=normalizer, loss=BradleyTerryLoss(centering=0.01), **shared
        )
        return module, RewardDataModule(policy, **_data(folder, "groups", 2, *variants))
    prompt_data = PPODataModule(policy, **_data(folder, "prompts", 4, *variants))
    if phase == "online":
        sampling = Sampling(max_new_tokens=10)
        return OnlineDPOModule(policy, Listener(), sampling=sampling, **shared), prompt_data
    assert phase == "ppo"
    if "separate" in variants:
        # With seed 0 the short batch is one response of one token, and its advantage 0.03 beside a
        # value of 0.29: the rounding of the value is 3e-5 of the gradient.
        shared |= {"critic": "separate", "critic_source": str(folder / "reward"), "seed": 1}
    for name, advantage in (("grpo", GRPO(k=3)), ("rloo", RLOO(k=2))):
        if name in variants:
            shared["advantage"] = advantage
    module = PPOModule(
        policy,
        Listener(),
        update=UpdateConfig(
            # In all NUM_EPOCHS steps an iteration.
            NUM_EPOCHS // 2 if "minibatches" in variants else NUM_EPOCHS,
            num_minibatches=2 if "minibatches" in variants else 1,
            micro_batch_size=1,
            value_coef=0.1 if {"grpo", "rloo"} & set(variants) else 0.5,
            entropy_coef=0.01,
        ),
        sampling=Sampling(max_new_tokens=10),
        **shared,
    )
    return module, prompt_data


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
            at the end, or a model folder where the name does not end in `.ckpt`.
    """
    torch.manual_seed(seed)
    module, data = build(case, folder)
    recorder = Recorder()
    is_ppo = isinstance(module, PPOModule)
    control = KLControl(target=2.0, coefficient=0.2, horizon=16.0)
    callbacks = [control] if is_ppo else []
    callbacks += [ReferenceSync(1, 0.5)] if "sync" in case.split("-") else []
    gradients = GradientRecorder()
    callbacks += [*options.pop("callbacks", []), recorder, gradients]
    advantages = _record_advantages(module) if is_ppo else []
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
    if save_as is not None and save_as.suffix == ".ckpt":
        trainer.save_checkpoint(save_as)
    elif save_as is not None:
        module.save_pretrained(save_as)
    heard = module.reward.heard if case.startswith(("ppo", "online")) else []
    lengths = module.reward.lengths if heard else []
    optimizer = trainer.optimizers[0].state_dict()
    return Run(
        _state(module),
        recorder.batches,
        recorder.held_out,
        heard,
        lengths,
        gradients.steps,
        advantages,
        optimizer,
    )


def checkpoints_after(folder: Path, case: str, num_batches: int) -> ModelCheckpoint:
    """Return a callback that saves `last.ckpt` whenever so many batches have been trained on."""
    per_batch = NUM_EPOCHS if case.startswith("ppo") else 1
    return ModelCheckpoint(
        folder, "last", every_n_train_steps=num_batches * per_batch, enable_version_counter=False
    )


def _data(folder, name, batch_size, *variants):
    short = {"short1": 5, "short3": 7}  # an epoch of four examples, then of one or three
    limit = next((limit for variant, limit in short.items() if variant in variants), None)
    if limit is not None:
        batch_size = 4
    return {
        "limit_train": limit,
        "last_batch": "drop" if limit is None else "keep",
        "train": str(folder / f"{name}.jsonl"),
        "validation": str(folder / f"{name}-validation.jsonl"),
        "batch_size": batch_size,
        "eval_batch_size": 2,
    }


def _whole(value):
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()


def _state(module):
    return {
        name: _whole(value)
        for name, value in module.state_dict().items()
        if not name.startswith("reference.")
    }
