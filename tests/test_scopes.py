"""What was granted is what the token says; and what was granted is not lost to a sign-in."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from bipsync_django import breaker, lifecycle, policy
from bipsync_django.models import BipsyncToken, TokenEvent
from bipsync_django.testing import Answer, DropAfter, Html, SimulatedBipsync
from tests.browser import Browser, signed_in
from tests.grants import expire, refresh_token_of, reload

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


def hold_back(settings: Any) -> None:
    breaker.open_for("acme", "outage")


def let_wait(settings: Any) -> None:
    later = timezone.now() + timedelta(minutes=10)
    BipsyncToken.objects.update(next_attempt_at=later, last_error="server_error", attempt=3)


def switch_off(settings: Any) -> None:
    configure(settings, REFRESH_ENABLED=False)


@pytest.mark.parametrize("keep", [hold_back, let_wait, switch_off])
def test_what_cannot_be_asked_about_gives_way_to_what_is_alive(
    wide: BipsyncToken, bipsync: SimulatedBipsync, settings: Any, keep: Callable[[Any], None]
) -> None:
    """The person may have withdrawn it, and a pair in hand is known to be alive."""
    BipsyncToken.objects.update(obtained_at="2020-01-01T00:00Z")
    bipsync.withdraw(ADA)
    browser = Browser()
    callback = bipsync.approve(browser.begin())
    keep(settings)
    assert browser.open(callback).status_code == 302
    token = BipsyncToken.objects.get()
    assert (token.status, token.scopes) == (Status.ACTIVE, "users:read")
    assert bipsync.is_alive(refresh_token_of(token))
    assert bipsync.calls["refresh"] == 0


def test_what_died_a_moment_after_its_refresh_is_not_kept(
    wide: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    assert policy.is_recent(wide)
    bipsync.withdraw(ADA)
    signed_in(bipsync)
    token = BipsyncToken.objects.get()
    assert (token.status, token.scopes) == (Status.ACTIVE, "users:read")
    assert bipsync.is_alive(refresh_token_of(token))


# --- who says what was granted


def answered(bipsync: SimulatedBipsync, claims: dict[str, Any], **more: Any) -> Answer:
    """An answer of the token endpoint whose access token has ``claims`` beside the usual ones."""
    said = {**bipsync.access_token_claims(ADA), **claims}
    token = bipsync.sign({name: value for name, value in said.items() if value is not None})
    pair = {"token_type": "Bearer", "expires_in": 3600, "refresh_token": "r" * 40}
    return Answer(200, {**pair, "access_token": token, **more})


SAID = {
    "a list in the token": ({"scopes": ["users:read"]}, {}, "users:read", True),
    "a text in the token": ({"scopes": "users:read"}, {}, "users:read", True),
    "RFC 9068": ({"scopes": None, "scope": "users:read"}, {}, "users:read", True),
    "the answer": ({"scopes": None}, {"scope": "users:read"}, "users:read", True),
    "the answer, as a list": ({"scopes": None}, {"scope": ["users:read"]}, "users:read", True),
    "the token before the answer": (
        {"scopes": ["users:read"]},
        {"scope": WIDE},
        "users:read",
        True,
    ),
    "nothing was granted": ({"scopes": []}, {"scope": WIDE}, "", True),
    "nobody says": ({"scopes": None}, {}, WIDE, False),
    "nonsense in the answer": ({"scopes": None}, {"scope": 7}, WIDE, False),
}


@pytest.mark.parametrize(("claims", "more", "scopes", "is_known"), SAID.values(), ids=SAID)
def test_what_the_person_refused_is_not_recorded_as_granted(
    bipsync: SimulatedBipsync,
    settings: Any,
    claims: dict[str, Any],
    more: dict[str, Any],
    scopes: str,
    is_known: bool,
) -> None:
    configure(settings, SCOPES=WIDE.split())
    browser = Browser()
    begun = browser.begin()
    bipsync.fail("token", answered(bipsync, claims, **more))
    assert browser.open(bipsync.approve(begun)).status_code == 302
    token = BipsyncToken.objects.get()
    assert (token.scopes, token.scopes_are_known) == (scopes, is_known)


def test_a_refresh_says_it_too(wide: BipsyncToken, bipsync: SimulatedBipsync) -> None:
    bipsync.fail("token", answered(bipsync, {"scopes": None}, scope="users:read"))
    lifecycle.refresh(expire(wide), force=True)
    assert reload(wide).scopes == "users:read"
    bipsync.fail("token", answered(bipsync, {"scopes": None}))
    lifecycle.refresh(expire(reload(wide)), force=True)
    assert reload(wide).scopes == "users:read", "an answer that is silent changes nothing"


def test_where_nobody_says_a_page_asks_once_for_what_the_api_refuses(
    bipsync: SimulatedBipsync,
) -> None:
    browser = Browser()
    silent = {"scopes": None}
    begun = browser.get("/research/", secure=True)["Location"]
    bipsync.fail("token", answered(bipsync, silent))
    assert browser.open(bipsync.approve(begun)).status_code == 302
    # A minute later the API refuses the call.
    session = browser.session
    del session["_bipsync_returns"]
    session.save()
    bipsync.fail("api", Answer(401), times=None)
    asked = browser.get("/research/", secure=True)["Location"]
    assert "research%3Aread" in asked
    bipsync.fail("token", answered(bipsync, silent, refresh_token="s" * 40))
    assert browser.open(bipsync.approve(asked)).status_code == 302
    assert refresh_token_of(BipsyncToken.objects.get()) == "s" * 40
    refused = browser.get("/research/", secure=True)
    assert (refused.status_code, refused.context["reason"]) == (502, "not_permitted")


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
