"""A frozen reference's log-probabilities: computed once, and found by a row's content.

The reference never changes, so each response needs its forward once, however many epochs follow;
and no model has to be held for it. Values are found by the tokens of the row and the mask of its
response, so that nothing about batches, order or epochs can mix them up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_rlhf.batches import TokenRows, cut_by_tokens
from lit_rlhf.data.collation import GroupExample, collate_rows
from lit_rlhf.data.tokenization import Row
from lit_rlhf.errors import ConfigError
from lit_rlhf.ranks import rank, sum_over_ranks, world_size

# Tokens, padding included, of one forward. Not an option: values depend on it by their rounding.
TOKENS_AT_ONCE = 8192


class ReferenceTable:
    """The reference's log-probability of each response of the data."""

    def __init__(self) -> None:
        self._logprobs: dict[bytes, float] = {}

    def fill(self, rows: UniqueRows, compute: Callable[[UniqueRows], Tensor]) -> None:
        """Compute the values of rows, unless all of them are there; call it on all processes.

        Args:
            rows: all of them.
            compute: rows -> `[B]` log-probabilities, equal on every process.
        """
        if self._logprobs.keys() >= set(rows.keys):
            return
        # It may take a while; Lightning's messages are seen without any setting.
        rank_zero_info(f"computing the reference's log-probabilities of {len(rows)} responses")
        self._logprobs.update(zip(rows.keys, compute(rows).tolist(), strict=True))

    def look_up(self, rows: TokenRows) -> Tensor:
        """Return the value of each row, `[B]` float32 on the rows' device.

        A row in which no token counts has 0, the sum of nothing.

        Raises:
            ConfigError: a row is not in the data that `fill` saw.
        """
        values = []
        for key, counts in zip(row_keys(rows), rows.response_mask.any(1).tolist(), strict=True):
            if counts and key not in self._logprobs:
                raise ConfigError(
                    "model.reference_logprobs: a batch holds a response that is not in the data "
                    "module's data, so its value was not computed before training; set it to "
                    "on_the_fly."
                )
            values.append(self._logprobs[key] if counts else 0.0)
        return torch.tensor(values, dtype=torch.float32, device=rows.input_ids.device)


class UniqueRows(Sequence[Row]):
    """The distinct rows of groups, those of like length next to each other, read when asked for.

    The longest come first: what does not fit into memory shows at once. The rows of a group stay
    together, so that their prompt is computed once.

    Attributes:
        keys: of the rows, in their order.
        lengths: their tokens.
    """

    def __init__(self, groups: Sequence[GroupExample]) -> None:
        """Read all groups once, and remember where each row is."""
        found = []
        for index, group in enumerate(groups):
            lengths = [len(row.input_ids) for row in group.rows]
            keys = [
                _key(np.asarray(row.input_ids, dtype=np.int64), np.asarray(row.response_mask))
                for row in group.rows
            ]
            found.append((-max(lengths), index, keys, lengths))
        places: dict[bytes, tuple[int, int, int]] = {}
        for _, index, keys, lengths in sorted(found):
            for row, (key, length) in enumerate(zip(keys, lengths, strict=True)):
                places.setdefault(key, (index, row, length))
        self.keys = list(places)
        self.lengths = [length for *_, length in places.values()]
        self._places = [(index, row) for index, row, _ in places.values()]
        self._groups = groups

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.keys)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override] # no slices
        """Read a row."""
        group, row = self._places[index]
        return self._groups[group].rows[row]


def row_keys(rows: TokenRows) -> list[bytes]:
    """Return the key of each row of a batch: a digest of its tokens and its response mask."""
    input_ids, mask = rows.input_ids.cpu().numpy(), rows.response_mask.cpu().numpy()
    lengths = rows.lengths.tolist()
    return [_key(input_ids[i, :length], mask[i, :length]) for i, length in enumerate(lengths)]


def compute_logprobs(
    forward: Callable[[TokenRows], Tensor], rows: UniqueRows, *, device: torch.device
) -> Tensor:
    """Score rows, each process its share.

    What shares a forward depends on the rows alone, so that the values are the same bit for bit
    whatever the number of processes.

    Args:
        forward: rows -> `[B]` log-probabilities; each process calls it equally often, as sharded
            models need.
        rows: all of them.
        device: where to compute.

    Returns:
        `[len(rows)]` float32, equal on every process.
    """
    # The longest rows come first, or nearly.
    chunks = cut_by_tokens(rows.lengths, None, TOKENS_AT_ONCE)
    values = torch.zeros(len(rows), device=device)
    for first in range(0, len(chunks), world_size()):
        index = first + rank()
        chunk = chunks[index] if index < len(chunks) else chunks[first]
        some = [rows[i] for i in range(chunk.start, chunk.stop)]
        logprobs = forward(collate_rows(some, pad_id=0).to(device))
        if index < len(chunks):
            values[chunk] = logprobs
    return sum_over_ranks(values)


def _key(input_ids: np.ndarray[Any, Any], response_mask: np.ndarray[Any, Any]) -> bytes:
    digest = hashlib.blake2b(input_ids.tobytes(), digest_size=16)  # 8 bytes a token,
    digest.update(response_mask.tobytes())  # and 1: no two rows give the same bytes
    return digest.digest()
