"""One person acts as another, by django-hijack: whose session that is, and when it ends.

Hijacking and releasing call Django's ``login()`` for another user, which begins a session that
holds nothing of the one before but django-hijack's own note of who acts.
"""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User

from bipsync_django import lifecycle
from bipsync_django.conf import get_tenant
from bipsync_django.lifecycle import Outcome
from bipsync_django.models import BipsyncToken
from bipsync_django.testing import SimulatedBipsync
from tests.browser import CALLBACK, Browser, signed_in, way_to_bipsync
from tests.grants import expire

pytestmark = pytest.mark.django_db(transaction=True)

ADA, GRACE = "ada@acme.example", "grace@acme.example"
PASSWORDS = "django.contrib.auth.backends.ModelBackend"

REQUESTS: dict[str, Callable[[Browser], Any]] = {
    "page": lambda browser: browser.get("/greeting/", secure=True),
    "page that needs a sign-in": lambda browser: browser.get("/", secure=True),
    "form": lambda browser: browser.post("/", {"note": "mine"}, secure=True),
    "options": lambda browser: browser.options("/greeting/", secure=True),
    "put": lambda browser: browser.put("/greeting/", secure=True),
    "delete": lambda browser: browser.delete("/greeting/", secure=True),
    "json": lambda browser: browser.get(
        "/greeting/", secure=True, headers={"accept": "application/json"}
    ),
    "json form": lambda browser: browser.post(
        "/", {"note": "mine"}, secure=True, headers={"accept": "application/json"}
    ),
    "our own page": lambda browser: browser.get("/bipsync/connection/", secure=True),
    "our own form": lambda browser: browser.post("/bipsync/connect/", secure=True),
}


def disconnect(row: BipsyncToken, bipsync: SimulatedBipsync) -> None:
    lifecycle.disconnect(row)


def end_sessions(row: BipsyncToken, bipsync: SimulatedBipsync) -> None:
    lifecycle.end_sessions(row)


def withdraw(row: BipsyncToken, bipsync: SimulatedBipsync) -> None:
    bipsync.withdraw(row.subject)
    assert lifecycle.refresh_if_due(expire(row).pk) is Outcome.NEEDS_SIGN_IN


def unlink(row: BipsyncToken, bipsync: SimulatedBipsync) -> None:
    lifecycle.unlink(row)


def delete(row: BipsyncToken, bipsync: SimulatedBipsync) -> None:
    row.delete()


def give_up(row: BipsyncToken, bipsync: SimulatedBipsync) -> None:
    lifecycle.give_up_tenant(row.tenant)


def hand_over(row: BipsyncToken, bipsync: SimulatedBipsync) -> None:
    lifecycle.unlink(row)
    lifecycle.link(get_tenant(), row.subject, User.objects.create_user("successor"))


ENDINGS = [disconnect, end_sessions, withdraw, unlink, delete, give_up, hand_over]


def hijack(browser: Browser, user: User) -> None:
    answer = browser.post("/hijack/acquire/", {"user_pk": user.pk}, secure=True)
    assert answer.status_code == 302
    assert browser.user_id() == str(user.pk)


def release(browser: Browser) -> None:
    assert browser.post("/hijack/release/", secure=True).status_code == 302


def who(browser: Browser) -> str:
    page: str = browser.get("/greeting/", secure=True).content.decode()
    return page.partition("Hello ")[2].partition("<")[0].strip()


def refused(answer: Any) -> bool:
    """Whether the answer is a page of ours that says no."""
    return answer.status_code == 403 and b"data-reason=" in answer.content


@pytest.fixture(autouse=True)
def _each_request_is_checked(settings: Any) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "SESSION_CHECK_INTERVAL": 0}


@pytest.fixture
def ada(bipsync: SimulatedBipsync) -> Browser:
    """An administrator who signed in with Bipsync."""
    browser = signed_in(bipsync, ADA)
    user = User.objects.filter(pk=browser.user_id() or "")
    user.update(username="adminada", is_superuser=True, is_staff=True)
    return browser


@pytest.fixture
def grant(ada: Browser) -> BipsyncToken:
    return BipsyncToken.objects.get(user_id=ada.user_id() or "")


@pytest.fixture(params=["a password", "Bipsync"])
def colleague(request: Any, bipsync: SimulatedBipsync) -> User:
    """Somebody to act as, by how they sign in themselves."""
    if request.param == "a password":
        return User.objects.create_user("colleague")
    user = User.objects.get(pk=signed_in(bipsync, GRACE).user_id() or "")
    user.username = "colleague"
    user.save()
    return user


# --- it works


def test_an_administrator_acts_as_somebody_and_comes_back(ada: Browser, colleague: User) -> None:
    hijack(ada, colleague)
    for _ in range(2):
        assert who(ada) == "colleague"
    assert ada.post("/", {"note": "mine"}, secure=True).content.startswith(b"Saved mine")
    release(ada)
    for _ in range(2):
        assert who(ada) == "adminada"
    assert ada.post("/", {"note": "mine"}, secure=True).content.startswith(b"Saved mine")


def test_an_administrator_who_came_with_a_password_depends_on_nobodys_grant(
    bipsync: SimulatedBipsync, colleague: User
) -> None:
    root = Browser()
    root.force_login(User.objects.create_superuser("root"), PASSWORDS)
    hijack(root, colleague)
    assert who(root) == "colleague"
    release(root)
    assert who(root) == "root"


# --- the session after it


