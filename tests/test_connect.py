"""Staff who have an account here already connect it to their Bipsync account."""

from typing import Any

import pytest
from django.contrib.auth.models import User

from bipsync_django import lifecycle, signals
from bipsync_django.api import api_session
from bipsync_django.models import BipsyncToken, TokenEvent
from bipsync_django.testing import SimulatedBipsync
from tests.browser import (
    LOGOUT,
    Browser,
    answer_confirmation,
    at_the_same_moment,
    links,
    signed_in,
    visible_text,
    way_to_bipsync,
)
from tests.grants import at_once

pytestmark = pytest.mark.django_db(transaction=True)

CONNECT = "/bipsync/connect/"
ADA, GRACE = "ada@acme.example", "grace@acme.example"
Status = BipsyncToken.Status


@pytest.fixture
def local(bipsync: SimulatedBipsync) -> User:
    """Somebody who has been here for years, with rights that Bipsync knows nothing of."""
    return User.objects.create_superuser("boss", "boss@acme.example", "secret")


def with_password(user: User) -> Browser:
    browser = Browser()
    assert browser.login(username=user.username, password="secret")
    return browser


def begin(browser: Browser, next_url: str = "") -> str:
    query = f"?next={next_url}" if next_url else ""
    return way_to_bipsync(browser.post(f"{CONNECT}{query}", secure=True))


def connect(browser: Browser, callback: str) -> Any:
    """Come back from Bipsync, and press the button."""
    return answer_confirmation(browser, browser.open(callback))


def reason_of(response: Any) -> str:
    page: str = response.content.decode()
    return page.partition('data-reason="')[2].partition('"')[0]


# --- it works


def test_a_superuser_connects_and_signs_in_with_bipsync_from_then_on(
    local: User, bipsync: SimulatedBipsync
) -> None:
    browser = with_password(local)
    session = browser.cookies["sessionid"].value
    response = connect(browser, bipsync.approve(begin(browser, "/reports/")))
    assert (response.status_code, response["Location"]) == (302, "/reports/")
    token = BipsyncToken.objects.get()
    assert (token.user, token.status) == (local, Status.ACTIVE)
    assert browser.cookies["sessionid"].value == session, "it is the session that it was"
    local.refresh_from_db()
    assert local.is_superuser
    assert local.check_password("secret")
    assert User.objects.count() == 1
    with api_session(local) as api:
        assert api.get("/v1/users/me").json()["name"] == "Ada Lovelace"
    assert signed_in(bipsync).user_id() == str(local.pk)


def test_it_is_told_apart_from_a_sign_in(local: User, bipsync: SimulatedBipsync) -> None:
    told: list[str] = []

    def note(name: str) -> Any:
        return lambda **kwargs: told.append(name)

    receivers = {name: note(name) for name in ("connected", "signed_in")}
    for name, receiver in receivers.items():
        getattr(signals, name).connect(receiver)
    try:
        browser = with_password(local)
        connect(browser, bipsync.approve(begin(browser)))
    finally:
        for name, receiver in receivers.items():
            getattr(signals, name).disconnect(receiver)
    assert told == ["connected"]
    event = TokenEvent.objects.get()
    assert (event.name, event.actor) == ("connected", local)


def test_a_session_with_a_password_outlives_the_connection(
    local: User, bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "SESSION_CHECK_INTERVAL": 0}
    browser = with_password(local)
    connect(browser, bipsync.approve(begin(browser)))
    lifecycle.disconnect(BipsyncToken.objects.get())
    assert browser.get("/", secure=True).status_code == 200


def test_connecting_again_renews_the_connection(local: User, bipsync: SimulatedBipsync) -> None:
    browser = with_password(local)
    connect(browser, bipsync.approve(begin(browser)))
    for generation in (1, 3):
        token = BipsyncToken.objects.get()
        assert (token.user, token.status, token.generation) == (local, Status.ACTIVE, generation)
        lifecycle.disconnect(token)
        # It is theirs: nothing new is joined, and nobody is asked.
        assert browser.open(bipsync.approve(begin(browser)))["Location"] == "/"


