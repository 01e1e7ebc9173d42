"""Where a server answers, and the key to it, which is in no file and no message."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from lit_rlhf.errors import ConfigError


def require_address(name: str, address: str, key_variable: str | None) -> None:
    """Refuse an address that is none, and credentials inside of it.

    Args:
        name: of the setting, for messages.
        address: what a user wrote.
        key_variable: environment variable that the key is read from.

    Raises:
        ConfigError: it is no http(s) address, or has a password.
    """
    try:
        parts = urlsplit(address)
        is_address = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half of an IPv6 address, a port that is no number
        is_address = False
    if not is_address:
        raise ConfigError(
            f"{name}: '{address}' is no http(s) address such as http://127.0.0.1:8000/v1"
        )
    if parts.username or parts.password:
        where = f"variable {key_variable}" if key_variable else "that key_variable names"
        raise ConfigError(
            f"{name}: leave user and password out of the address; the key is read from the "
            f"environment {where}"
        )


def read_key(name: str, variable: str | None) -> str:
    """Return the key in an environment variable, "" where there is none.

    Raises:
        ConfigError: it cannot be sent; the HTTP library's own error would show it.
    """
    key = os.environ.get(variable, "").strip() if variable else ""
    if not (key.isascii() and all(sign.isprintable() for sign in key)):
        raise ConfigError(
            f"{name}: the key in {variable} has characters that no key has, such as a line break: "
            "set it again"
        )
    return key


def read_within(pieces: Iterable[bytes], end: float, most: int) -> bytes | None:
    """Return the body of an answer, or None where it does not end.

    The HTTP library limits the time of each read alone: a server could go on piece by piece.

    Args:
        pieces: of the body.
        end: when it must be whole, by `time.monotonic`.
        most: bytes.
    """
    body = b""
    for piece in pieces:
        body += piece
        if time.monotonic() > end or len(body) > most:
            return None
    return body


def parse_json(text: bytes) -> Any:  # noqa: ANN401 - what JSON holds
    """Parse what a server says.

    Raises:
        ValueError: it is no JSON, or nested so deeply that Python gives up.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error


def without_key(text: str, key: str) -> str:
    """Return a text in which the key is not to be read."""
    return text.replace(key, "[key]") if key else text
