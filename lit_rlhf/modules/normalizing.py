"""The samples on which a reward model's scores are normalised."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lit_rlhf.batches import TokenRows
from lit_rlhf.data import PPODataModule
from lit_rlhf.data.chat_template import Template, Thinking
from lit_rlhf.data.collation import collate_rows, padding_id
from lit_rlhf.data.tokenization import rows_for_reward
from lit_rlhf.models.scalar_head import ScalarModel
from lit_rlhf.modules.building import build_reference
from lit_rlhf.ranges import require
from lit_rlhf.rollout import Sampling, TorchGenerator, collect_samples


@dataclass(frozen=True)
class NormalizerConfig:
    """Score mean 0 and deviation 1 on samples of the reference policy.

    Without it a reward model's scale is arbitrary, and one KL coefficient means something else
    with each. Source: lm-human-preferences (2019), which draws 256 samples a process.

    Attributes:
        prompts: file, folder or hub name of prompts to respond to.
        policy: the reference policy; null for the model that the reward model starts from.
        num_samples: prompts taken, from the first.
        max_new_tokens: longest response.
        max_prompt_length: longest prompt in tokens.
        seed: of the samples.
        template: how prompts become text, as `data.template`.
        template_options: as `data.template_options`.
        thinking: as `data.thinking`.
    """

    prompts: str
    policy: str | None = None
    num_samples: int = 256
    max_new_tokens: int = 32
    max_prompt_length: int = 512
    seed: int = 0
    template: Template = "auto"
    template_options: dict[str, Any] | None = None
    thinking: Thinking = "keep"

    def __post_init__(self) -> None:
        """Refuse numbers of which no deviation can be taken, by name."""
        require("model.normalizer.num_samples", self.num_samples, least=2)
        require("model.normalizer.max_new_tokens", self.max_new_tokens, least=1)
        require("model.normalizer.max_prompt_length", self.max_prompt_length, least=1)


def draw_reference_samples(
    config: NormalizerConfig,
    default_policy: str,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
) -> TokenRows:
    """Sample the reference policy once, before the reward model trains.

    Args:
        config: which prompts and policy.
        default_policy: where the config names none.
        tokenizer: the reward model's, which may differ from the policy's.
        device: where to sample.

    Returns:
        What the reward model reads of `num_samples` prompts and responses.
    """
    source = config.policy or default_policy
    policy = build_reference(source, frozen_dtype=None, packing_width=None).to(device)
    data = PPODataModule(
        source,
        test=config.prompts,
        eval_batch_size=config.num_samples,
        max_prompt_length=config.max_prompt_length,
        template=config.template,
        template_options=config.template_options,
        thinking=config.thinking,
    )
    data.setup("test")
    prompts = next(iter(data.test_dataloader())).to(device)
    samples = collect_samples(
        policy,
        TorchGenerator(),
        prompts,
        data.tokenizer,
        Sampling(max_new_tokens=config.max_new_tokens),
        seed=config.seed,
    )
    places = [f"{config.prompts}: response {index}" for index in range(len(samples.responses))]
    renderer = replace(data.renderer, tokenizer=tokenizer)
    rows = rows_for_reward(renderer, samples.prompts, samples.responses, places)
    return collate_rows(rows, padding_id(tokenizer)).to(device)


@torch.no_grad()
def refresh_normalizer(reward_model: ScalarModel, rows: TokenRows, batch_size: int = 64) -> None:
    """Measure the raw scores of the reference's samples and set the model's normaliser."""
    parts = [
        reward_model(rows.select(places))
        for places in torch.arange(len(rows.lengths), device=rows.lengths.device).split(batch_size)
    ]
    scores = torch.cat(parts)
    reward_model.set_normalizer(float(scores.mean()), float(scores.std()))
