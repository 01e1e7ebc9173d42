"""What the four phases share: building their models late, and saving what was trained."""

from __future__ import annotations

import abc
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lit_rlhf.callbacks.last_checkpoint import LastCheckpoint
from lit_rlhf.callbacks.model_folder import ModelFolder
from lit_rlhf.callbacks.self_checks import SelfChecks
from lit_rlhf.data.datamodule import TextDataModule
from lit_rlhf.errors import CheckpointError, ConfigError
from lit_rlhf.models.backbone import LoRAConfig, hold_in_bf16
from lit_rlhf.models.cpu_paths import switch_cpu_paths, take_cpu_paths
from lit_rlhf.models.handover import load_tokenizer, require_fitting_tokenizer
from lit_rlhf.models.lineage import Lineage, make_lineage, write_lineage
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.models.saving import (
    load_saved_weights,
    new_folder,
    save_policy,
    save_reward_model,
)
from lit_rlhf.models.scalar_head import ScalarModel
from lit_rlhf.modules.activation_checkpointing import checkpoint_activations
from lit_rlhf.modules.generating import generate_responses
from lit_rlhf.modules.number_guard import NumberGuard, gradient_squares
from lit_rlhf.modules.optimizers import OptimizerConfig
from lit_rlhf.modules.resuming import changed_inputs, changed_settings, digests_of
from lit_rlhf.modules.settings import plain_settings
from lit_rlhf.modules.sharding import gathered_weights, shard
from lit_rlhf.prompts import Prompt
from lit_rlhf.ranges import require
from lit_rlhf.ranks import from_rank_zero, sum_over_ranks, world_size
from lit_rlhf.rollout import Sampling

# Methods beside `forward` that compute with a model's weights.
_FORWARD_METHODS = ("next_logits", "token_values")
# In a checkpoint: how optimizer states and weights are stored.
_STORAGE_KEY = "lit_rlhf_storage"
_PLAIN_STORAGE = {"states": "float32", "weights": "float32"}  # of those without an entry
_PHASE_KEY = "lit_rlhf_phase"
_SKIPPED_KEY = "lit_rlhf_skipped_steps"
_RUN_KEY = "lit_rlhf_run"
DEFAULT_MAX_SKIPPED_STEPS = 10

_log = logging.getLogger(__name__)


