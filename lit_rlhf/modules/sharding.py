"""Fully sharded training (FSDP2) by flag: `--trainer.strategy fsdp2`, on GPUs and CPUs alike.

Lightning's own `fsdp` wraps the older FSDP and needs a GPU. Importing this module registers
`fsdp2`; a LightningModule under it calls `shard` in its `configure_model`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.optim import Optimizer

from lit_rlhf.callbacks.of_trainer import callbacks_of
from lit_rlhf.callbacks.reference_sync import HasReference
from lit_rlhf.checkpoints import write_folder
from lit_rlhf.errors import CheckpointError, ConfigError
from lit_rlhf.models.backbone import transformer_layers
from lit_rlhf.models.freezing import hold_in_float32
from lit_rlhf.models.scalar_head import ScalarHead
from lit_rlhf.models.weights import note_changed_weights
from lit_rlhf.modules.checkpoint_io import AtomicCheckpointIO
from lit_rlhf.modules.resuming import REFERENCE
from lit_rlhf.whole_files import partial_of, remove


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's `ModelParallelStrategy` for `shard`: each process has other data.

    The mesh that Lightning makes, for tensor parallelism inside a node, is not used. The backend is
    chosen by device: NCCL for GPUs, gloo for CPUs.

    Args:
        save_distributed_checkpoint: each rank writes its shard into a folder, while training goes
            on. The default (unlike Lightning's) is one ordinary file, gathered on rank zero.
        timeout_minutes: how long a process waits for the others before it fails.
    """

    def __init__(
        self, save_distributed_checkpoint: bool = False, timeout_minutes: float = 30.0
    ) -> None:
        self.patience = timedelta(minutes=timeout_minutes)
        super().__init__(
            save_distributed_checkpoint=save_distributed_checkpoint, timeout=self.patience
        )
        self.saves_shards = save_distributed_checkpoint
        self._writers: distributed.ProcessGroup | None = None  # who write shards
        self._writing: tuple[Path, Future[Any]] | None = None
        self._replaced: list[str | Path] = []  # by what is being written

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Each process has a share of its own."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        filepath: str | Path,
        storage_options: Any | None = None,  # noqa: ANN401  (Lightning's signature)
    ) -> None:
        """Save a checkpoint; shards are written while training goes on, the last ones before.

        With `ModelCheckpoint(save_last="link")` training waits for each of them: a kill must not
        leave a link to a folder that is not there yet.

        Raises:
            CheckpointError: shards could not be written, and `AtomicCheckpointIO` does not let
                training go on.
            ConfigError: `storage_options` with shards.
        """
        if not self.saves_shards:
            # Not `ModelParallelStrategy`'s, which would first remove a folder of that name.
            super(ModelParallelStrategy, self).save_checkpoint(
                checkpoint, filepath, storage_options
            )
            return
        if storage_options is not None:
            raise ConfigError("storage_options: shards are written into a plain folder, without")
        self.finish_writing()
        path = Path(self.broadcast(str(filepath)))
        if self.is_global_zero:
            remove(partial_of(path))
        self.barrier("before the shards")
        if self._writers is None:
            # Of its own: what the run itself exchanges meanwhile must not come between.
            self._writers = distributed.new_group(backend="gloo", timeout=self.patience)
        self._writing = path, write_folder(checkpoint, path, self._writers)
        if self.is_global_zero and isinstance(self.checkpoint_io, AtomicCheckpointIO):
            self.checkpoint_io.warn_of_objects(checkpoint, path)
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        is_linked = any(one.save_last == "link" for one in callbacks_of(trainer, ModelCheckpoint))
        if is_linked or trainer.state.status is not TrainerStatus.RUNNING:
            self.finish_writing()  # a link to it comes next, or nothing goes on meanwhile

    def finish_writing(self) -> None:
        """Wait for the shards that are being written, and report them if that failed.

        Raises:
            CheckpointError: as for `save_checkpoint`.
        """
        if self._writing is None:
            return
        (path, written), self._writing = self._writing, None
        fault = None
        try:
            written.result()
        except CheckpointException as error:  # on all processes alike
            failures = error.failures.items()
            fault = "; ".join(f"process {rank}: {failure}" for rank, (failure, _) in failures)
        if isinstance(self.checkpoint_io, AtomicCheckpointIO):
            self.checkpoint_io.note(str(path), fault)
        elif fault is not None:
            raise CheckpointError(f"{path}: the checkpoint could not be written ({fault})")
        replaced, self._replaced = self._replaced, []
        for older in replaced:
            self.remove_checkpoint(older)

    def remove_checkpoint(self, filepath: str | Path) -> None:
        """Remove a checkpoint that a newer one replaces, once that is whole."""
        if self._writing is None:
            super().remove_checkpoint(filepath)
        else:
            self._replaced.append(filepath)

    def teardown(self) -> None:
        """Wait for the last checkpoint, then end as Lightning does."""
        try:
            self.finish_writing()
        finally:
            super().teardown()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the module: what trains, or moves, and buffers.

        Lightning's own collects all weights on rank zero, the frozen reference's too, which no
        phase saves.
        """
        assert self.model is not None
        moves = isinstance(self.model, HasReference) and self.model.reference_moves
        options = StateDictOptions(
            full_state_dict=not self.saves_shards,
            cpu_offload=not self.saves_shards,  # shards are copied to the CPU to be written
            ignore_frozen_params=not moves,
        )
        state = get_model_state_dict(self.model, options=options)
        # torch leaves a tied output in, the second name of frozen embeddings.
        parameters = self.model.named_parameters(remove_duplicate=False)
        frozen = {name for name, value in parameters if not value.requires_grad}
        if moves:
            frozen = {name for name in frozen if not name.startswith(REFERENCE)}
        return {name: value for name, value in state.items() if name not in frozen}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state of an optimizer: whole, on the CPU of rank zero, or as it is spread."""
        if not self.saves_shards:
            return super().optimizer_state(optimizer)
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        assert self.model is not None
        return get_optimizer_state_dict(self.model, plain)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verify a checkpoint and load it, whatever strategy and number of processes wrote it.

        No code of it is run. Each process reads all of it, and keeps its own share.

        Lightning's own takes the numbers of an optimizer's parameters for their places in the
        model, which they are not where there are parameter groups or frozen parameters: the
        moments of one weight would go to another. And of a folder it would ask for every weight
        of the module, also for those that no phase saves (the reference, frozen weights).

        Raises:
            CheckpointError: missing, torn, altered, or with more than plain types and tensors.
        """
        self.finish_writing()
        path: str = self.broadcast(str(checkpoint_path))
        # Ours, whatever plugin writes: Lightning's reads no folder, and verifies nothing.
        checkpoint = AtomicCheckpointIO().load_checkpoint(path)
        assert self.model is not None
        whole = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(self.model, dict(checkpoint["state_dict"]), options=whole)
        note_changed_weights()
        states = checkpoint.pop("optimizer_states", [])
        for optimizer, state in zip(self.optimizers, states, strict=bool(self.optimizers)):
            named = _name_states(state, optimizer, self.model)
            with _tuples_kept(optimizer):
                set_optimizer_state_dict(self.model, optimizer, named, options=whole)
        return checkpoint


def _name_states(state: dict[str, Any], optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """Replace the numbers of an optimizer's parameters by their names, group by group."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups: list[dict[str, Any]] = []
    name_of: dict[int, str] = {}
    for saved, live in zip(state["param_groups"], optimizer.param_groups, strict=True):
        live_names = [names[parameter] for parameter in live["params"]]
        name_of.update(zip(saved["params"], live_names, strict=True))
        groups.append({**saved, "params": live_names})
    moments = {name_of[number]: value for number, value in state["state"].items()}
    return {"state": moments, "param_groups": groups}


