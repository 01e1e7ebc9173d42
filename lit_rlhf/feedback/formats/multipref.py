"""MultiPref: two completions, each pair judged by two crowd workers and two experts."""

from __future__ import annotations

from lit_rlhf.feedback.fields import Record, wrong_field
from lit_rlhf.feedback.formats.parts import (
    Better,
    ReadResult,
    RowFormat,
    compared,
    known_by,
    read_duration,
    read_labeler,
    read_objects,
    two_responses,
    user_turn,
)
from lit_rlhf.feedback.judgments import Judgment

_ANSWERS = ("completion_a", "completion_b")
_LABELERS = ("normal_worker_annotations", "expert_worker_annotations")
_PREFERENCES: dict[str, tuple[Better, int | None]] = {
    "Tie": ("neither", None),
    "A-is-slightly-better": ("first", 1),
    "A-is-clearly-better": ("first", 2),
    "B-is-slightly-better": ("second", 1),
    "B-is-clearly-better": ("second", 2),
}


def _read(row: Record, where: str) -> ReadResult:
    judgments = [
        _judgment(annotation, where)
        for field in _LABELERS
        for annotation in read_objects(row.get(field) or [], field, where)
    ]
    prompt = user_turn(row.get("text"), "text", where)
    models = (read_labeler(row.get("model_a")), read_labeler(row.get("model_b")))
    # The labelers' other answers (helpful, truthful, harmless) stay in the metadata.
    task = two_responses(row, prompt, _ANSWERS, judgments, where, "text", "model_a", "model_b")
    return [task._replace(models=models)]


def _judgment(annotation: Record, where: str) -> Judgment:
    labeler = read_labeler(annotation.get("evaluator"))
    preference = annotation.get("overall_pref")
    if preference is None:
        return Judgment("skip", labeler=labeler)
    if preference not in _PREFERENCES:
        expected = f"one of {', '.join(_PREFERENCES)}"
        raise wrong_field(where, "overall_pref", expected, preference)
    better, strength = _PREFERENCES[str(preference)]
    duration_s = read_duration(annotation.get("time_spent"), "time_spent", where)
    return compared(better, strength=strength, labeler=labeler, duration_s=duration_s)


MULTIPREF = RowFormat("multipref", known_by("text", *_ANSWERS, _LABELERS[0]), _read)