def test_the_page_says_who_is_connected_to_what(local: User, bipsync: SimulatedBipsync) -> None:
    browser = with_password(local)
    page = visible_text(browser.get(CONNECT, secure=True).content.decode())
    assert "You are signed in here as boss" in page
    assert "Connect my Bipsync account" in page
    assert "already" not in page
    connect(browser, bipsync.approve(begin(browser)))
    page = visible_text(browser.get(CONNECT, secure=True).content.decode())
    assert "you are connected already" in page


def test_an_employee_who_was_linked_by_an_administrator_connects(
    local: User, bipsync: SimulatedBipsync
) -> None:
    from bipsync_django.conf import get_tenant

    lifecycle.link(get_tenant(), bipsync.find_user(ADA).id, local)
    browser = with_password(local)
    assert browser.open(bipsync.approve(begin(browser))).status_code == 302
    assert BipsyncToken.objects.get().user == local


# --- and nobody else's account is connected


def test_a_visitor_is_sent_to_sign_in(bipsync: SimulatedBipsync) -> None:
    for method in ("get", "post"):
        response = getattr(Browser(), method)(CONNECT, secure=True)
        assert response.status_code == 302
        assert response["Location"].startswith("/bipsync/login/")


def test_a_link_begins_nothing(local: User) -> None:
    browser = with_password(local)
    assert browser.get(CONNECT, secure=True).status_code == 200
    assert not browser.trips()


def test_another_sites_form_begins_nothing(local: User) -> None:
    browser = Browser(enforce_csrf_checks=True)
    browser.login(username="boss", password="secret")
    response = browser.post(CONNECT, secure=True, headers={"referer": "https://evil.example/"})
    assert response.status_code == 403
    assert not browser.trips()


def test_that_holds_where_the_site_has_no_protection_of_its_own(local: User, settings: Any) -> None:
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "Csrf" not in name]
    test_another_sites_form_begins_nothing(local)


def test_our_own_form_begins_it(local: User, bipsync: SimulatedBipsync) -> None:
    browser = Browser(enforce_csrf_checks=True)
    browser.login(username="boss", password="secret")
    page = browser.get(CONNECT, secure=True).content.decode()
    token = page.partition('name="csrfmiddlewaretoken" value="')[2].partition('"')[0]
    response = browser.post(
        CONNECT,
        {"csrfmiddlewaretoken": token},
        secure=True,
        headers={"referer": f"https://testserver{CONNECT}"},
    )
    back = browser.open(bipsync.approve(way_to_bipsync(response)))
    page = browser.open(back["Location"]).content.decode()
    token = page.partition('name="csrfmiddlewaretoken" value="')[2].partition('"')[0]
    response = browser.post(
        back["Location"],
        {"csrfmiddlewaretoken": token, "do": "connect"},
        secure=True,
        headers={"referer": f"https://testserver{back['Location']}"},
    )
    assert response.status_code == 302
    assert BipsyncToken.objects.get().user == local


def test_an_account_that_belongs_to_somebody_else_is_refused(
    local: User, bipsync: SimulatedBipsync
) -> None:
    signed_in(bipsync, GRACE)
    before = BipsyncToken.objects.values().get()
    browser = with_password(local)
    response = browser.open(bipsync.approve(begin(browser, "/reports/"), user=GRACE))
    page = response.content.decode()
    assert (response.status_code, reason_of(response)) == (403, "other_account")
    assert "signed in as Grace Hopper · grace@acme.example" in visible_text(page)
    assert links(page) == [f"{CONNECT}acme/?next=%2Freports%2F", bipsync.settings["WEB_URL"]]
    assert BipsyncToken.objects.values().get() == before, "nothing is stored"
    assert not BipsyncToken.objects.for_user(local).exists()


