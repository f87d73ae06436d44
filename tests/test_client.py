"""Every answer of the token endpoint becomes a pair or one of three errors."""

import base64
import dataclasses
import gzip
import hashlib
import json
import os
import re
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bipsync_django.conf import Tenant, get_tenant
from bipsync_django.exceptions import (
    ConfigurationError,
    GrantDead,
    ProviderMisconfigured,
    RetryLater,
    TokenEndpointError,
)
from bipsync_django.oauth.client import (
    TokenPair,
    authorization_url,
    create_verifier,
    exchange_code,
    refresh_pair,
)
from bipsync_django.testing import Answer, DropAfter, DropBefore, Html, SimulatedBipsync, Trickle
from bipsync_django.testing.messages import Request, Response
from bipsync_django.testing.server import HttpServer
from tests.test_transport import Connection, RawServer, answering

REDIRECT_URI = "https://portal.example/bipsync/callback/"
VERIFIER = "v" * 43
PAIR: dict[str, Any] = {
    "token_type": "Bearer",
    "expires_in": 3600,
    "access_token": "eyJ0.eyJz.c2ln",
    "refresh_token": "def50200aa",
}
RECORDED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "wire_league.json").read_text()
)["cases"]

DEAD_CODES = {
    "token: code reused",
    "token: wrong code_verifier",
    "token: garbage code",
    "token: tampered code",
    "token: expired code",
}
DEAD_REFRESH_TOKENS = {
    "refresh: already-rotated refresh token",
    "refresh: garbage",
    "refresh: garbage starting def50200",
    "refresh: tampered (last hex digit)",
    "refresh: truncated to 255 characters",
    "refresh: an access token sent as refresh token",
    "refresh: token of another client",
    "refresh: expired refresh token",
    "refresh: after the user withdrew the grant",
}
# 8.x decrypts an empty refresh token, and fails; 9.x calls it missing.
DEAD_IN_8 = {"refresh: empty refresh_token"}


def recorded(prefix: str) -> list[Any]:
    return [
        pytest.param(name, version, answer, id=f"{name.removeprefix(prefix)} {version}")
        for name, versions in RECORDED.items()
        if name.startswith(prefix)
        for version, answer in versions.items()
        if "json" in answer
    ]


def in_full(answer: dict[str, Any]) -> Answer:
    """Return a recorded answer with the tokens that were shortened in the file at their length."""
    fields = {
        name: re.sub(r"…\((\d+) characters\)", lambda match: "x" * (int(match[1]) - 10), value)
        if isinstance(value, str)
        else value
        for name, value in answer["json"].items()
    }
    return Answer(answer["status"], fields, answer["content-type"])


@pytest.fixture
def tenant(bipsync: SimulatedBipsync) -> Tenant:
    bipsync.redirect_uris.add(REDIRECT_URI)
    return get_tenant()


def refresh(tenant: Tenant) -> TokenPair:
    return refresh_pair(tenant, "def50200old")


def exchange(tenant: Tenant) -> TokenPair:
    return exchange_code(tenant, code="the-code", verifier=VERIFIER, redirect_uri=REDIRECT_URI)


def error_of(call: Callable[[Tenant], TokenPair], tenant: Tenant) -> TokenEndpointError:
    with pytest.raises(TokenEndpointError) as caught:
        call(tenant)
    return caught.value


def outcome(call: Callable[[Tenant], TokenPair], tenant: Tenant) -> TokenPair | TokenEndpointError:
    try:
        return call(tenant)
    except TokenEndpointError as error:
        return error


# --- what the real package was recorded to answer


