"""Which grant a session depends on, and what becomes of the session when that grant ends.

``CallbackView`` binds the session of each person who signs in to the token row of the sign-in.
A session that somebody else's code began with our backend, such as an impersonation package that
hands a person back, is bound to the rows of its user.
"""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import IntEnum
from functools import partial
from typing import Any

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.auth.middleware import auser
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.contrib.sessions.backends.base import SessionBase
from django.core import signing
from django.core.cache import cache
from django.db import Error, models
from django.dispatch import receiver
from django.http import HttpRequest
from django.utils import timezone

from .backends import is_bipsync_backend, site_backend
from .caching import despite_errors
from .conf import get_settings
from .durable import database
from .models import BipsyncToken

__all__ = [
    "Lapsed",
    "Verdict",
    "bind_to",
    "bring_back",
    "end_lapsed_session",
    "examine",
    "is_acting_as_another",
    "is_bound_to",
    "keep_forms_valid",
    "lapsed_of",
    "put_back",
    "was_of",
]

logger = logging.getLogger(__name__)

_KEY = "_bipsync_session"
_ENDED = "_bipsync_ended"
_LAPSED = "_bipsync_lapsed"
_BEGAN_IN = "_bipsync_began_in"
_SIGNED_IN_WITH = "_bipsync_signed_in_with"
_SALT = "bipsync_django.sessions"
_FAILED = "sessions are checked anew"

Status = BipsyncToken.Status


class Verdict(IntEnum):
    """What becomes of a session. Of several rows, the greatest counts."""

    OVER = 0
    """The session ends for good."""
    SIGN_IN = 1
    """The session waits until the person has signed in again."""
    GO_ON = 2


@dataclass(frozen=True)
class _Binding:
    """What a session depends on.

    ``token`` is the primary key of a token row, or ``None`` for all rows of the user. ``at`` is
    when the session began (Unix time), or ``None`` where nobody noted it. ``user`` is the primary
    key, as text, of the person whose grant counts: the impersonator, if somebody acts as another.
    """

    token: int | None
    at: float | None
    backend: str
    tenant: str
    user: str


@dataclass
class Lapsed:
    """A request whose session has lapsed; nobody is signed in for the rest of it.

    ``session`` is the session that waits for a sign-in, or ``None`` for one that is over.
    ``user`` is the primary key of its person, as text; ``token`` and ``tenant`` are those of the
    token row that it is bound to.
    """

    verdict: Verdict
    user: str
    token: int | None
    tenant: str
    session: SessionBase | None = None

    def end(self) -> None:
        """End the session that waits, for good."""
        if self.session is not None:
            self.session.flush()
            self.session = None


# --- beginning


def bind_to(request: HttpRequest, token: BipsyncToken) -> None:
    """Let the session that ``login()`` begins next depend on ``token``, the row of the sign-in."""
    setattr(request, _SIGNED_IN_WITH, token)


def is_bound_to(request: HttpRequest, token: BipsyncToken) -> bool:
    """Return whether this session ends with ``token``."""
    binding = _find_binding(request)
    return binding is not None and binding.token in {None, token.pk}


def is_acting_as_another(request: HttpRequest) -> bool:
    """Return whether one person acts as another in this request (impersonation)."""
    if _impersonator(request) is not None:
        return True
    # Some packages leave the session as it is, and replace the user of each request.
    user = request.user
    return isinstance(user, models.Model) and _text(user) != request.session.get(SESSION_KEY)


@receiver(user_logged_in)
def _bind(*, request: Any, user: Any, **kwargs: object) -> None:
    """Bind the session that begins, whatever code called ``login()``."""
    if getattr(request, "session", None) is None:
        return
    lapsed = lapsed_of(request)
    if lapsed is not None and lapsed.session is not None:
        _replace(request, lapsed, user)
    before: _Binding | None = getattr(request, _BEGAN_IN, None)
    if before is not None:
        # To act as another, or to come back from that: what the session before depends on counts.
        request.session[_BEGAN_IN] = asdict(before)
    backend = request.session.get(BACKEND_SESSION_KEY, "")
    if not is_bipsync_backend(backend):
        return
    token: BipsyncToken | None = getattr(request, _SIGNED_IN_WITH, None)
    if token is None and before is not None and before.user == _text(user):
        request.session[_KEY] = _stored(before.token, before.at, backend, before.tenant)
        return
    if token is not None and token.signed_in_at is not None:
        # The row's own time, so that ``sessions_valid_after`` ends everything that signed in
        # before it, however long the answer to the browser took.
        at = token.signed_in_at.timestamp()
    else:
        at = timezone.now().timestamp()
        token = _latest_row(user)
    pk, tenant = (None, "") if token is None else (token.pk, token.tenant)
    request.session[_KEY] = _stored(pk, at, backend, tenant)


