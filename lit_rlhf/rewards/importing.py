"""Functions named by text: `package.module:name` (or `.name`), or `path/to/file.py:name`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from lit_rlhf.errors import ConfigError

HOW = "give my_module:my_function or path/to/file.py:my_function"


def import_function(
    path: str, *, what: str = "reward function", how: str = HOW
) -> Callable[..., Any]:
    """Return what a path names.

    Args:
        path: `package.module:name` (or `.name`), or `path/to/file.py:name`.
        what: is looked for, for messages.
        how: it is named, likewise.

    Raises:
        ConfigError: it cannot be imported, or is not a function.
    """
    module_name, mark, name = path.rpartition(":" if ":" in path else ".")
    try:
        module = (
            _load_file(Path(module_name)) if _is_file(module_name, mark) else _load(module_name)
        )
        function: Callable[..., Any] = getattr(module, name)
    except ConfigError:
        raise
    except Exception as error:  # whatever the user's module does
        raise ConfigError(
            f"{what} '{path}' cannot be imported ({_describe(error)}); {how}"
        ) from error
    if not callable(function):
        raise ConfigError(
            f"{what} '{path}' is not a function but a {type(function).__name__}; {how}"
        )
    return function


def find_in_working_folder() -> None:
    """Let modules of the working directory be found, as `python -m` does."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def place_of(error: BaseException) -> str:
    """Return `FILE:LINE` of where an exception was raised; "" where that is not known."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _is_file(module_name: str, mark: str) -> bool:
    return mark == ":" and module_name.endswith(".py")


def _load(module_name: str) -> ModuleType:
    if not module_name:
        raise ConfigError(f"reward function: no module is named; {HOW}")
    return importlib.import_module(module_name)


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    name = f"lit_rlhf_reward_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise ConfigError(f"reward function: there is no file {path}; {HOW}")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look it up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _describe(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    if isinstance(error, (ImportError, AttributeError)):
        return str(error)
    return f"{place_of(error)}: {type(error).__name__}: {error}"
