"""Another class in a setting starts from its own defaults.

jsonargparse keeps what the class before had under the same name, defaults included: `SimPO` behind
a file that names `DPO` would get DPO's `beta` of 0.1 for its own of 2. The same name says another
thing in another class, so nothing is kept.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Container, Iterator, MutableMapping
from functools import cache
from typing import Any, TypeAlias

from jsonargparse import _typehints

_log = logging.getLogger(__name__)

# A dict or jsonargparse's Namespace, with `class_path` and `init_args`.
_Spec: TypeAlias = MutableMapping[str, Any]
_keep_equal_names: Callable[..., None] = _typehints.discard_init_args_on_class_path_change


def start_anew_on_class_change() -> None:
    """Let parsers start from a class's own defaults where a later setting names another class.

    Loggers alone keep jsonargparse's way: another one has the run's name and folder, too. One line
    names what had been set to another value than its default.
    """
    _typehints.discard_init_args_on_class_path_change = _start_anew


def _start_anew(parser: object, before: _Spec | None, value: _Spec) -> None:
    if before and before.get("dict_kwargs") and before["class_path"] != value["class_path"]:
        del before["dict_kwargs"]  # what the signature does not name means nothing to another class
    if before and before.get("init_args") and before["class_path"] != value["class_path"]:
        old, new = (made_by(spec["class_path"]) for spec in (before, value))
        if old and new and old is not new and not _are_loggers(old, new):
            given = value.get("init_args") or {}
            names = list(_lost_settings(old, new, before["init_args"], given))
            if names:
                _tell_once(_name_of(old), _name_of(new), ", ".join(names))
            before["init_args"] = type(before["init_args"])()
    _keep_equal_names(parser, before, value)


def made_by(path: str | None) -> Callable[..., object] | None:
    """Return the class or function that a path names, None where the parser will complain."""
    module, _, name = (path or "").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None
    return found if callable(found) else None


def _are_loggers(*made: Callable[..., object]) -> bool:
    # By name, so that this file needs no Lightning.
    bases = [one.__mro__ if isinstance(one, type) else () for one in made]
    return all(any(base.__name__ == "Logger" for base in own) for own in bases)


def _lost_settings(
    old: Callable[..., object], new: Callable[..., object], settings: _Spec, given: object
) -> Iterator[str]:
    """Yield the settings that both have, that were not defaults, and that are not given again."""
    taken = inspect.signature(new).parameters
    for name, parameter in inspect.signature(old).parameters.items():
        value = settings.get(name)
        if name not in taken or value is None or _has(given, name):
            continue
        is_part = hasattr(value, "keys") and "class_path" in value
        if is_part and made_by(value["class_path"]) is not type(parameter.default):
            yield f"{name}: {value['class_path'].rpartition('.')[2]}"
        elif isinstance(value, (str, int, float)) and value != parameter.default:
            yield f"{name}: {value}"


def _has(given: object, name: str) -> bool:
    # One flag, such as `--model.loss.beta 3`, is a pair of its own.
    return name == getattr(given, "key", None) or (isinstance(given, Container) and name in given)


def _name_of(made: Callable[..., object]) -> str:
    return getattr(made, "__name__", str(made))


@cache
def _tell_once(old: str, new: str, names: str) -> None:
    _log.warning(
        "%s takes the place of %s and starts from its own defaults; %s of %s is not used. Set it "
        "behind the class to use it.",
        new,
        old,
        names,
        old,
    )
