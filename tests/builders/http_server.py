"""A server on this machine that answers as a function has it, and remembers what it was sent."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DROP = "drop"
"""Answer that closes the connection."""


@contextmanager
def answering(answer):
    """Yields a server's address, and all requests to it: (path, headers, body, time).

    Args:
        answer: makes of a path and the bytes of a body (status, headers, body), or `DROP`. A body
            that is no bytes is sent as JSON.
    """
    seen = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen.append((self.path, headers, json.loads(body), time.monotonic()))
            reply = answer(self.path, body)
            if reply == DROP:
                self.close_connection = True
                return
            status, extra, content = reply
            sent = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**extra, "content-length": str(len(sent))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # clients that go away are part of the tests
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
