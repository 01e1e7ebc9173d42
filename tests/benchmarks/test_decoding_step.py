import pytest
import torch

from benchmarks.decoding_step import (
    Traffic,
    count_move,
    count_steps,
    narrow_policy,
    traffic_of_step,
)


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


def test_a_step_reads_the_cache_once_for_all_heads_that_share_it():
    with torch.no_grad():
        traffic, cached = traffic_of_step(narrow_policy("llama", 2), 8, 512)
    assert cached == 2 * 2 * 8 * 512 * 2 * 8 * 4
    # Nothing is as large beside attention, which reads keys, values and little else.
    (most, moved), (_, second) = traffic.by_name.most_common(2)
    assert "attention" in most
    assert cached <= moved < 1.1 * cached
    assert second < cached / 2


def test_bytes_of_operations_are_counted_once_a_tensor():
    left, right = torch.ones(4, 8), torch.ones(8, 2)
    with Traffic() as traffic:
        _ = left @ right
        _ = left.view(32).expand(3, 32) + 1.0
        _ = left * left
    assert traffic.by_name == {"mm": 128 + 64 + 32, "add": 128 + 3 * 128, "mul": 2 * 128}
