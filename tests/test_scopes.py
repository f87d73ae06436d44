"""What was granted is what the token says; and what was granted is not lost to a sign-in."""

from typing import Any

import pytest
from django.contrib.auth.models import User

from bipsync_django import lifecycle
from bipsync_django.models import BipsyncToken, TokenEvent
from bipsync_django.testing import Answer, DropAfter, Html, SimulatedBipsync
from tests.browser import Browser, signed_in
from tests.grants import refresh_token_of

pytestmark = pytest.mark.usefixtures("database")

ADA = "68b993fa85d14160d4030391"
WIDE = "research:read users:read"
Status = BipsyncToken.Status


def configure(settings: Any, **values: Any) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, **values}


@pytest.fixture
def wide(bipsync: SimulatedBipsync, settings: Any) -> BipsyncToken:
    """A grant for two scopes; the site's own sign-in asks for one of them by now."""
    configure(settings, SCOPES=WIDE.split())
    signed_in(bipsync)
    configure(settings, SCOPES=["users:read"])
    return BipsyncToken.objects.get()


def test_the_token_says_what_was_granted(bipsync: SimulatedBipsync) -> None:
    browser = Browser()
    begun = browser.begin()
    claims = bipsync.access_token_claims(ADA, scopes=["users:read", "events:read"])
    answer = {"token_type": "Bearer", "expires_in": 3600, "refresh_token": "r" * 40}
    bipsync.fail("token", Answer(200, {**answer, "access_token": bipsync.sign(claims)}))
    browser.open(bipsync.approve(begun))
    assert BipsyncToken.objects.get().scopes == "events:read users:read"


def test_a_token_that_names_no_scopes_has_those_that_were_asked_for(
    bipsync: SimulatedBipsync,
) -> None:
    browser = Browser()
    begun = browser.begin()
    claims = bipsync.access_token_claims(ADA)
    del claims["scopes"]
    answer = {"token_type": "Bearer", "expires_in": 3600, "refresh_token": "r" * 40}
    bipsync.fail("token", Answer(200, {**answer, "access_token": bipsync.sign(claims)}))
    browser.open(bipsync.approve(begun))
    assert BipsyncToken.objects.get().scopes == "users:read"


