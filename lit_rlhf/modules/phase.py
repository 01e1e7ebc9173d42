"""What the four phases share: building their models late, and saving what was trained."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lit_rlhf.callbacks.prediction_file import PredictionConfig
from lit_rlhf.data.datamodule import TextDataModule
from lit_rlhf.errors import CheckpointError, ConfigError
from lit_rlhf.models.backbone import LoRAConfig
from lit_rlhf.models.given import ModelSource, model_source
from lit_rlhf.models.lineage import Lineage, make_lineage, write_lineage
from lit_rlhf.models.packing import DEFAULT_WIDTH
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.models.saving import (
    load_saved_weights,
    new_folder,
    save_policy,
    save_reward_model,
)
from lit_rlhf.models.scalar_head import ScalarModel
from lit_rlhf.modules.arguments import KeepsArguments, plain_settings
from lit_rlhf.modules.building import tokenizer_beside
from lit_rlhf.modules.default_callbacks import (
    missing_callbacks,
    refuse_unreachable_validation,
    steps_by_time,
)
from lit_rlhf.modules.generating import (
    generate_responses,
    predict_responses,
    require_room_to_predict,
)
from lit_rlhf.modules.given_data import require_own_batch, require_same_models
from lit_rlhf.modules.optimizers import OptimizerConfig
from lit_rlhf.modules.rate_search import claim_finder, search_learning_rate, take_saved_rate
from lit_rlhf.modules.resuming import (
    fill_left_out,
    keep_trained,
    leave_marks,
    load_module,
    require_resumable,
)
from lit_rlhf.modules.sharding import gathered_weights
from lit_rlhf.modules.stepping import SteppingModule
from lit_rlhf.prompts import Prompt
from lit_rlhf.ranges import require
from lit_rlhf.ranks import from_rank_zero, world_size
from lit_rlhf.rollout import Generator, Sampling, TorchGenerator


class PhaseModule(KeepsArguments, SteppingModule):
    """One phase of RLHF.

    Models are built in `configure_model`, once the Trainer knows precision and strategy. A
    checkpoint, from which the run itself goes on, holds what was trained (with LoRA: the adapters
    and heads alone), and the reference only where `ReferenceSync` moves it. The next phase starts
    from the folder that `save_pretrained` writes; `ModelFolder`, which every run has, calls it.

    Args:
        source: where the model comes from: hub name or Hugging Face folder, or a model of
            transformers.
        lora: train low-rank adapters instead of all weights.
        optimizer: AdamW and its schedule.
        packing_width: tokens in a packed row of the trunk, null for padded rows.
        activation_checkpointing: recompute the layers in the backward pass instead of keeping
            their activations.
        cpu_paths: on CPUs, faster layers and attention, in reward models and judges as well; false:
            those of transformers and peft.
        max_skipped_steps: a step with a number that is not finite (loss, gradient, score,
            log-probability) is left out; the run stops when more than so many were.

    Attributes:
        run_config: all settings of the run, which the command line leaves here for the lineage.
        prediction: how `predict` draws responses.
        arguments: of the constructor, by name; a model that was given is named by its folder.
    """

    strict_loading = False  # what is not in the checkpoint on purpose is checked by name below
    can_search_rate = True  # by a LearningRateFinder
    reference_moves = False  # by a ReferenceSync
    source_option = "policy"  # the constructor's name for `source`

    prediction = PredictionConfig()
    sampling: Sampling = Sampling()
    generator: Generator = TorchGenerator()

    def __init__(
        self,
        source: ModelSource,
        *,
        lora: LoRAConfig | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),
        packing_width: int | None = DEFAULT_WIDTH,
        activation_checkpointing: bool = False,
        cpu_paths: bool = True,
        max_skipped_steps: int = 10,
    ) -> None:
        super().__init__(max_skipped_steps)
        self.source = model_source(source, f"model.{self.source_option}")
        self.arguments[self.source_option] = self.source
        # Models that were objects: option -> the cache's folder.
        self.given_models = (
            {} if isinstance(source, (str, Path)) else {self.source_option: self.source}
        )
        # Of a model that was given: where it came from itself, "" for one from nowhere.
        self._tokenizer_source = str(getattr(source, "name_or_path", source))
        self.lora = lora
        self.optimizer = optimizer
        require("model.packing_width", packing_width, least=1, is_optional=True)
        self.packing_width = packing_width
        self.activation_checkpointing = activation_checkpointing
        self.cpu_paths = cpu_paths
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self.run_config: dict[str, Any] | None = None
        self._lineage: Lineage | None = None

    @property
    @abc.abstractmethod
    def trained_model(self) -> PolicyModel | ScalarModel:
        """The model that the phase trains and hands over."""

    @property
    def model_config(self) -> PretrainedConfig:
        """The configuration of the model that the phase trains."""
        config: PretrainedConfig = self.trained_model.transformers_config
        return config

    @property
    def origins(self) -> dict[str, str]:
        """The models that the run starts from, by role: hub names or folders."""
        return {self.source_option: self.source}

    @property
    def best_metric(self) -> str | None:
        """The validation metric whose largest value marks the best model, if there is one."""
        return None

    @property
    def lineage(self) -> Lineage | None:
        """What the run's models are made from; on rank zero alone, which writes them."""
        trainer = self.trainer_if_any
        if trainer is None:
            return None
        if self._lineage is None and trainer.is_global_zero:
            data = getattr(trainer, "datamodule", None)
            provenance = data.provenance if isinstance(data, TextDataModule) else {}
            self._lineage = make_lineage(
                type(self).__name__, data=provenance, origins=self.origins, config=self.run_config
            )
        return self._lineage

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the source, or the one that the data module was given; loaded once."""
        if self._tokenizer is None:
            data = getattr(self.trainer_if_any, "datamodule", None)
            option = f"model.{self.source_option}"
            self._tokenizer = tokenizer_beside(data, self._tokenizer_source, option)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @property
    def learning_rate(self) -> float:
        """The peak of the schedule, under the name by which Lightning's Tuner sets it."""
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self.optimizer = replace(self.optimizer, learning_rate=rate)
        self.arguments["optimizer"] = self.optimizer
        if self.run_config is not None:  # in place: the lineage has it, too
            self.run_config["model"]["optimizer"]["learning_rate"] = rate

    def configure_callbacks(self) -> list[Callback]:
        """Bring what every run has on the command line, where the Trainer has none.

        Self-checks, the model's folder and `last.ckpt`; nothing where `enable_checkpointing` is
        false, and no `last.ckpt` beside a ModelCheckpoint with settings of its own.

        Raises:
            ConfigError: a callback would average weights that are not there yet.
        """
        claim_finder(self.trainer, self)
        return missing_callbacks(self.trainer, has_loss=self.automatic_optimization)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,  # noqa: ANN401 - Lightning's signature
        map_location: Any = None,  # noqa: ANN401 - likewise
        hparams_file: Any = None,  # noqa: ANN401 - likewise
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make the module that a checkpoint was saved of, with the weights it has there.

        Args:
            checkpoint_path: file, or folder of a sharded checkpoint.
            map_location: where tensors go, the CPU by default.
            hparams_file: none: the checkpoint has the arguments.
            strict: none: weights are checked by name.
            weights_only: never false: no code of a checkpoint is run.
            **kwargs: arguments that take the place of the saved ones. Classes from elsewhere must
                be given; reward and judges need not be there before they are asked.

        Raises:
            CheckpointError: it is not there, damaged, or of another phase.
            ConfigError: an argument is neither in it nor given.
        """
        if hparams_file is not None or strict is not None or weights_only is False:
            raise ConfigError("load_from_checkpoint: leave out hparams_file, strict, weights_only")
        return load_module(cls, Path(checkpoint_path), map_location, kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - torch's own
        """Take weights, as torch does; models that nothing has used yet are built first.

        So a notebook's process gets what `ddp_notebook` trained in others.
        """
        self.configure_model()
        return super().load_state_dict(*args, **kwargs)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        sampling: Sampling = Sampling(),
        samples_per_prompt: int = 1,
        seed: int = 0,
        template_options: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Respond to prompts with the policy as it is now, also without a Trainer.

        Args:
            prompts: texts, or chats as sequences of messages.
            sampling: length, temperature and truncation; `temperature=0` takes the likeliest.
            samples_per_prompt: responses to each prompt, beside each other in the result.
            seed: the same one draws the same responses.
            template_options: variables for the chat template, such as `enable_thinking`; None
                writes prompts as the run's data module does, if there is one.

        Raises:
            ConfigError: the phase trains no policy, or `prompts` is not a list with prompts.
        """
        return generate_responses(
            self,
            prompts,
            sampling=sampling,
            samples_per_prompt=samples_per_prompt,
            seed=seed,
            template_options=template_options,
        )

    def on_predict_start(self) -> None:
        """Refuse prompts that leave no room for a response, before the first of them."""
        require_room_to_predict(self)

    def predict_step(self, batch: Any, batch_idx: int) -> list[dict[str, Any]]:  # noqa: ANN401 - the phase's own
        """Respond to the prompts of a batch, as `prediction` says.

        Args:
            batch: of a data module, or of any loader a list of prompts.
            batch_idx: its number.

        Returns:
            For each response `row` (the place of its prompt in the data), `prompt`, `response`,
            `finished`, and `fields`, the further fields of the row, if it has any.
        """
        return predict_responses(self, batch)

    def save_pretrained(
        self, folder: str | Path, *, merge: bool = False, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Write the trained model as a Hugging Face folder; call it on all processes.

        Args:
            folder: replaced whole, or left as it is where the disk is full.
            merge: write adapters merged into the model under them, see `save_policy`.
            facts: what `lineage.json` says beside the lineage.

        Raises:
            CheckpointError: the folder could not be written.
        """
        self.configure_model()  # of a module that nothing has used yet
        model = self.trained_model
        save: Callable[..., None] = save_policy
        if not isinstance(model, PolicyModel):
            save = save_reward_model
        weights = gathered_weights(model)
        fault = None
        if self.global_rank == 0:
            options = {"base": self.source, "merge": merge, "weights": weights}
            try:
                with new_folder(Path(folder)) as partial:
                    save(model, self.tokenizer, partial, **options)
                    if self.lineage is not None:
                        write_lineage({**self.lineage, **(facts or {})}, partial)
            except CheckpointError as error:
                fault = str(error)
        fault = from_rank_zero(fault)
        if fault is not None:
            raise CheckpointError(fault)

    def load_saved(self, folder: str | Path) -> None:
        """Put back the weights that `save_pretrained` wrote into a folder, adapters not merged.

        Call it on all processes; rank zero reads. Weights that are sharded over processes cannot
        be put back.
        """
        model = self.trained_model
        assert isinstance(model, PolicyModel)
        if self.global_rank == 0:
            load_saved_weights(model, Path(folder))
        if world_size() > 1:
            model.load_state_dict(from_rank_zero(model.state_dict()))

    @property
    def precision(self) -> str:
        """The Trainer's."""
        trainer = self.trainer_if_any
        return "32-true" if trainer is None else str(trainer.precision)

    @property
    def frozen_dtype(self) -> torch.dtype | None:
        """How frozen linear layers are stored: as autocast would cast them, or None as they are."""
        return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.precision)

    @property
    def load_options(self) -> dict[str, Any]:
        """How all models of the phase are read, in the words of `building`."""
        return {"frozen_dtype": self.frozen_dtype, "packing_width": self.packing_width}

    @property
    def trainer_if_any(self) -> Trainer | None:
        """The Trainer, or None where the module is used without one."""
        try:
            return self.trainer
        except RuntimeError:  # Lightning's word for there being none
            return None

    @property
    def root_device(self) -> torch.device:
        """Where this process computes, known before the models are moved there."""
        trainer = self.trainer_if_any
        return self.device if trainer is None else trainer.strategy.root_device

    @property
    def num_scheduler_steps(self) -> int:
        """How often the learning rate changes in the whole run.

        Raises:
            ConfigError: the run has no end that a schedule could lead to.
        """
        require("trainer.accumulate_grad_batches", self.trainer.accumulate_grad_batches, least=1)
        refuse_unreachable_validation(self.trainer)
        num_steps = self.trainer.estimated_stepping_batches
        if math.isinf(num_steps):
            return steps_by_time(self.trainer, self.optimizer.schedule)
        return int(num_steps)

    @property
    def stage(self) -> str:
        """How metrics of held-out data begin: "val", or "test" under `test`."""
        return "test" if self.trainer.testing else "val"

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW and its schedule, stepped once a batch."""
        optimizer, scheduler = self.optimizer.build(
            self.parameters(), self.num_scheduler_steps, has_scaler=self.trainer.scaler is not None
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "learning_rate"},
        }

    def require_batch(self, batch: Any) -> None:  # noqa: ANN401 - whatever a loader gives
        """Refuse a batch that the phase cannot read.

        Raises:
            ConfigError: it is of a plain loader, or of another phase's data module.
        """
        require_own_batch(self, batch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ANN401 - likewise
        """Refuse a batch that the phase cannot read."""
        self.require_batch(batch)

    def on_validation_batch_start(
        self,
        batch: Any,  # noqa: ANN401 - likewise
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Likewise, in validation and testing."""
        self.require_batch(batch)

    on_test_batch_start = on_validation_batch_start

    def padding_gaps(self, batch: Any) -> dict[str, float]:  # noqa: ANN401 - the phase's own
        """Return how much what the phase computes depends on padding, by the name of the number.

        `SelfChecks` calls it under the autocast of the run.

        Args:
            batch: of training, on the module's device.

        Returns:
            Mean absolute differences between rows by themselves and the same rows padded.
        """
        return {}

    def prepare_fit(self) -> None:
        """Check and compute what the phase needs before it trains."""

    def on_fit_start(self) -> None:
        """Take down what the run starts from, before anything of it can change."""
        require_same_models(self.given_models)
        _ = self.lineage
        self.prepare_fit()
        search_learning_rate(self)
        settings = self.run_config or {
            self.source_option: self.source,
            **plain_settings(self),
        }
        for logger in self.trainer.loggers:
            logger.log_hyperparams(settings)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was trained, how it is stored, and which phase trained it."""
        keep_trained(checkpoint, self)
        leave_marks(checkpoint, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check by name that everything trained is there, since loading is not strict.

        Raises:
            CheckpointError: another phase wrote it, its weights are not those that this run
                trains, or are stored in another way.
        """
        take_saved_rate(self, checkpoint)
        require_resumable(checkpoint, self)
        fill_left_out(checkpoint, self)
