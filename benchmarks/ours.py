"""Our side: the phases as their commands run them, one optimizer step (or iteration) a round.

python -m benchmarks.ours WORKLOAD [--check]
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from benchmarks.gate import Gate
from benchmarks.workloads import (
    MODEL,
    PRECISION,
    REWARD_ADAPTER,
    ROWS,
    TRUNK_WEIGHTS,
    VOCABULARY_WEIGHTS,
    Workload,
    named,
)
from lit_rlhf.batches import PromptBatch, TokenRows
from lit_rlhf.callbacks import KLControl
from lit_rlhf.data import DPODataModule, PPODataModule, RewardDataModule, SFTDataModule
from lit_rlhf.models import PolicyModel, freeze, load_causal_lm
from lit_rlhf.models.backbone import LoRAConfig
from lit_rlhf.models.packing import pack_rows
from lit_rlhf.modules import DPOModule, PPOModule, RewardModule, SFTModule
from lit_rlhf.modules.optimizers import OptimizerConfig
from lit_rlhf.modules.ppo_update import UpdateConfig
from lit_rlhf.objectives import GRPO, MissingEOS
from lit_rlhf.rewards import FunctionReward, LearnedReward
from lit_rlhf.rollout import Sampling, TorchGenerator

_OPTIMIZER = OptimizerConfig(learning_rate=1e-5, schedule="constant", warmup_fraction=0.0)


class _Gated(Callback):
    """Lets the Trainer make one step a round."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.grad_norm = float("nan")
        self.loss = 0.0
        self.count = 1.0
        self.num_tokens = 0.0
        self.flops = 0.0  # counted for batches of rows only

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.loss = self.num_tokens = self.flops = 0.0
            if not self.gate.wait():
                os._exit(0)
        rows = getattr(batch, "rows", batch)
        self.num_tokens += float(rows.lengths.sum())
        if isinstance(rows, TokenRows):
            self.flops += model_flops(rows, has_vocabulary=not isinstance(pl_module, RewardModule))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
        # Micro-batches enter by their sums; the module divides after this.
        self.count = getattr(pl_module, "_accumulated_count", 0.0) or 1.0
        self.grad_norm = float(torch.nn.utils.get_total_norm(grads)) / self.count

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self.loss += float(loss) if isinstance(loss, Tensor) else float("nan")
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        # The reference scores all rows before the first step: each step is charged with its part.
        num_steps = trainer.num_training_batches // trainer.accumulate_grad_batches
        reference = getattr(pl_module, "reference_seconds", 0.0) / num_steps
        self.gate.report(
            loss=self.loss / self.count,
            grad_norm=self.grad_norm,
            tokens=self.num_tokens,
            flops=self.flops,
            reference_seconds=reference,
        )


def model_flops(rows: TokenRows, *, has_vocabulary: bool) -> float:
    """Return what forward and backward of a full fine-tuning must multiply and add.

    `6 * weights` for each token that differs, a shared prompt's once, and the vocabulary for
    response tokens alone; attention, and what is computed again to save memory, count as nothing.
    """
    prompts = rows.response_mask.int().argmax(1)
    packed = pack_rows(rows.input_ids, rows.lengths, prompts, 512)
    is_real = torch.arange(rows.input_ids.shape[1]) < rows.lengths[:, None]
    num_tokens = packed.flat_index[is_real].unique().numel()
    num_responses = int(rows.response_mask.sum()) if has_vocabulary else 0
    return 6.0 * (TRUNK_WEIGHTS * num_tokens + VOCABULARY_WEIGHTS * num_responses)


class _TimedDPO(DPOModule):
    """Keeps how long the reference took, to charge each step with its share."""

    reference_seconds = 0.0

    def on_fit_start(self) -> None:
        start = time.perf_counter()
        super().on_fit_start()
        self.reference_seconds = time.perf_counter() - start


