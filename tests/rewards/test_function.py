import asyncio
import math
import pickle
import threading

import numpy as np
import pytest
import torch

from lit_rlhf.errors import ConfigError, RewardError
from lit_rlhf.rewards import EnsembleReward, FunctionReward, as_source
from lit_rlhf.rewards.asking import ask
from tests.rewards.samples import sample_batch

HERE = "tests.rewards.test_function"
SAMPLES = sample_batch(["one", "two", "three"], ["a", "bcd", ""])._replace(
    fields=[{"wanted": "a"}, {"wanted": "x"}, {"wanted": ""}]
)


def length(prompts, responses):
    return [len(response) for response in responses]


def both(prompts, responses):
    return np.array([len(p) - len(r) for p, r in zip(prompts, responses, strict=True)])


def lazily(prompts, responses):
    return (0.5 for _ in responses)


def turned_round(responses, prompts):
    return both(prompts, responses)


def without_prompts(responses, wanted):
    return [float(want in said) for want, said in zip(wanted, responses, strict=True)]


def by_name(*, prompts, wanted, responses):
    return both(prompts, responses)


def too_few(prompts, responses):
    return [1.0]


def as_tensor(prompts, responses):
    return torch.arange(len(responses))


NOT_A_FUNCTION = 3


def score(name):
    return FunctionReward(f"{HERE}.{name}")(SAMPLES.prompts, SAMPLES.responses, SAMPLES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("length", [1, 3, 0]),
        ("both", [2, 0, 5]),
        ("turned_round", [2, 0, 5]),
        ("without_prompts", [1, 0, 1]),
        ("by_name", [2, 0, 5]),
        ("lazily", [0.5, 0.5, 0.5]),
        ("as_tensor", [0, 1, 2]),
    ],
)
def test_scores_are_those_of_the_function_in_order(name, expected):
    scores = score(name)
    assert scores.tolist() == expected
    assert scores.dtype == torch.float32


@pytest.mark.parametrize(
    "path",
    [
        "no_such_package.f",
        f"{HERE}.no_such_function",
        "len",
        "",
        ".",
        "a.",
        f"{HERE}.NOT_A_FUNCTION",
    ],
)
def test_a_path_to_nothing_is_refused_at_once(path):
    with pytest.raises(ConfigError, match=r"give my_module:my_function or path/to/file\.py"):
        FunctionReward(path)


def nested(prompts, responses):
    return [[1.0, 2.0]] * len(responses)


def missing(prompts, responses):
    return None


def without_order(prompts, responses):
    return set(range(len(responses)))


def text(prompts, responses):
    return "123"


def column(prompts, responses):
    return torch.zeros(len(responses), 1)


def with_gradient(prompts, responses):
    return torch.zeros(len(responses), requires_grad=True)


def raising(prompts, responses):
    return [1.0 / len(response) for response in responses]


async def late_and_raising(prompts, responses):
    raise KeyError("no such key")


def of_another_field(prompts, responses, answer):
    return [0.0] * len(responses)


def a_field_for_responses(texts, wanted):
    return [0.0] * len(texts)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a_field_for_responses", ["has `wanted` where prompts and responses are handed on"]),
        ("nested", ["returned [1.0, 2.0] as score 0", "one number for each response"]),
        ("missing", ["returned None", "one number for each response"]),
        ("text", ["returned '123'"]),
        ("without_order", ["returned {0, 1, 2}"]),
        ("column", ["shape [3, 1]", "[3]"]),
        ("with_gradient", ["requires grad", "detach"]),
        ("too_few", ["returned 1 scores for 3 responses"]),
        ("raising", ["raised ZeroDivisionError", "test_function.py:"]),
        ("late_and_raising", ["raised KeyError", "no such key"]),
        ("of_another_field", ["takes `answer`", "they have: wanted"]),
    ],
)
def test_what_goes_wrong_is_one_error_with_the_function_and_the_first_rows(name, words):
    with pytest.raises(RewardError) as caught:
        score(name)
    message = str(caught.value)
    for word in [f"{HERE}.{name} ", "3 rows, the first: 'one' -> 'a'; 'two' -> 'bcd'", *words]:
        assert word in message
    assert "\n" not in message


def roles(prompts, responses):
    return [sum(turn["role"] == "user" for turn in p if isinstance(p, tuple)) for p in prompts]


