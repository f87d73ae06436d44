"""The page of service accounts: connect one, read whose it is, confirm it or throw it away."""

import re
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _

from .. import flow, lifecycle, scopes
from ..conf import Tenant, get_settings, get_tenant
from ..exceptions import BipsyncError, ConfigurationError, SignInRefused
from ..failures import FAILURES, refuse
from ..models import BipsyncToken, TokenEvent
from ..views import CONNECT_SERVICE, leave
from .wording import badge, condition

__all__ = ["allowed", "view"]

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[BipsyncToken]
else:
    _ModelAdmin = admin.ModelAdmin

_NUMBER = re.compile(r"[0-9]{1,18}")

Status = BipsyncToken.Status


def allowed(request: HttpRequest) -> bool:
    """Return whether who asks may authorise and confirm service accounts."""
    user: Any = request.user
    return bool(user.has_perm(CONNECT_SERVICE))


def view(model_admin: _ModelAdmin, request: HttpRequest) -> HttpResponse:
    """Show the service accounts of all tenants, or do what a button of the page says."""
    if not allowed(request):
        raise PermissionDenied
    if request.method == "POST":
        return _do(model_admin, request)
    try:
        tenants = [_tenant(model_admin, request, one) for one in get_settings().tenants.values()]
    except ConfigurationError as error:
        messages.error(request, str(error))
        tenants = []
    context = {
        **model_admin.admin_site.each_context(request),
        "title": _("Service accounts"),
        "opts": model_admin.opts,
        "media": model_admin.media,
        "tenants": tenants,
        "has_several": len(tenants) > 1,
    }
    template = "admin/bipsync_django/bipsynctoken/service.html"
    return TemplateResponse(request, template, context)


def _tenant(model_admin: _ModelAdmin, request: HttpRequest, tenant: Tenant) -> dict[str, Any]:
    rows = model_admin.get_queryset(request).filter(
        tenant=tenant.slug, kind=BipsyncToken.Kind.SERVICE
    )
    used = rows.exclude(signed_in_at=None).exclude(status=Status.DISCONNECTED)
    return {
        "tenant": tenant,
        "used": [_told(row) for row in used.order_by("-signed_in_at")[:1]],
        "waiting": [_told(row) for row in rows.filter(status=Status.UNCONFIRMED)],
        "asks_for": scopes.describe(tenant.service_scopes),
    }


def _told(row: BipsyncToken) -> dict[str, Any]:
    authorised = row.events.filter(name=TokenEvent.Name.AUTHORISED).select_related("actor")
    return {
        "row": row,
        "badge": badge(condition(row)),
        "scopes": scopes.describe(row.scope_set),
        "authorised": authorised.order_by("-at").first(),
    }


def _do(model_admin: _ModelAdmin, request: HttpRequest) -> HttpResponse:
    here = request.get_full_path()
    try:
        if request.POST.get("do") == "connect":
            tenant = get_tenant(request.POST.get("tenant"))
            return leave(request, tenant, flow.SERVICE, next_url=here, scopes=tenant.service_scopes)
        _decide(model_admin, request)
    except SignInRefused as error:
        if error.reason == "too_many":
            return refuse(request, error.reason, str(error), retry_url=here)
        failure = FAILURES[error.reason]
        messages.error(request, f"{failure.title}. {failure.text}")
    except BipsyncError as error:
        messages.error(request, str(error))
    return HttpResponseRedirect(here)


def _decide(model_admin: _ModelAdmin, request: HttpRequest) -> None:
    """Confirm what was read, or throw it away."""
    pk, generation = request.POST.get("token", ""), request.POST.get("generation", "")
    # As it was on the page: what has come in the meantime, nobody has read.
    row = (
        model_admin.get_queryset(request)
        .filter(
            kind=BipsyncToken.Kind.SERVICE,
            status=Status.UNCONFIRMED,
            pk=pk if _NUMBER.fullmatch(pk) else 0,
            generation=generation if _NUMBER.fullmatch(generation) else 0,
        )
        .first()
    )
    person: Any = request.user
    confirms = request.POST.get("do") == "confirm"
    decide = lifecycle.confirm_service if confirms else lifecycle.discard
    if row is None or not decide(row, actor=person):
        messages.warning(request, _("That has changed meanwhile. Nothing was done."))
        return
    if confirms:
        messages.success(request, _("%(account)s is in use from now on.") % {"account": row.owner})
        model_admin.log_change(request, row, _("Confirmed as service account"))
    else:
        messages.success(request, _("%(account)s was thrown away.") % {"account": row.owner})
        model_admin.log_change(request, row, _("Thrown away as service account"))
