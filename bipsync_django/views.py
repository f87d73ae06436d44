"""The browser side of signing in and out."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib.auth import (
    HASH_SESSION_KEY,
    SESSION_KEY,
    authenticate,
    get_user_model,
    load_backend,
    login,
    logout,
)
from django.contrib.auth import views as auth_views
from django.contrib.auth.decorators import login_not_required, login_required
from django.contrib.auth.models import AbstractBaseUser
from django.db import Error
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect, QueryDict
from django.shortcuts import render, resolve_url
from django.urls import reverse
from django.utils.crypto import constant_time_compare
from django.utils.decorators import method_decorator
from django.utils.encoding import escape_uri_path
from django.views.decorators.cache import never_cache
from django.views.decorators.clickjacking import xframe_options_deny
from django.views.decorators.csrf import csrf_protect
from django.views.generic import View

from . import confirmation, error_reports, flow, lifecycle, limits, returns, scopes, sessions
from .conf import Tenant, get_settings, get_tenant
from .decorators import outside_transactions
from .durable import database
from .exceptions import (
    ConfigurationError,
    GrantDead,
    KeysUnavailable,
    KeysUnusable,
    ProviderMisconfigured,
    RetryLater,
    SecretUnreadable,
    SignInRefused,
    TokenRefused,
)
from .failures import login_url, refuse, refuse_program, wants_page
from .models import BipsyncToken, TokenEvent
from .oauth.claims import Claims, validate_access_token
from .oauth.client import TokenPair, exchange_code
from .redaction import without_traces
from .users import SignIn, account_name

__all__ = [
    "CONNECT_SERVICE",
    "CallbackView",
    "ConfirmConnectionView",
    "ConnectView",
    "ConnectionView",
    "DisconnectView",
    "LoginView",
    "LogoutView",
    "expect_own_person",
    "leave",
]

CONNECT_SERVICE = "bipsync_django.connect_service_bipsynctoken"
"""The permission to authorise and confirm a service account."""

_RESUMED = "resumed"
_LONGEST_PARAMETER = 8192
_MAX_ARRIVALS_AT_HOME = 2
_PROVIDER_ERRORS = {
    "access_denied": "declined",
    "invalid_request": "misconfigured",
    "invalid_scope": "misconfigured",
    "unauthorized_client": "misconfigured",
    "unsupported_response_type": "misconfigured",
}


@method_decorator([login_not_required, never_cache, outside_transactions], name="dispatch")
class _SignInView(View):
    """What both ends of a trip share: nothing is cached, and every failure is a page."""

    http_method_names = ["get", "head", "options"]
    # The callback's URL holds a code, which no other site is to see.
    referrer_policy = "no-referrer"
    # As whom the person is signed in at Bipsync, once that is known, and where to change it.
    account = ""
    web_url = ""

    def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        """Keep the request's query, and let no error report show it."""
        super().setup(request, *args, **kwargs)
        error_reports.guard(request)
        self.query = request.GET

    @without_traces
    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            response = super().dispatch(request, *args, **kwargs)
        except SignInRefused as refused:
            response = self.refuse(request, refused)
        response.headers["Referrer-Policy"] = self.referrer_policy
        return response

    def refuse(self, request: HttpRequest, refused: SignInRefused) -> HttpResponse:
        """Answer with a page that says why."""
        return refuse(
            request,
            refused.reason,
            str(refused),
            retry_url=self.retry_url(request, refused.reason),
            account=self.account,
            web_url=self.web_url,
        )

    def retry_url(self, request: HttpRequest, reason: str) -> str:
        """Where to start again."""
        return login_url(self.next_url(request), self.kwargs.get("tenant"))

    def next_url(self, request: HttpRequest) -> str:
        """Where the person was going."""
        return flow.safe_next(request, self.query.get("next", ""))


