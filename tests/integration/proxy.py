"""A proxy in front of an S3 server that makes it fail: errors, refusals, silence. HTTP/1.1, loopback only."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"


class Proxy:
    """Passes connections on, but for what ``mode`` says.

    ``pass``; ``refused``: connections are reset; ``500``, ``503``: every request is answered so; ``slow``: half a
    second before each piece of an answer; ``stuck``: requests are taken and never answered; ``expired``: 403.
    """

    def __init__(self, target: str) -> None:
        self.address = (urlsplit(target).hostname, urlsplit(target).port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.mode = "pass"
        self.faults = 0
        self.open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, mode: str) -> None:
        """Change the mode; connections made before are cut."""
        self.mode = mode
        for connection in list(self.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(connection, self.mode), daemon=True).start()

    def _serve(self, connection: socket.socket, mode: str) -> None:
        self.open.add(connection)
        self.faults += mode != "pass"
        with suppress(OSError), connection:
            if mode == "refused":
                return
            if mode in ("pass", "slow"):
                self._pass_on(connection, 0.5 if mode == "slow" else 0.0)
                return
            connection.recv(65536)
            if mode == "stuck":
                while self.mode == "stuck":
                    time.sleep(0.05)
                return
            code, body = ("403", EXPIRED) if mode == "expired" else (mode, b"")
            head = f"HTTP/1.1 {code} Fault\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
            connection.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)
        self.open.discard(connection)

    def _pass_on(self, connection: socket.socket, delay: float) -> None:
        with socket.create_connection(self.address) as server:
            answers = threading.Thread(target=_copy, args=(server, connection, delay), daemon=True)
            answers.start()
            _copy(connection, server, 0.0)
            answers.join()


def _copy(source: socket.socket, target: socket.socket, delay: float) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            time.sleep(delay)
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def proxy_before(target: str) -> Iterator[Proxy]:
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.set("refused")
        proxy.listener.close()
