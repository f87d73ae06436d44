"""The browser side of signing in and out."""

from typing import Any

from django.conf import settings
from django.contrib.auth import authenticate, login
from django.contrib.auth import views as auth_views
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.models import AbstractBaseUser
from django.db import Error, connections, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect, QueryDict
from django.shortcuts import render, resolve_url
from django.utils.decorators import method_decorator
from django.utils.encoding import escape_uri_path
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_variables
from django.views.generic import View

from . import flow, lifecycle
from .backends import SignIn
from .conf import Tenant, get_tenant
from .decorators import note_return
from .exceptions import (
    ConfigurationError,
    GrantDead,
    KeysUnavailable,
    ProviderMisconfigured,
    RetryLater,
    SignInRefused,
    TokenRefused,
)
from .failures import login_url, refuse, refuse_program, wants_page
from .middleware import end_lapsed_session, stamp
from .models import BipsyncToken
from .oauth.claims import Claims, validate_access_token
from .oauth.client import TokenPair, exchange_code

__all__ = ["CallbackView", "LoginView", "LogoutView"]

_RESUMED = "resumed"
_LONGEST_PARAMETER = 8192
_PROVIDER_ERRORS = {
    "access_denied": "declined",
    "invalid_request": "misconfigured",
    "invalid_scope": "misconfigured",
    "unauthorized_client": "misconfigured",
    "unsupported_response_type": "misconfigured",
}


def _outside_transactions(view: Any) -> Any:
    """Keep ``ATOMIC_REQUESTS`` off: a new grant must not be rolled back with its request."""
    for alias in connections:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


@method_decorator([login_not_required, never_cache, _outside_transactions], name="dispatch")
class _SignInView(View):
    """What both ends of a trip share: nothing is cached, and every failure is a page."""

    http_method_names = ["get", "head", "options"]

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            response = super().dispatch(request, *args, **kwargs)
        except SignInRefused as refused:
            response = self.refuse(request, refused)
            _forget_query(request)
        except Exception:
            _forget_query(request)
            raise
        # The callback's URL holds a code, which no other site is to see.
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    def refuse(self, request: HttpRequest, refused: SignInRefused) -> HttpResponse:
        """Answer with a page that says why."""
        retry_url = self.retry_url(request, refused.reason)
        return refuse(request, refused.reason, str(refused), retry_url=retry_url)

    def retry_url(self, request: HttpRequest, reason: str) -> str:
        """Where to start again."""
        return login_url(self.next_url(request))

    def next_url(self, request: HttpRequest) -> str:
        """Where the person was going."""
        return flow.safe_next(request, request.GET.get("next", ""))


class LoginView(_SignInView):
    """``login/?next=…``: send the browser to Bipsync."""

    def get(self, request: HttpRequest) -> HttpResponse:
        if _is_script(request):
            # A script that followed a redirect to Bipsync's pages would only fail there.
            return refuse_program(request, "sign_in_required")
        try:
            return flow.begin(request, get_tenant(), next_url=self.next_url(request))
        except ConfigurationError as error:
            raise SignInRefused("misconfigured", str(error)) from error


