"""Simulated labelers: each has a session, and keeps and sends judgments as static/label.js does.

Each has a ledger of what was decided and what the server acknowledged, to be compared with the
store. `Habits` say how often they do what makes trouble.
"""

import asyncio
import random
import time
import uuid
from typing import NamedTuple

import httpx2

from lit_rlhf.labelling.access import csrf_token, exchange, invite
from lit_rlhf.labelling.page import COOKIE

WANTED = 8  # tasks in the page
RETRY_S = (0.05, 0.1, 0.2, 0.5)  # twenty times faster than the page


class Habits(NamedTuple):
    """How often a labeler does it: a share of judgments, or of asks for tasks."""

    skip: float = 0.0
    undo: float = 0.0  # decide again, under an id of its own
    late: float = 0.0  # keep it in the browser until the lease has ended
    twice: float = 0.0  # send it from two windows at once
    lost: float = 0.0  # send it and never hear the answer
    two_windows: float = 0.0  # ask for tasks from two windows at once
    pause_s: float = 0.0  # rest between two judgments


TROUBLE = Habits(skip=0.04, undo=0.08, late=0.04, twice=0.1, lost=0.1, two_windows=0.1)


class Labeler:
    """A person with a browser.

    Attributes:
        decided: id -> judgment as it is sent: the ledger.
        receipts: id -> the server's answers, the first of several.
        last: task -> id of the judgment that counts.
        seconds: "claim" and "submit" -> how long each answered request took.
    """

    def __init__(self, name, store, address, habits, lease_s):
        session = exchange(store.database, invite(store.database, name, "labeler"))
        self.name, self.habits, self.lease_s = name, habits, lease_s
        self.address = address
        self.headers = {"Sec-Fetch-Site": "same-origin", "X-CSRF-Token": csrf_token(session)}
        self.cookies = {COOKIE: session}
        self.random = random.Random(name)
        self.decided, self.receipts, self.last = {}, {}, {}
        self.seconds = {"claim": [], "submit": []}
        self.tasks = []
        self.held_until = {}

    async def work(self, is_over):
        """Judge until nobody has anything to judge, then send what still waits."""
        async with httpx2.AsyncClient(
            base_url=self.address, headers=self.headers, cookies=self.cookies, timeout=60
        ) as self.client:
            while not is_over():
                if len(self.tasks) < WANTED / 2:
                    await self._fetch()
                if self.tasks:
                    self._decide(self.tasks.pop(0))
                await self._send()
                await asyncio.sleep(self.habits.pause_s if self.tasks else 0.1)
            self.held_until.clear()
            while self._unsent():
                await self._send()

    def _does(self, habit):
        return self.random.random() < getattr(self.habits, habit)

    def _unsent(self):
        return [body for id_, body in self.decided.items() if id_ not in self.receipts]

    async def _fetch(self):
        unsent = {body["task_id"] for body in self._unsent()}
        acknowledged = self.last.keys() - unsent
        path = f"/v1/tasks?count={min(WANTED + len(unsent), 100)}"
        windows = 1 + self._does("two_windows")
        for given in await asyncio.gather(*(self._ask("claim", path) for _ in range(windows))):
            known = self.last.keys() | {task["id"] for task in self.tasks}
            for task in given or ():
                assert task["id"] not in acknowledged, f"{self.name} gets task {task['id']} twice"
            self.tasks += [task for task in given or () if task["id"] not in known]

    def _decide(self, task):
        first = self._judge(task, "skip" if self._does("skip") else "judged", None)
        if self._does("late"):
            self.held_until[first] = time.time() + 1.2 * self.lease_s
        if self._does("undo"):
            self._judge(task, "judged", first)

    def _judge(self, task, outcome, replaces):
        number = len(self.decided)
        id_ = str(uuid.UUID(int=self.random.getrandbits(128), version=4))
        self.decided[id_] = {
            "task_id": task["id"], "id": id_, "outcome": outcome, "replaces": replaces,
            "ranks": self.random.choice(([1, 2], [2, 1])) if outcome == "judged" else None,
            "side_order": task["side_order"], "comment": f"{self.name} {number}",
            "submitted_at": time.time(),
        }  # fmt: skip
        self.last[task["id"]] = id_
        return id_

    async def _send(self):
        for body in self._unsent():
            if self.held_until.get(body["id"], 0) > time.time():
                continue
            if self._does("lost"):
                sent = asyncio.ensure_future(self._ask("lost", "/v1/judgments", body))
                await asyncio.sleep(self.random.uniform(0, 0.03))
                sent.cancel()
            windows = 1 + self._does("twice")
            sent = (self._ask("submit", "/v1/judgments", body) for _ in range(windows))
            answers = [answer for answer in await asyncio.gather(*sent) if answer is not None]
            if not answers:  # the next come after a task that is in the page
                return
            self.receipts[body["id"]] = max(answers, key=lambda answer: answer["is_new"])

    async def _ask(self, what, path, body=None):
        """Return what the server answers; None where it does not, after a wait."""
        start = time.perf_counter()
        try:
            answer = await self.client.request("POST" if body else "GET", path, json=body)
        except httpx2.TransportError:
            await asyncio.sleep(self.random.choice(RETRY_S))
            return None
        if answer.status_code == 429:
            await asyncio.sleep(1)
            return None
        assert answer.status_code == 200, f"{self.name}: {path}: {answer.text}"
        self.seconds.setdefault(what, []).append(time.perf_counter() - start)
        return answer.json()
