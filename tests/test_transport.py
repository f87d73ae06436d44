"""One exchange: one deadline, nothing after it, no secrets to anyone but the tenant."""

import contextlib
import dataclasses
import datetime
import gzip
import ipaddress
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from urllib3.connection import HTTPConnection, HTTPSConnection

from bipsync_django.conf import Tenant, get_tenant
from bipsync_django.exceptions import ConfigurationError
from bipsync_django.oauth import transport
from bipsync_django.oauth.transport import ExchangeFailed, exchange

DEADLINE = 0.5
# Generous, because it bounds nothing but a hanging test on a busy machine.
PATIENCE = 10.0
FORM = {"client_secret": "portal-secret", "refresh_token": "def50200"}
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: "
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class RawServer:
    """Gives each connection to ``serve`` in a thread, and keeps what arrived on it."""

    def __init__(
        self,
        serve: Callable[["Connection"], None],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.connections: list[Connection] = []
        self.stopping = threading.Event()
        self._serve = serve
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1/oauth/token"

    @property
    def received(self) -> bytes:
        return b"".join(bytes(connection.received) for connection in self.connections)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            connection = Connection(sock, self)
            self.connections.append(connection)
            thread = threading.Thread(target=self._run, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, connection: "Connection") -> None:
        with contextlib.suppress(OSError):
            if self._tls is not None:
                connection.sock = self._tls.wrap_socket(connection.sock, server_side=True)
            self._serve(connection)
        connection.close()

    def stop(self) -> None:
        self.stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)


class Connection:
    """One accepted connection. ``hung_up`` is set when the client is seen to be gone."""

    def __init__(self, sock: socket.socket, server: RawServer) -> None:
        self.sock = sock
        self.server = server
        self.received = bytearray()
        self.hung_up = threading.Event()

    def request(self) -> bytes:
        """Read one request, head and body."""
        while b"\r\n\r\n" not in self.received and self._more():
            pass
        head, _, body = bytes(self.received).partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        missing = (int(length[1]) if length else 0) - len(body)
        while missing > 0:
            missing -= self._more()
        return bytes(self.received)

    def _more(self) -> int:
        chunk = self.sock.recv(65536)
        if not chunk:
            raise ConnectionResetError
        self.received += chunk
        return len(chunk)

    def send(self, content: bytes) -> None:
        self.sock.sendall(content)

    def trickle(self, content: bytes, *, pause: float = 0.05) -> None:
        """Send a byte at a time until the client hangs up."""
        try:
            for byte in content:
                if self.server.stopping.wait(pause):
                    return
                self.send(bytes([byte]))
        except OSError:
            self.hung_up.set()

    def wait_for_end(self) -> None:
        """Keep what still comes until the client hangs up."""
        with contextlib.suppress(OSError):
            while chunk := self.sock.recv(65536):
                self.received += chunk
        self.hung_up.set()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


