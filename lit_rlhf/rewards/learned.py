"""The one way to score a response by a reward model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lit_rlhf.batches import SampleBatch, TokenRows, cut_by_tokens
from lit_rlhf.data.chat_template import Renderer, Template, Thinking
from lit_rlhf.data.collation import collate_rows, padding_id
from lit_rlhf.data.tokenization import Row, fit_length, rows_for_reward
from lit_rlhf.models.fast_paths import take_fast_paths
from lit_rlhf.models.freezing import freeze
from lit_rlhf.models.handover import (
    context_length,
    load_reward_model,
    load_tokenizer,
    require_fitting_tokenizer,
)
from lit_rlhf.models.scalar_head import ScalarModel
from lit_rlhf.models.sharing import share_frozen
from lit_rlhf.prompts import Prompt, Response, prompt_text
from lit_rlhf.ranges import require
from lit_rlhf.rewards.source import RewardSource


@dataclass
class _Loaded:
    """The model and its tokenizer once they are needed.

    Attributes:
        model: frozen.
        dtype: of its layers if not float32.
        tokenizer: the model's own.
        donor: the module whose frozen weights it may share, or the reward that loads it.
        lends: another reward may share its weights.
        context_length: tokens that the model reads, or None where it does not say.
        num_cut: responses that were cut so far.
    """

    model: ScalarModel | None = None
    dtype: torch.dtype | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    donor: nn.Module | LearnedReward | None = None
    lends: bool = False
    context_length: int | None = None
    num_cut: int = 0


@dataclass(frozen=True)
class LearnedReward(RewardSource):
    """Score responses by a reward model.

    Prompt and response become tokens as in the reward model's training: a chat is all that its
    own chat template writes, a text is closed by its EOS. The model learned from complete
    responses, so one that was cut is scored as if it ended there (PPO's missing-EOS rule deals
    with the cut itself).
    The model is held outside of the trained module: not saved with it, sharded or updated. Where
    both it and the policy are adapters on the same weights, those are held once.

    Attributes:
        model: what the reward phase left, or a sequence classifier with one label, as a folder or
            hub name.
        batch_size: responses scored in one forward.
        batch_tokens: tokens of it at most, padding included; a longer response is by itself.
        template: how prompts become text, as `data.template` in the reward model's training.
        template_options: likewise, as `data.template_options`.
        thinking: likewise, as `data.thinking`.
        max_length: most tokens of prompt and response; null for as many as the model reads.
        overlong: what becomes of a longer response: "truncate" cuts its end and counts it,
            "error" refuses it.
        normalize: scores with mean 0 and deviation 1 on the reference policy's samples, where the
            model has a normaliser; false leaves them raw: a difference is the log-odds of a
            preference.
    """

    model: str
    batch_size: int = 64
    template: Template = "auto"
    template_options: dict[str, Any] | None = None
    thinking: Thinking = "keep"
    max_length: int | None = None
    overlong: Literal["error", "truncate"] = "truncate"
    normalize: bool = True
    batch_tokens: int = 32_768
    _loaded: _Loaded = field(default_factory=_Loaded, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse a batch without rows, and rows without room for a response."""
        require("LearnedReward.batch_size", self.batch_size, least=1)
        require("LearnedReward.batch_tokens", self.batch_tokens, least=1)
        require("LearnedReward.max_length", self.max_length, least=2, is_optional=True)

    @property
    def origins(self) -> dict[str, str]:
        """The reward model."""
        return {"": self.model}

    @property
    def num_cut(self) -> int:
        """Responses that were longer than the limit, and cut, so far."""
        return self._loaded.num_cut

    def __call__(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        batch: SampleBatch | None = None,
    ) -> Tensor:
        """Score each response, see `RewardSource`; texts alone on the GPU, where there is one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return self.score(
            prompts, responses, device if batch is None else batch.rows.lengths.device
        )

    @torch.no_grad()
    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[Response], device: torch.device
    ) -> Tensor:
        """Score each response on a device: `[B]` float32.

        Raises:
            CheckpointError: `model` is not there, or not a reward model.
            DataError: the chat template refuses a prompt, a prompt alone fills the limit, or a
                response is too long and `overlong` is "error".
        """
        if not responses:
            return torch.empty(0, device=device)
        scores = self._of_each(prompts, responses, device, ScalarModel.__call__)
        return self._load(device)[0].normalize(scores) if self.normalize else scores

    @torch.no_grad()
    def features(
        self, prompts: Sequence[Prompt], responses: Sequence[Response], device: torch.device
    ) -> Tensor:
        """Return what the model's head reads of each response: `[B, H]` float32, of one or more.

        Raises:
            CheckpointError: as for `score`.
            DataError: likewise.
        """
        return self._of_each(prompts, responses, device, ScalarModel.features)

    def share_trunk(self, policy: nn.Module | LearnedReward) -> None:
        """Stand on the frozen weights of a policy, or of another reward model, where they agree.

        Args:
            policy: the module, or a reward that loads before this one. A later offer replaces an
                earlier one.
        """
        if policy is self:
            return
        self._loaded.donor = policy
        if isinstance(policy, LearnedReward):
            policy._loaded.lends = True

    def rest(self) -> None:
        """Wait in the host's memory for the next call; weights that are shared stay."""
        is_alone = self._loaded.donor is None and not self._loaded.lends
        if self._loaded.model is not None and is_alone:
            self._loaded.model.to("cpu")

    def unload(self) -> None:
        """Give the model's memory back; the next call loads it again."""
        self._loaded.model = self._loaded.tokenizer = self._loaded.dtype = None

    def _rows(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
    ) -> list[Row]:
        places = [f"{self.model}: prompt {prompt_text(prompt)[:60]!r}" for prompt in prompts]
        renderer = Renderer(tokenizer, self.template, self.template_options or {}, self.thinking)
        rows = rows_for_reward(renderer, prompts, responses, places)
        fitted = fit_length(
            rows,
            places,
            max_length=self.max_length or sys.maxsize,
            overlong=self.overlong,
            context_length=self._loaded.context_length,
        )
        kept = [row for row in fitted if row is not None]  # nothing is dropped
        self._loaded.num_cut += sum(
            len(row.input_ids) > len(cut.input_ids) for row, cut in zip(rows, kept, strict=True)
        )
        return kept

    def _of_each(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
        device: torch.device,
        compute: Callable[[ScalarModel, TokenRows], Tensor],
    ) -> Tensor:
        """Return what `compute` makes of each response, in float32."""
        model, tokenizer = self._load(device)
        rows = self._rows(tokenizer, prompts, responses)
        # Rows of like length share a forward.
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
        parts = []
        lengths = [len(rows[place].input_ids) for place in order]
        for part in cut_by_tokens(lengths, self.batch_size, self.batch_tokens):
            places = order[part]
            tokens = collate_rows([rows[place] for place in places], padding_id(tokenizer))
            # Smaller layers need autocast, whether or not the caller of this time is under it.
            dtype = self._loaded.dtype
            with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
                parts.append(compute(model, tokens.to(device)).float())
        values = torch.cat(parts)
        result = torch.empty_like(values)
        result[order] = values
        return result

    def _load(self, device: torch.device) -> tuple[ScalarModel, PreTrainedTokenizerBase]:
        if self._loaded.model is None or self._loaded.tokenizer is None:
            donor = self._loaded.donor
            # Apart from their adapters, weights can be told to be those of another model.
            is_merged = donor is None and not self._loaded.lends
            # Under autocast float32 weights would be cast at every call.
            if torch.is_autocast_enabled(device.type):
                self._loaded.dtype = torch.get_autocast_dtype(device.type)
            in_halves = self._loaded.dtype is not None
            model = load_reward_model(self.model, merge=is_merged, keeps_halves=in_halves)
            freeze(model.backbone, self._loaded.dtype)
            freeze(model).to(device)
            take_fast_paths(model, device)
            if isinstance(donor, LearnedReward):
                donor = donor._load(device)[0]
            if donor is not None:
                share_frozen(model, donor)
            tokenizer = load_tokenizer(self.model)
            require_fitting_tokenizer(tokenizer, model.transformers_config, self.model)
            self._loaded.context_length = context_length(self.model)
            self._loaded.model, self._loaded.tokenizer = model, tokenizer
        self._loaded.model.to(device)
        return self._loaded.model, self._loaded.tokenizer


def share_among(sources: Iterable[RewardSource]) -> None:
    """Let reward models that are adapters on the same weights hold these once."""
    learned = [one for one in sources if isinstance(one, LearnedReward)]
    for other in learned[1:]:
        other.share_trunk(learned[0])
