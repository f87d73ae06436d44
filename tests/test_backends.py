"""The authentication backend beside Django's own."""

from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import aauthenticate, authenticate
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import Group, Permission, User
from django.contrib.auth.signals import user_login_failed

from bipsync_django.backends import BipsyncBackend, SignIn
from bipsync_django.conf import get_tenant
from bipsync_django.models import BipsyncToken
from bipsync_django.oauth.claims import validate_access_token
from bipsync_django.testing import SimulatedBipsync
from tests.browser import Browser, signed_in

pytestmark = pytest.mark.django_db(transaction=True)

BACKEND = "bipsync_django.backends.BipsyncBackend"


@pytest.fixture
def alone(settings: Any) -> None:
    settings.AUTHENTICATION_BACKENDS = [BACKEND]


@pytest.mark.usefixtures("alone")
def test_a_password_signs_nobody_in() -> None:
    User.objects.create_user("ada", password="secret")
    assert authenticate(username="ada", password="secret") is None
    assert authenticate(username="ada", password="") is None
    assert authenticate() is None


@pytest.mark.usefixtures("alone")
def test_a_password_signs_nobody_in_asynchronously() -> None:
    User.objects.create_user("ada", password="secret")
    assert async_to_sync(aauthenticate)(username="ada", password="secret") is None


def test_a_sign_in_works_asynchronously_too(bipsync: SimulatedBipsync) -> None:
    claims = validate_access_token(bipsync.sign(bipsync.access_token_claims()), get_tenant())
    user = async_to_sync(aauthenticate)(bipsync=SignIn(get_tenant(), claims, BipsyncToken()))
    assert user == User.objects.get()


def test_passwords_still_work_through_djangos_backend() -> None:
    user = User.objects.create_user("ada", password="secret")
    assert authenticate(username="ada", password="secret") == user


def test_nobody_who_came_from_bipsync_has_a_password(bipsync: SimulatedBipsync) -> None:
    signed_in(bipsync)
    user = User.objects.get()
    assert not user.has_usable_password()
    assert authenticate(username=user.username, password="") is None
    assert authenticate(username=user.username, password="!") is None
    assert authenticate(username=user.username, password=user.password) is None


@pytest.mark.usefixtures("alone")
def test_a_session_finds_its_user_again_until_they_are_switched_off(
    bipsync: SimulatedBipsync,
) -> None:
    browser = signed_in(bipsync)
    assert b"Signed in as ada" in browser.get("/", secure=True).content
    User.objects.update(is_active=False)
    assert browser.get("/", secure=True).status_code == 302


def test_get_user_works_as_in_django() -> None:
    backend = BipsyncBackend()
    active, inactive = User.objects.create_user("a"), User.objects.create_user("b", is_active=False)
    assert backend.get_user(active.pk) == active
    assert backend.get_user(inactive.pk) is None
    assert backend.get_user(4711) is None


@pytest.mark.usefixtures("alone")
def test_permissions_are_those_of_user_and_groups(bipsync: SimulatedBipsync) -> None:
    signed_in(bipsync)
    user = User.objects.get()
    assert not user.has_perm("auth.view_user")
    view, change = (Permission.objects.get(codename=f"{verb}_user") for verb in ("view", "change"))
    user.user_permissions.add(view)
    group = Group.objects.create(name="editors")
    group.permissions.add(change)
    user.groups.add(group)
    user = User.objects.get()
    assert user.has_perms(["auth.view_user", "auth.change_user"])
    assert not user.has_perm("auth.delete_user")
    assert list(User.objects.with_perm("auth.change_user", backend=BACKEND)) == [user]


def test_a_refused_sign_in_is_no_failed_password(bipsync: SimulatedBipsync, settings: Any) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "CREATE_USERS": False}
    failed = []

    def note(**arguments: Any) -> None:
        failed.append(arguments)

    user_login_failed.connect(note)
    try:
        browser = Browser()
        assert browser.open(bipsync.approve(browser.begin())).status_code == 403
    finally:
        user_login_failed.disconnect(note)
    # Lock-out packages count these, and a refusal is nobody's guess at a password.
    assert failed == []


