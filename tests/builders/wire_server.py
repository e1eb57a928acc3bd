"""A real server on this machine, over the scorer of texts that say their own score."""

from tests.builders.http_server import answering
from tests.builders.wire_scores import post_bytes


def serving(*script):
    """A server that first answers as scripted, (status, headers, body) or `DROP`, then scores."""
    left = list(script)

    def answer(path, body):
        if left:
            return left.pop(0)
        status, content = post_bytes(path, body)
        return status, {}, content

    return answering(answer)
