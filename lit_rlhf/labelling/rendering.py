"""Prompts and responses as HTML that executes nothing, loads nothing and hides nothing.

Responses come from a model, so they are hostile until shown otherwise. Markdown is rendered without
its HTML, then cleaned by an allow-list; images are named, not loaded; a link shows where it leads;
characters that hide or reorder others stand as their escapes.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token

from lit_rlhf.markdown import visible
from lit_rlhf.prompts import Prompt, as_messages, response_text

# Longer texts are shown to here; the rest is one click away, as plain text.
MOST_CHARACTERS = 20_000
_TAGS = {
    "p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "strong", "em", "s", "code", "pre", "ol",
    "ul", "li", "blockquote", "table", "thead", "tbody", "tr", "th", "td", "span", "bdi",
}  # fmt: skip


class Shown(NamedTuple):
    """A text as the page shows it.

    Attributes:
        html: safe to insert as it is.
        num_hidden: characters behind it that are not shown.
    """

    html: str
    num_hidden: int


class Turn(NamedTuple):
    """One message of a prompt: who speaks, and what."""

    role: str
    shown: Shown


def shown_prompt(prompt: Prompt) -> list[Turn]:
    """Return the messages of a prompt; a text is one message of the user."""
    return [
        Turn(str(m["role"]), shown_text(response_text((m,)))) for m in as_messages(prompt, "user")
    ]


def shown_text(text: str) -> Shown:
    """Return Markdown as safe HTML; of a very long text its beginning."""
    text = _line_ends(text)
    beginning = text[:MOST_CHARACTERS]
    html: str = _markdown().render(_visible(beginning))
    clean = nh3.clean(html, tags=_TAGS, attributes={}, clean_content_tags={"script", "style"})
    return Shown(clean, len(text) - len(beginning))


def plain_text(text: str) -> str:
    """Return a whole text for an element that shows it as it is."""
    return _visible(_line_ends(text))


def _visible(text: str) -> str:
    # Joiners and non-joiners belong to the spelling of Persian and Hindi, and to many emoji.
    parts = re.split("([\u200c\u200d])", text)
    return "".join(part if part in ("\u200c", "\u200d") else visible(part) for part in parts)


def _line_ends(text: str) -> str:
    # What some tools take for line ends would be escapes otherwise, where people meant a new line.
    return re.sub("\r\n?|\u2028|\u0085", "\n", text).replace("\u2029", "\n\n")


@cache
def _markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False, "breaks": True})
    markdown.enable(["table", "strikethrough"])
    markdown.core.ruler.push("targets", lambda state: _show_targets(state.tokens))
    return markdown


def _show_targets(tokens: list[Token]) -> None:
    """Turn links into their text and target, images into their name: nothing to click or load."""
    for token in tokens:
        targets: list[str] = []
        children = []
        for child in token.children or []:
            if child.type == "link_open":
                targets.append(str(child.attrGet("href") or ""))
            elif child.type == "link_close":
                children.append(_text(f" ({targets.pop()})"))
            elif child.type == "image":
                children.append(_text(f"[image: {child.content} ({child.attrGet('src')})]"))
            else:
                children.append(child)
        if token.children is not None:
            token.children = children


def _text(content: str) -> Token:
    return Token("text", "", 0, content=content)
