"""The judge behind an endpoint, against a real server on this machine."""

import itertools
import json
import logging
import math
import time

import pytest

from lit_rlhf.errors import ConfigError
from lit_rlhf.evaluation.endpoint import Endpoint, EndpointError
from lit_rlhf.evaluation.pairwise import PairJudge, read_answer
from lit_rlhf.evaluation.responses import SourcedPrompt
from tests.support.judge_server import judge_server, shown_responses

KEY = "sk-very-secret-0123456789"
PROMPTS = [SourcedPrompt(f"question {index}", f"rows:{index}") for index in range(4)]
FIRST = ["good", "bad", "good", "bad"]
SECOND = ["bad", "good", "good", "bad"]
OK = '{"better": "A"}'
SOON = {"Retry-After-Ms": "1"}


def by_word(content):
    a, b = shown_responses(content)
    better = "tie" if a == b else "A" if a == "good" else "B"
    return json.dumps({"better": better})


def judge(server, **changes):
    return PairJudge(Endpoint(server.address, "judge-1"), **changes)


def endpoint(server, **changes):
    return Endpoint(server.address, "judge-1", **changes)


def ask(server, **changes):
    return endpoint(server, **changes).chat([{"role": "user", "content": "?"}], max_tokens=5)


def test_every_pair_is_asked_in_both_orders_by_the_protocol():
    with judge_server(by_word) as server:
        verdicts = judge(server).compare(PROMPTS, FIRST, SECOND)
    assert verdicts.outcomes.tolist() == [1, 0, 0.5, 0.5]
    assert verdicts.consistent.tolist() == [1, 1, 1, 1]
    assert verdicts.first_position.tolist() == [0.5, 0.5, 0.5, 0.5]
    assert len(server.requests) == 8
    shown = sorted(shown_responses(content) for _, _, content in server.requests)
    assert shown == sorted([*zip(FIRST, SECOND, strict=True), *zip(SECOND, FIRST, strict=True)])
    for path, headers, content in server.requests:
        assert path == "/v1/chat/completions"
        assert headers["content-type"] == "application/json"
        assert "authorization" not in headers  # no key is set
        assert content["model"] == "judge-1"
        assert content["temperature"] == 0
        assert [message["role"] for message in content["messages"]] == ["system", "user"]


def test_a_judge_that_always_prefers_the_first_is_found_out():
    with judge_server(lambda content: OK) as server:
        verdicts = judge(server).compare(PROMPTS, FIRST, SECOND)
    assert verdicts.outcomes.tolist() == [0.5] * 4
    assert verdicts.consistent.tolist() == [0] * 4
    assert verdicts.first_position.tolist() == [1] * 4


def test_a_tie_in_one_order_is_half_a_win():
    def answer(content):
        return OK if shown_responses(content) == ("good", "bad") else '{"better": "tie"}'

    with judge_server(answer) as server:
        verdicts = judge(server).compare(PROMPTS[:2], FIRST[:2], SECOND[:2])
    assert verdicts.outcomes.tolist() == [0.75, 0.25]
    assert verdicts.consistent.tolist() == [0, 0]


def test_answers_that_cannot_be_read_are_asked_again_and_then_left_out():
    asked = []

    def answer(content):
        asked.append(shown_responses(content))
        if asked.count(asked[-1]) == 1:
            return "I think that A might be better, or B."
        return by_word(content) if "never" not in asked[-1] else "hm"

    with judge_server(answer) as server:
        verdicts = judge(server, num_connections=1).compare(
            PROMPTS[:2], ["good", "never"], ["bad", "bad"]
        )
    assert verdicts.outcomes[0] == 1
    assert all(math.isnan(column[1]) for column in verdicts)
    assert len(asked) == 8  # two pairs, two orders, two readings


def test_without_any_answer_that_can_be_read_there_is_no_result():
    with (
        judge_server(lambda content: "as an AI ...") as server,
        pytest.raises(EndpointError, match="none of the answers of judge-1"),
    ):
        judge(server).compare(PROMPTS, FIRST, SECOND)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ('{"better": "A"}', 1.0),
        ('```json\n{ "better" : "B" }\n```', 0.0),
        ('{"better": "tie"}', 0.5),
        ('First {"better": "A"}, but on reflection {"better": "B"}', 0.0),
        ("B", 0.0),
        ("**A**", 1.0),
        ("A is better", None),
        ('{"better": "C"}', None),
        ("", None),
    ],
)
def test_reading_of_answers(answer, outcome):
    assert read_answer(answer) == outcome