class LoginView(_SignInView):
    """``login/?next=…`` and ``login/<tenant>/?next=…``: send the browser to Bipsync.

    With several tenants, the first of the two lets people choose.
    """

    def get(self, request: HttpRequest, tenant: str | None = None) -> HttpResponse:
        if _is_script(request):
            # A script that followed a redirect to Bipsync's pages would only fail there.
            return refuse_program(request, "sign_in_required", tenant=tenant)
        next_url = self.next_url(request)
        if request.user.is_authenticated and self._has_just_been_there(request, next_url):
            return HttpResponseRedirect(next_url)
        try:
            if tenant is None and len(get_settings().tenants) > 1:
                return render(
                    request, "bipsync_django/choose.html", {"choices": _choices(next_url)}
                )
            return flow.begin(request, _tenant_at(tenant), next_url=next_url)
        except ConfigurationError as error:
            raise SignInRefused("misconfigured", str(error)) from error

    def _has_just_been_there(self, request: HttpRequest, next_url: str) -> bool:
        """Whether a person who is signed in has just been sent to ``next_url``, and comes again.

        They may have opened the sign-in twice, so they are sent on once. A page that sends them
        back even then lacks something that no sign-in brings: Django's ``@permission_required``
        and ``user_passes_test()`` do so. Then this raises ``SignInRefused``.
        """
        arrivals = returns.count_arrivals(request, next_url or _home())
        # Without a page to go to, it may be a button that the person presses again and again.
        if arrivals > (1 if next_url else _MAX_ARRIVALS_AT_HOME):
            returns.forget_trips(request)
            raise SignInRefused(
                "no_permission",
                f"The user with primary key {request.user.pk} has just signed in for this page, "
                "which sent them here again.",
            )
        if arrivals and next_url:
            returns.note_detour(request, next_url)
        return bool(arrivals and next_url)


