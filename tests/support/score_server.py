"""A reward server on this machine that answers as a test tells it."""

import json
import time
from functools import partial

from tests.support.answering import answering


def score_server(answer):
    """Serve for the length of a block.

    Args:
        answer: called with the number of the request and its content; returns scores, or a tuple
            `(status, headers, body)`, or seconds to be silent for before the connection closes.
    """

    def reply(server, content):
        given = answer(len(server.requests), content)
        if isinstance(given, float):
            return partial(time.sleep, given)
        return (200, {}, json.dumps({"scores": given})) if isinstance(given, list) else given

    return answering("/score", reply)
