"""Steps are run once, from the inputs that they say, and leave whole outputs."""

import json

import pytest

from lit_rlhf.errors import ConfigError, DataError, TrainingError
from lit_rlhf.flywheel.steps import digest, is_finished, run_step


class Work:
    """Writes a text, and counts how often."""

    def __init__(self, path, text="done"):
        self.path, self.text, self.times = path, text, 0

    def __call__(self):
        self.times += 1
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.text)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "round-01" / "samples.jsonl"


def record(output):
    return output.parent / "1-sample.json"


def test_a_finished_step_is_skipped(output):
    work = Work(output)
    first = run_step(record(output), output, {"seed": 1}, work)
    assert run_step(record(output), output, {"seed": 1}, work) == first == digest(output)
    assert work.times == 1
    assert is_finished(record(output))
    assert json.loads(record(output).read_text()) == {
        "inputs": {"seed": 1},
        "output": "samples.jsonl",
        "sha256": first,
    }


def test_a_step_that_broke_off_finds_what_it_left_and_other_inputs_clear_it(output):
    def breaks():
        Work(output, "half")()
        raise TrainingError("killed")

    with pytest.raises(TrainingError):
        run_step(record(output), output, {"seed": 1}, breaks)
    assert not is_finished(record(output))
    left = []
    with pytest.raises(TrainingError):
        run_step(
            record(output), output, {"seed": 1}, lambda: (left.append(output.exists()), breaks())
        )
    run_step(
        record(output), output, {"seed": 2}, lambda: (left.append(output.exists()), Work(output)())
    )
    assert left == [True, False]


def test_other_inputs_of_a_finished_step_are_refused(output):
    run_step(record(output), output, {"seed": 1, "prompts": "a"}, Work(output))
    with pytest.raises(ConfigError, match=r"1-sample.json: .* other inputs \(seed\).*judgments"):
        run_step(record(output), output, {"seed": 2, "prompts": "a"}, Work(output))


def test_a_step_that_leaves_nothing_is_an_error(output):
    with pytest.raises(TrainingError, match="step '1-sample' left no"):
        run_step(record(output), output, {}, lambda: None)


def test_the_digest_of_a_folder_is_of_names_and_contents(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("x")
    digests = [digest(folder)]
    (folder / "a").write_text("y")
    digests.append(digest(folder))
    (folder / "a").rename(folder / "b")
    digests.append(digest(folder))
    assert len(set(digests)) == 3


def test_a_finished_step_whose_output_is_gone_is_named(output):
    run_step(record(output), output, {}, Work(output))
    output.unlink()
    with pytest.raises(ConfigError, match=r"samples.jsonl: is gone.*delete .*1-sample.json"):
        run_step(record(output), output, {}, Work(output))


def test_a_finished_step_whose_output_was_changed_is_named(output):
    run_step(record(output), output, {}, Work(output))
    output.write_text("don")  # torn
    with pytest.raises(ConfigError, match=r"samples.jsonl: is not what it was.*1-sample.json"):
        run_step(record(output), output, {}, Work(output))
    record(output).unlink()  # as the message says
    run_step(record(output), output, {}, Work(output))
    assert output.read_text() == "done"


@pytest.mark.parametrize("content", ["", '{"inputs": {', "[]", "null", '{"inputs": {}}'])
def test_a_torn_record_is_named(output, content):
    run_step(record(output), output, {}, Work(output))
    record(output).write_text(content)
    with pytest.raises(DataError, match=r"1-sample.json: is torn.*delete it to run its step again"):
        run_step(record(output), output, {}, Work(output))
    with pytest.raises(DataError, match=r"1-sample.json: is torn"):
        is_finished(record(output))
