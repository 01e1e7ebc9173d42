"""Prepared examples kept on disk: rows are checked and tokenised once, whoever reads them next.

An entry is named by the rows' content, the tokenizer's content and the settings, and holds the
examples as plain arrays (`lit_rlhf.cache`).
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from lit_rlhf import __version__
from lit_rlhf.cache import entry_path
from lit_rlhf.data.collation import GroupExample, PromptExample
from lit_rlhf.data.sources import SourcedRecord
from lit_rlhf.data.tokenization import Row
from lit_rlhf.feedback import JudgedPair
from lit_rlhf.prompts import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Counts up whenever the same inputs give other examples or other arrays.
FORMAT = 2
# Bytes of rows, as JSON: fewer are tokenised in less than a second, and are not kept.
SMALLEST = 1_000_000

Example = TypeVar("Example")
_log = logging.getLogger(__name__)


class Storage(NamedTuple, Generic[Example]):
    """How examples of one type become tensors, and tensors these examples."""

    pack: Callable[[Sequence[Example]], dict[str, Tensor]]
    unpack: Callable[[Mapping[str, Tensor]], list[Example]]


def entry_of(
    rows: Sequence[SourcedRecord],
    tokenizer_digest: Callable[[], str],
    settings: Mapping[str, object],
) -> Path | None:
    """Return where the examples of rows lie.

    Args:
        rows: as read; their places do not count.
        tokenizer_digest: called only where an entry pays.
        settings: all else that the examples depend on.

    Returns:
        A path, there or not; None where it does not pay, or where a row has what JSON cannot
        write (a picture, say), so that its content cannot be told.
    """
    digest, size = hashlib.sha256(), 0
    for row, _ in rows:
        try:
            line = json.dumps(row).encode() + b"\n"
        except (TypeError, ValueError) as error:
            _log.info(
                "tokens are not kept on disk: a row holds more than JSON can write: %s", error
            )
            return None
        digest.update(line)
        size += len(line)
    if size < SMALLEST:
        return None
    inputs = {
        "format": FORMAT,
        "lit_rlhf": __version__,
        "transformers": version("transformers"),
        "tokenizers": version("tokenizers"),
        "rows": digest.hexdigest(),
        "tokenizer": tokenizer_digest(),
        **settings,
    }
    return entry_path("tokenized", inputs)


def digest_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of a tokenizer: its files, chat template included, and today where it asks.

    Call it before the tokenizer is used: padding leaves traces in it.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Chat templates inside the configuration: as files they may lie in a folder of their own.
        tokenizer.save_pretrained(folder, save_jinja_files=False)
        files = [(path.name, path.read_text("utf-8")) for path in sorted(Path(folder).iterdir())]
    parts: list[object] = [type(tokenizer).__name__, files]
    if "strftime_now" in str(tokenizer.chat_template):
        parts.append(datetime.datetime.now().astimezone().date().isoformat())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def pack_rows(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Lay the tokens of all rows end to end."""
    return {
        "lengths": _integers(len(row.input_ids) for row in rows),
        "input_ids": _integers(token for row in rows for token in row.input_ids),
        "response_mask": torch.from_numpy(
            np.fromiter((counts for row in rows for counts in row.response_mask), dtype=np.bool_)
        ),
    }


def unpack_rows(tensors: Mapping[str, Tensor]) -> list[Row]:
    """Undo `pack_rows`."""
    ids, mask = tensors["input_ids"].tolist(), tensors["response_mask"].tolist()
    return [Row(ids[start:end], mask[start:end]) for start, end in _spans(tensors["lengths"])]


def pack_groups(groups: Sequence[GroupExample]) -> dict[str, Tensor]:
    """Lay the rows of all groups end to end, and their pairs."""
    pairs = [pair for group in groups for pair in group.pairs]
    return {
        **pack_rows([row for group in groups for row in group.rows]),
        "rows_in_group": _integers(len(group.rows) for group in groups),
        "pairs_in_group": _integers(len(group.pairs) for group in groups),
        "chosen": _integers(pair.chosen for pair in pairs),
        "rejected": _integers(pair.rejected for pair in pairs),
        "probability": torch.tensor([pair.probability for pair in pairs], dtype=torch.float64),
        "weight": torch.tensor([pair.weight for pair in pairs], dtype=torch.float64),
    }


def unpack_groups(tensors: Mapping[str, Tensor]) -> list[GroupExample]:
    """Undo `pack_groups`."""
    rows = unpack_rows(tensors)
    names = ("chosen", "rejected", "probability", "weight")
    columns = (tensors[name].tolist() for name in names)
    pairs = [JudgedPair(*values) for values in zip(*columns, strict=True)]
    spans = zip(_spans(tensors["rows_in_group"]), _spans(tensors["pairs_in_group"]), strict=True)
    return [
        GroupExample(tuple(rows[slice(*of_rows)]), tuple(pairs[slice(*of_pairs)]))
        for of_rows, of_pairs in spans
    ]


def pack_prompts(prompts: Sequence[PromptExample]) -> dict[str, Tensor]:
    """Lay the tokens of all prompts end to end; prompts as given and fields are one JSON array."""
    texts = json.dumps([[prompt.prompt, prompt.fields] for prompt in prompts]).encode()
    return {
        "lengths": _integers(len(prompt.input_ids) for prompt in prompts),
        "input_ids": _integers(token for prompt in prompts for token in prompt.input_ids),
        "prompt_ids": _integers(prompt.prompt_id for prompt in prompts),
        "texts": torch.from_numpy(np.frombuffer(texts, dtype=np.uint8).copy()),
    }


def unpack_prompts(tensors: Mapping[str, Tensor]) -> list[PromptExample]:
    """Undo `pack_prompts`."""
    ids, numbers = tensors["input_ids"].tolist(), tensors["prompt_ids"].tolist()
    texts = json.loads(tensors["texts"].numpy().tobytes())
    return [
        PromptExample(ids[start:end], number, _prompt(given), fields)
        for (start, end), number, (given, fields) in zip(
            _spans(tensors["lengths"]), numbers, texts, strict=True
        )
    ]


ROWS = Storage(pack_rows, unpack_rows)
GROUPS = Storage(pack_groups, unpack_groups)
PROMPTS = Storage(pack_prompts, unpack_prompts)


def _prompt(given: str | list[Message]) -> Prompt:
    return given if isinstance(given, str) else tuple(given)  # JSON has no tuples


def _integers(values: Iterable[int]) -> Tensor:
    return torch.from_numpy(np.fromiter(values, dtype=np.int32))


def _spans(lengths: Tensor) -> Iterable[tuple[int, int]]:
    return pairwise(accumulate(lengths.tolist(), initial=0))