def test_a_sign_in_shows_no_claims_when_printed(bipsync: SimulatedBipsync) -> None:
    raw = bipsync.sign(bipsync.access_token_claims())
    claims = validate_access_token(raw, get_tenant())
    printed = repr(SignIn(get_tenant(), claims, BipsyncToken()))
    assert "ada@acme.example" not in printed
    assert "portal-secret" not in printed


# --- SSO_ONLY


@pytest.fixture
def sso_only(settings: Any) -> None:
    settings.BIPSYNC = {
        **settings.BIPSYNC,
        "SSO_ONLY": True,
        "BREAK_GLASS_USERS": ["emergency"],
    }


@pytest.mark.usefixtures("sso_only")
def test_with_sso_only_a_password_is_refused_whoever_asks() -> None:
    User.objects.create_superuser("ada", password="secret")
    assert authenticate(username="ada", password="secret") is None
    assert async_to_sync(aauthenticate)(username="ada", password="secret") is None
    form = Browser().post(
        "/admin/login/", {"username": "ada", "password": "secret", "next": "/admin/"}, secure=True
    )
    assert form.status_code == 200
    assert not Browser().login(username="ada", password="secret")


@pytest.mark.usefixtures("sso_only")
def test_with_sso_only_the_account_for_emergencies_gets_in_and_that_is_an_error_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    user = User.objects.create_superuser("emergency", password="secret")
    assert authenticate(username="emergency", password="wrong") is None
    assert not caplog.records
    browser = Browser()
    browser.post("/admin/login/", {"username": "emergency", "password": "secret"}, secure=True)
    assert browser.user_id() == str(user.pk)
    (record,) = [one for one in caplog.records if one.name == "bipsync_django.backends"]
    assert (record.levelname, record.args) == ("ERROR", (user.pk,))


class ByAddress(ModelBackend):
    """A site's own backend, which takes e-mail addresses."""

    def authenticate(
        self, request: Any, username: Any = None, password: Any = None, **kwargs: Any
    ) -> Any:
        user = User.objects.filter(email=kwargs.get("email")).first()
        return user if user is not None and user.check_password(password) else None


@pytest.mark.usefixtures("sso_only")
def test_with_sso_only_a_second_name_opens_no_door(settings: Any) -> None:
    settings.AUTHENTICATION_BACKENDS = [
        "bipsync_django.backends.BipsyncBackend",
        f"{__name__}.ByAddress",
    ]
    User.objects.create_user("bob", "bob@acme.example", "secret")
    both: Any = {"username": "emergency", "email": "bob@acme.example", "password": "secret"}
    assert authenticate(**both) is None
    settings.BIPSYNC = {**settings.BIPSYNC, "SSO_ONLY": False}
    assert authenticate(**both) is not None


@pytest.mark.usefixtures("sso_only")
def test_with_sso_only_a_refused_name_costs_a_hash_like_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashed: list[object] = []
    monkeypatch.setattr(User, "set_password", lambda self, password: hashed.append(password))
    assert authenticate(username="ada", password="guess") is None
    assert hashed == ["guess"]


@pytest.mark.usefixtures("sso_only")
def test_with_sso_only_bipsync_signs_people_in(
    bipsync: SimulatedBipsync, caplog: pytest.LogCaptureFixture, settings: Any
) -> None:
    assert signed_in(bipsync).user_id()
    # Who is there for emergencies may come in with Bipsync too, and that is none.
    name = User.objects.get().username
    settings.BIPSYNC = {**settings.BIPSYNC, "BREAK_GLASS_USERS": [name]}
    assert signed_in(bipsync).user_id()
    assert not caplog.records


@pytest.mark.usefixtures("sso_only")
def test_sso_only_holds_whatever_else_is_wrong_with_the_settings(settings: Any) -> None:
    User.objects.create_user("ada", password="secret")
    User.objects.create_user("emergency", password="secret")
    settings.BIPSYNC = {**settings.BIPSYNC, "LEEWAY": "x", "BREAK_GLASS_USERS": ["emergency"]}
    assert authenticate(username="ada", password="secret") is None
    assert authenticate(username="emergency", password="secret") is not None
    settings.BIPSYNC = {**settings.BIPSYNC, "BREAK_GLASS_USERS": "emergency"}
    assert authenticate(username="emergency", password="secret") is None