class CallbackView(_SignInView):
    """``callback/``: the browser comes back from Bipsync (RFC 6749, section 4.1.2)."""

    def get(self, request: HttpRequest) -> HttpResponse:
        trip = flow.find(request, self._parameter("state"))
        if settings.SESSION_COOKIE_SAMESITE == "Strict" and _RESUMED not in request.GET:
            return self._resume(request)
        flow.spend(trip)
        if "error" in request.GET:
            self._raise_provider_error()
        self._expect_the_same_person(trip)
        claims, pair, tenant = self._redeem(trip, self._parameter("code"))
        user, token = self._sign_in(trip, tenant, claims, pair)
        if not user.is_active:
            # Created so, to be switched on by somebody: the next request would not know them.
            raise SignInRefused("inactive", f"The user with primary key {user.pk} is inactive.")
        login(request, user)  # type: ignore[arg-type]
        stamp(request, token)
        if trip.purpose == flow.STEP_UP:
            note_return(request, trip)
        response = HttpResponseRedirect(_destination(request, trip))
        flow.end(request, response, trip.state)
        return response

    def refuse(self, request: HttpRequest, refused: SignInRefused) -> HttpResponse:
        if refused.reason == "declined":
            end_lapsed_session(request)
        response = super().refuse(request, refused)
        if refused.reason not in {"unknown_state", "replayed_state"}:
            flow.end(request, response, request.GET.get("state", ""))
        return response

    def retry_url(self, request: HttpRequest, reason: str) -> str:
        trip = flow.recall(request, request.GET.get("state", ""))
        if reason == "other_person":
            return resolve_url(settings.LOGIN_REDIRECT_URL)
        if trip is not None and trip.purpose == flow.STEP_UP:
            # The page itself knows what to ask for.
            return _destination(request, trip)
        return login_url(trip.next if trip is not None else "")

    def _parameter(self, name: str) -> str:
        values = self.request.GET.getlist(name)
        if len(values) != 1 or not 0 < len(values[0]) <= _LONGEST_PARAMETER:
            error = self.request.GET.get("error", "")
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
        query = request.GET.copy()
        query[_RESUMED] = "1"
        url = f"{escape_uri_path(request.path)}?{query.urlencode()}"
        response = render(request, "bipsync_django/resume.html", {"resume_url": url})
        response.headers["Refresh"] = f"0; url={url}"
        return response

    def _raise_provider_error(self) -> None:
        error = self.request.GET["error"]
        reason = _PROVIDER_ERRORS.get(error, "unavailable")
        known = error if error in _PROVIDER_ERRORS else "an error of its own"
        raise SignInRefused(reason, f"Bipsync sent the browser back with {known}.")

    def _expect_the_same_person(self, trip: flow.Trip) -> None:
        """A trip that one person began must not end in the session of another (RFC 9700, 4.7)."""
        try:
            user = self.request.user
            is_other = bool(trip.user) and user.is_authenticated and str(user.pk) != trip.user
        except Error as error:
            raise SignInRefused("storage_unavailable", type(error).__name__) from error
        if is_other:
            raise SignInRefused("other_person", "The session is by now another person's.")

    @sensitive_variables()
    def _redeem(self, trip: flow.Trip, code: str) -> tuple[Claims, TokenPair, Tenant]:
        try:
            tenant = get_tenant(trip.tenant)
            pair = exchange_code(
                tenant, code=code, verifier=trip.verifier, redirect_uri=trip.redirect_uri
            )
            claims = validate_access_token(pair.access_token, tenant, from_provider=True)
        except GrantDead as error:
            raise SignInRefused("code_refused", str(error)) from error
        except (ProviderMisconfigured, ConfigurationError) as error:
            raise SignInRefused("misconfigured", str(error)) from error
        except (RetryLater, KeysUnavailable) as error:
            raise SignInRefused("unavailable", str(error)) from error
        except TokenRefused as error:
            raise SignInRefused("token_refused", str(error)) from error
        return claims, pair, tenant

    @sensitive_variables()
    def _sign_in(
        self, trip: flow.Trip, tenant: Tenant, claims: Claims, pair: TokenPair
    ) -> tuple[AbstractBaseUser, BipsyncToken]:
        signed_in: list[AbstractBaseUser] = []

        def resolve_user(known: AbstractBaseUser | None) -> AbstractBaseUser:
            if trip.user and (known is None or str(known.pk) != trip.user):
                raise SignInRefused(
                    "other_account",
                    f"The trip was begun for the user with primary key {trip.user}, and the "
                    f"Bipsync account belongs to {'nobody' if known is None else known.pk}.",
                )
            user = authenticate(self.request, bipsync=SignIn(tenant, claims, known))
            if user is None:
                raise SignInRefused(
                    "misconfigured",
                    "No backend took the sign-in: add bipsync_django.backends.BipsyncBackend to "
                    "AUTHENTICATION_BACKENDS.",
                )
            signed_in.append(user)
            return user

        try:
            token = lifecycle.sign_in(
                tenant, claims, pair, scopes=trip.scopes, resolve_user=resolve_user
            )
        except ConfigurationError as error:
            raise SignInRefused("misconfigured", str(error)) from error
        except Error as error:
            raise SignInRefused("storage_unavailable", type(error).__name__) from error
        return signed_in[0], token


@method_decorator(login_not_required, name="dispatch")
class LogoutView(auth_views.LogoutView):
    """``logout/``, POST only: sign out here. The person stays signed in at Bipsync."""

    http_method_names = ["post", "options"]
    template_name = "bipsync_django/signed_out.html"

    def get_default_redirect_url(self) -> str:
        url: str = super().get_default_redirect_url()
        # Django answers an unsafe ?next= with a redirect to this page, which refuses GET.
        return self.request.get_full_path() if url == self.request.path else url

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(login_url=login_url(""), **kwargs)


def _is_script(request: HttpRequest) -> bool:
    """Whether a script asks, and not a browser or a person with curl, who take anything."""
    takes_anything = "*/*" in request.headers.get("Accept", "")
    return not wants_page(request) and ("Sec-Fetch-Mode" in request.headers or not takes_anything)


def _forget_query(request: HttpRequest) -> None:
    """Django reports errors to the site's admins with the request in full, and so with the code."""
    request.GET = QueryDict()
    # The last two are what gunicorn and uWSGI add.
    for name in ("QUERY_STRING", "RAW_URI", "REQUEST_URI"):
        if name in request.META:
            request.META[name] = ""
    if isinstance(scope := getattr(request, "scope", None), dict):
        scope["query_string"] = b""


def _destination(request: HttpRequest, trip: flow.Trip) -> str:
    return flow.safe_next(request, trip.next) or resolve_url(settings.LOGIN_REDIRECT_URL)
