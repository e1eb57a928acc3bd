"""Serves an app in a thread of the test's own process."""

import threading
from contextlib import contextmanager

import uvicorn


@contextmanager
def serving(app):
    """Yields the app's address, for as long as the context."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
