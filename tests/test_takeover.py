"""Nobody gets another person's account, and nobody keeps its owner out, on any database."""

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import alogin, authenticate, login
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AnonymousUser, Group, User
from django.contrib.auth.tokens import default_token_generator
from django.contrib.sessions.backends.db import SessionStore
from django.core.exceptions import PermissionDenied
from django.core.management import call_command
from django.db import connections
from django.http import HttpRequest
from django.test import RequestFactory
from django.utils import timezone

from bipsync_django import lifecycle
from bipsync_django.backends import BipsyncBackend
from bipsync_django.models import BipsyncToken, TokenEvent
from bipsync_django.testing import SimulatedBipsync, SimulatedUser
from tests import databases
from tests.browser import (
    CALLBACK,
    LOGIN,
    Browser,
    answer_confirmation,
    signed_in,
    way_to_bipsync,
)
from tests.documentation import block, run
from tests.grants import expire

pytestmark = pytest.mark.usefixtures("rolled_back_database")

NORA, MALLORY = "68b993fa85d14160d5030301", "68b993fa85d14160d5030302"
MAIL = "nora@acme.example"
MATCH = {"MATCH_USERS_BY": {"TENANT": "acme", "VERIFIED_CLAIM": "email_verified"}}
MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"
REMOTE_BACKEND = "django.contrib.auth.backends.RemoteUserBackend"
OUR_BACKEND = "bipsync_django.backends.BipsyncBackend"


def configure(settings: Any, **values: Any) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, **values}


def two_tenants(bipsync: SimulatedBipsync, settings: Any, **shared: Any) -> None:
    """Let the client of ``bipsync`` be two tenants, ``acme`` and ``globex``."""
    bipsync.redirect_uris |= {f"https://testserver{CALLBACK}globex/"}
    own = {key: value for key, value in settings.BIPSYNC.items() if key != "CLIENT"}
    loopback = {"ALLOW_INSECURE_LOOPBACK": own.pop("ALLOW_INSECURE_LOOPBACK")}
    settings.BIPSYNC = {**loopback, **shared, "TENANTS": {"acme": own, "globex": own}}


def person(subject: str = NORA, **claims: Any) -> SimulatedUser:
    return SimulatedUser(subject, "Nora Noon", "Nora", "Noon", MAIL, extra=claims)


VERIFIED: dict[str, Any] = {"email": MAIL, "email_verified": True}


def come(bipsync: SimulatedBipsync, user: SimulatedUser, tenant: str = "") -> tuple[Browser, str]:
    """Sign in; return the browser, and the username or the reason of the refusal."""
    browser = Browser()
    bipsync.add_user(user)
    begun = browser.get(LOGIN + (f"{tenant}/" if tenant else ""), secure=True)["Location"]
    page: str = browser.open(bipsync.approve(begun, user=user.id)).content.decode()
    found = User.objects.filter(pk=browser.user_id() or 0).first()
    reason = page.partition('data-reason="')[2].partition('"')[0]
    return browser, found.username if found else reason


def greeting(browser: Browser) -> str:
    return str(browser.open("/greeting/").content.decode())


# --- an account that waits for its victim


@pytest.mark.parametrize("engine", ["db", "signed_cookies"])
@pytest.mark.parametrize("backend", [MODEL_BACKEND, REMOTE_BACKEND, OUR_BACKEND])
def test_nobody_waits_in_the_account_of_somebody_else(
    bipsync: SimulatedBipsync, settings: Any, engine: str, backend: str
) -> None:
    configure(settings, **MATCH)
    settings.AUTHENTICATION_BACKENDS = [OUR_BACKEND, MODEL_BACKEND, REMOTE_BACKEND]
    mallory = User.objects.create_user("mallory", MAIL, "secret")
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    waiting = Browser()
    waiting.force_login(mallory, backend=backend)
    assert greeting(waiting) == "Hello mallory"
    link = default_token_generator.make_token(mallory)

    nora = Browser()
    nora.open(bipsync.approve(nora.begin(), user=person(**VERIFIED)))

    assert greeting(nora) == "Hello mallory", "Nora has the account, and goes on working"
    assert greeting(waiting) == "Hello visitor"
    assert authenticate(username="mallory", password="secret") is None
    mallory.refresh_from_db()
    assert not mallory.has_usable_password()
    assert not default_token_generator.check_token(mallory, link)
    event = TokenEvent.objects.get(name="matched")
    assert (event.reason, event.actor, event.subject) == ("access_reset", mallory, NORA)


