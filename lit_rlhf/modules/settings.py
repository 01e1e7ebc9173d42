"""A module's settings as plain values, for loggers."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn


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
    return {name: _plain(one) for name, one in values.items() if not isinstance(one, nn.Module)}


def _plain(value: Any) -> Any:  # noqa: ANN401 - any argument
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        own = {name: _plain(getattr(value, name)) for name in fields}
        return {"class": type(value).__name__, **own}
    return str(getattr(value, "__qualname__", type(value).__qualname__))
