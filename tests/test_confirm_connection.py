"""A Bipsync account joins a user at a button, once the person has read whose account it is."""

import copy
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core import signing
from django.core.cache import cache
from django.db import connections
from django.utils import timezone

from bipsync_django import confirmation, health, lifecycle, signals, tasks
from bipsync_django.api import api_session
from bipsync_django.backends import BipsyncBackend
from bipsync_django.conf import get_tenant
from bipsync_django.exceptions import SignInRefused, SignInRequired
from bipsync_django.lifecycle import Outcome
from bipsync_django.models import BipsyncToken, TokenEvent
from bipsync_django.oauth.keys import LocalBudget, use_budget
from bipsync_django.testing import Answer, SimulatedBipsync
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
from tests.grants import expire, refresh_token_of, reload
from tests.signing import forget_keys

pytestmark = pytest.mark.django_db(transaction=True)

CONNECT = "/bipsync/connect/"
SERVICE = "/admin/bipsync_django/bipsynctoken/service/"
ADA, GRACE = "ada@acme.example", "grace@acme.example"
Status = BipsyncToken.Status


@pytest.fixture
def local(bipsync: SimulatedBipsync) -> User:
    return User.objects.create_superuser("boss", "boss@acme.example", "secret")


def with_password(user: User, **options: Any) -> Browser:
    browser = Browser(**options)
    assert browser.login(username=user.username, password="secret")
    return browser


def come_back(
    browser: Browser, bipsync: SimulatedBipsync, user: str = ADA, next_url: str = ""
) -> Any:
    """Go to Bipsync and back; the answer leads to the page with the button."""
    query = f"?next={next_url}" if next_url else ""
    away = way_to_bipsync(browser.post(f"{CONNECT}{query}", secure=True))
    return browser.open(bipsync.approve(away, user=user))


def reason_of(response: Any) -> str:
    page: str = response.content.decode()
    return page.partition('data-reason="')[2].partition('"')[0]


def events() -> list[str]:
    return list(TokenEvent.objects.order_by("id").values_list("name", flat=True))


def waiting() -> BipsyncToken:
    row = BipsyncToken.objects.get(kind="person")
    assert (row.user, row.status, row.next_refresh_at) == (None, Status.UNCONFIRMED, None)
    return row


# --- the page


def test_the_page_says_who_joins_what_to_whom(local: User, bipsync: SimulatedBipsync) -> None:
    browser = with_password(local)
    back = come_back(browser, bipsync, GRACE)
    page = browser.open(back["Location"])
    text = visible_text(page.content.decode())
    assert "At Bipsync ( acme ) you are signed in as Grace Hopper · grace@acme.example" in (
        text.replace("(acme)", "( acme )")
    )
    assert "You are signed in here as boss" in text
    assert "See who works here: names and e-mail addresses" in text
    assert "no-store" in page["Cache-Control"]
    assert page["Referrer-Policy"] == "same-origin"
    assert links(page.content.decode()) == [bipsync.settings["WEB_URL"]]


def test_the_page_can_say_so_where_no_claims_are_kept(
    local: User, bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "KEEP_CLAIMS": []}
    browser = with_password(local)
    page = browser.open(come_back(browser, bipsync, GRACE)["Location"]).content.decode()
    assert "Grace Hopper" in page
    assert waiting().claims == {}


def test_looking_changes_nothing(local: User, bipsync: SimulatedBipsync) -> None:
    browser = with_password(local)
    url = come_back(browser, bipsync)["Location"]
    before = BipsyncToken.objects.values().get()
    for method in ("get", "head", "options"):
        getattr(browser, method)(f"{url}?do=connect", secure=True)
    assert browser.get(url, {"do": "connect"}, secure=True).status_code == 200
    assert browser.post(url, {"do": "something"}, secure=True).status_code == 200
    assert browser.put(url, "do=connect", secure=True).status_code == 405
    assert BipsyncToken.objects.values().get() == before


