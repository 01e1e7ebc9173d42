"""From text to rows of tokens, identically in every phase.

Prompt and response are tokenised apart and joined, so the boundary is known by construction, and
a policy that writes after a prompt meets the very tokens that it was trained on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from lit_rlhf.data.chat_template import RenderedText, Template, render_for_reward
from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Overlong = Literal["error", "truncate", "drop"]
IntArray = np.ndarray[Any, np.dtype[np.integer[Any]]]
# Texts handed to the fast tokenizer at once: enough to keep its threads busy, while the offsets
# that it makes for each token do not fill the memory.
TEXTS_AT_ONCE = 1024

_log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One example as tokens, without padding.

    Attributes:
        input_ids: the tokens of prompt and response.
        response_mask: as long; True at the tokens that count. Never True at position 0, where
            there is nothing that could predict the token.
    """

    input_ids: list[int]
    response_mask: list[bool]


def tokenize_rows(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[RenderedText],
    *,
    append_eos: bool = True,
) -> list[Row]:
    """Tokenise prompts with their responses.

    Plain text starts with the BOS token where the tokenizer adds one by default; a chat template
    has written its own. The last response ends with exactly one EOS, unless `append_eos` is
    False; it counts, whether or not the padding token is the same. Before a response that has
    nothing in front of it gets the BOS token, or EOS if there is none, uncounted.

    Args:
        tokenizer: a fast one, for speed; any works.
        texts: rendered prompts and responses.
        append_eos: end each example with EOS where the text does not.

    Returns:
        One row a text.

    Raises:
        ConfigError: the tokenizer lacks a special token that is needed.
    """
    ids = _tokenize_unique(tokenizer, (part for text in texts for part in _parts(text)))
    leading = leading_tokens(tokenizer)
    return [_join(tokenizer, text, ids, leading=leading, append_eos=append_eos) for text in texts]


def rows_for_reward(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    template: Template,
    places: Sequence[str],
) -> list[Row]:
    """Return what a reward model reads of `n` prompts and responses, see `render_for_reward`."""
    records = zip(prompts, responses, places, strict=True)
    texts = [render_for_reward(tokenizer, p, r, template, where) for p, r, where in records]
    return tokenize_rows(tokenizer, texts)


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[RenderedText]
) -> list[list[int]]:
    """Tokenise prompts to which a policy responds: at least one token each.

    They are the very tokens before the response in `tokenize_rows`.
    """
    ids = _tokenize_unique(tokenizer, (piece.text for text in texts for piece in text.pieces))
    leading = leading_tokens(tokenizer)
    prompts = []
    for text in texts:
        tokens = _opening(text, ids, leading)
        for piece in text.pieces:
            tokens += ids[piece.text]
        prompts.append(tokens or [start_token(tokenizer)])
    return prompts


def leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what the tokenizer puts before a text by default: its BOS token, or nothing.

    Tokens that it would put after a text (EOS, a separator) are not asked for: they would stand
    between prompt and response.
    """
    bos = tokenizer.bos_token_id
    by_default = list(tokenizer("a")["input_ids"])
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    return [bos] if bos is not None and by_default[:1] == [bos] and bare[:1] != [bos] else []


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token before the first one of a text: BOS, or EOS where there is no BOS."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ConfigError(
        "An empty prompt needs a token in front of the response, and the tokenizer has neither a "
        "BOS nor an EOS token: set one of them in the tokenizer."
    )


class LengthLimit(NamedTuple):
    """The most tokens that a row may have, and what an error says about it.

    Attributes:
        tokens: the limit.
        name: of the setting or the model's property that it comes from.
        remedy: what to do about a longer row.
        subject: of the message, where it is not the row itself.
        noun: what the rows are called.
    """

    tokens: int
    name: str
    remedy: str
    subject: str = ""
    noun: str = "rows"

    def find_longer(
        self, lengths: IntArray, overlong: Overlong, place: Callable[[int], str]
    ) -> IntArray:
        """Return the indices of the rows that are too long, and log how many there are.

        Args:
            lengths: tokens of each row.
            overlong: what becomes of a longer row; "error" raises.
            place: index of a row -> where it came from.

        Raises:
            DataError: a row is too long and `overlong` is "error".
        """
        too_long = np.flatnonzero(lengths > self.tokens)
        if len(too_long) and overlong == "error":
            first = int(too_long[0])
            raise DataError(
                f"{place(first)}: {self.subject}has {lengths[first]} tokens, more than {self.name} "
                f"(as have {len(too_long)} of {len(lengths)} {self.noun}). {self.remedy}"
            )
        if len(too_long):
            counts = (len(too_long), len(lengths), self.noun, self.tokens)
            word = "left out" if overlong == "drop" else "cut"
            _log.warning("%d of %d %s exceed %d tokens: %s", *counts, word)
        return too_long

    def cut(self, row: Row, where: str) -> Row:
        """Return the beginning of a row; raise a DataError where it has no response token."""
        cut = Row(row.input_ids[: self.tokens], row.response_mask[: self.tokens])
        if not any(cut.response_mask):
            raise DataError(
                f"{where}: the prompt alone fills {self.name}, so that truncation leaves no "
                "response token. Shorten the prompt, raise the limit, or set 'overlong' to 'drop'."
            )
        return cut


def limit_of_rows(max_length: int, context_length: int | None) -> LengthLimit:
    """Return the lower of two limits: the setting `max_length`, and what the model can see."""
    if context_length is not None and context_length < max_length:
        name = f"the model's context of {context_length} tokens"
        remedy = "Set 'overlong' to 'truncate' or 'drop', or use a model with a longer context."
        return LengthLimit(context_length, name, remedy)
    remedy = "Raise max_length, or set 'overlong' to 'truncate' or 'drop'."
    return LengthLimit(max_length, f"max_length={max_length}", remedy)


def fit_length(
    rows: Sequence[Row],
    places: Sequence[str],
    *,
    max_length: int,
    overlong: Overlong,
    context_length: int | None = None,
) -> list[Row | None]:
    """Apply the length limit to rows.

    Args:
        rows: the rows.
        places: where each row came from, as long as `rows`.
        max_length: most tokens in a row, prompt and response.
        overlong: what becomes of a longer row: "error" raises; "truncate" cuts its end, so that
            a cut response has no EOS; "drop" puts None in its place.
        context_length: tokens that the model can look at: a lower limit where it is lower.

    Returns:
        As many entries as rows.

    Raises:
        DataError: a row is too long and `overlong` is "error", or is "truncate" and no response
            token is left before `max_length`.
    """
    limit = limit_of_rows(max_length, context_length)
    lengths = np.array([len(row.input_ids) for row in rows], dtype=np.int64)
    fitted: list[Row | None] = list(rows)
    for i in limit.find_longer(lengths, overlong, places.__getitem__):
        fitted[i] = None if overlong == "drop" else limit.cut(rows[i], places[i])
    return fitted


def _join(
    tokenizer: PreTrainedTokenizerBase,
    text: RenderedText,
    ids: Mapping[str, list[int]],
    *,
    leading: list[int],
    append_eos: bool,
) -> Row:
    if text.is_whole:
        prompt, whole = (ids[part] for part in _parts(text))
        # A token that spans the boundary belongs to the response.
        shared = takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False))
        start = sum(1 for _ in shared)
        return Row(whole, [index >= start for index in range(len(whole))])
    tokens = _opening(text, ids, leading)
    mask = [False] * len(tokens)
    for piece in text.pieces:
        tokens += ids[piece.text]
        mask += [piece.is_response] * len(ids[piece.text])
    if append_eos and (not mask or not mask[-1] or tokens[-1] != tokenizer.eos_token_id):
        tokens.append(_eos_token(tokenizer))
        mask.append(True)
    if not mask or mask[0]:
        tokens.insert(0, start_token(tokenizer))
        mask.insert(0, False)
    return Row(tokens, mask)


def _parts(text: RenderedText) -> list[str]:
    """Return the texts that are tokenised: the pieces, or the prompt and the whole text."""
    parts = [piece.text for piece in text.pieces]
    return [parts[0], "".join(parts)] if text.is_whole else parts


def _opening(text: RenderedText, ids: Mapping[str, list[int]], leading: list[int]) -> list[int]:
    """Return the leading tokens that this text still needs: none where it brings its own."""
    first = ids[text.pieces[0].text]
    return [] if text.is_chat or first[: len(leading)] == leading else list(leading)


def _eos_token(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "The tokenizer has no EOS token to end responses with: set one in the tokenizer, or "
            "set 'append_eos' to false."
        )
    return int(tokenizer.eos_token_id)


def _tokenize_unique(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]
) -> dict[str, list[int]]:
    """Tokenise each distinct text once: many rows share their prompt."""
    unique = list(dict.fromkeys(texts))
    ids: dict[str, list[int]] = {}
    for start in range(0, len(unique), TEXTS_AT_ONCE):
        chunk = unique[start : start + TEXTS_AT_ONCE]
        # verbose=False: the length limit is ours to check, with the row's place.
        encoded = tokenizer(
            chunk, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        ids.update(zip(chunk, encoded["input_ids"], strict=True))
    return ids
