"""Responses of a module's policy to prompts: before, between and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lit_rlhf.batches import PromptBatch, SampleBatch
from lit_rlhf.data.chat_template import Renderer
from lit_rlhf.data.collation import batch_prompts
from lit_rlhf.data.datamodule import TextDataModule
from lit_rlhf.errors import ConfigError
from lit_rlhf.feedback import parse_prompt
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.modules.sharding import gathered
from lit_rlhf.prompts import ChatWithTools, Prompt, as_messages, prompt_fields
from lit_rlhf.ranges import require
from lit_rlhf.rollout import Generator, Sampling, TorchGenerator, collect_samples, require_room

if TYPE_CHECKING:
    from lit_rlhf.modules.phase import PhaseModule


def generate_responses(
    module: PhaseModule,
    prompts: Sequence[Prompt],
    *,
    sampling: Sampling,
    samples_per_prompt: int,
    seed: int,
    template_options: Mapping[str, Any] | None,
) -> list[str]:
    """Draw responses, see `PhaseModule.generate`.

    Raises:
        ConfigError: the module trains no policy, or `prompts` is a text or empty.
        DataError: one of them is neither a text nor a chat.
    """
    require("generate: samples_per_prompt", samples_per_prompt, least=1)
    module.configure_model()
    batch = _batch_of(module, prompts, template_options)
    samples = _draw(module, batch, TorchGenerator(), sampling, samples_per_prompt, seed)
    return list(samples.responses)


def predict_responses(module: PhaseModule, batch: object) -> list[dict[str, Any]]:
    """Draw responses, see `PhaseModule.predict_step`.

    Raises:
        ConfigError: the module trains no policy, or the batch is neither ours nor a list of
            prompts.
    """
    prompts = batch if isinstance(batch, PromptBatch) else _batch_of(module, batch)
    how = module.prediction
    sampling = how.sampling or module.sampling
    samples = _draw(module, prompts, module.generator, sampling, how.samples_per_prompt, how.seed)
    ids = prompts.prompt_ids[samples.group_ids].tolist()
    each = zip(
        ids, samples.prompts, samples.responses, samples.finished.tolist(), samples.fields,
        strict=True,
    )  # fmt: skip
    return [
        {
            "row": row,
            **prompt_fields(prompt),
            "response": response,
            "finished": finished,
            **({"fields": fields} if fields else {}),
        }
        for row, prompt, response, finished, fields in each
        if row >= 0  # the others only fill up a last batch that is short
    ]


def require_room_to_predict(module: PhaseModule) -> None:
    """Refuse, before the first response, prompts that leave no room for one.

    Raises:
        ConfigError: the longest prompt of a data module and its response are longer than the
            policy's context.
    """
    policy, data = module.trained_model, getattr(module.trainer, "datamodule", None)
    if isinstance(policy, PolicyModel) and isinstance(data, TextDataModule):
        sampling = module.prediction.sampling or module.sampling
        require_room(policy, data.longest("predict"), sampling)


@torch.no_grad()
def _draw(
    module: PhaseModule,
    batch: PromptBatch,
    generator: Generator,
    sampling: Sampling,
    samples_per_prompt: int,
    seed: int,
) -> SampleBatch:
    policy = module.trained_model
    if not isinstance(policy, PolicyModel):
        raise ConfigError(f"generate: {type(module).__name__} trains no policy that could respond")
    with gathered(policy):
        return collect_samples(
            policy,
            generator,
            batch,
            module.tokenizer,
            sampling,
            samples_per_prompt=samples_per_prompt,
            seed=seed,
        )


def _batch_of(
    module: PhaseModule, prompts: object, template_options: Mapping[str, Any] | None = None
) -> PromptBatch:
    """Tokenise prompts, as the run's data does where there are no options.

    Their ids are their places.

    Raises:
        ConfigError: they are no list with prompts.
    """
    if not isinstance(prompts, (list, tuple)) or not prompts:
        raise ConfigError(f"generate: give a list of prompts, got {prompts!r:.60}")
    places = [f"prompt {number}" for number in range(len(prompts))]
    read = [_read(prompt, place) for prompt, place in zip(prompts, places, strict=True)]
    data = getattr(module.trainer_if_any, "datamodule", None)
    renderer = getattr(data, "renderer", None)
    if renderer is None or template_options is not None:
        renderer = Renderer(module.tokenizer, options=template_options or {})
    return batch_prompts(renderer, read, places).to(module.device)


def _read(prompt: object, where: str) -> Prompt:
    """Return a prompt as a row with it would have it; a DataError where it is none."""
    read = parse_prompt({"prompt": prompt}, where).prompt
    if isinstance(prompt, ChatWithTools):
        return ChatWithTools(as_messages(read, "user"), prompt.tools)
    return read
