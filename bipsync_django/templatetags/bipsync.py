"""``{% load bipsync %}``."""

from typing import Any
from urllib.parse import urlencode

from django import template
from django.http import HttpRequest
from django.urls import reverse

register = template.Library()


@register.inclusion_tag("bipsync_django/login_button.html", takes_context=True)
def bipsync_login_button(context: template.Context, next_url: str | None = None) -> dict[str, Any]:
    """Render the button "Sign in with Bipsync".

    Afterwards the person comes to ``next_url``, else to the page's own ``?next=``, else to
    ``LOGIN_REDIRECT_URL``. Whatever is given, only an address on this site is followed.
    """
    request = context.get("request")
    if next_url is None and isinstance(request, HttpRequest):
        next_url = request.GET.get("next")
    query = f"?{urlencode({'next': next_url})}" if next_url else ""
    return {"url": reverse("bipsync:login") + query}
