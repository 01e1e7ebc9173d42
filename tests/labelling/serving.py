"""A served labeling page: `lit-rlhf label serve` in a process of its own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import httpx2

from lit_rlhf.labelling.access import invite


class Server:
    """`lit-rlhf label serve` in a process of its own, which can be killed and started again."""

    def __init__(self, url, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = ["label", "serve", url, "--port", str(self.port), *options]
        self.command = [sys.executable, "-m", "lit_rlhf", *words]
        self.address = f"http://127.0.0.1:{self.port}"
        self.process = None
        self.start()

    def start(self):
        """Start it, and wait until it answers."""
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
        )
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(httpx2.TransportError):
                httpx2.get(f"{self.address}/join")
                return
            assert self.process.poll() is None, "the server has ended"
            time.sleep(0.05)
        raise AssertionError("the server does not answer")

    def kill(self):
        """End it as a loss of power would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def link(self, store, name, role="labeler"):
        """Return an invitation."""
        return f"{self.address}/join#{invite(store.database, name, role)}"


@contextlib.contextmanager
def served(url, *options):
    """Serve a store for the length of a block."""
    server = Server(url, *options)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
