"""An S3 server on loopback, moto's, that fails as real ones do: throttling, silence, bodies that end early.

pytest puts this folder on the path, because of its conftest.py.
"""

import contextlib
import json
import os
import random
import threading
import time
from collections import Counter

import pytest

BUCKET = "corpus"
READ_TIMEOUT = 1.0  # seconds, of the client
KINDS = ("throttled", "silent", "truncated")


class Faults:
    """WSGI middleware: a share of the requests fails, by seed. ``counts`` says how many of each kind did."""

    def __init__(self, app, seed=0):
        self.app = app
        self.share = 0.0
        self.counts = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def __call__(self, environ, start_response):
        with self._lock:
            fails = self._random.random() < self.share
            kind = self._random.choice(KINDS) if fails else "answered"
            self.counts[kind] += 1
            self.counts[environ["REQUEST_METHOD"]] += 1
        if kind == "throttled":  # before the request is acted on
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            start_response("503 Slow Down", [("Content-Length", str(len(body))), ("Content-Type", "application/xml")])
            return [body]
        answer = []  # the request is acted on, but its answer is lost
        body = b"".join(self.app(environ, lambda status, headers, info=None: answer.append((status, headers))))
        status, headers = answer[0]
        if kind == "silent":
            time.sleep(1.3 * READ_TIMEOUT)  # the client has given up
        if kind == "truncated" and body:
            headers = [(k, v) for k, v in headers if k.lower() != "content-length"] + [("Content-Length", len(body))]
            body = body[: len(body) // 2]
        start_response(status, [(key, str(value)) for key, value in headers])
        return [body]


class ObjectStore:
    """A running server. ``faults``: its failures; ``environment``: what a client process needs to find it."""

    def __init__(self, seed=0):
        moto_server = pytest.importorskip("moto.server", reason="moto[s3], flask and flask-cors are not installed")
        pytest.importorskip("s3fs", reason="s3fs is not installed (extra storage)")
        from werkzeug.serving import make_server

        app = moto_server.DomainDispatcherApplication(moto_server.create_backend_app)
        self.faults = Faults(app, seed)
        self._server = make_server("127.0.0.1", 0, self.faults, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        kwargs = {"config_kwargs": {"read_timeout": READ_TIMEOUT, "connect_timeout": 5, "retries": {"max_attempts": 1}}}
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "FSSPEC_S3": json.dumps(kwargs),
            "NO_PROXY": "127.0.0.1",
        }

    def stop(self):
        """End the server."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextlib.contextmanager
def serving(cache, seed=0):
    """An `ObjectStore` with an empty bucket that this process and those it starts use, with a cache of their own."""
    store = ObjectStore(seed)
    before = dict(os.environ)
    os.environ.update(store.environment, TOKENVERSE_PP_CACHE=str(cache))
    try:
        import fsspec
        from fsspec.config import conf, set_conf_env

        set_conf_env(conf)
        # fsspec keeps a filesystem per arguments, and the address of the server is none of them.
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        fsspec.filesystem("s3").mkdir(BUCKET)
        yield store
    finally:
        os.environ.clear()
        os.environ.update(before)
        conf.pop("s3", None)
        store.stop()
