"""A session goes the way of the grant that it came from.

``CallbackView`` stamps the session of everybody who signs in. As long as the grant works, a
stamped session costs nothing but a look into the cache.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import Enum, auto
from typing import Any

from django.contrib.auth import BACKEND_SESSION_KEY, SESSION_KEY, logout
from django.contrib.auth.models import AnonymousUser
from django.core import signing
from django.core.cache import cache
from django.db import Error, router
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.cache import add_never_cache_headers
from django.utils.deprecation import MiddlewareMixin

from . import error_reports
from .caching import despite_errors
from .conf import get_settings
from .failures import login_url, refuse_program, wants_page
from .models import BipsyncToken

__all__ = ["BipsyncSessionMiddleware", "came_from", "end_lapsed_session", "stamp"]

logger = logging.getLogger(__name__)


_KEY = "_bipsync_session"
_SALT = "bipsync_django.middleware"
_FAILED = "sessions are checked anew"


@dataclass(frozen=True)
class _Stamp:
    """Which token row a session came from, when (Unix time), and through which backend."""

    token: int
    at: float
    backend: str
    # With a default, for sessions that an earlier version stamped.
    tenant: str = ""


class _Verdict(Enum):
    GO_ON = auto()
    SIGN_IN = auto()
    OVER = auto()


def stamp(request: HttpRequest, token: BipsyncToken) -> None:
    """Note in the session where it came from; call it after ``login()``.

    ``token`` is the row of the sign-in. The time is the row's own ``signed_in_at``, so that
    ``sessions_valid_after`` ends everything that signed in before it, however long the answer
    to the browser took.
    """
    signed_in_at = token.signed_in_at
    assert signed_in_at is not None
    backend = request.session[BACKEND_SESSION_KEY]
    request.session[_KEY] = asdict(
        _Stamp(token.pk, signed_in_at.timestamp(), backend, token.tenant)
    )


def end_lapsed_session(request: HttpRequest) -> None:
    """End the session of a person who was sent to sign in again and declined.

    Every page would send them there once more, and they could not even sign out.
    """
    found = _find_stamp(request)
    if found is not None and _judge(found, request.session[SESSION_KEY]) is not _Verdict.GO_ON:
        logout(request)


def came_from(request: HttpRequest, token: BipsyncToken) -> bool:
    """Return whether this session is one that ends with ``token``."""
    found = _find_stamp(request)
    return found is not None and found.token == token.pk


class BipsyncSessionMiddleware(MiddlewareMixin):
    """Ends sessions with their grant, and sends people whose grant ran out through sign-in.

    Place it after ``AuthenticationMiddleware`` and before ``LoginRequiredMiddleware``. It looks
    at sessions that ``CallbackView`` began and at no others. Views of this package and pages that
    are marked with ``login_not_required`` send nobody to sign in.
    """

    def process_request(self, request: HttpRequest) -> None:
        """See to it that no error from here on is reported with a secret."""
        error_reports.guard(request)

    def process_view(
        self,
        request: HttpRequest,
        view_func: Callable[..., Any],
        view_args: tuple[Any, ...],
        view_kwargs: dict[str, Any],
    ) -> HttpResponse | None:
        """Return what is to be answered instead of the view, or ``None``."""
        found = _find_stamp(request)
        if found is None:
            return None
        if _is_ours(request):
            # The way through sign-in stays open. A session that is over joins no account to
            # anybody any more, not even for as long as a check is remembered: that is for good.
            if _judge(found, request.session[SESSION_KEY], anew=True) is _Verdict.OVER:
                self.end_session(request)
            return None
        verdict = _judge(found, request.session[SESSION_KEY])
        if verdict is _Verdict.OVER:
            self.end_session(request)
            if wants_page(request):
                return None
            return refuse_program(request, "sign_in_required", tenant=found.tenant)
        # Pages that need no sign-in are shown without one. A program's view has that mark where
        # Django REST framework put it, which asks the session all the same.
        if verdict is _Verdict.SIGN_IN and (_needs_sign_in(view_func) or not wants_page(request)):
            return self.send_to_sign_in(request, found.tenant)
        return None

    def end_session(self, request: HttpRequest) -> None:
        """Sign the person out; the site's own rules decide what a visitor may see."""
        logger.info(
            "The session of user %s has ended with its grant.", request.session[SESSION_KEY]
        )
        logout(request)
        # Django's logout() leaves an asynchronous view the user that was there before.
        request.auser = _nobody

    def send_to_sign_in(self, request: HttpRequest, tenant: str) -> HttpResponse | None:
        """Return the way through sign-in; a form goes through, so that no input is lost."""
        if not wants_page(request):
            return refuse_program(request, "sign_in_required", tenant=tenant)
        if request.method not in {"GET", "HEAD"}:
            return None
        response = HttpResponseRedirect(login_url(request.get_full_path(), tenant))
        add_never_cache_headers(response)
        return response


