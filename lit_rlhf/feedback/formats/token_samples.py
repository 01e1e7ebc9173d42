"""OpenAI's lm-human-preferences: token ids of four samples and which one is best."""

from __future__ import annotations

from lit_rlhf.errors import DataError
from lit_rlhf.feedback.fields import Record
from lit_rlhf.feedback.formats.parts import ReadResult, RowFormat, known_by


def _read(row: Record, where: str) -> ReadResult:
    raise DataError(
        f"{where}: token ids of GPT-2, not text. Decode 'query' and the samples with its "
        "tokenizer, and write rows of 'prompt', 'responses' and 'rankings'."
    )


BEST_OF_4 = RowFormat("best_of_4", known_by("query", "sample0", "sample1", "best"), _read)