def test_a_second_account_is_refused(local: User, bipsync: SimulatedBipsync) -> None:
    browser = with_password(local)
    connect(browser, bipsync.approve(begin(browser)))
    for status in (Status.ACTIVE, Status.NEEDS_SIGN_IN, Status.DISCONNECTED):
        BipsyncToken.objects.update(status=status)
        before = BipsyncToken.objects.values().get()
        response = browser.open(bipsync.approve(begin(browser), user=GRACE))
        assert reason_of(response) == "other_account"
        assert BipsyncToken.objects.values().get() == before


def test_two_accounts_at_the_same_moment_become_one(
    database: str, local: User, bipsync: SimulatedBipsync
) -> None:
    browser = with_password(local)
    callbacks = [bipsync.approve(begin(browser), user=person) for person in (ADA, GRACE)]
    twins = [browser.twin(), browser.twin()]
    backs = at_the_same_moment(
        *[lambda b=b, c=c: b.open(c) for b, c in zip(twins, callbacks, strict=True)]
    )
    answers = at_the_same_moment(
        *[
            lambda twin=twin, back=back: answer_confirmation(twin, back)
            for twin, back in zip(twins, backs, strict=True)
        ]
    )
    assert sorted(answer.status_code for answer in answers) == [302, 403]
    assert BipsyncToken.objects.for_user(local).count() == 1
    assert BipsyncToken.objects.exclude(user=None).count() == 1


def test_a_trip_ends_with_the_person_who_began_it(local: User, bipsync: SimulatedBipsync) -> None:
    browser = with_password(local)
    callback = bipsync.approve(begin(browser))
    User.objects.create_user("other", password="secret")
    browser.login(username="other", password="secret")
    assert reason_of(browser.open(callback)) == "other_person"
    assert not BipsyncToken.objects.exists()


def test_a_trip_ends_with_the_sign_out_of_who_began_it(
    local: User, bipsync: SimulatedBipsync
) -> None:
    browser = with_password(local)
    callback = bipsync.approve(begin(browser))
    browser.post(LOGOUT, secure=True)
    assert reason_of(browser.open(callback)) == "other_person"
    assert bipsync.calls["code"] == 0, "nobody asked for tokens that nobody may have"
    assert not BipsyncToken.objects.exists()
    assert browser.user_id() is None


def test_somebody_who_was_deleted_or_switched_off_meanwhile_connects_nothing(
    local: User, bipsync: SimulatedBipsync
) -> None:
    for change in (lambda: User.objects.update(is_active=False), lambda: local.delete()):
        User.objects.update(is_active=True)
        browser = with_password(local)
        callback = bipsync.approve(begin(browser))
        change()
        assert reason_of(browser.open(callback)) == "other_person"
        assert not BipsyncToken.objects.exists()


def test_a_sign_in_with_the_state_of_a_connection_is_no_sign_in(
    local: User, bipsync: SimulatedBipsync
) -> None:
    """The purpose is sealed: nobody is signed in by ending somebody's connection elsewhere."""
    callback = bipsync.approve(begin(with_password(local)))
    stranger = Browser()
    assert reason_of(stranger.open(callback)) == "unknown_state"
    assert stranger.user_id() is None


def test_many_connections_of_one_person_at_once_leave_one_row(
    database: str, local: User, bipsync: SimulatedBipsync
) -> None:
    browser = with_password(local)
    callbacks = [bipsync.approve(begin(browser)) for _ in range(4)]
    twins = [browser.twin() for _ in callbacks]
    answers = at_once(4, lambda number: twins[number].open(callbacks[number]))
    assert [getattr(answer, "status_code", answer) for answer in answers] == [302] * 4
    assert BipsyncToken.objects.get().user is None
    pages = [answer["Location"] for answer in answers]  # type: ignore[index]
    pressed = [
        twin.post(page, {"do": "connect"}, secure=True).status_code
        for twin, page in zip(twins, pages, strict=True)
    ]
    # The last pair that came is the only one that waits.
    assert sorted(pressed) == [302, 409, 409, 409]
    assert BipsyncToken.objects.get().user == local