class CallbackView(_SignInView):
    """``callback/`` and ``callback/<tenant>/``: the browser comes back (RFC 6749, section 4.1.2).

    The address says which tenant sent it. What another one was asked for is not used. A ``HEAD``
    request is refused: a trip has one end, and a link checker must not be the one who comes to it.
    """

    http_method_names = ["get", "options"]

    def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        """Forget the query as soon as it is read, before anything logs, renders or fails."""
        super().setup(request, *args, **kwargs)
        _forget_query(request)

    def get(self, request: HttpRequest, tenant: str | None = None) -> HttpResponse:
        state = self._parameter("state")
        arrived = returns.find_destination(request, state)
        if arrived is not None and request.user.is_authenticated:
            # The same request once more, because its answer got lost: nothing is spent again.
            return HttpResponseRedirect(arrived)
        trip = flow.find(request, state)
        if settings.SESSION_COOKIE_SAMESITE == "Strict" and _RESUMED not in self.query:
            return self._resume(request)
        flow.spend(trip)
        self._expect_the_tenants_own(trip, tenant)
        if "error" in self.query:
            self._raise_provider_error()
        self._expect_the_same_person(trip)
        claims, pair, found = self._redeem(trip, self._parameter("code"))
        self.account, self.web_url = account_name(found, claims), found.web_url
        if trip.purpose == flow.SERVICE:
            self._authorise(trip, found, claims, pair)
            response = HttpResponseRedirect(_destination(request, trip))
            flow.end(request, response, trip.state)
            return response
        if trip.purpose == flow.CONNECT:
            waiting = self._hold(trip, found, claims, pair)
            if waiting is not None:
                return self._ask_to_confirm(trip, waiting)
        user, token = self._sign_in(trip, found, claims, pair)
        if not user.is_active:
            # Created so, to be switched on by somebody: the next request would not know them.
            raise SignInRefused("inactive", f"The user with primary key {user.pk} is inactive.")
        destination = _destination(request, trip)
        if trip.purpose != flow.CONNECT:
            with _storing():
                _log_in(request, user, token)
            returns.note_return(request, trip, destination)
        response = HttpResponseRedirect(destination)
        limits.remember(response, user, secure=flow.is_https(request))
        flow.end(request, response, trip.state)
        return response

    def refuse(self, request: HttpRequest, refused: SignInRefused) -> HttpResponse:
        if refused.reason == "declined":
            sessions.end_lapsed_session(request)
        response = super().refuse(request, refused)
        if refused.reason not in {"unknown_state", "replayed_state"}:
            flow.end(request, response, self.query.get("state", ""))
        return response

    def retry_url(self, request: HttpRequest, reason: str) -> str:
        trip = flow.recall(request, self.query.get("state", ""))
        if reason == "other_person":
            return _home()
        if trip is None:
            return login_url("", self.kwargs.get("tenant"))
        if trip.purpose in {flow.STEP_UP, flow.SERVICE}:
            # The page itself knows what to ask for.
            return _destination(request, trip)
        if trip.purpose == flow.CONNECT:
            return _connect_url(trip.next, trip.tenant)
        return login_url(trip.next, trip.tenant)

    def _parameter(self, name: str) -> str:
        values = self.query.getlist(name)
        if len(values) != 1 or not 0 < len(values[0]) <= _LONGEST_PARAMETER:
            error = self.query.get("error", "")
            known = f" (with error={error})" if error in _PROVIDER_ERRORS else ""
            raise SignInRefused(
                "incomplete", f"The callback needs one usable {name}, and has {len(values)}{known}."
            )
        return values[0]

    def _resume(self, request: HttpRequest) -> HttpResponse:
        """Ask once more from a page of this site's own.

        The browser keeps a ``SameSite=Strict`` session cookie back on a request that another
        site caused, and would drop the one that is set in its answer from the next page too.
        """
        query = self.query.copy()
        query[_RESUMED] = "1"
        url = f"{escape_uri_path(request.path)}?{query.urlencode()}"
        response = render(request, "bipsync_django/resume.html", {"resume_url": url})
        response.headers["Refresh"] = f"0; url={url}"
        return response

    def _raise_provider_error(self) -> None:
        error = self.query["error"]
        reason = _PROVIDER_ERRORS.get(error, "unavailable")
        known = error if error in _PROVIDER_ERRORS else "an error of its own"
        raise SignInRefused(reason, f"Bipsync sent the browser back with {known}.")

    def _expect_the_tenants_own(self, trip: flow.Trip, tenant: str | None) -> None:
        """One tenant's code or error must not pass for another's answer (mix-up, RFC 9700, 4.4)."""
        try:
            issuer = get_tenant(trip.tenant).issuer
            here = next(iter(get_settings().tenants)) if tenant is None else tenant
        except ConfigurationError as error:
            raise SignInRefused("misconfigured", str(error)) from error
        if trip.tenant != here:
            raise SignInRefused(
                "wrong_address",
                f"The trip went to {trip.tenant}, and came back at the callback of {here}.",
            )
        # Bipsync is not known to send it, so it may be absent (RFC 9207, section 2.4).
        if issuer is not None and self.query.getlist("iss", [issuer]) != [issuer]:
            raise SignInRefused("wrong_address", "The callback names another issuer (iss).")

    def _expect_the_same_person(self, trip: flow.Trip) -> None:
        """A trip that one person began must not end in the session of another (RFC 9700, 4.7)."""
        try:
            user = self.request.user
            # Whoever connects an account has to be here still; a sign-in may find nobody.
            connects = trip.purpose in {flow.CONNECT, flow.SERVICE}
            if connects:
                expect_own_person(self.request)
            may_be_nobody = not connects and not user.is_authenticated
            is_other = bool(trip.user) and str(user.pk) != trip.user and not may_be_nobody
        except Error as error:
            raise SignInRefused("storage_unavailable", type(error).__name__) from error
        if is_other:
            raise SignInRefused("other_person", "The session is by now another person's.")

    def _redeem(self, trip: flow.Trip, code: str) -> tuple[Claims, TokenPair, Tenant]:
        try:
            tenant = get_tenant(trip.tenant)
            person = limits.known_person(self.request, secure=flow.is_https(self.request))
            with limits.place(tenant, person):
                pair = exchange_code(
                    tenant, code=code, verifier=trip.verifier, redirect_uri=trip.redirect_uri
                )
            claims = validate_access_token(pair.access_token, tenant, from_provider=True)
        except GrantDead as error:
            raise SignInRefused("code_refused", str(error)) from error
        except (ProviderMisconfigured, ConfigurationError) as error:
            raise SignInRefused("misconfigured", str(error)) from error
        except (RetryLater, KeysUnavailable, TokenRefused) as error:
            raise SignInRefused(_reason(error), str(error)) from error
        return claims, pair, tenant

    def _sign_in(
        self, trip: flow.Trip, tenant: Tenant, claims: Claims, pair: TokenPair
    ) -> tuple[AbstractBaseUser, BipsyncToken]:
        signed_in: list[AbstractBaseUser] = []

        is_connecting = trip.purpose == flow.CONNECT

        def resolve_user(row: BipsyncToken) -> AbstractBaseUser:
            known = row.user
            if trip.user and (known is None or str(known.pk) != trip.user):
                raise SignInRefused(
                    "other_account",
                    f"The trip was begun for the user with primary key {trip.user}, and the "
                    f"Bipsync account belongs to {'nobody' if known is None else known.pk}.",
                )
            person = _person_here(self.request) if is_connecting else None
            user = _user_of(self.request, SignIn(tenant, claims, row, person))
            signed_in.append(user if is_connecting else _as_django_finds_them(user))
            return user

        with _storing():
            token = lifecycle.sign_in(
                tenant,
                claims,
                pair,
                scopes=trip.scopes,
                resolve_user=resolve_user,
                event=TokenEvent.Name.CONNECTED if is_connecting else TokenEvent.Name.SIGNED_IN,
            )
        return signed_in[0], token

    def _hold(
        self, trip: flow.Trip, tenant: Tenant, claims: Claims, pair: TokenPair
    ) -> BipsyncToken | None:
        with _storing():
            person = _person_here(self.request)
            return lifecycle.hold_connection(
                tenant, claims, pair, scopes=trip.scopes, person=person
            )

    def _ask_to_confirm(self, trip: flow.Trip, waiting: BipsyncToken) -> HttpResponse:
        """Show whose account came back, before it is joined to the person who is signed in."""
        reference = confirmation.new_reference()
        url = reverse("bipsync:confirm_connection", kwargs={"reference": reference})
        response = HttpResponseRedirect(url)
        confirmation.remember(
            self.request,
            response,
            reference,
            row=waiting.pk,
            generation=waiting.generation,
            user=trip.user,
            next_url=trip.next,
        )
        flow.end(self.request, response, trip.state)
        return response

    def _authorise(self, trip: flow.Trip, tenant: Tenant, claims: Claims, pair: TokenPair) -> None:
        with _storing():
            person: Any = _person_here(self.request)
            if not person.is_active or not person.has_perm(CONNECT_SERVICE):
                raise SignInRefused("not_allowed", "The permission for it was taken meanwhile.")
            lifecycle.authorise_service(tenant, claims, pair, scopes=trip.scopes, actor=person)


