import json

import numpy as np
import pytest

from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.responses import (
    read_prompts,
    read_responses,
)
from lit_rlhf.prompts import prompt_text

CHAT = [{"role": "user", "content": "hi"}]
ROWS = [
    {"prompt": "one", "response": "1a", "finished": True},
    {"prompt": CHAT, "completion": "hello", "finished": False},
    {"prompt": "one", "response": "1b", "finished": False},
    {"prompt": CHAT, "response": "hey", "finished": True},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_prompts_are_read_once_each(tmp_path):
    source = write(tmp_path / "rows.jsonl", ROWS)
    prompts = read_prompts(source)
    assert [prompt_text(prompt) for prompt, _ in prompts] == ["one", "user: hi"]
    assert [where for _, where in prompts] == [f"{source}:1", f"{source}:2"]
    assert len(read_prompts(source, 1)) == 1


def test_rows_of_a_prompt_are_its_samples(tmp_path):
    source = write(tmp_path / "rows.jsonl", [*ROWS, {"prompt": "left out", "response": "x"}])
    responses = read_responses("p", source, read_prompts(source, 2))
    assert responses.texts == (("1a", "1b"), ("hello", "hey"))
    assert responses.finished.tolist() == [[True, False], [False, True]]
    assert responses.characters.tolist() == [[2, 2], [5, 3]]
    assert (responses.num_samples, responses.tokens) == (2, None)


def test_a_row_may_hold_all_samples(tmp_path):
    rows = [{"prompt": "one", "responses": ["a", "b"], "finished": [True, False]}]
    source = write(tmp_path / "rows.jsonl", rows)
    responses = read_responses("p", source, read_prompts(source))
    assert responses.texts == (("a", "b"),)
    assert np.array_equal(responses.finished, [[True, False]])


def test_who_does_not_say_whether_it_ended_is_not_asked(tmp_path):
    rows = [{"prompt": "one", "response": "a", "finished": True}, {"prompt": "2", "response": "b"}]
    source = write(tmp_path / "rows.jsonl", rows)
    assert read_responses("p", source, read_prompts(source)).finished is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "other", "response": "x"}], r"no response to 2 of 2 prompts.*prompts.jsonl:1"),
        ([*ROWS[:1], *ROWS[1:2], *ROWS[:1]], "some prompts have 1 responses and others 2"),
        ([{"prompt": "one"}], "rows.jsonl:1: field 'response': expected text"),
        ([{"prompt": "one", "response": 3}], "rows.jsonl:1: field 'response': expected text"),
        ([{"prompt": "one", "responses": []}], "one response or more"),
        ([{"prompt": "one", "response": "x", "finished": 1}], "field 'finished': expected true"),
        ([{"prompt": "one", "responses": ["x"], "finished": [True, True]}], "one a response"),
        ([{"response": "x"}], "prompt"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, rows, message):
    prompts = read_prompts(write(tmp_path / "prompts.jsonl", ROWS))
    with pytest.raises(DataError, match=message):
        read_responses("p", write(tmp_path / "rows.jsonl", rows), prompts)
