"""A client of OpenAI-compatible chat completions: retries, clear errors, a key kept to itself."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from lit_rlhf.errors import ConfigError, LitRLHFError

_RETRIED_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_SHOWN = 300  # characters of what a server says


class EndpointError(LitRLHFError, RuntimeError):
    """The endpoint refused a request, or did not answer however often it was asked."""


class _TemporaryError(Exception):
    """Worth another attempt.

    Attributes:
        wait: what the server said of when, or "".
    """

    def __init__(self, message: str, wait: str = "") -> None:
        super().__init__(message)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another address."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """Where a judge answers.

    Attributes:
        address: the API's base, such as `https://api.openai.com/v1` or `http://127.0.0.1:8000/v1`.
        model: name of the model to ask.
        key_variable: environment variable with the API key; without a value no key is sent. The
            key is read at each request and stands in no file, message or `repr`.
        timeout_s: for the answer to one request.
        num_attempts: how often a request is sent before it counts as failed.
        first_wait_s: wait before the second attempt; doubled for each further one, unless the
            server names a time (`Retry-After`). At most 30 s.
    """

    address: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout_s: float = 60.0
    num_attempts: int = 5
    first_wait_s: float = _FIRST_WAIT_S

    def __post_init__(self) -> None:
        """Refuse an address that is none, and credentials inside of it."""
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"endpoint: '{self.address}' is no http(s) address such as http://127.0.0.1:8000/v1"
            )
        if parts.username or parts.password:
            raise ConfigError(
                "endpoint: leave user and password out of the address; the key is read from the "
                f"environment variable {self.key_variable}"
            )
        if self.num_attempts < 1 or not self.timeout_s > 0:
            raise ConfigError("endpoint: at least one attempt, and a timeout above 0 seconds")

    def chat(self, messages: list[dict[str, str]], *, max_tokens: int) -> str:
        """Return the text of one completion, at temperature 0.

        Raises:
            EndpointError: the request was refused, or every attempt failed.
            ConfigError: the key cannot be sent.
        """
        request = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        failure = None
        for attempt in range(self.num_attempts):
            if failure is not None:
                time.sleep(self._wait_s(attempt, failure))
            try:
                return _text_of(self._post(request))
            except _TemporaryError as error:
                failure = error
        raise EndpointError(
            f"{self.address}: no usable answer in {self.num_attempts} attempts; the last: {failure}"
        )

    def _post(self, content: dict[str, Any]) -> bytes:
        request = urllib.request.Request(
            f"{self.address.rstrip('/')}/chat/completions",
            data=json.dumps(content).encode(),
            headers={"Content-Type": "application/json"},
        )
        if key := self._key():
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=self.timeout_s) as reply:
                body: bytes = reply.read()
                return body
        except urllib.error.HTTPError as error:
            with error:
                said = self._without_key(error.read().decode(errors="replace")[:_SHOWN])
                message = f"HTTP {error.code} {said}"
                wait = error.headers.get("Retry-After", "")
            if error.code in _RETRIED_STATUSES:
                raise _TemporaryError(message, wait) from None
            hint = f"; the key is read from {self.key_variable}" if error.code == 401 else ""
            raise EndpointError(f"{self.address}: {message}{hint}") from None
        except (OSError, http.client.HTTPException) as error:
            raise _TemporaryError(self._without_key(f"{type(error).__name__}: {error}")) from None

    def _wait_s(self, attempt: int, failure: _TemporaryError) -> float:
        own = self.first_wait_s * 2 ** (attempt - 1)
        asked = float(failure.wait) if failure.wait.isdecimal() else own  # it may be a date
        return min(asked, _LONGEST_WAIT_S)

    def _key(self) -> str:
        key = os.environ.get(self.key_variable, "").strip()
        # Refused here: the error of the HTTP library would show it.
        if not (key.isascii() and all(sign.isprintable() for sign in key)):
            raise ConfigError(
                f"endpoint: the key in {self.key_variable} has characters that no key has, such "
                "as a line break: set it anew"
            )
        return key

    def _without_key(self, text: str) -> str:
        key = self._key()
        return text.replace(key, "[key]") if key else text


def _text_of(body: bytes) -> str:
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        said = body[:_SHOWN].decode(errors="replace")
        raise _TemporaryError(f"an answer that is no chat completion: {said!r}") from error
    if not isinstance(text, str):
        raise _TemporaryError(f"a completion without text: {text!r:.{_SHOWN}}")
    return text
