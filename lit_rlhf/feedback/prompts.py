"""Parting the prompt from the responses in a row, in each form that people write them.

Responses are text, or chats (lists of messages). A chat may hold the assistant's turn alone, or
begin with the prompt (TRL's implicit prompt): then the prompt is what all the row's chats share,
and one turn of the assistant is left of each, with the calls of tools before it. Texts are never
searched for a shared beginning: where two texts part says nothing about where the prompt ended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from lit_rlhf.feedback.fields import (
    Record,
    is_present,
    missing_fields,
    read_list,
    read_text_or_conversation,
    without_nulls,
    wrong_field,
)
from lit_rlhf.prompts import ChatWithTools, Conversation, Message, Prompt, Response

AnyPrompt = TypeVar("AnyPrompt", str, Conversation, str | Conversation)


def split_prompt(
    row: Record, responses: Mapping[str, object], where: str
) -> tuple[Prompt, tuple[Response, ...]]:
    """Return the prompt of a row and its responses, in the order given.

    A response is text, or messages where they say more than a text.

    Args:
        row: the row, with or without a field `prompt`.
        responses: the row's responses under the names that errors should give them.
        where: the row's place.

    Raises:
        DataError: there is no prompt, some responses are text and others chats, a chat does not
            end in one turn of the assistant, or `prompt` is not the prompt that the chats hold.
    """
    prompt = None
    if is_present(row, "prompt"):
        prompt = read_text_or_conversation(row["prompt"], "prompt", where)
    texts: dict[str, str] = {}
    chats: dict[str, Conversation] = {}
    for field, value in responses.items():
        response = read_text_or_conversation(value, field, where)
        if isinstance(response, str):
            texts[field] = response
        else:
            chats[field] = response
    if texts and chats:
        field, text = next(iter(texts.items()))
        raise wrong_field(where, field, f"a list of messages, as in '{next(iter(chats))}'", text)
    if chats:
        return _split_chats(prompt, chats, row, where)
    if prompt is None:
        raise missing_fields(row, where, "a 'prompt' beside the responses")
    return unanswered(prompt, where), tuple(texts.values())


def with_tools(prompt: Prompt, row: Record, where: str) -> Prompt:
    """Return a prompt with the tools that its row names, if any.

    They are `tools`, or OpenAI's older `functions`.

    Raises:
        DataError: `tools` is no list of JSON schemas, or the prompt is text, which has none.
    """
    tools = row.get("tools") or row.get("functions")
    if isinstance(tools, str):  # tables hold schemas of different forms as JSON
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise wrong_field(where, "tools", "a list of JSON schemas", tools) from error
    if not tools:
        return prompt
    items = read_list(tools, "tools", where, "a list of JSON schemas")
    if isinstance(prompt, str):
        raise wrong_field(where, "prompt", "a list of messages, as tools are for chats", prompt)
    for i, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise wrong_field(where, f"tools[{i}]", "the JSON schema of a function", item)
        if "name" in item and "function" not in item:  # a function alone
            items[i] = {"type": "function", "function": item}
    return ChatWithTools(prompt, cast("list[Mapping[str, Any]]", without_nulls(items)))


def unanswered(prompt: AnyPrompt, where: str) -> AnyPrompt:
    """Return a prompt that the assistant is to answer: a chat does not end in its own turn."""
    if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
        raise wrong_field(
            where, "prompt", "a chat that ends before the assistant's turn", prompt[-1]
        )
    return prompt


def _split_chats(
    prompt: str | Conversation | None, chats: Mapping[str, Conversation], row: Record, where: str
) -> tuple[Conversation, tuple[Response, ...]]:
    shared = _shared_beginning(list(chats.values()))
    responses = tuple(_response(chat[len(shared) :], field, where) for field, chat in chats.items())
    if not shared and prompt is None:
        raise missing_fields(row, where, "a 'prompt', or chats that begin with it")
    if not shared and isinstance(prompt, str):
        shared = (Message(role="user", content=prompt),)
    elif not shared and prompt is not None and not isinstance(prompt, str):
        shared = prompt
    elif prompt is not None and not _is_prompt_of(prompt, shared):
        raise wrong_field(where, "prompt", "the prompt that the chats begin with", prompt)
    return unanswered(shared, where), responses


def _shared_beginning(chats: list[Conversation]) -> Conversation:
    """Return the messages that all chats begin with, leaving each at least its last one."""
    first = chats[0]
    longest = min(len(chat) for chat in chats) - 1
    num_shared = 0
    while num_shared < longest and all(chat[num_shared] == first[num_shared] for chat in chats):
        num_shared += 1
    return first[:num_shared]


def _response(rest: Conversation, field: str, where: str) -> Response:
    roles = [message["role"] for message in rest]
    if roles[0] != "assistant" or roles[-1] != "assistant" or not _is_one_turn(rest):
        expected = "exactly one turn of the assistant after the prompt that the chats share"
        raise wrong_field(where, field, expected, ", ".join(roles))
    content = rest[-1].get("content")
    says_more = len(rest) > 1 or set(rest[0]) != {"role", "content"}
    return rest if says_more or not isinstance(content, str) else content


def _is_one_turn(messages: Conversation) -> bool:
    """Say whether each message but the last is a call of a tool, or what a tool returned."""
    return all(message["role"] == "tool" or "tool_calls" in message for message in messages[:-1])


def _is_prompt_of(prompt: Prompt, shared: Conversation) -> bool:
    """Say whether `prompt` names the same prompt: the whole chat, or the text of a user's turn."""
    if not isinstance(prompt, str):
        return prompt == shared
    return any(message["role"] == "user" and message["content"] == prompt for message in shared)
