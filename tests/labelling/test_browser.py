"""What people do, in a real browser against a real server."""

import itertools
import json

import pytest
from axe_playwright_python.sync_playwright import Axe

from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.feedback.schema import metadata
from lit_rlhf.feedback.store import FeedbackStore
from tests.labelling.browser import chromium, join
from tests.labelling.conftest import pair
from tests.labelling.serving import served
from tests.support.chromium import WHERE
from tests.support.feedback_stores import judgments_of

pytestmark = [
    pytest.mark.skipif(WHERE is None, reason="no Chromium (Debian: apt-get install chromium)"),
    # Playwright's process is ended by its own manager.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
_addresses = itertools.count()
HOSTILE = [
    "<script>window.broken = 1</script>",
    "<img src=x onerror='window.broken = 1'>",
    "[a](javascript:window.broken=1)",
    "![x](https://evil.example/pixel.png)",
    "\x1b[31mred\x1b[0m",
    "\u202eturned",
    "one\u2028two",
    "y" * 1_000_000,
]


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def everybodys_server(tmp_path_factory):
    """Return a server for all tests, and its store."""
    folder = tmp_path_factory.mktemp("labeling")
    guidelines = folder / "guidelines.md"
    guidelines.write_text("# Be kind\n\nPrefer what is true.")
    path = str(folder / "feedback.db")
    with (
        FeedbackStore.open(path) as store,
        served(path, "--guidelines", str(guidelines), "--qualification", "1", "--proxy") as running,
    ):
        yield running, store


@pytest.fixture
def file_store(everybodys_server):
    """Return the server's store, emptied."""
    running, store = everybodys_server
    running.kill()  # with the requests of the last test's pages, which would claim this one's tasks
    with store.database.writing() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
    running.start()
    return store


@pytest.fixture
def server(everybodys_server):
    running, _ = everybodys_server
    return running


@pytest.fixture
def window(browser):
    """Return a function that opens a window of its own, with nothing kept from others."""
    opened = []

    def window(**options):
        # An address of its own, too: each may try few invitations a minute.
        address = {"X-Forwarded-For": f"192.0.2.{next(_addresses) % 256}"}
        opened.append(browser.new_context(extra_http_headers=address, **options))
        return opened[-1]

    yield window
    for context in opened:
        context.close()


def wait_for_task(page):
    page.wait_for_selector("#task:not([hidden])")


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def wait_for_judgments(page, store, count):
    """Wait until so many have arrived: the page shows nothing of one that is just being kept."""
    for _ in range(600):
        if store.counts().judgments >= count:
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"the store has {store.counts().judgments} judgments, not {count}")


def finish(page, count):
    """Judge tasks by keyboard alone until there are none."""
    for number in range(count):
        wait_for_task(page)
        press(page, *(("1", "q"), ("2", "e"), ("t",), ("b",))[number % 4], "Enter")
    page.wait_for_selector("#empty:not([hidden])")
    # A machine judges faster than one request after the other brings it to the server.
    page.wait_for_selector("#queue:empty", state="attached", timeout=60_000)


def test_the_page_asks_the_question_of_the_task(file_store, server, window):
    about = pair(0)._replace(question="harmless")
    file_store.add_tasks([about], slots=1)
    page = join(window(), server.link(file_store, "ana"))
    wait_for_task(page)
    assert page.inner_text("#question") == "Which response is better? (harmless)"


def test_a_page_without_tasks_asks_for_them_now_and_then(file_store, server, window):
    file_store.add_tasks([pair(0)], slots=1)
    page = join(window(), server.link(file_store, "ana"))
    finish(page, 1)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(1500)
    assert len(asked) <= 3  # of the last judgment, or of the timer; not one after the other


@pytest.mark.parametrize(
    "num_tasks", [pytest.param(12, id="12"), pytest.param(200, id="200", marks=pytest.mark.slow)]
)
def test_two_labelers_finish_by_keyboard_and_one_loses_the_connection(
    file_store, server, window, num_tasks
):
    file_store.add_tasks([pair(i) for i in range(num_tasks)], slots=2)
    bens = window()
    ben = join(bens, server.link(file_store, "ben"))
    for _ in range(2):
        wait_for_task(ben)
        press(ben, "1", "Enter")
    wait_for_judgments(ben, file_store, 2)
    ben.wait_for_timeout(200)  # the answers arrive
    server.kill()
    for _ in range(3):  # the next tasks are in the page
        wait_for_task(ben)
        press(ben, "2", "Enter")
    ben.wait_for_selector("text=3 to send. No connection")
    ben.close()
    server.start()
    again = bens.new_page()
    again.goto(server.address)
    finish(again, num_tasks - 5)
    wait_for_judgments(again, file_store, num_tasks)
    ana = join(window(), server.link(file_store, "ana"))
    finish(ana, num_tasks)
    wait_for_judgments(ana, file_store, 2 * num_tasks)
    judged = [task.judgments for task in file_store.judged_tasks()]
    assert len(judged) == num_tasks
    assert all(sorted(said.labeler for said in task) == ["ana", "ben"] for task in judged)
    assert file_store.counts().judgments == 2 * num_tasks


