"""The command `lit-rlhf chat`: talk to a policy in the terminal, or to two side by side."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, TextIO

import torch
from transformers import PreTrainedTokenizerBase

from lit_rlhf.data.chat_template import Renderer, read_template_options
from lit_rlhf.data.collation import batch_prompts
from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.evaluation.sampling import load_policy
from lit_rlhf.feedback import Conversation, Message
from lit_rlhf.markdown import visible
from lit_rlhf.models import PolicyModel, load_tokenizer
from lit_rlhf.models.handover import check_kind, context_length
from lit_rlhf.modules.precision import Precision, autocast, choose_precision
from lit_rlhf.prompts import Prompt
from lit_rlhf.rewards import LearnedReward
from lit_rlhf.rollout import Sampling, TorchGenerator, collect_samples

_HELP = "Type a message. /reset forgets the conversation, /quit (or Ctrl-D) leaves."
_GAP = " | "


@dataclass
class Speaker:
    """A policy and its side of the conversation.

    Attributes:
        name: shown above its answers.
        source: the policy.
        sampling: how it answers.
        precision: of the forward.
        template_options: variables for the chat template.
        conversation: so far; stays empty where the tokenizer has no chat template.
    """

    name: str
    source: str
    sampling: Sampling
    precision: Precision
    template_options: dict[str, Any] = field(default_factory=dict)
    conversation: Conversation = ()
    _policy: PolicyModel = field(init=False, repr=False)
    _tokenizer: PreTrainedTokenizerBase = field(init=False, repr=False)
    _context: int | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Load the policy and its tokenizer."""
        self._policy = load_policy(self.source, self.precision)
        self._tokenizer = load_tokenizer(self.source)
        self._context = context_length(self.source)

    @property
    def uses_chat_template(self) -> bool:
        """Whether messages are put into the tokenizer's chat template, or continued as text."""
        return bool(self._tokenizer.chat_template)

    @property
    def device(self) -> torch.device:
        """Where the policy computes."""
        return next(self._policy.parameters()).device

    def answer(self, message: str, seed: int) -> tuple[Prompt, str, bool]:
        """Answer a message and remember both.

        Args:
            message: of the user; the conversation so far is before it. Without a chat
                template it is the whole prompt.
            seed: of the sample.

        Returns:
            The prompt (messages, or text without a chat template), the response, and whether
            it ended by itself.

        Raises:
            DataError: the model's context has no room for all of it; nothing is remembered.
        """
        turns = (*self.conversation, Message(role="user", content=message))
        prompt: Prompt = turns if self.uses_chat_template else message
        renderer = Renderer(self._tokenizer, options=self.template_options)
        batch = batch_prompts(renderer, [prompt], [f"chat with {self.name}"])
        self._require_room(batch.input_ids.shape[1])
        with torch.no_grad(), autocast(self.precision):
            samples = collect_samples(
                self._policy,
                TorchGenerator(),
                batch.to(self.device),
                self._tokenizer,
                self.sampling,
                seed=seed,
            )
        response = samples.responses[0]
        if self.uses_chat_template:
            self.conversation = (*turns, Message(role="assistant", content=response))
        return prompt, response, bool(samples.finished[0])

    def _require_room(self, num_tokens: int) -> None:
        num_new = self.sampling.max_new_tokens
        if self._context is not None and num_tokens + num_new > self._context:
            raise DataError(
                f"{num_tokens} tokens so far and an answer of up to {num_new} are more than the "
                f"{self._context} that the model reads: /reset, or a smaller --max-new-tokens"
            )


def chat_command(arguments: list[str]) -> int:
    """Talk until the input ends.

    Args:
        arguments: those after `lit-rlhf chat`.

    Returns:
        0.

    Raises:
        LitRLHFError: a model cannot be loaded, or an option is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="lit-rlhf chat",
        description="Talk to a policy: a model folder or a hub name; with two "
        "of them, both answer, side by side. Messages go into the tokenizer's chat template where "
        "it has one, else they are continued as they stand.",
    )
    parser.add_argument("policies", nargs="+", metavar="POLICY", help="one or two")
    parser.add_argument("--reward", help="reward model that scores the answers")
    parser.add_argument(
        "--template-options",
        type=read_template_options,
        default={},
        help="for the chat template, as JSON",
    )
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=1.0, help="0: the likeliest tokens")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("auto", "32-true", "bf16-mixed"), default="auto")
    options = parser.parse_args(arguments)
    if len(options.policies) > 2:
        raise ConfigError(f"chat: one or two policies, got {len(options.policies)}")
    for source in options.policies:
        check_kind(source, "policy")
    if options.reward is not None:
        check_kind(options.reward, "reward")
    precision = choose_precision() if options.precision == "auto" else options.precision
    sampling = Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
    )
    variables = options.template_options
    speakers = [
        Speaker(source, source, sampling, precision, variables) for source in options.policies
    ]
    reward = None
    if options.reward is not None:
        reward = LearnedReward(options.reward, template_options=variables)
    converse(speakers, reward, options.seed, sys.stdin, sys.stdout)
    return 0


def converse(
    speakers: list[Speaker], reward: LearnedReward | None, seed: int, lines: TextIO, out: TextIO
) -> None:
    """Answer each line until there are no more.

    Args:
        speakers: one or two.
        reward: scores the answers; None for no scores.
        seed: of the first answer; each further one counts up.
        lines: what the user types; each line a message.
        out: where answers go. Nothing that a model writes can control the terminal there.
    """
    is_typed = lines.isatty()
    if is_typed:
        out.write(f"{_HELP}\n")
    number = 0
    for message in _messages(lines, out if is_typed else None):
        if message == "/reset":
            for speaker in speakers:
                speaker.conversation = ()
            out.write("(a new conversation)\n")
            continue
        columns = []
        for speaker in speakers:
            try:
                prompt, response, finished = speaker.answer(message, seed + number)
            except DataError as error:
                columns.append((visible(speaker.name), f"({error})"))
                continue
            title = speaker.name if finished else f"{speaker.name} (truncated)"
            if reward is not None:
                with autocast(speaker.precision):
                    score = reward([prompt], [response])
                title += f" (reward {float(score):+.3f})"
            columns.append((visible(title), visible(response)))
        out.write(_side_by_side(columns) if len(columns) > 1 else "\n".join(columns[0]) + "\n")
        out.write("\n")
        out.flush()
        number += 1


def _messages(lines: TextIO, prompt_to: TextIO | None) -> Iterator[str]:
    while True:
        if prompt_to is not None:
            prompt_to.write("> ")
            prompt_to.flush()
        line = lines.readline()
        message = line.strip()
        if not line or message == "/quit":
            return
        if message:
            yield message


def _side_by_side(columns: list[tuple[str, str]]) -> str:
    width = (shutil.get_terminal_size().columns - len(_GAP)) // 2
    wrapped = [[*_wrap(title, width), "-" * width, *_wrap(text, width)] for title, text in columns]
    lines = zip_longest(*wrapped, fillvalue="")
    return "".join(f"{left:<{width}}{_GAP}{right}".rstrip() + "\n" for left, right in lines)


def _wrap(text: str, width: int) -> list[str]:
    lines = text.expandtabs(4).split("\n")
    return [piece for line in lines for piece in textwrap.wrap(line, width) or [""]]