@method_decorator(login_required, name="get")
@method_decorator([csrf_protect, xframe_options_deny], name="dispatch")
class ConnectView(_SignInView):
    """``connect/`` and ``connect/<tenant>/``: join a Bipsync account to who is signed in.

    Only a button of this site's own begins it: whoever could make a browser do so by a link might
    join a Bipsync account of theirs to somebody else's user.
    """

    http_method_names = ["get", "head", "post", "options"]
    # Without any, browsers send a form with the origin "null", which Django's protection refuses.
    referrer_policy = "same-origin"

    def get(self, request: HttpRequest, tenant: str | None = None) -> HttpResponse:
        try:
            tenants = [*get_settings().tenants.values()] if tenant is None else [_tenant_at(tenant)]
        except ConfigurationError as error:
            raise SignInRefused("misconfigured", str(error)) from error
        next_url = self.next_url(request)
        person: Any = request.user
        choices = [
            {
                "name": tenant.name,
                "url": _connect_url(next_url, tenant.slug),
                "grant": lifecycle.grant_of(person, tenant),
            }
            for tenant in tenants
        ]
        return render(request, "bipsync_django/connect.html", {"choices": choices})

    def post(self, request: HttpRequest, tenant: str | None = None) -> HttpResponse:
        if not request.user.is_authenticated:
            return HttpResponseRedirect(login_url(self.next_url(request), tenant))
        try:
            return leave(request, _tenant_at(tenant), flow.CONNECT, next_url=self.next_url(request))
        except ConfigurationError as error:
            raise SignInRefused("misconfigured", str(error)) from error

    def retry_url(self, request: HttpRequest, reason: str) -> str:
        return _connect_url(self.next_url(request), self.kwargs.get("tenant"))


