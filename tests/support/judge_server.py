"""An OpenAI-compatible endpoint on this machine that answers as a test tells it."""

import json

from tests.support.answering import answering


def judge_server(answer):
    """Serve for the length of a block.

    Args:
        answer: called with the request's content; returns a text (of a completion), a tuple
            `(status, headers, body)`, or None to close the connection without an answer.
    """

    def reply(_, content):
        given = answer(content)
        if isinstance(given, str):
            message = {"role": "assistant", "content": given}
            return 200, {}, json.dumps({"choices": [{"index": 0, "message": message}]})
        return (lambda: None) if given is None else given

    return answering("/v1", reply)


def shown_responses(content):
    """Return the two responses of a request, A and B."""
    text = content["messages"][-1]["content"]
    return tuple(
        text.split(f"<response_{name}>\n")[1].split(f"\n</response_{name}>")[0] for name in "AB"
    )
