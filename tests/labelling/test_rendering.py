import pytest

from lit_rlhf.labelling.rendering import MOST_CHARACTERS, plain_text, shown_prompt, shown_text


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[a](javascript:alert(1))",
        "![x](https://evil.example/pixel.png)",
        "<a href='https://evil.example'>here</a>",
        "<style>*{display:none}</style>",
        "<https://evil.example>",
        "```html\n<script>alert(1)</script>\n```",
        '<svg onload="alert(1)">',
        "<iframe srcdoc='<script>1</script>'>",
    ],
)
def test_nothing_is_executed_or_loaded(text):
    html = shown_text(text).html
    for tag in ("<script", "<img", "<a ", "<style", "<svg", "<iframe"):
        assert tag not in html
    assert "alert" not in text or "alert" in html  # it is still there to be read
    assert "evil.example" not in text or "evil.example" in html


def test_markdown_is_shown():
    html = shown_text("**bold** and `code`\n\n- one\n- two\n\n|a|b|\n|-|-|\n|1|2|").html
    for part in ("<strong>bold</strong>", "<code>code</code>", "<li>one</li>", "<td>1</td>"):
        assert part in html


def test_a_link_shows_its_target():
    assert (
        "my bank (https://evil.example/x)" in shown_text("[my bank](https://evil.example/x)").html
    )


@pytest.mark.parametrize(
    ("character", "shown"),
    [("\x1b", "\\x1b"), ("\u202e", "\\u202e"), ("\u2066", "\\u2066"), ("\x00", "\\x00"),
     ("\u200b", "\\u200b"), ("\ufeff", "\\ufeff"), ("\U000e0041", "\\U000e0041")],
)  # fmt: skip
def test_hidden_characters_are_seen(character, shown):
    text = f"before{character}after"
    assert character not in shown_text(text).html
    assert plain_text(text) == f"before{shown}after"
    assert "before" in shown_text(text).html
    assert "after" in shown_text(text).html


def test_line_separators_begin_a_line_and_joiners_stay():
    assert plain_text("a\u2028b\r\nc\u0085d") == "a\nb\nc\nd"
    persian = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert plain_text(persian) == persian
    assert persian in shown_text(persian).html


def test_of_a_very_long_text_the_beginning_is_shown():
    html, num_hidden = shown_text("x" * 1_000_000)
    assert num_hidden == 1_000_000 - MOST_CHARACTERS
    assert html.count("x") == MOST_CHARACTERS


def test_a_chat_is_shown_turn_by_turn():
    prompt = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "**Hi**"})
    assert [(turn.role, turn.shown.html) for turn in shown_prompt(prompt)] == [
        ("system", "<p>Be brief.</p>\n"),
        ("user", "<p><strong>Hi</strong></p>\n"),
    ]
    assert [turn.role for turn in shown_prompt("Hi")] == ["user"]
