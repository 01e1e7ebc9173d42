"""`lit-rlhf feedback agreement --by` and `show --disagreements`."""

import json

from lit_rlhf.cli import main
from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.feedback.store import FeedbackStore


def fill(path):
    gold = Judgment("judged", (1, 2), is_gold=True)
    said = (
        Judgment("judged", (1, 2), labeler="ana"),
        Judgment("judged", (2, 1), labeler="ben", comment="Too\x1b[31m long."),
    )
    ranked = (
        Judgment("judged", (1, 2, 2), labeler="ana"),
        Judgment("judged", (3, 2, 1), labeler="ben"),
    )
    with FeedbackStore.open(str(path)) as store:
        store.add_tasks([
            JudgedTask("Say hi", ("Hi", "Hello!"), (gold, *said), None, {}, "kindness"),
            JudgedTask("Rank", ("x", "y", "z"), ranked, None, {}),
        ])  # fmt: skip


def lines(capsys, *words):
    assert main(["feedback", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_agreement_by_labeler_kind_and_week(tmp_path, capsys):
    store = tmp_path / "feedback.db"
    fill(store)
    shown = lines(capsys, "agreement", str(store), "--by", "labeler")
    assert shown[0] == "ana, 2 tasks"
    assert shown[1].startswith("  with gold answers   1.000 [")
    assert shown[2].startswith("  with the others     0.000 [")
    assert shown[3] == "  with itself         undefined, because no task was asked twice"
    kinds = lines(capsys, "agreement", str(store), "--by", "kind")
    assert [line for line in kinds if not line.startswith(" ")] == ["comparison", "ranking"]
    assert lines(capsys, "agreement", str(store), "--by", "week")[0].endswith("(8 answers)")


def test_models_are_imported_as_judges(tmp_path, capsys):
    store, file = tmp_path / "feedback.db", tmp_path / "judge.jsonl"
    fill(store)
    judgment = {"outcome": "judged", "ranks": [1, 2], "labeler": "gpt"}
    row = {"prompt": "Say hi", "responses": ["Hi", "Hello!"], "question": "kindness"}
    file.write_text(json.dumps(row | {"judgments": [judgment]}) + "\n")
    assert lines(capsys, "import", str(file), str(store), "--judges")
    shown = lines(capsys, "agreement", str(store))
    assert "published projects report 60 to 77 % on pairs" in shown
    assert shown[-1].startswith("gpt and people: 0.500 [")
    assert "people among themselves there: 0.000 [" in shown[-1]


def test_the_disagreements(tmp_path, capsys):
    store = tmp_path / "feedback.db"
    fill(store)
    shown = lines(capsys, "show", str(store), "--disagreements", "1")
    assert shown == [
        "task 1 (comparison, kindness): split 0.50, 2 labelers",
        "  prompt  Say hi",
        "  [1]     Hi",
        "  [2]     Hello!",
        "  (not named), gold  [1] > [2]",
        "  ana  [1] > [2]",
        "  ben  [2] > [1]: Too\\x1b[31m long.",
    ]
    ranked = lines(capsys, "show", str(store), "--disagreements", "5")[7:]
    assert "  ana  [1] > [2] = [3]" in ranked
