"""The trips of a session that have come back a moment ago, so that nothing sends people in circles.

A page that sends a person to Bipsync at each visit would do so for ever, if what it needs is not
to be got there. The session notes each trip for a minute, and a page that asks again so soon is
answered with words.
"""

import hashlib
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from django.contrib.sessions.backends.base import SessionBase
from django.http import HttpRequest

from . import flow, sessions
from .conf import Tenant

__all__ = [
    "count_arrivals",
    "find_destination",
    "forget_trips",
    "note_detour",
    "note_return",
    "was_asked_just_now",
]

_KEY = "_bipsync_returns"
# How long a trip counts as just made, in seconds: the redirect back to the page takes one or two.
_JUST_NOW = 60
_MAX_NOTES = 5


class _Note(NamedTuple):
    """One trip: when it came back (Unix time), what it was for, and where it led."""

    at: float
    purpose: str
    tenant: str
    scopes: Sequence[str]
    destination: str
    state: str
    """The digest of the trip's state, which is spent."""


def note_return(request: HttpRequest, trip: flow.Trip, destination: str) -> None:
    """Note in the session that ``trip`` has come back, and that it goes on to ``destination``."""
    note = _Note(
        time.time(), trip.purpose, trip.tenant, trip.scopes, destination, _digest(trip.state)
    )
    request.session[_KEY] = [*_notes(request), note][-_MAX_NOTES:]


def note_detour(request: HttpRequest, destination: str) -> None:
    """Note that a person was sent on to ``destination`` without a trip: they had just made one."""
    note = _Note(time.time(), "", "", (), destination, "")
    request.session[_KEY] = [*_notes(request), note][-_MAX_NOTES:]


def find_destination(request: HttpRequest, state: str) -> str | None:
    """Return where the trip with ``state`` led this browser within the last minute, or ``None``.

    Browsers and proxies repeat a request whose answer got lost on the way.
    """
    digest = _digest(state)
    found = (note.destination for note in _notes(request) if note.state == digest)
    return next(found, None)


def count_arrivals(request: HttpRequest, destination: str) -> int:
    """Return how often this person was sent to ``destination`` within the last minute."""
    return sum(note.destination == destination for note in _notes(request))


def was_asked_just_now(request: HttpRequest, tenant: Tenant, scopes: Iterable[str]) -> bool:
    """Return whether a page has just sent this person to ``tenant`` for ``scopes``."""
    return any(
        note.purpose == flow.STEP_UP
        and note.tenant == tenant.slug
        and set(note.scopes).issuperset(scopes)
        for note in _notes(request)
    )


def forget_trips(request: HttpRequest) -> None:
    """Let the next visit ask again: the page that is shown now has a link for that."""
    _session(request).pop(_KEY, None)


def _session(request: HttpRequest) -> SessionBase:
    """Return the session of the person, also while it is put aside because it has lapsed."""
    lapsed = sessions.lapsed_of(request)
    return request.session if lapsed is None or lapsed.session is None else lapsed.session


def _notes(request: HttpRequest) -> list[_Note]:
    now = time.time()
    notes = [_Note(*note) for note in _session(request).get(_KEY, ())]
    return [note for note in notes if 0 <= now - note.at < _JUST_NOW]


def _digest(state: str) -> str:
    return hashlib.sha256(state.encode()).hexdigest()
