import torch

from lit_rlhf.rollout import TorchGenerator, cache_size
from lit_rlhf.rollout.cache_size import bytes_per_token, cached_tokens_for, rows_for

CUDA = torch.device("cuda", 0)


def test_a_token_takes_what_keys_and_values_take(policies):
    config = policies().transformers_config
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert bytes_per_token(policies(), torch.device("cpu")) == 4 * numbers
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bytes_per_token(policies(), torch.device("cpu")) == 2 * numbers


def test_on_a_gpu_the_cache_fills_half_of_the_free_memory(policies, monkeypatch):
    monkeypatch.setattr(cache_size, "bytes_per_token", lambda policy, device: 1000)
    for free, tokens in ((2_000_000, 512), (2_100_000, 1024), (3_900_000, 1024), (10, 1)):
        monkeypatch.setattr(cache_size, "free_memory", lambda device, free=free: free)
        assert cached_tokens_for(policies(), CUDA) == tokens
    assert rows_for(CUDA) == 512


def test_on_a_cpu_the_limits_are_fixed(policies):
    assert TorchGenerator() == TorchGenerator(max_rows=None, max_cached_tokens=None)
    assert (rows_for(torch.device("cpu")), cached_tokens_for(policies(), torch.device("cpu"))) == (
        128,
        65_536,
    )
