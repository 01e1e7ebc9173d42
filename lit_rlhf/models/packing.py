"""Padding removed, shared prompts computed once: several rows live in one packed row.

A batch of short texts padded to its longest is half padding, and rows with the same prompt (chosen
and rejected, the samples of one prompt) would compute it again and again. Here rows are laid end
to end into packed rows of some `width` tokens. Rows of one prompt form a family: where several
are in one packed row they lie as `prompt | response | response | ...`, every response with the
positions that follow the prompt, and a mask lets it see the prompt and itself. The result for
every token is that of its own row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.models.devices import width_multiple
from lit_rlhf.models.sequence_attention import Sequences

# Wide rows waste arithmetic on masked-out attention, narrow ones leave gaps at their ends.
DEFAULT_WIDTH = 256
# Short rows fit narrower ones as tightly.
_NARROWINGS = (0.25, 0.375, 0.5, 0.75)
# Rows may become wider where more responses then share their prompt.
_WIDENINGS = (1.5, 2.0, 3.0, 4.0)
# How much wider than evenly filled rows the tightest ones are tried.
_SLACKS = (1.0, 1.01, 1.03, 1.06)
# Attention over this many tokens costs about as much as the linear layers of a small model.
_WIDTH_OF_EQUAL_COST = 1024


class PackedRows(NamedTuple):
    """Tokens as the trunk sees them, and where each token of the original rows went.

    Attributes:
        input_ids: `[R, W]` int64.
        position_ids: `[R, W]` int64; they restart at zero with each original row, and where a
            prompt is shared, behind it with each response.
        attention_mask: `[R, 1, W, W]` bool, True where a query (first W) may see a key; None
            where no prompt is shared and the restarts of the positions say it all.
        flat_index: `[B, L]` int64, the place of token `(b, i)` in the flattened `[R * W]`;
            padding points at place 0 and must not be read.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    flat_index: Tensor


class RowSizes(NamedTuple):
    """What packing needs to know of a row.

    Attributes:
        family: rows with an equal number have the same prompt.
        prompt: tokens that the family shares.
        response: tokens of the row's own, at least 1.
    """

    family: int
    prompt: int
    response: int

    @property
    def total(self) -> int:
        """Tokens of the whole row."""
        return self.prompt + self.response


@dataclass
class Bin:
    """A packed row being filled: its rows by family, and the tokens that it still takes."""

    families: dict[int, list[int]]
    room: int

    def price(self, row: RowSizes) -> int:
        """Return the tokens that a row would add: no prompt where its family is here already."""
        return row.response if row.family in self.families else row.total


def first_fit(rows: Sequence[RowSizes], width: int) -> list[Bin]:
    """Assign rows to bins of `width` tokens: families together, the longest rows first.

    A row goes into the first bin with room where its family is, or else into the first with room.

    Args:
        rows: none of more than `width` tokens.
        width: tokens that a bin holds.
    """
    longest: dict[int, int] = {}
    for row in rows:
        longest[row.family] = max(longest.get(row.family, 0), row.total)
    order = sorted(
        range(len(rows)),
        key=lambda index: (-longest[rows[index].family], rows[index].family, -rows[index].total),
    )
    bins: list[Bin] = []
    for index in order:
        row = rows[index]
        fitting = [place for place in bins if place.price(row) <= place.room]
        at_home = (place for place in fitting if row.family in place.families)
        chosen = next(at_home, fitting[0] if fitting else None)
        if chosen is None:
            chosen = Bin({}, width)
            bins.append(chosen)
        chosen.room -= chosen.price(row)
        chosen.families.setdefault(row.family, []).append(index)
    return bins


