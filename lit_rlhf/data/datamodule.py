"""What the four data modules share: sources for each stage, the tokenizer, and the loaders.

A phase's data module says how rows become examples and examples a batch; all else is here.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, get_args

from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from lit_rlhf.data.chat_template import Renderer, Template, Thinking
from lit_rlhf.data.collation import GroupExample
from lit_rlhf.data.given_rows import is_given, without_paths
from lit_rlhf.data.loading import (
    Batch,
    Dealer,
    EvaluationLoader,
    Example,
    LastBatch,
    TrainingLoader,
)
from lit_rlhf.data.preparation import read_examples
from lit_rlhf.data.records import Records, SourcedRecord
from lit_rlhf.data.sources import RowSource, TokenizerSource, open_records, source_name
from lit_rlhf.data.tables import (
    BadRows,
    Examples,
    TokenTable,
    digest_tokenizer,
)
from lit_rlhf.data.tokenization import LengthLimit, Overlong
from lit_rlhf.errors import ConfigError
from lit_rlhf.feedback.formats import check_format
from lit_rlhf.feedback.meant_fields import Kind
from lit_rlhf.ranges import require
from lit_rlhf.ranks import of_all_ranks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# By which two data modules read their rows alike.
_OF_READING = ("template", "template_options", "thinking", "bad_rows", "num_proc", "streaming")
SOURCES_OF_STAGE = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
}


class TextDataModule(LightningDataModule, abc.ABC, Generic[Example, Batch]):
    """Data that is read, checked and tokenised before a stage begins, and kept on the disk.

    One process does this, and all of them read the examples from its memory-mapped files. The
    loaders deal out the global batches: use it with `Trainer(use_distributed_sampler=False)`.

    Attributes:
        tokenizer: the loaded one, from `setup` on.
        renderer: how prompts and responses become text, from `setup` on.
        context_length: tokens that the tokenizer's model can look at, from `setup` on; None where
            it does not say.
        preparation: the settings that `prepare` depends on: a new one gives other tokens.
        overlong: what becomes of a row that is too long.
        kind: of the records, which says what fields they use.
    """

    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    preparation: ClassVar[tuple[str, ...]] = (
        "template",
        "template_options",
        "thinking",
        "format",
        "columns",
        "bad_rows",
        "id_field",
    )
    kind: ClassVar[Kind] = "prompt"
    overlong: Overlong

    def __init__(  # noqa: PLR0913 - settings, given by keyword
        self,
        tokenizer: TokenizerSource,
        *,
        train: RowSource | None = None,
        validation: RowSource | None = None,
        test: RowSource | None = None,
        predict: RowSource | None = None,
        template: Template = "auto",
        template_options: dict[str, Any] | None = None,
        thinking: Thinking = "keep",
        format: str = "auto",
        columns: dict[str, str] | None = None,
        bad_rows: BadRows = "refuse",
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        seed: int = 0,
        last_batch: LastBatch = "drop",
        limit_train: int | None = None,
        limit_validation: int | None = None,
        id_field: str | None = "id",
        num_proc: int | None = None,
        streaming: bool = False,
        eval_batch_tokens: int | None = None,
    ) -> None:
        """Keep the settings; nothing is read before `setup`.

        Args:
            tokenizer: where the tokenizer is: a hub name or a Hugging Face folder; in Python also
                a tokenizer. On the command line it is the model's.
            train: training data: a file (JSON lines, JSON, CSV or Parquet), a pattern such as
                `data/*.jsonl`, or a list of these; a Hugging Face data set folder or a hub name,
                with `:CONFIGURATION` and `#SPLIT` behind it where another one than `train` is
                meant. In Python also the rows: a list of dictionaries, or a `datasets.Dataset`.
            validation: validation data, likewise. Fitting works without.
            test: test data, likewise.
            predict: data for `predict`, likewise: prompts to respond to, or of the reward phase
                responses to score, in rows of any kind.
            template: how prompts become text. "auto" applies the tokenizer's chat template to
                chats and takes texts as they are; "chat" makes a text a message of the user;
                "plain" takes texts as they are and refuses chats.
            template_options: variables for the chat template, such as `enable_thinking: false`.
            thinking: "drop" takes the assistant's thinking (`<think>...</think>` or the key
                `reasoning_content`) out of chats; "keep" leaves it to the template, except that
                the thinking of a learned turn is always learned.
            format: the shape of the rows, such as "hh", "sharegpt" or "ultrafeedback"; "auto" finds
                it by their keys. docs/data.md lists the names.
            columns: our field name -> its name in the data, where that differs.
            bad_rows: what becomes of a row that cannot be read or contradicts itself: "refuse" ends
                before training with its place, "skip" leaves it out and says how many there were.
            batch_size: examples in one optimizer step, over all processes; of comparisons, judged
                groups. A multiple of the number of processes.
            eval_batch_size: the same for validation and testing; as `batch_size` if null.
            seed: with the epoch, sets the order of the training examples.
            last_batch: what becomes of the training examples that do not fill the last batch of an
                epoch: "drop" leaves them out of it, others in each epoch; "keep" makes a short
                batch of them.
            limit_train: use only the first so many rows of the training data.
            limit_validation: use only the first so many rows of the validation data.
            id_field: a field that names a row where it is there: two rows of one name are an error.
                Null: names may repeat.
            num_proc: processes that tokenise; null for one a core, at most 8, and for one alone
                where there are less than 10,000 records.
            streaming: read hub names and folders of files as a stream, onto the disk as they come.
                With `limit_train`, only so many records are fetched, before a `subset` is drawn.
            eval_batch_tokens: tokens of a process's share of a batch at most, in validation and
                testing: as many as its examples times the longest row of them. Null for any number.

        Raises:
            ConfigError: a number is out of range.
        """
        super().__init__()
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        require("data.batch_size", batch_size, least=1)
        require("data.eval_batch_size", eval_batch_size, least=1)
        require("data.eval_batch_tokens", eval_batch_tokens, least=1, is_optional=True)
        require("data.limit_train", limit_train, least=1, is_optional=True)
        require("data.limit_validation", limit_validation, least=1, is_optional=True)
        require("data.num_proc", num_proc, least=1, is_optional=True)
        require("data.seed", seed, least=0)
        choices = (("last_batch", last_batch, LastBatch), ("bad_rows", bad_rows, BadRows))
        for name, value, known in choices:
            if value not in get_args(known):
                raise ConfigError(f"data.{name}={value}: must be {' or '.join(get_args(known))}.")
        check_format(format)
        self.format = format
        self.bad_rows: BadRows = bad_rows
        self.template: Template = template
        self.template_options = template_options
        self.thinking: Thinking = thinking
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.eval_batch_tokens = eval_batch_tokens
        self.seed = seed
        self.last_batch: LastBatch = last_batch
        self.id_field = id_field
        self.num_proc = num_proc
        self.streaming = streaming
        self.context_length: int | None = None
        self.tokenizer_source = without_paths(tokenizer)
        self.tokenizer_digest = ""
        sources = {"train": train, "validation": validation, "test": test, "predict": predict}
        self.sources = {name: without_paths(source) for name, source in sources.items()}
        self.limits = {"train": limit_train, "validation": limit_validation}
        self.columns = columns
        self._reader: TextDataModule[Any, Any] | None = None
        self._examples: dict[str, Examples[Example]] = {}
        self._provenance: dict[str, dict[str, Any]] = {}
        self._train_loader: TrainingLoader[Example, Batch] | None = None

    @abc.abstractmethod
    def prepare(self, records: Sequence[SourcedRecord]) -> list[GroupExample]:
        """Check and tokenise some records; raise a DataError at the first one that is wrong.

        It may be called in other processes. Return the rows of each record, whole: the limit comes
        later.
        """

    @abc.abstractmethod
    def example(self, records: Records, index: int, group: GroupExample) -> Example:
        """Return the example of the record at an index, of which `group` has the tokens."""

    @abc.abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """Make a batch of one example or more."""

    @abc.abstractmethod
    def stand_in(self, example: Example) -> Example:
        """Return the example with nothing in it that counts."""

    @abc.abstractmethod
    def length_limit(self) -> LengthLimit:
        """Return the most tokens that a row may have."""

    def completed(self, examples: TokenTable[Example], source: str) -> Examples[Example]:
        """Return the examples that are used, once all of a source are known: these, by default."""
        return examples

    @property
    def used_fields(self) -> tuple[str, ...]:
        """The fields, beside those that all records of the kind use, that settings make use of."""
        return ()

    def choose(self, name: str, records: Records) -> Records:
        """Return the records of "train", "validation" or "test" that are used: all, by default."""
        return records

    def prediction_reader(self) -> TextDataModule[Any, Any]:
        """Return what reads the data of `predict`: this data module, or another one."""
        return self

    def setup(self, stage: str) -> None:
        """Read, check and tokenise what a stage needs, once.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Raises:
            ConfigError: the stage has no data.
            DataError: a source or a row is not as expected.
        """
        self._train_loader = None
        if stage == "predict" and self.sources["predict"] is not None:
            self._reader = self.prediction_reader()
            if self._reader is not self:
                self.load_tokenizer()
                self._reader.trainer = self.trainer
                self._reader.setup(stage)
                return
        for name in SOURCES_OF_STAGE.get(stage, ()):
            source = self.sources[name]
            if (stage, name, source) == ("fit", "validation", None):
                # "No validation" to Lightning, which warns of a loader without batches.
                self.val_dataloader = None  # type: ignore[method-assign, assignment] # see above
            elif source is None:
                raise ConfigError(
                    f"'{TrainerFn(stage).value}' needs data: set 'data.{name}' to a file, a folder "
                    f"or a hub name (on the command line: --data.{name} FILE)."
                )
            elif name not in self._examples:
                self._examples[name] = self._read(name)

    def prepared(self, name: str) -> Sequence[Example]:
        """Return the examples of "train" or another source; none where it is not set up."""
        return self._examples.get(name, ())

    def longest(self, name: str) -> int:
        """Return the tokens of the longest row of "train" or another source, or 0."""
        reader = self._reader if name == "predict" and self._reader is not None else self
        return int(reader._examples[name].lengths.max()) if name in reader._examples else 0

    @property
    def provenance(self) -> dict[str, dict[str, Any]]:
        """Where the data that were read came from.

        "train", "validation" or "test" -> `source`; `sha256` of the file, as `sha256sum` gives
        it, or of a data set's columns; `rows`, the number of records that are used.
        """
        return self._provenance

    def train_dataloader(self) -> TrainingLoader[Example, Batch]:
        """Return the training loader: the same one until the next `setup`."""
        if self._train_loader is None:
            self._train_loader = TrainingLoader(
                self._dealer("train"),
                batch_size=self.batch_size,
                seed=self.seed,
                last_batch=self.last_batch,
            )
            self._overfit(self._train_loader)
            if num_left_out := self._train_loader.num_left_out:
                rank_zero_info(
                    f"{num_left_out} of {len(self._examples['train'])} training examples do not "
                    f"fill a batch of {self.batch_size} and are left out of the epoch, others in "
                    "each; data.last_batch keep trains on them as well"
                )
        return self._train_loader

    def _overfit(self, loader: TrainingLoader[Example, Batch]) -> None:
        """Repeat the batches that `trainer.overfit_batches` asks for, a number or a share."""
        trainer: Any = self.trainer  # Lightning sets the attribute
        overfit = 0 if trainer is None else trainer.overfit_batches
        if overfit:
            is_share = isinstance(overfit, float)
            num_batches = int(len(loader) * overfit) if is_share else int(overfit)
            loader.repeat_first(min(num_batches, len(loader)))

    def state_dict(self) -> dict[str, dict[str, int]]:
        """Return the position in the training data.

        Lightning saves the loader's state by itself as well, but does not load it from a
        checkpoint that was written at the end of an epoch, after which the first epoch's order
        would come again. So the position travels here.
        """
        return {} if self._train_loader is None else {"train": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, dict[str, int]]) -> None:
        """Go to a saved position in the training data; called after `setup`.

        Raises:
            CheckpointError: it was saved for other data, batches or order.
        """
        if "train" in state_dict and "train" in self._examples:
            self.train_dataloader().load_state_dict(state_dict["train"])

    def val_dataloader(self) -> EvaluationLoader[Example, Batch]:
        """Return the validation loader."""
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> EvaluationLoader[Example, Batch]:
        """Return the test loader."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> EvaluationLoader[Any, Any]:
        """Return the loader of what `predict` reads."""
        assert self._reader is not None  # `setup` has set it
        return self._reader._evaluation_loader("predict")

    def _evaluation_loader(self, name: str) -> EvaluationLoader[Example, Batch]:
        return EvaluationLoader(
            self._dealer(name),
            batch_size=self.eval_batch_size,
            batch_tokens=self.eval_batch_tokens,
            lengths=self._examples[name].lengths,
        )

    def _dealer(self, name: str) -> Dealer[Example, Batch]:
        trainer = self.trainer
        place = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        return Dealer(self._examples[name], self.collate, self.stand_in, *place)

    def open(self, name: str) -> Records:
        """Open the records of "train", "validation" or "test" that are used.

        Raises:
            DataError: the source cannot be opened.
        """
        source = self.sources[name]
        assert source is not None  # `setup` has checked it
        limit = self.limits.get(name)
        records = open_records(
            source,
            split=name,
            columns=self.columns,
            streaming=self.streaming,
            limit=limit,
            shape=self.format,
        )
        records = self.choose(name, records)
        return records if limit is None else records.select(range(min(limit, len(records))))

    def _read(self, name: str) -> Examples[Example]:
        self.load_tokenizer()
        records, source = self.open(name), self.sources[name]
        self._require_same(name, records.sha256)
        self._provenance[name] = {
            "source": source_name(source) if is_given(source) else source,
            "sha256": records.sha256,
            "rows": len(records),
            **records.facts,
        }
        worker = copy.copy(self)  # others need neither trainer nor data
        worker.trainer, worker._examples, worker.sources, worker._reader = None, {}, {}, None
        examples = read_examples(self, name, records, worker)
        return self.completed(examples, source_name(source))

    def _require_same(self, name: str, sha256: str) -> None:
        """Refuse rows that are not the same on all processes, each of which reads its share."""
        if self.trainer is not None and len(set(of_all_ranks(sha256))) > 1:
            raise ConfigError(
                f"data.{name}: the processes have different rows: shuffle and choose rows behind "
                "seed_everything(...), and give all processes the same files"
            )

    def reading_settings(self) -> dict[str, Any]:
        """Return the settings by which another data module reads its rows as this one does."""
        return {name: getattr(self, name) for name in _OF_READING}

    def load_tokenizer(self) -> None:
        """Load the tokenizer, once; `setup` does it."""
        if "tokenizer" not in self.__dict__:
            # Late, so that --help and configuration errors do not wait for it.
            from lit_rlhf.models.handover import context_length, load_tokenizer  # noqa: PLC0415

            self.tokenizer = load_tokenizer(self.tokenizer_source)
            options = self.template_options or {}
            self.renderer = Renderer(self.tokenizer, self.template, options, self.thinking)
            self.tokenizer_digest = digest_tokenizer(self.tokenizer)
            self.context_length = context_length(self.tokenizer_source)

    def shares_tokenizer(self, source: str) -> bool:
        """Tell whether a model of this source is to use this module's tokenizer."""
        return self.tokenizer_source == source or not isinstance(self.tokenizer_source, str)
