"""Phase 2: a reward model from human comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_rlhf.batches import ComparisonBatch, ResponseBatch, TokenRows
from lit_rlhf.data.reward import RewardDataModule
from lit_rlhf.errors import ConfigError
from lit_rlhf.models.backbone import LoRAConfig
from lit_rlhf.models.given import ModelSource
from lit_rlhf.models.saving import as_classifier
from lit_rlhf.models.scalar_head import ScalarModel
from lit_rlhf.modules.building import build_reward_model, prepare
from lit_rlhf.modules.metrics import CalibrationError, NamedMeans, agreement, decided_weight
from lit_rlhf.modules.normalizing import (
    NormalizerConfig,
    draw_reference_samples,
    refresh_normalizer,
)
from lit_rlhf.modules.optimizers import OptimizerConfig
from lit_rlhf.modules.padding_gap import padding_gap
from lit_rlhf.modules.phase import PhaseModule
from lit_rlhf.objectives.reward import BradleyTerryLoss, RewardLoss, ScoredResponses
from lit_rlhf.prompts import prompt_fields


class RewardModule(PhaseModule):
    """Train the policy's backbone with a linear head to score responses as people would.

    Each distinct response of a batch is scored once and serves all of its pairs; a pair's target
    is the share of judgments for its first response.

    Args:
        backbone: the policy whose transformer the reward model starts from: hub name or
            Hugging Face folder.
        lora: train low-rank adapters instead of all weights (the head always trains).
        optimizer: AdamW and its schedule.
        loss: by `class_path` or short name.
        normalizer: normalise the scores on the reference policy's samples; null leaves them raw.
        **kwargs: the settings of `PhaseModule`.
    """

    phase = "reward"
    source_option = "backbone"

    def __init__(
        self,
        backbone: ModelSource,
        lora: LoRAConfig | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),
        loss: RewardLoss = BradleyTerryLoss(),
        normalizer: NormalizerConfig | None = None,
        **kwargs: Any,  # passed on as they are; the config parser finds them there
    ) -> None:
        super().__init__(backbone, lora=lora, optimizer=optimizer, **kwargs)
        self.loss = loss
        self.normalizer = normalizer
        self.reward_model: ScalarModel | None = None
        self.validation_means = NamedMeans()
        self.calibration_error = CalibrationError()
        self._reference_rows: TokenRows | None = None
        self._has_fresh_head = True

    @property
    def trained_model(self) -> ScalarModel:
        """The reward model, once `configure_model` has loaded it."""
        assert self.reward_model is not None
        return self.reward_model

    @property
    def origins(self) -> dict[str, str]:
        """The backbone, and the policy that draws the normaliser's samples."""
        policy = self.normalizer.policy if self.normalizer is not None else None
        return super().origins | ({} if policy is None else {"normalizer": policy})

    def configure_model(self) -> None:
        """Load the backbone and give it a fresh head."""
        if self.reward_model is None:
            self.reward_model = build_reward_model(self.source, self.lora, **self.load_options)
            prepare(self, self.reward_model)

    def prepare_fit(self) -> None:
        """See that the model can be saved; draw the samples that the normaliser needs."""
        self._check_rows()
        as_classifier(self.trained_model, self.tokenizer)
        self._draw_reference_rows()
        self._has_fresh_head = False

    def _draw_reference_rows(self) -> None:
        if self.normalizer is not None:
            with self.trainer.precision_plugin.forward_context():
                self._reference_rows = draw_reference_samples(
                    self.normalizer, self.source, self.tokenizer, self.device
                )

    def training_step(self, batch: ComparisonBatch, batch_idx: int) -> Tensor:
        """Return the loss over all judgments of the batch."""
        scores = self._scores(batch)
        losses, weight = self.loss(ScoredResponses.of(batch, scores))
        total = weight.sum()
        loss = self.global_mean((losses * weight).sum(), total)
        self.guard.watch(batch.rows, loss, score=scores)
        self.log("train/reward/loss", loss, prog_bar=True, sync_dist=True)
        return self.step_loss(loss, total)

    def _scores(self, batch: ComparisonBatch) -> Tensor:
        """Return a score for each response, `[N]`, or for each step, `[M]`."""
        model = self.trained_model
        scores: Tensor = (
            model.step_scores(batch.rows) if self.loss.reads_steps else model(batch.rows)
        )
        return scores

    def validation_step(self, batch: ComparisonBatch, batch_idx: int) -> None:
        """Collect how well held-out pairs (or steps) are predicted."""
        scores = self._scores(batch)
        margin = scores  # [M]: a step's
        if not self.loss.reads_steps:
            margin = scores[batch.chosen] - scores[batch.rejected]
        predicted, human, weight = margin.sigmoid(), batch.probability, batch.weight
        # Brier 1950, with the share of people in place of an outcome.
        values = {"accuracy": agreement(margin, human), "brier": (predicted - human).square()}
        self.validation_means.update(values, weight, accuracy=decided_weight(weight, human))
        self.calibration_error.update(predicted, human, weight)

    def on_validation_epoch_end(self) -> None:
        """Log accuracy, calibration error and Brier score."""
        for name, value in self.validation_means.compute().items():
            self.log(f"{self.stage}/reward/{name}", value, prog_bar=True)
        self.log(f"{self.stage}/reward/calibration_error", self.calibration_error, prog_bar=True)

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def save_pretrained(
        self, folder: str | Path, *, merge: bool = False, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Measure the normaliser of these very weights, and write the folder."""
        self._refresh_normalizer()
        super().save_pretrained(folder, merge=merge, facts=facts)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the normaliser out: a run that goes on measures it when it saves the model."""
        super().on_save_checkpoint(checkpoint)
        for name in ("mean", "deviation"):
            checkpoint["state_dict"].pop(f"reward_model.{name}", None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the trained head for what it is."""
        super().on_load_checkpoint(checkpoint)
        self._has_fresh_head = False

    def on_predict_start(self) -> None:
        """Normalise the scores as the model's folder does.

        Raises:
            ConfigError: there is nothing trained yet, or what is trained does not score responses.
        """
        if self._has_fresh_head:
            raise ConfigError(
                "predict: the head of this reward model is fresh, and its scores mean nothing: "
                "give the checkpoint of its run (--ckpt_path); a model folder is read by "
                "LearnedReward and `lit-rlhf evaluate rewards`"
            )
        if self.loss.reads_steps:
            raise ConfigError(
                f"predict: model.loss {type(self.loss).__name__} scores steps, not responses"
            )
        if self._reference_rows is None:
            self._draw_reference_rows()
            self._refresh_normalizer()

    def predict_step(self, batch: ResponseBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Score responses.

        Returns:
            For each response `row` (the place of its record in the data), `prompt`, `response`
            and `score`.
        """
        model = self.trained_model
        scores = model.normalize(model(batch.rows).float()).tolist()
        each = zip(batch.record_ids.tolist(), batch.prompts, batch.responses, scores, strict=True)
        return [
            {
                "row": row,
                **prompt_fields(prompt),
                "response": response if isinstance(response, str) else list(response),
                "score": score,
            }
            for row, prompt, response, score in each
            if row >= 0  # the others only fill up a last batch that is short
        ]

    def on_train_end(self) -> None:
        """Leave a normalised model in memory, too."""
        self._refresh_normalizer()

    def padding_gaps(self, batch: ComparisonBatch) -> dict[str, float]:
        """Return how much the scores depend on padding."""
        assert self.reward_model is not None
        return {"the score": padding_gap(self.reward_model, batch.rows)}

    def on_validation_start(self) -> None:
        """See that the rows are such as the loss reads."""
        self._check_rows()

    on_test_start = on_validation_start

    def _check_rows(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, RewardDataModule):
            name = type(self.loss).__name__
            data.require_rows_for(
                name,
                reads_steps=self.loss.reads_steps,
                needs_whole_rankings=self.loss.needs_whole_rankings,
            )
            if data.margin and not self.loss.reads_margins:
                raise ConfigError(
                    f"data.margin is true, but model.loss {name} reads no margins; choose "
                    "BradleyTerryLoss, or set data.margin to false"
                )

    def _refresh_normalizer(self) -> None:
        if self._reference_rows is not None:
            with self.trainer.precision_plugin.forward_context():
                refresh_normalizer(self.trained_model, self._reference_rows)
