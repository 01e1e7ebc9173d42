import string

from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.markdown import markdown_cell, visible


def test_what_a_terminal_obeys_is_escaped():
    assert visible("\x1b[2J\x9b1m\r\b\x07") == "\\x1b[2J\\x9b1m\\r\\x08\\x07"
    assert visible("a\u202eb\u2066c\u200fd\u200be") == "a\\u202eb\\u2066c\\u200fd\\u200be"
    assert visible("\ud800 \U000e0041") == "\\ud800 \\U000e0041"
    assert visible("tab\there\nnext, é 漢 😀") == "tab\there\nnext, é 漢 😀"


@given(st.text(alphabet=st.characters()))
def test_nothing_that_controls_is_left(text):
    shown = visible(text)
    assert not any(ord(sign) < 32 and sign not in "\t\n" for sign in shown)
    assert not any(0x7F <= ord(sign) < 0xA0 for sign in shown)
    assert visible(shown) == shown


def test_a_cell_of_markdown_has_no_markup():
    cell = markdown_cell("<b>x</b> | [a](b) ![i](j)\n# *y* `z` \x1b[1m")
    assert "\n" not in cell
    assert "<" not in cell
    for sign in "|[]*`!":
        assert f"\\{sign}" in cell
    assert markdown_cell(string.ascii_letters) == string.ascii_letters
