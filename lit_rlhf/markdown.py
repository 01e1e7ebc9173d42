"""What is shown in a terminal and in Markdown: foreign text made harmless, and tables."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence

# C0 but tab and line feed, DEL, C1; soft hyphen; zero-width and direction marks, line and
# paragraph separators; the byte-order mark; lone surrogates; variation tags.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def say(line: str) -> None:
    """Print a line at once, though the output be a file."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def visible(text: str) -> str:
    r"""Write characters that a terminal obeys, or that reorder or hide others, as their escapes.

    Tabs and line feeds stay. A carriage return is escaped: it would let a line write over itself.

    >>> visible("red: \x1b[31m, turned: \u202e")
    'red: \\x1b[31m, turned: \\u202e'
    """
    return _INVISIBLE.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def markdown_cell(text: str) -> str:
    """Return a text for one cell of a Markdown table: on one line, without markup of its own."""
    flat = re.sub(r"\s+", " ", visible(text)).strip()
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|!])", r"\\\1", flat)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with its columns aligned, so that a terminal shows it, too."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(header))]
    padded = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    padded.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(padded)