@method_decorator([login_required, csrf_protect, xframe_options_deny], name="dispatch")
class ConfirmConnectionView(_SignInView):
    """``connect/confirm/<reference>/``: whose Bipsync account came back, and a button to join it.

    ``ConnectView`` begins at a button, and yet the browser may be signed in at Bipsync as anybody.
    """

    http_method_names = ["get", "head", "post", "options"]
    referrer_policy = "same-origin"

    def get(self, request: HttpRequest, reference: str) -> HttpResponse:
        waiting, row = self._find(reference)
        if self._is_done(row):
            return HttpResponseRedirect(_next_or_home(request, waiting.next))
        claims, tenant = self._read(row)
        context = {
            "account": account_name(tenant, claims),
            "name": tenant.name,
            "web_url": tenant.web_url,
            "scopes": scopes.describe(row.scope_set),
        }
        return render(request, "bipsync_django/confirm_connection.html", context)

    def post(self, request: HttpRequest, reference: str) -> HttpResponse:
        waiting, row = self._find(reference)
        decision = request.POST.get("do")
        if decision == "connect":
            expect_own_person(request)
            if not self._is_done(row):
                self._connect(row)
            response = HttpResponseRedirect(_next_or_home(request, waiting.next))
            person: Any = request.user
            limits.remember(response, person, secure=flow.is_https(request))
        elif decision == "discard":
            with _storing():
                lifecycle.discard(row, actor=_person_here(request))
            response = HttpResponseRedirect(_connect_url(waiting.next, row.tenant))
        else:
            return self.get(request, reference)
        confirmation.forget(request, response, reference)
        return response

    def retry_url(self, request: HttpRequest, reason: str) -> str:
        waiting = confirmation.find(request, self.kwargs["reference"])
        if reason in {"other_person", "impersonation"}:
            return _home()
        if reason in {"unavailable", "storage_unavailable"}:
            return request.path
        next_url = "" if waiting is None else flow.safe_next(request, waiting.next)
        return _connect_url(next_url, None)

    def _find(self, reference: str) -> tuple[confirmation.Waiting, BipsyncToken]:
        """Return what this browser was asked about, as it is now. Raises ``SignInRefused``."""
        waiting = confirmation.find(self.request, reference)
        if waiting is None:
            raise SignInRefused("not_waiting", "The browser has nothing to confirm by this name.")
        if waiting.user != str(self.request.user.pk):
            raise SignInRefused("other_person", "The session is by now another person's.")
        with _storing():
            row = lifecycle.connection_at(waiting.row, waiting.generation)
        if row is None or not (self._is_done(row) or lifecycle.may_be_confirmed(row)):
            raise SignInRefused("not_waiting", "The pair has changed, or waited too long.")
        return waiting, row

    def _is_done(self, row: BipsyncToken) -> bool:
        """Whether the button was pressed before, as a double click does."""
        is_theirs = row.user_id is not None and row.user_id == self.request.user.pk
        return is_theirs and row.status == BipsyncToken.Status.ACTIVE

    def _read(self, row: BipsyncToken) -> tuple[Claims, Tenant]:
        """Return the claims of the pair that waits. Raises ``SignInRefused``."""
        try:
            with _storing():
                tenant = get_tenant(row.tenant)
                claims = lifecycle.claims_of(row)
        except (KeysUnavailable, TokenRefused) as error:
            raise SignInRefused(_reason(error), str(error)) from error
        except SecretUnreadable as error:
            raise SignInRefused("misconfigured", str(error)) from error
        self.account, self.web_url = account_name(tenant, claims), tenant.web_url
        return claims, tenant

    def _connect(self, seen: BipsyncToken) -> None:
        claims, tenant = self._read(seen)

        def resolve_user(row: BipsyncToken) -> AbstractBaseUser:
            person = _person_here(self.request, in_transaction=True)
            return _user_of(self.request, SignIn(tenant, claims, row, person))

        with _storing():
            if lifecycle.confirm_connection(seen, claims, resolve_user=resolve_user) is None:
                # Pressed twice at the same moment, or decided on in another tab.
                now = lifecycle.connection_at(seen.pk, seen.generation)
                if now is None or not self._is_done(now):
                    raise SignInRefused("not_waiting", "The pair has changed meanwhile.")


