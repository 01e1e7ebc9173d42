from dataclasses import replace

import pytest
import torch

from lit_rlhf.dry_run import levers, plan_of
from lit_rlhf.dry_run.hollow import Hollow, Kind, Rows
from lit_rlhf.dry_run.live_bytes import live_bytes
from lit_rlhf.dry_run.plan import LIBRARIES, Rollout, Setup
from lit_rlhf.models import LoRAConfig
from lit_rlhf.modules.building import build_policy, build_reference
from tests.models.examples import random_rows
from tests.support.tiny_models import save_tiny_policy

ROWS = Rows(2, 24, 20, True)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return str(save_tiny_policy(tmp_path_factory.mktemp("policy")))


def test_what_is_in_use_at_once_is_counted():
    kept = torch.zeros(100)
    with live_bytes(iter([kept])) as live:
        first = kept + 1
        view = first.view(10, 10)
        second = torch.cat([first, first])
        assert (live.now, live.peak) == (1200, 1200)
        del first, view
        assert live.now == 800
        second.mul_(2)
        del second
    assert (live.now, live.peak) == (0, 1200)


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4)])
def test_a_hollow_model_has_the_weights_of_the_real_one(source, lora):
    real = build_policy(source, lora, frozen_dtype=torch.bfloat16, packing_width=None)
    sizes = Hollow(Kind(source, "policy", True, lora=lora, precision="bf16-mixed")).sizes
    trained = [one for one in real.parameters() if one.requires_grad]
    assert sizes.trained == sum(one.nbytes for one in trained)
    assert sizes.trained + sizes.frozen == sum(one.nbytes for one in real.parameters())
    reference = build_reference(source, frozen_dtype=torch.bfloat16, packing_width=None)
    kind = Kind(source, "policy", False, precision="bf16-mixed")
    assert Hollow(kind).sizes.frozen == sum(one.nbytes for one in reference.parameters())


def test_a_step_without_numbers_takes_what_a_real_one_takes(source):
    policy = build_policy(source, None, frozen_dtype=None, packing_width=None)
    rows = random_rows([4, 4], [20, 20])
    with live_bytes(policy.parameters()) as live:
        policy(rows).logprobs.sum().backward()
    hollow = Hollow(Kind(source, "policy", True, on_cpu=False))
    expected = hollow.step(Rows(2, 24, 40, False), accumulates=False).peak
    assert expected == pytest.approx(live.peak, rel=0.1)


def test_gradients_that_are_there_are_counted_once(source):
    hollow = Hollow(Kind(source, "policy", True))
    first, later = (hollow.step(ROWS, accumulates=one).peak for one in (False, True))
    assert first < later <= first + hollow.sizes.trained


def setup_of(source, **changes):
    kind = Kind(source, "policy", True)
    return Setup(
        **{
            "phase": "ppo",
            "trained": {"policy": kind},
            "frozen": {"reference": kind._replace(trains=False)},
            "states": "float32",
            "rows": ROWS,
            "num_micro_batches": 2,
            "rollout": Rollout(4, 1, 24, 40, 96, 1000),
            **changes,
        }
    )


def test_each_part_is_as_large_as_its_arithmetic(source):
    plan = plan_of(setup_of(source))
    size = plan.sizes["policy"]
    update = plan.moments["update"]
    assert update["moments"] == 8 * size.num_parameters
    assert update["gradients"] == update["weights of the policy"] == 4 * size.num_parameters
    assert plan.moments["rollout"]["cache"] == 4 * 40 * 2 * 2 * 2 * 8 * 4
    assert plan.peak == max(sum(parts.values()) for parts in plan.moments.values())


def test_kernels_for_products_in_16_bits_are_counted_on_a_cpu(source):
    kind = Kind(source, "policy", True, precision="bf16-mixed")
    setup = setup_of(source, trained={"policy": kind}, num_steps=1)
    name, size = "compiled kernels", 610_000
    one, two, many = (
        plan_of(replace(setup, num_steps=number)).moments["update"][name] // size
        for number in (1, 2, None)
    )
    assert 10 < one < 100
    assert (two, many) == (2 * one, 1024)
    for other in (setup_of(source), replace(setup, device="cuda")):
        assert name not in plan_of(other).moments["update"]


