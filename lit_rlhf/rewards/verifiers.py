"""Rules that check a response: 1 where it passes, 0 where not."""

from __future__ import annotations

import abc
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lit_rlhf.batches import SampleBatch
from lit_rlhf.errors import ConfigError, RewardError
from lit_rlhf.prompts import Prompt, Response, response_text
from lit_rlhf.ranges import require
from lit_rlhf.rewards.source import RewardSource


class Verifier(RewardSource):
    """A rule about one response, and maybe a field of its record that says what is right.

    A response whose record lacks the field cannot be scored.
    """

    abstains = True
    timeout_s = 600.0  # no rule takes as long, but a regular expression can

    @property
    def key_field(self) -> str | None:
        """The field of the records that `check` reads; None for none."""
        return None

    @abc.abstractmethod
    def check(self, response: str, key: Any) -> float | None:  # noqa: ANN401 - of the records
        """Score one response.

        Args:
            response: as people read it.
            key: what the record's field says; None where no field is read.

        Returns:
            The score, or None if it cannot be scored.
        """

    def __call__(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        batch: SampleBatch | None = None,
    ) -> Tensor:
        """Score each response, see `RewardSource`.

        Raises:
            RewardError: no record has the field.
        """
        keys = self._keys(len(responses), batch)
        scores = [
            None if self.key_field is not None and key is None else self.check(text, key)
            for text, key in zip(map(response_text, responses), keys, strict=True)
        ]
        numbers = [math.nan if score is None else score for score in scores]
        device = None if batch is None else batch.rows.lengths.device
        return torch.tensor(numbers, dtype=torch.float32, device=device)

    def _keys(self, num_rows: int, batch: SampleBatch | None) -> list[Any]:
        field = self.key_field
        if field is None:
            return [None] * num_rows
        records = [] if batch is None else batch.fields
        if not any(field in record for record in records):
            known = ", ".join(sorted({name for record in records for name in record})) or "none"
            raise RewardError(
                f"{type(self).__name__} reads the field `{field}` of the records, but none has it "
                f"(they have: {known})"
            )
        return [record.get(field) for record in records]


@dataclass(frozen=True)
class ExactMatch(Verifier):
    """1 where the response is what a field of its record says; white space does not count.

    A field with a list has several right answers.

    Attributes:
        field: name of the field with the answer.
        pattern: regular expression that finds the answer in the response: its last match, or there
            the first group, such as `#### (.+)`. It is looked for in the field as well, which
            counts whole where there is none. null: the whole response.
        ignore_case: whether `Yes` is `yes`.
    """

    field: str = "answer"
    pattern: str | None = None
    ignore_case: bool = False

    def __post_init__(self) -> None:
        """Check the pattern."""
        compile_pattern("ExactMatch.pattern", self.pattern)

    @property
    def key_field(self) -> str:
        """`field`."""
        return self.field

    def check(self, response: str, key: Any) -> float | None:  # noqa: ANN401 - of the records
        """See `Verifier`."""
        found = find(self.pattern, response)
        if found is None:
            return 0.0
        answers = [str(one) for one in (key if isinstance(key, list | tuple) else [key])]
        right = {self._plain(find(self.pattern, one) or one) for one in answers}
        return float(self._plain(found) in right)

    def _plain(self, text: str) -> str:
        joined = " ".join(text.split())
        return joined.casefold() if self.ignore_case else joined


@dataclass(frozen=True)
class RegexMatch(Verifier):
    """1 where a regular expression is found in the response: a format, say.

    Attributes:
        pattern: in Python's syntax; `(?s)` at its beginning lets `.` match line breaks.
        whole: it must match the whole response, white space around it apart.
    """

    pattern: str
    whole: bool = False

    def __post_init__(self) -> None:
        """Check the pattern."""
        compile_pattern("RegexMatch.pattern", self.pattern)

    def check(self, response: str, key: Any) -> float | None:  # noqa: ANN401 - likewise
        """See `Verifier`."""
        search = re.fullmatch if self.whole else re.search
        return float(search(self.pattern, response.strip()) is not None)


@dataclass(frozen=True)
class LengthWithin(Verifier):
    """1 where the response is not too short and not too long; from there it falls to 0.

    With `d` the distance to the nearest allowed length, `max(0, 1 - d / slack)`; without slack 0.

    Attributes:
        least: the shortest that is allowed.
        most: the longest that is allowed, null for no limit.
        unit: what is counted: "words" are what white space separates.
        slack: over how much the score falls from 1 to 0.
    """

    least: int = 0
    most: int | None = None
    unit: Literal["characters", "words"] = "characters"
    slack: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        require("LengthWithin.least", self.least, least=0)
        require("LengthWithin.most", self.most, least=self.least, is_optional=True)
        require("LengthWithin.slack", self.slack, least=0)
        if self.least == 0 and self.most is None:
            raise ConfigError("LengthWithin allows every length: set least or most")

    def check(self, response: str, key: Any) -> float | None:  # noqa: ANN401 - likewise
        """See `Verifier`."""
        length = len(response if self.unit == "characters" else response.split())
        most = length if self.most is None else self.most
        distance = max(self.least - length, length - most, 0)
        return max(0.0, 1.0 - distance / self.slack) if self.slack else float(distance == 0)


def compile_pattern(name: str, pattern: str | None) -> None:
    """Refuse what is no regular expression.

    Raises:
        ConfigError: it is not one.
    """
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ConfigError(f"{name}: {pattern!r} is no regular expression: {error}") from None


def find(pattern: str | None, text: str) -> str | None:
    """Return the last match of a pattern, or there its first group; without a pattern the text."""
    if pattern is None:
        return text
    matches = list(re.finditer(pattern, text))
    if not matches:
        return None
    found: str | None = matches[-1].group(1 if matches[-1].re.groups else 0)
    return found