def pack_rows(
    input_ids: Tensor, lengths: Tensor, prompt_lengths: Tensor, width: int | None
) -> PackedRows:
    """Lay right-padded rows end to end, where that saves tokens.

    Args:
        input_ids: `[B, L]` int64, right-padded.
        lengths: `[B]` int64, real tokens in each row.
        prompt_lengths: `[B]` int64, below `lengths`: the tokens that rows with the same prompt
            share; 0 where none are.
        width: tokens in a packed row, at least those of the longest row; fewer where rows fit as
            tightly, up to four times as many where that lets more responses share a prompt; a
            multiple of 128 on a GPU. None
            keeps one row per row, as padded as it came: the plain path, and the one for sharded
            models.

    Returns:
        The packed rows; the padded layout itself when packing would not be smaller.
    """
    num_rows, row_width = input_ids.shape
    if width is not None and num_rows > 0:
        rows = _row_sizes(input_ids, lengths, prompt_lengths)
        bins, packed_width = _cheapest_bins(rows, width, width_multiple(input_ids.device))
        if len(bins) * packed_width < num_rows * row_width:
            return _lay_out(input_ids, lengths, rows, bins, packed_width)
    positions = torch.arange(row_width, device=input_ids.device).expand(num_rows, row_width)
    flat_index = torch.arange(num_rows * row_width, device=input_ids.device)
    return PackedRows(input_ids, positions, None, flat_index.view(num_rows, row_width))


def lay_end_to_end(
    input_ids: Tensor, lengths: Tensor, prompt_lengths: Tensor
) -> tuple[PackedRows, Sequences]:
    """Lay all rows into one, for attention that knows where sequences begin.

    Args:
        input_ids: `[B, L]` int64, right-padded.
        lengths: `[B]` int64, real tokens in each row.
        prompt_lengths: as for `pack_rows`.

    Returns:
        One row `[1, N]` without a gap and without a mask, and the sequences in it.
    """
    rows = _row_sizes(input_ids, lengths, prompt_lengths)
    families: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        families.setdefault(row.family, []).append(index)
    num_tokens = sum(row.response for row in rows)
    num_tokens += sum(rows[members[0]].prompt for members in families.values())
    packed = _lay_out(input_ids, lengths, rows, [Bin(families, 0)], num_tokens, with_mask=False)
    return packed, _sequences(rows, families, input_ids.device)


def _sequences(
    rows: list[RowSizes], families: dict[int, list[int]], device: torch.device
) -> Sequences:
    """Tell the sequences of rows that lie family by family, each behind its prompt."""
    queries: list[int] = []
    keys: list[int] = []
    places: list[range] = []
    offset = 0
    for members in families.values():
        # A prompt of its own is the beginning of its row's sequence.
        prompt = rows[members[0]].prompt if len(members) > 1 else 0
        if prompt:
            queries.append(prompt)
            keys.append(prompt)
            places.append(range(offset, offset + prompt))
        first, offset = offset, offset + prompt
        for index in members:
            size = rows[index].total - prompt
            queries.append(size)
            keys.append(prompt + size)
            places += [range(first, first + prompt), range(offset, offset + size)]
            offset += size
    query_starts, key_starts = (
        torch.tensor([0, *accumulate(sizes)], dtype=torch.int32, device=device)
        for sizes in (queries, keys)
    )
    shared = None
    if queries != keys:
        shared = torch.tensor([place for part in places for place in part], device=device)
    return Sequences(query_starts, key_starts, shared, max(queries), max(keys))


def _row_sizes(input_ids: Tensor, lengths: Tensor, prompt_lengths: Tensor) -> list[RowSizes]:
    """Number the distinct prompts; rows without one are families of their own."""
    # One copy, as each makes the host wait for a GPU.
    table = torch.cat([lengths[:, None], prompt_lengths[:, None], input_ids], 1).cpu().numpy()
    families: dict[bytes | int, int] = {}
    rows = []
    for index, (length, prompt) in enumerate(table[:, :2].tolist()):
        key = table[index, 2 : 2 + prompt].tobytes() if prompt else index
        rows.append(RowSizes(families.setdefault(key, len(families)), prompt, length - prompt))
    return rows