async def _nobody() -> AnonymousUser:
    return AnonymousUser()


def _is_ours(request: HttpRequest) -> bool:
    match = request.resolver_match
    return match is not None and "bipsync" in match.app_names


def _needs_sign_in(view_func: Callable[..., Any]) -> bool:
    """Whether the way to Bipsync is ours to show; the decorator knows which scopes to ask for."""
    is_marked = not getattr(view_func, "login_required", True)
    return not is_marked and not getattr(view_func, "bipsync_token_required", False)


def _find_stamp(request: HttpRequest) -> _Stamp | None:
    # Looking into the session would make every visitor's page vary by cookie.
    if request.session.session_key is None:
        return None
    stored = request.session.get(_KEY)
    if stored is None or SESSION_KEY not in request.session:
        return None
    tenant = stored.get("tenant", "")
    found = _Stamp(stored["token"], stored["at"], stored["backend"], tenant)
    # Whoever signed in again with a password, in the same session, does not depend on Bipsync.
    return found if request.session.get(BACKEND_SESSION_KEY) == found.backend else None


def _judge(found: _Stamp, user_id: str, *, anew: bool = False) -> _Verdict:
    """Return what is to become of the session, from the cache if that was asked lately.

    With ``anew`` the database is asked in any case.
    """
    interval = get_settings().session_check_interval
    # The whole stamp and whose session it is: one session's pass is no other's.
    subject = hashlib.sha256(json.dumps([asdict(found), user_id]).encode()).hexdigest()
    if interval and not anew and _was_fine(subject, interval):
        return _Verdict.GO_ON
    try:
        verdict = _look_up(found, user_id)
    except Error as error:
        logger.warning(
            "A session could not be checked (%s); it goes on for now.", type(error).__name__
        )
        return _Verdict.GO_ON
    if interval and verdict is _Verdict.GO_ON:
        # Signed, as the keys are: whoever can write the cache must not keep a session alive.
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


def _look_up(found: _Stamp, user_id: str) -> _Verdict:
    # Where sign-ins are written: a replica may not have the row yet.
    rows = BipsyncToken.objects.using(router.db_for_write(BipsyncToken)).select_related("user")
    row = rows.defer("access_token", "refresh_token").filter(pk=found.token).first()
    if row is None or row.user is None or not row.user.is_active:
        return _Verdict.OVER
    # The session's own text, as login() writes it: asking for request.user costs a query.
    if row.user._meta.pk.value_to_string(row.user) != user_id:
        return _Verdict.OVER
    ended_at = row.sessions_valid_after
    if ended_at is not None and ended_at.timestamp() > found.at:
        return _Verdict.OVER
    if row.status == BipsyncToken.Status.DISCONNECTED:
        return _Verdict.OVER
    if row.status == BipsyncToken.Status.NEEDS_SIGN_IN:
        return _Verdict.SIGN_IN
    return _Verdict.GO_ON
