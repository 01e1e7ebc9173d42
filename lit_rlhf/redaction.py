"""Secrets out of what is written: saved configurations, messages, logs."""

from __future__ import annotations

import os
import re
from typing import Any

_HIDDEN = "***"
# Names of environment variables whose values nobody else should read.
_SECRET_NAME = re.compile(r"(?:API_?KEY|TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIAL)S?$", re.IGNORECASE)
# The password of `scheme://user:password@host`; a path makes one slash of the two.
_URL_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]*://?[^\s:/@]*:)([^\s@/]+)(@)", re.IGNORECASE)
_SHORTEST = 6  # a shorter value would be found inside of ordinary words


def redact(text: str) -> str:
    """Replace passwords in URLs, and the values of the process's secret variables, by `***`.

    Variables count as secret by their names: those that end in API_KEY, TOKEN, PASSWORD, SECRET
    or CREDENTIALS.
    """
    text = _URL_PASSWORD.sub(rf"\1{_HIDDEN}\3", text)
    for value in _secret_values():
        text = text.replace(value, _HIDDEN)
    return text


def redact_all(value: Any) -> Any:  # noqa: ANN401 - plain types, as read from YAML or JSON
    """Return a value of plain types with every text in it redacted."""
    if isinstance(value, dict):
        return {key: redact_all(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [redact_all(inner) for inner in value]
    return redact(value) if isinstance(value, str) else value


def _secret_values() -> list[str]:
    """Return the values of the environment's secret variables, longest first."""
    values = {
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST
    }
    return sorted(values, key=len, reverse=True)
