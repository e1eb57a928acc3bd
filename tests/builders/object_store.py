"""A real S3 server in this process, for what is stored in buckets."""

import logging
from contextlib import contextmanager

import boto3
from moto.server import ThreadedMotoServer

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@contextmanager
def s3_bucket(monkeypatch):
    """Yields the URI of a bucket on a server of its own, as a function of the path in it."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        query = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        yield lambda path: f"s3://bucket/{path}?{query}"
    finally:
        server.stop()
