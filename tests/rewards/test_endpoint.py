import itertools
import logging
import math
import time

import pytest

from lit_rlhf.errors import ConfigError, RewardError
from lit_rlhf.rewards import EndpointReward
from lit_rlhf.rewards import endpoint as module
from tests.rewards.samples import sample_batch
from tests.support.score_server import score_server

PROMPTS, RESPONSES = ["one", "two", "three"], ["a", "bcd", ""]
SAMPLES = sample_batch(PROMPTS, RESPONSES)._replace(
    fields=[{"answer": "4"}, {}, {"answer": [1, 2]}]
)
LENGTHS = [1.0, 3.0, 0.0]


def lengths(number, content):
    return [len(response) for response in content["responses"]]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.01)


def ask(server, **settings):
    return EndpointReward(server.address, **settings)(PROMPTS, RESPONSES, SAMPLES)


def test_rows_go_out_in_batches_and_scores_come_back_in_order():
    with score_server(lengths) as server:
        assert ask(server, batch_size=2).tolist() == LENGTHS
    sent = sorted((content for _, _, content in server.requests), key=lambda one: one["prompts"][0])
    assert sent == [
        {"prompts": ["one", "two"], "responses": ["a", "bcd"], "fields": [{"answer": "4"}, {}]},
        {"prompts": ["three"], "responses": [""], "fields": [{"answer": [1, 2]}]},
    ]


def test_chats_are_sent_as_messages_and_texts_need_no_batch():
    chat = ({"role": "user", "content": "hi"},)
    with score_server(lengths) as server:
        assert EndpointReward(server.address)([chat], ["abc"]).tolist() == [3]
    ((_, _, content),) = server.requests
    assert content == {"prompts": [list(chat)], "responses": ["abc"], "fields": [{}]}


def test_null_is_a_response_that_cannot_be_scored():
    with score_server(lambda number, content: [1, None, 0.5]) as server:
        scores = ask(server)
    assert scores.isnan().tolist() == [False, True, False]
    assert EndpointReward(server.address).abstains


@pytest.mark.parametrize("fault", [(503, {}, "busy"), (429, {}, ""), 0.0, 0.3])
def test_what_passes_is_asked_again(fault):
    def answer(number, content):
        return fault if number <= 2 else lengths(number, content)

    with score_server(answer) as server:
        assert ask(server, request_timeout_s=0.2).tolist() == LENGTHS
    assert len(server.requests) == 3


def test_the_server_says_how_long_to_wait():
    def answer(number, content):
        return (429, {"Retry-After": "1"}, "") if number == 1 else lengths(number, content)

    with score_server(answer) as server:
        start = time.monotonic()
        ask(server)
        assert time.monotonic() - start >= 1.0


def slowly(number, content):
    return 200, {}, (time.sleep(0.05) or " " for _ in itertools.count())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda number, content: (500, {}, "out of memory"), ["HTTP 500 out of memory"]),
        (lambda number, content: 0.5, ["ReadTimeout"]),
        (slowly, ["an answer that does not end"]),
        (lambda number, content: (200, {}, "x" * 100_000), ["an answer that does not end"]),
    ],
    ids=["failing", "silent", "slow", "endless"],
)
def test_a_batch_that_no_attempt_scores_is_left_out_and_told(answer, words, caplog):
    with score_server(answer) as server, caplog.at_level(logging.WARNING, logger="lit_rlhf"):
        scores = ask(server, num_attempts=2, request_timeout_s=0.2)
        with pytest.raises(RewardError) as caught:
            ask(server, num_attempts=2, request_timeout_s=0.2, failures="error")
    assert scores.isnan().all()
    (told,) = [record.getMessage() for record in caplog.records]
    for word in [server.address, "no answer in 2 attempts", *words]:
        assert word in told
        assert word in str(caught.value)
    assert told.endswith("3 responses are left out")


def test_a_server_that_is_not_there_is_left_out_and_told():
    with score_server(lengths) as server:
        pass
    with pytest.raises(RewardError, match="no answer in 2 attempts; the last: ConnectError"):
        ask(server, num_attempts=2, failures="error")
    assert ask(server, num_attempts=1).isnan().all()


def test_only_the_rows_of_the_failing_request_are_left_out():
    def answer(number, content):
        return (500, {}, "") if "a" in content["responses"] else lengths(number, content)

    with score_server(answer) as server:
        scores = ask(server, batch_size=1, num_attempts=1, num_parallel=2)
    assert [None if math.isnan(score) else score for score in scores.tolist()] == [None, 3, 0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, {}, "no such page"), ["HTTP 404 no such page"]),
        ((302, {"Location": "http://127.0.0.1:9/"}, ""), ["HTTP 302"]),
        ((200, {}, "<html>"), ["answered '<html>'", "3 numbers"]),
        ((200, {}, '{"rewards": [1, 2, 3]}'), ['answered \'{"rewards"', '{"scores": [...]}']),
        ((200, {}, "[" * 500), ["expected"]),
        ((200, {}, '{"scores": 3}'), ["answered '{\"scores\": 3}'"]),
        ((200, {}, '{"scores": ["1", "2", "3"]}'), ["expected"]),
        ((200, {}, '{"scores": [1, 2]}'), ["answered 2 scores for 3 responses"]),
    ],
)
def test_what_would_come_again_ends_the_run_at_once(answer, words):
    with (
        score_server(lambda number, content: answer) as server,
        pytest.raises(RewardError) as caught,
    ):
        ask(server)
    assert [word for word in [server.address, *words] if word not in str(caught.value)] == []
    assert len(server.requests) == 1


def test_a_key_is_sent_and_never_told(monkeypatch):
    monkeypatch.setenv("SCORE_KEY", "very-secret")

    def answer(number, content):
        return (401, {}, "very-secret is no key") if number > 1 else lengths(number, content)

    with score_server(answer) as server:
        source = EndpointReward(server.address, key_variable="SCORE_KEY")
        source(PROMPTS, RESPONSES)
        with pytest.raises(RewardError, match=r"401 \[key\] is no key; .*SCORE_KEY") as caught:
            source(PROMPTS, RESPONSES)
    assert "secret" not in repr(source) + str(caught.value)
    assert server.requests[0][1]["authorization"] == "Bearer very-secret"


def test_without_a_key_none_is_sent():
    with score_server(lengths) as server:
        ask(server)
    assert "authorization" not in server.requests[0][1]


def test_a_row_that_json_cannot_hold_is_named():
    samples = SAMPLES._replace(fields=[{"answer": math.nan}, {}, {}])
    source = EndpointReward("http://127.0.0.1:9/score")
    with pytest.raises(RewardError, match="a row that JSON cannot hold"):
        source(PROMPTS, RESPONSES, samples)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"address": "127.0.0.1:8000"}, "no http"),
        ({"address": "http://me:secret@host"}, "leave user and password out"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_parallel": 0}, "num_parallel is 0"),
        ({"request_timeout_s": 0.0}, "request_timeout_s is 0"),
        ({"num_attempts": 0}, "num_attempts is 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=rf"^EndpointReward\..*{message}"):
        EndpointReward(**{"address": "http://127.0.0.1:9", **settings})