def test_chats_are_handed_on_as_messages():
    chat = ({"role": "user", "content": "hi"},)
    assert FunctionReward(f"{HERE}.roles")([chat, "hi"], ["a", "b"]).tolist() == [1, 0]


def wanted(prompts, responses, wanted, messages, unused="default"):
    assert unused == "default"
    assert [chat[-1] for chat in messages] == [
        {"role": "assistant", "content": response} for response in responses
    ]
    return [float(word in response) for word, response in zip(wanted, responses, strict=True)]


def all_fields(prompts, responses, **fields):
    assert sorted(fields) == ["messages", "wanted"]
    return [len(word) for word in fields["wanted"]]


def as_trl_has_it(completions, wanted, **fields):
    assert fields["prompts"] == ["one", "two", "three"]
    return [float(word in text) for word, text in zip(wanted, completions, strict=True)]


async def asynchronous(prompts, responses, **fields):
    await asyncio.sleep(0)
    return [None, math.nan, 2.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("wanted", [1, 0, 1]), ("all_fields", [1, 1, 0]), ("as_trl_has_it", [1, 0, 1])],
)
def test_fields_of_the_records_are_handed_on_by_name(name, expected):
    assert score(name).tolist() == expected


def test_a_field_that_is_called_like_what_is_handed_on():
    named = SAMPLES._replace(fields=[{"responses": ["x"], "messages": []}] * 3)
    assert FunctionReward(length)(named.prompts, named.responses, named).tolist() == [1, 3, 0]

    def of_chat(prompts, responses, messages):
        raise AssertionError  # which of the two would it be?

    with pytest.raises(RewardError, match=r"takes `messages`.*\{earlier: messages\}"):
        FunctionReward(of_chat)(named.prompts, named.responses, named)


def test_trl_functions_get_the_completions_of_chats_as_messages():
    def roles_of(completions, **fields):
        return [float(one[0]["role"] == "assistant") for one in completions]

    chat = ({"role": "user", "content": "hi"},)
    assert FunctionReward(roles_of)([chat], ["a"]).tolist() == [1.0]


def test_an_async_function_is_waited_for_also_within_a_running_loop():
    async def notebook():
        return score("asynchronous")

    for scores in (score("asynchronous"), asyncio.run(notebook())):
        assert scores[:2].isnan().all()
        assert scores[2] == 2


def test_what_cannot_be_scored_is_nan_and_never_zero():
    assert FunctionReward(f"{HERE}.asynchronous").abstains
    assert torch.isnan(score("asynchronous")).tolist() == [True, True, False]


