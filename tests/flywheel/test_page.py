"""The page and the rounds together: labelers finish a round's tasks, and the run goes on."""

import threading

import pytest

from lit_rlhf.feedback.store import FeedbackStore
from lit_rlhf.flywheel.rounds import run_rounds
from tests.flywheel.tiny_run import StandIns, tiny_settings
from tests.labelling.browser import chromium, join
from tests.labelling.serving import served
from tests.labelling.test_browser import finish, wait_for_judgments
from tests.support.chromium import WHERE
from tests.support.waiting import wait_for

PEOPLE = {"class_path": "People", "init_args": {"poll_s": 0.1}}


@pytest.mark.skipif(WHERE is None, reason="no Chromium (Debian: apt-get install chromium)")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Playwright's process: ended by its manager
def test_two_labelers_finish_a_round_on_the_page_and_it_goes_on(tmp_path, monkeypatch):
    choice = {"num_tasks": 5, "random_share": 0.2}
    settings = tiny_settings(
        tmp_path, monkeypatch, labeler=PEOPLE, slots=2, choice=choice, rounds=1
    )
    said = []
    # A daemon: where the test fails, it would wait for people for ever.
    run = threading.Thread(
        target=run_rounds,
        args=(settings, said.append, StandIns()),
        kwargs={"waits": True},
        daemon=True,
    )
    run.start()
    assert wait_for(lambda: any("10 judgments of 5 tasks are missing" in line for line in said)), (
        said
    )
    with (
        FeedbackStore.open("run/feedback.db", create=False) as store,
        served("run/feedback.db") as server,
        chromium() as browser,
    ):
        for count, labeler in enumerate(("ana", "ben"), start=1):
            window = browser.new_context()
            page = join(window, server.link(store, labeler))
            finish(page, 5)
            wait_for_judgments(page, store, count * 5)  # a closed window keeps what it did not send
            window.close()
        run.join(timeout=120)
        assert said[-1].startswith("round 1: promoted")
        assert store.counts().open_slots == 0
        judged = list(store.judged_tasks())
    assert len(judged) == 5
    for task in judged:
        assert sorted(one.labeler for one in task.judgments) == ["ana", "ben"]
        assert all(one.duration_s is not None for one in task.judgments)  # what a round costs
