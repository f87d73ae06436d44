"""How often sign-ins may begin and fail: for each browser, and generously for each tenant.

Never for each address: an office has one. A browser carries its own count, which is there for
loops and impatience; who throws the cookie away meets the count of the tenant, which is kept in
the cache. That one counts sign-ins that Bipsync did not confirm and no others: however many
people arrive at nine o'clock, they do not use it up.
"""

import logging
import math
import time

from django.core import signing
from django.core.cache import cache
from django.http import HttpRequest, HttpResponseBase

from .caching import despite_errors
from .conf import Tenant
from .exceptions import SignInRefused

__all__ = [
    "MOST_IN_A_BROWSER",
    "MOST_UNCONFIRMED",
    "PERIOD",
    "count_start",
    "count_unconfirmed",
    "expect_room",
    "is_known",
    "remember",
]

logger = logging.getLogger(__name__)

# In seconds, for both.
PERIOD = 60
MOST_IN_A_BROWSER = 30
MOST_UNCONFIRMED = 300

_COOKIE = "bipsync_pace"
_KNOWN = "bipsync_known"
_KNOWN_FOR = 365 * 86_400
_SALT = "bipsync_django.limits"
_SALT_OF_KNOWN = "bipsync_django.limits.known"


def count_start(request: HttpRequest, response: HttpResponseBase, *, secure: bool) -> None:
    """Count a trip that this browser begins, in a cookie that ``response`` sets.

    ``secure`` says whether the browser speaks https. Raises ``SignInRefused`` when there were too
    many within a minute.
    """
    name = f"__Host-{_COOKIE}" if secure else _COOKIE
    now = time.time()
    starts = [
        start for start in _starts(request.COOKIES.get(name, "")) if 0 <= now - start < PERIOD
    ]
    if len(starts) >= MOST_IN_A_BROWSER:
        raise SignInRefused(
            "too_many", f"The browser began {len(starts)} sign-ins within {PERIOD} seconds."
        )
    response.set_cookie(
        name,
        signing.dumps([*starts, int(now)], salt=_SALT, compress=True),
        max_age=PERIOD,
        path="/",
        secure=secure,
        httponly=True,
        samesite="Lax",
    )


def remember(response: HttpResponseBase, *, secure: bool) -> None:
    """Let the browser say from now on that somebody has signed in with it, and nothing else."""
    response.set_cookie(
        _name_of_known(secure=secure),
        signing.dumps(1, salt=_SALT_OF_KNOWN),
        max_age=_KNOWN_FOR,
        path="/",
        secure=secure,
        httponly=True,
        samesite="Lax",
    )


def is_known(request: HttpRequest, *, secure: bool) -> bool:
    """Return whether somebody has signed in with this browser within a year."""
    cookie = request.COOKIES.get(_name_of_known(secure=secure), "")
    try:
        return bool(signing.loads(cookie, salt=_SALT_OF_KNOWN, max_age=_KNOWN_FOR))
    except signing.BadSignature:
        return False


def expect_room(tenant: Tenant, *, known: bool) -> None:
    """Raise ``SignInRefused`` while ``tenant`` has had too many unconfirmed sign-ins.

    ``known`` is what ``is_known`` says of the browser.
    """
    key = _key(tenant, known=known)
    count = despite_errors(lambda: cache.get(key, 0), 0, "sign-ins are not limited")
    if isinstance(count, int) and count >= MOST_UNCONFIRMED:
        raise SignInRefused(
            "too_many",
            f"Bipsync did not confirm {count} sign-ins at {tenant.slug} within {PERIOD} seconds. "
            "No more are tried until the minute is over.",
        )


def count_unconfirmed(tenant: Tenant, *, known: bool) -> None:
    """Count a sign-in at ``tenant`` for which Bipsync was asked in vain."""
    key = _key(tenant, known=known)
    count = despite_errors(lambda: _raise(key), 0, "a sign-in is not counted")
    if count == MOST_UNCONFIRMED:
        logger.error(
            "Bipsync did not confirm %s sign-ins at %s within a minute. Until it is over, people "
            "who have %s signed in here are turned away.",
            count,
            tenant.slug,
            "already" if known else "never",
        )


def _raise(key: str) -> int:
    try:
        return 1 if cache.add(key, 1, timeout=2 * PERIOD) else cache.incr(key)
    except ValueError:  # it ran out between the two
        return 0


def _key(tenant: Tenant, *, known: bool) -> str:
    """Each minute has a key of its own, so that nobody has to take anything back."""
    minute = math.floor(time.time() / PERIOD)
    return f"bipsync_django.unconfirmed:{tenant.slug}:{'known' if known else 'new'}:{minute}"


def _name_of_known(*, secure: bool) -> str:
    return f"__Host-{_KNOWN}" if secure else _KNOWN


def _starts(cookie: str) -> list[int]:
    try:
        starts = signing.loads(cookie, salt=_SALT)
    except signing.BadSignature:
        return []
    return [start for start in starts if isinstance(start, int)]
