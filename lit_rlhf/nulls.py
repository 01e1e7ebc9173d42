"""A setting that must have a value is not null: jsonargparse takes null for any, from a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lit_rlhf.class_changes import made_by
from lit_rlhf.config_messages import config_files, of_null, place_of
from lit_rlhf.errors import ConfigError


def refuse_nulls(
    cls: type, settings: Mapping[str, Any] | None, name: str, arguments: Sequence[str]
) -> None:
    """Refuse a setting that is null though its type has no None.

    Args:
        cls: the settings are its constructor's, or those of the classes above it.
        settings: by their names; parts with `class_path` and `init_args`, or with their own fields.
        name: of the settings as a whole; "" if they stand on their own.
        arguments: of the command line, among them `--config` files.

    Raises:
        ConfigError: a setting is null that cannot be.
    """
    names = [name] if settings is None else _null_settings(cls, settings, name)
    for key in names:
        raise ConfigError(f"{place_of(key, config_files(arguments))}{of_null(key)}")


def _null_settings(cls: type, settings: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield the dotted names of settings that are null and may not be."""
    hints = _hints_of(cls)
    for key, value in settings.items():
        own = f"{name}.{key}" if name else key
        if value is None and key in hints and not _takes_none(hints[key]):
            yield own
        elif part := _class_of(hints.get(key), value):
            fields = value.get("init_args") if "class_path" in value else value
            yield from _null_settings(part, fields or {}, own)


def _hints_of(cls: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if "__init__" not in vars(base):
            continue
        constructor = vars(base)["__init__"]
        try:
            hints, parameters = get_type_hints(constructor), signature(constructor).parameters
        except (NameError, TypeError, ValueError):  # others' types may exist for checkers alone
            continue
        # Many write `x: int = None`.
        found |= {
            name: hints[name]
            for name in hints
            if name != "return" and parameters[name].default is not None
        }
    return found


def _takes_none(hint: Any) -> bool:  # noqa: ANN401 - any type
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(map(_takes_none, inner))
    if origin is Literal:
        return None in inner
    return hint in (None, NoneType, Any, object) or isinstance(hint, TypeVar)


def _class_of(hint: Any, value: Any) -> type | None:  # noqa: ANN401 - any type and value
    """Return the class that a setting's fields are of, or None where it has none."""
    if not isinstance(value, Mapping):
        return None
    if "class_path" in value:
        found = made_by(value["class_path"])
        return found if isinstance(found, type) else None
    return next((one for one in (hint, *get_args(hint)) if _has_fields(one)), None)


def _has_fields(hint: Any) -> bool:  # noqa: ANN401 - any type
    return isinstance(hint, type) and hint.__module__ != "builtins"