@method_decorator([never_cache, login_required], name="dispatch")
class ConnectionView(View):
    """``connection/``: a person's own connections, in their words."""

    http_method_names = ["get", "head", "options"]

    def get(self, request: HttpRequest) -> HttpResponse:
        here = request.get_full_path()
        try:
            connections = [
                _connection(request.user, tenant, here)
                for tenant in get_settings().tenants.values()
            ]
        except ConfigurationError as error:
            return refuse(request, "misconfigured", str(error), retry_url=_home())
        context = {"connections": connections, "home_url": _home()}
        return render(request, "bipsync_django/connection.html", context)


@method_decorator([never_cache, login_required, outside_transactions], name="dispatch")
@method_decorator(csrf_protect, name="dispatch")
class DisconnectView(View):
    """``disconnect/<tenant>/``: what giving the connection up means, and a button that does it."""

    http_method_names = ["get", "head", "post", "options"]

    def get(self, request: HttpRequest, tenant: str) -> HttpResponse:
        return self._answer(request, tenant, "bipsync_django/disconnect.html")

    def post(self, request: HttpRequest, tenant: str) -> HttpResponse:
        return self._answer(request, tenant, "bipsync_django/disconnected.html")

    def _answer(self, request: HttpRequest, slug: str, template: str) -> HttpResponse:
        try:
            tenant = get_settings().tenants.get(slug)
        except ConfigurationError:
            tenant = None
        person: Any = request.user
        grant = None if tenant is None else lifecycle.grant_of(person, tenant)
        if grant is None or grant.status == BipsyncToken.Status.DISCONNECTED or tenant is None:
            return HttpResponseRedirect(reverse("bipsync:connection"))
        ends_session = sessions.is_bound_to(request, grant)
        if request.method == "POST":
            try:
                expect_own_person(request)
            except SignInRefused as refused:
                here = reverse("bipsync:connection")
                return refuse(request, refused.reason, str(refused), retry_url=here)
            lifecycle.disconnect(grant, actor=person)
            if ends_session:
                logout(request)
        context = {
            "name": tenant.name,
            "web_url": tenant.web_url,
            "ends_session": ends_session,
            "back_url": reverse("bipsync:connection"),
            "login_url": login_url(""),
        }
        return render(request, template, context)