@pytest.mark.parametrize("end", ENDINGS)
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_after_the_release_the_session_ends_with_the_administrators_grant(
    ada: Browser,
    grant: BipsyncToken,
    bipsync: SimulatedBipsync,
    end: Callable[[BipsyncToken, SimulatedBipsync], None],
    request_: Callable[[Browser], Any],
) -> None:
    hijack(ada, User.objects.create_user("colleague"))
    release(ada)
    assert who(ada) == "adminada"
    end(grant, bipsync)
    answer = request_(ada)
    assert b"adminada" not in answer.content
    assert b"Saved" not in answer.content
    assert ada.get("/", secure=True).status_code == 302


# --- the session during it


@pytest.mark.parametrize("end", ENDINGS)
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_the_session_as_somebody_else_ends_with_the_administrators_grant(
    ada: Browser,
    grant: BipsyncToken,
    bipsync: SimulatedBipsync,
    end: Callable[[BipsyncToken, SimulatedBipsync], None],
    request_: Callable[[Browser], Any],
) -> None:
    hijack(ada, User.objects.create_user("colleague"))
    assert who(ada) == "colleague"
    end(grant, bipsync)
    answer = request_(ada)
    assert b"colleague" not in answer.content
    assert b"Saved" not in answer.content
    assert ada.get("/", secure=True).status_code == 302


@pytest.mark.parametrize("end", ENDINGS)
def test_nobody_comes_back_by_the_release_whose_grant_has_ended_meanwhile(
    ada: Browser,
    grant: BipsyncToken,
    bipsync: SimulatedBipsync,
    colleague: User,
    end: Callable[[BipsyncToken, SimulatedBipsync], None],
) -> None:
    hijack(ada, colleague)
    end(grant, bipsync)
    ada.post("/hijack/release/", secure=True)
    assert "adminada" not in who(ada)
    assert ada.get("/", secure=True).status_code == 302


def test_the_session_as_somebody_else_is_none_of_theirs(
    ada: Browser, bipsync: SimulatedBipsync
) -> None:
    """What ends the sessions of the person acted as leaves their administrator's own alone."""
    colleague = User.objects.get(pk=signed_in(bipsync, GRACE).user_id() or "")
    hijack(ada, colleague)
    release(ada)
    lifecycle.disconnect(BipsyncToken.objects.get(user=colleague))
    assert who(ada) == "adminada"


# --- connecting an account


def test_while_one_acts_as_another_no_account_is_connected(
    ada: Browser, bipsync: SimulatedBipsync
) -> None:
    colleague = User.objects.create_user("colleague")
    hijack(ada, colleague)
    assert refused(ada.post("/bipsync/connect/", secure=True))
    assert ada.trips() == {}
    assert who(ada) == "colleague"
    assert not BipsyncToken.objects.filter(user=colleague).exists()


def test_a_connection_that_was_begun_before_is_not_completed_by_who_acts(
    ada: Browser, bipsync: SimulatedBipsync
) -> None:
    """By the administrator in their own name, or by the colleague at the same browser."""
    colleague = User.objects.create_user("colleague")
    begun = way_to_bipsync(ada.post("/bipsync/connect/", secure=True))
    hijack(ada, colleague)
    assert refused(ada.open(bipsync.approve(begun, user=GRACE)))

    shared = Browser()
    shared.force_login(colleague, PASSWORDS)
    begun = way_to_bipsync(shared.post("/bipsync/connect/", secure=True))
    assert shared.post("/bipsync/logout/", secure=True).status_code in {200, 302}
    assert shared.open(bipsync.approve(shared.begin(), user=ADA)).status_code == 302
    hijack(shared, colleague)
    answer = shared.open(bipsync.approve(begun, user=GRACE))
    assert answer.request["PATH_INFO"] == CALLBACK
    assert refused(answer)
    assert not BipsyncToken.objects.filter(user=colleague).exists()


def test_after_the_release_an_account_may_be_connected_again(
    bipsync: SimulatedBipsync,
) -> None:
    root = Browser()
    user = User.objects.create_superuser("root")
    root.force_login(user, PASSWORDS)
    hijack(root, User.objects.create_user("colleague"))
    assert refused(root.post("/bipsync/connect/", secure=True))
    release(root)
    way_to_bipsync(root.post("/bipsync/connect/", secure=True))


# --- between two sessions


@pytest.mark.parametrize("end", ENDINGS)
def test_nobody_comes_back_whose_grant_has_ended_meanwhile(
    ada: Browser,
    grant: BipsyncToken,
    bipsync: SimulatedBipsync,
    end: Callable[[BipsyncToken, SimulatedBipsync], None],
) -> None:
    hijack(ada, User.objects.create_user("colleague"))
    end(grant, bipsync)
    ada.post("/hijack/release/", secure=True)
    assert who(ada) == "visitor"
    form = {"username": "evil", "password1": "tr0ubadour", "password2": "tr0ubadour"}
    ada.post("/admin/auth/user/add/", form, secure=True)
    assert not User.objects.filter(username="evil").exists()


def test_nobody_becomes_the_person_who_acted_as_them(
    ada: Browser, grant: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    grace = User.objects.get(pk=signed_in(bipsync, GRACE).user_id() or "")
    hijack(ada, grace)
    withdraw(grant, bipsync)
    shared = ada
    assert who(shared) == "visitor"
    # Grace signs in as herself, in that browser, and Ada somewhere else.
    shared.open(bipsync.approve(shared.begin(), user=GRACE))
    signed_in(bipsync, ADA)
    assert who(shared) == grace.username
    assert "hijack_history" not in shared.session
    shared.post("/hijack/release/", secure=True)
    assert who(shared) == grace.username


def test_nobody_disconnects_an_account_while_they_act_as_another(
    ada: Browser, grant: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    grace = User.objects.get(pk=signed_in(bipsync, GRACE).user_id() or "")
    hijack(ada, grace)
    assert refused(ada.post("/bipsync/disconnect/acme/", secure=True))
    assert BipsyncToken.objects.get(user=grace).status == "active"
