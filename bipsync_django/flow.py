"""One trip through the browser: from this site to Bipsync and back.

What has to be remembered meanwhile is sealed into a cookie of its own, one for each trip. Tabs
that start at the same moment cannot overwrite each other, as they would in a session, and a
visitor needs no session to begin. The cookie binds the trip to the browser (RFC 9700, section
4.7) and its ``__Host-`` name keeps sibling domains from planting one. The verifier inside stays
hidden from the person who carries it.
"""

import base64
import functools
import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from urllib.parse import unquote, urlsplit

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.db import Error, IntegrityError, router, transaction
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.urls import Resolver404, get_script_prefix, resolve, reverse
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme

from . import breaker, limits
from .conf import Tenant, get_settings
from .exceptions import ConfigurationError, SignInRefused
from .models import SpentState
from .oauth.client import authorization_url, create_verifier
from .redaction import without_traces

__all__ = [
    "CONNECT",
    "SERVICE",
    "SIGN_IN",
    "STEP_UP",
    "Trip",
    "begin",
    "callback_path",
    "end",
    "find",
    "is_https",
    "prune",
    "recall",
    "safe_next",
    "spend",
    "stays_on",
]

# What a trip is for: signing in, what a page needs before it can be shown, joining a Bipsync
# account to the person who is signed in, or authorising an account for the site itself.
SIGN_IN = "sign-in"
STEP_UP = "step-up"
CONNECT = "connect"
SERVICE = "service"

LIFETIME = 600
# A trip that took too long can still be told from an unknown one, and knows where it was going.
_REMEMBERED = 3600
_MOST_AT_ONCE = 5
# Seconds by which the clocks of two hosts of this site may differ.
_CLOCKS_APART = 60
_PRUNED_AT_ONCE = 1000
# Web servers take about 8 kB of cookies in all, browsers 4 kB for each.
_MOST_BYTES = 4096
_LONGEST_NEXT = 1000
_STATE = re.compile(r"[A-Za-z0-9_-]{43}")
_PREFIX = "bipsync-"
_ENDS = {"login", "callback", "logout"}


@dataclass(frozen=True)
class Trip:
    """What this site remembers while the browser is at Bipsync.

    ``started`` is a Unix time. ``user`` is the primary key, as text, of the person whom the trip
    is bound to; it is empty for a trip that anybody may end.
    """

    state: str = field(repr=False)
    verifier: str = field(repr=False)
    purpose: str
    tenant: str
    scopes: tuple[str, ...]
    redirect_uri: str
    next: str
    started: float
    # With a default, so that trips which an earlier version began can be ended.
    user: str = ""


@without_traces
def begin(
    request: HttpRequest,
    tenant: Tenant,
    *,
    purpose: str = SIGN_IN,
    next_url: str = "",
    scopes: Iterable[str] | None = None,
    user: str = "",
) -> HttpResponseRedirect:
    """Return the redirect to Bipsync that starts a trip.

    ``purpose`` is ``SIGN_IN``, ``STEP_UP``, ``CONNECT`` or ``SERVICE``. ``next_url`` is where to
    go afterwards; an unsafe one is dropped. ``scopes`` are those to ask for, by default the
    tenant's. ``user`` is the primary key, as text, of the only person whom this trip may be for.

    Raises ``ConfigurationError``, and ``SignInRefused`` when this browser begins too many.
    """
    with suppress(Error):  # the callback asks again
        breaker.claim_deployment(tenant.slug)
    trip = Trip(
        state=secrets.token_urlsafe(32),
        verifier=create_verifier(),
        purpose=purpose,
        tenant=tenant.slug,
        scopes=tenant.scopes if scopes is None else tuple(scopes),
        redirect_uri=tenant.redirect_uri or request.build_absolute_uri(callback_path(tenant.slug)),
        next=safe_next(request, next_url),
        started=time.time(),
        user=user,
    )
    response = HttpResponseRedirect(
        authorization_url(
            tenant,
            state=trip.state,
            verifier=trip.verifier,
            redirect_uri=trip.redirect_uri,
            scopes=trip.scopes,
        )
    )
    cookie = _sealer().encrypt(json.dumps(asdict(trip)).encode()).decode("ascii")
    limits.count_start(request, response, secure=is_https(request))
    _make_room(request, response, len(cookie))
    response.set_cookie(
        _cookie_name(request, trip.state),
        cookie,
        max_age=_REMEMBERED,
        path="/",
        secure=is_https(request),
        httponly=True,
        samesite="Lax",
    )
    return response


def callback_path(tenant: str) -> str:
    """Return where the browser comes back to from the tenant called ``tenant``.

    Each has an address of its own, so that what one sends cannot pass for another's answer (RFC
    9700, section 4.4.2). The first keeps the one that a single tenant has.
    """
    is_first = tenant == next(iter(get_settings().tenants))
    return reverse("bipsync:callback", kwargs={} if is_first else {"tenant": tenant})


@without_traces
def find(request: HttpRequest, state: str) -> Trip:
    """Return the trip that this browser began with ``state``, however old.

    Raises ``SignInRefused`` when this browser began no such trip, or has ended it.
    """
    trip = recall(request, state)
    if trip is None:
        if _is_spent(state):
            raise SignInRefused("replayed_state", "The state was used before.")
        raise SignInRefused("unknown_state", "The state is not one that this browser began.")
    return trip


