import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.errors import ConfigError
from lit_rlhf.rollout import plan_update


def as_lists(plan):
    return [[[rows.tolist() for rows in step] for step in epoch] for epoch in plan.epochs]


@given(
    st.integers(1, 30),
    st.integers(1, 4),
    st.integers(1, 6),
    st.one_of(st.none(), st.integers(1, 40)),
    st.integers(0, 2**40),
)
def test_every_epoch_sees_every_row_once(rows, epochs, minibatches, micro_batch_size, seed):
    minibatches = min(minibatches, rows)
    plan = plan_update(
        rows,
        num_epochs=epochs,
        num_minibatches=minibatches,
        micro_batch_size=micro_batch_size,
        seed=seed,
    )
    assert plan.num_steps == epochs * minibatches
    assert len(plan.epochs) == epochs
    for epoch in as_lists(plan):
        seen = [row for step in epoch for part in step for row in part]
        assert sorted(seen) == list(range(rows))
        sizes = [sum(map(len, step)) for step in epoch]
        assert max(sizes) - min(sizes) <= 1
        assert all(part for step in epoch for part in step)
        if micro_batch_size is None:
            assert all(len(step) == 1 for step in epoch)
        else:
            assert max(len(part) for step in epoch for part in step) <= micro_batch_size


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


def test_a_step_without_rows_is_refused():
    with pytest.raises(ConfigError, match=r"3 rows .* 4 minibatches"):
        plan_update(3, num_epochs=1, num_minibatches=4, micro_batch_size=None, seed=0)
