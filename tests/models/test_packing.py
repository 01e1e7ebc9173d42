import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.masking_utils import find_packed_sequence_indices

from lit_rlhf.models.packing import first_fit, pack_rows
from tests.models.examples import lively_model, random_rows

lengths_and_width = st.integers(1, 12).flatmap(
    lambda width: st.tuples(st.lists(st.integers(1, width), max_size=12), st.just(width))
)


@given(lengths_and_width)
def test_first_fit_never_overfills_and_places_every_row_once(case):
    lengths, width = case
    bins = first_fit(lengths, width)
    assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in rows) <= width for rows in bins)


@given(lengths_and_width)
def test_first_fit_opens_a_bin_only_when_no_earlier_one_has_room(case):
    lengths, width = case
    loads = [sum(lengths[row] for row in rows) for rows in first_fit(lengths, width)]
    pairs = [(i, j) for j in range(len(loads)) for i in range(j)]
    assert all(loads[i] + loads[j] > width for i, j in pairs)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 20), st.integers(0, 5))
def test_every_token_is_found_again_with_its_position(lengths, width, num_extra_columns):
    rows = random_rows(lengths, [0] * len(lengths), num_extra_columns=num_extra_columns, pad_id=7)
    packed = pack_rows(rows.input_ids, rows.lengths, width)
    flat_ids, flat_positions = packed.input_ids.flatten(), packed.position_ids.flatten()
    seen = []
    for row, length in enumerate(lengths):
        places = packed.flat_index[row, :length]
        assert torch.equal(flat_ids[places], rows.input_ids[row, :length])
        assert flat_positions[places].tolist() == list(range(length))
        seen += places.tolist()
    assert len(set(seen)) == len(seen)  # no two tokens share a place
    assert packed.input_ids.numel() <= rows.input_ids.numel()


@given(st.lists(st.integers(1, 9), min_size=2, max_size=8), st.integers(1, 20))
def test_transformers_tells_rows_and_gaps_apart(lengths, width):
    rows = random_rows(lengths, [0] * len(lengths), num_extra_columns=1)  # always worth packing
    packed = pack_rows(rows.input_ids, rows.lengths, width)
    sequences = find_packed_sequence_indices(packed.position_ids)
    if sequences is None:  # one sequence a packed row
        sequences = torch.zeros_like(packed.position_ids)
    sequences = sequences + 1000 * torch.arange(len(sequences))[:, None]
    names = sequences.flatten().tolist()
    own = {
        place: row for row, n in enumerate(lengths) for place in packed.flat_index[row, :n].tolist()
    }
    # Two places are of one sequence exactly when they are of one row; a gap is alone.
    owners = [own.get(place, -1 - place) for place in range(len(names))]
    assert len(set(zip(names, owners, strict=True))) == len(set(names)) == len(set(owners))


def test_the_padded_layout_stays_where_packing_saves_nothing():
    rows = random_rows([4, 4, 4], [0, 0, 0])
    for width in (None, 4, 6):
        packed = pack_rows(rows.input_ids, rows.lengths, width)
        assert torch.equal(packed.input_ids, rows.input_ids)
        assert packed.position_ids.tolist() == [[0, 1, 2, 3]] * 3
        assert packed.flat_index.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_without_a_width_rows_stay_as_padded_as_they_came():
    rows = random_rows([2, 5], [0, 0], num_extra_columns=3)
    assert pack_rows(rows.input_ids, rows.lengths, None).input_ids.shape == (2, 8)
    assert pack_rows(rows.input_ids, rows.lengths, 7).input_ids.shape == (1, 7)


def test_a_row_longer_than_the_width_gets_a_bin_of_its_own():
    rows = random_rows([9, 2, 3], [0, 0, 0])
    packed = pack_rows(rows.input_ids, rows.lengths, 4)
    assert packed.input_ids.shape == (2, 9)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_what_stands_in_a_gap_changes_nothing(architecture):
    trunk = lively_model(architecture).base_model
    rows = random_rows([7, 6, 5, 2], [0, 0, 0, 0])
    packed = pack_rows(rows.input_ids, rows.lengths, 9)
    is_real = torch.zeros(packed.input_ids.numel(), dtype=torch.bool)
    for row, length in enumerate(rows.lengths.tolist()):
        is_real[packed.flat_index[row, :length]] = True
    is_real = is_real.view_as(packed.input_ids)
    assert not is_real.all()
    other_ids = torch.where(is_real, packed.input_ids, 50)
    with torch.no_grad():
        states, others = (
            trunk(input_ids=ids, position_ids=packed.position_ids, use_cache=False)[0]
            for ids in (packed.input_ids, other_ids)
        )
    assert torch.equal(states[is_real], others[is_real])
