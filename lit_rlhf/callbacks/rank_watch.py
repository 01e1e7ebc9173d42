"""Ends a run of several processes when one of them is gone, and says which.

A process that is killed leaves the others waiting for it in a collective. What they notice depends
on the backend: gloo breaks off where the connection is closed, NCCL and a lost machine are waited
for until a time limit of many minutes. Here each process has a thread that does not take part in
collectives, tells the others that it is alive, and looks whether its neighbour is.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ParallelStrategy
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, says its docs

from lit_rlhf.errors import ConfigError, LitRLHFError

_ROUND_S = 1.0  # between two looks
_GRACE_S = 5.0  # for the main thread to end by itself once a process is lost
_STORE_TIMEOUT = timedelta(seconds=20)
_NOTE = "lost process: "


class RankWatchCallback(Callback):
    """Watches over the processes of a run: if one is gone, all end, with an error that names it.

    On one machine a process that died is noticed within seconds; one that hangs, or whose machine
    is gone, after `timeout_s`. The processes watch each other in a ring, by a store that rank zero
    opens on a free port. With one process there is nothing to watch.

    Args:
        timeout_s: a process that has given no sign of life for so long counts as lost; null does
            not watch.

    Raises:
        ConfigError: `timeout_s` is below 10.
    """

    def __init__(self, timeout_s: float | None = 30.0) -> None:
        if timeout_s is not None and not timeout_s >= 10:
            raise ConfigError(f"rank_watch.timeout_s is {timeout_s}; expected >= 10, or null")
        self.timeout_s = timeout_s
        self._watch: _Watch | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to watch; called on every process, once they are connected."""
        strategy = trainer.strategy
        if self.timeout_s is None or not isinstance(strategy, ParallelStrategy):
            return
        if trainer.world_size == 1 or strategy.cluster_environment is None:
            return
        host, rank = strategy.cluster_environment.main_address, trainer.global_rank
        store = None
        if rank == 0:
            store = TCPStore(
                host, 0, is_master=True, wait_for_workers=False, timeout=_STORE_TIMEOUT
            )
        port = strategy.broadcast(None if store is None else store.port)
        if store is None:
            assert port is not None
            store = TCPStore(host, port, is_master=False, timeout=_STORE_TIMEOUT)
        self._watch = _Watch(store, rank, trainer.world_size, self.timeout_s)
        self._watch.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End watching when the stage has ended well."""
        if self._watch is not None:
            self._watch.finish()
            self._watch = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Tell the others; or, where this error comes from a lost process, note which it is."""
        if self._watch is not None:
            self._watch.explain(exception)
            self._watch = None


def lost_process(exception: BaseException) -> str | None:
    """Return which process was lost, where that is what an exception comes from."""
    notes: list[str] = getattr(exception, "__notes__", [])
    return next((note.removeprefix(_NOTE) for note in notes if note.startswith(_NOTE)), None)


