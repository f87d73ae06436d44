"""``@bipsync_token_required``: the page is shown once Bipsync can be asked for this person."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import connections, transaction
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.shortcuts import resolve_url
from django.utils.cache import add_never_cache_headers
from django.views.generic import View

from . import flow, lifecycle, returns, sessions
from .conf import Tenant, get_tenant
from .exceptions import (
    AddressRefused,
    BipsyncError,
    ConfigurationError,
    KeysUnavailable,
    MissingScope,
    RefreshInsideTransaction,
    RefreshUnavailable,
    SignInRefused,
    SignInRequired,
)
from .failures import login_url, refuse, refuse_program, wants_page
from .models import BipsyncToken

__all__ = ["bipsync_token_required", "outside_transactions", "scopes_of_views"]

V = TypeVar("V", bound=Callable[..., Any])

_ANSWERED = (AddressRefused, KeysUnavailable, MissingScope, RefreshUnavailable, SignInRequired)
_scopes_of_views: set[str] = set()


@overload
def bipsync_token_required(view: V) -> V: ...
@overload
def bipsync_token_required(
    *, scopes: Iterable[str] = (), tenant: str | None = None
) -> Callable[[V], V]: ...
def bipsync_token_required(
    view: Any = None, *, scopes: Iterable[str] = (), tenant: str | None = None
) -> Any:
    """Show a view only to people for whom Bipsync can be asked; send others there and back.

    ``scopes`` are those that the view needs. ``tenant`` is a slug; it may be left out when there
    is one tenant. The view may be synchronous or asynchronous. What it lets through of
    ``SignInRequired``, ``MissingScope``, ``RefreshUnavailable``, ``KeysUnavailable`` and
    ``AddressRefused`` is answered too. Programs get JSON and no redirect.

    Raises ``TypeError`` when ``scopes`` is a text.
    """
    if isinstance(scopes, str):
        raise TypeError('scopes is a list of scopes, for example ["research:read"]')
    gate = _Gate(tuple(scopes), tenant)
    _scopes_of_views.update(gate.scopes)

    def decorate(view: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(view)
        async def asynchronous(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            answer = await sync_to_async(gate.open_for)(request)
            if answer is not None:
                return answer
            try:
                return await view(request, *args, **kwargs)
            except _ANSWERED as error:
                return await sync_to_async(gate.answer)(request, error)

        @functools.wraps(view)
        def synchronous(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            answer = gate.open_for(request)
            if answer is not None:
                return answer
            try:
                return view(request, *args, **kwargs)
            except _ANSWERED as error:
                return gate.answer(request, error)

        decorated: Any = asynchronous if _is_asynchronous(view) else synchronous
        # The middleware leaves the way to Bipsync to this view, which knows what to ask for.
        decorated.bipsync_token_required = True
        return decorated  # type: ignore[no-any-return]

    return decorate if view is None else decorate(view)


def outside_transactions(view: Any) -> Any:
    """Keep ``ATOMIC_REQUESTS`` off: a new grant must not be rolled back with its request."""
    for alias in connections:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


def scopes_of_views() -> frozenset[str]:
    """Return what the views that are imported by now have been decorated with."""
    return frozenset(_scopes_of_views)


class _Gate:
    """What one view needs, and what happens to requests that lack it."""

    def __init__(self, scopes: tuple[str, ...], tenant: str | None) -> None:
        self.scopes = scopes
        self._tenant = tenant

    def open_for(self, request: HttpRequest) -> HttpResponse | None:
        """Return what to answer instead of the view, or ``None``."""
        try:
            tenant = get_tenant(self._tenant)
        except ConfigurationError as error:
            return self._refuse(request, "misconfigured", error)
        grant = _grant(request, tenant)
        is_lapsed = sessions.lapsed_of(request) is not None
        if grant is None or grant.status != BipsyncToken.Status.ACTIVE or is_lapsed:
            return self._ask(request, tenant, grant, "no_connection")
        if not grant.scope_set.issuperset(self.scopes):
            return self._ask(request, tenant, grant, "missing_scope")
        return None

    def answer(self, request: HttpRequest, error: BipsyncError) -> HttpResponse:
        """Return what to answer for an error of the view, whose database work is undone."""
        response = self._answer(request, error)
        # As Django does for an exception; after our own queries, which would fail otherwise.
        for connection in connections.all(initialized_only=True):
            if connection.settings_dict["ATOMIC_REQUESTS"] and connection.in_atomic_block:
                connection.set_rollback(True)
        return response

    def _answer(self, request: HttpRequest, error: BipsyncError) -> HttpResponse:
        if isinstance(error, AddressRefused):
            return self._refuse(request, "address_refused", error)
        if isinstance(error, ConfigurationError | RefreshInsideTransaction):
            # Waiting helps neither: a database of another deployment, or SQLite in a transaction.
            return self._refuse(request, "misconfigured", error)
        if isinstance(error, KeysUnavailable | RefreshUnavailable):
            return self._refuse(request, "no_answer", error)
        tenant = get_tenant(self._tenant)
        grant = _grant(request, tenant)
        if isinstance(error, SignInRequired):
            return self._ask(request, tenant, grant, "no_connection")
        granted = frozenset() if grant is None else grant.scope_set
        # Where Bipsync never says what it granted, it may be less than what was asked for.
        is_known = grant is None or grant.scopes_are_known
        was_asked = returns.was_asked_just_now(request, tenant, self.scopes)
        if granted.issuperset(self.scopes) and (is_known or was_asked or not self.scopes):
            # A trip would ask for the same and bring the same, unless the permission has just been
            # taken back, which looks the same from here. The person knows, and the page has a link.
            return self._refuse(request, "not_permitted", error)
        return self._ask(request, tenant, grant, "missing_scope")

    def _ask(
        self, request: HttpRequest, tenant: Tenant, grant: BipsyncToken | None, reason: str
    ) -> HttpResponse:
        """Send the person to Bipsync; not twice in a row, and programs not at all."""
        if not wants_page(request):
            if reason == "missing_scope":
                return refuse_program(request, reason, scopes=list(self.scopes))
            return refuse_program(request, "sign_in_required", tenant=tenant.slug)
        wanted = self.scopes if reason == "missing_scope" else ()
        if returns.was_asked_just_now(request, tenant, wanted):
            returns.forget_trips(request)
            return self._refuse(request, reason, "The person has just come back from Bipsync.")
        try:
            response = flow.begin(
                request,
                tenant,
                purpose=flow.STEP_UP,
                next_url=_page_of(request),
                scopes=self._scopes_to_ask_for(tenant, grant),
                # Without a grant of theirs nobody can say which Bipsync account is the right one,
                # and a new one is not joined to an existing user: that is an ordinary sign-in.
                user="" if grant is None else str(grant.user_id),
            )
        except ConfigurationError as error:
            return self._refuse(request, "misconfigured", error)
        except SignInRefused as error:
            return self._refuse(request, error.reason, error)
        add_never_cache_headers(response)
        return response

    def _scopes_to_ask_for(self, tenant: Tenant, grant: BipsyncToken | None) -> Iterable[str]:
        given_up = grant is None or grant.status == BipsyncToken.Status.DISCONNECTED
        kept = () if given_up or grant is None else sorted(grant.scope_set)
        return dict.fromkeys([*tenant.scopes, *self.scopes, *kept])

    def _refuse(self, request: HttpRequest, reason: str, detail: object) -> HttpResponse:
        retry_url = _page_of(request) or resolve_url(settings.LOGIN_REDIRECT_URL)
        if reason == "not_permitted":
            # The link leads to a sign-in for this very page, which is what a circle looks like.
            returns.forget_trips(request)
            retry_url = login_url(retry_url, self._tenant)
        as_page = wants_page(request)
        return refuse(request, reason, str(detail), retry_url=retry_url, as_page=as_page)


def _grant(request: HttpRequest, tenant: Tenant) -> BipsyncToken | None:
    """Return the grant of the person who is signed in, or was until their session lapsed."""
    lapsed = sessions.lapsed_of(request)
    if lapsed is not None:
        return _lapsed_grant(lapsed, tenant)
    user = request.user
    return lifecycle.grant_of(user, tenant) if isinstance(user, Model) else None


def _lapsed_grant(lapsed: sessions.Lapsed, tenant: Tenant) -> BipsyncToken | None:
    if lapsed.verdict is sessions.Verdict.OVER:
        return None
    user = get_user_model()(pk=get_user_model()._meta.pk.to_python(lapsed.user))
    return lifecycle.grant_of(user, tenant)


def _page_of(request: HttpRequest) -> str:
    """Return the page to come back to: a form cannot be sent again, so where it was filled in."""
    if request.method in {"GET", "HEAD"}:
        return flow.safe_next(request, request.get_full_path())
    return flow.safe_next(request, request.headers.get("Referer", ""))


def _is_asynchronous(view: Callable[..., Any]) -> bool:
    if iscoroutinefunction(view):
        return True
    # dispatch() of a class-based view does not say what it is, and method_decorator() hands it
    # over as a partial of the bound method.
    method = getattr(view, "func", view)
    owner = getattr(method, "__self__", None)
    is_dispatch = getattr(method, "__name__", "") == "dispatch"
    return is_dispatch and isinstance(owner, View) and owner.view_is_async
