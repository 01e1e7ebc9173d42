"""From text to rows of tokens, identically in every phase.

What a chat template writes is tokenised as one text, as transformers does; which tokens are
learned is told by the characters that they stand for. Of plain text prompt and response are
tokenised apart, so that a policy which continues a prompt meets the tokens it was trained on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from lit_rlhf.data.chat_template import (
    Piece,
    RenderedText,
    Renderer,
    warn_once,
)
from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.prompts import Prompt, Response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Overlong = Literal["error", "truncate", "drop"]
IntArray = np.ndarray[Any, np.dtype[np.integer[Any]]]
# Examples handed to the fast tokenizer at once: enough to keep its threads busy, while the offsets
# that it makes for each token do not fill the memory.
TEXTS_AT_ONCE = 256

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
    """Tokenise prompts, or prompts with their responses.

    Plain text starts with the BOS token where the tokenizer adds one by default; a chat template
    has written its own. A response ends with EOS, unless `append_eos` is False or a chat template
    ends it by another special token; the end counts, whether or not the padding token is the same.
    A response with nothing in front of it, or an empty prompt, gets the BOS token, or EOS if there
    is none, uncounted.

    Args:
        tokenizer: a fast one.
        texts: rendered prompts and responses.
        append_eos: end each example with EOS where the text does not.

    Returns:
        One row a text.

    Raises:
        ConfigError: the tokenizer lacks a special token that is needed.
        DataError: a slow tokenizer does not part a chat's text where a turn begins or ends.
    """
    leading = leading_tokens(tokenizer)
    rows = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        chunk = texts[start : start + TEXTS_AT_ONCE]
        # Each distinct text once: many rows share their prompt.
        unique = list(dict.fromkeys(piece.text for text in chunk for piece in text.pieces))
        encoded = _Encoded(tokenizer, unique)
        encoded.check_start(chunk[0].pieces[0])
        for text in chunk:
            row = _join(encoded, text, leading)
            if append_eos and text.takes_eos:
                row = _close(row, tokenizer.eos_token_id)
            rows.append(_start(row, tokenizer))
    return rows


def rows_for_reward(
    renderer: Renderer,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    places: Sequence[str],
) -> list[Row]:
    """Return what a reward model reads of `n` prompts and responses, see `Renderer.for_reward`."""
    records = zip(prompts, responses, places, strict=True)
    return tokenize_rows(renderer.tokenizer, [renderer.for_reward(*record) for record in records])


def tokenize_prompts(
    renderer: Renderer, prompts: Sequence[Prompt], places: Sequence[str]
) -> list[list[int]]:
    """Return the tokens of prompts to which a policy responds: at least one each.

    They are what `apply_chat_template` gives with `add_generation_prompt`.
    """
    texts = [renderer.prompt(*prompt) for prompt in zip(prompts, places, strict=True)]
    return [row.input_ids for row in tokenize_rows(renderer.tokenizer, texts)]


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


class _Encoded:
    """Texts as tokens, and where among them a character is."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
        self._tokenizer = tokenizer
        self._places = {text: place for place, text in enumerate(texts)}
        # verbose=False: the length limit is ours to check, with the row's place.
        self._encoding = tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        tokens: list[int] = self._encoding["input_ids"][self._places[text]]
        return tokens

    def mask(self, piece: Piece) -> list[bool]:
        """Return which tokens are learned: all that have a character of a learned span."""
        mask = [False] * len(self.ids(piece.text))
        for first, last in piece.learned:
            start, begins_before = self._find(piece.text, first)
            if begins_before:
                self._warn_of_start(piece)
            end, begins_before = self._find(piece.text, last)
            end += begins_before
            mask[start:end] = [True] * (end - start)
        return mask

    def check_start(self, piece: Piece) -> None:
        """Warn where a prompt alone has other tokens than in front of its response."""
        first = piece.learned[0][0] if piece.learned else 0
        prompt = self._tokenizer(piece.text[:first], add_special_tokens=False)["input_ids"]
        if self.ids(piece.text)[: len(prompt)] != list(prompt):
            self._warn_of_start(piece)

    def _warn_of_start(self, piece: Piece) -> None:
        first = piece.learned[0][0]
        warn_once(
            f"{self._tokenizer.name_or_path}: a prompt has other tokens in front of its response "
            "than alone, as at inference, because the tokenizer joins characters across the two: "
            f"...{piece.text[:first][-20:]!r} + {piece.text[first:][:20]!r}"
        )

    def _find(self, text: str, char: int) -> tuple[int, bool]:
        """Return the first token at a character or behind it, and whether it begins before it."""
        num_tokens = len(self.ids(text))
        if not 0 < char < len(text):
            return (num_tokens if char else 0), False
        if not self._tokenizer.is_fast:
            return self._find_slowly(text, char), False
        place = self._places[text]
        for behind in range(char, len(text)):  # white space may belong to no token
            token = self._encoding.char_to_token(place, behind)
            if token is not None:
                return token, self._encoding.token_to_chars(place, token).start < char
        return num_tokens, False

    def _find_slowly(self, text: str, char: int) -> int:
        """Find a token by what stands before it; a slow tokenizer gives no characters."""
        ids = self.ids(text)
        before = self._tokenizer(text[:char], add_special_tokens=False)["input_ids"]
        if len(before) == len(ids) or ids[: len(before)] != list(before):
            raise DataError(
                f"the slow tokenizer {self._tokenizer.name_or_path} joins a prompt with its "
                f"response: ...{text[:char][-40:]!r}. Use a fast tokenizer."
            )
        return len(before)


def _join(encoded: _Encoded, text: RenderedText, leading: list[int]) -> Row:
    """Return the tokens of all pieces, behind the leading ones that a plain text needs."""
    row = Row([], [])
    for piece in text.pieces:
        row.input_ids.extend(encoded.ids(piece.text))
        row.response_mask.extend(encoded.mask(piece))
    if text.is_chat or row.input_ids[: len(leading)] == leading:
        return row
    return Row([*leading, *row.input_ids], [False] * len(leading) + row.response_mask)


def _start(row: Row, tokenizer: PreTrainedTokenizerBase) -> Row:
    """Begin a row with a token that is not learned: nothing would predict it."""
    if row.response_mask and not row.response_mask[0]:
        return row
    if row.input_ids[:1] == [tokenizer.bos_token_id] and len(row.input_ids) > 1:  # written by hand
        return Row(row.input_ids, [False, *row.response_mask[1:]])
    return Row([start_token(tokenizer), *row.input_ids], [False, *row.response_mask])


def _close(row: Row, eos: int | None) -> Row:
    """End a row with EOS where its last learned token is not that."""
    learned = [place for place, counts in enumerate(row.response_mask) if counts]
    if learned and row.input_ids[learned[-1]] == eos:
        return row
    if eos is None:
        raise ConfigError(
            "The tokenizer has no EOS token to end responses with: set one in the tokenizer, or "
            "set 'append_eos' to false."
        )
    size = learned[-1] + 1 if learned else len(row.input_ids)
    return Row([*row.input_ids[:size], eos], [*row.response_mask[:size], True])
