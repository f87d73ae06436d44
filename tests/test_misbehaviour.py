"""Endpoints of Bipsync's that misbehave in the middle of a sign-in."""

import contextlib
import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User

from bipsync_django.failures import FAILURES
from bipsync_django.models import BipsyncToken
from bipsync_django.testing import SimulatedBipsync
from tests.browser import Browser
from tests.test_transport import Connection, RawServer, encoded

pytestmark = pytest.mark.django_db(transaction=True)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def slow_headers(connection: Connection) -> None:
    connection.trickle(HEAD + b"X-Padding: " + b"x" * 10_000)


def slow_body(connection: Connection) -> None:
    connection.send(HEAD + b"Content-Length: 10000\r\n\r\n")
    connection.trickle(b'{"keys": [' + b" " * 9_990)


def silence(connection: Connection) -> None:
    connection.wait_for_end()


def endless_body(connection: Connection) -> None:
    connection.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.send(b"1000\r\n" + b" " * 0x1000 + b"\r\n")


def endless_headers(connection: Connection) -> None:
    connection.send(HEAD)
    while True:
        connection.send(b"X-Padding: " + b"x" * 1000 + b"\r\n")


def bomb(connection: Connection) -> None:
    connection.send(encoded("gzip", gzip.compress(b'{"keys": [' + b" " * 20_000_000)))


def redirect_to_itself(connection: Connection) -> None:
    here = connection.server.url.encode()
    connection.send(b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % here)


def redirect_with_the_body(connection: Connection) -> None:
    there = connection.server.url.encode() + b"?again"
    connection.send(b"HTTP/1.1 307 Again\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % there)


def error_that_is_called_ok(connection: Connection) -> None:
    body = json.dumps({"error": "invalid_grant", "error_description": "revoked"}).encode()
    connection.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)


def error_page_that_is_called_ok(connection: Connection) -> None:
    body = b"<html><h1>Internal server error</h1>access_token=x&keys=[]</html>"
    connection.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)


MISBEHAVIOURS = [
    slow_headers,
    slow_body,
    silence,
    endless_body,
    endless_headers,
    bomb,
    redirect_to_itself,
    redirect_with_the_body,
    error_that_is_called_ok,
    error_page_that_is_called_ok,
]
# An address that leads elsewhere is the settings' fault; keys are asked for again.
MISCONFIGURED = {(redirect_to_itself, "TOKEN_URL"), (redirect_with_the_body, "TOKEN_URL")}

Serve = Callable[[Callable[[Connection], None]], RawServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with contextlib.ExitStack() as running:

        def start(misbehave: Callable[[Connection], None]) -> RawServer:
            def handler(connection: Connection) -> None:
                connection.request()
                misbehave(connection)

            server = RawServer(handler)
            running.callback(server.stop)
            return server

        yield start


@pytest.mark.parametrize("endpoint", ["TOKEN_URL", "JWKS_URL"])
@pytest.mark.parametrize("misbehave", MISBEHAVIOURS)
def test_an_endpoint_that_misbehaves_is_a_page_and_leaves_nothing(
    misbehave: Callable[[Connection], None],
    endpoint: str,
    bipsync: SimulatedBipsync,
    serve: Serve,
    settings: Any,
) -> None:
    server, browser = serve(misbehave), Browser()
    right = settings.BIPSYNC
    settings.BIPSYNC = {**right, endpoint: server.url, "HTTP_TIMEOUT": 1}
    response = browser.open(bipsync.approve(browser.begin()))
    reason = "misconfigured" if (misbehave, endpoint) in MISCONFIGURED else "unavailable"
    assert f'data-reason="{reason}"' in response.content.decode()
    assert response.status_code == FAILURES[reason].status
    assert len(server.connections) == 1, "asked once, and led nowhere"
    assert browser.user_id() is None
    assert not BipsyncToken.objects.exists()
    assert not User.objects.exists()
    settings.BIPSYNC = right
    assert browser.open(bipsync.approve(browser.begin())).status_code == 302
    assert browser.user_id() is not None


@pytest.mark.parametrize("claims", [{"aud": "another"}, {"aud": ["another"]}, {"aud": None}])
def test_a_token_for_another_application_signs_nobody_in(
    claims: dict[str, Any], bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = bipsync.sign
    monkeypatch.setattr(bipsync, "sign", lambda own, **how: sign({**own, **claims}, **how))
    browser = Browser()
    response = browser.open(bipsync.approve(browser.begin()))
    assert 'data-reason="token_refused"' in response.content.decode()
    assert browser.user_id() is None
    assert not BipsyncToken.objects.exists()
    assert not User.objects.exists()


def test_a_state_that_the_provider_sends_back_twice_is_good_once(
    bipsync: SimulatedBipsync,
) -> None:
    browser = Browser()
    begun = browser.begin()
    first, second = bipsync.approve(begun), bipsync.approve(begun, user=list(bipsync.users)[1])
    twin = browser.twin()
    assert browser.open(first).status_code == 302
    response = twin.open(second)
    assert 'data-reason="replayed_state"' in response.content.decode()
    assert twin.user_id() is None
    assert bipsync.calls["code"] == 1
    assert BipsyncToken.objects.get().subject == next(iter(bipsync.users))
