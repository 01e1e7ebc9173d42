"""A reward server on this machine that answers as a test tells it."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ScoreServer:
    """What was asked, and what is answered.

    Attributes:
        address: of the server.
        requests: `(headers, content)` of each request, headers in lower case.
        answer: called with the number of the request and its content; returns scores, or a tuple
            `(status, headers, body)`, or seconds to be silent for before the connection closes.
    """

    def __init__(self, answer):
        self.answer = answer
        self.requests = []
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner.lock:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    owner.requests.append((headers, content))
                    reply = owner.answer(len(owner.requests), content)
                if isinstance(reply, float):
                    time.sleep(reply)
                    return
                if isinstance(reply, list):
                    reply = (200, {}, json.dumps({"scores": reply}))
                status, headers, body = reply
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                pieces = [body] if isinstance(body, str) else body
                # The client may have had enough.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    for piece in pieces:
                        self.wfile.write(piece.encode())

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/score"


@contextlib.contextmanager
def score_server(answer):
    """Serve for the length of a block."""
    server = ScoreServer(answer)
    thread = threading.Thread(target=server.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.server.shutdown()
        server.server.server_close()
        thread.join()
