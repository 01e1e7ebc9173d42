"""The page that samples are browsed on, as text and in a real browser."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from lit_rlhf.evaluation.bootstrap import Estimate
from lit_rlhf.evaluation.figures import Figure, PageRow, Report
from lit_rlhf.evaluation.page import embedded_json, render_page
from tests.support import chromium

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'>",
    "<!--<script>",
    "]]>",
    '" onmouseover=window.hacked=3 x="',
    "javascript:window.hacked=4",
    "\x1b[31mred\x1b[0m \x07 \r over",
    "user \u202egnp.exe\u202c \u2066x\u2069 \u200fabc",
    "null \x00 and \ufeff and lone \ud800 surrogate",
    "@SCRIPT@ @DATA@ &lt;b&gt; &amp;",
    "x" * 1_000_000,
    "<a href='http://127.0.0.1:9/leak'>",
]
needs_chromium = pytest.mark.skipif(
    chromium.WHERE is None,
    reason="no Chromium on the PATH (Debian: apt-get install chromium)",
)


def page_of(texts, scores=None, verdicts=None, **changes):
    """Return a page of three sides and two judges, the second of which compares."""
    rows = [
        PageRow(
            f"prompt {text}" if len(text) < 100 else text,
            [text, "middle", f"right {number}"],
            [[text[:50]], [], ["truncated"]],
            scores[number] if scores else [[float(number), None], [0.0, None], [1.0, None]],
            {1: verdicts[number] if verdicts else {"0-1": 1.0, "0-2": 0.0, "1-2": None}},
        )
        for number, text in enumerate(texts)
    ]
    figure = Figure("Scores", HOSTILE[0], "win_rate", Estimate(0.5, 0.25, 0.75, 9), "%", "b", "j")
    report = Report(
        settings={},
        title="Test <b>title</b> @SCRIPT@",
        sides=["left <i>", "middle", "right"],
        judges={"score": False, HOSTILE[1]: True},
        rows=rows,
        figures=[figure],
        pictures={},
        lineage={"left": {"phase": HOSTILE[0], "versions": {}, "data": {}, "origins": {}}},
        notes=[HOSTILE[1]],
    )
    return replace(report, **changes)


def rendered(report):
    return render_page(report, Path(), len(report.rows))


def test_no_character_of_the_data_can_end_its_element():
    for text in HOSTILE:
        embedded = embedded_json({"text": text})
        assert json.loads(embedded) == {"text": text}
        assert embedded.isascii()
        assert not re.search("[<>&]", embedded)
    with pytest.raises(ValueError, match="JSON compliant"):
        embedded_json(float("nan"))


def test_the_page_is_one_file_without_foreign_markup():
    text = rendered(page_of(HOSTILE))
    assert text.isascii()
    assert text.count("<script") == text.count("</script>") == 2
    assert not re.search(r"\bon\w+\s*=", re.sub(r'(?s)id="data">.*?</script>', "", text))
    assert "<title>Test &lt;b&gt;title&lt;/b&gt; @SCRIPT@</title>" in text
    outside = re.sub(r'(?s)id="data">.*?</script>', "", text)
    assert not re.search(r"https?://|src=|href=|url\(|@import", outside)
    assert "default-src 'none'" in text
    assert "unsafe" not in text


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Return a function that opens a page in the one browser of this module."""
    folder = tmp_path_factory.mktemp("chromium")
    with chromium.chromium(folder / "profile") as browser:

        def open_page(page):
            file = folder / "page.html"
            file.write_text(rendered(page), encoding="utf-8")
            browser.session = None
            browser.events.clear()
            browser.open(file)
            return browser

        yield open_page


def shown_rows(browser):
    return browser.evaluate(
        "[...document.querySelectorAll('.sample')].map(e => Number(e.dataset.row))"
    )


def check_nothing_happened(browser):
    """Only the page itself was loaded; no script but its own has run; nothing was refused."""
    loaded = [event["request"]["url"] for event in browser.reported("Network.requestWillBeSent")]
    assert [url.rpartition("/")[2] for url in loaded] == ["page.html"]
    assert browser.evaluate("window.hacked") is None
    assert browser.reported("Runtime.exceptionThrown") == []
    assert browser.reported("Page.javascriptDialogOpening") == []
    assert browser.reported("Log.entryAdded") == []


