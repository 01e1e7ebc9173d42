"""Answers judged step by step, as rows in which the last token of each step counts.

A step's label is a pair of the row with itself; the k-th pair is the label of the k-th token that
counts. So one batch serves pairs, labelled responses and steps alike.
"""

from __future__ import annotations

from lit_rlhf.data.chat_template import Piece, RenderedText
from lit_rlhf.data.tokenization import Row
from lit_rlhf.errors import DataError
from lit_rlhf.feedback import JudgedPair
from lit_rlhf.feedback.steps import SEPARATOR, JudgedSteps


def mark_steps(text: RenderedText, record: JudgedSteps, where: str) -> RenderedText:
    """Let only the separators behind steps, and the answer's last character, be learned.

    Raises:
        DataError: the chat template writes the answer otherwise than it is.
    """
    piece = text.pieces[-1]
    start = piece.text.rfind(record.response)
    if start < 0:
        raise DataError(
            f"{where}: the chat template changes the answer, so that its steps cannot be found. "
            "Set data.template to plain, or use another tokenizer's template."
        )
    spans = []
    for step in record.steps:
        start += len(step)
        spans.append((start, start + len(SEPARATOR)))
        start += len(SEPARATOR)
    end = spans.pop()[0]
    marked = Piece(piece.text, (*spans, (end - 1, end)))
    return text._replace(pieces=(*text.pieces[:-1], marked))


def at_step_ends(row: Row, num_steps: int, where: str) -> Row:
    """Let the separators count, and for the last step the row's last token, which is scored.

    Args:
        row: of a text of `mark_steps`, so that behind the separators the answer's end counts, too.
        num_steps: of the answer.
        where: the record's place.

    Raises:
        DataError: the tokenizer joins a separator with another, so that steps share a token.
    """
    ends = [place for place, counts in enumerate(row.response_mask) if counts]
    last = len(row.input_ids) - 1
    kept = {*ends[: num_steps - 1], last}
    if len(kept) != num_steps or len(ends) < num_steps:
        raise DataError(
            f"{where}: the tokenizer leaves fewer than {num_steps} tokens at the ends of the "
            "steps, so that some share one. Join such steps."
        )
    return row._replace(response_mask=[place in kept for place in range(len(row.input_ids))])


def step_labels(record: JudgedSteps) -> list[JudgedPair]:
    """Return the labels of the steps, in order."""
    return [JudgedPair(0, 0, label, record.weight) for label in record.labels]
