import subprocess
import sys

import pytest
import torch

from lit_rlhf.models import PolicyModel
from lit_rlhf.models.backbone import attention_of
from lit_rlhf.models.fast_paths import switch_cpu_paths, take_fast_paths
from tests.models.examples import lively_model


@pytest.fixture(autouse=True)
def _on_again():
    yield
    switch_cpu_paths(True)


@pytest.mark.parametrize(
    ("device", "is_on", "expected"),
    [("cpu", True, "sdpa_short_rows"), ("cpu", False, "sdpa"), ("mps", True, "sdpa")],
)
def test_only_a_model_on_a_cpu_takes_them_and_only_if_switched_on(device, is_on, expected):
    policy = PolicyModel(lively_model(attn_implementation="sdpa"))
    switch_cpu_paths(is_on)
    take_fast_paths(policy, torch.device(device))
    assert attention_of(policy.model) == expected
    has_own = ["forward" in vars(module) for module in policy.modules()]
    assert any(has_own) == (expected == "sdpa_short_rows")


def test_a_sharded_model_decodes_without_copies():
    policy = PolicyModel(lively_model(attn_implementation="sdpa"))
    take_fast_paths(policy, torch.device("cpu"), will_be_sharded=True)
    assert attention_of(policy.model) == "sdpa_short_rows"
    assert not any("forward" in vars(module) for module in policy.modules())


def test_capped_attention_stays_eager():
    policy = PolicyModel(lively_model("gemma2"))
    take_fast_paths(policy, torch.device("cpu"))
    assert attention_of(policy.model) == "eager"


def test_a_gpu_never_imports_them():
    code = """
import sys
import torch
from lit_rlhf import DPOModule, PPOModule, RewardModule, SFTModule
from lit_rlhf.models.fast_paths import take_fast_paths
import lit_rlhf.evaluation.sampling, lit_rlhf.rewards, lit_rlhf.rollout
take_fast_paths(torch.nn.Linear(1, 1), torch.device("mps"))
assert not [name for name in sys.modules if name.startswith("lit_rlhf.cpu")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
