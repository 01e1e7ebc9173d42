import pickle

import numpy as np
import pytest
import torch

from lit_rlhf.errors import ConfigError
from lit_rlhf.rewards import FunctionReward
from tests.rewards.samples import sample_batch

HERE = "tests.rewards.test_function"
SAMPLES = sample_batch(["one", "two", "three"], ["a", "bcd", ""])


def length(prompts, responses):
    return [len(response) for response in responses]


def both(prompts, responses):
    return np.array([len(p) - len(r) for p, r in zip(prompts, responses, strict=True)])


def lazily(prompts, responses):
    return (0.5 for _ in responses)


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
    with pytest.raises(ConfigError, match="give a dotted path"):
        FunctionReward(path)


def nested(prompts, responses):
    return [[1.0, 2.0]] * len(responses)


def missing(prompts, responses):
    return None


def roles(prompts, responses):
    return [sum(turn["role"] == "user" for turn in p if isinstance(p, tuple)) for p in prompts]


@pytest.mark.parametrize("name", ["nested", "missing"])
def test_what_is_no_list_of_numbers_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name} returned .* one number for each response"):
        score(name)


def test_chats_are_handed_on_as_messages():
    chat = ({"role": "user", "content": "hi"},)
    assert FunctionReward(f"{HERE}.roles")([chat, "hi"], ["a", "b"]).tolist() == [1, 0]


def test_another_number_of_scores_is_refused():
    with pytest.raises(ConfigError, match="too_few returned 1 scores for 3 responses"):
        score("too_few")


def test_the_source_travels_by_name():
    source = pickle.loads(pickle.dumps(FunctionReward(f"{HERE}.length")))
    assert source == FunctionReward(function=f"{HERE}.length")
