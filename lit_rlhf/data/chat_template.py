"""From records to text: which stretches of it are the response, known by construction.

A prompt is text, or a chat that the tokenizer's template renders. Where the template is used, the
response is what the rendering of the whole chat has after the rendering of the prompt, up to the
end-of-sequence token that closes the turn; that the one begins with the other is checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from jinja2 import TemplateError

from lit_rlhf.errors import DataError
from lit_rlhf.feedback import Conversation, Demonstration, Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Literal["auto", "chat", "plain"]


class TextPiece(NamedTuple):
    """A stretch of text, and whether it is a response (to be learned and counted)."""

    text: str
    is_response: bool


class RenderedText(NamedTuple):
    """Text in pieces, tokenised one by one so that no token spans a boundary.

    Attributes:
        pieces: the text in order; the first is never a response.
        is_chat: a chat template wrote it, with all the special tokens that it wants.
        is_whole: two pieces that are all that the template writes; tokenised as one text, and
            nothing is appended.
    """

    pieces: tuple[TextPiece, ...]
    is_chat: bool
    is_whole: bool = False


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, template: Template, where: str
) -> RenderedText:
    """Render a prompt, ready for the response to follow.

    Args:
        tokenizer: whose chat template is used.
        prompt: text or a chat.
        template: "plain" takes text as it is; "chat" makes a text one message of the user
            and applies the chat template; "auto" applies it to chats and takes texts plain.
        where: the row's place.

    Returns:
        One piece.

    Raises:
        DataError: the prompt is a chat and `template` is "plain", the tokenizer has no chat
            template, or its template refuses the chat.
    """
    messages = _as_chat(prompt, template, where)
    if messages is None:
        assert isinstance(prompt, str)  # else it would be a chat
        return RenderedText((TextPiece(prompt, is_response=False),), is_chat=False)
    text = _apply(tokenizer, messages, where, opens_turn=True)
    return RenderedText((TextPiece(text, is_response=False),), is_chat=True)


def render_response(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    response: str,
    template: Template,
    where: str,
) -> RenderedText:
    """Render a prompt and its response; arguments and errors as in `render_prompt`.

    Returns:
        Two pieces: the prompt exactly as `render_prompt` gives it, and the response, of which
        only the latter counts.

    Raises:
        DataError: as `render_prompt`, or the rendered chat does not begin with its prompt.
    """
    messages = _as_chat(prompt, template, where)
    if messages is None:
        assert isinstance(prompt, str)  # else it would be a chat
        pieces = (TextPiece(prompt, is_response=False), TextPiece(response, is_response=True))
        return RenderedText(pieces, is_chat=False)
    chat = (*messages, Message(role="assistant", content=response))
    return _render_turns(tokenizer, chat, [len(messages)], where)


def render_for_reward(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    response: str,
    template: Template,
    where: str,
) -> RenderedText:
    """Render what a reward model reads; arguments and errors as in `render_response`.

    Of a chat that is the whole text that its template writes, to the last line break, as
    transformers gives it to a reward model: the score belongs to the last token.
    """
    messages = _as_chat(prompt, template, where)
    if messages is None:
        return render_response(tokenizer, prompt, response, template, where)
    chat = (*messages, Message(role="assistant", content=response))
    opened = _apply(tokenizer, messages, where, opens_turn=True)
    whole = _apply(tokenizer, chat, where, opens_turn=False)
    _check_begins(whole, opened, where)
    pieces = (TextPiece(opened, is_response=False), TextPiece(whole[len(opened) :], True))
    return RenderedText(pieces, is_chat=True, is_whole=True)


def render_demonstration(
    tokenizer: PreTrainedTokenizerBase, record: Demonstration, template: Template, where: str
) -> RenderedText:
    """Render a demonstration; of a whole chat every turn of the assistant counts.

    Messages after the assistant's last turn are left out: nothing is learned from them.

    Raises:
        DataError: as `render_response`.
    """
    if record.messages is None:
        assert record.prompt is not None  # a demonstration has one of its two forms
        assert record.response is not None
        return render_response(tokenizer, record.prompt, record.response, template, where)
    messages = _as_chat(record.messages, template, where)
    assert messages is not None  # a chat stays one
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return _render_turns(tokenizer, messages[: turns[-1] + 1], turns, where)


def _as_chat(prompt: Prompt, template: Template, where: str) -> Conversation | None:
    """Return the chat to render by the template, or None for plain text."""
    if isinstance(prompt, str):
        return (Message(role="user", content=prompt),) if template == "chat" else None
    if template == "plain":
        raise DataError(
            f"{where}: this row is a list of chat messages, but template is 'plain'; "
            "set template to 'auto' or 'chat'."
        )
    return tuple(prompt)


def _render_turns(
    tokenizer: PreTrainedTokenizerBase, messages: Conversation, turns: list[int], where: str
) -> RenderedText:
    """Cut the rendering of `messages` so that each of the given turns is a piece that counts."""
    whole = _apply(tokenizer, messages, where, opens_turn=False)
    pieces: list[TextPiece] = []
    done = 0
    for turn in turns:
        opened = _apply(tokenizer, messages[:turn], where, opens_turn=True)
        _check_begins(whole, opened, where)
        end = _turn_end(tokenizer, messages[: turn + 1], whole, len(opened), where)
        pieces.append(TextPiece(whole[done : len(opened)], is_response=False))
        pieces.append(TextPiece(whole[len(opened) : end], is_response=True))
        done = end
    return RenderedText(tuple(pieces), is_chat=True)


def _turn_end(
    tokenizer: PreTrainedTokenizerBase,
    messages: Conversation,
    whole: str,
    start: int,
    where: str,
) -> int:
    """Return where the last turn of `messages`, which starts at `start`, ends in `whole`.

    That is after the EOS that follows its content; with a template that writes none, after all
    that it writes but trailing white space.
    """
    content = messages[-1]["content"].strip()
    found = whole.find(content, start)
    content_end = start if found < 0 else found + len(content)
    eos = tokenizer.eos_token
    if eos and (eos_start := whole.find(eos, content_end)) >= 0:
        return eos_start + len(eos)
    closed = _apply(tokenizer, messages, where, opens_turn=False).rstrip()
    _check_begins(whole, closed, where)
    return max(start, len(closed))


def _check_begins(whole: str, beginning: str, where: str) -> None:
    if not whole.startswith(beginning):
        raise DataError(
            f"{where}: the tokenizer's chat template renders earlier turns differently once a "
            "later one follows, so the response cannot be told from its prompt. Use a tokenizer "
            f"with another chat template, or plain texts. Prompt alone: ...{beginning[-60:]!r}."
        )


def _apply(
    tokenizer: PreTrainedTokenizerBase, messages: Conversation, where: str, *, opens_turn: bool
) -> str:
    if not tokenizer.chat_template:
        raise DataError(
            f"{where}: chat messages need a chat template, and the tokenizer "
            f"{tokenizer.name_or_path or type(tokenizer).__name__} has none. Use the tokenizer of "
            "an instruct model, or give prompts as text with template 'plain'."
        )
    chat = cast("list[dict[str, str]]", [dict(message) for message in messages])
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=opens_turn)
    except (TemplateError, TypeError, ValueError) as error:
        raise DataError(f"{where}: the chat template refuses this chat: {error}") from error
    assert isinstance(text, str)  # tokenize=False
    return text
