"""HTTP/1.1 with keep-alive, on the standard library; what is answered is decided elsewhere."""

import contextlib
import socket
import socketserver
import ssl
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from requests.structures import CaseInsensitiveDict

from .messages import HTML, Request, Response

_LARGEST_BODY = 1_000_000

Exchange = Callable[[Request], Response | None]
"""Answers a request; ``None`` closes the connection without a byte."""


class HttpServer(ThreadingHTTPServer):
    """A server on a background thread whose ``stop()`` leaves no connection behind."""

    daemon_threads = True
    # socketserver's backlog of five drops connections when a pool of workers starts at once.
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], exchange: Exchange, tls: ssl.SSLContext | None = None
    ) -> None:
        self.exchange = exchange
        self._tls = tls
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._open: dict[Any, threading.Thread] = {}
        super().__init__(address, _Handler)
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    def server_bind(self) -> None:
        # http.server would look the host's name up here, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        if self._tls is not None:
            # The handshake waits for the client, so it is left to the connection's own thread.
            connection = self._tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), daemon=True
        )
        with self._lock:
            self._open[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients with a deadline hang up in the middle of an answer; that is what they are for.
        # Those that do not trust our authority hang up in the middle of the handshake.
        if not isinstance(sys.exception(), ConnectionError | ssl.SSLError):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        """Release the port, hang up on kept-alive connections and wait for their threads."""
        self.stopping.set()
        self.shutdown()
        self._thread.join()
        self.server_close()
        with self._lock:
            connections = list(self._open.items())
        for connection, thread in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=5)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One segment per answer: with Nagle's algorithm and delayed acknowledgements, a header and a
    # body written apart cost 40 ms on a kept-alive connection.
    disable_nagle_algorithm = True
    wbufsize = -1
    server: HttpServer

    def _serve(self) -> None:
        body = self._body()
        if body is None:
            return
        target = urlsplit(self.path)
        headers = CaseInsensitiveDict(self.headers.items())
        peer = (str(self.client_address[0]), self.client_address[1])
        request = Request(self.command, target.path, target.query, headers, body, peer)
        response = self.server.exchange(request)
        if response is None:
            self._hang_up()
        else:
            self._send(response)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _serve  # noqa: N815

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdecimal():
            self.send_error(411)
        elif int(length) > _LARGEST_BODY:
            self.send_error(413)
        else:
            return self.rfile.read(int(length))
        self.close_connection = True
        return None

    def _send(self, response: Response) -> None:
        self.send_response_only(response.status)
        if "Date" not in response.headers:
            self.send_header("Date", self.date_time_string())
        if response.body or response.status != 204:
            self.send_header("Content-Type", response.content_type or HTML)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if not response.pace:
            self.wfile.write(response.body)
            return
        self.wfile.flush()
        for byte in response.body:
            if self.server.stopping.wait(response.pace):
                self._hang_up()
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def version_string(self) -> str:
        """Say what this is in the ``Server`` header."""
        return "SimulatedBipsync"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Stay quiet: the request line of a callback holds a code."""
