import pytest
import torch

from lit_rlhf.models import LoRAConfig, PolicyModel, apply_lora
from lit_rlhf.rollout import Sampling, TorchGenerator
from tests.models.examples import lively_model, shake
from tests.rollout.test_generation import pick, prompt_batch

FALLBACKS = ("padded", "by_length", "uncached")
LENGTHS = [4, 2, 7, 2, 4]
SETTINGS = {
    "plain": {},
    "greedy": {"temperature": 0.0},
    "truncated": {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    "patient": {"min_new_tokens": 3},
    "strings": {"stop_strings": ("7", "1")},
}


def generation_of(policy, decoding, sampling, prompts, **settings):
    """Draw with a way of decoding, whatever was measured."""
    measured, policy.paths = policy.paths, policy.paths._replace(decoding=decoding)
    settings = {"stop_ids": [3, 40, 41, 42], "samples_per_prompt": 2, "seed": 5} | settings
    try:
        return TorchGenerator(max_rows=4)(policy, prompts, sampling, **settings)
    finally:
        policy.paths = measured


def spell(rows):
    return [" ".join(map(str, row)) for row in rows]


def assert_equal(fallback, own):
    assert torch.equal(fallback.lengths, own.lengths)
    assert torch.equal(fallback.finished, own.finished)
    for row, length in enumerate(own.lengths.tolist()):
        assert torch.equal(fallback.tokens[row, :length], own.tokens[row, :length])
    torch.testing.assert_close(fallback.logprobs, own.logprobs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("decoding", FALLBACKS)
def test_transformers_cache_draws_what_ours_does(policies, decoding, settings):
    sampling = Sampling(max_new_tokens=9, **SETTINGS[settings])
    prompts = prompt_batch(LENGTHS)
    own, fallback = (
        generation_of(policies(), path, sampling, prompts, decode=spell)
        for path in ("own", decoding)
    )
    assert_equal(fallback, own)
    assert own.finished.any() or settings == "greedy"


@pytest.mark.parametrize("decoding", FALLBACKS)
def test_adapters_take_part(decoding):
    policy = PolicyModel(apply_lora(lively_model(), LoRAConfig(rank=2))).eval()
    sampling, prompts = Sampling(max_new_tokens=6), prompt_batch(LENGTHS)
    before = generation_of(policy, decoding, sampling, prompts)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            shake(torch.nn.ParameterList([parameter]), seed=3)
    after = generation_of(policy, decoding, sampling, prompts)
    assert not torch.equal(before.tokens, after.tokens)
    assert_equal(after, generation_of(policy, "own", sampling, prompts))


def test_a_response_does_not_depend_on_who_shares_its_batch(policies):
    sampling = Sampling(max_new_tokens=6)
    prompts = prompt_batch(LENGTHS)
    together = generation_of(policies(), "padded", sampling, prompts)
    alone = generation_of(policies(), "padded", sampling, pick(prompts, [3]))
    places = [6, 7]
    assert torch.equal(alone.lengths, together.lengths[places])
    assert torch.equal(alone.tokens, together.tokens[places])


def test_the_models_own_generation_settings_take_no_part(policies):
    policy, prompts = policies(), prompt_batch(LENGTHS)
    greedy = Sampling(max_new_tokens=6, temperature=0.0)
    plain = generation_of(policy, "padded", greedy, prompts)
    own = policy.model.generation_config
    try:
        changed = type(own)(**own.to_dict() | {"repetition_penalty": 9.0})
        policy.model.generation_config = changed
        again = generation_of(policy, "padded", greedy, prompts)
        assert policy.model.generation_config is changed
    finally:
        policy.model.generation_config = own
    assert torch.equal(plain.tokens, again.tokens)