@pytest.mark.parametrize(("name", "version", "answer"), recorded("token: "))
def test_each_recorded_answer_to_a_code_becomes_what_it_means(
    name: str, version: str, answer: dict[str, Any], bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    bipsync.fail("token", in_full(answer))
    if answer["status"] == 200:
        pair = exchange(tenant)
        assert pair.access_token.startswith("eyJ0eXAiOi")
        assert pair.refresh_token is not None
        assert pair.refresh_token.startswith("def50200")
        assert pair.expires_in == 3600
    else:
        expected = GrantDead if name in DEAD_CODES else ProviderMisconfigured
        assert type(error_of(exchange, tenant)) is expected


@pytest.mark.parametrize(("name", "version", "answer"), recorded("refresh: "))
def test_each_recorded_answer_to_a_refresh_becomes_what_it_means(
    name: str, version: str, answer: dict[str, Any], bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    bipsync.fail("token", in_full(answer))
    if answer["status"] == 200:
        pair = refresh(tenant)
        assert len(pair.access_token) > 790
        assert pair.refresh_token is not None
        assert len(pair.refresh_token) > 740
    else:
        dead = name in DEAD_REFRESH_TOKENS or (version == "8.5.5" and name in DEAD_IN_8)
        error = error_of(refresh, tenant)
        assert type(error) is (GrantDead if dead else ProviderMisconfigured)
        assert not dead or error.code == "invalid_grant"


def test_the_recorded_cases_are_all_there() -> None:
    names = set(RECORDED)
    assert names >= DEAD_CODES | DEAD_REFRESH_TOKENS | DEAD_IN_8
    assert len(recorded("token: ")) == 48
    assert len(recorded("refresh: ")) == 46


# --- whole exchanges with the simulated provider


@pytest.mark.parametrize("dialect", ["8", "9"])
def test_a_code_and_then_each_refresh_token_work_once(
    dialect: Any, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    bipsync.dialect = dialect
    verifier = create_verifier()
    url = authorization_url(
        tenant,
        state="st-1",
        verifier=verifier,
        redirect_uri=REDIRECT_URI,
        scopes=tenant.scopes,
    )
    code = dict(parse_qsl(urlsplit(bipsync.approve(url)).query))["code"]

    def use_code() -> TokenPair:
        return exchange_code(tenant, code=code, verifier=verifier, redirect_uri=REDIRECT_URI)

    first = use_code()
    with pytest.raises(GrantDead):
        use_code()
    # A code that is used twice may have been stolen, but the real package ends no pair for it.
    assert first.refresh_token is not None
    second = refresh_pair(tenant, first.refresh_token)
    assert second.refresh_token != first.refresh_token
    with pytest.raises(GrantDead):
        refresh_pair(tenant, first.refresh_token)
    assert second.refresh_token is not None
    assert bipsync.is_alive(second.refresh_token)


@pytest.mark.parametrize("dialect", ["8", "9"])
def test_a_wrong_client_secret_ends_no_grant(
    dialect: Any, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    bipsync.dialect = dialect
    pair = bipsync.issue_pair()
    bipsync.client_secret = "another one"
    with pytest.raises(ProviderMisconfigured) as caught:
        refresh_pair(tenant, pair.refresh_token)
    assert caught.value.code == "invalid_client"
    assert bipsync.is_alive(pair.refresh_token)


# --- the request


def test_a_code_is_sent_as_a_form_with_all_that_the_provider_needs_and_no_more(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    bipsync.fail("token", Answer(200, PAIR))
    exchange(tenant)
    (request,) = bipsync.requests
    assert (request.method, request.path) == ("POST", "/v1/oauth/token")
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert request.headers["Accept"] == "application/json"
    assert "Authorization" not in request.headers
    assert request.form == {
        "grant_type": "authorization_code",
        "client_id": "portal",
        "client_secret": "portal-secret",
        "code": "the-code",
        "code_verifier": VERIFIER,
        "redirect_uri": REDIRECT_URI,
    }


def test_a_refresh_is_sent_as_a_form_and_asks_for_no_scope(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    bipsync.fail("token", Answer(200, PAIR))
    refresh(tenant)
    (request,) = bipsync.requests
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert "Authorization" not in request.headers
    assert request.form == {
        "grant_type": "refresh_token",
        "client_id": "portal",
        "client_secret": "portal-secret",
        "refresh_token": "def50200old",
    }


def test_credentials_of_a_netrc_file_are_not_sent(
    bipsync: SimulatedBipsync, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password something\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    bipsync.fail("token", Answer(200, PAIR), times=2)
    refresh(tenant)
    exchange(tenant)
    assert len(bipsync.requests) == 2
    assert not any("Authorization" in request.headers for request in bipsync.requests)


def test_odd_characters_in_secrets_arrive_as_they_are(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    odd = "a b+c%20&d=é/€\"'\U0001f600"
    bipsync.fail("token", Answer(200, PAIR))
    refresh_pair(dataclasses.replace(tenant, client_secret_source=odd), "x&grant_type=y")
    (request,) = bipsync.requests
    assert request.form["client_secret"] == odd
    assert request.form["refresh_token"] == "x&grant_type=y"
    assert request.form["grant_type"] == "refresh_token"


def test_a_client_secret_that_was_read_already_is_not_read_again(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    unset = dataclasses.replace(tenant, client_secret_source="env:BIPSYNC_NO_SUCH_VARIABLE")
    for secret in ("read before", ""):
        bipsync.fail("token", Answer(200, PAIR))
        refresh_pair(unset, "def50200old", client_secret=secret)
        assert bipsync.requests[-1].form.get("client_secret", "") == secret


def test_nothing_is_sent_when_the_client_secret_has_taken_too_long(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    not_after = time.monotonic() + 0.2

    def slow() -> str:
        while time.monotonic() < not_after:
            time.sleep(0.05)
        return "portal-secret"

    with pytest.raises(RetryLater) as caught:
        refresh_pair(
            dataclasses.replace(tenant, client_secret_source=slow),
            "def50200old",
            not_after=not_after,
        )
    error = caught.value
    assert (error.code, error.maybe_sent, error.spent) == ("timeout", False, False)
    assert not bipsync.requests


def test_an_answer_is_awaited_no_longer_than_the_caller_allows(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    bipsync.latency = 5.0
    begin = time.monotonic()
    with pytest.raises(RetryLater) as caught:
        refresh_pair(tenant, bipsync.issue_pair().refresh_token, not_after=begin + 0.5)
    assert time.monotonic() - begin < 1.5
    assert (caught.value.code, caught.value.maybe_sent) == ("timeout", True)


# --- the authorization URL


def test_the_authorization_url_holds_the_challenge_and_never_the_verifier(tenant: Tenant) -> None:
    verifier = create_verifier()
    url = authorization_url(
        tenant,
        state="st +&=1",
        verifier=verifier,
        redirect_uri=REDIRECT_URI + "?a=b&c=%20",
        scopes=["users:read", "rest_api:fields:read"],
    )
    base, _, query = url.partition("?")
    assert base == tenant.authorize_url
    hashed = hashlib.sha256(verifier.encode()).digest()
    assert parse_qs(query, strict_parsing=True) == {
        "response_type": ["code"],
        "client_id": ["portal"],
        "redirect_uri": [REDIRECT_URI + "?a=b&c=%20"],
        "scope": ["users:read rest_api:fields:read"],
        "state": ["st +&=1"],
        "code_challenge": [base64.urlsafe_b64encode(hashed).decode().rstrip("=")],
        "code_challenge_method": ["S256"],
    }
    assert verifier not in url


def test_verifiers_are_long_enough_and_never_the_same() -> None:
    verifiers = {create_verifier() for _ in range(100)}
    assert len(verifiers) == 100
    assert all(re.fullmatch(r"[A-Za-z0-9._~-]{43,128}", verifier) for verifier in verifiers)


def test_a_query_of_the_authorize_url_is_kept(tenant: Tenant) -> None:
    odd = dataclasses.replace(tenant, authorize_url="https://acme.example/authorize?theme=dark")
    url = authorization_url(
        odd, state="s", verifier=VERIFIER, redirect_uri=REDIRECT_URI, scopes=["users:read"]
    )
    assert url.startswith("https://acme.example/authorize?theme=dark&")


@pytest.mark.parametrize(
    ("authorize_url", "redirect_uri"),
    [
        ("http://acme.bipsync.com/oauth/authorize", REDIRECT_URI),
        ("https://acme.bipsync.com/oauth/authorize", "http://portal.example/bipsync/callback/"),
        ("https://acme.bipsync.com/oauth/authorize", "portal.example/bipsync/callback/"),
        ("https://acme.bipsync.com/oauth/authorize#x", REDIRECT_URI),
    ],
)
def test_no_browser_is_sent_over_plain_http(
    authorize_url: str, redirect_uri: str, tenant: Tenant
) -> None:
    with pytest.raises(ConfigurationError, match="SECURE_PROXY_SSL_HEADER"):
        authorization_url(
            dataclasses.replace(tenant, authorize_url=authorize_url),
            state="s",
            verifier=VERIFIER,
            redirect_uri=redirect_uri,
            scopes=["users:read"],
        )


def test_plain_http_on_loopback_is_for_sites_that_allow_it(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    def url(tenant: Tenant) -> str:
        return authorization_url(
            tenant,
            state="s",
            verifier=VERIFIER,
            redirect_uri="http://127.0.0.1:8000/bipsync/callback/",
            scopes=["users:read"],
        )

    assert url(tenant).startswith("http://127.0.0.1:")
    strict = dataclasses.replace(tenant, allow_insecure_loopback=False)
    with pytest.raises(ConfigurationError):
        url(strict)
    for call in (exchange, refresh):
        with pytest.raises(ConfigurationError):
            call(strict)
    assert not bipsync.calls


def test_the_switch_that_opens_the_whole_process_to_http_stays_off(
    bipsync: SimulatedBipsync, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OAUTHLIB_INSECURE_TRANSPORT", raising=False)
    seen: list[str | None] = []

    def note(event: str) -> None:
        seen.append(os.environ.get("OAUTHLIB_INSECURE_TRANSPORT"))

    bipsync.on_event = note
    refresh_pair(tenant, bipsync.issue_pair().refresh_token)
    assert seen
    assert set(seen) == {None}
    assert "OAUTHLIB_INSECURE_TRANSPORT" not in os.environ


# --- pairs worth keeping


@pytest.mark.parametrize(
    ("expires_in", "lifetime"),
    [
        (3599, 3599),
        (1, 1),
        (3600.9, 3600),
        ("3600", 3600),
        (31 * 24 * 3600, 31 * 24 * 3600),
        (31 * 24 * 3600 + 1, 300),
        (0, 300),
        (-1, 300),
        (0.5, 300),
        pytest.param(10**400, 300, id="huge"),
        pytest.param(-(10**400), 300, id="huge and negative"),
        ("", 300),
        ("soon", 300),
        ("-5", 300),
        ("²", 300),
        pytest.param("9" * 5000, 300, id="many digits"),
        (True, 300),
        (None, 300),
        ([3600], 300),
        ({"seconds": 3600}, 300),
    ],
)
def test_a_pair_is_kept_whatever_its_lifetime_is_said_to_be(
    expires_in: object, lifetime: int, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    bipsync.fail("token", Answer(200, {**PAIR, "expires_in": expires_in}))
    assert refresh(tenant) == TokenPair("eyJ0.eyJz.c2ln", "def50200aa", lifetime)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_a_pair_is_kept_even_if_its_lifetime_is_no_number_of_json(
    number: str, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    body = json.dumps({**PAIR, "expires_in": 12345}).replace("12345", number)
    bipsync.fail("token", Answer(200, body))
    assert refresh(tenant).expires_in == 300


def test_a_pair_is_kept_without_a_lifetime(bipsync: SimulatedBipsync, tenant: Tenant) -> None:
    pair = {name: value for name, value in PAIR.items() if name != "expires_in"}
    bipsync.fail("token", Answer(200, pair))
    assert refresh(tenant).expires_in == 300


@pytest.mark.parametrize("token_type", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_casing_of_the_token_type_does_not_matter(
    token_type: str, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    bipsync.fail("token", Answer(200, {**PAIR, "token_type": token_type}))
    assert refresh(tenant).access_token == "eyJ0.eyJz.c2ln"


@pytest.mark.parametrize(
    "scope", ["users:read", "other:scope more", "", None, 7, ["users:read"], {"a": 1}, [["x"]]]
)
def test_the_scope_of_an_answer_is_not_looked_at(
    scope: object, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    for call in (refresh, exchange):
        bipsync.fail("token", Answer(200, {**PAIR, "scope": scope}))
        assert call(tenant).refresh_token == "def50200aa"


@pytest.mark.parametrize(
    "more",
    [{"error": "invalid_grant"}, {"expires_at": "never"}, {"id_token": 1}, {"": ""}, {"state": []}],
)
def test_other_members_of_an_answer_change_nothing(
    more: dict[str, object], bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    bipsync.fail("token", Answer(200, {**PAIR, **more}))
    assert refresh(tenant) == TokenPair("eyJ0.eyJz.c2ln", "def50200aa", 3600)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON ; charset=UTF-8",
        "application/json; charset=utf-16",
        "application/json; charset=utf-7",
        "application/json; charset=punycode",
        "application/json; charset=idna",
        "application/json; charset=base64",
        "application/json; charset=nonsense",
        "application/json; charset=\x00",
        "application/json; charset=\x01",
        "application/json; charset",
        "application/json;;;",
    ],
)
def test_a_pair_is_kept_whatever_charset_the_json_is_said_to_be_in(
    content_type: str, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    for call in (refresh, exchange):
        bipsync.fail("token", Answer(200, PAIR, content_type))
        assert call(tenant) == TokenPair("eyJ0.eyJz.c2ln", "def50200aa", 3600)


@pytest.mark.parametrize(
    "content_type",
    [
        "text/json",
        "text/html; charset=utf-8",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/octet-stream",
        "application/problem+json",
        "json",
        ";",
    ],
)
def test_a_pair_is_kept_whatever_it_is_called(
    content_type: str, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    for call in (refresh, exchange):
        bipsync.fail("token", Answer(200, PAIR, content_type))
        assert call(tenant) == TokenPair("eyJ0.eyJz.c2ln", "def50200aa", 3600)


def test_a_pair_is_kept_although_it_is_called_nothing(tenant: Tenant) -> None:
    body = json.dumps(PAIR).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    server = RawServer(answering(head + body))
    pair = refresh(dataclasses.replace(tenant, token_url=server.url))
    server.stop()
    assert pair == TokenPair("eyJ0.eyJz.c2ln", "def50200aa", 3600)


def test_a_pair_is_kept_although_its_answer_has_no_end(tenant: Tenant) -> None:
    def handler(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(PAIR).encode())
        connection.wait_for_end()

    server = RawServer(handler)
    pair = refresh(dataclasses.replace(tenant, token_url=server.url, http_timeout=0.5))
    server.stop()
    assert pair == TokenPair("eyJ0.eyJz.c2ln", "def50200aa", 3600)


@pytest.mark.parametrize(
    ("coding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("utf-8", bytes), ("br", bytes)],
)
def test_a_pair_is_kept_in_whatever_coding_it_comes(
    coding: str, pack: Callable[[bytes], bytes], bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    body, headers = pack(json.dumps(PAIR).encode()), {"Content-Encoding": coding}
    for call in (refresh, exchange):
        bipsync.fail("token", Answer(200, body, headers=headers))
        assert call(tenant) == TokenPair("eyJ0.eyJz.c2ln", "def50200aa", 3600)


@pytest.mark.parametrize("missing", [{}, {"token_type": None}])
def test_a_pair_is_kept_without_a_token_type(
    missing: dict[str, object], bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    pair = {name: value for name, value in PAIR.items() if name != "token_type"}
    for call in (refresh, exchange):
        bipsync.fail("token", Answer(200, {**pair, **missing}))
        assert call(tenant) == TokenPair("eyJ0.eyJz.c2ln", "def50200aa", 3600)


@pytest.mark.parametrize("missing", [{}, {"refresh_token": None}, {"refresh_token": ""}])
def test_a_code_may_be_answered_without_a_refresh_token_and_a_refresh_keeps_the_old_one(
    missing: dict[str, object], bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    pair = {name: value for name, value in PAIR.items() if name != "refresh_token"}
    bipsync.fail("token", Answer(200, {**pair, **missing}), times=2)
    assert exchange(tenant) == TokenPair("eyJ0.eyJz.c2ln", None, 3600)
    assert refresh(tenant) == TokenPair("eyJ0.eyJz.c2ln", "def50200old", 3600)


def test_a_pair_does_not_show_its_tokens() -> None:
    shown = repr(TokenPair("eyJ0.secret", "def50200secret", 3600))
    assert shown == "TokenPair(expires_in=3600, scopes=None)"


# --- nonsense: no pair, and no grant ended

ODD_TOKENS: list[object] = [
    "",
    7,
    1.5,
    True,
    [],
    ["x"],
    {},
    " ",
    "a b",
    "a\n",
    "a\r\nSet-Cookie: x",
    "\x00",
    "a\x7f",
    "é",
    "\ud800",
    "x" * (32 * 1024 + 1),
]
NONSENSE: dict[str, Answer] = {
    "empty": Answer(200),
    "html with status 200": Answer(
        200, "<html>access_token=x&refresh_token=y&token_type=bearer</html>", "text/html"
    ),
    "form with status 200": Answer(
        200, "access_token=x&token_type=bearer", "application/x-www-form-urlencoded"
    ),
    "form called json": Answer(200, "access_token=x&token_type=bearer"),
    "half a gzip": Answer(
        200, gzip.compress(json.dumps(PAIR).encode())[:-20], headers={"Content-Encoding": "gzip"}
    ),
    "gzip in an unknown coding": Answer(
        200, gzip.compress(json.dumps(PAIR).encode()), headers={"Content-Encoding": "br"}
    ),
    "gzip of too much": Answer(
        200, gzip.compress(bytes(10_000_000)), headers={"Content-Encoding": "gzip"}
    ),
    "array": Answer(200, json.dumps([PAIR])),
    "null": Answer(200, "null"),
    "number": Answer(200, "1"),
    "string": Answer(200, '"access_token"'),
    "cut off": Answer(200, json.dumps(PAIR)[:-1]),
    "twice": Answer(200, json.dumps(PAIR) * 2),
    "deeply nested": Answer(200, "[" * 50_000),
    "deeply nested object": Answer(200, '{"a":' * 20_000),
    "huge": Answer(200, {**PAIR, "padding": "x" * 200_000}),
    "huge number": Answer(200, '{"access_token": %s}' % ("9" * 10_000)),
    "invalid utf-8": Answer(200, b'{"access_token": "\xff\xfe"}'),
    "binary": Answer(200, bytes(range(256))),
    "no access token": Answer(200, {"token_type": "bearer", "refresh_token": "r"}),
    "token type mac": Answer(200, {**PAIR, "token_type": "mac"}),
    "token type with a blank": Answer(200, {**PAIR, "token_type": "bearer "}),
    "token type empty": Answer(200, {**PAIR, "token_type": ""}),
    "token type list": Answer(200, {**PAIR, "token_type": ["bearer"]}),
    "error with status 200": Answer(200, {"error": "invalid_grant"}),
    "201": Answer(201, PAIR),
    "202": Answer(202, PAIR),
    "204": Answer(204),
    "206": Answer(206, PAIR),
    "400 without a body": Answer(400),
    "400 html": Answer(400, "<html>invalid_grant</html>", "text/html"),
    "400 invalid_grant as text": Answer(400, {"error": "invalid_grant"}, "text/plain"),
    "400 array": Answer(400, '["invalid_grant"]'),
    "400 error null": Answer(400, {"error": None}),
    "400 error list": Answer(400, {"error": ["invalid_grant"]}),
    "400 error object": Answer(400, {"error": {"error": "invalid_grant"}}),
    "400 other casing": Answer(400, {"error": "INVALID_GRANT"}),
    "400 unknown error": Answer(400, {"error": "temporarily_unavailable"}),
    "401 invalid_grant": Answer(401, {"error": "invalid_grant"}),
    "401 without a body": Answer(401),
    "402": Answer(402, {"error": "invalid_grant"}),
    "418": Answer(418, {"error": "invalid_grant"}),
    "422": Answer(422, {"error": "invalid_grant"}),
    "429 invalid_grant": Answer(429, {"error": "invalid_grant"}),
    "500": Answer(500),
    "500 html": Answer(
        500, "<html>access_token=x&refresh_token=y&token_type=bearer</html>", "text/html"
    ),
    "500 pair": Answer(500, PAIR),
    "500 invalid_grant": Answer(500, {"error": "invalid_grant"}),
    "500 invalid_client": Answer(500, {"error": "invalid_client"}),
    "501": Answer(501),
    "502 html": Answer(502, "<html>Bad gateway</html>", "text/html"),
    "503": Answer(503, PAIR),
    "504": Answer(504, {"error": "invalid_grant"}),
    "599": Answer(599),
    "999": Answer(999, PAIR),
    **{
        f"{name} {value!r:.20}": Answer(200, {**PAIR, name: value})
        for name in ("access_token", "refresh_token")
        for value in ODD_TOKENS
        if (name, value) != ("refresh_token", "")
    },
    "access_token null": Answer(200, {**PAIR, "access_token": None}),
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_no_pair_and_ends_no_grant(
    answer: Answer, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    for call in (refresh, exchange):
        bipsync.fail("token", answer)
        error = error_of(call, tenant)
        assert type(error) is RetryLater
        assert error.maybe_sent is (answer.status != 429)
        assert error.spent is (answer.status == 200)
        assert error.code in {
            "unexpected_answer",
            "unexpected_token_type",
            "server_error",
            "rate_limited",
            "too_large",
        }


@pytest.mark.parametrize(
    ("answer", "spent"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", True),
        (b"HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\n{", False),
        (b"HTTP/1.1 20", False),
        (b"", False),
    ],
)
def test_an_answer_that_breaks_off_has_spent_the_token_if_it_began_with_200(
    answer: bytes, spent: bool, tenant: Tenant
) -> None:
    error = raw_error(tenant, answering(answer))
    assert isinstance(error, RetryLater)
    assert (error.code, error.maybe_sent) == ("connection_error", True)
    assert error.spent is spent


@pytest.mark.parametrize(
    "content_type", ["text/html", "text/json", "application/x-www-form-urlencoded", ""]
)
def test_whether_a_grant_has_ended_is_only_read_from_what_is_called_json(
    content_type: str, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    body = json.dumps({"error": "invalid_grant"}).encode()
    head = b"HTTP/1.1 400 No\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    error = raw_error(tenant, answering(head % (content_type.encode(), len(body)) + body))
    assert (type(error), error.code) == (RetryLater, "unexpected_answer")


def test_a_grant_that_has_ended_is_known_through_a_proxy_that_compresses(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    body = gzip.compress(json.dumps({"error": "invalid_grant"}).encode())
    bipsync.fail("token", Answer(400, body, headers={"Content-Encoding": "gzip"}))
    assert type(error_of(refresh, tenant)) is GrantDead


@pytest.mark.parametrize(
    "answer",
    [
        Answer(400, {"error": "invalid_request", "error_description": "nothing known"}),
        Answer(400, {"error": "invalid_request", "hint": ["Authorization code has expired"]}),
        Answer(401, {"error": "invalid_request"}),
        Answer(401, {"error": "invalid_request", "error_description": ["x"]}),
        Answer(
            400,
            {"error": "invalid_request", "error_description": "The refresh token is invalid."},
        ),
        Answer(
            401,
            {"error": "invalid_client", "error_description": "The refresh token is invalid."},
        ),
        Answer(403, {"error": "invalid_client"}),
        Answer(400, {"error": "unauthorized_client"}),
        Answer(400, {"error": "invalid_scope"}),
    ],
)
def test_what_only_resembles_a_dead_grant_ends_none(
    answer: Answer, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    for call in (refresh, exchange):
        bipsync.fail("token", answer)
        assert type(error_of(call, tenant)) is ProviderMisconfigured


@pytest.mark.parametrize(
    "description",
    [
        "The refresh token is invalid. Or so it seems.",
        "It may be that: The refresh token is invalid.",
        "the refresh token is invalid.",
        "The refresh token is invalid",
        "The refresh token is invalid. ",
    ],
)
def test_a_description_that_only_holds_the_words_of_a_dead_grant_ends_none(
    description: str, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    answer = {"error": "invalid_request", "error_description": description}
    bipsync.fail("token", Answer(401, answer))
    assert type(error_of(refresh, tenant)) is ProviderMisconfigured


@pytest.mark.parametrize("error", ["invalid_grant ", "Invalid_Grant", "invalid_grants", "grant"])
def test_an_error_that_only_resembles_invalid_grant_ends_no_grant(
    error: str, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    for call in (refresh, exchange):
        bipsync.fail("token", Answer(400, {"error": error}))
        assert type(error_of(call, tenant)) is RetryLater


@pytest.mark.parametrize(
    "hint", ["Authorization code has expired since", "authorization code has expired", "expired"]
)
def test_a_hint_that_only_holds_the_words_of_a_dead_code_is_none(
    hint: str, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    bipsync.fail("token", Answer(400, {"error": "invalid_request", "hint": hint}))
    assert type(error_of(exchange, tenant)) is ProviderMisconfigured


@pytest.mark.parametrize("status", [400, 401, 403])
@pytest.mark.parametrize(
    "error",
    [
        "invalid_client",
        "invalid_request",
        "invalid_scope",
        "unauthorized_client",
        "unsupported_grant_type",
    ],
)
def test_an_answer_that_names_its_error_keeps_that_name(
    error: str, status: int, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    bipsync.fail("token", Answer(status, {"error": error}))
    told = error_of(refresh, tenant)
    assert (type(told), told.code) == (ProviderMisconfigured, error)


@pytest.mark.parametrize(
    "hint",
    [
        "Authorization code has been revoked",
        "Authorization code has expired",
        "Cannot decrypt the authorization code",
    ],
)
def test_the_older_providers_hints_of_a_dead_code_end_no_refresh_token(
    hint: str, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    answer = Answer(400, {"error": "invalid_request", "hint": hint})
    bipsync.fail("token", answer, times=2)
    assert type(error_of(exchange, tenant)) is GrantDead
    assert type(error_of(refresh, tenant)) is ProviderMisconfigured


def test_an_answer_of_the_token_endpoint_that_is_html_keeps_the_grant(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    pair = bipsync.issue_pair()
    bipsync.fail("token", Html(200))
    with pytest.raises(RetryLater):
        refresh_pair(tenant, pair.refresh_token)
    assert refresh_pair(tenant, pair.refresh_token).expires_in == 3600


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (301, "wrong_endpoint"),
        (302, "wrong_endpoint"),
        (304, "wrong_endpoint"),
        (404, "wrong_endpoint"),
        (405, "wrong_endpoint"),
        (410, "wrong_endpoint"),
        (403, "forbidden"),
    ],
)
def test_statuses_that_only_an_administrator_can_mend(
    status: int, code: str, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    for body in (b"", b"<html>", json.dumps({"error": "access_denied"}), PAIR):
        bipsync.fail("token", Answer(status, body))
        error = error_of(refresh, tenant)
        assert (type(error), error.code) == (ProviderMisconfigured, code)


def _in_a_minute() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)


@pytest.mark.parametrize(
    ("status", "code", "maybe_sent"),
    [(429, "rate_limited", False), (503, "server_error", True), (500, "server_error", True)],
)
def test_the_providers_wish_when_to_retry_is_passed_on(
    status: int, code: str, maybe_sent: bool, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    for header, low, high in (
        ("0", 0, 0),
        ("120", 120, 120),
        (" 7 ", 7, 7),
        (_in_a_minute(), 50, 60),
        (_in_a_minute().removesuffix(" GMT") + " -0000", 50, 60),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
    ):
        bipsync.fail("token", Answer(status, headers={"Retry-After": header}))
        error = error_of(refresh, tenant)
        assert isinstance(error, RetryLater)
        assert (error.code, error.maybe_sent) == (code, maybe_sent)
        assert error.retry_after is not None
        assert low <= error.retry_after <= high


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "soon",
        "-5",
        "1.5",
        "²",
        "9" * 400,
        "Wed, 99 Foo 2015 07:28:00 GMT",
        "Wed, 21 Oct 2015 07:28:00 +99999999",
        "Fri, 31 Dec 9999 23:59:59 -2359",
        "\x00",
        ",",
    ],
)
def test_garbage_for_a_time_to_retry_is_no_wish(
    header: str | None, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    headers = {} if header is None else {"Retry-After": header}
    bipsync.fail("token", Answer(429, headers=headers))
    error = error_of(refresh, tenant)
    assert isinstance(error, RetryLater)
    assert error.retry_after is None or error.retry_after > 0


# --- no secret goes astray


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", [refresh, exchange])
def test_a_redirect_takes_no_secret_to_another_host(
    status: int,
    call: Callable[[Tenant], TokenPair],
    bipsync: SimulatedBipsync,
    tenant: Tenant,
    scripted: "Scripted",
) -> None:
    scripted.answer = Response(200, json.dumps(PAIR).encode())
    scripted.requests.clear()
    bipsync.fail("token", Answer(status, headers={"Location": scripted.url}))
    error = error_of(call, tenant)
    assert (type(error), error.code) == (ProviderMisconfigured, "wrong_endpoint")
    assert scripted.requests == []
    assert bipsync.calls["token"] == 1


# --- connections that fail


def raw_error(tenant: Tenant, handler: Callable[[Connection], None]) -> TokenEndpointError:
    server = RawServer(handler)
    try:
        return error_of(refresh, dataclasses.replace(tenant, token_url=server.url))
    finally:
        server.stop()
        assert len(server.connections) <= 1, "a refresh was repeated"


def test_a_provider_that_is_not_there_has_seen_nothing(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    bipsync.stop()
    error = error_of(refresh, tenant)
    assert isinstance(error, RetryLater)
    assert (error.code, error.maybe_sent) == ("connection_error", False)


def test_a_name_that_cannot_be_looked_up_has_seen_nothing(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    nowhere = dataclasses.replace(tenant, token_url="https://acme-api.bipsync.com/v1/oauth/token")
    error = error_of(refresh, nowhere)
    assert isinstance(error, RetryLater)
    assert (error.code, error.maybe_sent) == ("connection_error", False)


@pytest.mark.parametrize("how", [DropBefore(), DropAfter()])
def test_a_dropped_connection_may_have_spent_the_token_and_is_not_tried_again(
    how: DropBefore | DropAfter, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    pair = bipsync.issue_pair()
    bipsync.fail("token", how)
    with pytest.raises(RetryLater) as caught:
        refresh_pair(tenant, pair.refresh_token)
    assert (caught.value.code, caught.value.maybe_sent) == ("connection_error", True)
    assert bipsync.calls["refresh"] == 1
    assert bipsync.is_alive(pair.refresh_token) is isinstance(how, DropBefore)


def test_a_trickled_answer_is_given_up_at_the_deadline(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    pair = bipsync.issue_pair()
    bipsync.fail("token", Trickle(0.05))
    with pytest.raises(RetryLater) as caught:
        refresh_pair(dataclasses.replace(tenant, http_timeout=0.5), pair.refresh_token)
    assert (caught.value.code, caught.value.maybe_sent) == ("timeout", True)
    assert caught.value.spent, "the 200 has been seen"


def test_a_deadline_that_passes_before_the_request_leaves_has_spent_nothing(
    tenant: Tenant,
) -> None:
    # Accepts, and never answers the TLS handshake.
    silent = RawServer(lambda connection: connection.wait_for_end())
    url = silent.url.replace("http:", "https:")
    error = error_of(refresh, dataclasses.replace(tenant, token_url=url, http_timeout=0.3))
    silent.stop()
    assert isinstance(error, RetryLater)
    assert (error.code, error.maybe_sent) == ("timeout", False)
    assert b"def50200" not in silent.received


def test_an_answer_that_is_too_large_keeps_the_grant(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    bipsync.fail("token", Answer(200, json.dumps(PAIR).ljust(128 * 1024)))
    assert refresh(tenant).expires_in == 3600
    bipsync.fail("token", Answer(200, json.dumps(PAIR).ljust(128 * 1024 + 1)))
    assert error_of(refresh, tenant).code == "too_large"


def test_a_missing_client_secret_is_said_before_anything_is_sent(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    unset = dataclasses.replace(tenant, client_secret_source="env:BIPSYNC_NO_SUCH_VARIABLE")
    for call in (refresh, exchange):
        with pytest.raises(ConfigurationError, match="BIPSYNC_NO_SUCH_VARIABLE"):
            call(unset)
    assert not bipsync.calls


# --- anything at all


class Scripted:
    """A server that answers every request with ``answer``."""

    def __init__(self) -> None:
        self.answer = Response(204)
        self.requests: list[Request] = []
        self._server = HttpServer(("127.0.0.1", 0), self._exchange)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/oauth/token"

    def _exchange(self, request: Request) -> Response:
        self.requests.append(request)
        return self.answer

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture(scope="module")
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    yield server
    server.stop()


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["bearer", "invalid_grant", "invalid_request", "3600"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
MEMBERS = (
    "access_token",
    "refresh_token",
    "token_type",
    "expires_in",
    "scope",
    "error",
    "error_description",
    "hint",
)
ANSWERS = st.fixed_dictionaries(
    {}, optional={name: JSON_VALUES | st.just(PAIR.get(name)) for name in MEMBERS}
)
BODIES = st.one_of(
    st.binary(max_size=200),
    JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    ANSWERS.map(lambda value: json.dumps(value).encode()),
    ANSWERS.map(lambda value: json.dumps({**PAIR, **value}).encode()),
)
CONTENT_TYPES = st.sampled_from(
    ["application/json", "application/json; charset=utf-16", "text/html", "x", "a;b=c;"]
) | st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30)


@hypothesis_settings(max_examples=300, deadline=None, database=None)
@given(
    status=st.sampled_from([200, 400, 401, 403, 500]) | st.integers(200, 999),
    content_type=CONTENT_TYPES,
    body=BODIES,
)
@example(status=200, content_type="application/json", body=json.dumps(PAIR).encode())
@example(status=400, content_type="application/json", body=b'{"error": "invalid_grant"}')
def test_whatever_is_answered_becomes_a_pair_or_one_typed_error(
    scripted: Scripted, status: int, content_type: str, body: bytes
) -> None:
    scripted.answer = Response(status, body, content_type)
    tenant = dataclasses.replace(get_tenant(), token_url=scripted.url)
    for call in (refresh, exchange):
        result = outcome(call, tenant)
        if isinstance(result, TokenPair):
            assert status == 200
            assert result.access_token.isprintable()
            assert result.access_token
            assert 1 <= result.expires_in <= 31 * 24 * 3600
        elif isinstance(result, GrantDead):
            assert status in {400, 401}
            assert b"invalid_" in body
        else:
            assert re.fullmatch(r"[a-z_]{1,64}", result.code)
            assert type(result) in {ProviderMisconfigured, RetryLater}


@hypothesis_settings(max_examples=150, deadline=None, database=None)
@given(
    content=st.binary(max_size=300)
    | st.binary(max_size=300).map(lambda rest: b"HTTP/1.1 200 OK\r\n" + rest)
    | st.tuples(st.binary(max_size=60), st.binary(max_size=60)).map(
        lambda parts: (
            b"HTTP/1.1 307 X\r\nLocation: "
            + parts[0]
            + b"\r\nRetry-After: "
            + parts[1]
            + b"\r\n\r\n"
        )
    )
)
def test_whatever_bytes_come_back_become_one_typed_error(
    raw_server: "RawBytes", content: bytes
) -> None:
    raw_server.content = content
    tenant = dataclasses.replace(get_tenant(), token_url=raw_server.server.url)
    error = error_of(refresh, tenant)
    assert not isinstance(error, GrantDead)


class RawBytes:
    """A server that answers every request with the bytes ``content``."""

    def __init__(self) -> None:
        self.content = b""
        self.server = RawServer(self._serve)

    def _serve(self, connection: Connection) -> None:
        connection.request()
        connection.send(self.content)


@pytest.fixture(scope="module")
def raw_server() -> Iterator[RawBytes]:
    raw = RawBytes()
    yield raw
    raw.server.stop()
