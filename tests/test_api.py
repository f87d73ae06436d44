"""Calling Bipsync's API on a person's behalf."""

import asyncio
import io
import os
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import requests
from asgiref.sync import sync_to_async
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from django.contrib.auth.models import AnonymousUser, User
from django.db import connections, transaction
from urllib3.connection import HTTPConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    InsecureRequestWarning,
    MaxRetryError,
    ProxyError,
)

from bipsync_django import api, lifecycle
from bipsync_django.api import api_session
from bipsync_django.exceptions import (
    AddressRefused,
    BipsyncError,
    ConfigurationError,
    ForeignHost,
    MissingScope,
    RefreshUnavailable,
    SignInRequired,
    Unauthorized,
)
from bipsync_django.models import BipsyncToken
from bipsync_django.testing import (
    Answer,
    DropAfter,
    DropBefore,
    Html,
    RecordedRequest,
    SimulatedBipsync,
    Trickle,
)
from tests.databases import on_servers
from tests.grants import connect, expire, nearly_expire, reload

pytestmark = pytest.mark.django_db(transaction=True)

ME = "/v1/users/me"
FORBIDDEN_RESEARCH = "/v1/research"


@pytest.fixture
def token(bipsync: SimulatedBipsync) -> BipsyncToken:
    return connect(bipsync)


@pytest.fixture
def user(token: BipsyncToken) -> User:
    user = token.user
    assert isinstance(user, User)
    return user


@pytest.fixture
def half_an_hour_old(token: BipsyncToken) -> BipsyncToken:
    """A token that works, is not due, and is old enough for a 401 to be about it."""
    return nearly_expire(token, seconds_left=1800)


