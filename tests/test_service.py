"""Service accounts: authorised by one who may, read and confirmed, and never a person."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.utils import timezone

from bipsync_django import lifecycle, tasks
from bipsync_django.api import service_session
from bipsync_django.conf import get_tenant
from bipsync_django.exceptions import LinkRefused, SignInRequired
from bipsync_django.lifecycle import Outcome
from bipsync_django.models import BipsyncToken, TenantState, TokenEvent
from bipsync_django.testing import SimulatedBipsync
from tests.browser import Browser, signed_in, way_to_bipsync
from tests.grants import expire, refresh_token_of, reload

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = "/admin/bipsync_django/bipsynctoken/service/"
ADA, GRACE, ZOE = "ada@acme.example", "grace@acme.example", "zoe@acme.example"
Status = BipsyncToken.Status


@pytest.fixture
def boss(bipsync: SimulatedBipsync) -> Browser:
    """Somebody who may connect service accounts, and nothing else."""
    user = User.objects.create_user("boss", is_staff=True)
    for codename in ("view_bipsynctoken", "connect_service_bipsynctoken"):
        user.user_permissions.add(Permission.objects.get(codename=codename))
    browser = Browser()
    browser.force_login(user, "django.contrib.auth.backends.ModelBackend")
    return browser


def authorise(browser: Browser, bipsync: SimulatedBipsync, user: str = ZOE) -> Any:
    response = browser.post(PAGE, {"do": "connect", "tenant": "acme"}, secure=True)
    return browser.open(bipsync.approve(way_to_bipsync(response), user=user))


def decide(browser: Browser, row: BipsyncToken, do: str = "confirm") -> Any:
    data = {"do": do, "token": row.pk, "generation": row.generation}
    return browser.post(PAGE, data, secure=True, follow=True)


def connected(browser: Browser, bipsync: SimulatedBipsync, user: str = ZOE) -> BipsyncToken:
    assert authorise(browser, bipsync, user).status_code == 302
    row = BipsyncToken.objects.get(kind="service", status="unconfirmed")
    decide(browser, row)
    return reload(row)


def events() -> list[str]:
    return list(TokenEvent.objects.order_by("id").values_list("name", flat=True))


def test_nothing_uses_an_account_that_nobody_has_confirmed(
    boss: Browser, bipsync: SimulatedBipsync
) -> None:
    response = authorise(boss, bipsync)
    assert response["Location"] == PAGE
    row = BipsyncToken.objects.get()
    assert (row.kind, row.user, row.status) == ("service", None, Status.UNCONFIRMED)
    assert row.next_refresh_at is None
    with pytest.raises(SignInRequired, match="no service account"):
        service_session()
    expire(row)
    before = bipsync.calls["refresh"]
    assert not lifecycle.take_due(10)
    assert lifecycle.refresh_if_due(row.pk) is Outcome.NOT_DUE
    with pytest.raises(SignInRequired):
        lifecycle.access_token(row)
    assert bipsync.calls["refresh"] == before
    page = boss.get(PAGE, secure=True).content.decode()
    for shown in ("Zoë Müller-Łukasz", ZOE, row.subject, "boss"):
        assert shown in page


def test_an_account_that_was_confirmed_works(boss: Browser, bipsync: SimulatedBipsync) -> None:
    row = connected(boss, bipsync)
    assert (row.status, row.scopes) == ("active", "users:read")
    assert row.next_refresh_at is not None
    assert row.signed_in_at is not None
    with service_session() as session:
        assert session.get("/v1/users/me").json()["email"] == ZOE
    expire(row)
    assert lifecycle.refresh_if_due(row.pk) is Outcome.REFRESHED
    assert events() == ["authorised", "confirmed"]
    assert {e.actor.get_username() for e in TokenEvent.objects.all() if e.actor} == {"boss"}


def test_it_is_asked_for_scopes_of_its_own(
    boss: Browser, bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "SERVICE_SCOPES": ["research:read"]}
    assert connected(boss, bipsync).scopes == "research:read"


def test_a_service_account_signs_nobody_in(boss: Browser, bipsync: SimulatedBipsync) -> None:
    for confirmed in (False, True):
        authorise(boss, bipsync)
        if confirmed:
            decide(boss, BipsyncToken.objects.get(status="unconfirmed"))
        browser = Browser()
        response = browser.open(bipsync.approve(browser.begin(), user=ZOE))
        assert 'data-reason="service_account"' in response.content.decode()
        assert browser.user_id() is None
    assert not BipsyncToken.objects.filter(kind="person").exists()
    user = User.objects.create_user("zoe")
    with pytest.raises(LinkRefused, match="service account"):
        lifecycle.link(get_tenant(), BipsyncToken.objects.get().subject, user)


def test_a_persons_account_does_not_become_one(boss: Browser, bipsync: SimulatedBipsync) -> None:
    signed_in(bipsync, ADA)
    before = BipsyncToken.objects.get()
    response = authorise(boss, bipsync, ADA)
    assert 'data-reason="person_account"' in response.content.decode()
    after = BipsyncToken.objects.get()
    assert (after.pk, after.generation, after.kind) == (before.pk, before.generation, "person")
    assert bipsync.is_alive(refresh_token_of(after))


def test_an_account_that_became_a_persons_meanwhile_is_not_confirmed(
    boss: Browser, bipsync: SimulatedBipsync
) -> None:
    authorise(boss, bipsync)
    row = BipsyncToken.objects.get()
    person = User.objects.create_user("zoe")
    BipsyncToken.objects.create(tenant="acme", subject=row.subject, user=person, client_id="x")
    page = decide(boss, row).content.decode()
    assert "belongs to a person" in page
    assert reload(row).status == Status.UNCONFIRMED


def test_another_account_takes_the_place_of_the_one_before(
    boss: Browser, bipsync: SimulatedBipsync
) -> None:
    first = connected(boss, bipsync, ZOE)
    lost = refresh_token_of(first)
    authorise(boss, bipsync, GRACE)
    # The first goes on until somebody has read whose the second is.
    with service_session() as session:
        assert session.get("/v1/users/me").json()["email"] == ZOE
    page = boss.get(PAGE, secure=True).content.decode()
    assert "takes the place of" in page
    decide(boss, BipsyncToken.objects.get(status="unconfirmed"))
    with service_session() as session:
        assert session.get("/v1/users/me").json()["email"] == GRACE
    assert reload(first).status == "disconnected"
    assert not bipsync.is_alive(lost)


def test_the_account_in_use_is_renewed_without_another_confirmation(
    boss: Browser, bipsync: SimulatedBipsync
) -> None:
    row = connected(boss, bipsync)
    BipsyncToken.objects.update(status="needs_sign_in")
    authorise(boss, bipsync)
    again = reload(row)
    assert (again.status, again.generation) == ("active", row.generation + 1)
    lifecycle.disconnect(again)
    authorise(boss, bipsync)
    assert reload(row).status == Status.UNCONFIRMED


def test_what_came_after_the_page_was_read_is_not_confirmed_by_it(
    boss: Browser, bipsync: SimulatedBipsync
) -> None:
    authorise(boss, bipsync)
    read = BipsyncToken.objects.get()
    authorise(boss, bipsync)
    assert "has changed meanwhile" in decide(boss, read).content.decode()
    assert reload(read).status == Status.UNCONFIRMED
    assert lifecycle.confirm_service(read, actor=User.objects.get()) is False
    assert reload(read).status == Status.UNCONFIRMED


def test_what_is_thrown_away_is_put_out_of_use(boss: Browser, bipsync: SimulatedBipsync) -> None:
    authorise(boss, bipsync)
    row = BipsyncToken.objects.get()
    lost = refresh_token_of(row)
    assert "was thrown away" in decide(boss, row, "discard").content.decode()
    assert not bipsync.is_alive(lost)
    assert reload(row).status == "disconnected"


def test_what_nobody_confirms_within_an_hour_is_thrown_away(
    boss: Browser, bipsync: SimulatedBipsync
) -> None:
    authorise(boss, bipsync)
    row = BipsyncToken.objects.get()
    tasks.prune()
    assert reload(row).status == Status.UNCONFIRMED
    BipsyncToken.objects.update(obtained_at=timezone.now() - timedelta(minutes=61))
    tasks.prune()
    assert reload(row).status == "disconnected"


# --- whose database it is


def test_a_copy_of_the_database_authorises_no_service_account(
    boss: Browser, bipsync: SimulatedBipsync, settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "DEPLOYMENT": "production"}
    row = connected(boss, bipsync)
    response = boss.post(PAGE, {"do": "connect", "tenant": "acme"}, secure=True)
    callback = bipsync.approve(way_to_bipsync(response), user=ZOE)
    # The trip comes back to a copy, whose rows say that they are production's.
    settings.BIPSYNC = {**settings.BIPSYNC, "DEPLOYMENT": "staging"}
    assert 'data-reason="misconfigured"' in boss.open(callback).content.decode()
    after = reload(row)
    assert (after.generation, after.access_token) == (row.generation, row.access_token)
    assert TenantState.objects.get().deployment == "production"


def test_a_service_account_puts_the_deployments_name_on_the_tenants_grants(
    boss: Browser, bipsync: SimulatedBipsync, settings: Any
) -> None:
    response = boss.post(PAGE, {"do": "connect", "tenant": "acme"}, secure=True)
    callback = bipsync.approve(way_to_bipsync(response), user=ZOE)
    settings.BIPSYNC = {**settings.BIPSYNC, "DEPLOYMENT": "production"}
    assert boss.open(callback).status_code == 302
    assert TenantState.objects.get().deployment == "production"


# --- who may


def test_who_may_not_is_refused_at_each_step(boss: Browser, bipsync: SimulatedBipsync) -> None:
    response = boss.post(PAGE, {"do": "connect", "tenant": "acme"}, secure=True)
    callback = bipsync.approve(way_to_bipsync(response), user=ZOE)
    # The permission is taken while they are at Bipsync.
    User.objects.get(username="boss").user_permissions.clear()
    refused = boss.open(callback)
    assert 'data-reason="not_allowed"' in refused.content.decode()
    assert not BipsyncToken.objects.exists()
    assert boss.get(PAGE, secure=True).status_code == 403
    for do in ("connect", "confirm", "discard"):
        assert boss.post(PAGE, {"do": do, "tenant": "acme"}, secure=True).status_code == 403


def test_a_trip_ends_in_the_session_of_who_began_it(
    boss: Browser, bipsync: SimulatedBipsync
) -> None:
    response = boss.post(PAGE, {"do": "connect", "tenant": "acme"}, secure=True)
    callback = bipsync.approve(way_to_bipsync(response), user=ZOE)
    other = User.objects.create_superuser("other")
    boss.force_login(other, "django.contrib.auth.backends.ModelBackend")
    assert 'data-reason="other_person"' in boss.open(callback).content.decode()
    assert not BipsyncToken.objects.exists()


def test_a_trip_that_was_begun_to_sign_in_authorises_nothing(
    boss: Browser, bipsync: SimulatedBipsync
) -> None:
    browser = Browser()
    browser.open(bipsync.approve(browser.begin(), user=ZOE))
    assert BipsyncToken.objects.get().kind == "person"


def test_only_a_button_of_the_sites_own_begins_it(boss: Browser, bipsync: SimulatedBipsync) -> None:
    strict = Browser(enforce_csrf_checks=True)
    strict.cookies.update(boss.cookies)
    assert strict.post(PAGE, {"do": "connect", "tenant": "acme"}, secure=True).status_code == 403
    assert boss.get(PAGE, {"do": "connect", "tenant": "acme"}, secure=True).status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        {"do": "connect", "tenant": "globex"},
        {"do": "confirm"},
        {"do": "confirm", "token": "x", "generation": "y"},
        {"do": "discard", "token": "1" * 30, "generation": "0"},
        {},
    ],
    ids=str,
)
def test_bad_input_is_a_message(
    boss: Browser, bipsync: SimulatedBipsync, data: dict[str, str]
) -> None:
    response = boss.post(PAGE, data, secure=True, follow=True)
    assert response.status_code == 200
    assert 'class="messagelist"' in response.content.decode()


def test_the_page_decides_about_accounts_that_wait_and_about_nothing_else(
    boss: Browser, bipsync: SimulatedBipsync
) -> None:
    signed_in(bipsync, ADA)
    used = connected(boss, bipsync, ZOE)
    for row in (BipsyncToken.objects.get(kind="person"), used):
        for what in ("discard", "confirm"):
            assert "has changed meanwhile" in decide(boss, row, what).content.decode()
        assert reload(row).status == "active"
    BipsyncToken.objects.filter(pk=used.pk).update(status="needs_sign_in")
    assert lifecycle.confirm_service(reload(used), actor=User.objects.latest("pk")) is False
    assert reload(used).status == "needs_sign_in"
