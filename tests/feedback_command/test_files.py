"""`lit-rlhf feedback`: files into a store and out of it, and training from it."""

import json
import sqlite3

import datasets
import pytest
import sqlalchemy as sa

from lit_rlhf.cli import main
from lit_rlhf.data import DPODataModule, RewardDataModule
from lit_rlhf.data.store_source import open_store
from lit_rlhf.errors import DataError
from lit_rlhf.feedback import adding, judged_pairs, parse_judged_group
from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.feedback.store import FeedbackStore
from tests.support.tokenizer import save_tiny_tokenizer


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pairs(number):
    return [{"prompt": f"p {i}", "chosen": "yes", "rejected": "no"} for i in range(number)]


def test_pairs_go_in_and_come_out(tmp_path, capsys):
    file, store = write_lines(tmp_path / "in.jsonl", pairs(3)), str(tmp_path / "feedback.db")
    assert main(["feedback", "import", file, store]) == 0
    assert capsys.readouterr().out == "3 new tasks, 3 new judgments\n"
    assert main(["feedback", "import", file, store]) == 0
    assert capsys.readouterr().out == "0 new tasks, 0 new judgments\n"
    out = tmp_path / "out.jsonl"
    assert main(["feedback", "export", store, str(out), "--format", "trl"]) == 0
    assert read_lines(out) == [row | {"probability": 1.0} for row in pairs(3)]
    capsys.readouterr()
    assert main(["feedback", "show", store]) == 0
    shown = capsys.readouterr().out
    assert "judgments     3\n" in shown
    assert "by kind       comparison 3\n" in shown


def test_neither_an_export_nor_a_backup_replaces_a_store(tmp_path):
    file, store = write_lines(tmp_path / "in.jsonl", pairs(3)), str(tmp_path / "feedback.db")
    assert main(["feedback", "import", file, store]) == 0
    assert main(["feedback", "import", file, str(tmp_path / "other.db")]) == 0
    for command in ("export", "backup"):
        for name in ("feedback.db", "other.db"):
            assert main(["feedback", command, store, str(tmp_path / name)]) == 1
            with FeedbackStore.open(str(tmp_path / name)) as kept:
                assert kept.counts().judgments == 3


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "folder"])
def test_our_own_export_loses_nothing(tmp_path, name):
    chat = ({"role": "user", "content": "Hi"},)
    said = (
        Judgment("judged", (2, 1), 3, labeler="ana", id="a", side_order=(1, 0), submitted_at=5.0),
        Judgment("tie", labeler="dan", id="d", submitted_at=0.0, duration_s=0.0),
        Judgment("both_bad", labeler="ben", id="b", comment="poor", client={"version": "1"}),
        Judgment("skip", labeler="cem", id="c"),
    )
    task = JudgedTask(chat, ("x", "y"), said, ("m", None), {"k": [1]}, "harmless")
    first, second = str(tmp_path / "a.db"), str(tmp_path / "b.db")
    with FeedbackStore.open(first) as store:
        store.add_tasks([task])
    out = str(tmp_path / name)
    assert main(["feedback", "export", first, out]) == 0
    assert main(["feedback", "import", out, second]) == 0
    with FeedbackStore.open(second) as store:
        assert list(store.judged_tasks()) == [task]


def test_a_folder_is_a_data_set_with_its_splits(tmp_path):
    store, folder = str(tmp_path / "feedback.db"), tmp_path / "pairs"
    main(["feedback", "import", write_lines(tmp_path / "in.jsonl", pairs(60)), store])
    assert main(["feedback", "export", store, str(folder), "--format", "trl"]) == 0
    data = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert set(data) == {"train", "validation", "test"}
    assert data["train"].column_names == ["prompt", "chosen", "rejected", "probability"]
    with FeedbackStore.open(store) as opened:
        assert data["test"]["prompt"] == [task.prompt for task in opened.judged_tasks("test")]
    assert main(["feedback", "export", store, str(folder)]) == 1  # it is there already
    data.save_to_disk(str(tmp_path / "saved"))
    for source in (folder, tmp_path / "saved"):
        other = tmp_path / f"{source.name}.db"
        assert main(["feedback", "import", str(source), str(other)]) == 0
        with FeedbackStore.open(str(other)) as opened:
            assert sorted(task.prompt for task in opened.judged_tasks()) == sorted(
                row["prompt"] for row in pairs(60)
            )


