"""What an optional dependency is for, and the one message of where it is missing."""

from __future__ import annotations

import functools
import importlib.util
import warnings

from lit_rlhf.errors import ConfigError

# The extras of pyproject.toml: what each installs, by the name that Python imports.
EXTRAS = {
    "demo": ("gguf", "vaderSentiment", "matplotlib"),
    "endpoint": ("openai",),
    "torchao": ("torchao",),
    "feedback": ("sqlalchemy", "alembic"),
    "postgres": ("psycopg",),
    "verifiers": ("math_verify", "jsonschema"),
    "label": ("fastapi", "uvicorn", "nh3", "markdown_it", "python_multipart"),
}


def missing(extra: str) -> list[str]:
    """Return the packages of an extra that are not installed."""
    return [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]


def require_extra(extra: str, purpose: str) -> None:
    """Refuse to go on without an extra.

    Args:
        extra: one of `EXTRAS`.
        purpose: what needs it, as the message begins.

    Raises:
        ConfigError: one of its packages is not installed.
    """
    if absent := missing(extra):
        raise ConfigError(f"{purpose} needs {' and '.join(absent)}: {install_line(extra)}")


def install_line(extra: str) -> str:
    """Return the command that installs an extra."""
    return f'pip install "lit-rlhf[{extra}]"'


@functools.cache
def can_draw() -> bool:
    """Tell whether pictures can be drawn; say once where they cannot."""
    if "matplotlib" not in missing("demo"):
        return True
    warnings.warn(
        f"no pictures are drawn: matplotlib is not installed ({install_line('demo')})", stacklevel=2
    )
    return False