def _stored(token: int | None, at: float | None, backend: str, tenant: str) -> dict[str, Any]:
    return {"token": token, "at": at, "backend": backend, "tenant": tenant}


def _latest_row(user: models.Model) -> BipsyncToken | None:
    rows = BipsyncToken.objects.using(database()).for_user(user)
    rows = rows.exclude(signed_in_at=None).order_by("-signed_in_at")
    try:
        return rows.defer("access_token", "refresh_token").first()
    except Error as error:
        logger.warning("A session is not bound to a grant (%s).", type(error).__name__)
        return None


# --- judging


def examine(request: HttpRequest, *, anew: bool = False) -> Lapsed | None:
    """Judge the session of ``request``, and let nobody be signed in if it has lapsed.

    A session that is over ends. A session that waits for a sign-in is put aside until
    ``put_back``, and the rest of the request sees a visitor's session. With ``anew`` the database
    is asked in any case, else the cache first. Returns ``None`` for a session that goes on.
    """
    lapsed = lapsed_of(request)
    if lapsed is not None:
        return lapsed
    binding = _find_binding(request)
    if binding is None:
        return None
    user_id = request.session[SESSION_KEY]
    verdict = _judge(binding, user_id, anew=anew)
    if verdict is Verdict.GO_ON:
        setattr(request, _BEGAN_IN, binding)
        return None
    if binding.user != user_id:
        # Nobody goes on acting as another: what is in the session is not the other person's.
        verdict = Verdict.OVER
    lapsed = Lapsed(verdict, user_id, binding.token, binding.tenant)
    if verdict is Verdict.OVER:
        logger.info("The session of user %s has ended with its grant.", user_id)
        _end_for_good(request)
    else:
        lapsed.session = request.session
        request.session = type(request.session)()
        request.user = AnonymousUser()
    # Whatever asks from here on asks the session that is there now.
    for name in ("_cached_user", "_acached_user"):
        request.__dict__.pop(name, None)
    request.auser = partial(auser, request)
    setattr(request, _LAPSED, lapsed)
    return lapsed


def _end_for_good(request: HttpRequest) -> None:
    """Do what ``logout()`` does, whatever its receivers do: other middleware has not run yet."""
    user = request.user
    request.session.flush()
    request.user = AnonymousUser()
    # The class of the user, and not that of Django's lazy object around it.
    user_logged_out.send_robust(sender=user.__class__, request=request, user=user)


def lapsed_of(request: HttpRequest) -> Lapsed | None:
    """Return what ``examine`` has found for this request."""
    return getattr(request, _LAPSED, None)


def _find_binding(request: HttpRequest) -> _Binding | None:
    session = request.session
    # Looking into the session would make every visitor's page vary by cookie.
    if session.session_key is None or SESSION_KEY not in session:
        return None
    impersonator = _impersonator(request)
    began_in = session.get(_BEGAN_IN)
    if impersonator is not None and began_in is not None and began_in["user"] == impersonator:
        return _Binding(**began_in)
    backend = session.get(BACKEND_SESSION_KEY, "")
    stored = session.get(_KEY)
    if stored is not None and stored["backend"] != backend:
        # The person signed in again, by other means, and does not depend on what was before.
        stored = None
    if stored is None and not is_bipsync_backend(backend):
        return None
    at = None if stored is None else stored["at"]
    if impersonator is not None:
        return _Binding(None, at, backend, "", impersonator)
    if stored is None:
        return _Binding(None, None, backend, "", session[SESSION_KEY])
    return _Binding(stored["token"], at, backend, stored["tenant"], session[SESSION_KEY])


def _impersonator(request: HttpRequest) -> str | None:
    backend = site_backend()
    return None if backend is None else backend().impersonator(request)


def _judge(binding: _Binding, user_id: str, *, anew: bool) -> Verdict:
    ours = get_settings()
    interval = ours.session_check_interval
    # The whole binding and whose session it is: one session's pass is no other's. The tenants too:
    # no pass is good for a session of a tenant that was taken out of the settings since.
    named = [asdict(binding), user_id, *ours.tenants]
    subject = hashlib.sha256(json.dumps(named).encode()).hexdigest()
    if interval and not anew and _was_fine(subject, interval):
        return Verdict.GO_ON
    try:
        verdict = _look_up(binding)
    except Error as error:
        logger.warning(
            "A session could not be checked (%s); it goes on for now.", type(error).__name__
        )
        return Verdict.GO_ON
    if interval and verdict is Verdict.GO_ON:
        # Signed, as the keys are: a person who can write the cache must not keep a session alive.
        passed = signing.dumps(subject, salt=_SALT)
        despite_errors(lambda: cache.set(_name(subject), passed, interval), None, _FAILED)
    return verdict


