import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lit_rlhf.data.loading import Dealer, EvaluationLoader, TrainingLoader
from lit_rlhf.errors import CheckpointError, ConfigError


def dealer(num_examples, rank, world_size):
    return Dealer(range(num_examples), list, lambda x: -1 - x, rank, world_size)


def training(num_examples=11, batch_size=2, seed=0, rank=0, world_size=1, **options):
    return TrainingLoader(
        dealer(num_examples, rank, world_size),
        batch_size=batch_size,
        seed=seed,
        **options,
    )


def evaluation(num_examples, batch_size, rank=0, world_size=1, **options):
    deal = dealer(num_examples, rank, world_size)
    return EvaluationLoader(deal, batch_size=batch_size, **options)


def test_a_held_out_batch_has_at_most_so_many_tokens_a_process():
    lengths = [9, 1, 1, 1, 4, 4, 4, 30, 1]
    ranks = [
        evaluation(9, 4, batch_tokens=8, lengths=lengths, rank=rank, world_size=2)
        for rank in range(2)
    ]
    first, second = (list(loader) for loader in ranks)
    assert first == [[0], [1, 3], [5], [7], [8]]
    assert second == [[-1], [2, 4], [6], [-8], [-9]]


SIZES = st.tuples(st.integers(1, 30), st.integers(1, 4), st.integers(1, 4))


@given(SIZES, st.integers(0, 3))
def test_an_epoch_holds_each_example_at_most_once(sizes, seed):
    num_examples, batch_size, _ = sizes
    assume(batch_size <= num_examples)
    loader = training(num_examples, batch_size, seed)
    batches = list(loader)
    assert len(batches) == len(loader) == num_examples // batch_size
    assert all(len(batch) == batch_size for batch in batches)
    seen = [example for batch in batches for example in batch]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(num_examples))


@given(SIZES, st.integers(0, 3))
def test_the_processes_together_see_what_one_sees(sizes, seed):
    num_examples, share, world_size = sizes
    batch_size = share * world_size
    assume(batch_size <= num_examples)
    alone = training(num_examples, batch_size, seed)
    ranks = [
        training(num_examples, batch_size, seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for _ in range(2):
        epoch = list(alone)
        shares = [list(loader) for loader in ranks]
        assert [len(batches) for batches in shares] == [len(epoch)] * world_size
        for i, batch in enumerate(epoch):
            assert all(len(batches[i]) == share for batches in shares)
            assert sorted(x for batches in shares for x in batches[i]) == sorted(batch)


@given(SIZES, st.integers(0, 3))
def test_a_kept_last_batch_is_dealt_out_too(sizes, seed):
    num_examples, share, world_size = sizes
    options = {"last_batch": "keep"}
    ranks = [
        training(num_examples, share * world_size, seed, rank=i, world_size=world_size, **options)
        for i in range(world_size)
    ]
    alone = training(num_examples, share * world_size, seed, **options)
    batches = list(alone)
    assert len(batches) == len(alone) == -(-num_examples // (share * world_size))
    assert sorted(itertools.chain(*batches)) == list(range(num_examples))
    shares = [list(loader) for loader in ranks]
    assert {len(mine) for mine in shares} == {len(batches)}
    for batch, *mine in zip(batches, *shares, strict=True):
        assert sorted(x for one in mine for x in one if x >= 0) == sorted(batch)
        # Nobody is without a batch, and a stand-in stands alone.
        assert all(one and (min(one) >= 0 or len(one) == 1) for one in mine)


@given(st.integers(0, 14), st.integers(0, 2))
def test_a_resumed_loader_goes_on_as_if_never_stopped(num_seen, seed):
    def endless(loader):
        return itertools.chain.from_iterable(iter(loader) for _ in itertools.repeat(None))

    whole = list(itertools.islice(endless(training(seed=seed)), 20))
    first = training(seed=seed)
    seen = list(itertools.islice(endless(first), num_seen))
    second = training(seed=seed)
    second.load_state_dict(first.state_dict())
    assert seen + list(itertools.islice(endless(second), 20 - num_seen)) == whole


def test_a_position_may_be_taken_up_by_another_number_of_processes():
    alone = training(12, 4)
    next(iter(alone))
    ranks = [training(12, 4, rank=rank, world_size=2) for rank in range(2)]
    for loader in ranks:
        loader.load_state_dict(alone.state_dict())
    shares = [next(iter(loader)) for loader in ranks]
    assert sorted(shares[0] + shares[1]) == sorted(next(iter(alone)))


def test_asking_for_an_iterator_consumes_nothing():
    loader = training()
    before = loader.state_dict()
    iter(loader)
    iter(loader)
    assert loader.state_dict() == before
    assert list(loader) == list(training())


def test_the_position_counts_the_batch_that_was_handed_out():
    loader = training()
    next(iter(loader))
    assert loader.state_dict()["position"] == 1


def test_a_new_epoch_begins_although_the_last_iterator_was_not_exhausted():
    loader = training()
    iterator = iter(loader)
    for _ in range(len(loader)):  # as Lightning does: never asks for one more
        next(iterator)
    assert len(list(loader)) == len(loader)
    assert loader.state_dict()["epoch"] == 1


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [
        tuple(itertools.chain.from_iterable(training(30, 1, seed).epoch_order(epoch)))
        for seed in range(4)
        for epoch in range(4)
    ]
    assert len(set(orders)) == 16
    assert all(order != tuple(range(30)) for order in orders)


def test_what_does_not_fill_a_batch_differs_between_epochs():
    loader = training(11, 2)
    left_out = {
        frozenset(range(11)) - {i for batch in loader.epoch_order(epoch) for i in batch}
        for epoch in range(10)
    }
    assert len(left_out) > 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("num_examples", {"num_examples": 10}),
        ("batch_size", {"batch_size": 3}),
        ("seed", {"seed": 1}),
        ("keeps_last_batch", {"last_batch": "keep"}),
    ],
)
def test_a_position_in_other_data_is_refused(name, options):
    state = training().state_dict()
    with pytest.raises(CheckpointError, match=f"saved with {name}="):
        training(**options).load_state_dict(state)


def test_the_state_is_plain_numbers():
    assert all(type(value) is int for value in training().state_dict().values())


def test_settings_that_cannot_be_honoured():
    with pytest.raises(ConfigError, match="batch_size=3 cannot be dealt out evenly to 2 processes"):
        training(10, 3, world_size=2)
    with pytest.raises(ConfigError, match="batch_size=3 is more than the 2 training examples"):
        training(2, 3)
    assert list(training(2, 3, last_batch="keep")) in ([[0, 1]], [[1, 0]])


@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 4))
def test_evaluation_counts_each_example_once_on_any_number_of_processes(
    num_examples, batch_size, world_size
):
    ranks = [
        evaluation(num_examples, batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    shares = [list(loader) for loader in ranks]
    assert {len(batches) for batches in shares} == {len(ranks[0])}
    assert all(batch for batches in shares for batch in batches)  # nobody is without a batch
    for i in range(len(ranks[0])):
        counted = sorted(x for batches in shares for x in batches[i] if x >= 0)
        assert counted == list(range(num_examples))[i * batch_size : (i + 1) * batch_size]
    stand_ins = [batch for batches in shares for batch in batches if min(batch) < 0]
    assert all(len(batch) == 1 for batch in stand_ins)


def test_evaluation_starts_anew_each_time():
    loader = evaluation(5, 2)
    next(iter(loader))
    assert list(loader) == [[0, 1], [2, 3], [4]]
    assert list(loader) == [[0, 1], [2, 3], [4]]
