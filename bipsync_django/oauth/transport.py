"""One HTTP exchange under one deadline over DNS, connect and every byte.

``requests`` times each read, not the whole: a body that trickles in holds its caller for as long
as the server likes, and a name lookup cannot be timed at all. So the exchange runs in a thread
that the caller waits for no longer than the deadline. A thread that was given up has its socket
shut down, and sends nothing more; an answer that has arrived by then is read to its end.
"""

import contextlib
import io
import socket
import threading
import time
import zlib
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
_GRACE = 1.0

# zlib's window sizes for the content codings that a proxy may use although we ask for none
# (RFC 9110, section 8.4.1). Some servers send deflate without its wrapper.
_WINDOWS = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}


class ExchangeFailed(Exception):
    """No complete answer.

    ``maybe_sent`` is true when a byte of the body may have left. ``status`` is that of an answer
    whose head came, and whose body could not be had.
    """

    def __init__(self, code: str, *, maybe_sent: bool, status: int | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.maybe_sent = maybe_sent
        self.status = status


def exchange(
    method: str,
    url: str,
    *,
    tenant: Tenant,
    max_bytes: int,
    data: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
    not_after: float | None = None,
) -> requests.Response:
    """Make one request and return its whole answer, within ``tenant.http_timeout`` seconds.

    ``not_after``, a time of ``time.monotonic()``, makes the deadline earlier; if it has passed,
    nothing happens. There are no retries and no redirects; an answer over ``max_bytes``, before
    or after its gzip or deflate is undone, is refused. The status is the caller's to look at.

    Raises ``ExchangeFailed``, and ``ConfigurationError`` when ``url`` is neither https nor an
    allowed loopback address, or no URL at all.
    """
    if not is_secure_url(url, allow_insecure_loopback=tenant.allow_insecure_loopback):
        raise ConfigurationError(f"Refusing to talk to {url!r}: use an https:// URL.")
    deadline = time.monotonic() + tenant.http_timeout
    attempt = _Attempt(deadline if not_after is None else min(deadline, not_after))
    try:
        request = requests.Request(
            method, url, data=data, headers={"Accept-Encoding": "identity", **(headers or {})}
        ).prepare()
    except requests.exceptions.InvalidURL:
        raise ConfigurationError(f"Cannot talk to {url!r}: it is no URL.") from None
    if request.body:
        request.body = _Body(request.body, attempt)  # type: ignore[assignment]
    if attempt.remaining() <= 0:
        raise ExchangeFailed("timeout", maybe_sent=False)
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

    def __init__(self, deadline: float) -> None:
        self.maybe_sent = False
        self._deadline = deadline
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._socket: socket.socket | None = None
        self._given_up = False
        self._status: int | None = None
        self._response: requests.Response | None = None
        self._error: Exception | None = None

    def remaining(self) -> float:
        return self._deadline - time.monotonic()

    def check(self) -> None:
        """Raise when the deadline has passed. Called before anything is sent."""
        if self._given_up or self.remaining() <= 0:
            raise TimeoutError

    def watch(self, sock: socket.socket) -> None:
        """Remember the socket to shut down when the deadline passes."""
        with self._lock:
            self._socket = sock
            self.check()

    def result(self) -> requests.Response:
        """Wait for the outcome, at most until the deadline.

        An answer that has arrived counts, although this process may have slept over the deadline
        (a starved processor, a virtual machine that is moved): it may hold the only live pair.
        """
        try:
            self._done.wait(max(self.remaining(), 0))
            if self.maybe_sent and self.remaining() < -_GRACE:
                # Woken late, perhaps with the whole machine: the answer may be under way still.
                self._done.wait(_GRACE)
        finally:
            self._give_up()
        # From now on nothing comes in, but what the kernel has received can still be read. An
        # answer that says no length ends with that: its parser sees whether it is whole.
        finished = self._done.wait(_GRACE if self.maybe_sent else 0)
        if not finished or self._error is not None:
            # The chain holds the request with its secrets, so it is cut here.
            raise self._failure() from None
        assert self._response is not None
        return self._response

    def _give_up(self) -> None:
        """Let nothing leave or arrive any more, unless the exchange is over."""
        with self._lock:
            if not self._done.is_set():
                self._given_up = True
                if self._socket is not None:
                    _shut_down(self._socket)

    def _failure(self) -> ExchangeFailed:
        code = "timeout" if self._given_up else _failure_code(self._error)
        return ExchangeFailed(code, maybe_sent=self.maybe_sent, status=self._status)

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
            # Reading ends by the shutdown alone: a time limit of its own runs on while this
            # process is stopped, and would be over before the answer is looked at.
            timeout = (max(self.remaining(), 0.001), None)
            with adapter.send(request, timeout=timeout, **environment) as response:
                self._status = response.status_code
                body = _read(response, max_bytes)
        codings = response.headers.get("Content-Encoding", "")
        response.raw = io.BytesIO(_decoded(body, codings, max_bytes))
        return response


def _read(response: requests.Response, max_bytes: int) -> bytes:
    body = bytearray()
    for chunk in response.raw.stream(_CHUNK, decode_content=False):
        body += chunk
        if len(body) > max_bytes:
            raise _Unacceptable("too_large")
    return bytes(body)


def _decoded(body: bytes, codings: str, max_bytes: int) -> bytes:
    """Return ``body`` without the ``codings`` that are known; others are left to the parser.

    A body that does not hold what its header says is left to it too.
    """
    for coding in reversed(codings.lower().split(",")):
        for window in _WINDOWS.get(coding.strip(), ()):
            decoder = zlib.decompressobj(window)
            with contextlib.suppress(zlib.error):
                content = decoder.decompress(body, max_bytes + 1)
                if len(content) > max_bytes:
                    raise _Unacceptable("too_large")
                if decoder.eof:
                    body = content
                    break
    return body


class _Unacceptable(Exception):
    pass


def _failure_code(error: Exception | None) -> str:
    if isinstance(error, _Unacceptable):
        return str(error)
    if isinstance(error, requests.Timeout | TimeoutError):
        return "timeout"
    if isinstance(error, requests.exceptions.SSLError):
        return "tls_error"
    return "connection_error"


def _shut_down(sock: socket.socket) -> None:
    # Of an https proxy's tunnel urllib3 shows a wrapper.
    sock = getattr(sock, "socket", sock)
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
        chunk = self._file.read(size)
        if chunk:
            self._attempt.check()
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