def _was_fine(subject: str, interval: float) -> bool:
    passed = despite_errors(lambda: cache.get(_name(subject)), None, _FAILED)
    if passed is None:
        return False
    # The age is looked at again: the interval may have been made shorter since.
    max_age = timedelta(seconds=interval)
    try:
        return bool(signing.loads(passed, salt=_SALT, max_age=max_age) == subject)
    except (signing.BadSignature, TypeError, AttributeError):
        return False


def _name(subject: str) -> str:
    return f"bipsync_django.session.{subject}"


def _look_up(binding: _Binding) -> Verdict:
    # Where sign-ins are written: a replica may not have the row yet.
    tokens = BipsyncToken.objects.using(database()).select_related("user")
    tokens = tokens.defer("access_token", "refresh_token")
    if binding.token is not None:
        row = tokens.filter(pk=binding.token).first()
        is_the_same = row is not None and row.tenant == binding.tenant
        return _verdict(row, binding) if row is not None and is_the_same else Verdict.OVER
    user_pk = get_user_model()._meta.pk.to_python(binding.user)
    rows = tokens.filter(kind=BipsyncToken.Kind.PERSON, user_id=user_pk)
    # A user without any row, in a session that was begun with our backend by the site's own code,
    # depends on no grant; where nobody saw the session begin, there may have been one.
    without_rows = Verdict.OVER if binding.at is None else Verdict.GO_ON
    return max((_verdict(row, binding) for row in rows), default=without_rows)


def _verdict(row: BipsyncToken, binding: _Binding) -> Verdict:
    if row.tenant not in get_settings().tenants:
        return Verdict.OVER
    # The session's own text, as login() writes it: asking for request.user costs a query.
    if row.user is None or not row.user.is_active or _text(row.user) != binding.user:
        return Verdict.OVER
    if row.status == Status.DISCONNECTED or _has_been_ended(row, binding.at):
        return Verdict.OVER
    if row.status == Status.NEEDS_SIGN_IN:
        return Verdict.SIGN_IN
    return Verdict.GO_ON


def _has_been_ended(row: BipsyncToken, at: float | None) -> bool:
    ended_at = row.sessions_valid_after
    if ended_at is None:
        return False
    if at is None:
        # No session is older than its cookie.
        at = timezone.now().timestamp() - settings.SESSION_COOKIE_AGE
    return ended_at.timestamp() > at


def _text(user: models.Model) -> str:
    return str(user._meta.pk.value_to_string(user))


# --- a session that waits


def put_back(request: HttpRequest, *, is_streaming: bool = False) -> None:
    """Let the browser keep the session that was put aside, unless a visitor's has taken its place.

    Then it ends. It ends as well where the answer is not written yet (``is_streaming``), and may
    look at the session. Call it before Django's ``SessionMiddleware`` looks at the session.
    """
    lapsed = lapsed_of(request)
    if lapsed is None or lapsed.session is None:
        return
    if request.session.is_empty() and not is_streaming:
        request.session = lapsed.session
    else:
        lapsed.end()


def bring_back(request: HttpRequest) -> None:
    """Put the session that was aside in its place, for ``login()`` to decide what it keeps."""
    lapsed = lapsed_of(request)
    if lapsed is not None and lapsed.session is not None:
        request.session, lapsed.session = lapsed.session, None


def end_lapsed_session(request: HttpRequest) -> None:
    """End the session of a person who was sent to sign in again and declined.

    Every page would send them there once more, and they could not even sign out.
    """
    lapsed = lapsed_of(request)
    if lapsed is not None:
        lapsed.end()


@receiver(user_logged_out)
def _end(*, request: Any, **kwargs: object) -> None:
    """A person who signs out ends the session that waits for them, too."""
    end_lapsed_session(request)


def _replace(request: HttpRequest, lapsed: Lapsed, user: AbstractBaseUser) -> None:
    """Do what ``login()`` would have done with the session that it could not see."""
    if lapsed.session is not None and _text(user) == lapsed.user:
        for name, value in lapsed.session.items():
            request.session.setdefault(name, value)
    lapsed.end()


# --- forms that were filled in before


def keep_forms_valid(request: HttpRequest) -> None:
    """Note in the visitor's session whose form was turned away, so that it can be sent again."""
    lapsed = lapsed_of(request)
    if lapsed is not None and lapsed.session is None:
        request.session[_ENDED] = lapsed.user
        # With CSRF_USE_SESSIONS the secret of the form went with the session.
        request.META["CSRF_COOKIE_NEEDS_UPDATE"] = "CSRF_COOKIE" in request.META


def was_of(request: HttpRequest, user: AbstractBaseUser) -> bool:
    """Return whether the session that lapsed in this browser was that of ``user``.

    The note of ``keep_forms_valid`` is good once: later sign-ins rotate the CSRF token as usual.
    """
    lapsed = lapsed_of(request)
    if lapsed is not None:
        return lapsed.user == _text(user)
    return bool(request.session.pop(_ENDED, None) == _text(user))
