"""A server on this machine that keeps what it is asked, and answers as a test tells it."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class AnsweringServer:
    """What was asked, and what is answered.

    Attributes:
        address: of the server, with a path.
        requests: `(path, headers, content)` of each request, headers in lower case.
        reply: called with this server and the content of a request, one at a time; returns
            `(status, headers, body)`, the body a text or pieces of one, or a function to call
            instead, behind which the connection closes without an answer.
    """

    def __init__(self, path, reply):
        self.reply = reply
        self.requests = []
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                size = int(self.headers.get("Content-Length") or 0)
                content = json.loads(self.rfile.read(size) or "{}")
                with owner.lock:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    owner.requests.append((self.path, headers, content))
                    reply = owner.reply(owner, content)
                if callable(reply):
                    reply()
                    self.close_connection = True
                    return
                status, headers, body = reply
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                # The client may have had enough.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    for piece in [body] if isinstance(body, str) else body:
                        self.wfile.write(piece.encode())

            def do_GET(self):
                self.do_POST()

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}{path}"


@contextlib.contextmanager
def answering(path, reply):
    """Serve for the length of a block."""
    server = AnsweringServer(path, reply)
    thread = threading.Thread(target=server.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.server.shutdown()
        server.server.server_close()
        thread.join()
