from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.batches import cut_by_tokens

LIMITS = st.one_of(st.none(), st.integers(1, 60))


@given(st.lists(st.integers(1, 30), max_size=20), LIMITS, LIMITS, st.booleans())
def test_rows_are_cut_in_order_into_parts_within_the_limits(lengths, rows, tokens, padded):
    parts = [lengths[part] for part in cut_by_tokens(lengths, rows, tokens, padded=padded)]
    assert [length for part in parts for length in part] == lengths

    def fits(part):
        size = len(part) * max(part) if padded else sum(part)
        return len(part) <= (rows or 99) and size <= (tokens or 9_999)

    assert all(fits(part) or len(part) == 1 for part in parts)
    # A part ends only where its next row would have been too much.
    assert not any(fits([*part, after[0]]) for part, after in pairwise(parts))
