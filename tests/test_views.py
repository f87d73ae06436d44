"""The pages: every way in which a sign-in can end, and what nobody may see of it."""

import dataclasses
import logging
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import django
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_logged_in
from django.db import connection, connections
from django.test import RequestFactory
from django.utils.log import AdminEmailHandler
from django.views.debug import (
    SafeExceptionReporterFilter,
    get_default_exception_reporter_filter,
)
from hypothesis import HealthCheck, given, settings, strategies

from bipsync_django import flow, limits, views
from bipsync_django.backends import BipsyncBackend
from bipsync_django.exceptions import SignInRefused
from bipsync_django.failures import FAILURES
from bipsync_django.models import BipsyncToken, SpentState, TenantState
from bipsync_django.testing import (
    Answer,
    DropAfter,
    DropBefore,
    Html,
    SimulatedBipsync,
    SimulatedUser,
    Trickle,
)
from tests.browser import CALLBACK, LOGIN, LOGOUT, Browser, links, signed_in, visible_text

pytestmark = pytest.mark.django_db(transaction=True)

ADA = "68b993fa85d14160d4030391"
NEXT = "/reports/?year=2024&q=<b>"
CANARY = "<script>canary-4711</script>"
JARGON = re.compile(
    r"\b(o-?auth|oauth2|token|grant|scope|state|verifier|challenge|pkce|jwt|jwks|redirect|client|"
    r"nonce|claims?|authori[sz]ation|code|callback|backend|provider|subject|database|exception|"
    r"traceback|error|http)\b",
    re.IGNORECASE,
)


# --- every failure, provoked for real


@dataclass
class Scene:
    """A sign-in that is going to fail, and what one needs to make it."""

    bipsync: SimulatedBipsync
    settings: Any
    monkeypatch: pytest.MonkeyPatch
    browser: Browser

    def begin(self) -> str:
        return self.browser.begin(NEXT)

    def come_back(self, user: Any = None) -> Any:
        return self.browser.open(self.bipsync.approve(self.begin(), user=user))

    def configure(self, **values: Any) -> None:
        self.settings.BIPSYNC = {**self.settings.BIPSYNC, **values}