def test_long_responses_are_cut_and_the_judge_is_told():
    with judge_server(by_word) as server:
        judge(server).compare(PROMPTS[:1], ["x" * 1_000_000], ["y"])
    texts = [shown_responses(content) for _, _, content in server.requests]
    cut = "x" * 20_000 + "\n[cut: 1,000,000 characters in all]"
    assert sorted(texts) == sorted([(cut, "y"), ("y", cut)])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_passes_is_tried_again(status):
    replies = iter([(status, SOON, "busy"), None, (200, {}, "{}"), OK])
    with judge_server(lambda content: next(replies)) as server:
        assert ask(server) == OK
        assert len(server.requests) == 4


def test_attempts_end():
    with judge_server(lambda content: (503, SOON, "overloaded")) as server:
        with pytest.raises(EndpointError, match=r"in 3 attempts; the last: HTTP 503 overloaded"):
            ask(server, num_attempts=3)
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("not json", "no chat completion"),
        ('{"error": "x"}', "no chat completion"),
        ('{"choices": []}', "no chat completion"),
        ('{"choices": [{"message": {"content": null}}]}', "without text"),
    ],
)
def test_malformed_completions(body, message):
    with (
        judge_server(lambda content: (200, {}, body)) as server,
        pytest.raises(EndpointError, match=message),
    ):
        ask(server, num_attempts=2)


def without_end():
    return (time.sleep(0.05) or " " for _ in itertools.count())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (without_end, "an answer that does not end"),
        (lambda: "x" * 2_000_000, "an answer that does not end"),
        (lambda: "[" * 500_000, "no chat completion"),
    ],
    ids=["slow", "long", "deep"],
)
def test_an_answer_without_bounds_costs_its_attempt_alone(body, message):
    replies = iter([(200, {}, body()), OK])
    with judge_server(lambda content: next(replies)) as server:
        assert ask(server, timeout_s=0.3) == OK
    with (
        judge_server(lambda content: (200, {}, body())) as server,
        pytest.raises(EndpointError, match=message),
    ):
        ask(server, timeout_s=0.3, num_attempts=1)


def test_a_server_that_asks_for_a_day_is_not_waited_for():
    with judge_server(lambda content: (503, {"Retry-After": "86400"}, "busy")) as server:
        with pytest.raises(EndpointError, match="HTTP 503 busy; it asks for 86400 s of waiting"):
            ask(server)
        assert len(server.requests) == 1


def test_nobody_is_there():
    with judge_server(by_word) as server:
        address = server.address
    with pytest.raises(EndpointError, match="in 2 attempts; the last: ConnectError"):
        Endpoint(address, "m", num_attempts=2).chat([], max_tokens=5)


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_is_final_and_the_key_is_never_told(status, monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    # Some servers repeat the key that they did not like.
    with judge_server(lambda content: (status, {}, f"wrong key {KEY}")) as server:
        with pytest.raises(EndpointError) as caught:
            ask(server, key_variable="MY_KEY")
        assert len(server.requests) == 1
        assert server.requests[0][1]["authorization"] == f"Bearer {KEY}"
        told = f"{caught.value!r} {caught.getrepr(chain=True)} {caplog.text} {endpoint(server)!r}"
    assert KEY not in told
    assert f"HTTP {status} wrong key [key]" in told
    assert ("MY_KEY" in str(caught.value)) == (status == 401)


def test_a_broken_key_is_refused_without_showing_it(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nmore")
    with judge_server(by_word) as server:
        with pytest.raises(ConfigError, match="key in OPENAI_API_KEY has characters") as caught:
            ask(server)
        assert server.requests == []
    assert KEY not in str(caught.getrepr(chain=True))
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")  # as `cat key.txt` leaves it
    with judge_server(lambda content: OK) as server:
        assert ask(server) == OK
        assert server.requests[0][1]["authorization"] == f"Bearer {KEY}"


def test_a_redirect_does_not_carry_the_key_away(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with judge_server(by_word) as elsewhere:
        for status in (301, 302, 307):
            reply = (status, {"Location": elsewhere.address}, "moved")
            refused = pytest.raises(EndpointError, match=f"HTTP {status}")
            with judge_server(lambda content, reply=reply: reply) as server, refused:
                ask(server)
        assert elsewhere.requests == []


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("file:///etc/passwd", "no http"),
        ("localhost:8000", "no http"),
        ("http://[::1", "no http"),
        ("http://host:port/v1", "no http"),
        ("http://user:pass@host/v1", "leave user and password out"),
    ],
)
def test_addresses_that_are_refused(address, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Endpoint(address, "m")
    assert "pass@" not in str(caught.value)


def test_numbers_below_one_are_refused():
    with pytest.raises(ConfigError, match="num_connections"):
        PairJudge(Endpoint("http://h/v1", "m"), num_connections=0)
    with pytest.raises(ConfigError, match=r"endpoint\.num_attempts is 0; it must be at least 1"):
        Endpoint("http://h/v1", "m", num_attempts=0)
