"""Phase 4: direct preference optimization, the alternative without a reward model."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig

from lit_rlhf.batches import ComparisonBatch
from lit_rlhf.models.backbone import LoRAConfig
from lit_rlhf.models.packing import DEFAULT_WIDTH
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.modules.building import build_policy, build_reference
from lit_rlhf.modules.metrics import NamedMeans
from lit_rlhf.modules.optimizers import OptimizerConfig
from lit_rlhf.modules.phase import PhaseModule
from lit_rlhf.objectives.preference import DPO, PreferenceLoss, PreferenceOutput

_METRICS = ("loss", "accuracy", "chosen_rewards", "rejected_rewards", "margin")
_LOGPROBS = ("chosen_logprobs", "rejected_logprobs")


class DPOModule(PhaseModule):
    """Prefer what people prefer, directly: the policy is its own reward model.

    The reference is a frozen copy of the policy as loaded, or with LoRA the policy itself with
    its adapter switched off. Each distinct response of a batch goes through each model once.

    Args:
        policy: the SFT policy: hub name, Hugging Face folder or checkpoint.
        lora: train low-rank adapters; then no second model is held.
        optimizer: AdamW and its schedule.
        loss: the preference loss, by `class_path` or short name.
        packing_width: tokens in a packed row of the trunk, null for padded rows.
        activation_checkpointing: recompute the layers in the backward pass instead of keeping
            their activations.
    """

    kind = "policy"

    def __init__(
        self,
        policy: str,
        lora: LoRAConfig | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6),
        loss: PreferenceLoss = DPO(),
        packing_width: int | None = DEFAULT_WIDTH,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(policy, lora, optimizer, activation_checkpointing)
        self.loss = loss
        self.packing_width = packing_width
        self.policy: PolicyModel | None = None
        self.reference: PolicyModel | None = None
        self.validation_means = NamedMeans(_METRICS + _LOGPROBS)

    @property
    def model_config(self) -> PretrainedConfig:
        """The policy's configuration."""
        assert self.policy is not None
        config: PretrainedConfig = self.policy.transformers_config
        return config

    def configure_model(self) -> None:
        """Load the policy and, without LoRA, a frozen copy of it."""
        if self.policy is not None:
            return
        self.policy = build_policy(
            self.source,
            self.lora,
            frozen_dtype=self.frozen_dtype,
            packing_width=self.packing_width,
        )
        if self.lora is None and self.loss.requires_reference:
            self.reference = build_reference(
                self.source, frozen_dtype=self.frozen_dtype, packing_width=self.packing_width
            )
            self.prepare(self.reference)
        self.prepare(self.policy)

    def training_step(self, batch: ComparisonBatch, batch_idx: int) -> Tensor:
        """Return the preference loss over all judged pairs of the batch."""
        values = self._pair_values(batch)
        self._log_means(values, batch)
        weight = batch.weight.sum()
        loss = self.global_mean((values["loss"] * batch.weight).sum(), weight)
        return self.step_loss(loss, weight)

    def validation_step(self, batch: ComparisonBatch, batch_idx: int) -> None:
        """Collect loss, accuracy, implicit rewards and log-probabilities on held-out pairs."""
        self.validation_means.update(
            self._pair_values(batch), batch.weight, accuracy=_decided_weight(batch)
        )

    def on_validation_epoch_end(self) -> None:
        """Log the means over all held-out pairs."""
        for name, mean in self.validation_means.compute().items():
            self.log(f"{self.stage}/dpo/{name}", mean, prog_bar=name == "accuracy")

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def _log_means(self, values: dict[str, Tensor], batch: ComparisonBatch) -> None:
        """Log the means over the pairs of all ranks, each pair by its weight."""
        weights = dict.fromkeys(values, batch.weight) | {"accuracy": _decided_weight(batch)}
        totals = [(values[name].detach() * weight).sum() for name, weight in weights.items()]
        counts = [weight.sum() for weight in weights.values()]
        sums = self.sum_over_ranks(torch.stack([torch.stack(totals), torch.stack(counts)]))
        for name, mean in zip(weights, sums[0] / sums[1], strict=True):
            self.log(f"train/dpo/{name}", mean, prog_bar=name == "loss")

    def _pair_values(self, batch: ComparisonBatch) -> dict[str, Tensor]:
        """Compare all pairs: `[M]` values by the names of their metrics."""
        assert self.policy is not None
        logprobs = self.policy(batch.rows).logprobs.sum(1)  # [N]
        output = self._compare(batch, logprobs)
        margin = output.chosen_rewards - output.rejected_rewards
        # A pair counts as right when the margin leans to the side most people took; a tie, half.
        agreement = torch.sign(margin) * torch.sign(batch.probability - 0.5)
        return {
            "loss": output.losses,
            "accuracy": (1 + agreement) / 2,
            "chosen_rewards": output.chosen_rewards,
            "rejected_rewards": output.rejected_rewards,
            "margin": margin,
            "chosen_logprobs": logprobs[batch.chosen],
            "rejected_logprobs": logprobs[batch.rejected],
        }

    def _compare(self, batch: ComparisonBatch, logprobs: Tensor) -> PreferenceOutput:
        reference = self._reference_logprobs(batch)
        return self.loss(
            logprobs[batch.chosen],
            logprobs[batch.rejected],
            reference[batch.chosen],
            reference[batch.rejected],
            batch.probability,
        )

    @torch.no_grad()
    def _reference_logprobs(self, batch: ComparisonBatch) -> Tensor:
        """Return the reference's log-probability of each response: `[N]`."""
        assert self.policy is not None
        if not self.loss.requires_reference:
            return torch.zeros(len(batch.rows.lengths), device=self.device)
        if self.reference is not None:
            logprobs: Tensor = self.reference(batch.rows).logprobs
        else:
            logprobs = self.policy(batch.rows, with_adapter=False).logprobs
        return logprobs.sum(1)


def _decided_weight(batch: ComparisonBatch) -> Tensor:
    # Where people are divided evenly, neither side is right.
    return batch.weight * (batch.probability != 0.5)