@contextmanager
def _tuples_kept(optimizer: Optimizer) -> Iterator[None]:
    """Turn settings back into tuples (AdamW's betas), which torch's loader makes lists."""
    groups = optimizer.param_groups
    kept = [[name for name, value in group.items() if isinstance(value, tuple)] for group in groups]
    yield
    for group, names in zip(optimizer.param_groups, kept, strict=True):
        group.update({name: tuple(group[name]) for name in names})


StrategyRegistry.register(
    "fsdp2", FSDP2Strategy, description="FSDP2 over all processes, on GPUs and CPUs", override=True
)


def shard(
    model: nn.Module,
    device: torch.device,
    *,
    forward_methods: Sequence[str] = (),
    layer_dtype: torch.dtype | None = None,
    in_float32: bool = False,
) -> None:
    """Spread a model's parameters over all processes, in place; a second call is idle.

    Each transformer layer becomes a unit that is gathered when its forward begins and freed when
    it ends; what remains (embeddings, output, heads) is the root's unit, which stays gathered
    until the backward. Make optimizers afterwards: the parameters are other objects.

    Args:
        model: any module with a transformers model inside, adapters included. What is outside
            of it is not sharded.
        device: where each process keeps its share.
        forward_methods: names of methods of `model`, other than `forward`, that use its
            parameters; they gather the root's unit as `forward` does.
        layer_dtype: in which the weights of layers are gathered, that of autocast: half of the
            memory and of the traffic of float32. Their gradients are added up in float32, and what
            each process keeps stays as it is. None gathers them as they are.
        in_float32: each process keeps its share in float32. A layer becomes float32 when its turn
            has come, so that a model read in 16 bits is whole in float32 nowhere.

    Raises:
        ConfigError: if no stack of layers is found.
    """
    if isinstance(model, FSDPModule):
        return
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if layer_dtype is not None:
        # What flows between layers stays float32, as under autocast.
        types = {"param_dtype": layer_dtype, "reduce_dtype": torch.float32}
        policy = MixedPrecisionPolicy(**types, cast_forward_inputs=False)
    for layer in transformer_layers(model):
        if in_float32:
            hold_in_float32(layer)
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    if in_float32:
        hold_in_float32(model)
    # A unit has one type: a head in float32 on weights in bf16 is a unit of its own.
    if len({parameter.dtype for parameter in model.parameters() if parameter.requires_grad}) > 1:
        for head in [module for module in model.modules() if isinstance(module, ScalarHead)]:
            fully_shard(head, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for name in forward_methods:
        register_fsdp_forward_method(model, name)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Keep the whole weights of a sharded model on every process, for generation.

    Inside, a forward talks to nobody, so that each process may decode for as many steps as its own
    prompts need. It costs the memory of the unsharded weights. Call it on the module that `shard`
    was called on, on every process; an unsharded model passes through. No backward inside.

    Args:
        model: the root of the sharding.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit in units:
            # As in `shard`: the root's unit stays gathered after a forward.
            unit.set_reshard_after_forward(unit is not model, recurse=False)
            unit.reshard()


def gathered_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's weights by name; those of a sharded model whole, on the CPU of rank zero.

    Call it on all processes: further ones get an empty dictionary of a sharded model.
    """
    if not isinstance(model, FSDPModule):
        return model.state_dict()
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Tensor] = get_model_state_dict(model, options=whole)  # type: ignore[assignment]
    return weights