def test_the_cookie_is_for_this_site_alone(local: User, bipsync: SimulatedBipsync) -> None:
    browser = with_password(local)
    back = come_back(browser, bipsync)
    (morsel,) = [one for one in back.cookies.values() if "confirm" in one.key]
    assert morsel.key.startswith("__Host-bipsync_confirm_")
    assert (morsel["secure"], morsel["httponly"], morsel["samesite"]) == (True, True, "Lax")
    assert (morsel["max-age"], morsel["path"]) == (3600, "/")
    answer_confirmation(browser, back)
    assert morsel.key not in browser.cookies


def test_a_browser_carries_three_of_them_at_most(local: User, bipsync: SimulatedBipsync) -> None:
    browser = with_password(local)
    backs = [come_back(browser, bipsync, next_url="/" + "a" * 900) for _ in range(5)]
    names = [name for name in browser.cookies if "confirm" in name]
    assert len(names) == 3
    assert sum(len(browser.cookies[name].value) for name in names) < 4096
    assert answer_confirmation(browser, backs[-1]).status_code == 302


# --- until the button is pressed


def test_nothing_uses_a_pair_that_waits(local: User, bipsync: SimulatedBipsync) -> None:
    browser = with_password(local)
    come_back(browser, bipsync)
    row = waiting()
    assert events() == []
    for _ in range(2):
        # First while its access token lives, then when it has expired.
        for use in (lifecycle.access_token, lifecycle.refresh, lifecycle.retry):
            with pytest.raises(SignInRequired):
                use(row)
        with pytest.raises(SignInRequired):
            api_session(local)
        assert lifecycle.refresh_asked(row.pk) == "unconfirmed"
        assert lifecycle.refresh_if_due(row.pk) is Outcome.NOT_DUE
        assert not lifecycle.take_due(10)
        assert lifecycle.grant_of(local, get_tenant()) is None
        assert not BipsyncToken.objects.active().exists()
        row = expire(row)
    assert bipsync.calls["refresh"] == 0
    assert health.tenants()[0].by_status["unconfirmed"] == 1
    boss = Browser()
    boss.force_login(local, "django.contrib.auth.backends.ModelBackend")
    assert row.subject not in boss.get(SERVICE, secure=True).content.decode()
    page = boss.get("/admin/bipsync_django/bipsynctoken/", secure=True).content.decode()
    assert "waits for confirmation" in page
    change = f"/admin/bipsync_django/bipsynctoken/{row.pk}/change/"
    assert "Ada Lovelace" in boss.get(change, secure=True).content.decode()


def test_an_unconfirmed_service_account_hands_out_no_token_while_it_lives(
    local: User, bipsync: SimulatedBipsync
) -> None:
    browser = with_password(local)
    left = browser.post(SERVICE, {"do": "connect", "tenant": "acme"}, secure=True)
    browser.open(bipsync.approve(way_to_bipsync(left), user=GRACE))
    row = BipsyncToken.objects.get(kind="service", status="unconfirmed")
    with pytest.raises(SignInRequired):
        lifecycle.access_token(row)
    with pytest.raises(SignInRequired):
        lifecycle.replace_refused(row, "x")


@pytest.mark.parametrize("was_unlinked", [False, True])
def test_not_this_one_marks_no_account_as_one_that_was_taken_away(
    local: User, bipsync: SimulatedBipsync, settings: Any, *, was_unlinked: bool
) -> None:
    """A rule may join it to its owner later, unless an administrator has unlinked it before."""
    settings.BIPSYNC = {
        **settings.BIPSYNC,
        "MATCH_USERS_BY": {"TENANT": "acme", "TRUST_UNVERIFIED": True},
    }
    grace = User.objects.create_user("gh", GRACE)
    if was_unlinked:
        signed_in(bipsync, GRACE)
        lifecycle.unlink(BipsyncToken.objects.get())
    browser = with_password(local)
    answer_confirmation(browser, come_back(browser, bipsync, GRACE), "discard")
    owner = Browser()
    answer = owner.open(bipsync.approve(owner.begin(), user=GRACE))
    assert answer.status_code == (403 if was_unlinked else 302)
    assert owner.user_id() == (None if was_unlinked else str(grace.pk))


