from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.masking_utils import find_packed_sequence_indices

from lit_rlhf.models.backbone import hidden_states
from lit_rlhf.models.packing import RowSizes, first_fit, pack_rows
from tests.models.examples import lively_model, random_rows


@st.composite
def families_and_width(draw):
    """Rows of a few prompts, and a width that the longest of them fits in."""
    prompts = draw(st.lists(st.integers(0, 6), min_size=1, max_size=3))
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, len(prompts) - 1), st.integers(1, 6)), min_size=1, max_size=10
        )
    )
    sizes = [RowSizes(family, prompts[family], response) for family, response in rows]
    return sizes, max(row.total for row in sizes) + draw(st.integers(0, 8))


def tokens_of(sizes, place):
    """Return how many tokens a bin holds: every prompt in it once, and its responses."""
    return sum(
        sizes[members[0]].prompt + sum(sizes[index].response for index in members)
        for members in place.families.values()
    )


@given(families_and_width())
def test_first_fit_never_overfills_and_places_every_row_once(case):
    sizes, width = case
    bins = first_fit(sizes, width)
    members = [(family, i) for place in bins for family, own in place.families.items() for i in own]
    assert sorted(members, key=lambda pair: pair[1]) == [
        (row.family, index) for index, row in enumerate(sizes)
    ]
    for place in bins:
        assert tokens_of(sizes, place) == width - place.room <= width


@given(st.lists(st.integers(1, 12), max_size=12), st.integers(12, 20))
def test_rows_without_a_common_prompt_open_a_bin_only_when_none_has_room(lengths, width):
    sizes = [RowSizes(index, 0, length) for index, length in enumerate(lengths)]
    loads = [width - place.room for place in first_fit(sizes, width)]
    pairs = [(i, j) for j in range(len(loads)) for i in range(j)]
    assert all(loads[i] + loads[j] > width for i, j in pairs)


@given(families_and_width())
def test_a_prompt_is_copied_only_when_no_bin_that_has_it_takes_another_response(case):
    sizes, width = case
    bins = first_fit(sizes, width)
    for first, second in combinations(bins, 2):
        for family in first.families.keys() & second.families.keys():
            longest = max(sizes[index].response for index in second.families[family])
            assert first.room < longest


def rows_of_families(sizes, num_extra_columns=0, pad_id=0):
    """Return random rows in which the rows of a family have the same prompt."""
    rows = random_rows(
        [row.prompt for row in sizes],
        [row.response for row in sizes],
        num_extra_columns=num_extra_columns,
        pad_id=pad_id,
    )
    ids = rows.input_ids.clone()
    for family in {row.family for row in sizes}:
        first, *others = (index for index, row in enumerate(sizes) if row.family == family)
        for other in others:
            ids[other, : sizes[first].prompt] = ids[first, : sizes[first].prompt]
    return rows._replace(input_ids=ids)


def pack_unshared(rows, width):
    return pack_rows(rows.input_ids, rows.lengths, torch.zeros_like(rows.lengths), width)


def pack(rows, width):
    return pack_rows(rows.input_ids, rows.lengths, rows.response_mask.int().argmax(1), width)


@given(families_and_width(), st.integers(0, 5))
def test_every_token_is_found_again_with_its_position(case, num_extra_columns):
    sizes, width = case
    rows = rows_of_families(sizes, num_extra_columns, pad_id=7)
    packed = pack(rows, width)
    flat_ids, flat_positions = packed.input_ids.flatten(), packed.position_ids.flatten()
    owner = {}
    for index, size in enumerate(sizes):
        places = packed.flat_index[index, : size.total]
        assert torch.equal(flat_ids[places], rows.input_ids[index, : size.total])
        assert flat_positions[places].tolist() == list(range(size.total))
        for column, place in enumerate(places.tolist()):
            is_shared = column < size.prompt
            name = (rows.input_ids[index, : size.prompt].tolist(), column) if is_shared else index
            assert owner.setdefault(place, name) == name  # only equal prompts share places
    assert packed.input_ids.numel() <= rows.input_ids.numel()


@given(families_and_width())
def test_every_token_sees_what_stands_before_it_in_its_own_row(case):
    sizes, width = case
    packed = pack(rows_of_families(sizes, num_extra_columns=1), width)
    if packed.attention_mask is None:  # then transformers' own mask, see below
        return
    packed_width = packed.input_ids.shape[1]
    visible = packed.attention_mask[:, 0]
    assert visible.any(-1).all()  # a softmax over nothing would be NaN
    for index, size in enumerate(sizes):
        places = packed.flat_index[index, : size.total]
        for column, place in enumerate(places.tolist()):
            number, query = divmod(place, packed_width)
            seen = visible[number, query].nonzero()[:, 0] + number * packed_width
            assert seen.tolist() == places[: column + 1].tolist()


@given(st.lists(st.integers(1, 9), min_size=2, max_size=8), st.integers(1, 20))
def test_transformers_tells_rows_and_gaps_apart(lengths, width):
    rows = random_rows(lengths, [0] * len(lengths), num_extra_columns=1)  # always worth packing
    packed = pack_unshared(rows, width)
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
        packed = pack_unshared(rows, width)
        assert torch.equal(packed.input_ids, rows.input_ids)
        assert packed.position_ids.tolist() == [[0, 1, 2, 3]] * 3
        assert packed.flat_index.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_without_a_width_rows_stay_as_padded_as_they_came():
    rows = random_rows([2, 5], [0, 0], num_extra_columns=3)
    assert pack_unshared(rows, None).input_ids.shape == (2, 8)
    assert pack_unshared(rows, 7).input_ids.shape == (1, 7)


def test_a_row_longer_than_the_width_gets_a_bin_of_its_own():
    rows = random_rows([9, 2, 3], [0, 0, 0])
    packed = pack_unshared(rows, 4)
    assert packed.input_ids.shape == (2, 9)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_what_stands_in_a_gap_changes_nothing(architecture):
    trunk = lively_model(architecture).base_model
    rows = random_rows([7, 6, 5, 2], [0, 0, 0, 0])
    packed = pack_unshared(rows, 9)
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


def test_a_long_prompt_is_shared_though_two_rows_exceed_the_width():
    sizes = [RowSizes(0, 20, 3), RowSizes(0, 20, 4), RowSizes(1, 18, 2), RowSizes(1, 18, 5)]
    packed = pack(rows_of_families(sizes), 16)
    assert packed.input_ids.shape == (1, 52)  # each prompt once, where the rows had 90 tokens


def test_without_a_width_no_prompt_is_shared():
    sizes = [RowSizes(0, 5, 3), RowSizes(0, 5, 3)]
    packed = pack(rows_of_families(sizes), None)
    assert packed.input_ids.shape == (2, 8)
    assert packed.attention_mask is None


def test_beyond_a_sliding_window_no_prompt_is_shared():
    sizes = [RowSizes(0, 6, 3), RowSizes(0, 6, 2)]
    rows = rows_of_families(sizes)
    places = []
    for window in (9, 8):
        trunk = lively_model("gemma2", sliding_window=window).base_model
        places.append(hidden_states(trunk, rows, 16)[1])
    assert torch.equal(places[0][0, :6], places[0][1, :6])
    assert not (places[1][0, :6] == places[1][1, :6]).any()