@pytest.fixture
def scene(bipsync: SimulatedBipsync, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(bipsync, settings, monkeypatch, Browser())


def declined(scene: Scene) -> Any:
    return scene.browser.open(scene.bipsync.decline(scene.begin()))


def expired_state(scene: Scene) -> Any:
    callback = scene.bipsync.approve(scene.begin())
    late = time.time() + flow.LIFETIME + 1
    scene.monkeypatch.setattr(flow, "time", SimpleNamespace(time=lambda: late))
    return scene.browser.open(callback)


def unknown_state(scene: Scene) -> Any:
    return Browser().open(scene.bipsync.approve(scene.begin()))


def replayed_state(scene: Scene) -> Any:
    callback = scene.bipsync.approve(scene.begin())
    scene.browser.open(callback)
    scene.browser.post(LOGOUT, secure=True)
    return scene.browser.open(callback)


def replayed_state_with_its_cookie(scene: Scene) -> Any:
    callback = scene.bipsync.approve(scene.begin())
    twin = scene.browser.twin()
    scene.browser.open(callback)
    scene.browser.post(LOGOUT, secure=True)
    return twin.open(callback)


def _callback(scene: Scene, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    query = parse_qs(urlsplit(scene.bipsync.approve(scene.begin())).query)
    return scene.browser.open(f"{CALLBACK}?{urlencode(change(query), doseq=True)}")


def incomplete_without_code(scene: Scene) -> Any:
    return _callback(scene, lambda query: {"state": query["state"]})


def incomplete_with_an_empty_code(scene: Scene) -> Any:
    return _callback(scene, lambda query: {**query, "code": ""})


def incomplete_with_two_codes(scene: Scene) -> Any:
    return _callback(scene, lambda query: {**query, "code": [*query["code"], "other"]})


def incomplete_with_a_huge_code(scene: Scene) -> Any:
    return _callback(scene, lambda query: {**query, "code": "x" * 8193})


def incomplete_without_state(scene: Scene) -> Any:
    return _callback(scene, lambda query: {"code": query["code"]})


def incomplete_with_two_states(scene: Scene) -> Any:
    return _callback(scene, lambda query: {**query, "state": ["x" * 43, *query["state"]]})


def incomplete_with_a_huge_state(scene: Scene) -> Any:
    return _callback(scene, lambda query: {**query, "state": "x" * 8193})


def code_refused(scene: Scene) -> Any:
    callback = scene.bipsync.approve(scene.begin())
    scene.bipsync.withdraw(ADA)
    return scene.browser.open(callback)


def code_refused_in_the_older_dialect(scene: Scene) -> Any:
    scene.bipsync.dialect = "8"
    return code_refused(scene)


def unavailable(scene: Scene) -> Any:
    callback = scene.bipsync.approve(scene.begin())
    scene.bipsync.stop()
    return scene.browser.open(callback)


def _token_endpoint(how: Any) -> Callable[[Scene], Any]:
    def provoke(scene: Scene) -> Any:
        scene.configure(HTTP_TIMEOUT=1)
        scene.bipsync.fail("token", how)
        return scene.come_back()

    return provoke


def unavailable_for_slowness(scene: Scene) -> Any:
    scene.configure(HTTP_TIMEOUT=0.2)
    scene.bipsync.latency = 5
    return scene.come_back()


def unavailable_keys(scene: Scene) -> Any:
    scene.bipsync.fail("jwks", Html(503), times=None)
    return scene.come_back()


def unavailable_by_its_own_account(scene: Scene) -> Any:
    return _callback(
        scene, lambda query: {"state": query["state"], "error": "temporarily_unavailable"}
    )


def storage_unavailable(scene: Scene) -> Any:
    callback = scene.bipsync.approve(scene.begin())
    with LockedDatabase():
        return scene.browser.open(callback)


def storage_unavailable_for_an_ended_trip(scene: Scene) -> Any:
    callback = scene.bipsync.approve(scene.begin())
    with connection.schema_editor() as editor:
        editor.delete_model(SpentState)
    try:
        return Browser().open(callback)
    finally:
        with connection.schema_editor() as editor:
            editor.create_model(SpentState)


def storage_unavailable_for_the_tokens(scene: Scene) -> Any:
    callback = scene.bipsync.approve(scene.begin())
    lock = LockedDatabase()

    def when_the_provider_has_answered(event: str) -> None:
        lock.__enter__()

    scene.bipsync.on_event = when_the_provider_has_answered
    try:
        return scene.browser.open(callback)
    finally:
        lock.__exit__()


class LockedDatabase:
    """While it lasts, another connection holds the write lock that ours would need.

    To be made in the thread that will want the lock, and does not wait for it any more.
    """

    def __init__(self) -> None:
        self.other = sqlite3.connect(
            connection.settings_dict["NAME"], isolation_level=None, check_same_thread=False
        )
        connection.ensure_connection()
        connection.connection.execute("PRAGMA busy_timeout = 50")

    def __enter__(self) -> None:
        self.other.execute("BEGIN IMMEDIATE")

    def __exit__(self, *exc_info: object) -> None:
        self.other.rollback()
        self.other.close()
        connection.close()


def misconfigured_secret(scene: Scene) -> Any:
    scene.configure(CLIENT_SECRET="wrong")
    return scene.come_back()


def misconfigured_secret_source(scene: Scene) -> Any:
    scene.configure(CLIENT_SECRET="env:BIPSYNC_TEST_NO_SUCH_VARIABLE")
    return scene.come_back()


def misconfigured_scope(scene: Scene) -> Any:
    scene.configure(SCOPES=["no_such:scope"])
    return scene.browser.open(scene.bipsync.decline(scene.begin()))


def misconfigured_url(scene: Scene) -> Any:
    scene.configure(TOKEN_URL=f"{scene.bipsync.url}/elsewhere")
    return scene.come_back()


def misconfigured_backends(scene: Scene) -> Any:
    scene.settings.AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.ModelBackend"]
    return scene.come_back()


def misconfigured_before_it_begins(scene: Scene) -> Any:
    scene.configure(CLIENT_IDD="portal")
    return scene.browser.get(LOGIN, {"next": NEXT}, secure=True)


def misconfigured_without_any_settings(scene: Scene) -> Any:
    scene.settings.BIPSYNC = None
    return scene.browser.get(LOGIN, {"next": NEXT}, secure=True)


def misconfigured_meanwhile(scene: Scene) -> Any:
    callback = scene.bipsync.approve(scene.begin())
    scene.settings.BIPSYNC = {"CLIENT": "acme"}
    return scene.browser.open(callback)


def misconfigured_tenant_meanwhile(scene: Scene) -> Any:
    callback = scene.bipsync.approve(scene.begin())
    scene.configure(CLIENT="globex")
    return scene.browser.open(callback)


def misconfigured_deployment(scene: Scene) -> Any:
    """The database was copied over while somebody was at Bipsync."""
    callback = scene.bipsync.approve(scene.begin())
    scene.configure(DEPLOYMENT="staging")
    TenantState.objects.update_or_create(tenant="acme", defaults={"deployment": "production"})
    return scene.browser.open(callback)


def _signed(**how: Any) -> Callable[[Scene], Any]:
    def provoke(scene: Scene) -> Any:
        sign = scene.bipsync.sign
        options = {name: value() if callable(value) else value for name, value in how.items()}
        scene.monkeypatch.setattr(scene.bipsync, "sign", lambda claims: sign(claims, **options))
        return scene.come_back()

    return provoke


def _claimed(**claims: Any) -> Callable[[Scene], Any]:
    def provoke(scene: Scene) -> Any:
        account = scene.bipsync.users[ADA]
        user = SimulatedUser(
            account.id,
            account.name,
            account.given_name,
            account.family_name,
            account.email,
            extra=claims,
        )
        scene.bipsync.add_user(user)
        return scene.come_back()

    return provoke


def _foreign_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class ClosedDoor(BipsyncBackend):
    def is_allowed(self, tenant: Any, claims: Any, user: Any) -> bool:
        return False


class DjangosWayToRefuse(BipsyncBackend):
    def is_allowed(self, tenant: Any, claims: Any, user: Any) -> bool:
        from django.core.exceptions import PermissionDenied

        raise PermissionDenied


class ReasonOfItsOwn(BipsyncBackend):
    def is_allowed(self, tenant: Any, claims: Any, user: Any) -> bool:
        raise SignInRefused("on_holiday", "Nobody signs in on holidays.")


class ToBeApproved(BipsyncBackend):
    def create_user(self, tenant: Any, claims: Any) -> Any:
        user = super().create_user(tenant, claims)
        user.is_active = False
        user.save()
        return user


def _backend(backend: type[BipsyncBackend]) -> Callable[[Scene], Any]:
    def provoke(scene: Scene) -> Any:
        scene.settings.AUTHENTICATION_BACKENDS = [f"{__name__}.{backend.__name__}"]
        return scene.come_back()

    return provoke


def too_many(scene: Scene) -> Any:
    scene.monkeypatch.setattr(limits, "MOST_IN_A_BROWSER", 0)
    return scene.browser.get(LOGIN, {"next": NEXT}, secure=True)


def too_many_at_the_tenant(scene: Scene) -> Any:
    scene.monkeypatch.setattr(limits, "MOST_UNCONFIRMED", 0)
    return scene.come_back()


def no_account(scene: Scene) -> Any:
    scene.configure(CREATE_USERS=False)
    return scene.come_back()


def account_exists(scene: Scene) -> Any:
    User.objects.create_user("ADA@acme.example")
    scene.configure(CLAIMS={"username": "email"})
    return scene.come_back()


def no_email(scene: Scene) -> Any:
    # What it is like with a user model of one's own is tried in tests/custom_user.
    scene.monkeypatch.setattr(User, "EMAIL_FIELD", "username")
    return scene.come_back()


def email_domain(scene: Scene) -> Any:
    scene.configure(ALLOWED_EMAIL_DOMAINS=["globex.example"])
    return scene.come_back()


def no_email_to_look_at(scene: Scene) -> Any:
    scene.configure(ALLOWED_EMAIL_DOMAINS=["acme.example"])
    user = scene.bipsync.find_user(None)
    scene.bipsync.add_user(dataclasses.replace(user, extra={"email": None}))
    return scene.come_back()


def unknown_tenant(scene: Scene) -> Any:
    return scene.browser.get(f"{LOGIN}nowhere/", {"next": NEXT}, secure=True)


def wrong_address(scene: Scene) -> Any:
    """Another tenant sends the browser back where this one should have."""
    own = {key: value for key, value in scene.settings.BIPSYNC.items() if key != "CLIENT"}
    del own["ALLOW_INSECURE_LOOPBACK"]
    scene.settings.BIPSYNC = {
        "ALLOW_INSECURE_LOOPBACK": True,
        "TENANTS": {"acme": own, "globex": own},
    }
    begun = scene.browser.get(f"{LOGIN}acme/", {"next": NEXT}, secure=True)["Location"]
    query = urlsplit(scene.bipsync.approve(begun)).query
    response = scene.browser.open(f"{CALLBACK}globex/?{query}")
    assert scene.bipsync.calls["code"] == 0
    scene.settings.BIPSYNC = {**own, "CLIENT": "acme", "ALLOW_INSECURE_LOOPBACK": True}
    return response


def wrong_address_by_another_issuer(scene: Scene) -> Any:
    scene.configure(ISSUER="https://acme.bipsync.com")
    response = _callback(scene, lambda query: {**query, "iss": "https://evil.example"})
    assert scene.bipsync.calls["code"] == 0
    return response


def inactive(scene: Scene) -> Any:
    scene.come_back()
    User.objects.update(is_active=False)
    scene.browser = Browser()
    return scene.come_back()


def service_account(scene: Scene) -> Any:
    BipsyncToken.objects.create(tenant="acme", kind="service", subject=ADA, client_id="portal")
    return scene.come_back()


FAILED: dict[str, Callable[[Scene], Any]] = {
    "declined": declined,
    "expired_state": expired_state,
    "unknown_state": unknown_state,
    "replayed_state": replayed_state,
    "replayed_state with its cookie": replayed_state_with_its_cookie,
    "incomplete without code": incomplete_without_code,
    "incomplete with an empty code": incomplete_with_an_empty_code,
    "incomplete with two codes": incomplete_with_two_codes,
    "incomplete with a huge code": incomplete_with_a_huge_code,
    "incomplete without state": incomplete_without_state,
    "incomplete with two states": incomplete_with_two_states,
    "incomplete with a huge state": incomplete_with_a_huge_state,
    "code_refused": code_refused,
    "code_refused in the older dialect": code_refused_in_the_older_dialect,
    "too_many": too_many,
    "too_many at the tenant": too_many_at_the_tenant,
    "unavailable": unavailable,
    "unavailable: 500": _token_endpoint(Answer(500, {"error": "server_error"})),
    "unavailable: 503": _token_endpoint(Answer(503, b"")),
    "unavailable: 429": _token_endpoint(Answer(429, b"", headers={"Retry-After": "7"})),
    "unavailable: 502 with HTML": _token_endpoint(Html(502)),
    "unavailable: 200 with HTML": _token_endpoint(Html(200)),
    "unavailable: 200 with rubbish": _token_endpoint(Answer(200, b"\xff\x00{")),
    "unavailable: 200 with no token": _token_endpoint(Answer(200, {"access_token": None})),
    "unavailable: dropped before": _token_endpoint(DropBefore()),
    "unavailable: dropped after": _token_endpoint(DropAfter()),
    "unavailable: trickled": _token_endpoint(Trickle(0.05)),
    "unavailable: slow": unavailable_for_slowness,
    "unavailable: keys": unavailable_keys,
    "unavailable: by its own account": unavailable_by_its_own_account,
    "storage_unavailable": storage_unavailable,
    "storage_unavailable for an ended trip": storage_unavailable_for_an_ended_trip,
    "storage_unavailable for the tokens": storage_unavailable_for_the_tokens,
    "misconfigured: secret": misconfigured_secret,
    "misconfigured: secret source": misconfigured_secret_source,
    "misconfigured: scope": misconfigured_scope,
    "misconfigured: URL": misconfigured_url,
    "misconfigured: allow-list": _token_endpoint(Answer(403, b"")),
    "misconfigured: redirected": _token_endpoint(
        Answer(307, b"", headers={"Location": "https://evil.example/"})
    ),
    "misconfigured: backends": misconfigured_backends,
    "misconfigured before it begins": misconfigured_before_it_begins,
    "misconfigured without any settings": misconfigured_without_any_settings,
    "misconfigured meanwhile": misconfigured_meanwhile,
    "misconfigured: tenant meanwhile": misconfigured_tenant_meanwhile,
    "misconfigured: deployment": misconfigured_deployment,
    "email_domain": email_domain,
    "no_email to look at": no_email_to_look_at,
    "unknown_tenant": unknown_tenant,
    "wrong_address": wrong_address,
    "wrong_address: another issuer": wrong_address_by_another_issuer,
    "token_refused: foreign key": _signed(key=_foreign_key),
    "token_refused: unknown key": _signed(key=_foreign_key, kid="x"),
    "token_refused: no key named": _signed(key=_foreign_key, kid=None),
    "token_refused: unsigned": _signed(algorithm="none"),
    "token_refused: shared secret": _signed(algorithm="HS256", key=b"portal-secret"),
    "token_refused: for another application": _claimed(aud="another"),
    "token_refused: expired": _claimed(exp=1),
    "token_refused: not yet valid": _claimed(nbf=99999999999),
    "token_refused: nobody": _claimed(sub=""),
    "token_refused: strange dates": _claimed(exp="soon"),
    "not_allowed": _backend(ClosedDoor),
    "not_allowed by PermissionDenied": _backend(DjangosWayToRefuse),
    "on_holiday": _backend(ReasonOfItsOwn),
    "no_account": no_account,
    "account_exists": account_exists,
    "no_email": no_email,
    "inactive": inactive,
    "service_account": service_account,
    "inactive from the start": _backend(ToBeApproved),
}
# Whose trip cannot be told, or is over, has nowhere to go on to.
FORGETFUL = {
    "unknown_state",
    "replayed_state",
    "incomplete without state",
    "incomplete with a huge state",
    "storage_unavailable for an ended trip",
}


def reason_in(name: str) -> str:
    return re.split(r"[ :]", name)[0]


@pytest.mark.parametrize("name", FAILED)
def test_a_failure_is_an_honest_page_with_a_way_on(
    scene: Scene, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    with caplog.at_level(logging.INFO):
        response = FAILED[name](scene)
    reason = reason_in(name)
    failure = FAILURES.get(reason, FAILURES["not_allowed"])
    page = response.content.decode()
    assert f'data-reason="{reason}"' in page, page
    assert response.status_code == failure.status
    assert 400 <= response.status_code < 600
    assert response.status_code != 500
    assert ("Retry-After" in response) is (response.status_code in {429, 503})

    text = visible_text(page)
    assert str(failure.title) in text
    assert str(failure.text) in text
    assert JARGON.search(text) is None
    assert ("Please give your administrator" in text) is failure.needs_administrator

    retry, *others = links(page)
    path = f"{LOGIN}acme/" if name == "wrong_address" else LOGIN
    expected = LOGIN if name in FORGETFUL else f"{path}?next={quote(NEXT, safe='')}"
    assert retry == expected
    assert others == ([scene.bipsync.url] if failure.shows_account else [])
    assert ("At Bipsync you are signed in as" in text) is failure.shows_account

    reference = re.search(r"Reference\s+([0-9A-F]{4}-[0-9A-F]{4})", text)
    assert reference is not None
    logged = [r for r in caplog.records if reference[1] in r.getMessage()]
    assert [record.name for record in logged] == ["bipsync_django.failures"]
    assert reason in logged[0].getMessage()
    concerns_everybody = reason in {"misconfigured", "token_refused"}
    assert (logged[0].levelno == logging.ERROR) is concerns_everybody

    assert "no-store" in response["Cache-Control"]
    assert "private" in response["Cache-Control"]
    assert response["Referrer-Policy"] == "no-referrer"
    assert scene.browser.user_id() is None


@pytest.mark.parametrize("name", ["declined", "unavailable: 503", "expired_state", "code_refused"])
def test_trying_again_leads_to_where_one_was_going(scene: Scene, name: str) -> None:
    page = FAILED[name](scene).content.decode()
    scene.monkeypatch.undo()
    scene.bipsync.redirect_uris.add("https://testserver/bipsync/callback/")
    again = scene.browser.open(links(page)[0])
    response = scene.browser.open(scene.bipsync.approve(again["Location"]))
    assert response["Location"] == NEXT.replace("<", "%3C").replace(">", "%3E")
    assert scene.browser.user_id() is not None


# Where somebody was signed in before, or waits to be switched on.
LASTING = {
    "replayed_state",
    "replayed_state with its cookie",
    "inactive",
    "inactive from the start",
}


@pytest.mark.parametrize("name", [name for name in FAILED if name not in LASTING])
def test_a_failure_leaves_no_token_and_no_user_behind(scene: Scene, name: str) -> None:
    FAILED[name](scene)
    assert not BipsyncToken.objects.filter(kind="person").exists()
    assert not User.objects.exclude(username="ADA@acme.example").exists()


def test_a_person_who_waits_to_be_switched_on_is_remembered(scene: Scene) -> None:
    FAILED["inactive from the start"](scene)
    assert BipsyncToken.objects.get().user == User.objects.get()
    User.objects.update(is_active=True)
    scene.come_back()
    assert scene.browser.user_id() == str(User.objects.get().pk)


@pytest.mark.parametrize(
    ("issuer", "named", "status"),
    [
        ("https://acme.example", {"iss": "https://acme.example"}, 302),
        ("https://acme.example", {}, 302),
        ("https://acme.example", {"iss": "https://acme.example/"}, 400),
        ("https://acme.example", {"iss": ["https://acme.example"] * 2}, 400),
        (None, {"iss": "https://acme.example"}, 302),
    ],
)
def test_the_issuer_that_a_callback_names_has_to_be_the_tenants(
    scene: Scene, issuer: str | None, named: dict[str, Any], status: int
) -> None:
    scene.configure(ISSUER=issuer)
    user = scene.bipsync.find_user(None)
    scene.bipsync.add_user(dataclasses.replace(user, extra={"iss": issuer} if issuer else {}))
    assert _callback(scene, lambda query: {**query, **named}).status_code == status


# --- what nobody may see


def test_the_providers_words_in_the_callback_are_never_shown(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    for error in ("access_denied", "invalid_scope", "server_error", CANARY):
        state = parse_qs(urlsplit(scene.begin()).query)["state"][0]
        query = {
            "state": state,
            "error": error,
            "error_description": CANARY,
            "error_uri": f"https://evil.example/{CANARY}",
            "hint": CANARY,
            "message": CANARY,
        }
        with caplog.at_level(logging.DEBUG):
            page = scene.browser.open(f"{CALLBACK}?{urlencode(query)}").content.decode()
        assert "canary" not in page
        assert "evil.example" not in page
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("bipsync_django")]
    assert len(ours) == 4
    assert not [message for message in ours if "canary" in message or "evil" in message]


class Mails:
    """What Django mails to the site's admins about errors, with everything that it knows."""

    def __init__(self, settings: Any, mailoutbox: list[Any]) -> None:
        address = "admin@acme.example"
        # Django 6.0 wants addresses alone, and 5.2 nothing but pairs.
        settings.ADMINS = [address if django.VERSION >= (6, 0) else ("Administrator", address)]
        self._outbox = mailoutbox

    def text(self) -> str:
        assert self._outbox
        parts = [mail.body for mail in self._outbox]
        parts += [str(content) for mail in self._outbox for content, _ in mail.alternatives]
        return " ".join(parts)


@pytest.fixture
def mails(settings: Any, mailoutbox: list[Any]) -> Iterator[Mails]:
    handler = AdminEmailHandler(include_html=True)
    logging.getLogger("django.request").addHandler(handler)
    yield Mails(settings, mailoutbox)
    logging.getLogger("django.request").removeHandler(handler)


class OwnFilter(SafeExceptionReporterFilter):
    """A site's own, which hides nothing of ours: what it must not show has to be gone."""


@pytest.fixture
def _own_filter(settings: Any) -> Iterator[None]:
    settings.DEFAULT_EXCEPTION_REPORTER_FILTER = f"{__name__}.{OwnFilter.__name__}"
    # Django remembers the one that was set first.
    default: Any = get_default_exception_reporter_filter
    default.cache_clear()
    yield
    default.cache_clear()


# As gunicorn and uWSGI name what the browser asked for.
@pytest.mark.parametrize("server", ["RAW_URI", "REQUEST_URI"])
@pytest.mark.usefixtures("_own_filter")
def test_the_mail_about_a_failure_holds_no_code(scene: Scene, mails: Mails, server: str) -> None:
    callback = scene.bipsync.approve(scene.begin())
    code = parse_qs(urlsplit(callback).query)["code"][0]
    scene.bipsync.fail("token", Html(503))
    asked = callback.partition("testserver")[2]
    assert scene.browser.open(callback, **{server: asked}).status_code == 503
    assert code not in mails.text()


def test_the_mail_about_an_error_of_the_sites_own_holds_no_code(scene: Scene, mails: Mails) -> None:
    def fail(**kwargs: object) -> None:
        raise ZeroDivisionError

    callback = scene.bipsync.approve(scene.begin())
    code = parse_qs(urlsplit(callback).query)["code"][0]
    scene.browser.raise_request_exception = False
    user_logged_in.connect(fail)
    try:
        assert scene.browser.open(callback).status_code == 500
    finally:
        user_logged_in.disconnect(fail)
    assert "ZeroDivisionError" in mails.text()
    token = BipsyncToken.objects.get()
    secrets = [code, token.unseal("access_token"), token.unseal("refresh_token"), "portal-secret"]
    assert [secret for secret in secrets if secret is None or secret in mails.text()] == []


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 500])
@pytest.mark.parametrize("error", ["invalid_grant", "invalid_client", CANARY])
def test_the_token_endpoints_words_are_never_shown(
    scene: Scene, caplog: pytest.LogCaptureFixture, status: int, error: str
) -> None:
    body = dict.fromkeys(("error_description", "hint", "message", "access_token"), CANARY)
    scene.bipsync.fail("token", Answer(status, {**body, "error": error}))
    with caplog.at_level(logging.DEBUG):
        response = scene.come_back()
    # An access token in a 200 is taken for one, whatever stands beside it, and does not validate.
    assert response.status_code in ({502} if status == 200 else {400, 503})
    assert "canary" not in response.content.decode()
    ours = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("bipsync"))
    assert ours
    assert "canary" not in ours


