"""Pictures of the labeling page for the docs: `python -m tests.labelling.screenshots docs`."""

import sys
import tempfile
from pathlib import Path

from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.feedback.store import FeedbackStore
from tests.labelling.browser import chromium, join
from tests.labelling.serving import served

CHAT = (
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": "What is 17 * 23?"},
    {"role": "assistant", "content": "391"},
    {"role": "user", "content": "And how would you compute it in Python?"},
)
CODE = "I would multiply by **20** first, then by 3:\n\n```python\nprint(17 * 20 + 17 * 3)\n```"
GUIDELINES = "# What is better?\n\nPrefer what is true, then what is helpful, then what is short."


def _fill(store):
    first = JudgedTask(CHAT, (CODE, "By heart."), (), None, {})
    seas = tuple(f"The sea is {word} today." for word in ("blue", "deep", "wide", "loud"))
    store.add_tasks([first, JudgedTask("Describe the sea", seas, (), None, {})], slots=3)
    words = ("a review", "a letter", "a recipe", "a poem")
    said = [(1, 2), (1, 2), (2, 1)]
    for i in range(20):
        judgments = tuple(
            Judgment("judged", said[(i + j) % 3 if i % 3 else 0], labeler=name, duration_s=9.0 + i)
            for j, name in enumerate(("ben", "cem", "dora"))
        )
        prompt = f"Write {words[i % 4]}, number {i}"
        store.add_tasks([JudgedTask(prompt, ("one", "two"), judgments, None, {})])


def main(folder):
    """Write the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        guidelines = Path(place) / "guidelines.md"
        guidelines.write_text(GUIDELINES)
        url = f"{place}/feedback.db"
        with FeedbackStore.open(url) as store:
            _fill(store)
            with served(url, "--guidelines", str(guidelines)) as server, chromium() as browser:
                _take(store, server, browser, folder)


def _take(store, server, browser, folder):
    def window(name, role="labeler", **options):
        page = join(browser.new_context(**options), server.link(store, name, role))
        page.wait_for_selector("#task:not([hidden])")
        return page

    desk = {"viewport": {"width": 1100, "height": 780}}
    page = window("ana", **desk)
    for key in "1w":
        page.keyboard.press(key)
    page.screenshot(path=folder / "labeling-comparison.png")
    page.keyboard.press("Enter")
    page.wait_for_selector(".ranking")
    for key in "31=4":
        page.keyboard.press(key)
    page.screenshot(path=folder / "labeling-ranking.png")
    phone = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
    window("ada", **phone).screenshot(path=folder / "labeling-phone-dark.png")
    admin = window("root", "admin", **desk)
    admin.goto(f"{server.address}/admin")
    admin.screenshot(path=folder / "labeling-project.png", full_page=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