def _cheapest_bins(rows: list[RowSizes], width: int, multiple: int) -> tuple[list[Bin], int]:
    """Return the bins of the width that costs least, and that width: of the fullest, rounded up."""
    longest = max(row.total for row in rows)
    # Only shared prompts repay a row that is wider than asked for.
    is_shared = len({row.family for row in rows}) < len(rows)
    candidates = []
    for factor in (*_NARROWINGS, 1.0, *(_WIDENINGS if is_shared else ())):
        wide = _round_up(max(longest, int(width * factor)), multiple)
        num_bins, num_tokens = _fill(first_fit(rows, wide), wide)
        # As many bins may do with less width: their rows are then padded to less.
        tight = [math.ceil(num_tokens / num_bins * slack) for slack in _SLACKS]
        for candidate in {wide, *(_round_up(max(longest, value), multiple) for value in tight)}:
            bins = first_fit(rows, candidate)
            packed_width = _round_up(max(candidate - place.room for place in bins), multiple)
            cost = len(bins) * packed_width * (1 + packed_width / _WIDTH_OF_EQUAL_COST)
            candidates.append((cost, packed_width, bins))
    _, packed_width, bins = min(candidates, key=lambda candidate: candidate[:2])
    return bins, packed_width


def _round_up(tokens: int, multiple: int) -> int:
    return -(-tokens // multiple) * multiple


def _fill(bins: list[Bin], width: int) -> tuple[int, int]:
    """Return the number of bins and the tokens in them."""
    return len(bins), sum(width - place.room for place in bins)


def _lay_out(
    input_ids: Tensor,
    lengths: Tensor,
    rows: list[RowSizes],
    bins: list[Bin],
    packed_width: int,
    *,
    with_mask: bool = True,
) -> PackedRows:
    num_rows, row_width = input_ids.shape
    prompt_starts, response_starts = [0] * num_rows, [0] * num_rows
    for number, place in enumerate(bins):
        offset = number * packed_width
        for members in place.families.values():
            start, offset = offset, offset + rows[members[0]].prompt
            for index in members:
                prompt_starts[index], response_starts[index] = start, offset
                offset += rows[index].response
    device = input_ids.device
    columns = torch.arange(row_width, device=device)
    prompt_start = torch.tensor(prompt_starts, device=device)[:, None]  # [B, 1]
    response_start = torch.tensor(response_starts, device=device)[:, None]
    prompt_length = torch.tensor([row.prompt for row in rows], device=device)[:, None]
    is_real = columns < lengths[:, None]  # [B, L]
    in_prompt = columns < prompt_length
    flat_index = torch.where(in_prompt, prompt_start, response_start - prompt_length) + columns
    flat_index = torch.where(is_real, flat_index, 0)

    def spread(values: Tensor, gap: int) -> Tensor:
        # [B, L] -> [R, W]; the gaps at the ends of bins hold `gap`
        packed = torch.full((len(bins) * packed_width,), gap, dtype=torch.long, device=device)
        packed[flat_index[is_real]] = values.expand(num_rows, row_width)[is_real]
        return packed.view(-1, packed_width)

    # Gaps hold token 0 at position 0: each its own one-token sequence.
    mask = None
    if with_mask and any(len(members) > 1 for place in bins for members in place.families.values()):
        mask = _family_mask(
            spread(prompt_start, -1), spread(torch.where(in_prompt, -1, response_start), -2)
        )
    return PackedRows(spread(input_ids, 0), spread(columns, 0), mask, flat_index)


def _family_mask(family: Tensor, response: Tensor) -> Tensor:
    """Let each token see its prompt and what is before it in its own response.

    Args:
        family: `[R, W]` names the prompt's copy in the packed row, -1 in gaps.
        response: `[R, W]` names the response, -1 in prompts, -2 in gaps.

    Returns:
        `[R, 1, W, W]` bool; a gap sees gaps alone.
    """
    is_family = family[:, :, None] == family[:, None, :]
    is_own = (response[:, None, :] == -1) | (response[:, :, None] == response[:, None, :])
    is_before = torch.ones(family.shape[1:] * 2, dtype=torch.bool, device=family.device).tril()
    return (is_family & is_own & is_before)[:, None]
