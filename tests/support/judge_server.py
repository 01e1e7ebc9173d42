"""An OpenAI-compatible endpoint on this machine that answers as a test tells it."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class JudgeServer:
    """What was asked, and what is answered.

    Attributes:
        address: of the API.
        requests: `(path, headers, content)` of each request, headers in lower case.
        answer: called with the request's content; returns a text (of a completion), a tuple
            `(status, headers, body)`, or None to close the connection without an answer.
    """

    def __init__(self, answer):
        self.answer = answer
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
                    reply = owner.answer(content)
                if reply is None:
                    self.close_connection = True
                    return
                if isinstance(reply, str):
                    message = {"role": "assistant", "content": reply}
                    body = json.dumps({"choices": [{"index": 0, "message": message}]})
                    reply = (200, {}, body)
                status, headers, body = reply
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def do_GET(self):
                self.do_POST()

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1"


@contextlib.contextmanager
def judge_server(answer):
    """Serve for the length of a block."""
    server = JudgeServer(answer)
    thread = threading.Thread(target=server.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.server.shutdown()
        server.server.server_close()
        thread.join()


def shown_responses(content):
    """Return the two responses of a request, A and B."""
    text = content["messages"][-1]["content"]
    return tuple(
        text.split(f"<response_{name}>\n")[1].split(f"\n</response_{name}>")[0] for name in "AB"
    )
