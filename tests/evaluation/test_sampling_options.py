"""The options of commands that sample a policy."""

import argparse

import pytest

from lit_rlhf.errors import ConfigError
from lit_rlhf.evaluation.sampling import SamplingConfig
from lit_rlhf.evaluation.sampling_options import add_sampling_options, sampling_config


def read(*words):
    parser = argparse.ArgumentParser()
    add_sampling_options(parser)
    return sampling_config(parser.parse_args(words), samples=3)


def test_every_option_reaches_the_settings():
    words = (
        "--max-new-tokens=7", "--temperature=0.5", "--seed=2", "--template=plain",
        '--template-options={"a": 1}', "--precision=32-true",
    )  # fmt: skip
    assert read(*words) == SamplingConfig(3, 7, 0.5, 2, "plain", {"a": 1}, "32-true")


@pytest.mark.parametrize("temperature", ["-1", "nan"])
def test_a_temperature_below_zero_is_refused(temperature):
    with pytest.raises(ConfigError, match=r"--temperature is \S+; it must be at least 0"):
        read(f"--temperature={temperature}", "--precision=32-true")