def test_not_this_one_puts_the_pair_out_of_use_and_leads_back(
    local: User, bipsync: SimulatedBipsync
) -> None:
    browser = with_password(local)
    back = come_back(browser, bipsync, GRACE, "/reports/")
    lost = refresh_token_of(waiting())
    response = answer_confirmation(browser, back, "discard")
    assert response["Location"] == f"{CONNECT}acme/?next=%2Freports%2F"
    row = BipsyncToken.objects.get()
    assert (row.status, row.user, row.refresh_token) == (Status.DISCONNECTED, None, None)
    assert not bipsync.is_alive(lost)
    event = TokenEvent.objects.get()
    assert (event.name, event.actor) == ("disconnected", local)
    assert reason_of(browser.post(back["Location"], {"do": "connect"}, secure=True)) == (
        "not_waiting"
    )


def test_what_nobody_confirms_within_an_hour_is_given_up(
    local: User, bipsync: SimulatedBipsync
) -> None:
    browser = with_password(local)
    come_back(browser, bipsync)
    lost = refresh_token_of(waiting())
    tasks.prune()
    waiting()
    BipsyncToken.objects.update(obtained_at=timezone.now() - timedelta(minutes=61))
    tasks.prune()
    assert BipsyncToken.objects.get().status == Status.DISCONNECTED
    assert not bipsync.is_alive(lost)


@pytest.mark.parametrize("becomes", ["confirmed", "signed in"])
def test_a_pair_that_was_taken_into_use_meanwhile_is_not_pruned(
    local: User, bipsync: SimulatedBipsync, becomes: str
) -> None:
    browser = with_password(local)
    back = come_back(browser, bipsync)
    seen = waiting()
    if becomes == "confirmed":
        answer_confirmation(browser, back)
    else:
        signed_in(bipsync, ADA)
    assert lifecycle.discard(seen) is False
    assert BipsyncToken.objects.get().status == Status.ACTIVE


# --- the button


def test_the_button_joins_the_account(
    database: str, local: User, bipsync: SimulatedBipsync
) -> None:
    told: list[Any] = []

    def note(**kwargs: Any) -> None:
        told.append((kwargs["token"].user, kwargs["claims"].subject))

    signals.connected.connect(note)
    try:
        browser = with_password(local)
        back = come_back(browser, bipsync, GRACE, "/reports/")
        assert told == []
        response = answer_confirmation(browser, back)
    finally:
        signals.connected.disconnect(note)
    assert response["Location"] == "/reports/"
    row = BipsyncToken.objects.get()
    assert (row.user, row.status, row.generation) == (local, Status.ACTIVE, 1)
    assert row.next_refresh_at is not None
    assert row.signed_in_at is not None
    assert told == [(local, row.subject)]
    assert events() == ["connected"]
    assert "__Host-bipsync_known" in response.cookies
    with api_session(local) as api:
        assert api.get("/v1/users/me").json()["email"] == GRACE
    row = expire(row)
    assert lifecycle.refresh_if_due(row.pk) is Outcome.REFRESHED


def test_a_double_click_connects_once_and_goes_on(
    database: str, local: User, bipsync: SimulatedBipsync
) -> None:
    browser = with_password(local)
    url = come_back(browser, bipsync, next_url="/reports/")["Location"]
    twins = [browser.twin() for _ in range(4)]
    answers = at_the_same_moment(
        *[lambda twin=twin: twin.post(url, {"do": "connect"}, secure=True) for twin in twins]
    )
    assert [answer.headers.get("Location") for answer in answers] == ["/reports/"] * 4
    assert events() == ["connected"]


