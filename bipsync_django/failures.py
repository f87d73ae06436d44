"""What is told to somebody who cannot be shown what they asked for: a person, or a program.

The sentences are for staff members: no vocabulary of OAuth, and never the provider's own text.
"""

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.cache import add_never_cache_headers
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from .conf import get_settings
from .exceptions import ConfigurationError
from .flow import safe_next

__all__ = ["FAILURES", "Failure", "login_url", "refuse", "refuse_program", "wants_page"]

logger = logging.getLogger(__name__)

_TRY_AGAIN = _("Try again")


@dataclass(frozen=True)
class Failure:
    """One way not to get on: the HTTP status, a heading, a sentence or two, and a link's words.

    ``needs_administrator`` says that trying again alone will not help, and ``shows_account`` that
    it helps to know as whom the person is signed in at Bipsync. ``opens_tab`` says that the link
    leaves the page where it is.
    """

    status: int
    title: Promise
    text: Promise
    needs_administrator: bool = False
    shows_account: bool = False
    opens_tab: bool = False
    retry: Promise = _TRY_AGAIN


FAILURES: Mapping[str, Failure] = {
    "declined": Failure(
        403,
        _("You did not give permission"),
        _("You chose not to let this site use Bipsync for you, so nothing has changed."),
    ),
    "unknown_state": Failure(
        400,
        _("This sign-in was not started here"),
        _(
            "It may have been started in another browser, or too long ago. Start again from "
            "this page."
        ),
    ),
    "expired_state": Failure(
        400,
        _("This sign-in took too long"),
        _("For your safety a sign-in has to be finished within ten minutes."),
    ),
    "replayed_state": Failure(
        400,
        _("This sign-in link was used already"),
        _("Each sign-in works once. If you are not signed in yet, start again."),
    ),
    "incomplete": Failure(
        400,
        _("The sign-in did not come back complete"),
        _("Something was missing on the way back from Bipsync."),
    ),
    "code_refused": Failure(
        400,
        _("Bipsync did not confirm the sign-in"),
        _("This can happen when a page is reloaded half-way through."),
    ),
    "too_many": Failure(
        429,
        _("There are too many sign-ins at this moment"),
        _("Please wait a minute, then try again."),
    ),
    "unavailable": Failure(
        503,
        _("Bipsync cannot be reached"),
        _("It is not you. Please wait a minute, then try again."),
    ),
    "storage_unavailable": Failure(
        503,
        _("This site cannot sign you in at the moment"),
        _("It is not you, and not Bipsync. Please wait a minute, then try again."),
    ),
    "other_person": Failure(
        403,
        _("Somebody else is signed in here now"),
        _(
            "This was begun by another person than the one who is signed in here now, so nothing "
            "has changed."
        ),
        retry=_("Continue"),
    ),
    "other_account": Failure(
        403,
        _("You are signed in at Bipsync as somebody else"),
        _(
            "The Bipsync account that answered is not the one that belongs to you here, so "
            "nothing has changed. Sign out at Bipsync, then try again."
        ),
        shows_account=True,
    ),
    "not_waiting": Failure(
        409,
        _("There is nothing to confirm any more"),
        _(
            "This connection has been decided on already, was begun once more by somebody, or has "
            "waited too long. Nothing was done just now."
        ),
        retry=_("Start again"),
    ),
    "wrong_address": Failure(
        400,
        _("This sign-in came back by the wrong way"),
        _("The answer did not come from where you were sent, so it was not used. Start again."),
    ),
    "unknown_tenant": Failure(
        404,
        _("There is no sign-in at this address"),
        _("The address may be old or mistyped."),
        retry=_("Go to the sign-in page"),
    ),
    "missing_scope": Failure(
        403,
        _("This page needs another permission"),
        _(
            "You have just been at Bipsync, but what this page needs was not allowed there. You "
            "can be asked once more."
        ),
        retry=_("Ask again"),
    ),
    "no_connection": Failure(
        403,
        _("Your connection to Bipsync does not work"),
        _(
            "You have just been at Bipsync, and it still does not answer for you. Please wait a "
            "minute, then try again."
        ),
    ),
    "impersonation": Failure(
        403,
        _("You act as somebody else at the moment"),
        _(
            "Only its own person can connect or disconnect a Bipsync account. Stop acting as "
            "somebody else, then try again."
        ),
    ),
    "sign_in_again": Failure(
        403,
        _("Nothing was sent: please sign in again"),
        _(
            "Your connection to Bipsync has ended, and this site signed you out with it. Sign in "
            "again in another tab. Then come back to this one, go back to your form, and send it "
            "once more: your browser keeps what you typed."
        ),
        opens_tab=True,
        retry=_("Sign in again (new tab)"),
    ),
    "no_answer": Failure(
        503,
        _("Bipsync cannot be asked at the moment"),
        _("It is not you, and you are still signed in. Please wait a minute, then try again."),
    ),
    "misconfigured": Failure(
        503,
        _("Signing in with Bipsync is not set up correctly"),
        _("It is not you. An administrator of this site has to look at it."),
        needs_administrator=True,
    ),
    "token_refused": Failure(
        502,
        _("Bipsync's answer could not be trusted"),
        _("You have not been signed in, to be on the safe side."),
        needs_administrator=True,
    ),
    "address_refused": Failure(
        502,
        _("Bipsync does not accept calls from this site"),
        _("It is not you. An administrator of this site has to look at it."),
        needs_administrator=True,
    ),
    "not_permitted": Failure(
        502,
        _("Bipsync did not allow what this page asked for"),
        _(
            "If you have just taken your permission back at Bipsync, sign in again. If you have "
            "not, an administrator of this site has to look at it."
        ),
        needs_administrator=True,
        retry=_("Sign in again"),
    ),
    "no_permission": Failure(
        403,
        _("You may not see this page"),
        _(
            "You are signed in, and your account here lacks a permission that this page needs. An "
            "administrator of this site can give it to you."
        ),
        needs_administrator=True,
        retry=_("Sign in as somebody else"),
    ),
    "not_allowed": Failure(
        403,
        _("You do not have access to this site"),
        _("Bipsync knows you, but this site does not let your account in."),
        needs_administrator=True,
        shows_account=True,
    ),
    "email_domain": Failure(
        403,
        _("Your e-mail address does not belong to this site"),
        _("Bipsync knows you by an address that this site does not let in."),
        needs_administrator=True,
        shows_account=True,
    ),
    "no_account": Failure(
        403,
        _("You do not have an account here yet"),
        _("Bipsync knows you. An administrator of this site has to give you an account first."),
        needs_administrator=True,
        shows_account=True,
    ),
    "account_exists": Failure(
        403,
        _("Your account could not be created"),
        _("Another account here looks like yours. An administrator has to connect the two."),
        needs_administrator=True,
        shows_account=True,
    ),
    "no_email": Failure(
        403,
        _("Your e-mail address is missing"),
        _("Bipsync names no e-mail address of yours that this site may use, and it needs one."),
        needs_administrator=True,
        shows_account=True,
    ),
    "service_account": Failure(
        403,
        _("This Bipsync account does not belong to a person"),
        _(
            "This site uses it for its own work, so nobody can sign in with it. Sign in at "
            "Bipsync as yourself, and try again."
        ),
        needs_administrator=True,
        shows_account=True,
    ),
    "person_account": Failure(
        403,
        _("This Bipsync account belongs to a person"),
        _(
            "Somebody signs in here with it, so it cannot do this site's own work. Sign in at "
            "Bipsync as the service account, and try again."
        ),
        needs_administrator=True,
        shows_account=True,
    ),
    "inactive": Failure(
        403,
        _("Your account is switched off"),
        _("An administrator of this site has switched your account off."),
        needs_administrator=True,
        shows_account=True,
    ),
}


