"""The trips of a session that have come back a moment ago, so that nothing sends people in circles.

A page that sends a person to Bipsync at each visit would do so for ever, if what it needs is not
to be got there. The session notes each trip for a minute, and a page that asks again so soon is
answered with words.
"""

import time
from collections.abc import Iterable
from typing import Any

from django.http import HttpRequest

from . import flow
from .conf import Tenant

__all__ = ["count_arrivals", "forget_trips", "note_return", "was_asked_just_now"]

_KEY = "_bipsync_returns"
# How long a trip counts as just made, in seconds: the redirect back to the page takes one or two.
_JUST_NOW = 60
_MAX_NOTES = 5


def note_return(request: HttpRequest, trip: flow.Trip, destination: str) -> None:
    """Note in the session that ``trip`` has come back, and that it goes on to ``destination``."""
    notes = [*_notes(request), [time.time(), trip.purpose, trip.tenant, list(trip.scopes)]]
    notes[-1].append(destination)
    request.session[_KEY] = notes[-_MAX_NOTES:]


def count_arrivals(request: HttpRequest, destination: str) -> int:
    """Return how many trips of the last minute have led this person to ``destination``."""
    return sum(note[4] == destination for note in _notes(request))


def was_asked_just_now(request: HttpRequest, tenant: Tenant, scopes: Iterable[str]) -> bool:
    """Return whether a page has just sent this person to ``tenant`` for ``scopes``."""
    return any(
        purpose == flow.STEP_UP and slug == tenant.slug and set(asked).issuperset(scopes)
        for _, purpose, slug, asked, _ in _notes(request)
    )


def forget_trips(request: HttpRequest) -> None:
    """Let the next visit ask again: the page that is shown now has a link for that."""
    request.session.pop(_KEY, None)


def _notes(request: HttpRequest) -> list[Any]:
    now = time.time()
    return [note for note in request.session.get(_KEY, ()) if 0 <= now - note[0] < _JUST_NOW]
