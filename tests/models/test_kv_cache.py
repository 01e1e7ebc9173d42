from unittest import mock

import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.models.kv_cache import RowCache

LAYERS, HEADS, WIDTH = 2, 3, 4
ROWS, COLUMNS = 5, 12


def states(*values):
    """Return keys of tokens named by `values`, `[rows, HEADS, tokens, WIDTH]`."""
    return torch.tensor(values).double()[:, None, :, None].expand(-1, HEADS, -1, WIDTH)


def write(cache, values):
    for layer in range(LAYERS):
        keys, other = cache.update(states(*values) + layer, -states(*values), layer)
    cache.advance(len(values[0]))
    return keys, other


def contents(cache, lengths):
    """Read the tokens of each row back, and check that all layers, heads and values agree."""
    window = cache.window
    rows = []
    for row, length in enumerate(lengths):
        columns = slice(window.end - length, window.end)
        own = [layer.keys[row, :, columns] - n for n, layer in enumerate(cache.layers)]
        own += [-layer.values[row, :, columns] for layer in cache.layers]
        tokens = own[0][0, :, 0]
        assert all(torch.equal(part, tokens[:, None].expand(HEADS, -1, WIDTH)) for part in own)
        rows.append(tokens.tolist())
    return rows


def prompts_of(values):
    """Return a cache that holds prompts, right-aligned behind padding."""
    longest = max(len(row) for row in values)
    cache = RowCache(len(values), longest, size=len(values))
    write(cache, [[0] * (longest - len(row)) + row for row in values])
    return cache


@given(st.data())
def test_rows_keep_their_tokens_while_others_come_and_go(data):
    cache, rows, names = RowCache(ROWS, COLUMNS), [], iter(range(1, 10_000))
    longest_allowed = COLUMNS - 2
    for _ in range(data.draw(st.integers(1, 25))):
        longest = max(map(len, rows), default=0)
        action = data.draw(st.sampled_from(["admit", "keep", "extend"]))
        if action == "admit" and len(rows) < ROWS:
            limit = cache.window.end if rows else longest_allowed
            count = data.draw(st.integers(1, ROWS - len(rows)))
            sizes = data.draw(st.lists(st.integers(1, limit), min_size=1, max_size=count))
            new = [[next(names) for _ in range(size)] for size in sizes]
            source = data.draw(
                st.lists(st.integers(0, len(new) - 1), min_size=count, max_size=count)
            )
            cache.admit(prompts_of(new), torch.tensor(source))
            rows += [list(new[place]) for place in source]
        elif action == "keep" and rows:
            places = [n for n in range(len(rows)) if data.draw(st.booleans())]
            is_gpu = data.draw(st.booleans())
            with mock.patch("lit_rlhf.models.kv_cache.waits_for_gpu", return_value=is_gpu):
                order = cache.keep(places)
            assert sorted(order) == places
            rows = [rows[place] for place in order]
        elif action == "extend" and rows and longest < longest_allowed:
            cache.forget_before(longest)
            cache.make_room(longest)
            readable = cache.readable(torch.tensor([len(row) for row in rows]))
            new = [[next(names)] for _ in rows]
            keys, _ = write(cache, new)
            rows = [row + token for row, token in zip(rows, new, strict=True)]
            seen = [keys[n, 0, is_own, 0] - LAYERS + 1 for n, is_own in enumerate(readable)]
            assert [row.tolist() for row in seen] == rows
        assert cache.size == len(rows)
        assert contents(cache, [len(row) for row in rows]) == rows


def test_keys_come_back_in_the_type_in_which_they_were_written():
    cache = RowCache(1, 3, size=1)
    keys, values = cache.update(states([1]).bfloat16(), states([1]).half(), 0)
    assert (keys.dtype, values.dtype) == (torch.bfloat16, torch.float16)
    assert cache.layers[0].keys.dtype == torch.bfloat16


def test_under_autocast_the_cache_keeps_what_products_read():
    keys, values = torch.randn(2, 3, HEADS, 2, WIDTH).unbind()
    cache = RowCache(3, 4, size=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        read = cache.update(keys, values.bfloat16(), 0)
    assert [one.dtype for one in (*read, cache.layers[0].keys)] == [torch.bfloat16] * 3
    assert torch.equal(read[0], keys.bfloat16())
