"""The browser side of signing in and out."""

import logging
import secrets
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib.auth import authenticate, login
from django.contrib.auth import views as auth_views
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.models import AbstractBaseUser
from django.db import Error, connections, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect, QueryDict
from django.shortcuts import render, resolve_url
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.utils.encoding import escape_uri_path
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_variables
from django.views.generic import View

from . import flow, lifecycle
from .backends import SignIn
from .conf import Tenant, get_tenant
from .exceptions import (
    ConfigurationError,
    GrantDead,
    KeysUnavailable,
    ProviderMisconfigured,
    RetryLater,
    SignInRefused,
    TokenRefused,
)
from .failures import FAILURES
from .oauth.claims import Claims, validate_access_token
from .oauth.client import TokenPair, exchange_code

__all__ = ["CallbackView", "LoginView", "LogoutView"]

logger = logging.getLogger(__name__)

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
        # The callback's URL holds a code, which no other site is to see.
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    def refuse(self, request: HttpRequest, refused: SignInRefused) -> HttpResponse:
        """Answer with a page that says why, and log the same under a reference."""
        # A site's own policy may give a reason of its own.
        failure = FAILURES.get(refused.reason) or FAILURES["not_allowed"]
        reference = f"{secrets.token_hex(2)}-{secrets.token_hex(2)}".upper()
        is_for_administrators = failure.needs_administrator and failure.status >= 500
        logger.log(
            logging.ERROR if is_for_administrators else logging.WARNING,
            "Sign-in refused, reference %s: %s (%s)",
            reference,
            refused.reason,
            refused,
        )
        context = {
            "failure": failure,
            "reason": refused.reason,
            "reference": reference,
            "retry_url": _login_url(self.next_url(request)),
        }
        response = render(request, "bipsync_django/failure.html", context, status=failure.status)
        if failure.status == 503:
            response.headers["Retry-After"] = "60"
        return response

    def next_url(self, request: HttpRequest) -> str:
        """Where the person was going."""
        raise NotImplementedError


class LoginView(_SignInView):
    """``login/?next=…``: send the browser to Bipsync."""

    def get(self, request: HttpRequest) -> HttpResponse:
        try:
            return flow.begin(request, get_tenant(), next_url=self.next_url(request))
        except ConfigurationError as error:
            raise SignInRefused("misconfigured", str(error)) from error

    def next_url(self, request: HttpRequest) -> str:
        return flow.safe_next(request, request.GET.get("next", ""))


class CallbackView(_SignInView):
    """``callback/``: the browser comes back from Bipsync (RFC 6749, section 4.1.2)."""

    def get(self, request: HttpRequest) -> HttpResponse:
        trip = flow.find(request, self._parameter("state"))
        if settings.SESSION_COOKIE_SAMESITE == "Strict" and _RESUMED not in request.GET:
            return self._resume(request)
        flow.spend(trip)
        if "error" in request.GET:
            self._raise_provider_error()
        claims, pair, tenant = self._redeem(trip, self._parameter("code"))
        user = self._sign_in(trip, tenant, claims, pair)
        if not user.is_active:
            # Created so, to be switched on by somebody: the next request would not know them.
            raise SignInRefused("inactive", f"The user with primary key {user.pk} is inactive.")
        login(request, user)  # type: ignore[arg-type]
        response = HttpResponseRedirect(
            flow.safe_next(request, trip.next) or resolve_url(settings.LOGIN_REDIRECT_URL)
        )
        flow.end(request, response, trip.state)
        return response

    def refuse(self, request: HttpRequest, refused: SignInRefused) -> HttpResponse:
        response = super().refuse(request, refused)
        if refused.reason not in {"unknown_state", "replayed_state"}:
            flow.end(request, response, request.GET.get("state", ""))
        # Django reports answers of 500 and above to the site's admins, with the request in full.
        request.GET = QueryDict()
        request.META["QUERY_STRING"] = ""
        return response

    def next_url(self, request: HttpRequest) -> str:
        trip = flow.recall(request, request.GET.get("state", ""))
        return trip.next if trip is not None else ""

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
    ) -> AbstractBaseUser:
        signed_in: list[AbstractBaseUser] = []

        def resolve_user(known: AbstractBaseUser | None) -> AbstractBaseUser:
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
            lifecycle.sign_in(tenant, claims, pair, scopes=trip.scopes, resolve_user=resolve_user)
        except Error as error:
            raise SignInRefused("storage_unavailable", type(error).__name__) from error
        return signed_in[0]


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
        return super().get_context_data(login_url=_login_url(""), **kwargs)


def _login_url(next_url: str) -> str:
    query = f"?{urlencode({'next': next_url})}" if next_url else ""
    return reverse("bipsync:login") + query
