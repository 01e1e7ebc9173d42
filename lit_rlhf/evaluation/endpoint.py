"""A judge behind OpenAI-compatible chat completions: clear errors, and a key kept to itself."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lit_rlhf.endpoints import parse_json, read_key, read_within, require_address, without_key
from lit_rlhf.errors import LitRLHFError
from lit_rlhf.extras import require_extra
from lit_rlhf.ranges import require

if TYPE_CHECKING:
    from openai import OpenAI

_SHOWN = 300  # characters of what a server says
_LONGEST_ASKED_S = 120  # of a server's Retry-After, openai's own limit
_MOST_BYTES = 1_000_000  # of an answer, which is a few tokens


class EndpointError(LitRLHFError, RuntimeError):
    """The endpoint refused a request, or did not answer however often it was asked."""


@dataclass(frozen=True)
class Endpoint:
    """Where a judge answers.

    Attributes:
        address: the API's base, such as `https://api.openai.com/v1` or `http://127.0.0.1:8000/v1`.
        model: name of the model to ask.
        key_variable: environment variable with the API key; without a value no key is sent. The
            key is in no file, message or `repr`.
        timeout_s: for the answer to one request.
        num_attempts: how often a request is sent before it counts as failed; the waits between
            grow, or are what the server asks for (`Retry-After`, up to two minutes).
    """

    address: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout_s: float = 60.0
    num_attempts: int = 5

    def __post_init__(self) -> None:
        """Refuse an address that is none, and credentials inside of it."""
        require_extra("endpoint", "a judge behind an endpoint")
        require_address("endpoint", self.address, self.key_variable)
        require("endpoint.num_attempts", self.num_attempts, least=1)
        require("endpoint.timeout_s", self.timeout_s, above=0)

    def chat(self, messages: list[dict[str, str]], *, max_tokens: int) -> str:
        """Return the text of one completion, at temperature 0.

        Raises:
            EndpointError: the request was refused, or every attempt failed.
            ConfigError: the key cannot be sent.
        """
        failure = ""
        for _ in range(self.num_attempts):
            body = self._post(model=self.model, messages=messages, max_tokens=max_tokens)
            try:
                return _text_of(body)
            except ValueError as error:
                failure = str(error)
        raise self._failed(failure)

    def _post(self, **request: Any) -> bytes | None:
        """Return what was answered, None where it does not end."""
        import openai  # noqa: PLC0415 - a second, and an extra
        from httpx2 import TransportError  # noqa: PLC0415 - what openai sends by

        # Nothing of another account of the user's environment, and no key where there is none.
        left_out = ["OpenAI-Organization", "OpenAI-Project"] + ["Authorization"] * (not self._key())
        headers = dict.fromkeys(left_out, openai.omit)
        try:
            completions = self._client.chat.completions.with_streaming_response
            with completions.create(**request, temperature=0, extra_headers=headers) as reply:
                return read_within(
                    reply.iter_bytes(), time.monotonic() + self.timeout_s, _MOST_BYTES
                )
        except TransportError:  # in the middle of the body
            return None
        except openai.APIStatusError as error:
            code = error.status_code
            message = f"HTTP {code} {error.response.text[:_SHOWN]}"
            asked = error.response.headers.get("Retry-After", "")
            if asked.isdecimal() and int(asked) > _LONGEST_ASKED_S:  # openai gives up at once
                message += f"; it asks for {asked} s of waiting, and no more than two minutes are"
            elif code in (408, 409, 429) or code >= 500:
                raise self._failed(message) from None
            hint = f"; the key is read from {self.key_variable}" if code == 401 else ""
            raise EndpointError(self._without_key(f"{self.address}: {message}{hint}")) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise self._failed(f"{type(cause).__name__}: {cause}") from None

    @cached_property
    def _client(self) -> OpenAI:
        from openai import DefaultHttpxClient, OpenAI  # noqa: PLC0415

        return OpenAI(
            base_url=self.address,
            api_key=self._key() or "none",
            timeout=self.timeout_s,
            max_retries=self.num_attempts - 1,
            # A redirect would carry the key to another address.
            http_client=DefaultHttpxClient(follow_redirects=False),
        )

    def _failed(self, message: str) -> EndpointError:
        return EndpointError(
            f"{self.address}: no usable answer in {self.num_attempts} attempts; the last: "
            f"{self._without_key(message)}"
        )

    def _key(self) -> str:
        return read_key("endpoint", self.key_variable)

    def _without_key(self, text: str) -> str:
        return without_key(text, self._key())


def _text_of(body: bytes | None) -> str:
    """Return the text of a completion.

    Raises:
        ValueError: it is not one.
    """
    if body is None:
        raise ValueError("an answer that does not end")
    try:
        text = parse_json(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        said = body[:_SHOWN].decode(errors="replace")
        raise ValueError(f"an answer that is no chat completion: {said!r}") from error
    if not isinstance(text, str):
        raise ValueError(f"a completion without text: {text!r:.{_SHOWN}}")  # noqa: TRY004
    return text
