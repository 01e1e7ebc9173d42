"""Data for PPO: prompts to respond to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lit_rlhf.batches import PromptBatch, TokenRows
from lit_rlhf.data.chat_template import warn_once
from lit_rlhf.data.collation import GroupExample, PromptExample, collate_prompts, padding_id
from lit_rlhf.data.datamodule import TextDataModule
from lit_rlhf.data.loading import Dealer, endless_batch
from lit_rlhf.data.records import Records, SourcedRecord
from lit_rlhf.data.sft import SFTDataModule
from lit_rlhf.data.sources import TokenizerSource
from lit_rlhf.data.tokenization import LengthLimit, Row, tokenize_prompts
from lit_rlhf.errors import ConfigError
from lit_rlhf.feedback import parse_prompt
from lit_rlhf.feedback.records import PromptRecord
from lit_rlhf.prompts import Prompt
from lit_rlhf.ranges import require


class PPODataModule(TextDataModule[PromptExample, PromptBatch]):
    """Prompts as `PromptBatch`; every further field of a row is handed to the reward source."""

    def __init__(
        self,
        tokenizer: TokenizerSource,
        *,
        max_prompt_length: int = 512,
        overlong: Literal["error", "drop"] = "error",
        pretraining: str | list[str] | None = None,
        pretraining_batch_size: int | None = None,
        **kwargs: Any,  # passed on as they are; the config parser finds them there
    ) -> None:
        """Keep the settings; nothing is read before `setup`.

        Args:
            tokenizer: where the tokenizer is: a hub name or a Hugging Face folder; in Python also
                a tokenizer. On the command line it is the model's.
            max_prompt_length: most tokens in a prompt; responses come on top.
            overlong: what becomes of a longer prompt: "error" stops before training, "drop" leaves
                it out. It is never cut: that would make it another prompt.
            pretraining: rows that the policy learns beside the rewards (PPO-ptx), like `train` of
                the SFT phase: demonstrations, or texts under `text`; cut at 1,024 tokens.
            pretraining_batch_size: of these, rows in one optimizer step, over all processes; as
                `batch_size` if null.
            **kwargs: the settings of `TextDataModule`.

        Raises:
            ConfigError: a number is out of range.
        """
        super().__init__(tokenizer, **kwargs)
        require("data.max_prompt_length", max_prompt_length, least=1)
        require("data.pretraining_batch_size", pretraining_batch_size, least=1, is_optional=True)
        if pretraining_batch_size is not None and pretraining is None:
            raise ConfigError(
                "data.pretraining_batch_size has no effect without data.pretraining: set that, or "
                "leave it out"
            )
        self.pretraining = pretraining
        self._pretraining_batch_size = pretraining_batch_size or self.batch_size
        self._mixed: SFTDataModule | None = None
        self.max_prompt_length = max_prompt_length
        self.overlong: Literal["error", "drop"] = overlong

    def setup(self, stage: str) -> None:
        """Read what a stage needs, and for training the rows of `pretraining`."""
        super().setup(stage)
        if stage == "fit" and self.pretraining is not None and self._mixed is None:
            self._mixed = SFTDataModule(
                self.tokenizer_source,
                train=self.pretraining,
                batch_size=self._pretraining_batch_size,
                overlong="truncate",
                **self.reading_settings(),
            )
            self._mixed.trainer = self.trainer
            self._mixed.setup("fit")

    @property
    def provenance(self) -> dict[str, dict[str, Any]]:
        """Where the data that were read came from, those of `pretraining` among them."""
        mixed = {} if self._mixed is None else {"pretraining": self._mixed.provenance["train"]}
        return super().provenance | mixed

    def pretraining_rows(self, number: int, rank: int, world_size: int) -> TokenRows:
        """Return this process's rows of `pretraining` for an optimizer step; maybe a stand-in.

        Args:
            number: of the step; with `seed` it names the rows.
            rank: this process.
            world_size: number of processes.
        """
        assert self._mixed is not None, "the caller checks that there is data.pretraining"
        examples = self._mixed.prepared("train")
        size, seed = self._pretraining_batch_size, self.seed
        batch = endless_batch(number, num_examples=len(examples), batch_size=size, seed=seed)
        return Dealer(examples, self._mixed.collate, self._mixed.stand_in, rank, world_size)(batch)

    def parse(self, record: SourcedRecord) -> PromptRecord:
        """Read a prompt with its further fields."""
        return parse_prompt(*record)

    def prepare(self, records: Sequence[SourcedRecord]) -> list[GroupExample]:
        """Check and tokenise prompts."""
        prompts = [self.parse(record).prompt for record in records]
        if self.template == "auto":
            for prompt, (row, _) in zip(prompts, records, strict=True):
                _tell_if_plain(prompt, row)
        tokens = tokenize_prompts(self.renderer, prompts, [where for _, where in records])
        return [GroupExample((Row(ids, [False] * len(ids)),), ()) for ids in tokens]

    def example(self, records: Records, index: int, group: GroupExample) -> PromptExample:
        """Return the prompt; `prompt_id` is the record's place in the data set."""
        parsed = self.parse(records[index])
        return PromptExample(group.rows[0].input_ids, index, parsed.prompt, parsed.fields)

    def collate(self, examples: Sequence[PromptExample]) -> PromptBatch:
        """Pad prompts to the longest."""
        return collate_prompts(examples, padding_id(self.tokenizer))

    def stand_in(self, example: PromptExample) -> PromptExample:
        """Return the prompt under the id -1, by which evaluation knows not to count it."""
        return example._replace(prompt_id=-1)

    def length_limit(self) -> LengthLimit:
        """Return the most tokens of a prompt, which leave room for a response."""
        name, remedy = f"max_prompt_length={self.max_prompt_length}", "Raise max_prompt_length"
        most = self.max_prompt_length
        if self.context_length is not None and self.context_length <= most:
            most = self.context_length - 1
            name = f"the model's context of {self.context_length} tokens leaves for it"
            remedy = "Use a model with a longer context"
        remedy += ", or set 'overlong' to 'drop'."
        return LengthLimit(most, name, remedy, subject="the prompt ", noun="prompts")


def _tell_if_plain(prompt: Prompt, row: Mapping[str, Any]) -> None:
    """Warn of a text that is continued as it is, although chats stand beside it."""
    for field in ("chosen", "messages"):
        turns = row.get(field)
        has_chat = isinstance(turns, list) and bool(turns) and isinstance(turns[0], Mapping)
        if isinstance(prompt, str) and has_chat:
            warn_once(
                f"prompts are texts that the policy goes on with as they are, but '{field}' beside "
                "them has chats: if the policy answers chats, set data.template to chat"
            )