@needs_chromium
def test_hostile_text_is_text(browse):
    browser = browse(page_of(HOSTILE))
    browser.choose("sort", "prompts")
    texts = browser.evaluate(
        "[...document.querySelectorAll('.sample')]"
        ".map(e => e.querySelector('.sides .text').textContent)"
    )
    assert len(texts) == len(HOSTILE)
    for text, shown in zip(HOSTILE, texts, strict=True):
        expected = text[:2000]
        for character in "\x1b\x07\r\u202e\u202c\u2066\u2069\u200f\x00\ufeff\ud800":
            escape = f"\\x{ord(character):02x}" if ord(character) < 256 else None
            expected = expected.replace(character, escape or f"\\u{ord(character):04x}")
        assert shown == expected
    kinds = browser.evaluate(
        "[...new Set([...document.body.querySelectorAll('*')].map(e => e.tagName))]"
    )
    assert not {"IMG", "A", "I", "B", "IFRAME"} & set(kinds)
    assert browser.evaluate("document.querySelectorAll('script').length") == 2
    assert browser.evaluate("document.querySelector('#figures td').textContent") == HOSTILE[0]
    isolated = "getComputedStyle(document.querySelector('.text')).unicodeBidi"
    assert browser.evaluate(isolated) == "isolate"
    check_nothing_happened(browser)


@needs_chromium
def test_the_policy_refuses_what_does_not_belong_to_the_page(browse):
    """Were markup to get in after all, its scripts, handlers and requests would be refused."""
    browser = browse(page_of(["a"]))
    browser.evaluate(
        "document.body.insertAdjacentHTML('beforeend', "
        "'<img src=http://127.0.0.1:9/x onerror=\"window.hacked=1\">'); "
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 2'; "
        "document.body.append(s)"
    )
    assert browser.evaluate("window.hacked") is None
    refused = [entry["entry"]["text"] for entry in browser.reported("Log.entryAdded")]
    assert any("script" in text for text in refused)
    assert any("img-src" in text for text in refused)


@needs_chromium
def test_a_long_text_is_shown_piece_by_piece(browse):
    browser = browse(page_of(["short", "y" * 1_000_000]))
    browser.choose("sort", "prompts")
    length = "document.querySelector('[data-row=\"2\"] .sides .text').textContent.length"
    button = "[data-row='2'] .sides .more"
    assert browser.evaluate(length) == 2000
    label = browser.evaluate(f'document.querySelector("{button}").textContent')
    assert label == "show more (2,000 of 1,000,000 characters are shown)"
    assert browser.evaluate("document.querySelector('[data-row=\"1\"] .more').hidden")
    browser.click(button)
    assert browser.evaluate(length) == 102_000
    for _ in range(9):
        browser.click(button)
    assert browser.evaluate(length) == 1_000_000
    assert browser.evaluate(f'document.querySelector("{button}").hidden')


@needs_chromium
def test_sorting_sides_search_and_pages(browse):
    lefts = [0.5, -3.0, 2.0, 0.0, -0.1]
    # The second judge agrees with the first but on the third prompt; none on the fourth.
    verdicts = [{"0-1": v} for v in (1.0, 0.0, 0.0, None, 0.5)]
    scores = [[[left, None], [0.0, None], [1.0, None]] for left in lefts]
    texts = ["apple", "banana", "cherry", "date", "elder"]
    browser = browse(page_of(texts, scores, verdicts))
    assert shown_rows(browser) == [2, 3, 1, 5, 4]  # by the largest gap
    browser.choose("sort", "left")
    assert shown_rows(browser) == [3, 1, 4, 5, 2]
    browser.choose("sort", "right")
    assert shown_rows(browser) == [2, 5, 4, 1, 3]
    browser.choose("judge", 1)
    assert shown_rows(browser) == [2, 3, 5, 1, 4]  # by verdicts; without one at the end
    browser.choose("sort", "disagreement")
    assert shown_rows(browser)[0] == 3
    assert shown_rows(browser)[-1] == 4
    browser.choose("judge", 0)
    browser.choose("sort", "left")
    browser.choose("first", 1)
    browser.choose("second", 0)  # the other way round
    assert shown_rows(browser) == [2, 5, 4, 1, 3]
    names = "[...document.querySelectorAll('.sample .side .name')].map(e => e.textContent)"
    assert browser.evaluate(names)[:2] == ["middle", "left <i>"]
    gaps = browser.evaluate("document.querySelector('.gaps').textContent")
    assert gaps.startswith("left - right: score 3.000")
    browser.evaluate(
        "document.getElementById('search').value = 'BANANA';"
        "document.getElementById('search').dispatchEvent(new Event('input'))"
    )
    assert shown_rows(browser) == [2]

    browser = browse(page_of([f"text {number}" for number in range(45)]))
    browser.choose("sort", "prompts")
    assert len(shown_rows(browser)) == 20
    browser.click("#next")
    browser.click("#next")
    assert shown_rows(browser) == [41, 42, 43, 44, 45]
    assert browser.evaluate("document.getElementById('next').disabled")
    assert browser.evaluate("document.getElementById('place').textContent") == "3 of 3 (45 prompts)"
    browser.click("#previous")
    assert shown_rows(browser)[0] == 21
    check_nothing_happened(browser)


@needs_chromium
def test_a_page_without_judges_shows_its_samples(browse):
    page = page_of(["only"], judges={}, sides=["one"])
    row = PageRow("prompt", ["only"], [[]], [[]], {})
    browser = browse(replace(page, rows=[row]))
    assert shown_rows(browser) == [1]
    check_nothing_happened(browser)
