"""The portal's pages. What they show comes from Bipsync's API, asked for the person who looks."""

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any

import requests
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.timesince import timesince, timeuntil

from bipsync_django.api import api_session
from bipsync_django.decorators import bipsync_token_required
from bipsync_django.exceptions import BipsyncError, SignInRequired, Unauthorized
from bipsync_django.models import BipsyncToken

__all__ = ["front", "profile", "projects", "research"]

SCOPES = {
    "users:read": "See who works here",
    "research:read": "Read research notes",
}
"""What a person allows the portal to do, in the portal's words."""

MORE_SCOPES = {"projects:read": "See investment projects"}
"""What is asked for when somebody opens a page that needs it, and not before."""

NOTES = """
query Notes($filter: ResearchFilter, $first: Int) {
  research(filter: $filter, first: $first) {
    edges { node { id title company author date rating } }
  }
}
"""

PROJECTS = """
query Projects($first: Int) { projects(first: $first) { edges { node { id name stage } } } }
"""

Person = AbstractBaseUser | AnonymousUser


class Unanswered(Exception):
    """Bipsync gave no answer for this person now. ``sign_in`` says whether signing in helps."""

    def __init__(self, *, sign_in: bool) -> None:
        super().__init__("sign in again" if sign_in else "try again later")
        self.sign_in = sign_in


@login_not_required
def front(request: HttpRequest) -> HttpResponse:
    """The landing page for visitors, and home for people who are signed in."""
    if not request.user.is_authenticated:
        return render(request, "portal/welcome.html", {"scopes": SCOPES.values()})
    context: dict[str, Any] = {"connection": _connection(request.user)}
    try:
        name = _ask(request.user, "GET", "/v1/users/me")["name"]
        context["notes"] = _notes(request.user, only={"author": {"equals": name}}, first=3)
    except Unanswered as problem:
        context["problem"] = problem
    except BipsyncError as error:
        # People who are not connected may see this page too, so it is not decorated.
        context["problem"] = Unanswered(sign_in=isinstance(error, SignInRequired | Unauthorized))
    return render(request, "portal/home.html", context)


@bipsync_token_required(scopes=["research:read"])
def research(request: HttpRequest) -> HttpResponse:
    """Every note that this person may read, the latest first."""
    context: dict[str, Any] = {}
    try:
        context["notes"] = _notes(request.user)
    except Unanswered as problem:
        context["problem"] = problem
    return render(request, "portal/research.html", context)


@bipsync_token_required(scopes=["projects:read"])
def projects(request: HttpRequest) -> HttpResponse:
    """The firm's projects. Whoever opens this for the first time is asked for permission."""
    context: dict[str, Any] = {}
    try:
        answer = _ask(request.user, "POST", "/v1/graphql", json=_query(PROJECTS, first=50))
        context["projects"] = [edge["node"] for edge in answer["data"]["projects"]["edges"]]
    except Unanswered as problem:
        context["problem"] = problem
    return render(request, "portal/projects.html", context)


@bipsync_token_required
def profile(request: HttpRequest) -> HttpResponse:
    """What Bipsync says about this person."""
    context: dict[str, Any] = {"connection": _connection(request.user)}
    try:
        context["me"] = _ask(request.user, "GET", "/v1/users/me")
    except Unanswered as problem:
        context["problem"] = problem
    return render(request, "portal/profile.html", context)


def _ask(person: Person, method: str, path: str, **kwargs: Any) -> Any:
    """Return Bipsync's answer to ``person``. Raises ``Unanswered``, and what ``api_session`` does.

    The decorator of a page turns the latter into a trip to Bipsync, or into a page that explains.
    """
    try:
        with api_session(person) as session:
            response = session.request(method, path, **kwargs)
            response.raise_for_status()
            return response.json()
    except requests.HTTPError as error:
        # 401 also means that the permission was withdrawn at Bipsync, or never covered this.
        raise Unanswered(sign_in=error.response.status_code == 401) from error
    except requests.RequestException as error:
        raise Unanswered(sign_in=False) from error


def _notes(
    person: Person, *, only: Mapping[str, Any] | None = None, first: int = 50
) -> list[dict[str, Any]]:
    query = _query(NOTES, filter=only or {}, first=first)
    answer = _ask(person, "POST", "/v1/graphql", json=query)
    notes = [edge["node"] for edge in answer["data"]["research"]["edges"]]
    notes.sort(key=lambda note: note["date"], reverse=True)
    return [{**note, "date": date.fromisoformat(note["date"])} for note in notes]


def _query(text: str, **variables: Any) -> dict[str, Any]:
    return {"query": text, "variables": variables}


def _connection(person: Person) -> dict[str, Any] | None:
    if not person.is_authenticated:
        return None
    token = BipsyncToken.objects.filter(kind=BipsyncToken.Kind.PERSON, user_id=person.pk).first()
    if token is None:
        return None
    words = SCOPES | MORE_SCOPES
    return {
        "works": token.status == BipsyncToken.Status.ACTIVE,
        "since": token.created_at,
        "renewed": token.obtained_at and _in_words(token.obtained_at),
        "next": token.next_refresh_at and _in_words(token.next_refresh_at),
        "scopes": [words.get(scope, scope) for scope in token.scopes.split()],
    }


def _in_words(moment: datetime) -> str:
    now = timezone.now()
    if abs(moment - now) < timedelta(minutes=1):
        return "less than a minute ago" if moment < now else "in less than a minute"
    if moment < now:
        return f"{timesince(moment, now, depth=1)} ago"
    return f"in about {timeuntil(moment, now, depth=1)}"
