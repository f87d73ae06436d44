"""How the connections are, in counts, for a monitoring system.

No URL leads here by itself: a site that wants it routes ``health``, and sets ``HEALTH_TOKEN``.
"""

import logging

from django.contrib.auth.decorators import login_not_required
from django.db import Error
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.utils.crypto import constant_time_compare
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from . import health as figures
from . import lifecycle
from .conf import get_settings
from .exceptions import ConfigurationError
from .redaction import without_traces

__all__ = ["health"]

logger = logging.getLogger(__name__)


@login_not_required
@never_cache
@require_safe
@without_traces
def health(request: HttpRequest) -> HttpResponse:
    """Answer with counts for each tenant, to who shows ``HEALTH_TOKEN`` as a bearer token.

    It says how the connections are, and not whether this process lives: an answer with bad
    figures has the status 200 too. 401 is for a wrong token, 404 for no ``HEALTH_TOKEN``, and 503
    for figures that cannot be had.
    """
    try:
        token = get_settings().health_token
        if token is None:
            raise Http404("HEALTH_TOKEN is not set.")
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not constant_time_compare(shown, token):
            response = JsonResponse({"error": "token_refused"}, status=401)
            response.headers["WWW-Authenticate"] = 'Bearer realm="bipsync_django"'
            return response
        removed = [one for one in lifecycle.removed_tenants() if not one.is_given_up]
        return JsonResponse(
            {
                "tenants": {one.tenant: _counts(one) for one in figures.tenants()},
                "removed_tenants": {one.tenant: one.accounts + one.flags for one in removed},
            }
        )
    except ConfigurationError as error:
        logger.error("The figures cannot be had: %s", error)
        return JsonResponse({"error": "misconfigured"}, status=503)
    except Error as error:
        logger.error("The figures cannot be had (%s).", type(error).__name__)
        return JsonResponse({"error": "database"}, status=503)


def _counts(one: figures.TenantHealth) -> dict[str, int]:
    return {
        **one.by_status,
        "refresh_failing": one.failing,
        "refresh_overdue": one.overdue,
        "held_back": int(one.held_back_until is not None),
    }
