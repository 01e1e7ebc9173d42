"""What a prompt is, everywhere: text, or a chat that the assistant is to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class Message(TypedDict):
    """One turn of a chat; further keys that a chat template may read are kept."""

    role: str
    content: str


Conversation = tuple[Message, ...]
Prompt = str | Sequence[Message]


def prompt_text(prompt: Prompt) -> str:
    """Return a prompt as people read it: a chat as one `role: content` a paragraph."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
