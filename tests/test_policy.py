"""When a grant is due, and how long to wait."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from bipsync_django import policy
from bipsync_django.models import BipsyncToken

HOUR = timedelta(hours=1)


def with_policy(settings: Any, **keys: object) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, **keys}


def obtained(ago: timedelta, lifetime: timedelta = HOUR) -> BipsyncToken:
    at = timezone.now() - ago
    return BipsyncToken(obtained_at=at, access_expires_at=at + lifetime)


def test_a_morning_of_sign_ins_is_spread_and_due_when_its_time_comes(settings: Any) -> None:
    with_policy(settings, REFRESH_AHEAD=600)
    now = timezone.now()
    moments = {policy.next_refresh(now, HOUR) for _ in range(200)}
    assert len(moments) == 200
    early, late = min(filter(None, moments)), max(filter(None, moments))
    assert now + HOUR - timedelta(seconds=600) <= early
    assert late <= now + HOUR - timedelta(seconds=300)
    assert late - early > timedelta(seconds=240)
    # Whatever was drawn: at that moment the row is due.
    assert policy.is_due_in_background(obtained(early - now))


def test_a_short_lived_token_is_not_refreshed_all_the_time(settings: Any) -> None:
    with_policy(settings, REFRESH_AHEAD=86_400)
    now = timezone.now()
    lifetime = timedelta(minutes=4)
    for _ in range(50):
        at = policy.next_refresh(now, lifetime)
        assert at is not None
        assert at >= now + timedelta(minutes=3)
    assert not policy.is_due_in_background(obtained(timedelta(minutes=2), lifetime))
    at = policy.next_refresh(now, timedelta(seconds=8))
    assert at is not None
    assert at >= now + policy.RECENT


def test_on_demand_only_the_keep_alive_asks_for_a_refresh(settings: Any) -> None:
    week = 7 * 86_400
    with_policy(settings, REFRESH_AHEAD=None, KEEP_ALIVE=week)
    assert not policy.is_due_in_background(obtained(timedelta(days=2)))
    assert policy.is_due_in_background(obtained(timedelta(days=7)))
    now = timezone.now()
    for _ in range(50):
        at = policy.next_refresh(now, HOUR)
        assert at is not None
        assert timedelta(seconds=week * 0.9) <= at - now <= timedelta(seconds=week)
        assert policy.is_due_in_background(obtained(at - now))


def test_without_a_keep_alive_nothing_is_due_in_the_background(settings: Any) -> None:
    with_policy(settings, REFRESH_AHEAD=None, KEEP_ALIVE=None)
    assert policy.next_refresh(timezone.now(), HOUR) is None
    assert not policy.is_due_in_background(obtained(timedelta(days=300)))
    assert policy.is_due(obtained(HOUR), 60)


def test_a_row_that_never_had_a_pair_is_due(settings: Any) -> None:
    for ahead in (600, None):
        with_policy(settings, REFRESH_AHEAD=ahead)
        assert policy.is_due_in_background(BipsyncToken())


def test_a_recent_pair_is_never_due() -> None:
    assert not policy.is_due(obtained(timedelta(seconds=20), timedelta(seconds=10)), 60)
    assert policy.is_due(obtained(timedelta(seconds=31), timedelta(seconds=10)), 60)
    # A clock that was set back must not make a pair recent for years.
    assert not policy.is_recent(obtained(timedelta(hours=-1)))


@pytest.mark.parametrize(
    ("failures", "retry_after", "seconds"),
    [
        (0, None, 15),
        (1, None, 30),
        (5, None, 480),
        (6, None, 900),
        (10_000, None, 900),
        (0, 120.0, 120),
        (6, 120.0, 900),
        (0, 86_400.0, 3600),
        (0, 0.0, 15),
    ],
)
def test_pauses_grow_to_a_bound_and_differ(
    failures: int, retry_after: float | None, seconds: float
) -> None:
    pauses = {policy.pause_after(failures, retry_after).total_seconds() for _ in range(50)}
    assert min(pauses) >= seconds
    assert max(pauses) <= seconds * 1.25
    assert len(pauses) == 50
