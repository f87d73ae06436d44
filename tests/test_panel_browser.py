"""The admin's token panel in a real browser, as an administrator uses it."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.utils import timezone
from playwright.sync_api import Page, expect

from bipsync_django import events, lifecycle
from bipsync_django.models import BipsyncToken, HourlyCount, TenantState, TokenEvent
from bipsync_django.testing import Answer, SimulatedBipsync
from tests.browser import signed_in
from tests.grants import expire
from tests.portal import allow, choose, log_in, shoot, violations

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/bipsync_django/bipsynctoken/"


@pytest.fixture
def tokens(bipsync: SimulatedBipsync) -> dict[str, BipsyncToken]:
    """Three people: one works, one was called dead by mistake, one cannot be refreshed."""
    for who in ("ada@acme.example", "grace@acme.example", "zoe@acme.example"):
        signed_in(bipsync, who)
    found = {
        row.user.username: row for row in BipsyncToken.objects.select_related("user") if row.user
    }
    bipsync.fail("token", Answer(400, {"error": "invalid_grant"}))
    lifecycle.refresh_if_due(expire(found["grace"]).pk)
    BipsyncToken.objects.filter(pk=found["zoe"].pk).update(
        attempt=3, last_error="timeout", next_attempt_at=timezone.now() + timedelta(minutes=8)
    )
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    for ago in range(1, 24):
        for name, count in (
            ("refreshed", 100 + 7 * (ago % 5)),
            ("refresh_failed", 12 if ago in {3, 4} else 0),
            ("refresh_dead", 2 if ago == 4 else 0),
            ("signed_in", max(0, 30 - 3 * abs(ago - 8))),
        ):
            HourlyCount.objects.create(
                tenant="acme", hour=hour - timedelta(hours=ago), name=name, count=count
            )
    return found


@pytest.fixture
def boss(page: Page, portal: str) -> User:
    user = User.objects.create_superuser("boss", "boss@acme.example", "secret")
    log_in(page, portal, user)
    return user


def row_of(page: Page, name: str) -> Any:
    return page.locator("#result_list tbody tr").filter(has_text=name)


def test_the_panel_says_how_all_is(page: Page, boss: User, tokens: Any) -> None:
    page.goto(LIST)
    shoot(page, "panel")
    panel = page.locator(".bipsync-panel")
    expect(panel).to_contain_text("1 connection has ended: the person has to sign in again.")
    expect(panel).to_contain_text("1 connection cannot be refreshed at the moment.")
    panel.get_by_role("link", name="1 needs sign-in").click()
    expect(page.locator("#result_list tbody tr")).to_have_count(1)
    expect(row_of(page, "grace")).to_contain_text("Bipsync says that the permission was withdrawn")


def test_someone_whose_connection_broke_is_found_and_mended_from_the_panel_alone(
    page: Page, boss: User, tokens: Any, bipsync: SimulatedBipsync
) -> None:
    page.goto("/admin/")
    page.get_by_role("link", name="Bipsync tokens").first.click()
    page.get_by_role("link", name="1 needs sign-in").click()
    row_of(page, "grace").get_by_role("link", name="grace").click()
    expect(page.locator("#content")).to_contain_text(
        "Ask the person to sign in with Bipsync once more."
    )
    expect(page.get_by_role("region", name="What has happened")).to_contain_text("needs sign-in")
    shoot(page, "panel-detail")
    page.get_by_role("link", name="Try again").click()
    expect(page.locator("#content")).to_contain_text("Bipsync is asked once more")
    shoot(page, "panel-action")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".messagelist")).to_contain_text("It works again: grace.")
    expect(page.get_by_role("region", name="What has happened")).to_contain_text("works again")
    page.get_by_role("link", name="Bipsync tokens").first.click()
    expect(row_of(page, "grace")).to_contain_text("active")


def test_one_that_bipsync_does_not_take_stays_as_it_was_and_says_why(
    page: Page, boss: User, tokens: Any, bipsync: SimulatedBipsync
) -> None:
    bipsync.withdraw("grace@acme.example")
    page.goto(f"{LIST}{tokens['grace'].pk}/change/")
    page.get_by_role("link", name="Try again").click()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".messagelist")).to_contain_text("the permission was withdrawn")
    expect(page.locator(".field-state")).to_contain_text("needs sign-in")


def test_one_is_refreshed_at_once(
    page: Page, boss: User, tokens: Any, bipsync: SimulatedBipsync
) -> None:
    expire(tokens["ada"])
    before = bipsync.calls["refresh"]
    page.goto(LIST)
    row_of(page, "ada").get_by_role("checkbox").check()
    choose(page, "Refresh now")
    page.get_by_role("button", name="Refresh now").click()
    expect(page.locator(".messagelist")).to_contain_text("Refreshed: ada.")
    assert bipsync.calls["refresh"] == before + 1


def test_somebody_is_disconnected_after_reading_what_it_means(
    page: Page, boss: User, tokens: Any, bipsync: SimulatedBipsync
) -> None:
    page.goto(f"{LIST}{tokens['ada'].pk}/change/")
    page.get_by_role("link", name="Disconnect", exact=True).click()
    expect(page.locator("#content")).to_contain_text("Bipsync goes on listing the consent")
    shoot(page, "panel-disconnect")
    assert violations(page) == []
    assert BipsyncToken.objects.get(pk=tokens["ada"].pk).status == "active"
    page.get_by_role("button", name="Disconnect").click()
    expect(page.locator(".messagelist")).to_contain_text("Disconnected: ada.")
    expect(page.locator(".field-state")).to_contain_text("disconnected")


def test_sessions_are_ended(page: Page, boss: User, tokens: Any) -> None:
    page.goto(f"{LIST}{tokens['ada'].pk}/change/")
    page.get_by_role("link", name="End sessions").click()
    page.get_by_role("button", name="End their sessions").click()
    expect(page.locator(".messagelist")).to_contain_text("Sessions ended: ada.")
    assert BipsyncToken.objects.get(pk=tokens["ada"].pk).sessions_valid_after is not None


def test_who_may_only_look_is_offered_nothing_else(page: Page, portal: str, tokens: Any) -> None:
    clerk = User.objects.create_user("clerk", is_staff=True)
    clerk.user_permissions.add(Permission.objects.get(codename="view_bipsynctoken"))
    log_in(page, portal, clerk)
    page.goto(LIST)
    expect(page.locator(".bipsync-panel")).to_be_visible()
    expect(page.locator("select[name=action]")).to_have_count(0)
    expect(page.get_by_role("link", name="Service accounts")).to_have_count(0)
    page.goto(f"{LIST}{tokens['ada'].pk}/change/")
    for name in ("Refresh now", "Try again", "Disconnect", "End sessions"):
        expect(page.get_by_role("link", name=name)).to_have_count(0)
    for path in ("do/disconnect/?tokens=1", "service/", "progress/1-00000000/"):
        response = page.goto(f"{LIST}{path}")
        assert response is not None
        assert response.status == 403


def test_the_panel_warns_and_says_what_to_do(page: Page, boss: User, tokens: Any) -> None:
    TenantState.objects.update_or_create(
        tenant="acme",
        defaults={
            "breaker_until": timezone.now() + timedelta(minutes=4),
            "configuration_error": "invalid_client",
        },
    )
    page.goto(LIST)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("calls to Bipsync are held back")
    expect(alert).to_contain_text("Correct CLIENT_ID or CLIENT_SECRET")
    shoot(page, "panel-warning")


@pytest.mark.parametrize("size", [(1280, 800), (360, 740)], ids=["desktop", "phone"])
def test_the_panel_can_be_used_by_everybody(
    page: Page, boss: User, tokens: Any, size: tuple[int, int]
) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.goto(LIST)
    panel = page.locator(".bipsync-panel")
    panel.get_by_text("As a table").first.click()
    expect(panel.get_by_role("columnheader", name="Refreshed")).to_be_visible()
    assert violations(page, ".bipsync-panel") == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    page.emulate_media(color_scheme="dark")
    shoot(page, f"panel-dark-{size[0]}")
    page.goto(f"{LIST}{tokens['grace'].pk}/change/")
    assert violations(page, ".bipsync-section") == []


def test_the_page_of_many_refreshes_can_be_used_by_everybody(
    page: Page, boss: User, tokens: Any
) -> None:
    batch = events.ask_for(BipsyncToken.objects.all(), boss)
    BipsyncToken.objects.update(obtained_at=timezone.now())
    page.goto(f"{LIST}progress/{batch}/")
    expect(page.get_by_role("status")).to_have_text("3 of 3 done.")
    expect(page.get_by_role("progressbar")).to_be_visible()
    assert violations(page, "#content-main") == []


# --- service accounts


def test_a_service_account_is_connected_read_and_confirmed(
    page: Page, boss: User, bipsync: SimulatedBipsync
) -> None:
    page.goto(LIST)
    page.get_by_role("link", name="Service accounts").click()
    expect(page.locator("#content")).to_contain_text("No service account is in use.")
    page.get_by_role("button", name="Connect a service account").click()
    allow(page, "Zoë")
    expect(page.locator("#content")).to_contain_text(
        "Zoë Müller-Łukasz waits for your confirmation."
    )
    shoot(page, "service-account")
    assert violations(page, "#content-main") == []
    row = BipsyncToken.objects.get()
    assert (row.kind, row.status, row.user) == ("service", "unconfirmed", None)
    page.get_by_role("button", name="Use this account").click()
    expect(page.locator(".messagelist")).to_contain_text("Zoë Müller-Łukasz is in use from now on.")
    assert BipsyncToken.objects.get().status == "active"
    assert not User.objects.exclude(pk=boss.pk).exists()
    assert TokenEvent.objects.filter(name="confirmed", actor=boss).count() == 1


def test_the_wrong_account_is_thrown_away(page: Page, boss: User) -> None:
    page.goto(f"{LIST}service/")
    page.get_by_role("button", name="Connect a service account").click()
    allow(page)
    page.get_by_role("button", name="Throw it away").click()
    expect(page.locator(".messagelist")).to_contain_text("Ada Lovelace was thrown away.")
    assert BipsyncToken.objects.get().status == "disconnected"


def test_a_persons_account_does_not_become_the_sites(
    page: Page, boss: User, bipsync: SimulatedBipsync
) -> None:
    signed_in(bipsync)
    page.goto(f"{LIST}service/")
    page.get_by_role("button", name="Connect a service account").click()
    allow(page)
    expect(page.get_by_role("heading")).to_have_text("This Bipsync account belongs to a person")
    assert BipsyncToken.objects.get().kind == "person"
    page.get_by_role("link", name="Try again").click()
    expect(page.get_by_role("heading", name="Service accounts")).to_be_visible()


# --- the way in


def test_the_admins_own_login_page_leads_to_bipsync(
    page: Page, portal: str, settings: Any, bipsync: SimulatedBipsync
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "STAFF": {"name": ["Ada Lovelace"]}}
    page.goto("/admin/")
    shoot(page, "admin-login")
    assert violations(page, ".bipsync-admin-login") == []
    page.get_by_role("link", name="Sign in with Bipsync").click()
    allow(page)
    expect(
        page.get_by_role("link", name="Log out").or_(page.get_by_text("Log out"))
    ).to_be_visible()
    assert page.url == f"{portal}/admin/auth/" or "permission" in page.content()


def test_who_loses_the_staff_rule_loses_the_admin_at_the_next_validated_claims(
    page: Page, portal: str, settings: Any, bipsync: SimulatedBipsync
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "STAFF": {"roles": ["portal-admin"]}}
    ada = bipsync.find_user("ada@acme.example")
    bipsync.add_user(replace(ada, extra={"roles": ["portal-admin"]}))
    page.goto("/admin/login/?next=/admin/")
    page.get_by_role("link", name="Sign in with Bipsync").click()
    allow(page)
    expect(page.get_by_text("Site administration")).to_be_visible()
    bipsync.add_user(replace(ada, extra={"roles": []}))
    lifecycle.refresh_if_due(expire(BipsyncToken.objects.get()).pk)
    page.goto("/admin/")
    expect(page).to_have_url(f"{portal}/admin/login/?next=/admin/")
    expect(page.locator("#content")).to_contain_text("are not authorized to access this page")