def wants_page(request: HttpRequest) -> bool:
    """Return whether a person in front of a browser waits for a page, and no program for data.

    Browsers say so themselves in ``Sec-Fetch-Mode`` (Fetch Metadata). Where that is missing, as
    over plain http, a JSON body, ``X-Requested-With`` and an ``Accept`` that does not name HTML
    tell a program. A request without ``Accept`` counts as a person's: so is Django's test client.
    """
    mode = request.headers.get("Sec-Fetch-Mode")
    if mode is not None:
        return mode == "navigate"
    if request.headers.get("X-Requested-With") == "XMLHttpRequest":
        return False
    if request.content_type == "application/json":
        return False
    return "Accept" not in request.headers or any(
        f"{kind.main_type}/{kind.sub_type}" in {"text/html", "application/xhtml+xml", "text/*"}
        for kind in request.accepted_types
    )


def refuse(
    request: HttpRequest,
    reason: str,
    detail: str,
    *,
    retry_url: str,
    as_page: bool = True,
    account: str = "",
    web_url: str = "",
) -> HttpResponse:
    """Return the page (or, without ``as_page``, the JSON) for ``reason``, and log why.

    ``reason`` is a key of ``FAILURES``, or a site's own. ``detail`` goes into the log alone, under
    the reference that the person is given. ``retry_url`` is where the page's link leads.
    ``account`` is what the person's Bipsync account is called, where it is known, and ``web_url``
    is Bipsync's web app, where they can change to another.
    """
    # A site's own policy may give a reason of its own.
    failure = FAILURES.get(reason) or FAILURES["not_allowed"]
    reference = f"{secrets.token_hex(2)}-{secrets.token_hex(2)}".upper()
    is_for_administrators = failure.needs_administrator and failure.status >= 500
    logger.log(
        logging.ERROR if is_for_administrators else logging.WARNING,
        "Refused, reference %s: %s (%s)",
        reference,
        reason,
        detail,
    )
    response: HttpResponse
    if as_page:
        context = {
            "failure": failure,
            "reason": reason,
            "reference": reference,
            "retry_url": retry_url,
            "account": account if failure.shows_account else "",
            "web_url": web_url,
        }
        response = render(request, "bipsync_django/failure.html", context, status=failure.status)
    else:
        detail = f"{failure.title}. {failure.text}"
        content = {"error": reason, "detail": detail, "reference": reference}
        response = JsonResponse(content, status=failure.status)
    if failure.status in {429, 503}:
        response.headers["Retry-After"] = "60"
    add_never_cache_headers(response)
    return response