def test_what_parquet_cannot_hold_is_said(tmp_path, capsys):
    store, out = str(tmp_path / "feedback.db"), tmp_path / "out.parquet"
    said = (Judgment("tie", labeler="ana"),)
    chat = ({"role": "user", "content": "Hi"},)
    with FeedbackStore.open(store) as opened:
        opened.add_tasks(JudgedTask(p, ("a", "b"), said, None, {}) for p in ("text", chat))
    assert main(["feedback", "export", store, str(out)]) == 1
    assert "Export them as .jsonl." in capsys.readouterr().err
    assert not out.exists()
    assert main(["feedback", "export", store, str(tmp_path / "out.csv")]) == 1
    assert "ends in .jsonl or .parquet, or a folder" in capsys.readouterr().err


def test_a_bad_row_is_named_or_skipped_and_counted(tmp_path, capsys):
    rows = [*pairs(1), {"prompt": "x", "chosen": "only"}, *pairs(2)]
    file, store = write_lines(tmp_path / "in.jsonl", rows), str(tmp_path / "feedback.db")
    assert main(["feedback", "import", file, store]) == 1
    assert f"{file}:2: expected 'prompt', 'chosen' and 'rejected'" in capsys.readouterr().err
    skip = ["--bad-rows", "skip"]
    assert main(["feedback", "import", file, store, *skip]) == 0
    assert capsys.readouterr().out.endswith("1 bad rows skipped\n")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "x"\n')
    assert main(["feedback", "import", str(tmp_path / "broken.jsonl"), store]) == 1
    assert "broken.jsonl:1: broken JSON" in capsys.readouterr().err
    assert main(["feedback", "import", str(tmp_path / "broken.jsonl"), store, *skip]) == 1
    assert "broken.jsonl:1: broken JSON" in capsys.readouterr().err  # nothing is left of it
    lines = [json.dumps(row).encode() for row in pairs(5)]
    (tmp_path / "broken.jsonl").write_bytes(b"\n".join([b"\xff{", lines[4], lines[3][:-5], b"[]"]))
    assert main(["feedback", "import", str(tmp_path / "broken.jsonl"), store, *skip]) == 0
    assert capsys.readouterr().out == "1 new tasks, 1 new judgments; 3 bad rows skipped\n"


def test_an_export_that_cannot_be_written_is_one_line(tmp_path, capsys):
    file, store = write_lines(tmp_path / "in.jsonl", pairs(3)), str(tmp_path / "feedback.db")
    main(["feedback", "import", file, store])
    capsys.readouterr()
    for name in ("out.jsonl", "out.parquet"):
        assert main(["feedback", "export", store, f"{file}/{name}"]) == 1
        assert f"{name}: cannot be written: " in capsys.readouterr().err


def test_an_import_says_what_nobody_is_asked(tmp_path, capsys):
    rows = [*pairs(1), {"prompt": "p", "responses": ["a", "a"], "rankings": [[1, 1]]}]
    file = write_lines(tmp_path / "in.jsonl", rows)
    assert main(["feedback", "import", file, str(tmp_path / "feedback.db"), "--slots", "2"]) == 0
    assert "; 1 asked of nobody: their responses are alike\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("judgment", "message"),
    [
        ({"outcome": "maybe"}, "outcome 'maybe'"),
        ({"outcome": "judged", "ranks": ["first", 2]}, "judgments[0].ranks"),
        ({"outcome": "judged", "ratings": [1, True]}, "judgments[0].ratings"),
        ({"outcome": "judged", "ranks": 1}, "judgments[0].ranks"),
        ({"outcome": "tie", "labeler": 5}, "judgments[0].labeler"),
        ({"outcome": "tie", "labeler": "a\0"}, "labeler"),
        ({"outcome": "tie", "submitted_at": float("nan")}, "finite"),
        ({"outcome": "tie", "id": "x" * 65}, "1 to 64"),
    ],
)
def test_a_bad_judgment_is_named_or_skipped_as_well(tmp_path, capsys, judgment, message):
    rows = [{"prompt": "p", "responses": ["a", "b"], "judgments": [said]}
            for said in ({"outcome": "tie"}, judgment)]  # fmt: skip
    file, store = write_lines(tmp_path / "in.jsonl", rows), str(tmp_path / "feedback.db")
    assert main(["feedback", "import", file, store]) == 1
    error = capsys.readouterr().err
    assert f"{file}:2: " in error
    assert message in error
    assert main(["feedback", "import", file, store, "--bad-rows", "skip"]) == 0
    assert capsys.readouterr().out == "1 new tasks, 1 new judgments; 1 bad rows skipped\n"


