"""A real headless Chromium, driven by the DevTools protocol over a pipe: nothing else is needed.

Debian: `apt-get install chromium`; elsewhere any Chrome or Chromium on the PATH.
"""

import contextlib
import json
import os
import select
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WHERE = next(filter(None, map(shutil.which, NAMES)), None)
_TIMEOUT_S = 60


class Browser:
    """One page of a running Chromium.

    Attributes:
        events: all that the browser reported: requests, exceptions, dialogs, log entries.
    """

    def __init__(self, commands, answers):
        self.commands = commands
        self.answers = answers
        self.buffer = b""
        self.number = 0
        self.events = []
        self.session = None

    def call(self, method, **parameters):
        """Send a command and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, path):
        """Load a file and wait until it has run."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def evaluate(self, script):
        """Return the value of an expression on the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector):
        """Click the middle of the first element that a selector finds, as a hand would."""
        place = json.dumps(selector)
        x, y = self.evaluate(
            f"(() => {{ const e = document.querySelector({place}); e.scrollIntoView(); "
            "const r = e.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def choose(self, name, value):
        """Choose an option of a select element."""
        self.evaluate(
            f"(() => {{ const e = document.getElementById({json.dumps(name)}); "
            f"e.value = {json.dumps(str(value))}; e.dispatchEvent(new Event('change')); }})()"
        )

    def reported(self, method):
        """Return what was reported under a name."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def _read(self):
        end = time.monotonic() + _TIMEOUT_S
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], max(0, end - time.monotonic()))
            assert ready, f"Chromium did not answer in {_TIMEOUT_S} s"
            piece = os.read(self.answers, 1 << 20)
            assert piece, "Chromium has closed its pipe"
            self.buffer += piece
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def chromium(folder):
    """Run a browser for the length of a block, with its profile in `folder`."""
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()
    # Chromium reads commands on descriptor 3 and answers on 4.
    program = 'exec "$@" 3<&"$IN" 4>&"$OUT"'
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--remote-debugging-pipe",
        f"--user-data-dir={folder}",
    ]
    process = subprocess.Popen(
        ["bash", "-c", program, "chromium", WHERE, *options],
        pass_fds=(from_us, to_us),
        env={**os.environ, "IN": str(from_us), "OUT": str(to_us), "HOME": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(from_us)
    os.close(to_us)
    browser = Browser(to_browser, from_browser)
    try:
        yield browser
        browser.session = None
        browser.call("Browser.close")
    finally:
        process.kill()
        process.wait()
        os.close(to_browser)
        os.close(from_browser)
