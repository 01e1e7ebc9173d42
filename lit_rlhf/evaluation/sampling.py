"""Letting policies respond to prompts, and what only their own tokens can tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_rlhf.batches import SampleBatch, TokenRows
from lit_rlhf.data import SFTDataModule
from lit_rlhf.data.chat_template import Renderer, Template
from lit_rlhf.data.collation import batch_prompts
from lit_rlhf.errors import ConfigError
from lit_rlhf.evaluation.bootstrap import Estimate, Floats, ratio
from lit_rlhf.evaluation.responses import Responses, SourcedPrompt, TokenFacts
from lit_rlhf.models import PolicyModel, load_tokenizer
from lit_rlhf.models.fast_paths import take_fast_paths
from lit_rlhf.modules.building import build_reference
from lit_rlhf.modules.precision import Precision, autocast
from lit_rlhf.objectives import kl_k1
from lit_rlhf.ranges import require
from lit_rlhf.rollout import Sampling, TorchGenerator, collect_samples

BATCH_ROWS = 64


@dataclass(frozen=True)
class SamplingConfig:
    """How policies respond.

    Attributes:
        samples: `K`, responses to each prompt.
        max_new_tokens: a response that reaches it is truncated.
        temperature: of the draw; 0 takes the likeliest tokens.
        seed: with prompt and sample it names the random stream: the same for all policies.
        template: how prompts become text, see the data modules.
        template_options: likewise.
        precision: of the forwards.
    """

    samples: int = 1
    max_new_tokens: int = 128
    temperature: float = 1.0
    seed: int = 0
    template: Template = "auto"
    template_options: dict[str, Any] | None = None
    precision: Precision = "32-true"

    def __post_init__(self) -> None:
        """Refuse no samples, and samples that could not differ."""
        require("samples", self.samples, least=1)
        if self.temperature == 0 and self.samples > 1:
            raise ConfigError("at temperature 0 all samples of a prompt are the same: samples is 1")


def load_policy(source: str, precision: Precision) -> PolicyModel:
    """Load a policy to sample from: hub name or folder."""
    frozen_dtype = torch.bfloat16 if precision == "bf16-mixed" else None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy = build_reference(source, frozen_dtype=frozen_dtype).to(device)
    take_fast_paths(policy, device)
    return policy


@torch.no_grad()
def sample_responses(
    name: str,
    source: str,
    prompts: Sequence[SourcedPrompt],
    settings: SamplingConfig,
    reference: str | None = None,
) -> Responses:
    """Let a policy respond to each prompt, each response from its own random stream.

    Args:
        name: of the policy in the report.
        source: the policy: hub name or folder.
        prompts: `P` prompts.
        settings: how it responds.
        reference: the policy that the KL is to; None for no KL.

    Returns:
        `P` times `K` responses with the facts about their tokens.

    Raises:
        CheckpointError: a model cannot be loaded.
        ConfigError: policy and reference have different vocabularies.
    """
    tokenizer = load_tokenizer(source)
    policy = load_policy(source, settings.precision)
    samples = _draw(policy, tokenizer, prompts, settings)
    shape = (len(prompts), settings.samples)
    texts = np.array(samples.responses, dtype=object).reshape(shape)
    lengths = samples.response_mask.sum(1).double().cpu().numpy().reshape(shape)
    entropy, kl = None, None
    if settings.temperature > 0:
        logprobs, entropies = _token_scores(policy, samples, settings)
        entropy = _per_response(entropies, samples, shape)
        if reference is not None:
            _check_vocabulary(name, tokenizer, reference)
            del policy
            model = load_policy(reference, settings.precision)
            difference = kl_k1(logprobs, _token_scores(model, samples, settings)[0])
            kl = _per_response(difference, samples, shape)
    return Responses(
        name,
        source,
        tuple(tuple(str(text) for text in row) for row in texts),
        samples.finished.cpu().numpy().reshape(shape),
        TokenFacts(lengths, entropy, kl),
    )


@torch.no_grad()
def sample_in_parts(
    source: str,
    prompts: Sequence[SourcedPrompt],
    settings: SamplingConfig,
    size: int,
    *,
    first: int = 0,
    fields: Sequence[dict[str, Any]] | None = None,
) -> Iterator[SampleBatch]:
    """Yield the responses of `sample_responses`, `K` a prompt, after every `size` prompts.

    The same as at once: each prompt has its own random stream.

    Args:
        source: the policy.
        prompts: one or more.
        settings: how it responds.
        size: prompts in a part.
        first: the prompt to begin with.
        fields: of each prompt's record, for rewards.
    """
    tokenizer = load_tokenizer(source)
    policy = load_policy(source, settings.precision)
    for start in range(first, len(prompts), size):
        part = slice(start, start + size)
        own = None if fields is None else fields[part]
        yield _draw(policy, tokenizer, prompts[part], settings, start, own)


@torch.no_grad()
def perplexity(
    source: str,
    data: str,
    settings: SamplingConfig,
    max_length: int,
    num_rows: int | None = None,
) -> Estimate:
    """Estimate a policy's perplexity on held-out demonstrations: what training cost it elsewhere.

    `exp(sum of -log p / number of tokens)` over the tokens of responses (of a bare `text`, all of
    its tokens), EOS included. Per token: comparable between models of the same tokenizer only.

    Args:
        source: the policy.
        data: demonstrations or texts, as `sft` takes them.
        settings: how prompts become text, and the precision of the forward.
        max_length: tokens in a row; what is longer is cut.
        num_rows: take the first so many; None for all.

    Returns:
        The perplexity; the interval resamples rows, and `n` counts them.
    """
    module = SFTDataModule(
        source,
        validation=data,
        limit_validation=num_rows,
        template=settings.template,
        template_options=settings.template_options,
        max_length=max_length,
        overlong="truncate",
        batch_size=BATCH_ROWS,
    )
    module.setup("validate")
    policy = load_policy(source, settings.precision)
    device = next(policy.parameters()).device
    sums, counts = [], []
    for rows in module.val_dataloader():
        assert isinstance(rows, TokenRows)
        with autocast(settings.precision):
            logprobs = policy(rows.to(device)).logprobs
        sums.append(-logprobs.sum(1).double().cpu())
        counts.append(rows.response_mask.sum(1).double())
    # Rows that only fill the last batch up count no token.
    nll, tokens = torch.cat(sums).numpy(), torch.cat(counts).numpy()
    real = tokens > 0
    estimate = ratio(nll[real], tokens[real])
    value, low, high = (float(np.exp(number)) for number in estimate[:3])
    return Estimate(value, low, high, estimate.n)


def _draw(
    policy: PolicyModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[SourcedPrompt],
    settings: SamplingConfig,
    first_id: int = 0,
    fields: Sequence[dict[str, Any]] | None = None,
) -> SampleBatch:
    renderer = Renderer(tokenizer, settings.template, settings.template_options or {})
    texts, places = zip(*prompts, strict=True)
    batch = batch_prompts(renderer, texts, places, first_id=first_id, fields=fields)
    with autocast(settings.precision):
        return collect_samples(
            policy,
            TorchGenerator(max_rows=BATCH_ROWS),
            batch.to(next(policy.parameters()).device),
            tokenizer,
            Sampling(max_new_tokens=settings.max_new_tokens, temperature=settings.temperature),
            samples_per_prompt=settings.samples,
            seed=settings.seed,
        )


def _token_scores(
    policy: PolicyModel, samples: SampleBatch, settings: SamplingConfig
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and entropies of the sampled tokens, `[B, L]` each."""
    rows = torch.arange(len(samples.finished), device=samples.finished.device)
    with autocast(settings.precision):
        parts = [
            policy(samples.rows.select(places), temperature=settings.temperature, with_entropy=True)
            for places in rows.split(BATCH_ROWS)
        ]
    logprobs = torch.cat([part.logprobs for part in parts])
    return logprobs, torch.cat([part.entropy for part in parts if part.entropy is not None])


def _per_response(values: Tensor, samples: SampleBatch, shape: tuple[int, int]) -> Floats:
    summed = (values * samples.rows.response_mask).sum(1, dtype=torch.float64)
    result: Floats = summed.cpu().numpy().reshape(shape)
    return result


def _check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase, reference: str) -> None:
    if tokenizer.get_vocab() != load_tokenizer(reference).get_vocab():
        raise ConfigError(
            f"{name}: its tokenizer is not that of the reference {reference}, so there is no KL "
            "between them; leave --reference out, or name one of the same family"
        )
