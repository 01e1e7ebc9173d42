"""From records to text: what a model reads of a chat, and which stretches of it are learned.

The tokenizer's chat template renders a chat whole. A turn of the assistant is what stands in it
behind the generation prompt, up to the token that ends the turn. The model learns each turn as it
will write it: as the last one of its chat.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import takewhile
from logging import getLogger
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from jinja2 import TemplateError

from lit_rlhf.errors import DataError
from lit_rlhf.prompts import (
    ChatWithTools,
    Message,
    Prompt,
    Response,
    as_messages,
    content_text,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Literal["auto", "chat", "plain"]
Thinking = Literal["keep", "drop"]
Span = tuple[int, int]

_PROBE = "lit-rlhf-probe"
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
# At the beginning; a <think> further on is a part of the answer.
_THINKING = re.compile(r"\s*(?:<think>)?((?:(?!<think>).)*)</think>\s*(.*)", re.DOTALL)
_THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")
_TRAINING_KEYS = ("train", "weight")  # ours, about a turn; no template reads them

_log = getLogger(__name__)


class Piece(NamedTuple):
    """A stretch of text that is tokenised by itself, and the spans of it that are learned."""

    text: str
    learned: tuple[Span, ...] = ()


class RenderedText(NamedTuple):
    """An example as text.

    Attributes:
        pieces: joined as tokens. What a chat template writes is one piece.
        is_chat: a chat template wrote it, with all the special tokens that it wants.
        takes_eos: EOS follows what is learned, unless it is there.
    """

    pieces: tuple[Piece, ...]
    is_chat: bool
    takes_eos: bool = True


class _Chat(NamedTuple):
    """Messages to render, the tools that the assistant may call, and the place of the row."""

    messages: list[Message]
    tools: list[Mapping[str, Any]]
    where: str

    def cut(self, end: int) -> _Chat:
        """Return the chat without the messages from `end` on."""
        return self._replace(messages=self.messages[:end])


@dataclass(frozen=True)
class Renderer:
    """How a tokenizer's model reads prompts and responses, the same in every phase.

    Attributes:
        tokenizer: whose chat template is used.
        template: "plain" takes text as it is; "chat" makes a text one message of the user
            and applies the chat template; "auto" applies it to chats and takes texts plain.
        options: variables for the chat template, such as `enable_thinking`.
        thinking: "drop" takes the assistant's thinking out before a chat is rendered.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    thinking: Thinking = "keep"

    def prompt(self, prompt: Prompt, where: str) -> RenderedText:
        """Render a prompt, ready for the response to follow.

        Args:
            prompt: text or a chat.
            where: the row's place.

        Raises:
            DataError: the prompt is a chat and `template` is "plain", the tokenizer has no chat
                template, or its template refuses the chat.
        """
        if isinstance(prompt, str) and self.template != "chat":
            return RenderedText((Piece(prompt),), is_chat=False, takes_eos=False)
        text = self._opened(self._chat(prompt, (), where))
        return RenderedText((Piece(text),), is_chat=True, takes_eos=False)

    def for_policy(
        self, prompt: Prompt, response: Response, where: str, *, last_only: bool = False
    ) -> list[RenderedText]:
        """Render what a policy learns to say; further errors as in `prompt`.

        Args:
            prompt: text or a chat.
            response: text, or messages of which the assistant's are learned, except those that
                say `train: false` or `weight: 0`.
            where: the row's place.
            last_only: learn the assistant's last turn alone, if it is to be learned.

        Returns:
            One text. Or one a learned turn, where the template renders a turn differently once
            others follow: Qwen 3's drops its thinking. What follows the last learned turn is left
            out.

        Raises:
            DataError: nothing is learned, or the template loses a part of an answer.
        """
        if self._is_plain(prompt, response):
            return [_plain(prompt, response)]
        chat = self._chat(prompt, response, where)
        answers = as_messages(response, "assistant")
        for turn in (*as_messages(prompt, "user"), *answers):
            if turn["role"] != "assistant" and (turn.get("train") or turn.get("weight")):
                warn_once(
                    f"turns of the {turn['role']} are not learned, although their 'train' or "
                    "'weight' asks for it: the assistant's alone are"
                )
        first = len(chat.messages) - len(answers)
        turns = [first + i for i, turn in enumerate(answers) if turn["role"] == "assistant"]
        wanted = turns[-1:] if last_only else turns
        learned = [i for i in wanted if is_learned(answers[i - first])]
        if not learned:
            which = "the last turn of the assistant has" if last_only else "all its turns have"
            raise DataError(
                f"{where}: nothing is learned from this row: {which} 'train' false or 'weight' 0. "
                "Leave the row out."
            )
        return _join([self._turn(chat.cut(i + 1)) for i in learned])

    def for_reward(self, prompt: Prompt, response: Response, where: str) -> RenderedText:
        """Render what a reward model reads; arguments and errors as in `for_policy`.

        Of a chat that is all that its template writes, as transformers gives it to a reward
        model: the score belongs to the last token.
        """
        if self._is_plain(prompt, response):
            return _plain(prompt, response)
        return self._turn(self._chat(prompt, response, where), for_reward=True)

    @cached_property
    def end_of_turn(self) -> str | None:
        """The special token by which the template ends a turn of the assistant, or None."""
        closing = self._endings[0]
        found = [token for token in special_tokens(self.tokenizer) if closing.endswith(token)]
        return max(found, key=len, default=None)

    @cached_property
    def _endings(self) -> tuple[str, str | None]:
        """What ends an answer, and all that the template writes behind it, or None.

        Of a template that closes a whole chat by EOS (Phi 3.5) only what follows an answer also
        inside of a chat ends a turn.
        """
        turns = [("user", "?"), ("assistant", _PROBE), ("user", "?")]
        chat = [Message(role=role, content=content) for role, content in turns]
        behind = []
        for messages in (chat[:2], chat):
            try:
                _, found, rest = self._render(_Chat(messages, [], "")).rpartition(_PROBE)
            except DataError:  # it wants other chats than this one
                continue
            behind += [rest] if found else []
        if not behind:
            return "", None
        shared, tokens = _shared_beginning(behind[0], behind[-1]), special_tokens(self.tokenizer)
        ends = [shared.rindex(token) + len(token) for token in tokens if token in shared]
        if not ends:
            ends = [behind[0].index(t) + len(t) for t in tokens if t in behind[0]]
            ends = [min(ends, default=len(behind[0].rstrip()))]
        return behind[0][: max(ends)], behind[0]

    @cached_property
    def _contents(self) -> tuple[bool, bool]:
        """Whether the template takes content as text, and as a list of parts."""
        takes = []
        for content in (_PROBE, [{"type": "text", "text": _PROBE}]):
            chat = [Message(role=role, content=content) for role in ("user", "assistant")]
            try:
                text = self._render(_Chat(chat, [], ""))
            except DataError:
                text = ""
            takes.append(text.count(_PROBE) == 2 and "'type'" not in text and '"type"' not in text)
        return takes[0], takes[1]

    def _is_plain(self, prompt: Prompt, response: Response) -> bool:
        return self.template != "chat" and isinstance(prompt, str) and isinstance(response, str)

    def _chat(self, prompt: Prompt, response: Response, where: str) -> _Chat:
        """Return the messages as the template takes them."""
        if self.template == "plain":
            raise DataError(
                f"{where}: this row is a list of chat messages, but template is 'plain'; "
                "set template to 'auto' or 'chat'."
            )
        messages = [*as_messages(prompt, "user"), *as_messages(response, "assistant")]
        tools = list(prompt.tools) if isinstance(prompt, ChatWithTools) else []
        return _Chat([self._prepare(message) for message in messages], tools, where)

    def _prepare(self, message: Message) -> Message:
        prepared = {key: value for key, value in message.items() if key not in _TRAINING_KEYS}
        thinking, answer = _part_thinking(message)
        if thinking and self.thinking == "drop" and message["role"] == "assistant":
            prepared = {k: v for k, v in prepared.items() if k not in _THINKING_KEYS}
            prepared["content"] = answer
        if message["role"] == "assistant" and "content" in prepared:
            prepared["content"] = self._without_end(prepared["content"])
        content, (takes_text, takes_parts) = prepared.get("content"), self._contents
        if isinstance(content, str) and takes_parts and not takes_text:
            prepared["content"] = [{"type": "text", "text": content}]
        elif not isinstance(content, str | None) and not takes_parts:
            prepared["content"] = content_text(cast("Message", prepared))
        return cast("Message", prepared)

    def _without_end(self, content: Any) -> Any:  # noqa: ANN401 - text, parts or None
        """Take the token that ends a turn off a response, as the template writes it itself."""
        if isinstance(content, list | tuple) and content and "text" in content[-1]:
            last = {**content[-1], "text": self._without_end(content[-1]["text"])}
            return [*content[:-1], last]
        if not isinstance(content, str):
            return content
        bare = content.rstrip()
        for end in (self.end_of_turn, self.tokenizer.eos_token):
            if end and bare.endswith(end):
                return self._without_end(bare.removesuffix(end))
        return content

    def _turn(self, chat: _Chat, *, for_reward: bool = False) -> RenderedText:
        """Render a chat that ends in a turn of the assistant, which is learned."""
        opened, whole = self._opened(chat.cut(-1)), self._render(chat)
        thinking = _part_thinking(chat.messages[-1])[0]
        if for_reward:
            before, opener = _shared_beginning(opened, whole), ""
        else:
            before, opener = _part_opener(opened, whole, bool(thinking), chat.where)
        written, end = whole[len(before) :], self._end(whole)
        loses_thinking = self._check_kept(chat, written, for_reward=for_reward)
        is_closed = whole[:end].endswith(tuple(special_tokens(self.tokenizer)))
        takes_eos = not (for_reward or is_closed)
        marked = self._marked(chat, len(before))
        if for_reward or (not loses_thinking and (marked or not opener)):
            spans = tuple(marked or [(len(before), end)])
            return RenderedText((Piece(whole, spans),), True, takes_eos)
        # The template's own answer, behind the thinking as the model will write it.
        answer = written.removeprefix("<think>")
        if not answer.startswith("</think>"):
            answer = "\n</think>\n\n" + answer.lstrip("\n")
        text = ("" if opener else "<think>\n") + thinking + answer
        span = (0, len(text) - (len(whole) - end))
        return RenderedText((Piece(opened), Piece(text, (span,))), True, takes_eos)

    def _opened(self, chat: _Chat) -> str:
        """Render a prompt up to where the response begins, and check that it is all there."""
        text = self._render(chat, opens_turn=True)
        tools = [*chat.tools, *_tools_inside(chat.messages)]
        # The name of a tool may stand in what is said, too.
        is_deaf = bool(tools) and text == self._render(_without_tools(chat), opens_turn=True)
        for tool in tools:
            if is_deaf or function_name(tool) not in text:
                raise DataError(
                    f"{chat.where}: the chat template leaves out the tool {function_name(tool)!r}. "
                    "Use a tokenizer whose template takes tools, or leave out the field 'tools'."
                )
        found = _squeeze(text)
        for role in dict.fromkeys(message["role"] for message in chat.messages):
            own = [message for message in chat.messages if message["role"] == role]
            said = [content_text(message) for message in own]
            if role == "assistant":  # what it said earlier may lose its thinking, but not its calls
                calls = [call for message in own for call in message.get("tool_calls") or ()]
                said = [function_name(call) for call in calls]
            if any(_squeeze(content) not in found for content in said):
                warn_once(
                    f"{self._name}: its chat template changes or leaves out messages of the {role}"
                )
        return text

    def _check_kept(self, chat: _Chat, written: str, *, for_reward: bool) -> bool:
        """Say whether the template leaves out the thinking of the last message.

        Raises:
            DataError: to be learned, and it leaves out anything else, or knows of no thinking.
        """
        last, found = chat.messages[-1], _squeeze(written)
        thinking, answer = _part_thinking(last)
        calls = [function_name(call) for call in last.get("tool_calls") or ()]
        lost = [answer] if _squeeze(answer) not in found else []
        lost += [call for call in calls if not _stands_beside(answer, call, found)]
        loses_thinking = not _stands_beside(answer, thinking, found)
        if for_reward and (lost or loses_thinking):
            warn_once(f"{self._name}: its chat template leaves out a part of some scored responses")
            return True
        if loses_thinking and "</think>" not in self._source(chat):
            lost.append(thinking)
        if lost:
            raise DataError(
                f"{chat.where}: the chat template leaves out a part of the assistant's turn: "
                f"{lost[0][:60]!r}. Use a tokenizer whose template has a place for it, or leave "
                "it out (thinking: set 'thinking' to 'drop')."
            )
        return loses_thinking

    def _end(self, whole: str) -> int:
        """Return where the last turn of a rendered chat ends."""
        closing, ending = self._endings
        if ending is None or not whole.endswith(ending):  # calls may end in another way
            return len(whole.rstrip())
        return len(whole) - len(ending) + len(closing)

    def _marked(self, chat: _Chat, start: int) -> list[Span]:
        """Return the spans from a character on that `{% generation %}` marks, if any."""
        source = self._source(chat)
        if not _MARKS.search(source):
            return []
        from transformers.utils.chat_template_utils import (  # noqa: PLC0415 - seconds of imports
            render_jinja_template,
        )

        # Annotated to return a string; it returns texts and, asked for them, their spans.
        _, spans = cast("Any", render_jinja_template)(
            [chat.messages],
            tools=chat.tools or None,
            chat_template=source,
            return_assistant_tokens_mask=True,
            **{**self.tokenizer.special_tokens_map, **self.options},
        )
        return [(first, last) for first, last in spans[0] if last > start]

    def _render(self, chat: _Chat, *, opens_turn: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                cast("list[dict[str, str]]", chat.messages),
                tools=cast("list[dict[Any, Any] | Callable[..., Any]] | None", chat.tools or None),
                chat_template=self._source(chat),
                tokenize=False,
                add_generation_prompt=opens_turn,
                **self.options,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(
                f"{chat.where}: the chat template refuses this chat: {error}"
            ) from error
        assert isinstance(text, str)  # tokenize=False
        return text

    def _source(self, chat: _Chat) -> str:
        """Return the template's source: a tokenizer may have another one for tools."""
        if not self.tokenizer.chat_template:
            raise DataError(
                f"{chat.where}: chat messages need a chat template, and the tokenizer {self._name} "
                "has none. Use the tokenizer of an instruct model, or give prompts as text with "
                "template 'plain'."
            )
        tools = cast("list[dict[Any, Any]] | None", chat.tools or None)
        return self.tokenizer.get_chat_template(None, tools)

    @property
    def _name(self) -> str:
        return self.tokenizer.name_or_path or type(self.tokenizer).__name__


def read_template_options(text: str) -> dict[str, Any]:
    """Return the template's variables that a command line gives as a JSON object.

    Raises:
        ValueError: it is not one, which a parser of arguments reports.
    """
    options = json.loads(text)
    if not isinstance(options, dict):
        raise ValueError(text)  # noqa: TRY004 - what argparse expects
    return options


def is_learned(message: Message) -> bool:
    """Say whether a message is a turn of the assistant that is learned."""
    is_wanted = message.get("train", True) and message.get("weight", 1)
    return message["role"] == "assistant" and bool(is_wanted)


def _part_thinking(message: Message) -> tuple[str, str]:
    """Return what the assistant thought, without tags, and what it answered."""
    content = content_text(message)
    for key in _THINKING_KEYS:
        if thinking := message.get(key):
            return str(thinking), content
    parts = _THINKING.fullmatch(content)
    return (parts[1].strip("\n"), parts[2]) if parts else ("", content)


def function_name(tool: Mapping[str, Any]) -> str:
    """Return the name of a tool or of a call."""
    return str(tool.get("function", tool).get("name", ""))


def _tools_inside(messages: list[Message]) -> Iterator[Mapping[str, Any]]:
    """Yield the tools that messages name themselves, which few templates read."""
    for message in messages:
        tools = message.get("tools")
        if isinstance(tools, str):
            yield {"name": tools}
        elif isinstance(tools, list):
            yield from (tool for tool in tools if isinstance(tool, Mapping))


def _without_tools(chat: _Chat) -> _Chat:
    messages = [
        cast("Message", {key: value for key, value in message.items() if key != "tools"})
        for message in chat.messages
    ]
    return chat._replace(messages=messages, tools=[])


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts of the special tokens, EOS among them, but that for unknown words."""
    added = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    unknown = {tokenizer.unk_token} - {tokenizer.eos_token}
    return sorted((added | set(tokenizer.all_special_tokens)) - unknown)


def _plain(prompt: Prompt, response: Response) -> RenderedText:
    assert isinstance(prompt, str)
    assert isinstance(response, str)
    pieces = (Piece(prompt), Piece(response, ((0, len(response)),)))
    return RenderedText(pieces, is_chat=False)


def _join(texts: list[RenderedText]) -> list[RenderedText]:
    """Return one text that has all learned spans, where each text begins the last one."""
    whole = texts[-1].pieces[0].text
    spans: list[Span] = []
    for text in texts:
        piece = text.pieces[0]
        if len(text.pieces) > 1 or not whole.startswith(piece.text[: piece.learned[-1][1]]):
            return texts
        spans += piece.learned
    return [texts[-1]._replace(pieces=(Piece(whole, tuple(spans)),))]


def _shared_beginning(first: str, second: str) -> str:
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return "".join(char for char, _ in pairs)


def _part_opener(opened: str, whole: str, thinks: bool, where: str) -> tuple[str, str]:
    """Part from a prompt the thinking that it opens and the whole chat does not."""
    if thinks and opened.rstrip().endswith("</think>"):
        raise DataError(
            f"{where}: prompts close the thinking before the response, and this one thinks. Set "
            "'thinking' to 'drop', or the 'template_options' that let a prompt open it."
        )
    if whole.startswith(opened):
        return opened, ""
    before, opener, rest = opened.rpartition("<think>")
    if opener and not rest.strip() and whole.startswith(before):
        return before, opener
    raise DataError(
        f"{where}: the tokenizer's chat template renders earlier turns differently once a "
        "later one follows, so the response cannot be told from its prompt. Use a tokenizer "
        f"with another chat template, or plain texts. Prompt alone: ...{opened[-60:]!r}."
    )


def _stands_beside(answer: str, part: str, found: str) -> bool:
    """Say whether a part of a turn is in its squeezed text, and not only within the answer."""
    part = _squeeze(part)
    return not part or found.count(part) > _squeeze(answer).count(part)


def _squeeze(text: str) -> str:
    """Return a text without white space, which templates trim."""
    return "".join(text.split())


@cache
def warn_once(message: str) -> None:
    """Log a warning, once in a process."""
    _log.warning(message)