def test_sharding_divides_weights_gradients_and_moments(source):
    whole = plan_of(setup_of(source)).moments["update"]
    shared = plan_of(setup_of(source, strategy="fsdp2", num_processes=4)).moments["update"]
    for part in ("weights of the policy", "weights of the reference", "gradients", "moments"):
        assert shared[part] == whole[part] // 4
    assert shared["activations"] == whole["activations"]


def test_a_reward_model_is_whole_on_each_process_and_layers_are_gathered_in_bf16(source):
    kind = Kind(source, "policy", True, precision="bf16-mixed")
    reward = kind._replace(trains=False, role="reward")
    setup = setup_of(source, trained={"policy": kind}, frozen={"reward model": reward})
    alone, shared = (
        plan_of(one) for one in (setup, replace(setup, strategy="fsdp2", num_processes=4))
    )
    name = "weights of the reward model"
    assert shared.moments["update"][name] == alone.moments["update"][name]
    policy = build_policy(source, None, frozen_dtype=None, packing_width=None)
    layers = sum(one.numel() for one in policy.model.model.layers.parameters())
    others = sum(one.numel() for one in policy.parameters()) - layers
    assert shared.moments["rollout"]["gathered weights"] == 2 * layers + 4 * others


def test_judges_come_one_at_a_time_and_only_to_be_asked(source):
    kind = Kind(source, "policy", True)
    reward = kind._replace(trains=False, role="reward")
    frozen = dict.fromkeys(("reward", "one", "two.a", "two.b"), reward)
    moments = plan_of(setup_of(source, frozen=frozen, judges=("one", "two"), scored=ROWS)).moments
    whole = Hollow(reward).sizes.frozen
    for parts in moments.values():
        assert parts["weights of the reward"] == whole
    assert moments["scoring"]["weights of a judge"] == 2 * whole
    assert not any("judge" in part for part in (*moments["update"], *moments["rollout"]))


def test_the_cache_on_a_gpu_is_what_the_memory_leaves_room_for(source):
    rollout = Rollout(64, 2, 24, 40, 96, 100)
    setup = setup_of(source, device="cuda", rollout=rollout)
    always = sum(plan_of(setup).moments["rollout"].values())
    token = Hollow(setup.trained["policy"]).sizes.cached_token

    def rows_of(setup, extra):
        memory = int(LIBRARIES["cuda"]) + always + extra
        return plan_of(replace(setup, memory=memory)).moments["rollout"]["cache"] // (72 * token)

    # Much memory: all rows. Half of little: a power of two tokens, here of 40 a row.
    assert rows_of(setup, 10_000_000) == 64
    few = rows_of(setup, 0)
    assert 2 <= few < 64
    assert few == rows_of(setup, 40 * token // 4)
    # No room at all: the samples of one prompt. A setting wins over the memory.
    assert rows_of(setup, -always) == 2
    fixed = replace(setup, rollout=rollout._replace(cached_tokens=400))
    assert rows_of(fixed, 10_000_000) == 10


def test_fewer_prompts_at_once_are_a_lever_where_prompts_take_most(source):
    setup = setup_of(source, rollout=Rollout(64, 1, 2000, 2001, 96, 64_000, 200_000))
    flag = next(one for one in levers(plan_of(setup)) if "prefill_tokens" in one.flag)
    assert flag.flag == "--model.generator.prefill_tokens 16000"
    assert flag.saved > 0


def test_levers_are_sorted_by_what_they_save_and_save_it(source):
    plan = plan_of(setup_of(source))
    found = levers(plan)
    assert [lever.saved for lever in found] == sorted((one.saved for one in found), reverse=True)
    states = next(lever for lever in found if lever.flag == "--model.optimizer.states bf16")
    assert states.peak == plan.peak - states.saved
    assert states.peak == plan_of(replace(plan.setup, states="bf16")).peak
