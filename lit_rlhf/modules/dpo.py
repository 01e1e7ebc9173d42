"""Phase 4: direct preference optimization, the alternative without a reward model."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_rlhf.batches import ComparisonBatch, TokenRows
from lit_rlhf.data.dpo import DPODataModule
from lit_rlhf.errors import ConfigError
from lit_rlhf.models.backbone import LoRAConfig
from lit_rlhf.models.given import ModelSource
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.modules.building import build_policy, build_reference, prepare
from lit_rlhf.modules.metrics import NamedMeans
from lit_rlhf.modules.optimizers import OptimizerConfig
from lit_rlhf.modules.padding_gap import padding_gap
from lit_rlhf.modules.phase import PhaseModule
from lit_rlhf.modules.preference import preference_losses
from lit_rlhf.modules.reference_logprobs import (
    ReferenceTable,
    UniqueRows,
    compute_logprobs,
)
from lit_rlhf.objectives.preference import DPO, PreferenceLoss, PreferencePairs
from lit_rlhf.ranks import sum_over_ranks

ReferenceLogprobs = Literal["precomputed", "on_the_fly"]


class DPOModule(PhaseModule):
    """Prefer what people prefer, directly: the policy is its own reward model.

    The reference is a frozen copy of the policy as loaded, or with LoRA the policy itself with
    its adapter switched off. Each distinct response of a batch goes through the policy once; the
    reference meets each response of the data once, before training, and is then dropped.

    Args:
        policy: the SFT policy: hub name or Hugging Face folder.
        lora: train low-rank adapters; then no second model is held.
        optimizer: AdamW and its schedule.
        loss: the preference loss, by `class_path` or short name.
        reference_logprobs: when the reference computes. "precomputed": once, before training.
            "on_the_fly": with each batch; then it is held in memory throughout.
        **kwargs: the settings of `PhaseModule`.
    """

    phase = "dpo"

    def __init__(
        self,
        policy: ModelSource,
        lora: LoRAConfig | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6),
        loss: PreferenceLoss = DPO(),
        reference_logprobs: ReferenceLogprobs = "precomputed",
        **kwargs: Any,  # passed on as they are; the config parser finds them there
    ) -> None:
        super().__init__(policy, lora=lora, optimizer=optimizer, **kwargs)
        if not loss.requires_reference and reference_logprobs == "on_the_fly":
            raise ConfigError(
                f"model.reference_logprobs={reference_logprobs} has no effect: model.loss "
                f"{type(loss).__name__} reads no reference; leave the option out"
            )
        self.loss = loss
        self.reference_logprobs: ReferenceLogprobs = reference_logprobs
        self.policy: PolicyModel | None = None
        self.reference: PolicyModel | None = None  # held only where it computes on the fly
        self._reference_table = ReferenceTable()
        self.validation_means = NamedMeans()

    @property
    def trained_model(self) -> PolicyModel:
        """The policy, once `configure_model` has loaded it."""
        assert self.policy is not None
        return self.policy

    def configure_model(self) -> None:
        """Load the policy and, where it computes with each batch, the frozen reference."""
        if self.policy is not None:
            return
        self.policy = build_policy(self.source, self.lora, **self.load_options)
        if self.loss.requires_reference and not self._precomputes and self.lora is None:
            self.reference = self._load_reference()
        prepare(self, self.policy)

    def prepare_fit(self) -> None:
        """Let the reference score the data of the run, once."""
        validates = self.trainer.limit_val_batches != 0
        self._precompute("train", *(["validation"] if validates else []))

    def on_validation_start(self) -> None:
        """Likewise, under `validate`."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._precompute("validation")

    def on_test_start(self) -> None:
        """Likewise, under `test`."""
        self._precompute("test")

    def training_step(self, batch: ComparisonBatch, batch_idx: int) -> Tensor:
        """Return the preference loss over all judged pairs of the batch."""
        means = NamedMeans()
        losses = self._compare(batch, means)
        for name, mean in means.compute().items():
            self.log(f"train/dpo/{name}", mean, prog_bar=name == "loss")
        weight = batch.weight.sum()
        loss = self.global_mean((losses * batch.weight).sum(), weight)
        self.guard.watch(batch.rows, loss)
        return self.step_loss(loss, weight)

    def validation_step(self, batch: ComparisonBatch, batch_idx: int) -> None:
        """Collect loss, accuracy, implicit rewards and log-probabilities on held-out pairs."""
        self._compare(batch, self.validation_means)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all held-out pairs."""
        for name, mean in self.validation_means.compute().items():
            self.log(f"{self.stage}/dpo/{name}", mean, prog_bar=name == "accuracy")

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def _compare(self, batch: ComparisonBatch, means: NamedMeans) -> Tensor:
        """Return the loss of each pair, `[M]`, and add what is logged of them to some means."""
        logprobs = self.trained_model(batch.rows).logprobs.sum(1)  # [N]
        reference = self._reference_logprobs(batch)
        pairs = self._pairs(batch, logprobs, reference)
        if torch.is_grad_enabled():  # no validation
            self.guard.watch(batch.rows, logprobs=logprobs, reference_logprobs=reference)
        return preference_losses(self.loss, pairs, batch, logprobs, means)

    def _pairs(
        self, batch: ComparisonBatch, logprobs: Tensor, reference: Tensor | None
    ) -> PreferencePairs:
        """Return what the loss reads."""
        pairs = PreferencePairs.of(batch, logprobs, reference)
        if not torch.is_grad_enabled() and not self.loss.takes_soft_labels:
            pairs = pairs.decided()  # held-out data keep people's shares
        if not self.loss.is_unpaired:
            return pairs
        ratios = pairs.log_ratios[1].detach()
        counted = sum_over_ranks(torch.stack([ratios.sum(), torch.ones_like(ratios).sum()]))
        return pairs._replace(reference_point=counted[0] / counted[1].clamp(min=1.0))

    @torch.no_grad()
    def _reference_logprobs(self, batch: ComparisonBatch) -> Tensor | None:
        """Return the reference's log-probability of each response, `[N]`, or None."""
        if not self.loss.requires_reference:
            return None
        if self._precomputes:
            return self._reference_table.look_up(batch.rows)
        return self._score_by(self.reference, batch.rows)

    def _score_by(self, reference: PolicyModel | None, rows: TokenRows) -> Tensor:
        """Sum the log-probabilities of each row, `[B]`; without a model, by the bare policy."""
        if reference is not None:
            logprobs: Tensor = reference(rows).logprobs
        else:
            logprobs = self.trained_model(rows, with_adapter=False).logprobs
        return logprobs.sum(1)

    def padding_gaps(self, batch: ComparisonBatch) -> dict[str, float]:
        """Return how much the policy's log-probabilities depend on padding."""
        policy = self.trained_model
        gap = padding_gap(lambda rows: policy(rows).logprobs, batch.rows)
        return {"the policy's log-probabilities": gap}

    @property
    def _precomputes(self) -> bool:
        return self.loss.requires_reference and self.reference_logprobs != "on_the_fly"

    def _load_reference(self) -> PolicyModel:
        reference = build_reference(self.source, **self.load_options).to(self.root_device)
        prepare(self, reference)
        return reference

    def _precompute(self, *splits: str) -> None:
        """Fill the table with the reference's values for all responses of some splits."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # set by the Trainer
        if isinstance(data, DPODataModule):
            data.require_rows_for(
                type(self.loss).__name__,
                is_unpaired=self.loss.is_unpaired,
                takes_soft_labels=self.loss.takes_soft_labels,
            )
        if not self._precomputes:
            return
        if not isinstance(data, DPODataModule):
            raise ConfigError(
                f"model.reference_logprobs={self.reference_logprobs} needs a DPODataModule, whose "
                "responses are known before training; set it to on_the_fly for other data."
            )
        for split in splits:
            self._reference_table.fill(UniqueRows(data.prepared(split)), self._compute)

    def _compute(self, rows: UniqueRows) -> Tensor:
        # Not in inference mode, under which models cannot be sharded.
        with torch.inference_mode(mode=False), torch.no_grad():
            reference = self._load_reference() if self.lora is None else None
            with self.trainer.precision_plugin.forward_context():
                forward = partial(self._score_by, reference)
                values = compute_logprobs(forward, rows, device=self.device)
        # Lean layers hold their own forward, a cycle: without this the weights would stay until
        # the collector happens to pass, through the first steps.
        del reference, forward
        gc.collect()
        return values