class Eavesdropper:
    """Another host, which notes what it is told."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.heard: list[dict[str, str]] = []
        heard = self.heard

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                heard.append({name.lower(): value for name, value in self.headers.items()})
                self.send_response(401 if self.path == "/401" else 200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def do_CONNECT(self) -> None:
                heard.append({name.lower(): value for name, value in self.headers.items()})
                self.send_error(403)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        self.proxy = f"http://us:secret@127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def eavesdropper() -> Iterator[Eavesdropper]:
    other = Eavesdropper()
    yield other
    other.close()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with a certificate for 127.0.0.1 that nobody has signed, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    loopback = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(loopback, critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "certificate.pem"
    file.write_bytes(
        certificate.public_bytes(Encoding.PEM)
        + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return file


def sent(bipsync: SimulatedBipsync) -> list[RecordedRequest]:
    """What came to the data API."""
    return [request for request in bipsync.requests if "/oauth/" not in request.path]


def access_token_of(token: BipsyncToken) -> str:
    access_token = reload(token).unseal("access_token")
    assert access_token is not None
    return access_token


# --- a call


def test_a_call_is_made_on_the_persons_behalf(user: User, bipsync: SimulatedBipsync) -> None:
    with api_session(user) as session:
        answer = session.get(ME)
        again = session.get("v1/users/me")
    assert answer.status_code == again.status_code == 200
    assert answer.json()["id"] == next(iter(bipsync.users))


def test_an_absolute_url_of_the_tenant_works_too(user: User, bipsync: SimulatedBipsync) -> None:
    with api_session(user, tenant="acme") as session:
        assert session.get(f"{bipsync.api_url}{ME}").status_code == 200
        assert session.request("GET", f"{bipsync.api_url}{ME}".encode()).status_code == 200


def test_a_prepared_request_may_be_relative_and_be_sent_much_later(
    user: User, token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    with api_session(user) as session:
        request = requests.Request("GET", ME)
        prepared = session.prepare_request(request)
        expire(token)
        assert session.send(prepared).status_code == 200
    assert bipsync.calls["refresh"] == 1
    assert request.url == ME


def test_a_call_costs_one_query(user: User, django_assert_num_queries: Any) -> None:
    with api_session(user) as session, django_assert_num_queries(1):
        session.get(ME)


def test_an_expired_token_is_refreshed_on_the_way(
    user: User, token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    with api_session(user) as session:
        expire(token)
        assert session.get(ME).status_code == 200
        assert session.get(ME).status_code == 200
    assert bipsync.calls["refresh"] == 1


def test_a_person_without_a_grant_is_told_to_sign_in(user: User) -> None:
    with pytest.raises(SignInRequired):
        api_session(User.objects.create_user("somebody-else"))
    with pytest.raises(SignInRequired):
        api_session(AnonymousUser())


def test_a_grant_that_ends_is_told_where_a_view_can_act(
    user: User, token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    with api_session(user) as session:
        lifecycle.disconnect(token)
        with pytest.raises(SignInRequired):
            session.get(ME)
    assert sent(bipsync) == []


def test_an_unknown_tenant_is_named(user: User) -> None:
    with pytest.raises(ConfigurationError, match="acme"):
        api_session(user, tenant="globex")


@pytest.mark.parametrize("prepared", [False, True])
def test_every_call_has_a_timeout(
    user: User, settings: Any, bipsync: SimulatedBipsync, prepared: bool
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "HTTP_TIMEOUT": 0.3}
    bipsync.fail("api", Trickle(1))
    with api_session(user) as session, pytest.raises(requests.ConnectionError, match="timed out"):
        if prepared:
            session.send(session.prepare_request(requests.Request("GET", ME)))
        else:
            session.get(ME)


def test_a_calls_own_timeout_goes_before_the_sites(
    user: User, settings: Any, bipsync: SimulatedBipsync
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "HTTP_TIMEOUT": 0.1}
    bipsync.fail("api", Trickle(0.3))
    with api_session(user) as session:
        answer = session.get(ME, timeout=5, stream=True)
        assert answer.raw.read(2) == b'{"'
        answer.close()


@pytest.mark.parametrize("how", ["called", "prepared", "prepared by the book"])
def test_a_ca_bundle_goes_before_the_environments(
    user: User, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/dev/null")
    seen: list[object] = []
    send = requests.adapters.HTTPAdapter.send

    def note(self: Any, request: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["verify"])
        return send(self, request, **kwargs)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", note)
    settings.BIPSYNC = {**settings.BIPSYNC, "CA_BUNDLE": str(bundle)}
    with api_session(user) as session:
        prepared = session.prepare_request(requests.Request("GET", ME))
        if how == "called":
            session.get(ME)
        elif how == "prepared":
            session.send(prepared)
        else:
            merged = session.merge_environment_settings(prepared.url, {}, None, None, None)
            session.send(prepared, **merged)
    assert seen == [str(bundle)]


# --- where the token goes


def test_another_host_gets_no_token_and_no_call(user: User, eavesdropper: Eavesdropper) -> None:
    with api_session(user) as session:
        with pytest.raises(ForeignHost):
            session.get(eavesdropper.url)
        with pytest.raises(ForeignHost):
            session.get(eavesdropper.url, auth=("name", "password"))
    assert eavesdropper.heard == []


@pytest.mark.parametrize("more", [".example.org", "pany.example", ":8443", "@example.org"])
def test_a_host_that_only_begins_like_the_tenants_gets_no_token_and_no_call(
    user: User, settings: Any, more: str
) -> None:
    api_url = "https://acme-api.bipsync.com"
    settings.BIPSYNC = {**settings.BIPSYNC, "API_URL": api_url}
    with api_session(user) as session, pytest.raises(ForeignHost):
        session.get(f"{api_url}{more}{ME}")


def test_an_address_that_parsers_read_differently_gets_no_token(
    user: User, bipsync: SimulatedBipsync
) -> None:
    with api_session(user) as session:
        for address in (f"somebody@{bipsync.url[7:]}", f"somebody:else@{bipsync.url[7:]}"):
            with pytest.raises(ForeignHost):
                session.get(f"http://{address}{ME}")
    assert sent(bipsync) == []


def test_a_request_that_was_prepared_elsewhere_takes_no_token_to_another_host(
    user: User, eavesdropper: Eavesdropper
) -> None:
    with api_session(user) as session:
        session.send(requests.Request("GET", eavesdropper.url).prepare())
    assert "authorization" not in eavesdropper.heard[0]


def test_http_is_refused_where_loopback_is_not_allowed(user: User, settings: Any) -> None:
    settings.BIPSYNC = {
        **{k: v for k, v in settings.BIPSYNC.items() if not k.endswith("_URL")},
        "ALLOW_INSECURE_LOOPBACK": False,
    }
    with api_session(user) as strict, pytest.raises(ForeignHost):
        strict.get("http://acme-api.bipsync.com/v1/users/me")


def test_a_redirect_to_another_host_goes_without_the_token(
    user: User, bipsync: SimulatedBipsync, eavesdropper: Eavesdropper
) -> None:
    bipsync.fail("api", Answer(302, headers={"Location": eavesdropper.url}))
    with api_session(user) as session:
        session.get(ME)
    assert len(eavesdropper.heard) == 1
    assert "authorization" not in eavesdropper.heard[0]


def test_the_401_of_another_host_is_only_an_answer(
    user: User,
    half_an_hour_old: BipsyncToken,
    bipsync: SimulatedBipsync,
    eavesdropper: Eavesdropper,
) -> None:
    bipsync.fail("api", Answer(302, headers={"Location": f"{eavesdropper.url}401"}))
    with api_session(user) as session:
        assert session.get(ME).status_code == 401
    assert len(eavesdropper.heard) == 1
    assert bipsync.calls["refresh"] == 0


def test_a_redirect_within_the_api_takes_the_token_along(
    user: User, bipsync: SimulatedBipsync
) -> None:
    bipsync.fail("api", Answer(302, headers={"Location": ME}))
    with api_session(user) as session:
        answer = session.get("/v1/users")
    assert answer.json()["id"] == next(iter(bipsync.users))
    assert [request.path for request in sent(bipsync)] == ["/v1/users", ME]


def test_netrc_is_no_match_for_the_token(
    user: User,
    bipsync: SimulatedBipsync,
    eavesdropper: Eavesdropper,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    bipsync.fail("api", Answer(302, headers={"Location": ME}))
    with api_session(user) as session:
        assert session.get("/v1/users").status_code == 200
        bipsync.fail("api", Answer(302, headers={"Location": eavesdropper.url}))
        session.get(ME)
    authorizations = [request.headers["Authorization"] for request in sent(bipsync)]
    assert len(authorizations) == 3
    assert all(header.startswith("Bearer ") for header in authorizations)
    assert "authorization" not in eavesdropper.heard[0]


def test_other_credentials_are_no_match_for_the_token(
    user: User, bipsync: SimulatedBipsync
) -> None:
    with api_session(user) as session:
        assert session.get(ME, auth=("name", "password")).status_code == 200
        assert session.get(ME, headers={"authorization": "Bearer else"}).status_code == 200
        session.auth = ("name", "password")
        assert session.get(ME).status_code == 200


def test_no_proxy_carries_the_token_away_from_loopback(
    user: User,
    bipsync: SimulatedBipsync,
    eavesdropper: Eavesdropper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", eavesdropper.proxy)
    monkeypatch.setenv("http_proxy", eavesdropper.proxy)
    with api_session(user) as session:
        assert session.get(ME).status_code == 200
    assert eavesdropper.heard == []


def test_a_proxy_knows_its_own_password_and_not_the_token(
    user: User, settings: Any, eavesdropper: Eavesdropper, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", eavesdropper.proxy)
    settings.BIPSYNC = {k: v for k, v in settings.BIPSYNC.items() if k != "API_URL"}
    with api_session(user) as session, pytest.raises(requests.exceptions.ProxyError):
        session.get(ME)
    assert len(eavesdropper.heard) == 1
    assert "proxy-authorization" in eavesdropper.heard[0]
    assert "authorization" not in eavesdropper.heard[0]


# --- 401


@pytest.fixture
def refreshed_meanwhile(
    half_an_hour_old: BipsyncToken, monkeypatch: pytest.MonkeyPatch
) -> BipsyncToken:
    """The next call takes a token that is refreshed before it reaches Bipsync."""
    access_token = lifecycle.access_token

    def too_early(token: BipsyncToken) -> str:
        monkeypatch.undo()
        taken = access_token(token)
        lifecycle.refresh(token, force=True)
        return taken

    monkeypatch.setattr(lifecycle, "access_token", too_early)
    return half_an_hour_old


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_token_that_was_replaced_meanwhile_is_taken_from_the_database(
    user: User, refreshed_meanwhile: BipsyncToken, bipsync: SimulatedBipsync, method: str
) -> None:
    path, body = {
        "GET": (ME, None),
        "POST": ("/v1/graphql", {"query": "{ users { totalCount } }"}),
    }[method]
    with api_session(user) as session:
        answer = session.request(method, path, json=body)
    assert answer.status_code == 200
    assert len(sent(bipsync)) == 2
    assert bipsync.calls["refresh"] == 1


def test_a_token_that_bipsync_refuses_is_refreshed_once(
    user: User, half_an_hour_old: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    refused = access_token_of(half_an_hour_old)
    bipsync.fail("api", Answer(401))
    with api_session(user) as session:
        assert session.get(ME).status_code == 200
    assert bipsync.calls["refresh"] == 1
    first, second = [request.headers["Authorization"] for request in sent(bipsync)]
    assert first == f"Bearer {refused}"
    assert second == f"Bearer {access_token_of(half_an_hour_old)}" != first


def test_a_refusal_after_a_redirect_is_mended_too(
    user: User, half_an_hour_old: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    bipsync.fail("api", Answer(307, headers={"Location": ME}))
    bipsync.fail("api", Answer(401))
    with api_session(user) as session:
        prepared = session.prepare_request(requests.Request("GET", "/v1/users"))
        answer = session.send(prepared)
    assert answer.status_code == 200
    assert [request.path for request in sent(bipsync)] == ["/v1/users", ME, ME]


def test_a_missing_scope_costs_one_refresh_and_no_grant(
    user: User, half_an_hour_old: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    with api_session(user) as session:
        for _ in range(3):
            with pytest.raises(MissingScope):
                session.get(FORBIDDEN_RESEARCH)
        assert session.get(ME).status_code == 200
    assert bipsync.calls["refresh"] == 1
    # Two of the first call, which was made again with another token.
    assert len(sent(bipsync)) == 2 + 1 + 1 + 1
    row = reload(half_an_hour_old)
    assert (row.status, row.last_error) == (BipsyncToken.Status.ACTIVE, "")


def test_a_grant_that_was_withdrawn_needs_a_sign_in(
    user: User, half_an_hour_old: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    bipsync.withdraw(next(iter(bipsync.users)))
    with api_session(user) as session, pytest.raises(SignInRequired):
        session.get(ME)
    assert reload(half_an_hour_old).status == BipsyncToken.Status.NEEDS_SIGN_IN


def test_a_refused_token_that_cannot_be_replaced_now_keeps_the_grant(
    user: User, half_an_hour_old: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    bipsync.fail("api", Answer(401))
    bipsync.fail("token", Html(503))
    with api_session(user) as session, pytest.raises(RefreshUnavailable):
        session.get(ME)
    assert reload(half_an_hour_old).status == BipsyncToken.Status.ACTIVE


@on_servers
def test_a_refused_token_is_replaced_beside_the_callers_transaction(
    database: str, bipsync: SimulatedBipsync
) -> None:
    token = nearly_expire(connect(bipsync), seconds_left=1800)
    user = token.user
    assert isinstance(user, User)
    bipsync.fail("api", Answer(401))
    with api_session(user) as session, transaction.atomic(using=database):
        assert session.get(ME).status_code == 200
        transaction.set_rollback(True, using=database)
    assert bipsync.is_access_token_alive(access_token_of(token))


def test_a_file_is_rewound_before_it_is_sent_again(
    user: User, refreshed_meanwhile: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    file = io.BytesIO(b'xxx{"query": "{ users { totalCount } }"}')
    file.seek(3)
    with api_session(user) as session:
        answer = session.post(
            "/v1/graphql", data=file, headers={"Content-Type": "application/json"}
        )
    assert answer.status_code == 200
    first, second = sent(bipsync)
    assert first.form == second.form == {"query": "{ users { totalCount } }"}


class Once:
    """A body of known length that can be read once."""

    def __init__(self, content: bytes = b'{"query": "{ users { totalCount } }"}') -> None:
        self.content = content
        self.chunks = iter([content])

    def __len__(self) -> int:
        return len(self.content)

    def __iter__(self) -> Iterator[bytes]:
        return self.chunks


class Pipe(io.BytesIO):
    """A file that cannot go back, and says so late."""

    def __len__(self) -> int:
        return len(self.getvalue())

    def seek(self, *args: Any) -> int:
        raise OSError("Illegal seek")


@pytest.mark.parametrize("body", [Once, lambda: Pipe(b"{}")])
def test_a_body_that_cannot_be_sent_twice_is_left_to_the_caller(
    user: User,
    half_an_hour_old: BipsyncToken,
    bipsync: SimulatedBipsync,
    body: Callable[[], Any],
) -> None:
    refused = access_token_of(half_an_hour_old)
    bipsync.fail("api", Answer(401))
    with api_session(user) as session:
        with pytest.raises(Unauthorized, match=r"POST /v1/graphql.*repeat the call") as caught:
            session.post("/v1/graphql?q=secret", data=body())
        assert len(sent(bipsync)) == 1
        assert type(caught.value) is Unauthorized
        assert "secret" not in str(caught.value)
        # The token has been replaced for the caller's next attempt.
        assert access_token_of(half_an_hour_old) != refused
        assert session.get(ME).status_code == 200
    assert bipsync.calls["refresh"] == 1


def test_a_missing_scope_is_one_whatever_the_body(user: User, bipsync: SimulatedBipsync) -> None:
    bipsync.fail("api", Answer(401))
    with api_session(user) as session, pytest.raises(MissingScope):
        session.post("/v1/graphql", data=Once())


def test_streams_leave_no_connection_behind(
    user: User, half_an_hour_old: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    bipsync.fail("api", Answer(401, b"x" * 200_000), times=2)
    with api_session(user) as session:
        with pytest.raises(MissingScope):
            session.get(ME, stream=True)
        bipsync.fail("api", Answer(403, b"x" * 200_000))
        with pytest.raises(AddressRefused):
            session.get(ME, stream=True)
        assert session.get(ME).status_code == 200
    assert len(sent(bipsync)) == 4
    assert len({request.peer for request in sent(bipsync)}) == 1


# --- 403


def test_a_403_is_explained(user: User, bipsync: SimulatedBipsync) -> None:
    bipsync.fail("api", Answer(403))
    with api_session(user) as session:
        with pytest.raises(AddressRefused, match=r"GET /v1/users/me: .*allow-list of acme") as told:
            session.get(ME, params={"q": "secret"})
        assert "secret" not in str(told.value)
        assert session.get(ME).status_code == 200


def test_other_answers_are_the_callers(user: User, bipsync: SimulatedBipsync) -> None:
    with api_session(user) as session:
        for status in (400, 404, 405, 406, 500):
            bipsync.fail("api", Answer(status))
            assert session.get(ME).status_code == status
    assert len(sent(bipsync)) == 5


# --- trouble


@pytest.mark.parametrize("trouble", [Html(502), Html(503), Answer(504), DropBefore(), DropAfter()])
def test_trouble_that_passes_is_not_noticed(
    user: User, bipsync: SimulatedBipsync, trouble: Any
) -> None:
    bipsync.fail("api", trouble, times=2)
    with api_session(user) as session:
        assert session.get(ME).status_code == 200
    assert len(sent(bipsync)) == 3


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
def test_after_the_last_attempt_the_answer_is_returned(
    user: User, bipsync: SimulatedBipsync, method: str
) -> None:
    bipsync.fail("api", Html(503), times=None)
    began = time.monotonic()
    with api_session(user) as session:
        answer = session.request(method, ME)
    assert answer.status_code == 503
    assert bool(answer.text) == (method != "HEAD")
    assert len(sent(bipsync)) == 3
    assert 0.4 <= time.monotonic() - began < 3


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_have_been_done_is_not_repeated(
    user: User, bipsync: SimulatedBipsync, method: str, status: int
) -> None:
    bipsync.fail("api", Answer(status, headers={"Retry-After": "1"}), times=None)
    with api_session(user) as session:
        assert session.request(method, ME).status_code == status
    assert len(sent(bipsync)) == 1


def test_a_post_is_not_repeated_when_the_connection_breaks(
    user: User, bipsync: SimulatedBipsync
) -> None:
    bipsync.fail("api", DropBefore(), times=None)
    with api_session(user) as session, pytest.raises(requests.ConnectionError):
        session.post("/v1/graphql", json={})
    assert len(sent(bipsync)) == 1


def test_a_post_is_not_repeated_when_tls_breaks(
    user: User, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[str] = []

    def break_off(self: HTTPConnection) -> Any:
        attempts.append("getresponse")
        raise ssl.SSLError("record layer failure")

    monkeypatch.setattr(HTTPConnection, "getresponse", break_off)
    with api_session(user) as session, pytest.raises(requests.exceptions.SSLError):
        session.post("/v1/graphql", json={})
    assert len(attempts) == 1


def test_an_outage_is_told_in_the_words_of_requests(user: User, bipsync: SimulatedBipsync) -> None:
    with api_session(user) as session:
        bipsync.stop()
        with pytest.raises(requests.ConnectionError):
            session.get(ME)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_connection_that_is_refused_is_tried_again(
    user: User, bipsync: SimulatedBipsync, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    with api_session(user) as session:
        bipsync.stop()
        with pytest.raises(requests.ConnectionError):
            session.request(method, ME)
    assert caplog.text.count("Retrying") == 2


def test_a_body_is_sent_again_from_its_start(user: User, bipsync: SimulatedBipsync) -> None:
    bipsync.fail("api", Html(503))
    bipsync.fail("api", Answer(200))
    file = io.BytesIO(b'{"name": "x"}')
    with api_session(user) as session:
        answer = session.put(ME, data=file, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert [request.form for request in sent(bipsync)] == [{"name": "x"}] * 2


@pytest.mark.parametrize("body", [Once, lambda: Pipe(b"{}")])
@pytest.mark.parametrize("trouble", [Html(503), DropBefore()])
def test_a_body_that_cannot_be_sent_twice_is_not_tried_again(
    user: User, bipsync: SimulatedBipsync, body: Callable[[], Any], trouble: Any
) -> None:
    bipsync.fail("api", trouble, times=None)
    with api_session(user) as session:
        try:
            assert session.put(ME, data=body()).status_code == 503
        except requests.ConnectionError:
            assert isinstance(trouble, DropBefore)
    assert len(sent(bipsync)) == 1


def test_a_short_retry_after_is_waited_for(user: User, bipsync: SimulatedBipsync) -> None:
    bipsync.fail("api", Answer(503, headers={"Retry-After": "1"}))
    began = time.monotonic()
    with api_session(user) as session:
        assert session.get(ME).status_code == 200
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize(
    "wish", ["4", "3600", formatdate(time.time() + 3600, usegmt=True), "soon", "9" * 5000]
)
@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_long_or_odd_retry_after_is_the_callers(
    user: User, bipsync: SimulatedBipsync, wish: str, status: int
) -> None:
    bipsync.fail("api", Answer(status, headers={"Retry-After": wish}), times=None)
    began = time.monotonic()
    with api_session(user) as session:
        answer = session.get(ME)
    assert (answer.status_code, answer.headers["Retry-After"]) == (status, wish)
    assert len(sent(bipsync)) == 1
    assert time.monotonic() - began < 1


def test_a_slow_bipsync_is_waited_for_once(
    user: User, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    with api_session(user) as session:
        answered = threading.Event()
        exchange = bipsync._answer

        def slowly(*args: Any) -> Any:
            answered.wait(5)
            return exchange(*args)

        monkeypatch.setattr(bipsync, "_answer", slowly)
        with pytest.raises(requests.ReadTimeout):
            session.get(ME, timeout=0.2)
        answered.set()
    assert len(sent(bipsync)) == 1


def test_a_proxy_that_does_not_answer_is_waited_for_once() -> None:
    unreachable = ProxyError("Unable to connect to proxy", ConnectTimeoutError())
    with pytest.raises(MaxRetryError):
        api._RETRY.increment("GET", ME, error=unreachable)


# --- connections


def test_sessions_one_after_the_other_use_one_connection(
    user: User, bipsync: SimulatedBipsync
) -> None:
    for _ in range(3):
        with api_session(user) as session:
            session.get(ME)
    assert len(sent(bipsync)) == 3
    assert len({request.peer for request in sent(bipsync)}) == 1


def test_a_forked_child_leaves_the_connections_of_its_parent_alone(
    user: User, bipsync: SimulatedBipsync
) -> None:
    session = api_session(user)
    session.get(ME)
    connections.close_all()
    with warnings.catch_warnings():
        # Python 3.12 warns of the simulator's threads, which the child does not need.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            with api_session(user) as own:
                asked = [session.get(ME).status_code, own.get(ME).status_code]
            status = 0 if asked == [200, 200] else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    session.get(ME)
    session.close()
    before, first, second, after = [request.peer for request in sent(bipsync)]
    assert before == after
    assert first == second != before


def test_a_session_that_checks_no_certificates_makes_no_other_careless(
    user: User, settings: Any, certificate: Path
) -> None:
    other = Eavesdropper(certificate)
    address = other.url.replace("http:", "https:").rstrip("/")
    settings.BIPSYNC = {**settings.BIPSYNC, "API_URL": address}
    try:
        with api_session(user) as careless, api_session(user) as session:
            with pytest.warns(InsecureRequestWarning):
                assert careless.get("/", verify=False).status_code == 200
            with pytest.raises(requests.exceptions.SSLError):
                session.get("/")
        settings.BIPSYNC = {**settings.BIPSYNC, "CA_BUNDLE": str(certificate)}
        with api_session(user) as session:
            assert session.get("/").status_code == 200
    finally:
        other.close()
    assert len(other.heard) == 2


# --- nothing secret


def _held_by(error: BaseException) -> Iterator[str]:
    """All text that ``error`` leads to: by attributes, causes and variables of its frames."""
    pending: list[Any] = [error]
    seen: dict[int, Any] = {}
    while pending:
        found = pending.pop()
        if id(found) in seen or isinstance(found, type):
            continue
        seen[id(found)] = found
        if isinstance(found, str):
            yield found
        elif isinstance(found, bytes | bytearray):
            yield bytes(found).decode("latin-1")
        elif isinstance(found, dict):
            pending += [*found.keys(), *found.values()]
        elif isinstance(found, list | tuple | set | frozenset):
            pending += found
        elif type(found).__module__.partition(".")[0] in {"requests", "urllib3", "http", "email"}:
            pending.append(getattr(found, "__dict__", {}))
        if isinstance(found, BaseException):
            pending += [found.args, found.__dict__, found.__cause__, found.__context__, str(found)]
            traceback = found.__traceback__
            while traceback is not None:
                pending += [
                    repr(value)
                    for name, value in traceback.tb_frame.f_locals.items()
                    if traceback.tb_frame.f_globals["__name__"] != __name__
                ]
                traceback = traceback.tb_next


def _refused_connection(session: requests.Session, bipsync: SimulatedBipsync) -> None:
    bipsync.stop()
    session.get(ME)


def _broken_connection(session: requests.Session, bipsync: SimulatedBipsync) -> None:
    bipsync.fail("api", DropBefore(), times=None)
    session.post("/v1/graphql", json={})


def _broken_answer(session: requests.Session, bipsync: SimulatedBipsync) -> None:
    bipsync.fail("api", Trickle(1))
    session.get(ME, timeout=0.2)


def _bad_status(session: requests.Session, bipsync: SimulatedBipsync) -> None:
    bipsync.fail("api", Answer(500))
    session.get(ME).raise_for_status()


def _redirected_bad_status(session: requests.Session, bipsync: SimulatedBipsync) -> None:
    bipsync.fail("api", Answer(302, headers={"Location": ME}))
    bipsync.fail("api", Answer(500))
    session.get("/v1/users").raise_for_status()


def _endless_redirects(session: requests.Session, bipsync: SimulatedBipsync) -> None:
    bipsync.fail("api", Answer(302, headers={"Location": ME}), times=None)
    session.get(ME)


def _missing_scope(session: requests.Session, bipsync: SimulatedBipsync) -> None:
    session.get(FORBIDDEN_RESEARCH)


def _unauthorized(session: requests.Session, bipsync: SimulatedBipsync) -> None:
    bipsync.fail("api", Answer(401))
    session.post("/v1/graphql", data=Once())


def _no_refresh(session: requests.Session, bipsync: SimulatedBipsync) -> None:
    bipsync.fail("api", Answer(401))
    bipsync.fail("token", Html(503))
    session.get(ME)


def _address_refused(session: requests.Session, bipsync: SimulatedBipsync) -> None:
    bipsync.fail("api", Answer(403))
    session.get(ME)


def _bad_timeout(session: requests.Session, bipsync: SimulatedBipsync) -> None:
    session.get(ME, timeout="soon")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "misfortune",
    [
        _refused_connection,
        _broken_connection,
        _broken_answer,
        _bad_status,
        _redirected_bad_status,
        _endless_redirects,
        _missing_scope,
        _unauthorized,
        _no_refresh,
        _address_refused,
        _bad_timeout,
    ],
)
def test_no_exception_leads_to_the_token(
    user: User,
    half_an_hour_old: BipsyncToken,
    bipsync: SimulatedBipsync,
    misfortune: Callable[[requests.Session, SimulatedBipsync], None],
) -> None:
    before = access_token_of(half_an_hour_old)
    with (
        api_session(user) as session,
        pytest.raises((requests.RequestException, BipsyncError, ValueError)) as caught,
    ):
        misfortune(session, bipsync)
    tokens = {before, access_token_of(half_an_hour_old)}
    texts = list(_held_by(caught.value))
    assert len(texts) > 5
    assert not [text for text in texts if any(token in text for token in tokens)]


def test_no_response_leads_to_the_token(user: User, bipsync: SimulatedBipsync) -> None:
    bipsync.fail("api", Answer(302, headers={"Location": ME}))
    with api_session(user) as session:
        answer = session.get("/v1/users")
        assert answer.json()["email"] == "ada@acme.example"
    for hop in (answer, *answer.history):
        assert "Authorization" not in hop.request.headers
    # Even so it can be asked again.
    with api_session(user) as session:
        assert session.send(answer.request).status_code == 200


def test_an_asynchronous_view_may_call_while_it_handles_an_error_of_its_own(
    user: User, token: BipsyncToken
) -> None:
    """Its frame is among those behind our exception, and it goes on."""
    BipsyncToken.objects.update(status=BipsyncToken.Status.NEEDS_SIGN_IN, access_token=None)

    def call() -> int:
        try:
            with api_session(user) as bipsync:
                return bipsync.get("/v1/users/me").status_code
        finally:
            connections.close_all()

    async def view() -> str:
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            try:
                await sync_to_async(call)()
            except SignInRequired:
                return "handled"
        return "not raised"

    assert asyncio.run(view()) == "handled"