Serve = Callable[..., RawServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[RawServer] = []

    def start(
        handler: Callable[[Connection], None], tls: ssl.SSLContext | None = None
    ) -> RawServer:
        servers.append(RawServer(handler, tls))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def answering(answer: bytes) -> Callable[[Connection], None]:
    def handler(connection: Connection) -> None:
        connection.request()
        connection.send(answer)

    return handler


@pytest.fixture
def tenant() -> Tenant:
    return dataclasses.replace(get_tenant(), http_timeout=DEADLINE)


def post(tenant: Tenant, url: str, *, max_bytes: int = 1000, **data: str) -> requests.Response:
    return exchange("POST", url, tenant=tenant, max_bytes=max_bytes, data={**FORM, **data})


def failure(tenant: Tenant, url: str, **kwargs: Any) -> ExchangeFailed:
    with pytest.raises(ExchangeFailed) as caught:
        post(tenant, url, **kwargs)
    return caught.value


@pytest.fixture
def started() -> Callable[[], list[threading.Thread]]:
    """Return the threads that exchanges have started since the test began."""
    before = set(threading.enumerate())

    def threads() -> list[threading.Thread]:
        return [
            thread
            for thread in threading.enumerate()
            if thread not in before and "(run)" in thread.name
        ]

    return threads


def test_the_whole_answer_is_returned_whatever_its_status(tenant: Tenant, serve: Serve) -> None:
    body = b'{"error":"invalid_grant"}'
    head = b"HTTP/1.1 400 Bad Request\r\nX-A: b\r\nContent-Length: %d\r\n\r\n" % len(body)
    server = serve(answering(head + body))
    response = post(tenant, server.url)
    assert (response.status_code, response.headers["X-A"]) == (400, "b")
    assert response.raw.read() == body
    assert server.received.endswith(b"\r\n\r\nclient_secret=portal-secret&refresh_token=def50200")


def test_neither_thread_nor_socket_outlives_an_answer(
    tenant: Tenant, serve: Serve, started: Callable[[], list[threading.Thread]]
) -> None:
    def handler(connection: Connection) -> None:
        connection.request()
        connection.send(OK)
        connection.wait_for_end()

    server = serve(handler)
    post(tenant, server.url)
    assert server.connections[0].hung_up.wait(PATIENCE)
    for thread in started():
        thread.join(PATIENCE)
    assert not started()


# --- the deadline


def _trickle_body(connection: Connection) -> None:
    connection.request()
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    connection.trickle(b"x" * 100_000)


def _trickle_headers(connection: Connection) -> None:
    connection.request()
    connection.trickle(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 10_000)


def _continue_for_ever(connection: Connection) -> None:
    connection.request()
    connection.trickle(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000, pause=0.001)


def _silence(connection: Connection) -> None:
    connection.request()
    connection.wait_for_end()


@pytest.mark.parametrize("handler", [_trickle_body, _trickle_headers, _continue_for_ever, _silence])
def test_one_deadline_holds_over_every_byte_of_the_answer(
    handler: Callable[[Connection], None],
    tenant: Tenant,
    serve: Serve,
    started: Callable[[], list[threading.Thread]],
) -> None:
    server = serve(handler)
    begin = time.monotonic()
    error = failure(tenant, server.url, max_bytes=1_000_000)
    assert time.monotonic() - begin < DEADLINE + 1
    assert (error.code, error.maybe_sent) == ("timeout", True)
    assert server.connections[0].hung_up.wait(PATIENCE)
    for thread in started():
        thread.join(PATIENCE)
    assert not started()


def test_a_tls_handshake_that_trickles_is_hung_up_on_at_the_deadline(
    tenant: Tenant, serve: Serve, started: Callable[[], list[threading.Thread]]
) -> None:
    def handler(connection: Connection) -> None:
        # The head of a TLS record of 16 KiB, whose content then takes its time.
        connection.trickle(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc" + b"\x03" * 16_000)

    server = serve(handler)
    error = failure(tenant, server.url.replace("http:", "https:"))
    assert (error.code, error.maybe_sent) == ("timeout", False)
    assert server.connections[0].hung_up.wait(PATIENCE)
    for thread in started():
        thread.join(PATIENCE)
    assert not started()


def test_a_body_that_the_server_does_not_read_ends_at_the_deadline(
    tenant: Tenant, serve: Serve, started: Callable[[], list[threading.Thread]]
) -> None:
    server = serve(lambda connection: connection.server.stopping.wait(PATIENCE) and None)
    # A second and more goes into encoding this form on a busy machine.
    patient = dataclasses.replace(tenant, http_timeout=3.0)
    error = failure(patient, server.url, padding="x" * 20_000_000)
    assert (error.code, error.maybe_sent) == ("timeout", True)
    for thread in started():
        thread.join(PATIENCE)
    assert not started()


def test_a_slow_name_lookup_counts_and_nothing_is_sent_after_the_deadline(
    tenant: Tenant,
    serve: Serve,
    started: Callable[[], list[threading.Thread]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = serve(lambda connection: connection.wait_for_end())
    resolved, look_up = threading.Event(), socket.getaddrinfo

    def slow(*args: Any, **kwargs: Any) -> Any:
        resolved.wait(PATIENCE)
        return look_up(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    begin = time.monotonic()
    error = failure(tenant, server.url)
    assert time.monotonic() - begin < DEADLINE + 1
    assert (error.code, error.maybe_sent) == ("timeout", False)
    threads = started()
    assert threads, "the thread was to be still waiting for the name"
    resolved.set()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    server.stop()
    assert server.received == b""


def test_no_body_leaves_when_the_deadline_passes_between_connecting_and_sending(
    tenant: Tenant, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(lambda connection: connection.wait_for_end())
    end_headers, given_up = HTTPConnection.endheaders, threading.Event()

    def slow(self: HTTPConnection, *args: Any, **kwargs: Any) -> None:
        end_headers(self, *args, **kwargs)
        # A machine that swaps, a suspended laptop.
        given_up.wait(PATIENCE)

    monkeypatch.setattr(HTTPConnection, "endheaders", slow)
    error = failure(tenant, server.url)
    given_up.set()
    assert (error.code, error.maybe_sent) == ("timeout", False)
    assert server.connections[0].hung_up.wait(PATIENCE)
    assert server.received.startswith(b"POST /v1/oauth/token HTTP/1.1\r\n")
    assert b"portal-secret" not in server.received


def test_no_body_leaves_late_although_its_sender_is_the_first_to_wake(
    tenant: Tenant, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(lambda connection: connection.wait_for_end())
    end_headers, shut_down = HTTPConnection.endheaders, transport._shut_down
    late = threading.Event()

    def slow(self: HTTPConnection, *args: Any, **kwargs: Any) -> None:
        end_headers(self, *args, **kwargs)
        late.wait(PATIENCE)

    def slower(sock: socket.socket) -> None:
        late.set()
        server.connections[0].hung_up.wait(2.0)
        shut_down(sock)

    monkeypatch.setattr(HTTPConnection, "endheaders", slow)
    monkeypatch.setattr(transport, "_shut_down", slower)
    error = failure(tenant, server.url)
    assert (error.code, error.maybe_sent) == ("timeout", False)
    assert server.connections[0].hung_up.wait(PATIENCE)
    assert b"portal-secret" not in server.received


@pytest.mark.parametrize("seconds", [0.0, -1.0, -1e9])
def test_nothing_happens_after_the_callers_own_deadline(
    seconds: float, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail("it has begun"))
    with pytest.raises(ExchangeFailed) as caught:
        exchange(
            "POST",
            "http://127.0.0.1:9/",
            tenant=tenant,
            max_bytes=1000,
            data=FORM,
            not_after=time.monotonic() + seconds,
        )
    assert (caught.value.code, caught.value.maybe_sent) == ("timeout", False)


@pytest.mark.parametrize(("http_timeout", "allowed"), [(PATIENCE, DEADLINE), (DEADLINE, PATIENCE)])
def test_the_earlier_of_two_deadlines_holds(
    http_timeout: float, allowed: float, tenant: Tenant, serve: Serve
) -> None:
    server = serve(_silence)
    begin = time.monotonic()
    with pytest.raises(ExchangeFailed) as caught:
        exchange(
            "POST",
            server.url,
            tenant=dataclasses.replace(tenant, http_timeout=http_timeout),
            max_bytes=1000,
            data=FORM,
            not_after=begin + allowed,
        )
    assert DEADLINE <= time.monotonic() - begin < DEADLINE + 1
    assert (caught.value.code, caught.value.maybe_sent) == ("timeout", True)


def test_a_caller_that_is_interrupted_hangs_up(tenant: Tenant, serve: Serve) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(*args: object) -> None:
        raise Interrupted

    server = serve(_trickle_body)
    handler = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(Interrupted):
            post(dataclasses.replace(tenant, http_timeout=60.0), server.url)
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert server.connections[0].hung_up.wait(PATIENCE)


# --- an answer that has arrived is not thrown away because this process was stopped


def _hold_reading(monkeypatch: pytest.MonkeyPatch, hold: Callable[[], object]) -> None:
    get_response = HTTPConnection.getresponse

    def late(self: HTTPConnection) -> Any:
        hold()
        return get_response(self)

    monkeypatch.setattr(HTTPConnection, "getresponse", late)


def _hold_after_the_last_byte(monkeypatch: pytest.MonkeyPatch, hold: Callable[[], object]) -> None:
    send = HTTPConnection.send

    def slow(self: HTTPConnection, data: Any) -> None:
        send(self, data)
        if b"portal-secret" in data:
            hold()

    monkeypatch.setattr(HTTPConnection, "send", slow)


@pytest.mark.parametrize("hold", [_hold_reading, _hold_after_the_last_byte])
@pytest.mark.parametrize("tls", [False, True])
def test_an_answer_in_time_counts_although_it_is_read_late(
    hold: Callable[[pytest.MonkeyPatch, Callable[[], object]], None],
    tls: bool,
    tenant: Tenant,
    serve: Serve,
    authority: "Authority",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert HTTPSConnection.getresponse is HTTPConnection.getresponse
    given_up, shut_down = threading.Event(), transport._shut_down

    def note(sock: socket.socket) -> None:
        shut_down(sock)
        given_up.set()

    monkeypatch.setattr(transport, "_shut_down", note)
    hold(monkeypatch, lambda: given_up.wait(PATIENCE))
    server = serve(answering(OK), authority.context() if tls else None)
    patient = dataclasses.replace(trusting(tenant, authority.bundle), http_timeout=1.0)
    assert post(patient, server.url).raw.read() == b"{}"
    assert given_up.is_set()


CHILD = """
import dataclasses, sys
import django
django.setup()
from bipsync_django.conf import get_tenant
from bipsync_django.oauth.transport import ExchangeFailed, exchange
tenant = dataclasses.replace(get_tenant(), http_timeout=0.5)
try:
    response = exchange("POST", sys.argv[1], tenant=tenant, max_bytes=1000, data={"a": "b"})
    print(response.status_code, response.raw.read())
except ExchangeFailed as error:
    print(error.code, error.maybe_sent)
"""


@pytest.mark.parametrize("under_way", [False, True])
def test_a_process_that_was_stopped_over_the_deadline_still_takes_its_answer(
    under_way: bool, serve: Serve
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def handler(connection: Connection) -> None:
        connection.request()
        asked.set()
        answer.wait(PATIENCE)
        connection.send(OK)

    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, serve(handler).url],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert asked.wait(3 * PATIENCE)
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        if not under_way:
            answer.set()
        time.sleep(2.0)  # deadline and a second
        child.send_signal(signal.SIGCONT)
        if under_way:
            # As packets are that were on their way to a machine that was being moved.
            time.sleep(0.2)
            answer.set()
        assert child.communicate()[0] == "200 b'{}'\n"


# --- connections that fail


def test_a_refused_connection_has_sent_nothing(tenant: Tenant) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = failure(tenant, f"http://127.0.0.1:{port}/")
    assert (error.code, error.maybe_sent) == ("connection_error", False)


def test_an_unknown_name_has_sent_nothing(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = failure(tenant, "https://acme-api.bipsync.com/v1/oauth/token")
    assert (error.code, error.maybe_sent) == ("connection_error", False)


def test_a_machine_without_a_thread_to_spare_has_sent_nothing(
    tenant: Tenant, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(answering(OK))

    def exhausted(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", exhausted)
        error = failure(tenant, server.url)
    assert (error.code, error.maybe_sent) == ("connection_error", False)
    assert not server.connections


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00" * 100,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 2000 What\r\n\r\n",
        LENGTH + b"100\r\n\r\n{}",
        CHUNKED + b"\r\n\r\nzz\r\n{}\r\n",
        CHUNKED + b"\r\n\r\n5\r\n{}",
        b"HTTP/1.1 200 OK\r\nX-A: " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 200 + b"\r\n",
    ],
    ids=[
        "nothing",
        "zeros",
        "another protocol",
        "odd status",
        "cut off",
        "bad chunk",
        "cut chunk",
        "long header",
        "many headers",
    ],
)
def test_an_answer_that_is_no_complete_http_is_one_failed_exchange_and_never_repeated(
    answer: bytes, tenant: Tenant, serve: Serve
) -> None:
    server = serve(answering(answer))
    error = failure(tenant, server.url)
    assert (error.code, error.maybe_sent) == ("connection_error", True)
    assert error.status == (200 if answer.startswith((LENGTH, CHUNKED)) else None)
    assert len(server.connections) == 1


def test_not_even_a_request_without_a_body_is_repeated(tenant: Tenant, serve: Serve) -> None:
    server = serve(lambda connection: connection.request() and None)
    with pytest.raises(ExchangeFailed):
        exchange("GET", server.url, tenant=tenant, max_bytes=1000)
    assert len(server.connections) == 1


# --- what is too much


def _length(size: int, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, size) + b"x" * size


def test_an_answer_may_have_exactly_the_largest_size(tenant: Tenant, serve: Serve) -> None:
    assert len(post(tenant, serve(answering(_length(1000))).url).raw.read()) == 1000
    error = failure(tenant, serve(answering(_length(1001))).url)
    assert (error.code, error.maybe_sent) == ("too_large", True)


@pytest.mark.parametrize(
    "status", [b"200 OK", b"302 Found\r\nLocation: http://127.0.0.1:9/", b"500 Oops"]
)
def test_an_endless_answer_is_cut_off_at_the_largest_size(
    status: bytes, tenant: Tenant, serve: Serve
) -> None:
    sent = []

    def handler(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 %s\r\nTransfer-Encoding: chunked\r\n\r\n" % status)
        while True:
            connection.send(b"400\r\n" + b"x" * 1024 + b"\r\n")
            sent.append(1024)

    server = serve(handler)
    patient = dataclasses.replace(tenant, http_timeout=PATIENCE)
    assert failure(patient, server.url, max_bytes=100_000).code == "too_large"
    # What the kernel buffers for both ends is taken from us, but not read.
    assert sum(sent) < 16_000_000


# --- content codings, which were not asked for


def encoded(coding: str, body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n"
    return head % (coding.encode(), len(body)) + body


def raw_deflate(content: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(content) + compressor.flush()


CONTENT = b'{"access_token": "eyJ0"}'
PACKED = {
    "gzip": ("gzip", gzip.compress(CONTENT)),
    "other casing": ("GZip ", gzip.compress(CONTENT)),
    "x-gzip": ("x-gzip", gzip.compress(CONTENT)),
    "deflate": ("deflate", zlib.compress(CONTENT)),
    "deflate without its wrapper": ("deflate", raw_deflate(CONTENT)),
    "twice": ("deflate, gzip", gzip.compress(zlib.compress(CONTENT))),
    "gzip and no coding": ("utf-8, gzip", gzip.compress(CONTENT)),
    "a charset": ("utf-8", CONTENT),
    "identity": ("identity", CONTENT),
    "nothing": ("", CONTENT),
    "unknown": ("br", CONTENT),
    "called gzip": ("gzip", CONTENT),
    "called deflate": ("deflate", CONTENT),
}


@pytest.mark.parametrize(("coding", "body"), PACKED.values(), ids=PACKED)
def test_an_answer_is_unpacked_from_what_it_says_and_is_packed_in(
    coding: str, body: bytes, tenant: Tenant, serve: Serve
) -> None:
    server = serve(answering(encoded(coding, body)))
    assert post(tenant, server.url).raw.read() == CONTENT
    assert b"Accept-Encoding: identity\r\n" in server.received


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br"])
def test_what_cannot_be_unpacked_is_left_to_the_parser(
    coding: str, tenant: Tenant, serve: Serve
) -> None:
    for body in (gzip.compress(CONTENT)[:-12], zlib.compress(CONTENT)[:-1], b"\xff" * 50, b""):
        assert post(tenant, serve(answering(encoded(coding, body))).url).raw.read() == body


@pytest.mark.parametrize(
    ("coding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate)],
)
def test_the_largest_size_is_that_of_the_unpacked_answer_too(
    coding: str, pack: Callable[[bytes], bytes], tenant: Tenant, serve: Serve
) -> None:
    fits, bomb = encoded(coding, pack(b"x" * 1000)), encoded(coding, pack(b"x" * 1001))
    assert len(post(tenant, serve(answering(fits)).url).raw.read()) == 1000
    error = failure(tenant, serve(answering(bomb)).url)
    assert (error.code, error.maybe_sent, error.status) == ("too_large", True, 200)


def test_a_decompression_bomb_does_not_go_off(tenant: Tenant, serve: Serve) -> None:
    server = serve(answering(encoded("gzip", gzip.compress(bytes(50_000_000)))))
    patient = dataclasses.replace(tenant, http_timeout=PATIENCE)
    tracemalloc.start()
    try:
        error = failure(patient, server.url, max_bytes=100_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error.code == "too_large"
    assert peak < 5_000_000


# --- to whom


@pytest.mark.parametrize(
    "url",
    [
        "http://acme-api.bipsync.com/v1/oauth/token",
        "http://127.0.0.1.evil.example/",
        "http://127.0.0.1:99999/",
        "https://user:password@127.0.0.1/",
        "ftp://127.0.0.1/",
        "",
    ],
)
def test_a_url_that_is_not_secure_is_refused_before_anything_happens(
    url: str, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("looked up"))
    with pytest.raises(ConfigurationError, match="https"):
        post(tenant, url)


def test_http_on_loopback_is_refused_unless_the_site_allows_it(
    tenant: Tenant, serve: Serve
) -> None:
    server = serve(answering(OK))
    strict = dataclasses.replace(tenant, allow_insecure_loopback=False)
    with pytest.raises(ConfigurationError):
        post(strict, server.url)
    assert not server.connections
    assert post(tenant, server.url).status_code == 200


@pytest.mark.parametrize("url", ["https://*.bipsync.com/", "https://ac me.bipsync.com/"])
def test_a_host_that_cannot_be_one_is_a_configuration_error(url: str, tenant: Tenant) -> None:
    with pytest.raises(ConfigurationError):
        post(tenant, url)


def test_a_redirect_is_returned_and_not_followed(tenant: Tenant, serve: Serve) -> None:
    elsewhere = serve(answering(OK))
    location = elsewhere.url.encode()
    server = serve(
        answering(b"HTTP/1.1 307 R\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % location)
    )
    assert post(tenant, server.url).status_code == 307
    assert not elsewhere.connections


@pytest.mark.parametrize("location", [b"http://[::1", b"//", b"\xff\xfe", b"", b"https://*/"])
def test_a_redirect_to_nonsense_is_returned_all_the_same(
    location: bytes, tenant: Tenant, serve: Serve
) -> None:
    answer = b"HTTP/1.1 302 R\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % location
    assert post(tenant, serve(answering(answer)).url).status_code == 302


def test_a_netrc_file_adds_no_credentials(
    tenant: Tenant, serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password something\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    server = serve(answering(OK))
    post(tenant, server.url)
    assert requests.utils.get_netrc_auth(server.url) == ("somebody", "something")
    assert b"authorization" not in server.received.lower()


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_a_proxy_never_sees_what_goes_over_plain_loopback(
    variable: str, tenant: Tenant, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, server = serve(answering(OK)), serve(answering(OK))
    monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert getproxies()
    post(tenant, server.url)
    assert not proxy.connections
    assert b"portal-secret" in server.received


def test_a_proxy_is_asked_for_a_tunnel_to_https_and_sees_no_secret(
    tenant: Tenant, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = serve(answering(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"))
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
    error = failure(tenant, "https://acme-api.bipsync.com/v1/oauth/token")
    assert (error.code, error.maybe_sent) == ("connection_error", False)
    assert proxy.received.startswith(b"CONNECT acme-api.bipsync.com:443 HTTP/1.")
    assert b"portal-secret" not in proxy.received


# --- TLS


class Authority:
    """A certificate authority that exists for one test run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA {folder.name}")])
        self._certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.bundle = folder / "ca.pem"
        self.bundle.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, age: int = 0
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=age)
        own = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own),
                critical=False,
            )
        )

    def context(self, name: x509.GeneralName | None = None, *, age: int = 0) -> ssl.SSLContext:
        """Return a server's context with a certificate for 127.0.0.1, or for ``name``."""
        name = name or x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        certificate = (
            self._builder(subject, key.public_key(), age=age)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.SubjectAlternativeName([name]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        chain = self._folder / "server.pem"
        chain.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        return context


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(autouse=True)
def _no_bundle_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def trusting(tenant: Tenant, bundle: Path) -> Tenant:
    return dataclasses.replace(tenant, ca_bundle=str(bundle), http_timeout=PATIENCE)


def test_a_certificate_of_an_unknown_authority_is_refused_before_anything_is_sent(
    tenant: Tenant, serve: Serve, authority: Authority
) -> None:
    server = serve(answering(OK), authority.context())
    error = failure(dataclasses.replace(tenant, http_timeout=PATIENCE), server.url)
    assert (error.code, error.maybe_sent) == ("tls_error", False)
    assert server.received == b""


def test_a_certificate_of_the_ca_bundle_is_accepted(
    tenant: Tenant, serve: Serve, authority: Authority
) -> None:
    server = serve(answering(OK), authority.context())
    assert post(trusting(tenant, authority.bundle), server.url).status_code == 200
    assert b"portal-secret" in server.received


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_the_ca_bundle_goes_before_one_in_the_environment(
    variable: str,
    tenant: Tenant,
    serve: Serve,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    other = Authority(tmp_path)
    server = serve(answering(OK), authority.context())
    monkeypatch.setenv(variable, str(other.bundle))
    assert post(trusting(tenant, authority.bundle), server.url).status_code == 200
    monkeypatch.setenv(variable, str(authority.bundle))
    error = failure(trusting(tenant, other.bundle), server.url)
    assert (error.code, error.maybe_sent) == ("tls_error", False)


def test_without_a_ca_bundle_one_in_the_environment_is_used(
    tenant: Tenant, serve: Serve, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(answering(OK), authority.context())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.bundle))
    patient = dataclasses.replace(tenant, http_timeout=PATIENCE)
    assert post(patient, server.url).status_code == 200


@pytest.mark.parametrize(
    ("name", "age"),
    [
        (x509.DNSName("acme-api.bipsync.com"), 0),
        (x509.IPAddress(ipaddress.ip_address("127.0.0.2")), 0),
        (None, 10),
    ],
    ids=["another name", "another address", "expired"],
)
def test_a_trusted_authority_is_not_enough(
    name: x509.GeneralName | None, age: int, tenant: Tenant, serve: Serve, authority: Authority
) -> None:
    server = serve(answering(OK), authority.context(name, age=age))
    error = failure(trusting(tenant, authority.bundle), server.url)
    assert (error.code, error.maybe_sent) == ("tls_error", False)
    assert server.received == b""


def test_a_ca_bundle_that_holds_no_certificates_sends_nothing(
    tenant: Tenant, serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    server = serve(answering(OK), authority.context())
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("nothing")
    assert not failure(trusting(tenant, bundle), server.url).maybe_sent
    bundle.unlink()
    assert not failure(trusting(tenant, bundle), server.url).maybe_sent
    assert server.received == b""


def test_the_deadline_holds_over_tls_too(
    tenant: Tenant, serve: Serve, authority: Authority
) -> None:
    server = serve(_trickle_body, authority.context())
    short = dataclasses.replace(trusting(tenant, authority.bundle), http_timeout=1.0)
    error = failure(short, server.url, max_bytes=1_000_000)
    assert (error.code, error.maybe_sent) == ("timeout", True)
    assert server.connections[0].hung_up.wait(PATIENCE)


def test_the_deadline_holds_over_the_tunnel_of_an_https_proxy_too(
    tenant: Tenant, serve: Serve, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(_trickle_body, authority.context())

    def pump(source: socket.socket, drain: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                drain.sendall(chunk)

    def tunnel(connection: Connection) -> None:
        connection.request()
        with socket.create_connection(("127.0.0.1", server.port)) as inner:
            connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=pump, args=(inner, connection.sock), daemon=True)
            back.start()
            pump(connection.sock, inner)
            inner.shutdown(socket.SHUT_RDWR)
            back.join(PATIENCE)
        connection.hung_up.set()

    proxy = serve(tunnel, authority.context())
    monkeypatch.setenv("https_proxy", proxy.url)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    short = dataclasses.replace(trusting(tenant, authority.bundle), http_timeout=1.0)
    error = failure(short, server.url, max_bytes=1_000_000)
    assert (error.code, error.maybe_sent, error.status) == ("timeout", True, 200)
    assert proxy.connections[0].hung_up.wait(PATIENCE)


def test_the_json_of_an_answer_arrives_unchanged(tenant: Tenant, serve: Serve) -> None:
    body = json.dumps({"name": "Zoë"}, ensure_ascii=False).encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    assert json.loads(post(tenant, serve(answering(answer)).url).raw.read()) == {"name": "Zoë"}
