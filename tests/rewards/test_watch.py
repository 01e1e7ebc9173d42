import contextlib
import logging
import signal
import threading
import time

import pytest

from lit_rlhf.errors import RewardError
from lit_rlhf.rewards import watch
from lit_rlhf.rewards.watch import watched


def swallow():
    """Sleep as code does that goes on after every error."""
    for _ in range(3):
        with contextlib.suppress(Exception):
            time.sleep(60)


@pytest.mark.parametrize("hang", [lambda: time.sleep(60), swallow, threading.Event().wait])
def test_a_call_that_hangs_ends_at_its_limit(hang):
    start = time.monotonic()
    message = r"my judge has not answered within 0\.2 s"
    with pytest.raises(RewardError, match=message), watched("my judge", 0.2):
        hang()
    assert time.monotonic() - start < 10
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


def test_a_call_that_takes_long_says_so(monkeypatch, caplog):
    monkeypatch.setattr(watch, "_WORD_EVERY_S", 0.05)
    with caplog.at_level(logging.WARNING), watched("my judge", None):
        time.sleep(0.3)
    assert len(caplog.messages) > 1
    assert "process 0: my judge has been running for" in caplog.messages[0]


def test_a_call_in_time_is_left_alone_and_its_errors_pass():
    with watched("my judge", 60.0):
        pass
    with pytest.raises(KeyError), watched("my judge", 60.0):
        raise KeyError
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


def test_outside_of_the_main_thread_there_is_no_limit_but_no_error_either():
    done = []

    def run():
        with watched("my judge", 0.01):
            time.sleep(0.1)
        done.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done == [True]