def test_one_of_two_buttons_at_the_same_moment_wins(
    database: str, local: User, bipsync: SimulatedBipsync
) -> None:
    browser = with_password(local)
    url = come_back(browser, bipsync)["Location"]
    twins = [browser.twin() for _ in range(2)]
    at_the_same_moment(
        *[
            lambda twin=twin, do=do: twin.post(url, {"do": do}, secure=True)
            for twin, do in zip(twins, ("connect", "discard"), strict=True)
        ]
    )
    row = BipsyncToken.objects.get()
    if row.status == Status.ACTIVE:
        assert (row.user, events()) == (local, ["connected"])
        assert bipsync.is_alive(refresh_token_of(row))
    else:
        assert (row.status, row.user) == (Status.DISCONNECTED, None)
        assert events() == ["disconnected"]


def test_the_policy_is_asked_at_the_button(
    local: User, bipsync: SimulatedBipsync, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = with_password(local)
    back = come_back(browser, bipsync)
    seen: list[Any] = []

    def is_allowed(self: Any, tenant: Any, claims: Any, user: Any) -> bool:
        seen.append((claims.claims["email"], user))
        return False

    with monkeypatch.context() as patch:
        patch.setattr(BipsyncBackend, "is_allowed", is_allowed)
        refused = answer_confirmation(browser, back)
    assert reason_of(refused) == "not_allowed"
    assert "Ada Lovelace" in refused.content.decode()
    assert seen == [(ADA, None)]
    waiting()
    settings.BIPSYNC = {**settings.BIPSYNC, "ALLOWED_EMAIL_DOMAINS": ["globex.example"]}
    assert reason_of(answer_confirmation(browser, back)) == "email_domain"
    waiting()


# --- and nobody else's


def test_the_pair_belongs_to_nobody_when_another_person_signs_in_meanwhile(
    local: User, bipsync: SimulatedBipsync
) -> None:
    browser = with_password(local)
    url = come_back(browser, bipsync)["Location"]
    User.objects.create_user("other", password="secret")
    browser.login(username="other", password="secret")
    for do in ("connect", "discard"):
        assert reason_of(browser.get(url, secure=True)) == "other_person"
        refused = browser.post(url, {"do": do}, secure=True)
        assert (refused.status_code, reason_of(refused)) == (403, "other_person")
    waiting()


def test_nobody_presses_the_button_while_they_act_as_another(
    local: User, bipsync: SimulatedBipsync
) -> None:
    browser = with_password(local)
    back = come_back(browser, bipsync)
    session = browser.session
    session["hijack_history"] = [str(User.objects.create_superuser("root").pk)]
    session.save()
    assert reason_of(answer_confirmation(browser, back)) == "impersonation"
    waiting()


def test_a_session_that_ended_meanwhile_goes_on_after_signing_in_again(
    local: User, bipsync: SimulatedBipsync
) -> None:
    browser = with_password(local)
    back = come_back(browser, bipsync)
    browser.post(LOGOUT, secure=True)
    for method in ("get", "post"):
        answer = getattr(browser, method)(back["Location"], {"do": "connect"}, secure=True)
        assert answer.status_code == 302
        assert "/login/" in answer["Location"]
    waiting()
    browser.login(username="boss", password="secret")
    assert answer_confirmation(browser, back).status_code == 302
    assert BipsyncToken.objects.get().user == local


def test_another_browser_of_the_same_person_has_nothing_to_confirm(
    local: User, bipsync: SimulatedBipsync
) -> None:
    url = come_back(with_password(local), bipsync)["Location"]
    other = with_password(local)
    for do in ("connect", "discard"):
        refused = other.post(url, {"do": do}, secure=True)
        assert (refused.status_code, reason_of(refused)) == (409, "not_waiting")
    refused = other.get(url, secure=True)
    assert (reason_of(refused), refused.context["retry_url"]) == ("not_waiting", CONNECT)
    waiting()


def test_a_link_to_a_page_of_somebody_elses_does_nothing(
    local: User, bipsync: SimulatedBipsync
) -> None:
    """An attacker's waiting account, and their cookie too, in the browser of another."""
    User.objects.create_user("mallory", password="secret")
    attacker = Browser()
    attacker.login(username="mallory", password="secret")
    url = come_back(attacker, bipsync, GRACE)["Location"]
    (name,) = [name for name in attacker.cookies if "confirm" in name]
    victim = with_password(local)
    assert reason_of(victim.post(url, {"do": "connect"}, secure=True)) == "not_waiting"
    victim.cookies[name] = attacker.cookies[name].value
    assert reason_of(victim.post(url, {"do": "connect"}, secure=True)) == "other_person"
    # The cookie cannot be made up.
    contents = signing.loads(attacker.cookies[name].value, salt="bipsync_django.confirmation")
    forged = signing.dumps({**contents, "user": str(local.pk)}, key="guess", salt="guess")
    victim.cookies[name] = forged
    assert reason_of(victim.post(url, {"do": "connect"}, secure=True)) == "not_waiting"
    waiting()


@pytest.mark.parametrize("has_middleware", [True, False])
def test_another_sites_form_presses_no_button(
    local: User, bipsync: SimulatedBipsync, settings: Any, has_middleware: bool
) -> None:
    if not has_middleware:
        settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "Csrf" not in name]
    browser = with_password(local)
    url = come_back(browser, bipsync)["Location"]
    strict = Browser(enforce_csrf_checks=True)
    strict.cookies = copy.deepcopy(browser.cookies)
    for do in ("connect", "discard"):
        answer = strict.post(
            url, {"do": do}, secure=True, headers={"referer": "https://evil.example/"}
        )
        assert answer.status_code == 403
    waiting()