def test_what_is_pressed_is_what_the_store_has(file_store, server, window):
    file_store.add_tasks([pair(0)], slots=1)
    ranking = JudgedTask("rank", tuple("abcd"), (), None, {})
    file_store.add_tasks([ranking, JudgedTask("rate", ("x",), (), None, {})], slots=1)
    file_store.add_tasks([JudgedTask("edit", ("a respose",), (), None, {})], slots=1, kind="edit")
    page = join(window(), server.link(file_store, "ana"))
    wait_for_task(page)
    press(page, "2", "w")
    page.fill("#comment", "because")
    press(page, "Control+Enter")
    page.wait_for_selector(".ranking")
    press(page, "3", "1", "=", "4", "Enter")
    page.wait_for_selector(".rating")
    press(page, "4", "Enter")
    page.wait_for_selector(".edit")
    page.fill("textarea.edit", "a response")
    press(page, "Control+Enter")
    page.wait_for_selector("#empty:not([hidden])")
    wait_for_judgments(page, file_store, 4)
    said = dict(judgments_of(file_store, "ana"))
    compared, ranked, rated, edited = (said[i] for i in range(1, 5))
    better = compared.side_order[1]  # what stood second on the screen
    assert (compared.ranks[better], compared.ranks[1 - better]) == (1, 2)
    assert (compared.strength, compared.comment) == (2, "because")
    by_place = [ranked.ranks[i] for i in ranked.side_order]
    assert by_place == [2, None, 1, 2]
    assert rated.ratings == (4.0,)
    assert edited.edit == "a response"
    assert all(0 < judgment.duration_s < 60 for judgment in said.values())


def test_undo_corrects_and_skip_hands_on(file_store, server, window):
    file_store.add_tasks([pair(0), pair(1)], slots=1)
    page = join(window(), server.link(file_store, "ana"))
    wait_for_task(page)
    press(page, "1", "Enter", "u")
    assert page.get_attribute("[data-key='1']", "aria-pressed") == "true"
    press(page, "2", "Enter", "s")
    page.wait_for_selector("#empty:not([hidden])")
    wait_for_judgments(page, file_store, 3)
    skipped, second, first = (judgment for _, judgment in judgments_of(file_store, "ana"))
    assert (skipped.outcome, second.replaces) == ("skip", first.id)
    assert second.ranks == tuple(reversed(first.ranks))
    assert [task.id for task in file_store.claim("ben", 5)] == [2]


def test_a_reloaded_page_has_the_same_task_and_what_was_written(file_store, server, window):
    file_store.add_tasks([pair(i) for i in range(3)], slots=1)
    page = join(window(), server.link(file_store, "ana"))
    wait_for_task(page)
    page.fill("#comment", "half a thought")
    press(page, "Tab")
    page.click("[data-key='1']")
    before = page.inner_text("#responses")
    page.reload()
    wait_for_task(page)
    assert page.input_value("#comment") == "half a thought"
    assert page.get_attribute("[data-key='1']", "aria-pressed") == "true"
    assert page.inner_text("#responses") == before


def test_a_refused_judgment_stays_and_is_shown(file_store, server, window):
    file_store.add_tasks([pair(0)], slots=1)
    page = join(window(), server.link(file_store, "ana"))
    page.route(
        "**/v1/judgments",
        lambda route: route.fulfill(status=422, body=json.dumps({"detail": "no such thing"})),
    )
    wait_for_task(page)
    press(page, "1", "Enter")
    page.wait_for_selector("text=Task 1 was refused: no such thing.")
    page.unroute("**/v1/judgments")
    page.click("text=Send again")
    page.wait_for_selector("#refused", state="hidden")
    wait_for_judgments(page, file_store, 1)