def _parts(workload: Workload) -> tuple[LightningModule, Any]:
    rows = str(ROWS / f"{workload.settings.get('rows', workload.name)}.jsonl")
    rank = workload.settings.get("lora")
    lora = LoRAConfig(rank=int(str(rank)), alpha=32.0) if rank else None
    source = "backbone" if workload.phase == "reward" else "policy"
    common: dict[str, Any] = {source: MODEL, "lora": lora, "optimizer": _OPTIMIZER}
    if workload.phase == "sft":
        columns = {"response": "completion"}
        return SFTModule(**common), SFTDataModule(MODEL, train=rows, batch_size=32, columns=columns)
    if workload.phase == "reward":
        batch_size = 4 if workload.name == "groups" else 16 // workload.micro_batches
        return RewardModule(**common), RewardDataModule(MODEL, train=rows, batch_size=batch_size)
    if workload.phase == "dpo":
        module = _TimedDPO(**common, reference_logprobs="precomputed")
        return module, DPODataModule(MODEL, train=rows, batch_size=int(workload.ours))
    sampling = Sampling(max_new_tokens=int(str(workload.settings["new_tokens"])))
    epochs = int(str(workload.settings["epochs"]))
    ppo: dict[str, Any] = {**common, "sampling": sampling, "missing_eos": MissingEOS("keep")}
    if workload.phase == "grpo":
        samples = int(str(workload.settings["samples"]))
        module = PPOModule(
            **ppo,
            reward=FunctionReward("benchmarks.workloads.score_length"),
            advantage=GRPO(k=samples),
            update=UpdateConfig(num_epochs=1, micro_batch_size=32 // workload.micro_batches),
            kl_penalty=None,  # as TRL's beta 0: no reference
        )
        return module, PPODataModule(MODEL, train=rows, batch_size=int(workload.ours) // samples)
    reward = REWARD_ADAPTER if lora else ROWS / "reward-model"
    micro_batch_size = int(workload.ours) // workload.micro_batches
    module = PPOModule(
        **ppo,
        reward=LearnedReward(str(reward)),
        update=UpdateConfig(num_epochs=epochs, micro_batch_size=micro_batch_size),
    )
    return module, PPODataModule(MODEL, train=rows, batch_size=int(workload.ours))


def train(workload: Workload, gate: Gate, *, check: bool) -> None:
    """Run a phase, a step a round."""
    module, data = _parts(workload)
    if check:
        data._limits["train"] = data.batch_size * workload.micro_batches
    manual = workload.phase in ("ppo", "grpo")
    kl = [KLControl(target=None, coefficient=0.05)] if manual else []  # TRL's
    trainer = Trainer(
        accelerator="cpu",
        precision="32-true" if check else PRECISION,
        max_epochs=100,
        gradient_clip_val=None if manual else 1.0,
        accumulate_grad_batches=1 if manual else workload.micro_batches,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        callbacks=[_Gated(gate), _FixedStart(), *kl],
    )
    trainer.fit(module, data)


class _FixedStart(Callback):
    """Both sides start from the same scalar head and adapters, which else are random."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, parameter in pl_module.named_parameters():
            if "lora_A" in name:
                with torch.no_grad():
                    parameter.copy_(0.02 * torch.arange(parameter.numel()).cos().view_as(parameter))
        if isinstance(pl_module, RewardModule) and pl_module.reward_model is not None:
            weight = pl_module.reward_model.head.linear.weight
            with torch.no_grad():
                weight.copy_(0.05 * torch.arange(weight.numel()).cos()[None])


def generate(workload: Workload, gate: Gate) -> None:
    """Draw the responses of all prompts, a pass a round."""
    settings = workload.settings
    data = PPODataModule(
        MODEL,
        test=str(ROWS / f"{settings.get('rows', workload.name)}.jsonl"),
        eval_batch_size=int(str(settings["prompts"])),
    )
    data.setup("test")
    prompts = next(iter(data.test_dataloader()))
    assert isinstance(prompts, PromptBatch)
    is_mixed = PRECISION == "bf16-mixed"
    dtype = torch.bfloat16 if is_mixed else None
    policy = PolicyModel(freeze(load_causal_lm(str(ROWS / "generator")), dtype))
    sampling = Sampling(
        max_new_tokens=int(str(settings["new_tokens"])),
        min_new_tokens=int(str(settings["min_tokens"])),
    )
    generator, seed = TorchGenerator(), 0
    while gate.wait():
        seed += 1
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            generation = generator(policy, prompts, sampling, stop_ids=[2], seed=seed)
        lengths = generation.lengths
        gate.report(
            tokens=float(lengths.sum()),
            flops=2.0 * float(TRUNK_WEIGHTS * (prompts.lengths + lengths).sum())
            + 2.0 * VOCABULARY_WEIGHTS * float(lengths.sum()),
            bytes=bytes_read(policy, prompts.lengths, lengths, 2 if is_mixed else 4),
        )


def bytes_read(policy: PolicyModel, prompts: Tensor, responses: Tensor, width: int) -> float:
    """Return what decoding must read of memory: all weights a step, and each row's cache.

    Of a batch whose rows end together; 0 where they do not, and steps are shared by other rows.

    Args:
        policy: the model that speaks.
        prompts: `[B]` tokens of each prompt.
        responses: `[B]` tokens of each response.
        width: bytes of a number.
    """
    if len(responses.unique()) > 1:
        return 0.0
    config = policy.model.config
    num_steps = int(responses[0])
    row = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    tokens = sum(float((prompts + step).sum()) for step in range(num_steps))
    return width * (num_steps * (TRUNK_WEIGHTS + VOCABULARY_WEIGHTS) + row * tokens)


def main() -> None:
    """Run the side that the arguments name."""
    gate = Gate()
    workload, check = named(sys.argv[1]), "--check" in sys.argv
    torch.manual_seed(0)
    if workload.phase == "generate":
        generate(workload, gate)
    else:
        train(workload, gate, check=check)


if __name__ == "__main__":
    main()
