"""A trained reward model as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lit_rlhf.batches import SampleBatch, TokenRows
from lit_rlhf.data.chat_template import RenderedText, TextPiece
from lit_rlhf.data.collation import collate_rows, padding_id
from lit_rlhf.data.tokenization import Row, tokenize_rows
from lit_rlhf.errors import ConfigError
from lit_rlhf.models.backbone import freeze
from lit_rlhf.models.handover import (
    load_reward_model,
    load_tokenizer,
    require_fitting_tokenizer,
)
from lit_rlhf.models.scalar_head import ScalarModel
from lit_rlhf.models.sharing import share_frozen
from lit_rlhf.rewards.source import RewardSource


@dataclass
class _Loaded:
    """The model and its tokenizer once they are needed.

    Attributes:
        model: frozen.
        dtype: of its layers if not float32.
        tokenizer: the model's own.
        donor: the module whose frozen weights it may stand on, or the reward that loads it.
        lends: another reward may stand on its weights.
    """

    model: ScalarModel | None = None
    dtype: torch.dtype | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    donor: nn.Module | LearnedReward | None = None
    lends: bool = False


@dataclass(frozen=True)
class LearnedReward(RewardSource):
    """Score responses by a reward model, normalised to the reference policy's samples.

    The texts are tokenised by the reward model's own tokenizer as for its training, prompt and
    response apart, and closed by its EOS: the model was trained on complete responses, and a
    response that was cut is judged as if it ended there (the missing-EOS rule of PPO deals with
    the cut itself).
    The model is held outside of the trained module: not saved with it, sharded or updated. Where
    both it and the policy are adapters on the same weights, those are held once.

    Attributes:
        model: a reward checkpoint, or a sequence-classification folder.
        batch_size: responses scored in one forward.
    """

    model: str
    batch_size: int = 64
    _loaded: _Loaded = field(default_factory=_Loaded, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse a batch without rows."""
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size}")

    @property
    def origins(self) -> dict[str, str]:
        """The reward model."""
        return {"": self.model}

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], batch: SampleBatch
    ) -> Tensor:
        """Score each response, see `RewardSource`."""
        device = batch.rows.lengths.device
        return self.score_texts(prompts, responses, device)

    def share_trunk(self, policy: nn.Module) -> None:
        """Stand on the policy's frozen weights, where they are those under the adapter."""
        self._loaded.donor = policy

    def stand_on(self, other: LearnedReward) -> None:
        """Stand on another reward model's frozen weights, where they are those under the adapter.

        Args:
            other: loaded before this one; a policy that is offered later comes in its place.
        """
        if other is not self:
            self._loaded.donor = other
            other._loaded.lends = True

    @torch.no_grad()
    def score_texts(
        self, prompts: Sequence[str], responses: Sequence[str], device: torch.device
    ) -> Tensor:
        """Return the normalised score of each response: `[B]` float32."""
        model, tokenizer = self._load(device)
        rows = _tokenize(tokenizer, prompts, responses)
        # Rows of like length share a forward.
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
        scores = torch.empty(len(rows), device=device)
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            batch_rows = collate_rows([rows[place] for place in places], padding_id(tokenizer))
            scores[places] = model.normalize(self._raw_scores(model, batch_rows.to(device)))
        return scores

    def padding_gap(self, prompt: str, device: torch.device) -> float:
        """Score a response by itself and beside a longer one: the difference must be nought."""
        short, long = "yes", "yes " * 16
        (alone,) = self.score_texts([prompt], [short], device).tolist()
        together = self.score_texts([prompt] * 2, [short, long], device)
        return float(abs(alone - float(together[0])))

    def _raw_scores(self, model: ScalarModel, rows: TokenRows) -> Tensor:
        dtype, device = self._loaded.dtype, rows.lengths.device
        # Smaller layers need autocast, whether or not the caller of this time is under it.
        with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
            raw: Tensor = model(rows)
        return raw

    def _load(self, device: torch.device) -> tuple[ScalarModel, PreTrainedTokenizerBase]:
        if self._loaded.model is None or self._loaded.tokenizer is None:
            donor = self._loaded.donor
            # Apart from their adapters, weights can be told to be those of another model.
            is_merged = donor is None and not self._loaded.lends
            model = load_reward_model(self.model, merge=is_merged)
            # Under autocast float32 weights would be cast at every call.
            if torch.is_autocast_enabled(device.type):
                self._loaded.dtype = torch.get_autocast_dtype(device.type)
            freeze(model.backbone, self._loaded.dtype)
            freeze(model).to(device)
            if isinstance(donor, LearnedReward):
                donor = donor._load(device)[0]
            if donor is not None:
                share_frozen(model, donor)
            self._loaded.model = model
            tokenizer = load_tokenizer(self.model)
            require_fitting_tokenizer(tokenizer, model.transformers_config, self.model)
            self._loaded.tokenizer = tokenizer
        self._loaded.model.to(device)
        return self._loaded.model, self._loaded.tokenizer


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str]
) -> list[Row]:
    texts = [
        RenderedText(_pieces(prompt, response), is_chat=False)
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    return tokenize_rows(tokenizer, texts)


def _pieces(prompt: str, response: str) -> tuple[TextPiece, TextPiece]:
    return TextPiece(prompt, is_response=False), TextPiece(response, is_response=True)