@without_traces
def recall(request: HttpRequest, state: str) -> Trip | None:
    """Return the trip that this browser carries for ``state``, or ``None``."""
    if not _STATE.fullmatch(state):
        return None
    trip = _open(request.COOKIES.get(_cookie_name(request, state), ""))
    return trip if trip is not None and secrets.compare_digest(trip.state, state) else None


@without_traces
def spend(trip: Trip) -> None:
    """Use the trip's state up, for all processes. Raises ``SignInRefused`` if late or used."""
    if not -_CLOCKS_APART <= time.time() - trip.started <= LIFETIME:
        raise SignInRefused("expired_state", "The trip took longer than ten minutes.")
    spent = SpentState(
        digest=_digest(trip.state),
        expires_at=timezone.now() + timedelta(seconds=LIFETIME),
    )
    try:
        with transaction.atomic(using=router.db_for_write(SpentState)):
            spent.save(force_insert=True)
        if spent.digest.startswith("0"):
            # One in sixteen clears up behind them all, where no task and no command does.
            prune()
    except IntegrityError:
        raise SignInRefused("replayed_state", "The state was used before.") from None
    except Error as error:
        raise SignInRefused("storage_unavailable", type(error).__name__) from error


def end(request: HttpRequest, response: HttpResponseBase, state: str) -> None:
    """Take the trip's cookie back."""
    if _STATE.fullmatch(state):
        response.delete_cookie(_cookie_name(request, state), samesite="Lax")


def prune() -> None:
    """Forget spent states that have expired by themselves, a thousand at most."""
    states = SpentState.objects.using(router.db_for_write(SpentState))
    oldest = timezone.now() - timedelta(seconds=LIFETIME)
    expired = states.filter(expires_at__lt=oldest).values_list("pk", flat=True)
    states.filter(pk__in=list(expired[:_PRUNED_AT_ONCE])).delete()


def safe_next(request: HttpRequest, url: str) -> str:
    """Return ``url`` when it leads to a page of this host, else an empty string.

    A relative address would mean another page at each end of a trip, and our own ends of trips are
    no pages to go to.
    """
    # As long as it is in the cookie, where anything but ASCII takes six bytes.
    is_short = len(json.dumps(url)) <= _LONGEST_NEXT
    if not is_short or not stays_on(request, url, {request.get_host()}):
        return ""
    parts = urlsplit(url)
    path = parts.path or ("/" if parts.netloc else "")
    return url if path.startswith("/") and not _is_end_of_trip(request, path) else ""


def _is_end_of_trip(request: HttpRequest, path: str) -> bool:
    prefix = get_script_prefix()
    path = "/" + path.removeprefix(prefix) if path.startswith(prefix) else path
    try:
        match = resolve(unquote(path), getattr(request, "urlconf", None))
    except Resolver404:
        return False
    return "bipsync" in match.app_names and match.url_name in _ENDS


def stays_on(request: HttpRequest, url: str, hosts: set[str]) -> bool:
    """Return whether ``url`` leads to one of ``hosts``, over https where the browser speaks it."""
    # Behind a proxy Django may take every request for plain http.
    return url_has_allowed_host_and_scheme(
        url, allowed_hosts=hosts, require_https=is_https(request)
    )


def _digest(state: str) -> str:
    return hashlib.sha256(state.encode()).hexdigest()


def _is_spent(state: str) -> bool:
    if not _STATE.fullmatch(state):
        return False
    try:
        spent = SpentState.objects.using(router.db_for_write(SpentState))
        return spent.filter(digest=_digest(state)).exists()
    except Error as error:
        raise SignInRefused("storage_unavailable", type(error).__name__) from error


def _open(cookie: str) -> Trip | None:
    try:
        remembered = json.loads(_sealer().decrypt(cookie))
        return Trip(**{**remembered, "scopes": tuple(remembered["scopes"])})
    except (InvalidToken, ValueError, TypeError, KeyError):
        # TypeError and KeyError: sealed by another version of this package.
        return None


def _make_room(request: HttpRequest, response: HttpResponseBase, size: int) -> None:
    """Keep what a browser carries bounded: trips that never came back make room."""
    prefix = _cookie_name(request, "")
    begun = []
    for name in request.COOKIES:
        if name.startswith(prefix):
            trip = _open(request.COOKIES[name])
            begun.append((trip.started if trip else 0.0, name))
    for place, (_, name) in enumerate(sorted(begun, reverse=True), start=2):
        size += len(request.COOKIES[name])
        if place > _MOST_AT_ONCE or size > _MOST_BYTES:
            response.delete_cookie(name, samesite="Lax")


def _cookie_name(request: HttpRequest, state: str) -> str:
    return ("__Host-" if is_https(request) else "") + _PREFIX + state[:16]


def is_https(request: HttpRequest) -> bool:
    """Whether the browser speaks https, which a site behind a proxy may say by its address only."""
    try:
        tenants = list(get_settings().tenants.values())
    except ConfigurationError:
        tenants = []
    return request.is_secure() or any(
        tenant.redirect_uri is not None and tenant.redirect_uri.startswith("https:")
        for tenant in tenants
    )


def _sealer() -> MultiFernet:
    return _sealer_for((settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS))


@functools.lru_cache(maxsize=4)
def _sealer_for(keys: tuple[str | bytes, ...]) -> MultiFernet:
    """Seal under keys derived for this purpose alone (HKDF, RFC 5869)."""
    derived = []
    for key in keys:
        material = key.encode() if isinstance(key, str) else key
        kdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"bipsync_django.flow")
        derived.append(Fernet(base64.urlsafe_b64encode(kdf.derive(material))))
    return MultiFernet(derived)