def refuse_program(
    request: HttpRequest, error: str, *, tenant: str | None = None, **more: Any
) -> HttpResponse:
    """Return the 401 for a program whose person has to go to Bipsync first.

    ``error`` and ``more`` are members of the JSON answer. Where signing in helps, it says where:
    at an address that leads back to the page that the program runs in, if that is known.
    ``tenant`` is the slug of the tenant to sign in at, where it has to be one.
    """
    if error == "sign_in_required":
        page = safe_next(request, request.headers.get("Referer", ""))
        more["sign_in_url"] = login_url(page, tenant)
    response = JsonResponse({"error": error, **more}, status=401)
    # RFC 9110, section 15.5.2, wants one. No browser opens its password box for this name.
    response.headers["WWW-Authenticate"] = "Session"
    add_never_cache_headers(response)
    return response


def login_url(next_url: str, tenant: str | None = None) -> str:
    """Return the address of the sign-in, which goes on to ``next_url``.

    ``tenant`` is the slug of the tenant to sign in at; without it people choose, if they can.
    """
    query = f"?{urlencode({'next': next_url})}" if next_url else ""
    return reverse("bipsync:login", kwargs=_place(tenant)) + query


def _place(tenant: str | None) -> dict[str, str]:
    """Return the URL's own part: a single tenant needs none, and an unknown one gets none."""
    try:
        tenants = get_settings().tenants
    except ConfigurationError:
        return {}
    if tenant is None or tenant not in tenants or len(tenants) == 1:
        return {}
    return {"tenant": tenant}
