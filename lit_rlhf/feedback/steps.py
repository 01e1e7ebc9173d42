"""Answers judged step by step: the rows of process reward models."""

from __future__ import annotations

from dataclasses import dataclass

from lit_rlhf.feedback.fields import (
    Record,
    is_present,
    missing_fields,
    read_list,
    read_number,
    read_text,
    read_text_or_conversation,
    wrong_field,
)
from lit_rlhf.feedback.prompts import unanswered
from lit_rlhf.feedback.records import complete_prompt, read_weight
from lit_rlhf.prompts import Prompt

# What stands between two steps; a step is judged at this token.
SEPARATOR = "\n"


@dataclass(frozen=True)
class JudgedSteps:
    """One answer in steps, each with the share of judges who call it right."""

    prompt: Prompt
    steps: tuple[str, ...]
    labels: tuple[float, ...]
    weight: float = 1.0

    @property
    def response(self) -> str:
        """The whole answer."""
        return SEPARATOR.join(self.steps)


def is_stepwise(row: Record) -> bool:
    """Say whether a row has an answer in steps with a label each."""
    return all(isinstance(row.get(field), list) for field in ("completions", "labels"))


def parse_steps(row: Record, where: str) -> JudgedSteps:
    """Read `prompt`, `completions` (the steps), `labels` (one each) and, where given, `weight`.

    A label is true or false, or a share from 0 to 1.

    Raises:
        DataError: a field is missing or not as expected.
    """
    if not is_stepwise(row) or not is_present(row, "prompt"):
        raise missing_fields(row, where, "'prompt', 'completions' and 'labels'")
    prompt = unanswered(read_text_or_conversation(row["prompt"], "prompt", where), where)
    steps = tuple(
        _read_step(step, f"completions[{i}]", where)
        for i, step in enumerate(read_list(row["completions"], "completions", where, "steps"))
    )
    values = read_list(row["labels"], "labels", where, "one label a step")
    if not steps or len(values) != len(steps):
        raise wrong_field(where, "labels", f"one label for each of {len(steps)} steps", values)
    labels = tuple(
        float(value)
        if isinstance(value, bool)
        else read_number(value, f"labels[{i}]", where, low=0, high=1)
        for i, value in enumerate(values)
    )
    whole = complete_prompt(prompt, row, where)
    return JudgedSteps(whole, steps, labels, read_weight(row, where))


def _read_step(step: object, field: str, where: str) -> str:
    text = read_text(step, field, where).strip(SEPARATOR)
    if not text.strip():
        raise wrong_field(where, field, "a step with a text", step)
    return text