def test_no_other_site_shows_the_button_in_a_frame(
    local: User, bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "XFrame" not in name]
    settings.X_FRAME_OPTIONS = "SAMEORIGIN"
    browser = with_password(local)
    for url in (come_back(browser, bipsync)["Location"], CONNECT):
        assert browser.get(url, secure=True)["X-Frame-Options"] == "DENY"


def _signs_in(bipsync: SimulatedBipsync) -> User:
    signed_in(bipsync, ADA)
    return User.objects.get(email=ADA)


def _somebody_begins(bipsync: SimulatedBipsync) -> None:
    other = User.objects.create_user("other", password="secret")
    come_back(with_password(other), bipsync)


def _is_linked(bipsync: SimulatedBipsync) -> User:
    other = User.objects.create_user("other")
    lifecycle.link(get_tenant(), bipsync.find_user(ADA).id, other)
    return other


@pytest.mark.parametrize("change", [_signs_in, _somebody_begins, _is_linked])
def test_what_changed_meanwhile_is_left_alone(
    local: User, bipsync: SimulatedBipsync, change: Callable[[SimulatedBipsync], User | None]
) -> None:
    browser = with_password(local)
    url = come_back(browser, bipsync)["Location"]
    owner = change(bipsync)
    before = BipsyncToken.objects.values().get()
    assert before["user_id"] == (owner.pk if owner else None)
    for do in ("connect", "discard"):
        refused = browser.post(url, {"do": do}, secure=True)
        assert reason_of(refused) == "not_waiting"
        assert "Nothing was done" in visible_text(refused.content.decode())
    assert BipsyncToken.objects.values().get() == before


def test_a_pair_that_is_replaced_between_look_and_button_is_not_confirmed(
    database: str, local: User, bipsync: SimulatedBipsync
) -> None:
    browser = with_password(local)
    come_back(browser, bipsync)
    seen = waiting()
    come_back(browser, bipsync)
    claims = lifecycle.claims_of(seen)
    assert lifecycle.confirm_connection(seen, claims, resolve_user=lambda row: local) is None
    assert waiting().generation == seen.generation + 1


