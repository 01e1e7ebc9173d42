import time
from dataclasses import dataclass

import pytest
import torch

from lit_rlhf.errors import ConfigError, DataError, RewardError
from lit_rlhf.rewards import EnsembleReward, FunctionReward, RewardMixture, RewardSource, ask
from tests.rewards.samples import sample_batch
from tests.support.two_processes import run_in_two_processes

SAMPLES = sample_batch(["one", "two"], ["a", "bcd"])


@dataclass(frozen=True)
class Broken(RewardSource):
    fault: object

    def __call__(self, prompts, responses, batch=None):
        if isinstance(self.fault, Exception):
            raise self.fault
        return self.fault


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (KeyError("x"), ["model.judges.mine", "Broken raised KeyError", "'one' -> 'a'"]),
        (DataError("prompt 3 is empty"), ["model.judges.mine: prompt 3 is empty"]),
        (torch.zeros(2, 1), ["model.judges.mine", "shape [2, 1] for 2 responses"]),
        (torch.zeros(3), ["shape [3] for 2 responses"]),
    ],
)
def test_any_reward_that_fails_is_one_error_with_its_setting(fault, words):
    with pytest.raises(RewardError) as caught:
        ask("model.judges.mine", Broken(fault), SAMPLES)
    assert [word for word in words if word not in str(caught.value)] == []


def test_scores_are_float32_and_without_gradient():
    scores, details = ask(
        "r", Broken(torch.ones(2, dtype=torch.float64, requires_grad=True)), SAMPLES
    )
    assert (scores.dtype, scores.requires_grad, details) == (torch.float32, False, {})


def test_a_function_that_hangs_ends_at_its_limit():
    def hang(prompts, responses):
        time.sleep(60)

    with pytest.raises(RewardError, match=r"model\.reward has not answered within"):
        ask("model.reward", FunctionReward(hang, timeout_s=0.2), SAMPLES)


def test_a_function_that_hangs_may_leave_its_responses_out(caplog):
    def hang(prompts, responses):
        time.sleep(60)

    source = FunctionReward(hang, timeout_s=0.2, failures="leave_out")
    mixture = RewardMixture({"hanging": source})
    for asked in (source, mixture):
        scores, details = ask("model.reward", asked, SAMPLES)
        assert scores.isnan().all()
        assert details.keys() == set(asked.details)
    assert "has not answered within 0.2 s" in caplog.text
    both = RewardMixture({"hanging": source, "other": FunctionReward(hang)})
    assert not both.leaves_out_failures


def test_an_ensemble_has_the_time_of_its_members():
    def f(prompts, responses):
        return [0.0] * len(responses)

    limited, endless = FunctionReward(f, timeout_s=2.0), FunctionReward(f, timeout_s=None)
    assert EnsembleReward([limited, limited]).timeout_s == 4.0
    assert EnsembleReward([limited, endless]).timeout_s is None
    with pytest.raises(ConfigError, match="timeout_s"):
        FunctionReward(f, timeout_s=0.0)


def fails_on_one_rank():
    source = Broken(KeyError("x") if torch.distributed.get_rank() == 1 else torch.zeros(2))
    try:
        ask("model.reward", source, SAMPLES)
    except RewardError as error:
        return str(error)


def test_no_process_waits_for_one_whose_reward_failed():
    one, other = run_in_two_processes(fails_on_one_rank)
    assert one == "model.reward failed on another process, which says why"
    assert "raised KeyError" in other


def test_nobody_is_asked_about_stand_ins():
    scores, details = ask("model.reward", Broken(KeyError("x")), SAMPLES.silenced())
    assert (scores.tolist(), details) == ([0, 0], {})
    # What is logged has the same names on all processes.
    mixture = RewardMixture({"part": Broken(KeyError("x"))})
    assert ask("model.reward", mixture, SAMPLES.silenced())[1]["part"].tolist() == [0, 0]