def test_an_ordinary_sign_in_keeps_the_wider_grant(
    wide: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    browser = signed_in(bipsync)
    token = BipsyncToken.objects.get()
    assert token.scopes == WIDE
    assert (token.status, browser.user_id()) == (Status.ACTIVE, str(User.objects.get().pk))
    assert bipsync.is_alive(refresh_token_of(token))
    assert bipsync.is_access_token_alive(lifecycle.access_token(token))
    assert token.signed_in_at is not None
    assert wide.signed_in_at is not None
    assert token.signed_in_at > wide.signed_in_at
    event = TokenEvent.objects.filter(name="signed_in").latest("pk")
    assert event.reason == "kept_wider"


def test_what_was_withdrawn_is_not_kept(wide: BipsyncToken, bipsync: SimulatedBipsync) -> None:
    """The row says active, because nobody has asked since."""
    bipsync.withdraw(ADA)
    BipsyncToken.objects.update(obtained_at="2020-01-01T00:00Z")
    signed_in(bipsync)
    token = BipsyncToken.objects.get()
    assert (token.status, token.scopes) == (Status.ACTIVE, "users:read")
    assert bipsync.is_alive(refresh_token_of(token))


def test_what_cannot_be_asked_about_is_kept(wide: BipsyncToken, bipsync: SimulatedBipsync) -> None:
    BipsyncToken.objects.update(obtained_at="2020-01-01T00:00Z")
    browser = Browser()
    callback = bipsync.approve(browser.begin())
    bipsync.fail("token", Answer(429, {"error": "slow_down"}), times=None)
    # The code is exchanged all the same: only a refresh is turned away.
    bipsync.clear_failures()
    from bipsync_django import breaker

    breaker.open_for("acme", "outage")
    assert browser.open(callback).status_code == 302
    token = BipsyncToken.objects.get()
    assert token.scopes == WIDE
    assert bipsync.is_alive(refresh_token_of(token))
    assert bipsync.calls["refresh"] == 0


@pytest.mark.parametrize("trouble", [DropAfter(), Html(502)])
def test_what_is_in_doubt_gives_way_to_what_is_certain(
    wide: BipsyncToken,
    bipsync: SimulatedBipsync,
    trouble: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The refresh that is to prove the wider grant may have used it up."""
    from bipsync_django.lifecycle import protocol

    real: Any = vars(protocol)["refresh_pair"]

    def in_trouble(*args: Any, **kwargs: Any) -> Any:
        bipsync.fail("token", trouble)
        return real(*args, **kwargs)

    BipsyncToken.objects.update(obtained_at="2020-01-01T00:00Z")
    monkeypatch.setattr(protocol, "refresh_pair", in_trouble)
    signed_in(bipsync)
    token = BipsyncToken.objects.get()
    assert (token.status, token.scopes) == (Status.ACTIVE, "users:read")
    assert token.in_doubt_at is None
    assert bipsync.is_alive(refresh_token_of(token))


@pytest.mark.parametrize(
    "change",
    [
        {"status": Status.NEEDS_SIGN_IN},
        {"status": Status.DISCONNECTED},
        {"client_id": "another"},
        {"refresh_token": None},
        {"in_doubt_at": "2020-01-01T00:00Z"},
        {"last_error": "token_refused", "validated_generation": 0},
    ],
    ids=lambda change: "-".join(change),
)
def test_a_wider_grant_that_is_not_in_order_is_replaced(
    wide: BipsyncToken, bipsync: SimulatedBipsync, change: dict[str, Any]
) -> None:
    BipsyncToken.objects.update(**change)
    signed_in(bipsync)
    token = BipsyncToken.objects.get()
    assert (token.status, token.scopes, token.client_id) == (
        Status.ACTIVE,
        "users:read",
        "portal",
    )
    assert bipsync.is_alive(refresh_token_of(token))


def test_a_wider_grant_that_cannot_be_read_is_replaced(
    wide: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    other = BipsyncToken(tenant="acme", kind="person", subject="another")
    BipsyncToken.objects.update(
        refresh_token=other.seal("refresh_token", "x"), obtained_at="2020-01-01T00:00Z"
    )
    signed_in(bipsync)
    token = BipsyncToken.objects.get()
    assert token.scopes == "users:read"
    assert bipsync.is_alive(refresh_token_of(token))


def test_other_scopes_are_not_fewer(bipsync: SimulatedBipsync, settings: Any) -> None:
    """Neither covers the other, so the one that was asked for now is the one to have."""
    configure(settings, SCOPES=["users:read", "events:read"])
    signed_in(bipsync)
    configure(settings, SCOPES=["users:read", "research:read"])
    signed_in(bipsync)
    assert BipsyncToken.objects.get().scopes == WIDE
    assert bipsync.calls["refresh"] == 0


def test_a_wider_sign_in_replaces_the_narrow_grant(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    signed_in(bipsync)
    configure(settings, SCOPES=WIDE.split())
    signed_in(bipsync)
    token = BipsyncToken.objects.get()
    assert (token.scopes, token.generation) == (WIDE, 2)
    assert bipsync.is_alive(refresh_token_of(token))


def test_a_page_that_needs_more_asks_for_all_of_it_and_a_sign_in_leaves_it(
    bipsync: SimulatedBipsync,
) -> None:
    browser = signed_in(bipsync)
    begun = browser.get("/research/", secure=True)["Location"]
    browser.open(bipsync.approve(begun))
    assert BipsyncToken.objects.get().scopes == WIDE
    browser = signed_in(bipsync)
    response = browser.get("/research/", secure=True)
    assert (response.status_code, BipsyncToken.objects.get().scopes) == (200, WIDE)
