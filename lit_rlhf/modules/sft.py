"""Phase 1: supervised fine-tuning on demonstrations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_rlhf.batches import TokenRows
from lit_rlhf.models.backbone import LoRAConfig
from lit_rlhf.models.given import ModelSource
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.modules.building import build_policy, prepare
from lit_rlhf.modules.metrics import NamedMeans
from lit_rlhf.modules.optimizers import OptimizerConfig
from lit_rlhf.modules.padding_gap import padding_gap
from lit_rlhf.modules.phase import PhaseModule
from lit_rlhf.objectives.language_modeling import response_nll


class SFTModule(PhaseModule):
    """Fine-tune a language model on demonstrations; the loss counts response tokens only.

    Args:
        policy: the base model: hub name or Hugging Face folder.
        lora: train low-rank adapters instead of all weights.
        optimizer: AdamW and its schedule.
        **kwargs: the settings of `PhaseModule`.
    """

    phase = "sft"

    def __init__(
        self,
        policy: ModelSource,
        lora: LoRAConfig | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),
        **kwargs: Any,  # passed on as they are; the config parser finds them there
    ) -> None:
        super().__init__(policy, lora=lora, optimizer=optimizer, **kwargs)
        self.policy: PolicyModel | None = None
        self.validation_means = NamedMeans()

    @property
    def trained_model(self) -> PolicyModel:
        """The policy, once `configure_model` has loaded it."""
        assert self.policy is not None
        return self.policy

    def configure_model(self) -> None:
        """Load the policy."""
        if self.policy is None:
            self.policy = build_policy(self.source, self.lora, **self.load_options)
            prepare(self, self.policy)

    def training_step(self, batch: TokenRows, batch_idx: int) -> Tensor:
        """Return the mean negative log-likelihood of the batch's response tokens."""
        nll = self._nll(batch)
        loss = self.global_mean(nll.sum(), batch.num_response_tokens)
        self.guard.watch(batch, loss, logprobs=nll)
        self.log("train/sft/loss", loss, prog_bar=True, sync_dist=True)
        return self.step_loss(loss, batch.num_response_tokens)

    def validation_step(self, batch: TokenRows, batch_idx: int) -> None:
        """Collect the negative log-likelihood of held-out response tokens."""
        num_tokens = batch.response_mask.sum(1)  # [B]
        means = self._nll(batch) / num_tokens.clamp(min=1)
        self.validation_means.update({"loss": means}, num_tokens)

    def on_validation_epoch_end(self) -> None:
        """Log held-out loss and perplexity: `exp` of the mean over all response tokens."""
        mean = torch.tensor(self.validation_means.compute()["loss"])
        self.log(f"{self.stage}/sft/loss", mean)
        self.log(f"{self.stage}/sft/perplexity", mean.exp(), prog_bar=True)

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def padding_gaps(self, batch: TokenRows) -> dict[str, float]:
        """Return how much the policy's log-probabilities depend on padding."""
        return {"the policy's log-probabilities": padding_gap(self._nll, batch)}

    def _nll(self, batch: TokenRows) -> Tensor:
        return response_nll(self.trained_model(batch).logprobs, batch.response_mask)
