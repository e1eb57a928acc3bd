"""A real S3 server in this process, for what is stored in buckets."""

import logging
from contextlib import contextmanager
from threading import Lock, Thread

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@contextmanager
def s3_bucket(monkeypatch):
    """Yields the URI of a bucket on a server of its own, as a function of the path in it.

    Requests are decided one after the other: moto looks and then writes, which two requests would
    do at the same time. S3 itself decides conditional requests atomically.
    """
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app, lock = DomainDispatcherApplication(create_backend_app), Lock()

    def one_by_one(environ, start_response):
        with lock:
            return app(environ, start_response)

    server = make_server("127.0.0.1", 0, one_by_one, threaded=True)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"127.0.0.1:{server.server_port}"
    try:
        client = boto3.client("s3", endpoint_url=f"http://{address}", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        query = f"endpoint_override={address}&scheme=http&region=us-east-1"
        yield lambda path: f"s3://bucket/{path}?{query}"
    finally:
        server.shutdown()
        thread.join()
