"""What a browser may confirm: a Bipsync account that waits to be joined to who is signed in.

It is remembered in a signed cookie, one for each, as trips are: tabs cannot overwrite each other,
and signing in again in between loses nothing. The cookie names the person and the very pair.
"""

import secrets
import time
from dataclasses import asdict, dataclass

from django.core import signing
from django.http import HttpRequest, HttpResponseBase

from .flow import is_https
from .lifecycle import CONFIRMED_WITHIN

__all__ = ["Waiting", "find", "forget", "new_reference", "remember"]

_COOKIE = "bipsync_confirm_"
_SALT = "bipsync_django.confirmation"
_LIFETIME = int(CONFIRMED_WITHIN.total_seconds())
_MOST_AT_ONCE = 3


@dataclass(frozen=True)
class Waiting:
    """Which pair waits, for whom, and where the person was going.

    ``row`` is the primary key of the token row, and ``generation`` that of the pair that it held.
    ``user`` is the person's primary key as text, and ``started`` is a Unix time.
    """

    row: int
    generation: int
    user: str
    next: str
    started: float


def remember(
    request: HttpRequest,
    response: HttpResponseBase,
    reference: str,
    *,
    row: int,
    generation: int,
    user: str,
    next_url: str,
) -> None:
    """Let this browser confirm the pair ``generation`` of ``row``, under ``reference``.

    ``row`` is the primary key of the token row, and ``user``, as text, that of the only person
    who may. The oldest make room.
    """
    waiting = Waiting(row, generation, user, next_url, time.time())
    prefix = _name(request, "")
    begun = []
    for name in request.COOKIES:
        if name.startswith(prefix):
            other = find(request, name.removeprefix(prefix))
            begun.append((other.started if other else 0.0, name))
    for _, name in sorted(begun, reverse=True)[_MOST_AT_ONCE - 1 :]:
        response.delete_cookie(name, samesite="Lax")
    response.set_cookie(
        _name(request, reference),
        signing.dumps(asdict(waiting), salt=_SALT, compress=True),
        max_age=_LIFETIME,
        path="/",
        secure=is_https(request),
        httponly=True,
        samesite="Lax",
    )


def new_reference() -> str:
    """Return a name for one confirmation, good for an address."""
    return secrets.token_urlsafe(9)


def find(request: HttpRequest, reference: str) -> Waiting | None:
    """Return what this browser may confirm under ``reference``, for an hour at most."""
    try:
        stored = signing.loads(
            request.COOKIES.get(_name(request, reference), ""), salt=_SALT, max_age=_LIFETIME
        )
        return Waiting(**stored)
    except (signing.BadSignature, TypeError):
        # TypeError: signed by another version of this package.
        return None


def forget(request: HttpRequest, response: HttpResponseBase, reference: str) -> None:
    """Take the cookie of ``reference`` back."""
    response.delete_cookie(_name(request, reference), samesite="Lax")


def _name(request: HttpRequest, reference: str) -> str:
    return ("__Host-" if is_https(request) else "") + _COOKIE + reference