def test_a_failed_import_leaves_no_store_and_spoils_none(tmp_path):
    good = write_lines(tmp_path / "good.jsonl", pairs(2))
    bad = write_lines(tmp_path / "bad.jsonl", [*pairs(1), {"prompt": "x", "chosen": "only"}])
    empty = write_lines(tmp_path / "empty.jsonl", [])
    store = tmp_path / "feedback.db"
    for file in (bad, empty, str(tmp_path / "none.jsonl")):
        assert main(["feedback", "import", file, str(store)]) == 1
        assert [path.name for path in tmp_path.iterdir() if path.suffix != ".jsonl"] == []
    assert main(["feedback", "import", good, str(store)]) == 0
    assert main(["feedback", "import", bad, str(store)]) == 1
    with FeedbackStore.open(str(store)) as opened:
        assert opened.counts().judgments == 2


def test_a_full_disk_is_one_line(tmp_path, capsys, monkeypatch):
    file, store = write_lines(tmp_path / "in.jsonl", pairs(3)), str(tmp_path / "feedback.db")
    main(["feedback", "import", file, store])
    full = sqlite3.OperationalError("database or disk is full")

    def insert(*_):
        raise sa.exc.OperationalError("INSERT", {}, full)

    monkeypatch.setattr(adding, "insert_new", insert)
    capsys.readouterr()
    assert main(["feedback", "import", file, store, "--slots", "1"]) == 1
    assert capsys.readouterr().err.endswith("feedback.db: database or disk is full\n")


def test_a_backup_is_a_store(tmp_path):
    store, copy = str(tmp_path / "feedback.db"), str(tmp_path / "copy.db")
    main(["feedback", "import", write_lines(tmp_path / "in.jsonl", pairs(2)), store])
    with FeedbackStore.open(store) as opened:  # it need not be closed
        assert main(["feedback", "backup", store, copy]) == 0
        assert opened.counts().judgments == 2
    with FeedbackStore.open(copy, create=False) as opened:
        assert opened.counts().judgments == 2


def test_training_reads_a_split_and_says_which_judgments(tmp_path):
    save_tiny_tokenizer(tmp_path / "tokenizer")
    path = tmp_path / "feedback.db"
    said = (Judgment("judged", (1, 2), labeler="ana"), Judgment("tie", labeler="ben"))
    with FeedbackStore.open(str(path)) as store:
        store.add_tasks(JudgedTask(f"p {i}", ("yes", "no"), said, None, {}) for i in range(40))
        with store.snapshot("train") as (lineage, judged):
            num_train = len(list(judged))

    def open_data(address, kind=RewardDataModule):
        tokenizer, held_out = str(tmp_path / "tokenizer"), f"store:{path}?split=test"
        data = kind(tokenizer, train=address, test=held_out, batch_size=4)
        data.setup("fit")
        return data

    for address in (f"store:sqlite:///{path}", f"store:{path}?split=train"):
        data = open_data(address)
        assert len(data.prepared("train")) == num_train
        assert data.provenance["train"] == {
            "source": address, "sha256": lineage.digest, "rows": num_train,
            "judgments": 2 * num_train, "newest_judgment": lineage.newest,
        }  # fmt: skip
    for kind in (RewardDataModule, DPODataModule):
        (batch, *_) = open_data(f"store:{path}", kind).train_dataloader()
        assert batch.probability.tolist() == pytest.approx([2 / 3] * 4)  # (1.5 + 0.5) / (2 + 1)
    with FeedbackStore.open(str(path)) as store:
        store.add_tasks([JudgedTask("p 1", ("a", "b"), said[:1], None, {})])
    data = open_data(f"store:{path}?split=train")
    assert len(data.prepared("train")) in (num_train, num_train + 1)
    with pytest.raises(DataError, match="there is no such feedback store"):
        open_data(f"store:{tmp_path}/none.db")
    with pytest.raises(DataError, match="has no split 'dev'"):
        open_data(f"store:{path}?split=dev")