class _Watch:
    """The thread of one process."""

    def __init__(self, store: TCPStore, rank: int, world_size: int, timeout_s: float) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._neighbour = (rank + 1) % world_size
        self._max_silent_rounds = int(timeout_s / _ROUND_S)
        self._timeout_s = timeout_s
        self._is_over = threading.Event()
        self._lost: str | None = None
        self._places: dict[int, _Place] = {}
        self._thread = threading.Thread(target=self._run, daemon=True, name="rank-watch")

    def start(self) -> None:
        """Say where this process is, learn where the others are, and begin."""
        self._store.set(f"place/{self._rank}", json.dumps(_here()))
        for rank in {0, self._neighbour}:
            self._places[rank] = _Place(*json.loads(self._store.get(f"place/{rank}")))
        self._thread.start()

    def finish(self) -> None:
        """End in good order; rank zero, which holds the store, is the last."""
        self._stop()
        with contextlib.suppress(RuntimeError):
            self._store.set(f"end/{self._rank}", "")
            if self._rank == 0:
                self._wait_for_ends(self._timeout_s)

    def explain(self, exception: BaseException) -> None:
        """Note on an exception which process was lost; where none was, tell the others of it."""
        deadline = time.monotonic() + 3 * _ROUND_S
        # A collective breaks off at once; who is gone is known at the next look.
        may_be_a_collective = not isinstance(exception, LitRLHFError)
        may_be_a_collective &= isinstance(exception, RuntimeError)
        while may_be_a_collective and self._lost is None and time.monotonic() < deadline:
            time.sleep(0.05)
        self._stop()
        with contextlib.suppress(RuntimeError):
            if self._lost is not None:
                exception.add_note(f"{_NOTE}{self._lost}")
            elif isinstance(exception, Exception):
                self._tell(f"rank {self._rank} failed: {_first_line(exception)}")
            self._store.set(f"end/{self._rank}", "")
            if self._rank == 0:  # long enough for the others' next look
                self._wait_for_ends(2 * _ROUND_S)

    def _run(self) -> None:
        last_beat, num_silent = -1, 0
        while not self._is_over.wait(_ROUND_S):
            try:
                self._store.add(f"beat/{self._rank}", 1)
                if self._store.check(["lost"]):
                    self._lost = self._store.get("lost").decode()
                elif self._store.check([f"end/{self._neighbour}"]):
                    continue
                else:
                    beat = self._store.add(f"beat/{self._neighbour}", 0)
                    # Counted in looks of our own: after a pause of all processes nobody is late.
                    num_silent = num_silent + 1 if beat == last_beat else 0
                    last_beat = beat
                    self._lost = self._missing(num_silent)
                    if self._lost is not None:
                        self._tell(self._lost)
            except RuntimeError:  # the store went with its process
                self._lost = f"{self._name(0)} is gone: killed, out of memory, or its machine lost"
            if self._lost is not None:
                self._end()
                return

    def _missing(self, num_silent: int) -> str | None:
        place = self._places[self._neighbour]
        if place.machine == _here().machine and not _is_alive(place.pid):
            return f"{self._name(self._neighbour)} is gone: killed, or out of memory"
        if num_silent >= self._max_silent_rounds:
            return f"{self._name(self._neighbour)} gave no sign of life for {self._timeout_s:g} s"
        return None

    def _end(self) -> None:
        """Say it, give the main thread time to fail by itself; end the process where it hangs."""
        # At once: launchers end what is left without a word.
        with contextlib.suppress(OSError):
            sys.stderr.write(f"lit-rlhf: error: {self._lost}; rank {self._rank} ends, too\n")
            sys.stderr.flush()
        if self._is_over.wait(_GRACE_S):
            return
        with contextlib.suppress(RuntimeError):
            self._store.set(f"end/{self._rank}", "")
        os._exit(1)

    def _tell(self, lost: str) -> None:
        if not self._store.check(["lost"]):
            self._store.set("lost", lost)

    def _stop(self) -> None:
        self._is_over.set()
        self._thread.join(timeout=_STORE_TIMEOUT.total_seconds())

    def _wait_for_ends(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        others = [f"end/{rank}" for rank in range(1, self._world_size)]
        while not self._store.check(others) and time.monotonic() < deadline:
            if self._store.check(["lost"]) and time.monotonic() > deadline - timeout_s + _GRACE_S:
                return
            time.sleep(0.05)

    def _name(self, rank: int) -> str:
        place = self._places[rank]
        return f"rank {rank} (process {place.pid} on {place.host})"


class _Place(NamedTuple):
    """Where a process runs.

    Attributes:
        host: its name.
        machine: the host, and the namespace of its process ids.
        pid: its process id.
    """

    host: str
    machine: str
    pid: int


def _here() -> _Place:
    host = socket.gethostname()
    namespace = Path("/proc/self/ns/pid")
    # Two containers may share a host's name, but not its process ids.
    machine = f"{host} {os.readlink(namespace)}" if namespace.exists() else host
    return _Place(host, machine, os.getpid())


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    status = Path(f"/proc/{pid}/stat")
    try:  # a process that ended stays listed until its parent has asked for its status
        return status.read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (OSError, IndexError):
        return not Path("/proc/self/stat").exists()


def _first_line(exception: BaseException) -> str:
    line = next(iter(str(exception).strip().splitlines()), "")
    return f"{type(exception).__name__}: {line}"
