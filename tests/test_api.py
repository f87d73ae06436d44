"""Calling Bipsync's API on a person's behalf."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from django.contrib.auth.models import AnonymousUser, User

from bipsync_django.api import api_session
from bipsync_django.exceptions import ConfigurationError, ForeignHost, SignInRequired
from bipsync_django.models import BipsyncToken
from bipsync_django.testing import Answer, SimulatedBipsync
from tests.grants import connect, expire

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def token(bipsync: SimulatedBipsync) -> BipsyncToken:
    return connect(bipsync)


@pytest.fixture
def user(token: BipsyncToken) -> User:
    user = token.user
    assert isinstance(user, User)
    return user


class Eavesdropper:
    """Another host, which notes what it is told."""

    def __init__(self) -> None:
        self.heard: list[dict[str, str]] = []
        heard = self.heard

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                heard.append({name.lower(): value for name, value in self.headers.items()})
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def eavesdropper() -> Any:
    other = Eavesdropper()
    yield other
    other.close()


def test_a_call_is_made_on_the_persons_behalf(user: User, bipsync: SimulatedBipsync) -> None:
    with api_session(user) as session:
        answer = session.get("/v1/users/me")
        again = session.get("v1/users/me")
    assert answer.status_code == again.status_code == 200
    assert answer.json()["id"] == next(iter(bipsync.users))


def test_an_absolute_url_of_the_tenant_works_too(user: User, bipsync: SimulatedBipsync) -> None:
    with api_session(user, tenant="acme") as session:
        assert session.get(f"{bipsync.api_url}/v1/users/me").status_code == 200


def test_an_expired_token_is_refreshed_on_the_way(
    user: User, token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    with api_session(user) as session:
        expire(token)
        assert session.get("/v1/users/me").status_code == 200
        assert session.get("/v1/users/me").status_code == 200
    assert bipsync.calls["refresh"] == 1


def test_another_host_gets_no_token_and_no_call(user: User, eavesdropper: Eavesdropper) -> None:
    with api_session(user) as session:
        with pytest.raises(ForeignHost):
            session.get(eavesdropper.url)
        with pytest.raises(ForeignHost):
            session.get("https://acme-api.bipsync.com.example.org/v1/users/me")
    assert eavesdropper.heard == []


def test_a_redirect_to_another_host_goes_without_the_token(
    user: User, bipsync: SimulatedBipsync, eavesdropper: Eavesdropper
) -> None:
    bipsync.fail("api", Answer(302, headers={"Location": eavesdropper.url}))
    with api_session(user) as session:
        session.get("/v1/users/me")
    assert len(eavesdropper.heard) == 1
    assert "authorization" not in eavesdropper.heard[0]


def test_http_is_refused_where_loopback_is_not_allowed(
    user: User, token: BipsyncToken, settings: Any
) -> None:
    session = api_session(user)
    settings.BIPSYNC = {
        **{k: v for k, v in settings.BIPSYNC.items() if not k.endswith("_URL")},
        "ALLOW_INSECURE_LOOPBACK": False,
    }
    with api_session(user) as strict, pytest.raises(ForeignHost):
        strict.get("http://acme-api.bipsync.com/v1/users/me")
    session.close()


def test_every_call_has_a_timeout(
    user: User, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    request = requests.Session.request

    def note(self: requests.Session, *args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["timeout"])
        return request(self, *args, **kwargs)

    monkeypatch.setattr(requests.Session, "request", note)
    settings.BIPSYNC = {**settings.BIPSYNC, "HTTP_TIMEOUT": 3}
    with api_session(user) as session:
        session.get("/v1/users/me")
        session.get("/v1/users/me", timeout=1)
    assert seen == [3, 1]


def test_a_ca_bundle_goes_before_the_environments(
    user: User, settings: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/dev/null")
    seen: list[object] = []
    send = requests.Session.send

    def note(self: requests.Session, request: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["verify"])
        return send(self, request, **kwargs)

    monkeypatch.setattr(requests.Session, "send", note)
    settings.BIPSYNC = {**settings.BIPSYNC, "CA_BUNDLE": str(bundle)}
    with api_session(user) as session:
        session.get("/v1/users/me")
    assert seen == [str(bundle)]


def test_a_person_without_a_grant_is_told_to_sign_in(user: User) -> None:
    with pytest.raises(SignInRequired):
        api_session(User.objects.create_user("somebody-else"))
    with pytest.raises(SignInRequired):
        api_session(AnonymousUser())


def test_an_unknown_tenant_is_named(user: User) -> None:
    with pytest.raises(ConfigurationError, match="acme"):
        api_session(user, tenant="globex")
