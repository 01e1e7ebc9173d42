"""Rules that read a language of their own: maths by math-verify, JSON by its schema."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_rlhf.errors import ConfigError
from lit_rlhf.extras import require_extra
from lit_rlhf.ranges import require
from lit_rlhf.rewards.verifiers import Verifier, compile_pattern, find

_MARKS = ("$", r"\(", r"\[", r"\boxed")  # of maths inside of text

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MathsEqual(Verifier):
    r"""1 where the response's last formula or number equals the answer in a field: `1/2` is `0.5`.

    By math-verify, which reads LaTeX and plain expressions (extra `verifiers`). A response whose
    check takes too long or fails cannot be scored, and neither can one to an answer without maths.

    Attributes:
        field: name of the field with the answer: text that holds maths, or maths alone.
        limit_s: whole seconds to read one text, and to compare two.
    """

    field: str = "answer"
    limit_s: int = 5

    def __post_init__(self) -> None:
        """Look for the package at once."""
        require("MathsEqual.limit_s", self.limit_s, least=1)
        require_extra("verifiers", "MathsEqual")

    @property
    def key_field(self) -> str:
        """`field`."""
        return self.field

    def check(self, response: str, key: Any) -> float | None:  # noqa: ANN401 - of the records
        """See `Verifier`."""
        from math_verify import parse, verify  # noqa: PLC0415 - an extra
        from math_verify.errors import TimeoutException  # noqa: PLC0415

        # It ends what takes too long by a signal, which reaches the main thread alone.
        is_main = threading.current_thread() is threading.main_thread()
        limit_s = self.limit_s if is_main else None
        answer = str(key)
        if not any(mark in answer for mark in _MARKS):
            answer = f"${answer}$"
        reading = {"parsing_timeout": limit_s, "raise_on_error": True}
        try:
            right = parse(answer, fallback_mode="no_fallback", **reading)
            if not right:
                return None
            given = parse(response, **reading)
            return float(verify(right, given, timeout_seconds=limit_s, raise_on_error=True))
        except (Exception, TimeoutException) as error:  # the latter is no Exception
            _log.info(
                "MathsEqual cannot score %.80r: %s: %s", response, type(error).__name__, error
            )
            return None


@dataclass(frozen=True)
class JSONSchema(Verifier):
    """1 where the response is JSON that a schema allows (extra `verifiers`).

    Attributes:
        schema: a JSON schema, or a file with one. What it refers to must be inside of it.
        pattern: regular expression that finds the JSON in the response: its last match, or there
            the first group. null: the whole response.
    """

    schema: dict[str, Any] | str
    pattern: str | None = None

    def __post_init__(self) -> None:
        """Read the schema and check it."""
        require_extra("verifiers", "JSONSchema")
        compile_pattern("JSONSchema.pattern", self.pattern)
        _ = self._validator

    def check(self, response: str, key: Any) -> float | None:  # noqa: ANN401 - of the records
        """See `Verifier`."""
        found = find(self.pattern, response)
        try:
            return float(found is not None and self._validator.is_valid(json.loads(found)))
        except (ValueError, RecursionError):  # no JSON
            return 0.0

    @cached_property
    def _validator(self) -> Any:  # noqa: ANN401 - jsonschema has no types
        from jsonschema import SchemaError  # noqa: PLC0415 - an extra
        from jsonschema.validators import validator_for  # noqa: PLC0415
        from referencing import Registry  # noqa: PLC0415 - of jsonschema

        schema = self.schema
        if isinstance(schema, str):
            try:
                schema = json.loads(Path(schema).expanduser().read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ConfigError(f"JSONSchema.schema: {self.schema}: {error}") from error
        validator = validator_for(schema)
        try:
            validator.check_schema(schema)
        except SchemaError as error:
            raise ConfigError(f"JSONSchema.schema: {error.message}") from None
        return validator(schema, registry=Registry())  # fetches nothing
