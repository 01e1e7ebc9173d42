import json
import threading

import pytest

from lit_rlhf.errors import ConfigError
from lit_rlhf.rewards import JSONSchema, MathsEqual
from tests.rewards.test_verifiers import score

SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0}},
    "required": ["age"],
}


def test_maths_is_compared_by_what_it_means():
    responses = [r"so $\frac{1}{2}$", "The answer is 0.5", r"\boxed{2}", "nothing", "= 1/2"]
    assert score(MathsEqual(), *responses, answer=[r"\frac12"] * 5) == [1, 1, 0, 0, 1]
    assert score(MathsEqual("key"), "$(x+1)^2$", key=["the square $x^2+2x+1$"]) == [1]
    assert score(MathsEqual(), "72 clips, so 72", "71", answer=[72, "it is #### 72"]) == [1, 0]


def test_an_answer_without_maths_leaves_the_response_out():
    assert score(MathsEqual(), "4", "4", answer=["$$", None]) == [None, None]


def test_maths_that_takes_too_long_or_fails_cannot_be_scored(monkeypatch):
    def late(*arguments, **options):
        assert options["timeout_seconds"] == 1
        raise TimeoutException

    from math_verify.errors import TimeoutException  # noqa: PLC0415 - an extra

    monkeypatch.setattr("math_verify.verify", late)
    assert score(MathsEqual(limit_s=1), "4", answer=["4"]) == [None]


def test_maths_in_another_thread_has_no_signal():
    scores = []
    thread = threading.Thread(target=lambda: scores.extend(score(MathsEqual(), "4", answer=["4"])))
    thread.start()
    thread.join()
    assert scores == [1]


@pytest.mark.parametrize("from_file", [False, True])
def test_json_is_held_against_its_schema(tmp_path, from_file):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    source = JSONSchema(str(tmp_path / "schema.json") if from_file else SCHEMA)
    responses = ['{"age": 3}', '{"age": -1}', '{"age": "3"}', "{}", "3", "{", "[" * 99_999]
    assert score(source, *responses) == [1, 0, 0, 0, 0, 0, 0]


def test_json_is_found_by_a_pattern():
    source = JSONSchema(SCHEMA, pattern=r"(?s)```json\n(.*?)```")
    assert score(source, 'Here:\n```json\n{"age": 3}\n```', '{"age": 3}') == [1, 0]


def test_a_schema_fetches_nothing(monkeypatch):
    source = JSONSchema({"$ref": "http://127.0.0.1:9/schema"})
    monkeypatch.setattr("urllib.request.urlopen", None)
    with pytest.raises(Exception, match=r"127\.0\.0\.1:9"):
        score(source, "3")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JSONSchema({"type": "objekt"}), r"JSONSchema\.schema: 'objekt'"),
        (lambda: JSONSchema("nowhere.json"), r"JSONSchema\.schema: nowhere\.json"),
        (lambda: JSONSchema({}, pattern="("), r"JSONSchema\.pattern"),
        (lambda: MathsEqual(limit_s=0), r"limit_s is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
