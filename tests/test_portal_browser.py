"""A staff member's own pages in a real browser, without a word of OAuth."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Browser, Page, expect

from bipsync_django import lifecycle
from bipsync_django.models import BipsyncToken, TokenEvent
from bipsync_django.testing import SimulatedBipsync
from tests.grants import expire
from tests.portal import allow, choose, log_in, shoot, violations

pytestmark = pytest.mark.django_db(transaction=True)

CONNECTION = "/bipsync/connection/"


@pytest.fixture
def ada(page: Page) -> BipsyncToken:
    """Ada, who has signed in with Bipsync."""
    page.goto("/greeting/")
    page.goto("/bipsync/login/?next=/greeting/")
    allow(page)
    expect(page.locator("body")).to_have_text("Hello ada")
    return BipsyncToken.objects.get()


def test_a_person_reads_what_is_connected(page: Page, ada: BipsyncToken) -> None:
    page.goto(CONNECTION)
    content = page.locator(".bipsync-message")
    expect(content).to_contain_text("This site has been connected to your Bipsync account since")
    expect(content).to_contain_text("At Bipsync you are Ada Lovelace.")
    expect(content).to_contain_text("See who works here: names and e-mail addresses")
    for word in ("OAuth", "token", "scope", "grant", "refresh", "users:read"):
        assert word not in content.inner_text()
    shoot(page, "connection")
    assert violations(page) == []


def test_a_person_disconnects_after_reading_what_it_means(
    page: Page, portal: str, ada: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    before = ada.unseal("refresh_token")
    page.goto(CONNECTION)
    page.get_by_role("link", name="Disconnect…").click()
    content = page.locator(".bipsync-message")
    expect(content).to_contain_text("Bipsync goes on listing this site")
    expect(content).to_contain_text("so you are signed out as well")
    shoot(page, "disconnect")
    assert violations(page) == []
    page.get_by_role("link", name="Keep the connection").click()
    assert BipsyncToken.objects.get().status == "active"
    page.get_by_role("link", name="Disconnect…").click()
    page.get_by_role("button", name="Disconnect").click()
    expect(page.get_by_role("heading")).to_have_text("You are disconnected")
    assert violations(page) == []
    row = BipsyncToken.objects.get()
    assert (row.status, row.access_token, row.refresh_token) == ("disconnected", None, None)
    assert before is not None
    spent = bipsync.store.by_refresh_token(before)
    assert spent is not None
    assert spent.revoked
    page.goto("/greeting/")
    expect(page.locator("body")).to_have_text("Hello visitor")


def test_who_came_with_a_password_stays_signed_in_when_they_disconnect(
    page: Page, portal: str, bipsync: SimulatedBipsync
) -> None:
    log_in(page, portal, User.objects.create_user("grace"))
    page.goto(CONNECTION)
    expect(page.locator(".bipsync-message")).to_contain_text("not connected")
    page.get_by_role("link", name="Connect my Bipsync account").click()
    page.get_by_role("button", name="Connect my Bipsync account").click()
    allow(page, "Grace Hopper")
    page.get_by_role("button", name="Connect this account").click()
    expect(page).to_have_url(f"{portal}{CONNECTION}")
    page.get_by_role("link", name="Disconnect…").click()
    page.get_by_role("button", name="Disconnect").click()
    page.get_by_role("link", name="Continue").click()
    expect(page.locator(".bipsync-message")).to_contain_text("not connected")


def test_a_person_reads_whose_account_it_is_before_it_is_joined(
    page: Page, portal: str, bipsync: SimulatedBipsync
) -> None:
    log_in(page, portal, User.objects.create_user("zoe"))
    page.goto("/bipsync/connect/?next=/greeting/")
    page.get_by_role("button", name="Connect my Bipsync account").click()
    allow(page, "Grace Hopper")
    content = page.locator(".bipsync-message")
    expect(page.get_by_role("heading")).to_have_text("Is this your Bipsync account?")
    expect(content).to_contain_text("you are signed in as Grace Hopper · grace@acme.example")
    expect(content).to_contain_text("You are signed in here as zoe.")
    expect(content).to_contain_text("See who works here: names and e-mail addresses")
    for word in ("OAuth", "token", "scope", "grant", "refresh", "users:read"):
        assert word not in content.inner_text()
    for width in (360, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            shoot(page, f"confirm-connection-{width}-{scheme}")
    assert violations(page) == []
    shoot(page, "confirm-connection")
    lost = BipsyncToken.objects.get().unseal("refresh_token")
    page.keyboard.press("Tab")
    focused = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert focused != "none"
    page.get_by_role("button", name="Not this one").click()
    expect(page).to_have_url(f"{portal}/bipsync/connect/acme/?next=%2Fgreeting%2F")
    assert BipsyncToken.objects.get().user is None
    assert lost is not None
    assert not bipsync.is_alive(lost)
    page.get_by_role("button", name="Connect my Bipsync account").click()
    allow(page, "Ada Lovelace")
    expect(content).to_contain_text("Ada Lovelace · ada@acme.example")
    page.get_by_role("button", name="Connect this account").click()
    expect(page.locator("body")).to_have_text("Hello zoe")
    row = BipsyncToken.objects.get(user=User.objects.get())
    assert row.claims["email"] == "ada@acme.example"


def test_a_button_that_is_pressed_twice_connects_once(
    page: Page, portal: str, bipsync: SimulatedBipsync
) -> None:
    log_in(page, portal, User.objects.create_user("zoe"))
    page.goto("/bipsync/connect/?next=/greeting/")
    page.get_by_role("button", name="Connect my Bipsync account").click()
    allow(page, "Grace Hopper")
    page.get_by_role("button", name="Connect this account").dblclick()
    expect(page.locator("body")).to_have_text("Hello zoe")
    assert TokenEvent.objects.filter(name="connected").count() == 1
    page.go_back()
    expect(page.locator("body")).to_contain_text("There is nothing to confirm any more")


def test_a_connection_that_has_ended_is_renewed_from_any_page(
    page: Page, portal: str, ada: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    # With a password, because a session of Bipsync's would go through sign-in by itself.
    assert ada.user is not None
    log_in(page, portal, ada.user)
    page.goto("/page/")
    expect(page.locator("body")).not_to_contain_text("needs attention")
    bipsync.withdraw("ada@acme.example")
    lifecycle.refresh_if_due(expire(ada).pk)
    page.goto("/page/")
    expect(page.get_by_role("status")).to_contain_text(
        "Your connection to Bipsync needs attention."
    )
    shoot(page, "attention")
    assert violations(page, ".bipsync-attention") == []
    page.goto(CONNECTION)
    expect(page.locator(".bipsync-message")).to_contain_text("The connection has ended.")
    page.goto("/page/")
    page.get_by_role("link", name="Sign in again").click()
    allow(page)
    expect(page).to_have_url(f"{portal}/page/")
    expect(page.locator("body")).not_to_contain_text("needs attention")
    assert BipsyncToken.objects.get().status == "active"


def test_these_pages_are_for_people_who_are_signed_in(page: Page, portal: str) -> None:
    for path in (CONNECTION, "/bipsync/disconnect/acme/"):
        page.goto(path)
        expect(page.get_by_role("heading", name="Sign in to portal")).to_be_visible()


@pytest.mark.parametrize("path", [CONNECTION, "/bipsync/disconnect/acme/", "/bipsync/connect/"])
def test_these_pages_work_on_a_phone_with_the_keyboard_and_in_the_dark(
    page: Page, ada: BipsyncToken, path: str
) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    page.emulate_media(color_scheme="dark")
    page.goto(path)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    shoot(page, f"phone-{path.split('/')[2]}")
    page.keyboard.press("Tab")
    focused = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert focused != "none"


@pytest.mark.parametrize("status", ["unknown tenant", "disconnected"])
def test_an_address_without_a_connection_leads_back(
    page: Page, portal: str, ada: BipsyncToken, status: str, settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "SESSION_CHECK_INTERVAL": 3600}
    if status == "disconnected":
        # In a session of its own: one that began with Bipsync ends with the connection.
        BipsyncToken.objects.update(status=status)
        log_in(page, portal, User.objects.get())
    page.goto(
        "/bipsync/disconnect/globex/" if status != "disconnected" else "/bipsync/disconnect/acme/"
    )
    expect(page).to_have_url(f"{portal}{CONNECTION}")


def test_every_page_of_a_sign_in_can_be_used_by_everybody(
    page: Page, portal: str, settings: Any, bipsync: SimulatedBipsync
) -> None:
    page.goto("/bipsync/callback/")
    expect(page.get_by_role("heading")).to_be_visible()
    assert violations(page) == []
    log_in(page, portal, User.objects.create_user("grace"))
    for path in ("/bipsync/connect/", CONNECTION):
        page.goto(path)
        assert violations(page) == []
    own = {**settings.BIPSYNC}
    shared = {key: own.pop(key) for key in ("ALLOW_INSECURE_LOOPBACK", "SCOPES")}
    del own["CLIENT"]
    settings.BIPSYNC = {**shared, "TENANTS": {"acme": own, "globex": own}}
    for path in ("/bipsync/login/", "/bipsync/connect/", CONNECTION):
        page.goto(path)
        expect(page.locator(".bipsync-message")).to_contain_text("globex")
        assert violations(page) == []


def test_all_of_it_works_without_scripts(
    chromium_browser: Browser, portal: str, bipsync: SimulatedBipsync
) -> None:
    with chromium_browser.new_context(base_url=portal, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto("/bipsync/login/?next=/bipsync/connection/")
        allow(page)
        expect(page.locator(".bipsync-message")).to_contain_text("Ada Lovelace")
        User.objects.update(is_staff=True, is_superuser=True)
        page.goto("/admin/bipsync_django/bipsynctoken/")
        expect(page.locator(".bipsync-panel")).to_contain_text("The connection works.")
        page.get_by_role("checkbox", name="Select this object").check()
        choose(page, "Disconnect")
        page.get_by_role("button", name="Disconnect").click()
        assert BipsyncToken.objects.get().status == "disconnected"