class PhaseModule(lightning.LightningModule, abc.ABC):
    """One phase of RLHF.

    Models are built in `configure_model`, once the Trainer knows precision and strategy. A
    checkpoint, from which the run itself goes on, holds what was trained (with LoRA: the adapters
    and heads alone), never the frozen reference. The next phase starts from the folder that
    `save_pretrained` writes; `ModelFolder`, which every run has, calls it.

    Args:
        source: where the model comes from: hub name or Hugging Face folder.
        lora: train low-rank adapters instead of all weights.
        optimizer: AdamW and its schedule.
        packing_width: tokens in a packed row of the trunk, None for padded rows.
        activation_checkpointing: recompute the layers in the backward pass instead of keeping
            their activations.
        cpu_paths: on CPUs, layers and attention made for them, see `lit_rlhf.cpu`.
        max_skipped_steps: the run stops when more steps than these had a number that was not
            finite; up to then such a step is left out.

    Attributes:
        run_config: all settings of the run, which the command line leaves here for the lineage.
    """

    strict_loading = False  # what is not in the checkpoint on purpose is checked by name below
    source_option = "policy"  # the constructor's name for `source`
    phase: str  # its name on the command line and in metrics

    def __init__(
        self,
        source: str,
        lora: LoRAConfig | None,
        optimizer: OptimizerConfig,
        packing_width: int | None,
        activation_checkpointing: bool,
        cpu_paths: bool,
        max_skipped_steps: int = DEFAULT_MAX_SKIPPED_STEPS,
    ) -> None:
        super().__init__()
        self.source = source
        self.lora = lora
        self.optimizer = optimizer
        require("model.packing_width", packing_width, least=1, is_optional=True)
        self.packing_width = packing_width
        self.activation_checkpointing = activation_checkpointing
        self.cpu_paths = cpu_paths
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._accumulated_count = 0.0
        self.run_config: dict[str, Any] | None = None
        self._lineage: Lineage | None = None
        self.guard = NumberGuard(max_skipped_steps)

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
        """The tokenizer of the source, loaded once."""
        if self._tokenizer is None:
            data = getattr(self.trainer_if_any, "datamodule", None)
            if isinstance(data, TextDataModule) and data.tokenizer_source == self.source:
                self._tokenizer = data.tokenizer
            else:
                self._tokenizer = load_tokenizer(self.source)
        return self._tokenizer

    def configure_callbacks(self) -> list[Callback]:
        """Bring what every run has on the command line, where the Trainer has none.

        Self-checks, the model's folder and `last.ckpt`; nothing where `enable_checkpointing` is
        false, and no `last.ckpt` beside a ModelCheckpoint with settings of its own.

        Raises:
            ConfigError: a callback would average weights that are not there yet.
        """
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks):
            raise ConfigError(
                "callbacks: StochasticWeightAveraging copies the module before its model is "
                "loaded, and would average nothing; use EMAWeightAveraging"
            )
        if self.trainer.checkpoint_callback is None:  # it keeps nothing
            return []
        kinds = (SelfChecks, ModelFolder, LastCheckpoint)
        missing = [kind for kind in kinds if not any(isinstance(one, kind) for one in callbacks)]
        # Lightning would put `LastCheckpoint` in its place.
        if any(map(_is_set_by_user, callbacks)):
            missing = [kind for kind in missing if kind is not LastCheckpoint]
        return [kind() for kind in missing]

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        sampling: Sampling = Sampling(),
        samples_per_prompt: int = 1,
        seed: int = 0,
    ) -> list[str]:
        """Respond to prompts with the policy as it is now, also without a Trainer.

        Args:
            prompts: texts, or chats as sequences of messages.
            sampling: length, temperature and truncation; `temperature=0` takes the likeliest.
            samples_per_prompt: responses to each prompt, beside each other in the result.
            seed: the same one draws the same responses.

        Raises:
            ConfigError: the phase trains no policy, or `prompts` is not a list with prompts.
        """
        return generate_responses(
            self, prompts, sampling=sampling, samples_per_prompt=samples_per_prompt, seed=seed
        )

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
        model = self.trained_model
        save: Callable[..., None] = (
            save_policy if isinstance(model, PolicyModel) else save_reward_model
        )
        weights = gathered_weights(model)
        fault = None
        if self.global_rank == 0:
            try:
                with new_folder(Path(folder)) as partial:
                    options = {"base": self.source, "merge": merge, "weights": weights}
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
    def frozen_dtype(self) -> torch.dtype | None:
        """How frozen linear layers are stored: as autocast would cast them, or None as they are."""
        return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self._precision)

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
        num_steps = self.trainer.estimated_stepping_batches
        if math.isinf(num_steps):
            raise ConfigError(
                "trainer: max_epochs -1 has no end, but the learning rate's schedule needs one; "
                "set trainer.max_epochs or trainer.max_steps"
            )
        return int(num_steps)

    @property
    def stage(self) -> str:
        """How metrics of held-out data begin: "val", or "test" under `test`."""
        return "test" if self.trainer.testing else "val"

    @property
    def gradient_norm(self) -> float:
        """The norm of all gradients in the last step, before clipping; 0 before the first."""
        return self.guard.gradient_norm

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW and its schedule, stepped once a batch."""
        optimizer, scheduler = self.optimizer.build(self.parameters(), self.num_scheduler_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "learning_rate"},
        }

    def prepare(self, model: PolicyModel | ScalarModel) -> None:
        """Store and run a model as the memory options say; spread it where that is the strategy.

        Raises:
            ConfigError: weights in bf16 with another precision of the computation; or a precision
                that rounds all weights, and the losses with them.
            CheckpointError: the tokenizer has tokens that the model does not know.
        """
        require_fitting_tokenizer(self.tokenizer, model.transformers_config, self.source)
        if self._precision in ("bf16-true", "16-true"):
            raise ConfigError(
                f"trainer.precision {self._precision} computes losses and log-probabilities in 16 "
                "bits, and most updates round to nothing: take bf16-mixed, and "
                "model.optimizer.weights bf16 if memory is short"
            )
        if self.optimizer.weights == "bf16":
            self._hold_in_bf16(model)
        switch_cpu_paths(self.cpu_paths)
        will_be_sharded = self.device_mesh is not None
        take_cpu_paths(model, self.root_device, will_be_sharded=will_be_sharded)
        is_trained = any(parameter.requires_grad for parameter in model.parameters())
        if self.activation_checkpointing and is_trained:
            checkpoint_activations(model)
        if self.device_mesh is not None:
            methods = [name for name in _FORWARD_METHODS if hasattr(model, name)]
            shard(model, self.device_mesh["data_parallel"], forward_methods=methods)

    def _hold_in_bf16(self, model: PolicyModel | ScalarModel) -> None:
        if self._precision != "bf16-mixed":
            raise ConfigError(
                "model.optimizer.weights bf16 needs trainer.precision bf16-mixed, which computes "
                f"what must be float32 in float32; got {self._precision}"
            )
        hold_in_bf16(model.model if isinstance(model, PolicyModel) else model.backbone)

    def global_mean(self, total: Tensor, count: Tensor) -> Tensor:
        """Return a loss whose average over ranks is the global `sum(total) / sum(count)`.

        DDP averages gradients over ranks; a mean of each rank's own mean would weigh tokens by
        how few of them a rank has.
        """
        global_count = sum_over_ranks(count.to(total.dtype))
        global_count = global_count.clamp(min=1e-8)  # guards a batch in which nothing counts
        return total * (self.trainer.world_size / global_count)

    def step_loss(self, mean: Tensor, count: Tensor) -> Tensor:
        """Return what `training_step` returns, so that a step is a mean over all that it counts.

        Lightning averages the batches of `trainer.accumulate_grad_batches` as if each counted the
        same. Here each enters by its sum, and the gradient is divided by the count of them all
        before it is clipped: 8 batches of one row make the step of one batch of 8 rows.

        Args:
            mean: of this batch over all ranks, from `global_mean`.
            count: what counts in this rank's batch.
        """
        num_batches = self.trainer.accumulate_grad_batches
        if num_batches == 1:
            return mean
        global_count = sum_over_ranks(count.to(mean.dtype))
        self._accumulated_count += float(global_count)
        return mean * (global_count * num_batches)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide accumulated gradients by all that they count; skip a step that is not finite."""
        if self._accumulated_count:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad /= self._accumulated_count
            self._accumulated_count = 0.0
        if self.automatic_optimization:
            self.allow_step()
            self.log(f"train/{self.phase}/grad_norm", self.guard.gradient_norm)
            self.log(f"train/{self.phase}/skipped_steps", float(self.guard.num_skipped))

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take the step, and drop the gradients before the next forward needs room.

        Lightning drops them after the next forward, which would be beside them at its peak.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    @property
    def gradient_scale(self) -> float:
        """By how much the gradients of manual optimization are too large before the step.

        Under 16-mixed the scaler takes its scale off within the step. Automatic optimization looks
        at the gradients behind that.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is None or self.automatic_optimization:
            return 1.0
        return float(scaler.get_scale())

    def allow_step(self) -> bool:
        """Decide, the same on all processes, whether the gradients may move the weights.

        Where a watched number or a gradient is not finite, the gradients are dropped: an optimizer
        that then takes its step changes neither weights nor its state.
        Infinite gradients under a gradient scaler (16-mixed) are the scaler's to skip, and are not
        counted.

        Raises:
            TrainingError: too many steps were skipped.
        """
        own_squares, whole_squares = gradient_squares(self.parameters(), self.device)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        is_broken = self.guard.is_broken.to(self.device)
        if scaler is None:
            is_broken = is_broken + (~torch.isfinite(own_squares + whole_squares)).float()
        sharded, num_broken = sum_over_ranks(torch.stack([own_squares, is_broken]))
        norm, num_broken = torch.stack([(sharded + whole_squares).sqrt(), num_broken]).tolist()
        norm /= self.gradient_scale
        self.guard.gradient_norm = norm
        if num_broken == 0:
            self.guard.forget()
            return True
        for parameter in self.parameters():
            parameter.grad = None
        self.skip_step()
        return False

    def skip_step(self) -> None:
        """Count a step that is not taken and keep its rows; call it on all processes.

        Raises:
            TrainingError: too many steps were skipped.
        """
        folder = self.trainer.log_dir or self.trainer.default_root_dir
        self.guard.skip(self.trainer.global_step, Path(folder), self.tokenizer)

    def padding_gaps(self, batch: Any) -> dict[str, float]:  # noqa: ANN401 - the phase's own
        """Return how much what the phase computes depends on padding, by the name of the number.

        Args:
            batch: of training, on the module's device.

        Returns:
            Mean absolute differences between rows by themselves and the same rows padded.
        """
        return {}

    def on_fit_start(self) -> None:
        """Take down what the run starts from, before anything of it can change."""
        _ = self.lineage
        settings = self.run_config or {
            self.source_option: self.source,
            **plain_settings(self),
        }
        for logger in self.trainer.loggers:
            logger.log_hyperparams(settings)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was trained, how it is stored, and which phase trained it."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in self._kept_names(state)}
        checkpoint[_STORAGE_KEY] = self._storage
        checkpoint[_PHASE_KEY] = self.phase
        checkpoint[_SKIPPED_KEY] = self.guard.num_skipped
        if (lineage := self.lineage) is not None:
            settings = self.run_config or {}
            checkpoint[_RUN_KEY] = {"settings": settings, "digests": digests_of(lineage)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check by name that everything trained is there, since loading is not strict.

        Raises:
            CheckpointError: another phase wrote it, its weights are not those that this run
                trains, or are stored in another way.
        """
        phase = checkpoint.get(_PHASE_KEY, self.phase)
        if phase != self.phase:
            raise CheckpointError(
                f"ckpt_path: the checkpoint is of the phase {phase}, and {self.phase} cannot go on "
                "with it: go on with the phase that wrote it, or start from the model folder that "
                f"it leaves, with --model.{self.source_option}"
            )
        self.guard.num_skipped = checkpoint.get(_SKIPPED_KEY, 0)
        saved = checkpoint.get(_STORAGE_KEY, _PLAIN_STORAGE)
        if saved != self._storage:
            raise CheckpointError(
                f"the checkpoint's run had model.optimizer {saved}, this one has {self._storage}: "
                "go on with the same, or start again without --ckpt_path"
            )
        if "state_dict" not in checkpoint:  # a sharded strategy has loaded the weights already
            return
        expected = {name for name, value in self.named_parameters() if value.requires_grad}
        if missing := sorted(expected - checkpoint["state_dict"].keys()):
            raise CheckpointError(
                f"the checkpoint lacks {len(missing)} trained weights, for one {missing[0]}: "
                "was it made with another phase, model or lora setting?"
            )
        if unknown := sorted(checkpoint["state_dict"].keys() - self.state_dict().keys()):
            raise CheckpointError(
                f"the checkpoint has {len(unknown)} weights that this run does not train, for one "
                f"{unknown[0]}: go on with the same model.advantage, critic and lora settings, or "
                "start again without --ckpt_path"
            )
        self._tell_changes(checkpoint.get(_RUN_KEY))

    def _tell_changes(self, saved: Mapping[str, Any] | None) -> None:
        """Say on rank zero which settings and inputs are others than the run began with."""
        if saved is None or (lineage := self.lineage) is None:
            return
        lines = changed_inputs(saved["digests"], digests_of(lineage))
        if saved["settings"] and self.run_config:
            lines += changed_settings(saved["settings"], self.run_config)
        for line in lines:
            _log.warning("resumed: %s", line)

    @property
    def _precision(self) -> str:
        trainer = self.trainer_if_any
        return "32-true" if trainer is None else str(trainer.precision)

    @property
    def _storage(self) -> dict[str, str]:
        return {"states": self.optimizer.states, "weights": self.optimizer.weights}

    def _kept_names(self, state: dict[str, Any]) -> list[str]:
        names = [name for name in state if not name.startswith("reference.")]
        if self.lora is None:
            return names
        # Under all of their names: a tied output is the embedding once more.
        parameters = self.named_parameters(remove_duplicate=False)
        frozen = {name for name, value in parameters if not value.requires_grad}
        return [name for name in names if name not in frozen]


def _is_set_by_user(callback: Callback) -> bool:
    """Tell whether this is a ModelCheckpoint that is not the one of every Trainer."""
    if type(callback) is not ModelCheckpoint:
        return False
    settings = (callback.dirpath, callback.filename, callback.save_last, callback.save_top_k)
    return settings != (None, None, None, 1) or callback.state_key != ModelCheckpoint().state_key
