"""Data for PPO: prompts to respond to."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

from lit_rlhf.batches import PromptBatch
from lit_rlhf.data.chat_template import render_prompt
from lit_rlhf.data.collation import PromptExample, collate_prompts, padding_id
from lit_rlhf.data.datamodule import TextDataModule, check_at_least
from lit_rlhf.data.sources import SourcedRecord
from lit_rlhf.data.token_cache import PROMPTS
from lit_rlhf.data.tokenization import tokenize_prompts
from lit_rlhf.errors import DataError
from lit_rlhf.feedback import parse_prompt

_log = logging.getLogger(__name__)


class PPODataModule(TextDataModule[PromptExample, PromptBatch]):
    """Prompts as `PromptBatch`; every further field of a row is handed to the reward source."""

    storage = PROMPTS
    preparation = ("template", "max_prompt_length", "overlong")

    def __init__(
        self,
        tokenizer: str,
        *,
        max_prompt_length: int = 512,
        overlong: Literal["error", "drop"] = "error",
        **kwargs: Any,  # passed on as they are; the config parser finds them there
    ) -> None:
        """Keep the settings; nothing is read before `setup`.

        Args:
            tokenizer: where the tokenizer is: a hub name, a Hugging Face folder or a checkpoint.
                On the command line it is the model's.
            max_prompt_length: most tokens in a prompt; responses come on top.
            overlong: what becomes of a longer prompt: "error" stops before training, "drop" leaves
                it out. It is never cut: that would make it another prompt.
            **kwargs: the settings of `TextDataModule`.

        Raises:
            ConfigError: a number is out of range.
        """
        super().__init__(tokenizer, **kwargs)
        check_at_least(1, max_prompt_length=max_prompt_length)
        self.max_prompt_length = max_prompt_length
        self.overlong: Literal["error", "drop"] = overlong

    def prepare(self, rows: Sequence[SourcedRecord]) -> list[PromptExample]:
        """Check and tokenise prompts; `prompt_id` is the row's place in the data set."""
        records = [parse_prompt(row, where) for row, where in rows]
        texts = [
            render_prompt(self.tokenizer, record.prompt, self.template, where)
            for record, (_, where) in zip(records, rows, strict=True)
        ]
        tokens = tokenize_prompts(self.tokenizer, texts)
        self._check_lengths(tokens, rows)
        return [
            PromptExample(ids, index, record.prompt, record.fields)
            for index, (ids, record) in enumerate(zip(tokens, records, strict=True))
            if len(ids) <= self._limit
        ]

    def collate(self, examples: Sequence[PromptExample]) -> PromptBatch:
        """Pad prompts to the longest."""
        return collate_prompts(examples, padding_id(self.tokenizer))

    def stand_in(self, example: PromptExample) -> PromptExample:
        """Return the prompt under the id -1, by which evaluation knows not to count it."""
        return example._replace(prompt_id=-1)

    def length(self, example: PromptExample) -> int:
        """Return the prompt's tokens."""
        return len(example.input_ids)

    @property
    def _limit(self) -> int:
        # A model that can look at as many tokens has no room for a response.
        most = self.max_prompt_length
        return most if self.context_length is None else min(most, self.context_length - 1)

    def _check_lengths(self, tokens: list[list[int]], rows: Sequence[SourcedRecord]) -> None:
        too_long = [i for i, ids in enumerate(tokens) if len(ids) > self._limit]
        if not too_long:
            return
        if self.overlong == "error":
            limit = f"max_prompt_length={self.max_prompt_length}"
            remedy = "Raise max_prompt_length"
            if self._limit < self.max_prompt_length:
                limit = f"the model's context of {self.context_length} tokens leaves for it"
                remedy = "Use a model with a longer context"
            raise DataError(
                f"{rows[too_long[0]].where}: the prompt has {len(tokens[too_long[0]])} tokens, "
                f"more than {limit} (as have {len(too_long)} of {len(rows)} prompts). {remedy}, or "
                "set 'overlong' to 'drop'."
            )
        _log.warning("%d of %d prompts are too long: left out", len(too_long), len(rows))