def test_a_link_by_an_administrator_gives_up_what_waits(
    local: User, bipsync: SimulatedBipsync
) -> None:
    come_back(with_password(local), bipsync)
    lost = refresh_token_of(waiting())
    other = _is_linked(bipsync)
    row = BipsyncToken.objects.get()
    assert (row.user, row.status, row.refresh_token) == (other, Status.DISCONNECTED, None)
    assert not bipsync.is_alive(lost)


def test_two_tabs_of_one_account_confirm_what_they_show(
    local: User, bipsync: SimulatedBipsync
) -> None:
    browser = with_password(local)
    first = come_back(browser, bipsync, next_url="/first/")
    second = come_back(browser, bipsync, next_url="/second/")
    refused = answer_confirmation(browser, first)
    assert reason_of(refused) == "not_waiting"
    assert refused.context["retry_url"] == f"{CONNECT}?next=%2Ffirst%2F"
    assert reason_of(answer_confirmation(browser, first, "discard")) == "not_waiting"
    waiting()
    assert answer_confirmation(browser, second)["Location"] == "/second/"


def test_two_tabs_of_two_accounts_do_not_swap_them(local: User, bipsync: SimulatedBipsync) -> None:
    browser = with_password(local)
    ada, grace = (come_back(browser, bipsync, person) for person in (ADA, GRACE))
    assert answer_confirmation(browser, ada).status_code == 302
    row = BipsyncToken.objects.get(user=local)
    assert row.subject == bipsync.find_user(ADA).id
    assert reason_of(answer_confirmation(browser, grace)) == "other_account"


