"""A real server on this machine, over the scorer of texts that say their own score."""

from tests.builders.http_server import answering
from tests.builders.wire_scores import post_bytes


def serving(*script):
    """A server that first answers as scripted, then scores.

    Args:
        script: answers, each (status, headers, body), `DROP`, or None for a score.
    """
    left = list(script)

    def answer(path, body):
        if step := left.pop(0) if left else None:
            return step
        status, content = post_bytes(path, body)
        return status, {}, content

    return answering(answer)
