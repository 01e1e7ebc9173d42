import pytest

from benchmarks.decoding_step import count_steps, narrow_policy


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_a_step_waits_for_a_gpu_once(model_type):
    _, waits, which = count_steps(narrow_policy(model_type, 2))
    assert (waits, dict(which)) == (1.0, {"tolist": 1.0})
