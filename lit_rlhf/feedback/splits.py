"""Which split a prompt belongs to: by a hash, so that it never moves as data grow."""

from __future__ import annotations

import hashlib
import json

from lit_rlhf.errors import DataError
from lit_rlhf.prompts import Message, Prompt, content_text

_NUM_BUCKETS = 100
# Split -> the buckets that belong to it: 80, 10 and 10 per cent of all prompts.
SPLITS = {"train": range(80), "validation": range(80, 90), "test": range(90, 100)}


def bucket_of(prompt: Prompt) -> int:
    """Return the bucket of a prompt, from 0 to 99.

    A text has the bucket of a chat with this one message of the user: the two are one question.
    Only roles and texts count, so that further keys of a message move nothing.
    """
    turns = [("user", prompt)] if isinstance(prompt, str) else [_turn(turn) for turn in prompt]
    digest = hashlib.sha256(json.dumps(turns).encode()).digest()
    return int.from_bytes(digest[:8], "big") % _NUM_BUCKETS


def buckets_of(split: str) -> range:
    """Return the buckets of a split.

    Raises:
        DataError: there is no such split.
    """
    if split not in SPLITS:
        raise DataError(
            f"the feedback store has no split '{split}'; there are: {', '.join(SPLITS)}"
        )
    return SPLITS[split]


def _turn(message: Message) -> tuple[str, str]:
    return message["role"], content_text(message)