@pytest.mark.parametrize("what", ["pair", "access token", "cookie"])
def test_the_page_waits_for_an_hour_at_most(
    local: User, bipsync: SimulatedBipsync, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = with_password(local)
    back = come_back(browser, bipsync)
    late = timezone.now() - timedelta(minutes=61)
    if what == "pair":
        BipsyncToken.objects.update(obtained_at=late)
    elif what == "access token":
        BipsyncToken.objects.update(access_expires_at=timezone.now())
    else:
        monkeypatch.setattr(confirmation, "_LIFETIME", 0)
    refused = answer_confirmation(browser, back)
    assert reason_of(refused) == "not_waiting"
    waiting()
    seen = waiting()
    if what != "cookie":
        claims: Any = None
        assert lifecycle.confirm_connection(seen, claims, resolve_user=lambda row: local) is None


def test_an_account_that_became_the_sites_own_meanwhile_is_refused(
    local: User, bipsync: SimulatedBipsync
) -> None:
    browser = with_password(local)
    back = come_back(browser, bipsync, GRACE)
    left = browser.post(SERVICE, {"do": "connect", "tenant": "acme"}, secure=True)
    browser.open(bipsync.approve(way_to_bipsync(left), user=GRACE))
    assert reason_of(answer_confirmation(browser, back)) == "service_account"
    waiting()
    # And the other way about: a service account is refused at once.
    assert reason_of(come_back(browser, bipsync, GRACE)) == "service_account"


def test_a_person_who_is_inactive_or_gone_confirms_nothing(
    local: User, bipsync: SimulatedBipsync
) -> None:
    browser = with_password(local)
    back = come_back(browser, bipsync)
    User.objects.update(is_active=False)
    assert "/login/" in answer_confirmation(browser, back)["Location"]
    User.objects.update(is_active=True)
    browser.login(username="boss", password="secret")
    with pytest.raises(SignInRefused):

        def refuse(row: BipsyncToken) -> User:
            raise SignInRefused("inactive", "")

        row = waiting()
        lifecycle.confirm_connection(row, lifecycle.claims_of(row), resolve_user=refuse)
    waiting()


# --- the row that was there before


def test_a_row_that_nobody_has_keeps_its_history(local: User, bipsync: SimulatedBipsync) -> None:
    browser = signed_in(bipsync, ADA)
    before = BipsyncToken.objects.get()
    lifecycle.unlink(before)
    ended_at = reload(before).sessions_valid_after
    other = with_password(local)
    back = come_back(other, bipsync)
    row = reload(before)
    assert (row.pk, row.created_at) == (before.pk, before.created_at)
    assert row.sessions_valid_after == ended_at
    assert answer_confirmation(other, back).status_code == 302
    # The session of its first owner does not go on as that person.
    assert browser.open("/greeting/").content == b"Hello visitor"
    assert reload(before).user == local


@pytest.mark.parametrize("status", ["active", "needs_sign_in", "disconnected"])
def test_the_persons_own_account_is_renewed_without_a_question(
    local: User, bipsync: SimulatedBipsync, status: str
) -> None:
    browser = with_password(local)
    answer_confirmation(browser, come_back(browser, bipsync))
    BipsyncToken.objects.update(status=status)
    back = come_back(browser, bipsync, next_url="/reports/")
    assert back["Location"] == "/reports/"
    row = BipsyncToken.objects.get()
    assert (row.user, row.status, row.generation) == (local, Status.ACTIVE, 2)


def test_an_account_that_was_unlinked_while_its_pair_is_renewed_is_not_joined(
    local: User, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = with_password(local)
    answer_confirmation(browser, come_back(browser, bipsync))
    hold = lifecycle.hold_connection

    def unlink_after(*args: Any, **kwargs: Any) -> Any:
        held = hold(*args, **kwargs)
        lifecycle.unlink(BipsyncToken.objects.get())
        return held

    monkeypatch.setattr(lifecycle, "hold_connection", unlink_after)
    assert reason_of(come_back(browser, bipsync)) == "other_account"
    assert BipsyncToken.objects.get().user is None


# --- failures are pages


def test_failures_are_pages(local: User, bipsync: SimulatedBipsync, settings: Any) -> None:
    browser = with_password(local)
    back = come_back(browser, bipsync)
    forget_keys()
    cache.clear()
    bipsync.fail("jwks", Answer(503), times=None)
    unavailable = browser.get(back["Location"], secure=True)
    assert (unavailable.status_code, reason_of(unavailable)) == (503, "unavailable")
    assert unavailable.context["retry_url"] == back["Location"]
    bipsync.clear_failures()
    use_budget(LocalBudget())
    right = settings.BIPSYNC
    settings.BIPSYNC = {**right, "AUDIENCE": "somebody-else"}
    assert reason_of(browser.get(back["Location"], secure=True)) == "token_refused"
    settings.BIPSYNC = {**right, "SCOPES": 7}
    assert reason_of(browser.get(back["Location"], secure=True)) == "misconfigured"
    settings.BIPSYNC = right
    other = BipsyncToken(tenant="acme", kind="person", subject="x")
    BipsyncToken.objects.update(access_token=other.seal("access_token", "moved"))
    assert reason_of(browser.post(back["Location"], {"do": "connect"}, secure=True)) == (
        "misconfigured"
    )
    waiting()


def test_a_confirmation_is_not_undone_with_its_request(
    local: User, bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    for alias in connections:
        monkeypatch.setitem(connections.settings[alias], "ATOMIC_REQUESTS", True)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError

    browser = with_password(local)
    back = come_back(browser, bipsync)
    browser.raise_request_exception = False
    monkeypatch.setattr("bipsync_django.views.limits.remember", fail)
    assert answer_confirmation(browser, back).status_code == 500
    assert BipsyncToken.objects.get().user == local


def test_with_strict_cookies_the_page_comes_after_the_detour(
    local: User, bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.SESSION_COOKIE_SAMESITE = "Strict"
    browser = with_password(local)
    detour = come_back(browser, bipsync)
    assert detour.status_code == 200
    back = browser.open(str(detour["Refresh"]).removeprefix("0; url="))
    assert answer_confirmation(browser, back).status_code == 302
    assert BipsyncToken.objects.get().user == local