def test_a_person_who_comes_back_keeps_their_new_password(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    configure(settings, **MATCH)
    User.objects.create_user("nora", MAIL, "secret")
    nora = person(**VERIFIED)
    come(bipsync, nora)
    user = User.objects.get()
    TokenEvent.objects.update(at=timezone.now() - timedelta(minutes=11))
    user.set_password("a new one")
    user.save()
    assert come(bipsync, nora)[1] == "nora"
    assert User.objects.get().check_password("a new one")
    assert TokenEvent.objects.filter(name="matched").count() == 1


@pytest.mark.parametrize("how", ["a constant", "no method"])
def test_nobody_is_joined_whose_sessions_would_go_on(
    bipsync: SimulatedBipsync,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    configure(settings, **MATCH)
    User.objects.create_user("mallory", MAIL, "secret")
    get_hash = None if how == "no method" else lambda self: "constant"
    monkeypatch.setattr(User, "get_session_auth_hash", get_hash)
    assert come(bipsync, person(**VERIFIED))[1] == "account_exists"
    assert "does not depend on the password" in caplog.text
    assert User.objects.get().check_password("secret")
    assert not BipsyncToken.objects.exists()


class EndsThemItself(BipsyncBackend):
    """A site that ends sessions in its own way."""

    def reset_access(self, user: Any) -> None:
        user.set_password("sent by post")
        user.save()


def test_a_site_may_end_them_in_its_own_way(
    bipsync: SimulatedBipsync, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(settings, **MATCH)
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.EndsThemItself"]
    monkeypatch.setattr(User, "get_session_auth_hash", lambda self: "constant")
    User.objects.create_user("nora", MAIL, "secret")
    assert come(bipsync, person(**VERIFIED))[1] == "nora"
    assert User.objects.get().check_password("sent by post")


# --- an address that is not theirs


@pytest.mark.parametrize("how", ["unverified", "other tenant", "other claim", "a callable"])
@pytest.mark.parametrize("when", ["at first", "later"])
def test_nobody_keeps_the_owner_of_an_address_out(
    bipsync: SimulatedBipsync, settings: Any, how: str, when: str
) -> None:
    two_tenants(bipsync, settings, **MATCH)
    tenants = settings.BIPSYNC["TENANTS"]
    tenant = "globex" if how == "other tenant" else "acme"
    claims: dict[str, Any] = {"email": MAIL, "email_verified": how == "other tenant"}
    if how in {"other claim", "a callable"}:
        # Their own address is verified, and is not what fills the field.
        claims = {"email": "mallory@acme.example", "email_verified": True, "nick": MAIL}
        source = "nick" if how == "other claim" else lambda claims: claims.get("nick")
        own = {**tenants["acme"], "CLAIMS": {"email": source}}
        settings.BIPSYNC = {**settings.BIPSYNC, "TENANTS": {**tenants, "acme": own}}
    if when == "later":
        come(bipsync, person(MALLORY, email=None), tenant)
    _, mallory = come(bipsync, person(MALLORY, **claims), tenant)
    assert User.objects.get(username=mallory).email == ""

    nora = User.objects.create_user("nora-noon", MAIL, "secret")
    assert come(bipsync, person(**VERIFIED), "acme")[1] == nora.username


def test_an_address_that_is_not_trusted_is_no_username(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    """Which would be taken when the address's owner comes."""
    configure(settings, **MATCH, CLAIMS={"username": "email"})
    assert come(bipsync, person(MALLORY, email=MAIL))[1] == "nora.noon"
    assert come(bipsync, person(**VERIFIED))[1] == MAIL


def test_nobody_takes_the_address_that_another_is_known_by(
    bipsync: SimulatedBipsync, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where people are known by their address: ``tests/custom_user`` has such a model."""
    configure(settings, **MATCH)
    monkeypatch.setattr(User, "EMAIL_FIELD", "username")
    assert come(bipsync, person(MALLORY, email=MAIL), "")[1] == "no_email"
    configure(settings, CLAIMS={"username": "email"})
    assert come(bipsync, person(MALLORY, email=MAIL), "")[1] == "no_email"
    assert not User.objects.exists()
    assert come(bipsync, person(**VERIFIED))[1] == MAIL


# --- an account that was taken from its user


def test_an_unlinked_account_is_joined_by_no_rule_again(
    bipsync: SimulatedBipsync, settings: Any, tmp_path: Path
) -> None:
    configure(settings, **MATCH)
    user = User.objects.create_user("nora", MAIL, "secret")
    assert come(bipsync, person(**VERIFIED))[1] == "nora"
    file = tmp_path / "links.csv"
    file.write_text(f"username,subject\nnora,{MALLORY}\n")
    call_command("bipsync_link", "--csv", str(file), "--replace")
    lifecycle.unlink(BipsyncToken.objects.get(subject=MALLORY))
    # What the event says is forgotten one day.
    TokenEvent.objects.all().delete()
    assert come(bipsync, person(**VERIFIED))[1] == "account_exists"
    assert come(bipsync, person(MALLORY, **VERIFIED))[1] == "account_exists"
    assert not BipsyncToken.objects.filter(user=user).exists()

    file.write_text(f"username,subject\nnora,{NORA}\n")
    call_command("bipsync_link", "--csv", str(file))
    assert come(bipsync, person(**VERIFIED))[1] == "nora"


def test_a_disconnected_and_unlinked_account_is_joined_by_no_rule(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    configure(settings, **MATCH)
    User.objects.create_user("nora", MAIL, "secret")
    come(bipsync, person(**VERIFIED))
    lifecycle.disconnect(BipsyncToken.objects.get())
    assert come(bipsync, person(**VERIFIED))[1] == "nora", "it is still theirs"
    lifecycle.disconnect(BipsyncToken.objects.get())
    lifecycle.unlink(BipsyncToken.objects.get())
    assert come(bipsync, person(**VERIFIED))[1] == "account_exists"


def test_a_group_that_another_tenant_owns_stays_at_unlinking(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    two_tenants(bipsync, settings)
    tenants = settings.BIPSYNC["TENANTS"]
    rules = {"acme": {"x": ["Shared", "Acme"]}, "globex": {"x": "Shared"}}
    settings.BIPSYNC = {
        **settings.BIPSYNC,
        "TENANTS": {
            slug: {**own, "GROUPS": {"teams": rules[slug]}} for slug, own in tenants.items()
        },
    }
    for name in ("Shared", "Acme"):
        Group.objects.create(name=name)
    _, name = come(bipsync, person(teams=["x"]), "acme")
    user = User.objects.get(username=name)
    assert set(user.groups.values_list("name", flat=True)) == {"Shared", "Acme"}
    lifecycle.unlink(BipsyncToken.objects.get())
    assert list(user.groups.values_list("name", flat=True)) == ["Shared"]


# --- the examples of the documentation, word for word


def documented(name: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use an example of the documentation."""
    module = ModuleType("documented_rules")
    monkeypatch.setitem(sys.modules, "documented_rules", module)
    if name.startswith("find_"):
        code = block("linking.md", "def find_in_directory")
        if name != "find_in_directory":
            code += block("linking.md", f"def {name}")
        vars(module).update(run(code, __name__="documented_rules"))
        configure(settings, USER_RESOLVER=f"documented_rules.{name}")
        return
    vars(module).update(run(block("people.md", f"class {name}(")))
    settings.AUTHENTICATION_BACKENDS = [f"documented_rules.{name}", MODEL_BACKEND]


@pytest.fixture
def example(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda name: documented(name, settings, monkeypatch)


NUMBER: dict[str, Any] = {"personnel_number": "k4711", "personnel_number_verified": True}
EXAMPLES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("ExistingStaff", {"username": "nora-noon", "email": MAIL}, VERIFIED),
    ("find_in_directory", {"username": "k4711"}, NUMBER),
    ("find_and_vouch", {"username": "k4711"}, NUMBER),
    ("OwnDirectory", {"username": NORA}, {}),
]
each_example = pytest.mark.parametrize(
    ("name", "there", "claims"), EXAMPLES, ids=[name for name, *_ in EXAMPLES]
)


@each_example
def test_the_examples_that_find_people_find_them(
    bipsync: SimulatedBipsync,
    example: Callable[[str], None],
    name: str,
    there: dict[str, Any],
    claims: dict[str, Any],
) -> None:
    example(name)
    ours = User.objects.create_user(**there, password="secret")
    assert come(bipsync, person(**claims))[1] == ours.username
    ours.refresh_from_db()
    vouches = name in {"find_and_vouch", "OwnDirectory"}
    assert ours.check_password("secret") is vouches
    event = TokenEvent.objects.get(name="matched")
    assert event.reason == ("vouched" if vouches else "access_reset")


@each_example
def test_the_examples_that_find_people_find_nobody_else(
    bipsync: SimulatedBipsync,
    settings: Any,
    example: Callable[[str], None],
    name: str,
    there: dict[str, Any],
    claims: dict[str, Any],
) -> None:
    two_tenants(bipsync, settings)
    example(name)
    ours = User.objects.create_user(**there, password="secret")

    def try_to_come(subject: str = MALLORY, tenant: str = "acme", **said: Any) -> None:
        _, who = come(bipsync, person(subject, **{**claims, **said}), tenant)
        assert who not in {ours.username, ""}
        ours.refresh_from_db()
        assert ours.check_password("secret")
        assert not BipsyncToken.objects.filter(user=ours).exists()
        User.objects.exclude(pk=ours.pk).delete()

    try_to_come(NORA, tenant="globex")
    if claims is VERIFIED:
        for unverified in (False, "true", 1):
            try_to_come(email_verified=unverified)
        for mail in ("n\u00f3ra@acme.example", None, [MAIL]):
            try_to_come(email=mail)
    elif claims is NUMBER:
        for unverified in (False, "true", 1):
            try_to_come(personnel_number_verified=unverified)
        for number in ("K4711", "\u212a4711", "\u01374711", None, ["k4711"]):
            try_to_come(personnel_number=number)
    else:
        try_to_come(NORA.upper())


@each_example
def test_the_examples_join_administrators_only_if_they_vouch(
    bipsync: SimulatedBipsync,
    example: Callable[[str], None],
    name: str,
    there: dict[str, Any],
    claims: dict[str, Any],
) -> None:
    example(name)
    boss = User.objects.create_superuser(**there, password="secret")
    vouches = name in {"find_and_vouch", "OwnDirectory"}
    expected = boss.username if vouches else "account_exists"
    assert come(bipsync, person(**claims))[1] == expected
    assert User.objects.get().check_password("secret")


@pytest.mark.parametrize(("name", "there", "claims"), EXAMPLES[:2], ids=["address", "number"])
def test_a_user_registered_in_anothers_name_is_of_no_use(
    bipsync: SimulatedBipsync,
    example: Callable[[str], None],
    name: str,
    there: dict[str, Any],
    claims: dict[str, Any],
) -> None:
    example(name)
    squatter = User.objects.create_user(**there, password="secret")
    waiting = Browser()
    waiting.force_login(squatter, backend=MODEL_BACKEND)
    assert greeting(waiting) == f"Hello {squatter.username}"
    nora, who = come(bipsync, person(**claims))
    assert who == squatter.username
    assert greeting(nora) == f"Hello {who}"
    assert greeting(waiting) == "Hello visitor"
    assert authenticate(username=who, password="secret") is None


def test_the_example_of_reset_access_revokes_what_else_leads_in(
    bipsync: SimulatedBipsync, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    revoked: list[User] = []

    class Tokens:
        def filter(self, user: User) -> "Tokens":
            revoked.append(user)
            return self

        def delete(self) -> None:
            pass

    models: Any = ModuleType("rest_framework.authtoken.models")
    models.Token = type("Token", (), {"objects": Tokens()})
    for name in ("rest_framework", "rest_framework.authtoken"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "rest_framework.authtoken.models", models)
    documented("WithoutOldTokens", settings, monkeypatch)
    configure(settings, **MATCH)
    user = User.objects.create_user("nora", MAIL, "secret")
    come(bipsync, person(**VERIFIED))
    user.refresh_from_db()
    assert revoked == [user]
    assert not user.has_usable_password()


# --- names that some databases take for one another

SSO_ONLY = {"SSO_ONLY": True, "BREAK_GLASS_USERS": ["emergency"]}
ALIKE = ["\u00c9mergency", "EMERGENCY", "Emergency", "emerg\u00e9ncy"]


@pytest.mark.parametrize("name", ALIKE)
def test_a_name_that_is_written_alike_is_no_break_glass_name(settings: Any, name: str) -> None:
    configure(settings, **SSO_ONLY)
    User.objects.create_superuser(name, password="secret")
    for typed in ("emergency", name):
        assert authenticate(username=typed, password="secret") is None
        browser = Browser()
        form = {"username": typed, "password": "secret", "next": "/admin/"}
        assert browser.post("/admin/login/", form, secure=True).status_code == 200
        assert browser.user_id() is None


class CaseInsensitive(ModelBackend):
    """A site's own backend, which takes names in any case."""

    def authenticate(
        self, request: Any, username: Any = None, password: Any = None, **kwargs: Any
    ) -> Any:
        user = User.objects.filter(username__iexact=username).first()
        return user if user is not None and user.check_password(password) else None


def test_a_backend_that_looks_names_up_loosely_signs_nobody_in(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    configure(settings, **SSO_ONLY)
    settings.AUTHENTICATION_BACKENDS = [OUR_BACKEND, f"{__name__}.CaseInsensitive"]
    user = User.objects.create_superuser("EMERGENCY", password="secret")
    browser = Browser()
    form = {"username": "emergency", "password": "secret", "next": "/admin/"}
    answer = browser.post("/admin/login/", form, secure=True)
    assert browser.user_id() is None
    assert greeting(browser) == "Hello visitor"
    # Where the database takes the names for one, the password is not even looked at.
    assert answer.status_code == 403 or b"errornote" in answer.content
    assert (answer.status_code == 403) is ("who has another name" in caplog.text)
    user.username = "emergency"
    user.save()
    assert browser.post("/admin/login/", form, secure=True).status_code == 302
    assert browser.user_id() == str(user.pk)


class Wrapped:
    """A request as Django REST framework hands it on."""

    def __init__(self, request: HttpRequest) -> None:
        self._request = request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


@pytest.mark.parametrize("how", ["plain", "wrapped", "asynchronous"])
def test_a_loose_backend_signs_nobody_in_by_any_door(settings: Any, how: str) -> None:
    """Django REST framework wraps the request for ``authenticate()`` and not for ``login()``."""
    configure(settings, **SSO_ONLY)
    settings.AUTHENTICATION_BACKENDS = [OUR_BACKEND, f"{__name__}.CaseInsensitive"]
    User.objects.create_user("EMERGENCY", password="secret")
    request = RequestFactory().post("/")
    request.session = SessionStore()
    request.user = AnonymousUser()
    asked: Any = Wrapped(request) if how == "wrapped" else request
    user: Any = authenticate(asked, username="emergency", password="secret")
    if user is None:
        assert connections[databases.Router.alias].vendor == "mysql", "it takes the two for one"
        return
    sign_in = async_to_sync(alogin) if how == "asynchronous" else login
    with pytest.raises(PermissionDenied):
        sign_in(request, user)
    assert request.session.is_empty()
    assert not request.user.is_authenticated


@pytest.mark.parametrize("name", ALIKE)
def test_nobody_gets_a_name_that_is_like_a_break_glass_name(
    bipsync: SimulatedBipsync, settings: Any, name: str
) -> None:
    configure(settings, CLAIMS={"username": "login"}, BREAK_GLASS_USERS=["emergency"])
    come(bipsync, person(login=name))
    # In another case least of all, whatever this database makes of it.
    names = User.objects.values_list("username", flat=True)
    assert "emergency" not in [given.casefold() for given in names]
    assert not User.objects.filter(username="emergency").exists()
    assert User.objects.create_user("emergency")


def test_a_subject_that_only_differs_in_case_is_not_taken_for_another(
    bipsync: SimulatedBipsync, caplog: pytest.LogCaptureFixture
) -> None:
    """A service account, and somebody's wider grant, which a sign-in would try first."""
    BipsyncToken.objects.create(tenant="acme", kind="service", subject=NORA.upper())
    assert come(bipsync, person())[1] == "nora"

    signed_in(bipsync, person(MALLORY))
    token = BipsyncToken.objects.get(subject=MALLORY)
    BipsyncToken.objects.filter(pk=token.pk).update(scopes="a b users:read")
    expire(token)
    before = bipsync.calls["refresh"]
    come(bipsync, person(MALLORY.upper()))
    assert bipsync.calls["refresh"] == before
    token.refresh_from_db()
    assert (token.subject, token.generation) == (MALLORY, 1)


# --- requests that are under way while a rule joins


def test_a_user_that_was_read_before_brings_no_password_back(
    bipsync: SimulatedBipsync, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    configure(settings, **MATCH)
    User.objects.create_user("mallory", MAIL, "secret")
    stale = User.objects.get()
    come(bipsync, person(**VERIFIED))
    stale.first_name = "Mal"
    stale.save()
    assert not User.objects.get().has_usable_password()
    assert User.objects.get().first_name == "Mal"
    assert not Browser().login(username="mallory", password="secret")
    assert "A password that was saved since is not kept" in caplog.text
    # The object goes on as it is: a session that is bound to its hash is dead.
    assert stale.get_session_auth_hash() != User.objects.get().get_session_auth_hash()


def test_a_password_may_be_set_later(bipsync: SimulatedBipsync, settings: Any) -> None:
    configure(settings, **MATCH)
    User.objects.create_user("mallory", MAIL, "secret")
    come(bipsync, person(**VERIFIED))
    TokenEvent.objects.update(at=timezone.now() - timedelta(minutes=11))
    user = User.objects.get()
    user.set_password("another")
    user.save()
    assert Browser().login(username="mallory", password="another")


def test_other_people_keep_their_passwords(bipsync: SimulatedBipsync, settings: Any) -> None:
    configure(settings, **MATCH)
    User.objects.create_user("mallory", MAIL, "secret")
    come(bipsync, person(**VERIFIED))
    other = User.objects.create_user("other", password="secret")
    other.save()
    assert other.has_usable_password()
    assert Browser().login(username="other", password="secret")


def test_a_confirmation_under_way_does_not_join_the_user_that_a_rule_has_joined(
    bipsync: SimulatedBipsync, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_tenants(bipsync, settings, **MATCH)
    User.objects.create_user("mallory", MAIL, "secret")
    browser = Browser()
    assert browser.login(username="mallory", password="secret")
    mallorys = SimulatedUser(MALLORY, "Mal Lory", "Mal", "Lory", "mallory@evil.example")
    bipsync.add_user(mallorys)
    begun = way_to_bipsync(browser.post("/bipsync/connect/globex/", secure=True))
    back = browser.open(bipsync.approve(begun, user=MALLORY))
    plain = lifecycle.claims_of
    came: list[Any] = []

    def meanwhile(row: BipsyncToken) -> Any:
        claims = plain(row)
        if not came:
            came.append(come(bipsync, person(**VERIFIED), "acme"))
        return claims

    monkeypatch.setattr(lifecycle, "claims_of", meanwhile)
    answer = answer_confirmation(browser, back)
    assert (answer.status_code, answer.context["reason"]) == (403, "other_person")
    assert not BipsyncToken.objects.filter(subject=MALLORY).exclude(user=None).exists()
