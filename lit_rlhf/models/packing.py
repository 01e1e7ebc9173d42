"""Padding removed: several rows share one packed row, each attending only to itself.

A batch of short texts padded to its longest is half padding. Here rows are laid end to end into
packed rows of some `width` tokens with position ids that restart at zero; transformers builds the
block-diagonal causal mask from the restarts. The result for every token is that of its own row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Wide rows waste arithmetic on masked-out attention, narrow ones leave gaps at their ends.
DEFAULT_WIDTH = 256


class PackedRows(NamedTuple):
    """Tokens as the trunk sees them, and where each token of the original rows went.

    Attributes:
        input_ids: `[R, W]` int64.
        position_ids: `[R, W]` int64, restarting at zero with each original row.
        flat_index: `[B, L]` int64, the place of token `(b, i)` in the flattened `[R * W]`;
            padding points at place 0 and must not be read.
    """

    input_ids: Tensor
    position_ids: Tensor
    flat_index: Tensor


def first_fit(lengths: list[int], width: int) -> list[list[int]]:
    """Assign rows to bins of `width` tokens, longest first, each into the first bin with room.

    Args:
        lengths: tokens of each row, none above `width`.
        width: tokens a bin holds.

    Returns:
        The row indices of each bin.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        for place, left in enumerate(room):
            if lengths[row] <= left:
                bins[place].append(row)
                room[place] -= lengths[row]
                break
        else:
            bins.append([row])
            room.append(width - lengths[row])
    return bins


def pack_rows(input_ids: Tensor, lengths: Tensor, width: int | None) -> PackedRows:
    """Lay right-padded rows end to end, where that saves tokens.

    Args:
        input_ids: `[B, L]` int64, right-padded.
        lengths: `[B]` int64, real tokens in each row.
        width: tokens in a packed row (at least the longest row is taken); None keeps one row
            per row, as padded as it came: the plain path, and the one for sharded models.

    Returns:
        The packed rows; the padded layout itself when packing would not be smaller.
    """
    num_rows, row_width = input_ids.shape
    sizes = lengths.tolist()
    if width is not None:
        bins = first_fit(sizes, max(width, max(sizes, default=0)))
        packed_width = max((sum(sizes[row] for row in rows) for rows in bins), default=0)
        if len(bins) * packed_width < num_rows * row_width:
            return _lay_out(input_ids, lengths, bins, packed_width)
    positions = torch.arange(row_width, device=input_ids.device).expand(num_rows, row_width)
    flat_index = torch.arange(num_rows * row_width, device=input_ids.device)
    return PackedRows(input_ids, positions, flat_index.view(num_rows, row_width))


def _lay_out(
    input_ids: Tensor, lengths: Tensor, bins: list[list[int]], packed_width: int
) -> PackedRows:
    num_rows, row_width = input_ids.shape
    sizes = lengths.tolist()
    starts = [0] * num_rows
    for place, rows in enumerate(bins):
        offset = place * packed_width
        for row in rows:
            starts[row] = offset
            offset += sizes[row]
    device = input_ids.device
    columns = torch.arange(row_width, device=device)
    is_real = columns < lengths[:, None]  # [B, L]
    flat_index = torch.tensor(starts, device=device)[:, None] + columns
    flat_index = torch.where(is_real, flat_index, 0)
    size = len(bins) * packed_width
    # Gaps at the ends of bins hold token 0 at position 0: each its own one-token sequence.
    packed_ids = torch.zeros(size, dtype=input_ids.dtype, device=device)
    positions = torch.zeros(size, dtype=torch.long, device=device)
    packed_ids[flat_index[is_real]] = input_ids[is_real]
    positions[flat_index[is_real]] = columns.expand(num_rows, row_width)[is_real]
    return PackedRows(
        packed_ids.view(-1, packed_width), positions.view(-1, packed_width), flat_index
    )
