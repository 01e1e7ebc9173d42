"""A constructor's arguments: inside a checkpoint, and as plain values for loggers.

Those of a checkpoint make `load_from_checkpoint(path)` enough. They are plain values: classes of
this package are named and made again, and no other code is imported for a checkpoint. What is not
of this package is left out and asked for.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from lit_rlhf.batches import SampleBatch
from lit_rlhf.errors import CheckpointError, ConfigError
from lit_rlhf.prompts import Prompt, Response
from lit_rlhf.rewards import FunctionReward, RewardSource

_CLASS = "lit_rlhf:class"
_LEFT_OUT = "lit_rlhf:left_out"  # with the name of what is not saved
_REWARD = "lit_rlhf:reward"  # likewise, of a reward, which need not be there before it is asked


@dataclasses.dataclass(frozen=True)
class UnsavedReward(RewardSource):
    """Stands where a checkpoint cannot hold a reward, and refuses to score.

    Attributes:
        name: of what was there.
    """

    name: str

    def __call__(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        batch: SampleBatch | None = None,
    ) -> Tensor:
        """Refuse.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"the reward {self.name} is not in the checkpoint; give it once more: "
            "load_from_checkpoint(path, reward=..., judges=...)"
        )


class KeepsArguments:
    """Keeps what its constructor is given, for checkpoints.

    A class of its own: of one that has `__new__` itself, the config parser would not read the
    constructor's options.

    Attributes:
        arguments: by the names of the parameters.
    """

    arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep them before the constructor of `nn.Module`, which leaves the dictionary as it is."""
        made = super().__new__(cls)
        signature = inspect.signature(cls.__init__)  # of this very class
        given = dict(signature.bind_partial(None, *args, **kwargs).arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given.update(given.pop(name, {}))
        given.pop("self", None)
        made.__dict__["arguments"] = given
        return made


def packed(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments in plain types, such as checkpoints hold."""
    return {
        name: _packed(value, _REWARD if name in ("reward", "judges") else _LEFT_OUT)
        for name, value in arguments.items()
    }


def unpacked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that `packed` has made plain.

    Raises:
        ConfigError: one of them was left out.
        CheckpointError: one names no class of this package, or does not fit it.
    """
    return {name: _unpacked(value, name) for name, value in arguments.items()}


def plain_settings(module: nn.Module) -> dict[str, Any]:
    """Return the constructors' settings of a module that keeps them as attributes.

    Of classes above it these are what `**kwargs` stands for: what is given by keyword alone. A
    dataclass becomes its fields, with `class` where several could stand in its place; what has
    no plain form is its name.
    """
    own, *others = (
        inspect.signature(vars(cls)["__init__"]).parameters.values()
        for cls in type(module).__mro__
        if "__init__" in vars(cls)
    )
    further = (one for parameters in others for one in parameters if one.kind is one.KEYWORD_ONLY)
    names = [parameter.name for parameter in (*own, *further)]
    values = {name: getattr(module, name) for name in names if hasattr(module, name)}
    return {
        name: _plain_value(one) for name, one in values.items() if not isinstance(one, nn.Module)
    }


def _packed(value: Any, mark: str) -> Any:  # noqa: ANN401 - any argument
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _packed(one, mark) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_packed(one, mark) for one in value]
        return items if isinstance(value, list) else tuple(items)
    cls = type(value)
    is_own = cls.__module__.startswith("lit_rlhf.") and dataclasses.is_dataclass(value)
    if is_own and not isinstance(value, FunctionReward):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        own = {name: _packed(getattr(value, name), mark) for name in fields}
        return {_CLASS: f"{cls.__module__}:{cls.__qualname__}", **own}
    mark = _REWARD if isinstance(value, RewardSource) else mark
    return {mark: str(getattr(value, "__qualname__", cls.__qualname__))}


def _unpacked(value: Any, name: str) -> Any:  # noqa: ANN401 - any argument
    if isinstance(value, (list, tuple)):
        items = [_unpacked(one, name) for one in value]
        return items if isinstance(value, list) else tuple(items)
    if not isinstance(value, Mapping):
        return value
    if _LEFT_OUT in value:
        raise ConfigError(
            f"{name}: {value[_LEFT_OUT]} is not in the checkpoint; give it once more: "
            f"load_from_checkpoint(path, {name}=...)"
        )
    if _REWARD in value:
        return UnsavedReward(value[_REWARD])
    fields = {key: _unpacked(one, name) for key, one in value.items() if key != _CLASS}
    if _CLASS not in value:
        return fields
    try:
        return _own_class(value[_CLASS])(**fields)
    except TypeError as error:
        raise CheckpointError(
            f"{name}: the checkpoint is of another version of lit_rlhf ({error}); give it once "
            f"more: load_from_checkpoint(path, {name}=...)"
        ) from error


def _own_class(path: str) -> type:
    module, _, name = path.partition(":")
    if not module.startswith("lit_rlhf."):
        raise CheckpointError(f"the checkpoint names {path}, which is no class of lit_rlhf")
    cls = getattr(importlib.import_module(module), name, None)
    if not dataclasses.is_dataclass(cls) or not isinstance(cls, type):
        raise CheckpointError(f"the checkpoint names {path}, which lit_rlhf does not have")
    return cls


def _plain_value(value: Any) -> Any:  # noqa: ANN401 - any argument
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain_value(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_value(one) for one in value]
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        own = {name: _plain_value(getattr(value, name)) for name in fields}
        return {"class": type(value).__name__, **own}
    return str(getattr(value, "__qualname__", type(value).__qualname__))
