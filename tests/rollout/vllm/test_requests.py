import pytest

from lit_rlhf.errors import ConfigError
from lit_rlhf.rollout import Sampling
from lit_rlhf.rollout.vllm.requests import sample_seeds, sampling_parameters


def test_every_setting_is_said_in_the_engines_words():
    sampling = Sampling(
        max_new_tokens=7,
        temperature=0.5,
        top_k=4,
        top_p=0.9,
        min_p=0.1,
        min_new_tokens=2,
        stop_strings=("so",),
    )
    parameters = sampling_parameters(sampling, [2, 9])
    assert {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_k": 4,
        "top_p": 0.9,
        "min_p": 0.1,
        "min_tokens": 2,
        "stop": ["so"],
        "stop_token_ids": [2, 9],
        # Only our stop tokens end a response, and no penalty of the model's folder applies.
        "ignore_eos": True,
        "repetition_penalty": 1.0,
    }.items() <= parameters.items()


def test_what_the_engine_would_change_in_silence_is_refused():
    with pytest.raises(ConfigError, match=r"temperature 0\.005: vLLM takes 0 or at least 0\.01"):
        sampling_parameters(Sampling(temperature=0.005), [2])


def test_a_seed_is_named_by_rollout_prompt_and_number_alone():
    seeds = sample_seeds(3, [40, 7], 2)
    assert len(set(seeds)) == 4
    assert sample_seeds(3, [7], 3)[:2] == seeds[2:]
    assert sample_seeds(4, [40, 7], 2) != seeds
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Stand-ins of an uneven batch have negative ids.
    assert sample_seeds(3, [-1], 1) != sample_seeds(3, [1], 1)
