import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.errors import ConfigError
from lit_rlhf.rollout import TokenLimit, plan_update


def as_lists(plan):
    return [[[rows.tolist() for rows in step] for step in epoch] for epoch in plan.epochs]


SIZES = {
    "num_prompts": st.integers(1, 24),
    "samples_per_prompt": st.integers(1, 3),
    "world_size": st.integers(1, 4),
    "num_minibatches": st.integers(1, 6),
    "micro_batch_size": st.one_of(st.none(), st.integers(1, 40)),
    "seed": st.integers(0, 2**40),
}


def plans(num_prompts, *, samples_per_prompt, world_size, num_minibatches, **options):
    """Return the plan of each process."""
    num_minibatches = min(num_minibatches, num_prompts * samples_per_prompt)
    return [
        plan_update(
            num_prompts,
            samples_per_prompt=samples_per_prompt,
            num_epochs=2,
            num_minibatches=num_minibatches,
            rank=rank,
            world_size=world_size,
            **options,
        )
        for rank in range(world_size)
    ]


def responses_of_steps(plans, samples_per_prompt):
    """Return the (prompt, sample) pairs of each step of each epoch, over all processes."""
    world_size = len(plans)
    return [
        [
            sorted(
                (row // samples_per_prompt * world_size + rank, row % samples_per_prompt)
                for rank, plan in enumerate(plans)
                for part in plan.epochs[epoch][step]
                for row in part.tolist()
            )
            for step in range(len(plans[0].epochs[epoch]))
        ]
        for epoch in range(len(plans[0].epochs))
    ]


@given(**SIZES)
def test_every_epoch_sees_every_response_once(num_prompts, samples_per_prompt, **sizes):
    together = plans(num_prompts, samples_per_prompt=samples_per_prompt, **sizes)
    everything = [(i, k) for i in range(num_prompts) for k in range(samples_per_prompt)]
    for steps in responses_of_steps(together, samples_per_prompt):
        assert len(steps) == min(sizes["num_minibatches"], len(everything))
        assert sorted(pair for step in steps for pair in step) == everything
        lengths = [len(step) for step in steps]
        assert max(lengths) - min(lengths) <= 1


@given(**SIZES)
def test_what_shares_a_step_does_not_depend_on_the_processes(
    num_prompts, samples_per_prompt, world_size, **sizes
):
    alone, together = (
        plans(num_prompts, samples_per_prompt=samples_per_prompt, world_size=number, **sizes)
        for number in (1, world_size)
    )
    expected = responses_of_steps(alone, samples_per_prompt)
    assert responses_of_steps(together, samples_per_prompt) == expected


@given(**SIZES)
def test_the_processes_compute_equally_often(micro_batch_size, **sizes):
    together = plans(micro_batch_size=micro_batch_size, **sizes)
    counts = [[[len(step) for step in epoch] for epoch in plan.epochs] for plan in together]
    assert all(count == counts[0] for count in counts)
    sizes = [len(part) for plan in together for epoch in plan.epochs for s in epoch for part in s]
    if micro_batch_size is None:
        assert all(number == 1 for epoch in counts[0] for number in epoch)
    else:
        assert max(sizes) <= micro_batch_size


@given(st.data(), st.integers(1, 60), st.booleans())
def test_micro_batches_have_at_most_so_many_tokens_on_all_processes(data, tokens, padded):
    world_size = 3
    lengths = data.draw(
        st.lists(st.lists(st.integers(1, 20), min_size=8), min_size=world_size, max_size=world_size)
    )
    together = [
        plan_update(
            16,
            num_epochs=1,
            num_minibatches=2,
            micro_batch_size=None,
            token_limit=TokenLimit(tokens, lengths, padded),
            seed=0,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    (steps,) = responses_of_steps(together, 1)
    assert sorted(prompt for step in steps for prompt, _ in step) == list(range(16))
    counts = [[len(step) for step in plan.epochs[0]] for plan in together]
    assert all(count == counts[0] for count in counts)
    for rank, plan in enumerate(together):
        for part in (part for step in plan.epochs[0] for part in step if len(part) > 1):
            own = [lengths[rank][row] for row in part.tolist()]
            assert (len(own) * max(own) if padded else sum(own)) <= tokens


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("samples_per_prompt", [1, 2])
def test_the_processes_have_equal_shares_where_they_divide_a_minibatch(
    world_size, samples_per_prompt
):
    together = plans(
        16,
        samples_per_prompt=samples_per_prompt,
        world_size=world_size,
        num_minibatches=4,
        micro_batch_size=None,
        seed=3,
    )
    shares = {len(part) for plan in together for epoch in plan.epochs for s in epoch for part in s}
    assert shares == {4 * samples_per_prompt // world_size}


def plan_of(seed):
    return plan_update(12, num_epochs=3, num_minibatches=2, micro_batch_size=4, seed=seed)


def test_a_plan_is_drawn_from_its_seed_alone():
    first = plan_of(5)
    torch.manual_seed(99)
    assert as_lists(plan_of(5)) == as_lists(first)
    assert as_lists(plan_of(6)) != as_lists(first)


def test_drawing_a_plan_leaves_the_random_state():
    before = torch.get_rng_state()
    plan_of(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_epochs_differ_in_their_order():
    epochs = as_lists(plan_of(5))
    assert epochs[0] != epochs[1] != epochs[2]


def test_micro_batches_fill_up_before_the_next():
    (epoch,) = as_lists(
        plan_update(10, num_epochs=1, num_minibatches=2, micro_batch_size=3, seed=0)
    )
    assert [[len(part) for part in step] for step in epoch] == [[3, 2], [3, 2]]


def test_rows_that_share_a_prompt_share_a_micro_batch():
    (epoch,) = as_lists(
        plan_update(
            4, num_epochs=1, num_minibatches=1, micro_batch_size=3, seed=0, samples_per_prompt=3
        )
    )
    assert epoch == [[[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]]


def test_a_step_without_rows_is_refused():
    with pytest.raises(ConfigError, match=r"3 responses .* 4 minibatches"):
        plan_update(3, num_epochs=1, num_minibatches=4, micro_batch_size=None, seed=0)
