"""An object store on this machine that speaks as much of S3 as reading takes, and counts."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000


class ObjectStore:
    """Keys and contents of one bucket.

    Args:
        objects: content by key.
    """

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self.objects = dict(sorted(objects.items()))
        self.requests: Counter[str] = Counter()  # by key; lists are counted under nothing
        self.most_at_once = 0
        self._running = 0
        self._lock = threading.Lock()

    @contextmanager
    def count(self, key: str) -> Iterator[None]:
        with self._lock:
            self.requests[key] += 1
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
        yield
        with self._lock:
            self._running -= 1

    def listing(self, query: Mapping[str, list[str]]) -> str:
        prefix = query.get("prefix", [""])[0]
        after = query.get("continuation-token", [""])[0]
        keys = [key for key in self.objects if key.startswith(prefix) and key > after]
        page = keys[: min(PAGE, int(query.get("max-keys", [PAGE])[0]))]
        more = len(page) < len(keys)
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key])}</Size>"
            "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{token}{contents}</ListBucketResult>"
        )


@contextmanager
def serving(store: ObjectStore) -> Iterator[str]:
    """Serve a store; gives the options that make a URI ``s3://bucket/...`` mean it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            url = urlsplit(self.path)
            key = unquote(url.path).lstrip("/").partition("/")[2]
            with store.count(key):
                status, body, headers = self._find(key, parse_qs(url.query))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

        def _find(self, key: str, query: Mapping[str, list[str]]) -> tuple[int, bytes, dict]:
            if not key:
                return 200, store.listing(query).encode(), {"Content-Type": "application/xml"}
            if key not in store.objects:
                return 404, b"", {}
            body = store.objects[key]
            headers = {"ETag": '"1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
            wanted = self.headers.get("Range")
            if wanted is None:
                return 200, body, headers
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last or len(body)), len(body) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
            return 206, body[start:stop], headers

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        port = server.server_address[1]
        yield f"?scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
    finally:
        server.shutdown()
        thread.join()
