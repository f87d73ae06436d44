"""``{% load bipsync %}``."""

from typing import Any
from urllib.parse import urlencode

from django import template
from django.db.models import Model
from django.http import HttpRequest
from django.urls import reverse

from ..conf import get_settings
from ..exceptions import ConfigurationError
from ..failures import login_url
from ..flow import safe_next
from ..models import BipsyncToken

register = template.Library()


@register.inclusion_tag("bipsync_django/login_button.html", takes_context=True)
def bipsync_login_button(
    context: template.Context, next_url: str | None = None, tenant: str | None = None
) -> dict[str, Any]:
    """Render the button "Sign in with Bipsync".

    Afterwards the person comes to ``next_url``, else to the page's own ``?next=``, else to
    ``LOGIN_REDIRECT_URL``. Whatever is given, only an address on this site is followed.
    ``tenant`` is a slug; without it people choose where there are several.
    """
    request = context.get("request")
    if next_url is None and isinstance(request, HttpRequest):
        next_url = request.GET.get("next")
    return {"url": _address("login", next_url, tenant)}


@register.inclusion_tag("bipsync_django/connect_button.html", takes_context=True)
def bipsync_connect_button(
    context: template.Context, next_url: str | None = None, tenant: str | None = None
) -> dict[str, Any]:
    """Render the button "Connect my Bipsync account", for people who are signed in.

    Afterwards the person comes to ``next_url``, else back to the page that the button is on.
    ``tenant`` is a slug; without it people choose where there are several.
    """
    request = context.get("request")
    if next_url is None and isinstance(request, HttpRequest):
        next_url = safe_next(request, request.get_full_path())
    return {"url": _address("connect", next_url, tenant)}


@register.inclusion_tag("bipsync_django/attention.html", takes_context=True)
def bipsync_attention(context: template.Context) -> dict[str, Any]:
    """Render a line for people whose connection has to be renewed, and nothing for all others.

    For the site's base template. It costs one query on pages of people who are signed in.
    """
    request = context.get("request")
    user = getattr(request, "user", None)
    if request is None or not isinstance(user, Model):
        return {"ended": []}
    try:
        tenants = get_settings().tenants
    except ConfigurationError:
        return {"ended": []}
    rows = BipsyncToken.objects.for_user(user).filter(
        status=BipsyncToken.Status.NEEDS_SIGN_IN, tenant__in=list(tenants)
    )
    here = safe_next(request, request.get_full_path())
    slugs = rows.exclude(signed_in_at=None).values_list("tenant", flat=True)
    return {
        "ended": [
            {"name": tenants[slug].name, "url": login_url(here, slug)} for slug in sorted(slugs)
        ],
        "has_several": len(tenants) > 1,
    }


def _address(name: str, next_url: str | None, tenant: str | None) -> str:
    query = f"?{urlencode({'next': next_url})}" if next_url else ""
    return reverse(f"bipsync:{name}", kwargs={} if tenant is None else {"tenant": tenant}) + query
