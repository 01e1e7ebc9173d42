"""Data with responses: what SFT, the reward model and DPO share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from lit_rlhf.data.chat_template import is_learned
from lit_rlhf.data.collation import GroupExample
from lit_rlhf.data.datamodule import TextDataModule
from lit_rlhf.data.loading import Batch
from lit_rlhf.data.records import Records
from lit_rlhf.data.sources import TokenizerSource
from lit_rlhf.data.tokenization import LengthLimit, Overlong, limit_of_rows
from lit_rlhf.errors import DataError
from lit_rlhf.prompts import Response, as_messages, response_text
from lit_rlhf.ranges import require

EmptyResponses = Literal["error", "keep"]


class ResponseDataModule(TextDataModule[GroupExample, Batch]):
    """Data with responses: a row is a prompt and its response."""

    preparation = (*TextDataModule.preparation, "append_eos", "empty_responses")

    def __init__(
        self,
        tokenizer: TokenizerSource,
        *,
        max_length: int = 1024,
        overlong: Overlong = "error",
        append_eos: bool = True,
        empty_responses: EmptyResponses = "error",
        **kwargs: Any,  # passed on as they are; the config parser finds them there
    ) -> None:
        """Keep the settings; nothing is read before `setup`.

        Args:
            tokenizer: where the tokenizer is: a hub name or a Hugging Face folder; in Python also
                a tokenizer. On the command line it is the model's.
            max_length: most tokens in a row, prompt and response.
            overlong: what becomes of a longer row: "error" stops before training; "truncate" cuts
                the response's end, and its EOS with it; "drop" leaves the row out, and of
                comparisons the whole group.
            append_eos: end each response with the EOS token, where its text does not.
            empty_responses: what becomes of a response without text: "error" stops before training;
                "keep" takes it as it is, its EOS alone.
            **kwargs: the settings of `TextDataModule`.

        Raises:
            ConfigError: a number is out of range.
        """
        super().__init__(tokenizer, **kwargs)
        require("data.max_length", max_length, least=2)
        self.max_length = max_length
        self.overlong: Overlong = overlong
        self.append_eos = append_eos
        self.empty_responses: EmptyResponses = empty_responses

    def example(self, records: Records, index: int, group: GroupExample) -> GroupExample:
        """Return the rows as they are."""
        return group

    def stand_in(self, example: GroupExample) -> GroupExample:
        """Return the rows with nothing that counts, and no pairs."""
        return example.silenced()

    def length_limit(self) -> LengthLimit:
        """Return the most tokens of prompt and response."""
        return limit_of_rows(self.max_length, self.context_length)

    def prediction_reader(self) -> TextDataModule[Any, Any]:
        """Return the reader of prompts."""
        from lit_rlhf.data.predicting import prompts_of  # noqa: PLC0415 - it reads PPO's data

        return prompts_of(self)

    def refuse_empty(self, responses: Iterable[Response], where: str) -> None:
        """Raise a DataError for a response of white space alone, calling no tool, unless kept."""
        turns = (turn for response in responses for turn in as_messages(response, "assistant"))
        texts = [response_text((turn,)) for turn in turns if is_learned(turn)]
        for response in texts:
            if self.empty_responses == "error" and not response.strip():
                raise DataError(
                    f"{where}: a response has no text ({response!r}). Leave the row out, or set "
                    "data.empty_responses to 'keep' if ending at once is what the row shows."
                )
