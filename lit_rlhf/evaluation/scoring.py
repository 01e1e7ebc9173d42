"""Judges that give each response a score: reward models and Python functions."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lit_rlhf.data.chat_template import Template, render_response
from lit_rlhf.data.collation import collate_rows, padding_id
from lit_rlhf.data.tokenization import Row, fit_length, tokenize_rows
from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.evaluation.responses import SourcedPrompt, prompt_text
from lit_rlhf.evaluation.statistics import Floats
from lit_rlhf.models import freeze, load_reward_model, load_tokenizer
from lit_rlhf.modules.precision import Precision, autocast
from lit_rlhf.rewards import FunctionReward

BATCH_ROWS = 64


class Scorer(abc.ABC):
    """Gives a score to each response, whoever it is compared with."""

    @abc.abstractmethod
    def score(self, prompts: Sequence[SourcedPrompt], texts: Sequence[str]) -> Floats:
        """Return `[n]` scores of `n` responses to `n` prompts; higher is better."""


@dataclass(frozen=True)
class RewardModelScorer(Scorer):
    """A reward model, tokenised as for its training.

    Attributes:
        model: a reward checkpoint or a sequence-classification folder.
        template: how prompts become text, see the data modules.
        max_length: tokens of prompt and response; what is longer is cut, and counted.
        precision: of the forward.
        normalize: scores with mean 0 and deviation 1 on the reference policy's samples where the
            model has a normaliser; False leaves them raw: a difference is the log-odds of a
            preference.
        num_cut: one number, the rows that were cut so far.
    """

    model: str
    template: Template = "auto"
    max_length: int = 1024
    precision: Precision = "32-true"
    normalize: bool = True
    num_cut: list[int] = field(default_factory=lambda: [0])

    @torch.no_grad()
    def score(self, prompts: Sequence[SourcedPrompt], texts: Sequence[str]) -> Floats:
        """Score responses; the model is held only meanwhile.

        Raises:
            CheckpointError: it is no reward model.
            DataError: a prompt alone fills `max_length`, or a score is no number.
        """
        tokenizer = load_tokenizer(self.model)
        rendered = [
            render_response(tokenizer, prompt, text, self.template, where)
            for (prompt, where), text in zip(prompts, texts, strict=True)
        ]
        rows = tokenize_rows(tokenizer, rendered)
        self.num_cut[0] += sum(len(row.input_ids) > self.max_length for row in rows)
        places = [where for _, where in prompts]
        fitted = fit_length(rows, places, max_length=self.max_length, overlong="truncate")
        scores = self._forward([row for row in fitted if row is not None], padding_id(tokenizer))
        if not np.isfinite(scores).all():
            raise DataError(f"{self.model}: gives scores that are no numbers")
        return scores

    def _forward(self, rows: Sequence[Row], pad_id: int) -> Floats:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_reward_model(self.model)
        freeze(model).to(device)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
        scores = torch.empty(len(rows), dtype=torch.float64)
        for start in range(0, len(order), BATCH_ROWS):
            places = order[start : start + BATCH_ROWS]
            batch = collate_rows([rows[place] for place in places], pad_id).to(device)
            with autocast(self.precision):
                raw: Tensor = model(batch)
            scores[places] = (model.normalize(raw) if self.normalize else raw).double().cpu()
        return scores.numpy()


@dataclass(frozen=True)
class FunctionScorer(Scorer):
    """A Python function `(prompts, responses) -> list of numbers`.

    Attributes:
        function: its dotted path. Chats are handed to it as one text, see `prompt_text`.
    """

    function: str

    def check(self) -> None:
        """Refuse a path that leads to no function, before anything is computed.

        Raises:
            ConfigError: it cannot be imported.
        """
        FunctionReward(self.function)

    def score(self, prompts: Sequence[SourcedPrompt], texts: Sequence[str]) -> Floats:
        """Score responses.

        Raises:
            ConfigError: the function cannot be imported, or returns something else than one
                finite number a response.
        """
        function = FunctionReward(self.function).resolve()
        returned = function([prompt_text(prompt) for prompt, _ in prompts], texts)
        try:
            scores = np.array([float(score) for score in returned])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"judge {self.function}: returned no list of numbers") from error
        if scores.size != len(texts) or not np.isfinite(scores).all():
            raise ConfigError(
                f"judge {self.function}: returned {scores.size} scores for {len(texts)} "
                "responses, or one that is no finite number"
            )
        return scores
