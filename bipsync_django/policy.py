"""When a grant is due, and how long to wait: arithmetic on a row and the settings, nothing else.

Background work is spread by chance, so that a morning's sign-ins do not come due in one second
and a thousand failed refreshes do not come back in one.
"""

import random
from datetime import datetime, timedelta

from django.utils import timezone

from .conf import get_settings
from .models import BipsyncToken

__all__ = ["is_due", "is_due_in_background", "is_recent", "next_refresh", "pause_after", "spread"]

RECENT = timedelta(seconds=30)
_FIRST_PAUSE = 15.0
_USUAL_PAUSE_AT_MOST = 900.0
_PAUSE_AT_MOST = 3600.0


def is_recent(row: BipsyncToken) -> bool:
    """Whether the pair is so young that nobody needs another one."""
    if row.obtained_at is None:
        return False
    return timedelta(0) <= timezone.now() - row.obtained_at < RECENT


def is_due(row: BipsyncToken, ahead: float) -> bool:
    """Whether the access token expires within ``ahead`` seconds.

    ``ahead`` counts for at most a quarter of the token's lifetime; a recent pair is never due.
    """
    if row.access_expires_at is None or row.obtained_at is None:
        return True
    lifetime = row.access_expires_at - row.obtained_at
    return timezone.now() >= row.access_expires_at - _ahead(ahead, lifetime) and not is_recent(row)


def is_due_in_background(row: BipsyncToken) -> bool:
    """Whether ``REFRESH_AHEAD``, or without it ``KEEP_ALIVE``, asks for a refresh now."""
    settings = get_settings()
    if settings.refresh_ahead is not None:
        return is_due(row, settings.refresh_ahead)
    if row.obtained_at is None:
        return True
    if settings.keep_alive is None:
        return False
    earliest = row.obtained_at + timedelta(seconds=settings.keep_alive * 0.9)
    return timezone.now() >= earliest and not is_recent(row)


def next_refresh(obtained_at: datetime, lifetime: timedelta) -> datetime | None:
    """Return when background work is to refresh a new pair, or ``None`` for never.

    ``is_due_in_background`` holds at that moment: ahead of the expiry by between half and all of
    ``REFRESH_AHEAD``, or after between nine tenths and all of ``KEEP_ALIVE``.
    """
    settings = get_settings()
    if settings.refresh_ahead is not None:
        ahead = _ahead(settings.refresh_ahead, lifetime)
        return max(obtained_at + lifetime - ahead + spread(ahead / 2), obtained_at + RECENT)
    if settings.keep_alive is not None:
        keep_alive = timedelta(seconds=settings.keep_alive)
        return obtained_at + keep_alive * 0.9 + spread(keep_alive * 0.1)
    return None


def pause_after(failures: int, retry_after: float | None = None) -> timedelta:
    """Return how long to leave a row alone after it has failed ``failures`` times before.

    15 seconds, doubling to 15 minutes; or ``retry_after`` (the provider's wish, seconds) if that
    is longer, up to an hour. Up to a quarter is added by chance.
    """
    pause = min(_FIRST_PAUSE * 2 ** min(failures, 10), _USUAL_PAUSE_AT_MOST)
    if retry_after is not None:
        pause = min(max(retry_after, pause), _PAUSE_AT_MOST)
    return timedelta(seconds=pause) + spread(timedelta(seconds=pause / 4))


def spread(most: timedelta) -> timedelta:
    """Return a random duration from nothing to ``most``."""
    return most * random.random()  # noqa: S311 - not a secret


def _ahead(seconds: float, lifetime: timedelta) -> timedelta:
    return min(timedelta(seconds=seconds), lifetime / 4)