def test_an_ended_session_keeps_what_was_judged(file_store, server, window):
    file_store.add_tasks([pair(0)], slots=1)
    context = window()
    page = join(context, server.link(file_store, "ana"))
    wait_for_task(page)
    context.clear_cookies()
    press(page, "1", "Enter")
    page.wait_for_selector("text=Nothing is lost")
    join(context, server.link(file_store, "ana")).wait_for_selector("#empty:not([hidden])")
    page.close()
    wait_for_judgments(context.pages[0], file_store, 1)


def test_hostile_responses_execute_nothing_and_can_be_read(file_store, server, window):
    pairs = list(zip(HOSTILE[::2], HOSTILE[1::2], strict=True))
    file_store.add_tasks([JudgedTask("Hi", two, (), None, {}) for two in pairs], slots=1)
    page = join(window(), server.link(file_store, "ana"))
    asked, dialogs = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    read = ""
    for _ in pairs:
        wait_for_task(page)
        if page.query_selector(".response > button.quiet"):
            page.click(".response > button.quiet")
            page.wait_for_selector("pre.plain")
        read += page.inner_text("#responses")
        assert page.evaluate("document.querySelector('#responses').scrollWidth") <= 1280
        press(page, "t", "Enter")
    page.wait_for_selector("#empty:not([hidden])")
    assert page.evaluate("window.broken") is None
    assert not dialogs
    assert all(url.startswith(server.address) for url in asked)
    for part in ("window.broken = 1", "evil.example", "\\x1b[31mred", "\\u202eturned", "one\ntwo"):
        assert part in read
    assert "y" * 1_000_000 in read


@pytest.mark.parametrize("path", ["/", "/admin", "/join", "/guidelines"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(file_store, server, window, path, scheme):
    file_store.add_tasks(
        [JudgedTask("Hi", ("**a**", "```\nb\n```", "c"), (), None, {}), pair(1)], slots=1
    )
    page = join(window(color_scheme=scheme), server.link(file_store, "root", "admin"))
    wait_for_task(page)
    if path != "/":
        page.goto(server.address + path)
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    # The page's policy forbids scripts of others: axe is injected past it by the debugger.
    found = Axe().run(page, options={"runOnly": tags})
    assert found.violations_count == 0, found.generate_report()


def test_a_keyboard_reaches_every_control(file_store, server, window):
    file_store.add_tasks([JudgedTask("Hi", ("a", "b", "c"), (), None, {})], slots=1)
    page = join(window(), server.link(file_store, "ana"))
    wait_for_task(page)
    page.select_option("article:nth-child(1) select", "1")
    page.select_option("article:nth-child(2) select", "2")
    controls = "[...document.querySelectorAll('a, button, input, select, textarea')]"
    wanted = page.evaluate(
        f"{controls}.filter((e) => !e.disabled && e.type !== 'hidden' && e.offsetParent).length"
    )
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(f"{controls}.indexOf(document.activeElement)"))
    assert len(reached - {-1}) == wanted


def test_shortcuts_can_be_switched_off(file_store, server, window):
    file_store.add_tasks([pair(0)], slots=1)
    context = window()
    page = join(context, server.link(file_store, "ana"))
    wait_for_task(page)
    page.uncheck("#shortcuts")
    page.focus("#question")
    press(page, "1", "Enter", "s")
    assert page.get_attribute("[data-key='1']", "aria-pressed") == "false"
    page.reload()
    wait_for_task(page)
    assert not page.is_checked("#shortcuts")
    assert not page.is_visible("[data-key='1'] kbd")
    page.click("[data-key='1']")
    page.click("#submit")
    page.wait_for_selector("#empty:not([hidden])")


def test_a_wrong_answer_to_a_first_gold_task_is_told(file_store, server, window):
    gold = Judgment("both_bad", is_gold=True)
    file_store.add_tasks([pair(0), pair(1)._replace(judgments=(gold,))], slots=1)
    page = join(window(), server.link(file_store, "ana"))
    wait_for_task(page)
    press(page, "1", "Enter")
    page.wait_for_selector("text=The gold answer to “Prompt 1”: both bad")
    wait_for_task(page)
    assert page.inner_text("#prompt").endswith("Prompt 0")


def test_a_ranking_by_dragging(file_store, server, window):
    file_store.add_tasks([JudgedTask("Hi", ("a", "b", "c"), (), None, {})], slots=1)
    page = join(window(), server.link(file_store, "ana"))
    wait_for_task(page)
    press(page, "1", "2")
    page.drag_and_drop("article:nth-child(3)", "article:nth-child(1)")
    ranks = [page.input_value(f"article:nth-child({i}) select") for i in (1, 2, 3)]
    assert ranks == ["2", "3", "1"]
