"""Another class in a setting starts from its own defaults.

jsonargparse keeps what the class before had under the same name, defaults included: `SimPO` behind
a file that names `DPO` would get DPO's `beta` of 0.1 for its own of 2. Names of parts of ours say
different things in different classes, so none is kept.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, MutableMapping
from typing import Any, TypeAlias

from jsonargparse import _typehints

# A dict or jsonargparse's Namespace, with `class_path` and `init_args`.
_Spec: TypeAlias = MutableMapping[str, Any]
_keep_equal_names: Callable[..., None] = _typehints.discard_init_args_on_class_path_change


def start_anew_on_class_change() -> None:
    """Let parsers start from a class's own defaults where a later setting names another class.

    Loggers, callbacks and the like of Lightning keep jsonargparse's way. A warning names what had
    been set to another value than its default.
    """
    _typehints.discard_init_args_on_class_path_change = _start_anew


def _start_anew(parser: object, before: _Spec | None, value: _Spec) -> None:
    if before and before.get("init_args") and before["class_path"] != value["class_path"]:
        old, new = (_class_of(spec["class_path"]) for spec in (before, value))
        if old and new and old is not new and _have_base_of_ours(old, new):
            _warn_of_lost_settings(old, new, before["init_args"])
            before["init_args"] = type(before["init_args"])()
    _keep_equal_names(parser, before, value)


def _class_of(path: str | None) -> type | None:
    module, _, name = (path or "").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None  # the parser says so
    return found if isinstance(found, type) else None


def _have_base_of_ours(old: type, new: type) -> bool:
    return any(
        base.__module__.startswith("lit_rlhf.") for base in old.__mro__ if base in new.__mro__
    )


def _warn_of_lost_settings(old: type, new: type, settings: _Spec) -> None:
    """Name the settings that both classes have, where the first one's was not its default."""
    taken = inspect.signature(new).parameters
    lost = [
        f"{name}: {settings[name]}"
        for name, parameter in inspect.signature(old).parameters.items()
        if name in taken
        and settings.get(name) not in (None, parameter.default)
        and isinstance(settings[name], (str, int, float))
    ]
    if lost:
        warnings.warn(
            f"{new.__name__} takes the place of {old.__name__} and starts from its own defaults; "
            f"{', '.join(lost)} of {old.__name__} is not used. Set it behind the class to use it.",
            stacklevel=2,
        )
