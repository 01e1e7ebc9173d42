"""Responses of a module's policy to plain prompts: before, between and after training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lit_rlhf.data.chat_template import Renderer
from lit_rlhf.data.collation import PromptExample, collate_prompts, padding_id
from lit_rlhf.data.tokenization import tokenize_prompts
from lit_rlhf.errors import ConfigError
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.modules.sharding import gathered
from lit_rlhf.prompts import Prompt
from lit_rlhf.rollout import Sampling, TorchGenerator, collect_samples

if TYPE_CHECKING:
    from lit_rlhf.modules.phase import PhaseModule


@torch.no_grad()
def generate_responses(
    module: PhaseModule,
    prompts: Sequence[Prompt],
    *,
    sampling: Sampling,
    samples_per_prompt: int,
    seed: int,
) -> list[str]:
    """Draw responses, see `PhaseModule.generate`.

    Raises:
        ConfigError: the module trains no policy, or `prompts` is a text or empty.
    """
    if isinstance(prompts, str) or not prompts:
        raise ConfigError(f"generate: give a list of prompts, got {prompts!r:.60}")
    module.configure_model()
    policy = module.trained_model
    if not isinstance(policy, PolicyModel):
        raise ConfigError(f"generate: {type(module).__name__} trains no policy that could respond")
    tokenizer = module.tokenizer
    places = [f"prompt {number}" for number in range(len(prompts))]
    tokens = tokenize_prompts(Renderer(tokenizer), prompts, places)
    examples = [
        PromptExample(ids, number, prompt, {})
        for number, (ids, prompt) in enumerate(zip(tokens, prompts, strict=True))
    ]
    batch = collate_prompts(examples, padding_id(tokenizer)).to(module.device)
    with gathered(policy):
        samples = collect_samples(
            policy,
            TorchGenerator(),
            batch,
            tokenizer,
            sampling,
            samples_per_prompt=samples_per_prompt,
            seed=seed,
        )
    return list(samples.responses)