def test_answers_to_several_questions_are_not_mixed(tmp_path, capsys):
    path = str(tmp_path / "feedback.db")
    with FeedbackStore.open(path) as store:
        for question, ranks in {"helpful": (1, 2), "harmless": (2, 1)}.items():
            said = (Judgment("judged", ranks, labeler="ana"),)
            store.add_tasks(
                JudgedTask(f"p {i}", ("yes", "no"), said, None, {}, question) for i in range(20)
            )
    for question, chosen in {"helpful": "yes", "harmless": "no"}.items():
        records = open_store(f"store:{path}?question={question}&split=train", None)
        rows = [row.record for row in records.read(records.table[:])]
        assert {judged_pairs(parse_judged_group(row, "x"))[0].chosen for row in rows} == {
            ("yes", "no").index(chosen)
        }
        assert records.facts["judgments"] == len(rows)
        out = tmp_path / f"{question}.jsonl"
        words = ["feedback", "export", path, str(out), "--format", "trl"]
        assert main([*words, "--question", question]) == 0
        assert {row["chosen"] for row in read_lines(out)} == {chosen}
    with pytest.raises(DataError, match="several questions"):
        open_store(f"store:{path}", "train")
    with pytest.raises(DataError, match="nobody answered 'honest'"):
        open_store(f"store:{path}?question=honest", "train")
    with pytest.raises(DataError, match="unknown 'splt=test'"):
        open_store(f"store:{path}?splt=test", "train")
    assert main(words) == 1
    assert "several questions" in capsys.readouterr().err


def test_agreement_by_hand(tmp_path, capsys):
    path = str(tmp_path / "feedback.db")

    def said(labeler, outcome="judged", **fields):
        return Judgment(outcome, labeler=labeler, **fields)

    first, second = (1, 2), (2, 1)
    gold = said("x", ranks=first, is_gold=True)
    compared = [  # two agree, two do not; gold answers, skips and corrected ones do not count
        (said("ana", ranks=first), said("ben", ranks=first)),
        (said("ana", ranks=first), said("ben", ranks=second), said("cem", "skip")),
        (said("ana", ranks=second), said("ben", ranks=second), gold),
        (said("ana", "tie"), said("ben", ranks=second), said("ben", "both_bad")),
    ]
    tasks = [JudgedTask(f"p {i}", ("a", "b"), s, None, {}) for i, s in enumerate(compared)]
    ranked = (said("ana", ranks=(1, 2, 3)), said("ben", ranks=(1, 3, 2)))
    tasks.append(JudgedTask("ranked", ("a", "b", "c"), ranked, None, {}))
    rated = (said("ana", ratings=(4.0,)), said("ben", ratings=(4.0,)))
    tasks.append(JudgedTask("rated", ("a",), rated, None, {}))
    with FeedbackStore.open(path) as store:
        store.add_tasks(tasks)
    assert main(["feedback", "agreement", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    # Of 4 pairs compared and 3 ranked, labelers agree on 2 and 2.
    assert lines[0].startswith("pairs   percent agreement               0.571 [")
    assert lines[0].endswith("(7 with two labelers or more)")
    assert lines[3].startswith("ratings percent agreement               1.000")
    assert "undefined, because all judged alike" in lines[4]


def test_an_export_may_have_other_rows_of_ours_in_it(tmp_path, capsys):
    full = {"prompt": "p", "responses": ["a", "b"], "judgments": [{"outcome": "tie"}]}
    file = write_lines(tmp_path / "in.jsonl", [full, *pairs(1)])
    assert main(["feedback", "import", file, str(tmp_path / "feedback.db")]) == 0
    assert capsys.readouterr().out == "2 new tasks, 2 new judgments\n"