@method_decorator(login_not_required, name="dispatch")
class LogoutView(auth_views.LogoutView):
    """``logout/``: sign out here, by POST. The person stays signed in at Bipsync.

    A GET, such as that of an old link, shows the button that does it.
    """

    http_method_names = ["get", "head", "post", "options"]
    template_name = "bipsync_django/signed_out.html"

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Ask a person who is signed in, and tell a visitor that nobody is."""
        is_signed_in = request.user.is_authenticated
        template = "bipsync_django/sign_out.html" if is_signed_in else self.template_name
        context = {"login_url": login_url(""), "home_url": _home()}
        return render(request, template, context)

    def get_redirect_url(self, *args: Any) -> str:
        # Django 6 may pass the request.
        url: str = super().get_redirect_url(*args)
        # Django does not know that a browser speaks https where only REDIRECT_URI says so.
        hosts = self.get_success_url_allowed_hosts()
        return url if url and flow.stays_on(self.request, url, hosts) else ""

    def get_default_redirect_url(self) -> str:
        url: str = super().get_default_redirect_url()
        # Django answers an unsafe ?next= with a redirect to this page, which refuses GET.
        return self.request.get_full_path() if url == self.request.path else url

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(login_url=login_url(""), **kwargs)


def leave(
    request: HttpRequest,
    tenant: Tenant,
    purpose: str,
    *,
    next_url: str,
    scopes: Iterable[str] | None = None,
) -> HttpResponse:
    """Send the person who has pressed a button to Bipsync, on a trip that only they can end.

    ``purpose``, ``next_url`` and ``scopes`` are as in ``flow.begin``, which raises what this does;
    and ``SignInRefused`` while the person acts as another.
    """
    expect_own_person(request)
    away = flow.begin(
        request,
        tenant,
        purpose=purpose,
        next_url=next_url,
        scopes=scopes,
        user=str(request.user.pk),
    )
    # No redirect: where a Content-Security-Policy says form-action 'self', browsers would
    # follow none to Bipsync from a form.
    response = render(request, "bipsync_django/leave.html", {"bipsync_url": away.url})
    response.headers["Refresh"] = f"0; url={away.url}"
    response.cookies = away.cookies
    return response


def _connection(person: Any, tenant: Tenant, here: str) -> dict[str, Any]:
    grant = lifecycle.grant_of(person, tenant)
    status = None if grant is None else grant.status
    return {
        "name": tenant.name,
        "grant": grant,
        "account": grant.claims.get("name") or grant.claims.get("email") if grant else None,
        "works": status == BipsyncToken.Status.ACTIVE,
        "needs_sign_in": status == BipsyncToken.Status.NEEDS_SIGN_IN,
        "scopes": scopes.describe(grant.scope_set) if grant else [],
        "login_url": login_url(here, tenant.slug),
        "connect_url": _connect_url(here, tenant.slug),
        "disconnect_url": reverse("bipsync:disconnect", kwargs={"tenant": tenant.slug}),
    }


def expect_own_person(request: HttpRequest) -> None:
    """Raise ``SignInRefused`` while a person acts as another: what is joined stays joined."""
    if sessions.is_acting_as_another(request):
        raise SignInRefused("impersonation", "Somebody acts as the user of this session.")


def _reason(error: RetryLater | KeysUnavailable | TokenRefused) -> str:
    """Return which page tells of ``error``: is it time that mends it, or an administrator?"""
    is_strange = isinstance(error, RetryLater) and error.code == "unexpected_token_type"
    if is_strange or isinstance(error, KeysUnusable | TokenRefused):
        return "token_refused"
    return "unavailable"


@contextmanager
def _storing() -> Iterator[None]:
    """Turn what goes wrong with settings and database into a page."""
    try:
        yield
    except ConfigurationError as error:
        raise SignInRefused("misconfigured", str(error)) from error
    except Error as error:
        raise SignInRefused("storage_unavailable", type(error).__name__) from error


def _as_django_finds_them(user: Any) -> Any:
    """Return the user as the next request will have them. Raises ``SignInRefused`` if it will not.

    A site's backend may know better than its policy who may be signed in. A user who is inactive
    from the start is stored, for somebody to switch on.
    """
    if not user.is_active:
        return user
    backend: Any = load_backend(user.backend)
    found = backend.get_user(user.pk)
    model = get_user_model()
    if found is None and not model._base_manager.filter(pk=user.pk).exists():
        # A replica does not have a user yet who was created in this transaction.
        found = user if backend.user_can_authenticate(user) else None
    if found is None:
        raise SignInRefused(
            "not_allowed",
            f"get_user() of {user.backend} does not return the user with primary key {user.pk}, "
            "so the next request would not be signed in.",
        )
    found.backend = user.backend
    return found


def _log_in(request: HttpRequest, user: AbstractBaseUser, token: BipsyncToken) -> None:
    """Begin the session of ``user``, which depends on ``token`` from now on."""
    # The person who was sent here by a form goes back to it: its CSRF token stays good.
    secret = request.META.get("CSRF_COOKIE") if sessions.was_of(request, user) else None
    sessions.bring_back(request)
    if SESSION_KEY in request.session:
        # login() keeps the key of a session that is this user's already, and so every
        # copy of its cookie, also one that an administrator has just shut out.
        request.session.cycle_key()
    sessions.bind_to(request, token)
    login(request, user)  # type: ignore[arg-type]
    if secret is not None:
        request.META.update(CSRF_COOKIE=secret, CSRF_COOKIE_NEEDS_UPDATE=True)


def _tenant_at(slug: str | None) -> Tenant:
    """Return the tenant of an address. Raises ``ConfigurationError`` when it has to be named."""
    if slug is not None and slug not in get_settings().tenants:
        raise SignInRefused("unknown_tenant", "The address names a tenant that is not there.")
    return get_tenant(slug)


def _choices(next_url: str) -> list[dict[str, str]]:
    return [
        {"name": tenant.name, "url": login_url(next_url, tenant.slug)}
        for tenant in get_settings().tenants.values()
    ]


def _connect_url(next_url: str, tenant: str | None) -> str:
    query = f"?{urlencode({'next': next_url})}" if next_url else ""
    kwargs = {} if tenant is None else {"tenant": tenant}
    return reverse("bipsync:connect", kwargs=kwargs) + query


def _person_here(request: HttpRequest, *, in_transaction: bool = False) -> AbstractBaseUser:
    """Return who is signed in, as they are in the database now. Raises ``SignInRefused``.

    With ``in_transaction`` they stay so until it ends: a rule that joins the user to somebody else
    comes before or after.
    """
    people = get_user_model()._default_manager.using(database())
    people = people.select_for_update() if in_transaction else people.all()
    person: AbstractBaseUser | None = people.filter(pk=request.user.pk or 0).first()
    if person is None:
        raise SignInRefused("other_person", "The user is not there any more.")
    hashes = [person.get_session_auth_hash(), *person.get_session_auth_fallback_hash()]
    stored = request.session.get(HASH_SESSION_KEY, "")
    if not any(constant_time_compare(stored, one) for one in hashes):
        raise SignInRefused("other_person", "The session has ended meanwhile.")
    return person


def _user_of(request: HttpRequest, sign_in: SignIn) -> AbstractBaseUser:
    """Ask the site's policy whose user this is. Raises ``SignInRefused``."""
    user = authenticate(request, bipsync=sign_in)
    if user is None:
        raise SignInRefused(
            "misconfigured",
            "No backend took the sign-in: add bipsync_django.backends.BipsyncBackend to "
            "AUTHENTICATION_BACKENDS.",
        )
    return user


def _is_script(request: HttpRequest) -> bool:
    """Whether a script asks, and not a browser or a person with curl, who take anything."""
    takes_anything = "*/*" in request.headers.get("Accept", "")
    return not wants_page(request) and ("Sec-Fetch-Mode" in request.headers or not takes_anything)


def _forget_query(request: HttpRequest) -> None:
    """Mails about errors, error trackers and logs show the request in full, and so its code."""
    request.GET = QueryDict()
    # The last two are what gunicorn and uWSGI add.
    for name in ("QUERY_STRING", "RAW_URI", "REQUEST_URI"):
        if name in request.META:
            request.META[name] = ""
    if isinstance(scope := getattr(request, "scope", None), dict):
        scope["query_string"] = b""


def _destination(request: HttpRequest, trip: flow.Trip) -> str:
    return _next_or_home(request, trip.next)


def _next_or_home(request: HttpRequest, next_url: str) -> str:
    return flow.safe_next(request, next_url) or _home()


def _home() -> str:
    return resolve_url(settings.LOGIN_REDIRECT_URL)