def test_functions_of_files_modules_and_python(tmp_path):
    file = tmp_path / "my rewards.py"
    file.write_text("def f(prompts, responses):\n    return [len(prompts)] * len(responses)\n")
    for function in (f"{file}:f", f"{HERE}:length", f"{HERE}.length", length, lambda p, r: [1, 3]):
        assert FunctionReward(function)(["p", "q"], ["a", "bcd"]).tolist() in ([1, 3], [2, 2])
    assert pickle.loads(pickle.dumps(FunctionReward(length))) == FunctionReward(length)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def f(:\n", ["broken.py:1: ", "syntax"]),
        ("import json\njson.loads('')\n", ["JSONDecodeError"]),
        ("1 / 0\n", ["broken.py:1: ZeroDivisionError"]),
        ("g = 1\n", ["no attribute 'f'"]),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_error(tmp_path, text, words):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        FunctionReward(f"{tmp_path}/broken.py:f")
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*nowhere\.py"):
        FunctionReward(f"{tmp_path}/nowhere.py:f")


class Counter:
    def __init__(self):
        self.calls = 0

    def __call__(self, prompts, responses):
        self.calls += 1
        return [self.calls] * len(responses)

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


def test_the_state_of_an_object_is_the_rewards():
    source, other = FunctionReward(Counter()), FunctionReward(Counter())
    source(["p"], ["r"])
    other.load_state_dict(source.state_dict())
    assert other(["p"], ["r"]).tolist() == [2]
    members = EnsembleReward([other, FunctionReward(length), source])
    assert members.state_dict() == {"0": {"calls": 2}, "2": {"calls": 1}}
    members.load_state_dict({"2": {"calls": 7}})
    assert source.state_dict() == {"calls": 7}
    assert FunctionReward(length).state_dict() == {}


@pytest.mark.parametrize("reward", [3, None, Counter])
def test_what_is_neither_reward_nor_function_is_refused(reward):
    with pytest.raises(ConfigError, match="neither a reward nor a function"):
        as_source(reward)


def test_a_plain_function_becomes_a_reward():
    assert as_source(length) == FunctionReward(length)
    assert as_source(FunctionReward(length)) == FunctionReward(length)


def test_the_source_travels_by_name():
    source = pickle.loads(pickle.dumps(FunctionReward(f"{HERE}.length")))
    assert source == FunctionReward(function=f"{HERE}.length")


def rank_in_prompt(prompts, responses, wanted):
    assert len(set(prompts)) == 1
    assert len(prompts) == len(wanted)
    return [sorted(map(len, responses)).index(len(response)) for response in responses]


def test_a_function_may_see_each_prompts_samples_by_themselves():
    samples = sample_batch(["p", "p", "q", "p"], ["aaa", "a", "bb", "b"])._replace(
        fields=[{"wanted": 0}] * 4, group_ids=torch.tensor([5, 5, 2, 3])
    )
    source = FunctionReward(rank_in_prompt, per_prompt=True)
    assert source(samples.prompts, samples.responses, samples).tolist() == [1, 0, 0, 0]

    def sizes(prompts, responses):
        return [len(prompts)] * len(prompts)

    # Of texts alone, neighbours with one prompt belong together.
    assert FunctionReward(sizes, per_prompt=True)(list("ppqp"), list("abcd")).tolist() == [
        2,
        2,
        1,
        1,
    ]
    assert FunctionReward(sizes)(list("ppqp"), list("abcd")).tolist() == [4] * 4
    assert (source.compares_samples, FunctionReward(sizes).compares_samples) == (True, False)
    assert EnsembleReward([source, FunctionReward(sizes)]).compares_samples


def test_a_call_that_raises_may_leave_its_responses_out(caplog):
    source = FunctionReward(raising, failures="leave_out", per_prompt=True)
    scores = source(SAMPLES.prompts, SAMPLES.responses, SAMPLES)
    assert scores[:2].tolist() == pytest.approx([1.0, 1 / 3])
    assert scores[2].isnan()
    (told,) = [record.getMessage() for record in caplog.records]
    assert "raised ZeroDivisionError" in told
    assert told.endswith("1 responses are left out")
    with pytest.raises(RewardError, match="returned 1 scores for 3 responses"):  # a mistake
        FunctionReward(too_few, failures="leave_out")(SAMPLES.prompts, SAMPLES.responses)


def test_calls_run_at_once_and_each_fails_by_itself(caplog):
    together = threading.Barrier(3, timeout=20)

    def meet(prompts, responses, wanted):  # ends only if three calls run at once
        together.wait()
        if responses == ["b"]:
            raise KeyError("no such thing")
        return [ord(responses[0]) + wanted[0]]

    samples = sample_batch(list("ppq"), list("abc"))._replace(
        fields=[{"wanted": number} for number in range(3)]
    )
    source = FunctionReward(meet, num_parallel=3, failures="leave_out")
    scores = source(samples.prompts, samples.responses, samples)
    assert scores[[0, 2]].tolist() == [97, 101]
    assert scores[1].isnan()
    assert "raised KeyError" in caplog.text
    with pytest.raises(RewardError, match="raised KeyError"):
        FunctionReward(meet, num_parallel=3)(samples.prompts, samples.responses, samples)


def test_of_parallel_calls_only_one_that_hangs_is_given_up(caplog):
    async def hang(prompts, responses):
        await asyncio.sleep(60 if responses == ["slow"] else 0)
        return [float(len(responses))]

    source = FunctionReward(hang, num_parallel=2, timeout_s=2.0, failures="leave_out")
    scores, _ = ask("model.reward", source, sample_batch(list("ppq"), ["a", "slow", "c"]))
    assert scores[[0, 2]].tolist() == [1, 1]
    assert scores[1].isnan()
    assert "has not answered within 2 s" in caplog.text


def test_parallel_calls_may_have_a_prompts_samples_each():
    samples = sample_batch(["p", "p", "q", "p"], ["aaa", "a", "bb", "b"])._replace(
        fields=[{"wanted": 0}] * 4, group_ids=torch.tensor([5, 5, 2, 3])
    )
    source = FunctionReward(rank_in_prompt, per_prompt=True, num_parallel=2)
    assert source(samples.prompts, samples.responses, samples).tolist() == [1, 0, 0, 0]
    with pytest.raises(ConfigError, match="num_parallel"):
        FunctionReward(rank_in_prompt, num_parallel=0)
