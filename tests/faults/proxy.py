"""A proxy between us and a store that does to requests what networks and overloaded stores do."""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["busy", "slow down", "reset", "stalled", "cut off", "lost"]
Script = Callable[[str, str, int], Fault | None]
"""Which fault befalls a request, by its method, its path, and how often the same was asked for before."""

STALL_SECONDS = 1.5
_BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive"}


class FaultyProxy(ThreadingHTTPServer):
    """Passes requests on to another server, but for the faults of a script; `faults` counts them."""

    daemon_threads = True

    def __init__(self, upstream: str, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.script = script
        self.faults: Counter[str] = Counter()
        self._asked: Counter[tuple[str, str]] = Counter()
        self._lock = Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault_of(self, method: str, path: str) -> Fault | None:
        with self._lock:
            before = self._asked[method, path]
            self._asked[method, path] += 1
            fault = self.script(method, path, before)
            if fault:
                self.faults[fault] += 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fault_of(self.command, self.path)
        if fault in ("busy", "slow down"):
            headers = {"Content-Type": "application/xml", **({"Retry-After": "1"} if fault == "slow down" else {})}
            self.answer(503 if fault == "busy" else 429, headers, _BUSY)
        elif fault == "reset":
            self.hang_up()
        elif fault == "stalled":
            time.sleep(STALL_SECONDS)
            self.hang_up()
        else:
            self.pass_on(body, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_request

    def pass_on(self, body: bytes, fault: Fault | None) -> None:
        upstream = HTTPConnection(self.server.upstream, timeout=30)
        try:
            upstream.request(self.command, self.path, body, dict(self.headers))
            reply = upstream.getresponse()
            content = reply.read()
        finally:
            upstream.close()
        if fault == "lost":
            self.hang_up()
        else:
            headers = {name: value for name, value in reply.getheaders() if name.lower() not in _HOP_BY_HOP}
            self.answer(reply.status, headers, content, cut_off=fault == "cut off")

    def answer(self, status: int, headers: dict[str, str], content: bytes, *, cut_off: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() != "content-length":
                self.send_header(name, value)
        length = headers.get("Content-Length", headers.get("content-length", str(len(content))))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content[: len(content) // 2] if cut_off else content)
        if cut_off:
            self.hang_up()

    def hang_up(self) -> None:
        """End the connection by a reset, without an answer."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, ValueError):  # hung up, by either side
            self.close_connection = True

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()


@contextmanager
def faulty_proxy(upstream: str, script: Script) -> Iterator[FaultyProxy]:
    """A proxy on a free port of this machine, for the length of the block."""
    proxy = FaultyProxy(upstream, script)
    thread = Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
