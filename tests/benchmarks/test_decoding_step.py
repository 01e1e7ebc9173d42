import pytest
import torch

from benchmarks.decoding_step import count_move, count_steps, narrow_policy


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_a_step_waits_for_a_gpu_once(model_type):
    _, waits, which = count_steps(narrow_policy(model_type, 2))
    assert (waits, dict(which)) == (1.0, {"tolist": 1.0})


@pytest.mark.parametrize("lora", [False, True])
def test_a_graph_leaves_few_launches_and_one_wait_however_many_layers_there_are(lora):
    policy = narrow_policy("qwen3", 6, lora=lora)
    plain, _, _ = count_steps(policy)
    launches, waits, _ = count_steps(policy, graphs=True)
    assert plain > 300
    assert launches < 100
    assert waits == 1


def test_a_row_that_ends_takes_one_launch_in_all_layers():
    with torch.no_grad():
        assert count_move(narrow_policy("qwen3", 6)) == 1
