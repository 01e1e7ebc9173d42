"""What prompts and responses are, everywhere: text, or messages of a chat."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict


class _RequiredKeys(TypedDict):
    role: str


class Message(_RequiredKeys, total=False):
    """One message of a chat; further keys that a chat template may read are kept.

    Attributes:
        role: who speaks.
        content: text, or parts `{"type": "text", "text": ...}`; it may be null beside calls.
        tool_calls: of the assistant.
        reasoning_content: what the assistant thought before it answered.
        train: whether this turn is learned; false as a `weight` of 0.
        weight: 0 or 1.
    """

    content: str | Sequence[Mapping[str, str]] | None
    tool_calls: Sequence[Mapping[str, Any]]
    reasoning_content: str
    train: bool
    weight: int


Conversation = tuple[Message, ...]
Prompt = str | Sequence[Message]
Response = str | Conversation


class ChatWithTools(tuple[Message, ...]):
    """The messages of a chat in which the assistant may call tools.

    Attributes:
        tools: JSON schemas of functions, as chat templates take them.
    """

    tools: tuple[Mapping[str, Any], ...]

    def __new__(
        cls, messages: Iterable[Message], tools: Iterable[Mapping[str, Any]] = ()
    ) -> ChatWithTools:
        """Keep the messages and the tools."""
        chat = super().__new__(cls, messages)
        chat.tools = tuple(tools)
        return chat


def as_messages(text: Prompt, role: str) -> Sequence[Message]:
    """Return messages as they are, and a text as one message of a role."""
    return (Message(role=role, content=text),) if isinstance(text, str) else text


def prompt_fields(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt as the fields of a row, which reads as this prompt."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    tools = {"tools": list(prompt.tools)} if isinstance(prompt, ChatWithTools) else {}
    return {"prompt": list(prompt), **tools}


def content_text(message: Message) -> str:
    """Return the text of a message, its parts joined; "" where it has none."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def prompt_text(prompt: Prompt) -> str:
    """Return a prompt as people read it: a chat as one `role: content` a paragraph."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {_readable(message)}" for message in prompt)


def response_text(response: Response) -> str:
    """Return a response as people read it: one turn without its role, its calls as JSON."""
    if isinstance(response, str):
        return response
    return _readable(response[0]) if len(response) == 1 else prompt_text(response)


def _readable(message: Message) -> str:
    calls = [json.dumps(call, ensure_ascii=False) for call in message.get("tool_calls") or ()]
    return "\n".join([text for text in (content_text(message),) if text or not calls] + calls)
