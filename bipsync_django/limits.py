"""How often sign-ins may begin and fail: for each browser, each person, and each tenant.

Never for each address: an office has one. A browser carries its own count, which is there for
loops and impatience. The sign-ins that Bipsync does not confirm are counted in the cache: those
of a browser in which a person has signed in before against that person, all others against the
tenant. However many people arrive at nine o'clock, they use nothing up.
"""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from django.contrib.auth.models import AbstractBaseUser
from django.core import signing
from django.core.cache import cache
from django.http import HttpRequest, HttpResponseBase
from django.utils.crypto import salted_hmac

from .caching import despite_errors
from .conf import Tenant
from .exceptions import SignInRefused, TokenEndpointError

__all__ = [
    "MOST_IN_A_BROWSER",
    "MOST_UNCONFIRMED",
    "MOST_UNCONFIRMED_OF_A_PERSON",
    "PERIOD",
    "count_start",
    "known_person",
    "place",
    "remember",
]

logger = logging.getLogger(__name__)

# In seconds, for all of them.
PERIOD = 60
MOST_IN_A_BROWSER = 30
# Above the number of sign-ins that a site's servers carry out at the same moment, each of which
# has a place until Bipsync answers.
MOST_UNCONFIRMED = 600
MOST_UNCONFIRMED_OF_A_PERSON = 30

_COOKIE = "bipsync_pace"
_KNOWN = "bipsync_known"
_KNOWN_FOR = 365 * 86_400
_DIGITS = 32
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


def remember(response: HttpResponseBase, user: AbstractBaseUser, *, secure: bool) -> None:
    """Let the browser say from now on that ``user`` has signed in with it, without naming them."""
    person = salted_hmac(_SALT_OF_KNOWN, str(user.pk), algorithm="sha256").hexdigest()
    response.set_cookie(
        _name_of_known(secure=secure),
        signing.dumps(person[:_DIGITS], salt=_SALT_OF_KNOWN),
        max_age=_KNOWN_FOR,
        path="/",
        secure=secure,
        httponly=True,
        samesite="Lax",
    )


def known_person(request: HttpRequest, *, secure: bool) -> str | None:
    """Return a pseudonym of the last person who signed in with this browser within a year."""
    cookie = request.COOKIES.get(_name_of_known(secure=secure), "")
    try:
        person = signing.loads(cookie, salt=_SALT_OF_KNOWN, max_age=_KNOWN_FOR)
    except signing.BadSignature:
        return None
    return person if isinstance(person, str) else None


@contextmanager
def place(tenant: Tenant, person: str | None) -> Iterator[None]:
    """Hold one of the places for sign-ins at ``tenant`` while Bipsync is asked to confirm one.

    It is given back unless the block raises ``TokenEndpointError``: then it stays taken until the
    minute is over. Taken before the call, so that many at once cannot pass the bound. ``person``
    is what ``known_person`` says of the browser; it has places of its own.

    Raises ``SignInRefused`` when there is none left. A cache that fails limits nobody.
    """
    key = _key(tenant, person)
    most = MOST_UNCONFIRMED if person is None else MOST_UNCONFIRMED_OF_A_PERSON
    taken = despite_errors(lambda: _take(key), 0, "sign-ins are not limited")
    if taken > most:
        _give_back(key)
        _report(tenant, person, key, most)
        raise SignInRefused(
            "too_many",
            f"Bipsync did not confirm {most} sign-ins of {_whose(person)} at {tenant.slug} within "
            f"{PERIOD} seconds. No more are tried until the minute is over.",
        )
    try:
        yield
    except TokenEndpointError:
        raise
    except BaseException:
        _give_back(key, taken)
        raise
    _give_back(key, taken)


def _take(key: str) -> int:
    """Return how many places are taken, with this one; 0 for a cache that forgets at once."""
    cache.add(key, 0, timeout=2 * PERIOD)
    try:
        return cache.incr(key)
    except ValueError:
        return 0


def _give_back(key: str, taken: int = 1) -> None:
    if taken:
        despite_errors(lambda: _put_back(key), None, "a place for a sign-in is not given back")


def _put_back(key: str) -> None:
    # ValueError: the cache has dropped the count, with this place in it.
    with suppress(ValueError):
        cache.decr(key)


def _report(tenant: Tenant, person: str | None, key: str, most: int) -> None:
    """Log that a bound was reached, once for each minute."""
    told = f"{key}:told"
    if not despite_errors(lambda: cache.add(told, 1, timeout=2 * PERIOD), True, "said once more"):
        return
    logger.log(
        logging.ERROR if person is None else logging.WARNING,
        "Bipsync did not confirm %s sign-ins of %s at %s within a minute. Until it is over, no "
        "more of these are tried.",
        most,
        _whose(person),
        tenant.slug,
    )


def _whose(person: str | None) -> str:
    return "one person" if person is not None else "people who have never signed in here"


def _key(tenant: Tenant, person: str | None) -> str:
    """Each minute has a key of its own, so that no count has to be reset."""
    minute = math.floor(time.time() / PERIOD)
    return f"bipsync_django.unconfirmed:{tenant.slug}:{person or 'new'}:{minute}"


def _name_of_known(*, secure: bool) -> str:
    return f"__Host-{_KNOWN}" if secure else _KNOWN


def _starts(cookie: str) -> list[int]:
    try:
        starts = signing.loads(cookie, salt=_SALT)
    except signing.BadSignature:
        return []
    return [start for start in starts if isinstance(start, int)]