def test_what_is_wrong_with_the_settings_is_in_the_log_and_not_on_the_page(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    page = misconfigured_before_it_begins(scene).content.decode()
    assert "CLIENT_IDD" not in page
    assert "unknown key 'CLIENT_IDD'" in caplog.text
    assert "portal-secret" not in caplog.text


def test_an_error_that_came_back_without_its_state_is_named_in_the_log(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    # As the older dialect does when it refuses a scope.
    scene.bipsync.dialect = "8"
    scene.configure(SCOPES=["no_such:scope"])
    response = scene.browser.open(scene.bipsync.decline(scene.begin()))
    assert response.status_code == 400
    assert "error=invalid_scope" in caplog.text


def test_an_unknown_error_that_came_back_without_its_state_is_not_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Browser().open(f"{CALLBACK}?{urlencode({'error': CANARY})}")
    assert "usable state" in caplog.text
    assert "canary" not in caplog.text


def test_nothing_of_the_callback_is_written_into_the_failure_page(scene: Scene) -> None:
    callback = scene.bipsync.approve(scene.begin())
    scene.bipsync.withdraw(ADA)
    page = scene.browser.open(callback + f"&{urlencode({'x': CANARY})}").content.decode()
    query = parse_qs(urlsplit(callback).query)
    assert not [value for [value] in query.values() if value in page]
    assert "canary" not in page


# --- caches


def test_no_answer_of_a_sign_in_may_be_cached(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    login = browser.get(LOGIN, secure=True)
    callback = browser.open(bipsync.approve(login["Location"]))
    logout = browser.post(LOGOUT, secure=True)
    assert (login.status_code, callback.status_code, logout.status_code) == (302, 302, 200)
    for response in (login, callback, logout):
        assert "no-store" in response["Cache-Control"]
        assert "private" in response["Cache-Control"]


def test_the_address_with_the_code_is_told_to_nobody(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    login = browser.get(LOGIN, secure=True)
    callback = browser.open(bipsync.approve(login["Location"]))
    assert login["Referrer-Policy"] == callback["Referrer-Policy"] == "no-referrer"


# --- the site's own look


def test_a_failure_page_extends_the_sites_own_base(
    scene: Scene, settings: Any, tmp_path: Path
) -> None:
    own = tmp_path / "bipsync_django" / "base.html"
    own.parent.mkdir()
    own.write_text(
        "<title>{% block title %}{% endblock %} | ACME</title><nav>ACME staff</nav>"
        "{% block content %}{% endblock %}"
    )
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    page = declined(scene).content.decode()
    assert "<nav>ACME staff</nav>" in page
    assert "<title>You did not give permission | ACME</title>" in page
    assert 'data-reason="declined"' in page
    assert "bipsync-page" not in page


# --- arbitrary callbacks

_TEXT = strategies.text(max_size=60) | strategies.sampled_from(
    ["\x00", "x" * 43, "A" * 9000, "access_denied", "1", "%00", "' OR 1=1 --", "\ud7ff", "é", "[]"]
)
_NAMES = strategies.sampled_from(
    ["state", "code", "error", "error_description", "iss", "resumed", "next", "scope"]
) | strategies.text(max_size=10)
_ANY_QUERY = strategies.lists(strategies.tuples(_NAMES, _TEXT), max_size=8)
_hypothesis = settings(
    max_examples=80,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@_hypothesis
@given(query=_ANY_QUERY)
def test_a_callback_with_any_parameters_signs_nobody_in(
    bipsync: SimulatedBipsync, query: list[tuple[str, str]]
) -> None:
    browser = Browser()
    response = browser.open(f"{CALLBACK}?{urlencode(query, errors='surrogatepass')}")
    assert response.status_code == 400
    assert browser.user_id() is None


@_hypothesis
@given(query=_ANY_QUERY, strict=strategies.booleans())
def test_a_trip_that_comes_back_with_any_parameters_signs_nobody_in(
    bipsync: SimulatedBipsync, query: list[tuple[str, str]], strict: bool
) -> None:
    browser = Browser()
    state = parse_qs(urlsplit(browser.begin()).query)["state"][0]
    # With the right state, so that everything behind it is reached.
    query = [("state", state), *[(name, value) for name, value in query if name != "state"]]
    if strict:
        query.append(("resumed", "1"))
    response = browser.open(f"{CALLBACK}?{urlencode(query, errors='surrogatepass')}")
    assert response.status_code in {400, 403, 503}
    assert browser.user_id() is None


@_hypothesis
@given(raw=strategies.binary(max_size=200))
def test_a_callback_with_any_bytes_signs_nobody_in(bipsync: SimulatedBipsync, raw: bytes) -> None:
    browser = Browser()
    response = browser.get(CALLBACK, secure=True, QUERY_STRING=raw.decode("latin-1"))
    assert response.status_code == 400
    assert browser.user_id() is None


@_hypothesis
@given(next_url=strategies.text(max_size=100))
def test_a_sign_in_with_any_next_starts_and_stays_on_this_site(
    bipsync: SimulatedBipsync, next_url: str
) -> None:
    browser = Browser()
    response = browser.get(LOGIN, {"next": next_url.encode("utf-8", "replace")}, secure=True)
    assert response.status_code == 302
    assert response["Location"].startswith(bipsync.authorize_url + "?")


@pytest.mark.parametrize("method", ["post", "put", "patch", "delete"])
@pytest.mark.parametrize("path", [LOGIN, CALLBACK])
def test_only_a_visit_starts_or_ends_a_sign_in(
    bipsync: SimulatedBipsync, path: str, method: str
) -> None:
    response = getattr(Browser(), method)(path, secure=True)
    assert response.status_code == 405


# --- middleware and transactions


def test_a_site_behind_a_login_wall_lets_people_sign_in_and_out(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    browser = Browser()
    assert browser.get("/", secure=True).status_code == 302
    assert browser.open(bipsync.decline(browser.begin())).status_code == 403
    assert browser.open(bipsync.approve(browser.begin())).status_code == 302
    assert browser.get("/", secure=True).status_code == 200
    assert browser.post(LOGOUT, secure=True).status_code == 200
    assert browser.post(LOGOUT, secure=True).status_code == 200
    assert browser.user_id() is None


def test_a_new_grant_outlives_a_request_that_fails_under_atomic_requests(
    database: str, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    for alias in connections:
        monkeypatch.setitem(connections.settings[alias], "ATOMIC_REQUESTS", True)

    def fail(**arguments: Any) -> None:
        raise RuntimeError("a receiver of the site's")

    user_logged_in.connect(fail)
    try:
        browser = Browser(raise_request_exception=False)
        response = browser.open(bipsync.approve(browser.begin()))
    finally:
        user_logged_in.disconnect(fail)
    assert response.status_code == 500
    refresh_token = BipsyncToken.objects.get().unseal("refresh_token")
    assert refresh_token is not None
    assert bipsync.is_alive(refresh_token)
    assert SpentState.objects.count() == 1


# --- signing out


def test_a_link_cannot_sign_anyone_out(bipsync: SimulatedBipsync) -> None:
    browser = signed_in(bipsync)
    assert browser.get(LOGOUT, secure=True).status_code == 200
    assert browser.user_id() is not None


def test_another_site_cannot_sign_anyone_out(bipsync: SimulatedBipsync) -> None:
    browser = signed_in(bipsync)
    strict = Browser(enforce_csrf_checks=True)
    strict.cookies = browser.cookies
    response = strict.post(LOGOUT, secure=True, headers={"origin": "https://evil.example"})
    assert response.status_code == 403
    assert browser.user_id() is not None


def test_signing_out_ends_the_session_and_offers_to_sign_in(bipsync: SimulatedBipsync) -> None:
    browser = signed_in(bipsync)
    copied = browser.twin()
    response = browser.post(LOGOUT, secure=True)
    page = response.content.decode()
    assert response.status_code == 200
    assert "You are signed out" in visible_text(page)
    assert links(page) == [LOGIN]
    assert browser.user_id() is None
    assert copied.get("/", secure=True).status_code == 302


def test_signing_out_here_keeps_the_connection_to_bipsync(bipsync: SimulatedBipsync) -> None:
    browser = signed_in(bipsync)
    browser.post(LOGOUT, secure=True)
    assert BipsyncToken.objects.get().status == "active"


@pytest.mark.parametrize("target", ["https://evil.example/", "//evil.example/", "javascript:x"])
def test_signing_out_leads_to_no_other_site(bipsync: SimulatedBipsync, target: str) -> None:
    browser = signed_in(bipsync)
    response = browser.post(f"{LOGOUT}?{urlencode({'next': target})}", secure=True)
    assert response.status_code == 200
    assert "evil" not in response.content.decode()


# --- SameSite=Strict (what a real browser does with it is tried in test_browser.py)


def test_with_strict_cookies_the_callback_asks_once_more_from_this_site(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.SESSION_COOKIE_SAMESITE = "Strict"
    browser = Browser()
    callback = bipsync.approve(browser.begin("/reports/"))
    page = browser.open(callback)
    assert page.status_code == 200
    assert "no-store" in page["Cache-Control"]
    assert page["Referrer-Policy"] == "no-referrer"
    assert browser.user_id() is None
    assert not SpentState.objects.exists()
    assert bipsync.calls["code"] == 0
    seconds, _, url = page["Refresh"].partition("; url=")
    assert seconds == "0"
    assert links(page.content.decode()) == [url]
    final = browser.open(url)
    assert (final.status_code, final["Location"]) == (302, "/reports/")
    assert browser.user_id() is not None
    assert browser.open(url)["Location"] == "/reports/", "led on, and nothing is spent again"
    assert bipsync.calls["code"] == 1


def test_with_strict_cookies_a_foreign_callback_is_refused_at_once(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.SESSION_COOKIE_SAMESITE = "Strict"
    callback = bipsync.approve(Browser().begin())
    assert Browser().open(callback).status_code == 400


def test_the_resume_page_works_where_the_site_has_a_path_beyond_ascii(settings: Any) -> None:
    settings.SESSION_COOKIE_SAMESITE = "Strict"
    request = RequestFactory().get("/zespół/bipsync/callback/", {"code": "x", "state": "y"})
    view = views.CallbackView()
    view.setup(request)
    response = view._resume(request)
    assert response["Refresh"] == (
        "0; url=/zesp%C3%B3%C5%82/bipsync/callback/?code=x&state=y&resumed=1"
    )


@pytest.mark.parametrize("policy", ["Lax", "None", False])
def test_with_other_cookies_the_callback_needs_no_second_request(
    bipsync: SimulatedBipsync, settings: Any, policy: Any
) -> None:
    settings.SESSION_COOKIE_SAMESITE = policy
    assert signed_in(bipsync).user_id() is not None


def test_a_copy_of_the_database_does_not_even_begin(scene: Scene) -> None:
    scene.configure(DEPLOYMENT="production")
    scene.come_back()
    scene.bipsync.reset_calls()
    scene.configure(DEPLOYMENT="staging")
    response = scene.browser.open(LOGIN)
    assert response.status_code == 503
    assert "not set up correctly" in response.content.decode()
    assert sum(scene.bipsync.calls.values()) == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"accept": "*/*"}, 302),
        ({"accept": "*/*", "sec-fetch-mode": "cors"}, 401),
        ({"accept": "application/json"}, 401),
        ({"accept": "*/*", "sec-fetch-mode": "navigate"}, 302),
    ],
)
def test_a_script_is_not_led_to_bipsyncs_pages(
    scene: Scene, headers: dict[str, str], status: int
) -> None:
    response = scene.browser.get(LOGIN, secure=True, headers=headers)
    assert response.status_code == status
    if status == 401:
        assert response.json() == {"error": "sign_in_required", "sign_in_url": LOGIN}
