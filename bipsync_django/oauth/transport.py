"""One HTTP exchange under one deadline over DNS, connect and every byte.

``requests`` times each read, not the whole: a body that trickles in holds its caller for as long
as the server likes, and a name lookup cannot be timed at all. So the exchange runs in a thread
that the caller waits for no longer than the deadline. A thread that was given up has its socket
shut down, and sends nothing more.
"""

import contextlib
import io
import socket
import threading
import time
from contextvars import ContextVar
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool

from ..conf import Tenant, is_secure_url
from ..exceptions import ConfigurationError

__all__ = ["ExchangeFailed", "exchange"]

_CHUNK = 16 * 1024


class ExchangeFailed(Exception):
    """No complete answer. ``maybe_sent`` is true when a byte of the body may have left."""

    def __init__(self, code: str, *, maybe_sent: bool) -> None:
        super().__init__(code)
        self.code = code
        self.maybe_sent = maybe_sent


def exchange(
    method: str,
    url: str,
    *,
    tenant: Tenant,
    max_bytes: int,
    data: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> requests.Response:
    """Make one request and return its whole answer, within ``tenant.http_timeout`` seconds.

    There are no retries and no redirects; an answer over ``max_bytes`` or in a content coding is
    refused. The status is the caller's to look at.

    Raises ``ExchangeFailed``, and ``ConfigurationError`` when ``url`` is neither https nor an
    allowed loopback address, or no URL at all.
    """
    if not is_secure_url(url, allow_insecure_loopback=tenant.allow_insecure_loopback):
        raise ConfigurationError(f"Refusing to talk to {url!r}: use an https:// URL.")
    attempt = _Attempt(tenant.http_timeout)
    try:
        request = requests.Request(
            method, url, data=data, headers={"Accept-Encoding": "identity", **(headers or {})}
        ).prepare()
    except requests.exceptions.InvalidURL:
        raise ConfigurationError(f"Cannot talk to {url!r}: it is no URL.") from None
    if request.body:
        request.body = _Body(request.body, attempt)  # type: ignore[assignment]
    thread = threading.Thread(
        target=attempt.run, args=(request, tenant.ca_bundle, max_bytes), daemon=True
    )
    try:
        thread.start()
    except RuntimeError:  # the machine has no thread left
        raise ExchangeFailed("connection_error", maybe_sent=False) from None
    return attempt.result()


class _Attempt:
    """What the caller and its thread share: the deadline, the socket and the outcome."""

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.maybe_sent = False
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._socket: socket.socket | None = None
        self._given_up = False
        self._response: requests.Response | None = None
        self._error: Exception | None = None

    def remaining(self) -> float:
        return self.deadline - time.monotonic()

    def check(self) -> None:
        """Raise when the deadline has passed. Called before anything is sent or awaited."""
        if self._given_up or self.remaining() <= 0:
            raise TimeoutError

    def watch(self, sock: socket.socket) -> None:
        """Remember the socket to shut down when the deadline passes."""
        with self._lock:
            self._socket = sock
            self.check()

    def result(self) -> requests.Response:
        """Wait for the outcome, at most until the deadline."""
        finished = self._done.wait(max(self.remaining(), 0))
        with self._lock:
            if not finished:
                self._given_up = True
                if self._socket is not None:
                    _shut_down(self._socket)
                raise ExchangeFailed("timeout", maybe_sent=self.maybe_sent)
        if self._error is not None:
            code = _failure_code(self._error)
            # The chain holds the request with its secrets, so it is cut here.
            raise ExchangeFailed(code, maybe_sent=self.maybe_sent) from None
        assert self._response is not None
        return self._response

    def run(self, request: requests.PreparedRequest, ca_bundle: str | None, max_bytes: int) -> None:
        _current.set(self)
        try:
            self._response = self._send(request, ca_bundle, max_bytes)
        except Exception as error:  # noqa: BLE001 - whatever a server can provoke is one outcome
            self._error = error
        finally:
            self._done.set()

    def _send(
        self, request: requests.PreparedRequest, ca_bundle: str | None, max_bytes: int
    ) -> requests.Response:
        assert request.url is not None
        environment: Any = _environment.merge_environment_settings(
            request.url, {}, True, ca_bundle or True, None
        )
        if request.url.startswith("http:"):
            # A proxy of the environment would carry the secrets away from loopback, in clear.
            environment["proxies"] = {}
        # The adapter alone: a session would unpack the body of a redirect it may not follow.
        with contextlib.closing(_Adapter(max_retries=0)) as adapter:
            timeout = max(self.remaining(), 0.001)
            with adapter.send(request, timeout=timeout, **environment) as response:
                if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise _Unacceptable("encoded")
                body = self._read(response, max_bytes)
        response.raw = io.BytesIO(body)
        return response

    def _read(self, response: requests.Response, max_bytes: int) -> bytes:
        body = bytearray()
        for chunk in response.raw.stream(_CHUNK, decode_content=False):
            self.check()
            body += chunk
            if len(body) > max_bytes:
                raise _Unacceptable("too_large")
        return bytes(body)


class _Unacceptable(Exception):
    pass


def _failure_code(error: Exception) -> str:
    if isinstance(error, _Unacceptable):
        return str(error)
    if isinstance(error, requests.Timeout | TimeoutError):
        return "timeout"
    if isinstance(error, requests.exceptions.SSLError):
        return "tls_error"
    return "connection_error"


def _shut_down(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # SSLSocket.shutdown() would touch TLS state that the other thread is using.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Body:
    """The request's body as a file, which knows when it starts to leave and refuses if too late."""

    def __init__(self, body: str | bytes, attempt: _Attempt) -> None:
        content = body.encode() if isinstance(body, str) else body
        self._file = io.BytesIO(content)
        self._attempt = attempt

    def read(self, size: int = -1) -> bytes:
        self._attempt.check()
        chunk = self._file.read(size)
        if chunk:
            self._attempt.maybe_sent = True
        return chunk


# Each attempt has a thread of its own, so its connections find it here.
_current: ContextVar[_Attempt] = ContextVar("bipsync_attempt")


class _WatchedHTTPConnection(HTTPConnection):
    def connect(self) -> None:
        _current.get().check()
        super().connect()
        _current.get().watch(self.sock)


class _WatchedHTTPSConnection(HTTPSConnection):
    def connect(self) -> None:
        _current.get().check()
        super().connect()
        _current.get().watch(self.sock)


# Asked for the environment's proxies and certificates only; it sends nothing.
_environment = requests.Session()


class _Adapter(HTTPAdapter):
    """Uses connections that report their socket to the attempt."""

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        secure = isinstance(pool, HTTPSConnectionPool)
        pool.ConnectionCls = _WatchedHTTPSConnection if secure else _WatchedHTTPConnection
        return pool
