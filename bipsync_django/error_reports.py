"""Nothing secret in Django's error pages, in the mails about errors, and in Sentry's events."""

import sys
from collections.abc import ItemsView, Mapping
from types import FrameType
from typing import Any, TypeVar

from django.conf import settings
from django.http import HttpRequest
from django.views.debug import SafeExceptionReporterFilter

from .redaction import REDACTED, names_secret, redact

__all__ = ["STOCK", "ReporterFilter", "guard", "redact_event"]

E = TypeVar("E")

_GUARDED = "_bipsync_is_guarded"
_PACKAGE = __name__.partition(".")[0]
STOCK = "django.views.debug.SafeExceptionReporterFilter"
"""Django's own, which is used where a site names none."""


class ReporterFilter(SafeExceptionReporterFilter):
    """Hides what this package handles, with ``DEBUG`` too.

    The variables of our own frames, our cookies, and whatever looks like a token in the site's.
    Name it in ``DEFAULT_EXCEPTION_REPORTER_FILTER``: then it holds for tasks, commands, and what
    fails before a request has come to ``BipsyncSessionMiddleware``, which uses it otherwise.
    """

    def get_safe_request_meta(self, request: HttpRequest) -> dict[str, Any]:
        """Return ``request.META`` without cookies, authorization, codes and states."""
        return {k: self._cleanse(v) for k, v in super().get_safe_request_meta(request).items()}

    def get_safe_cookies(self, request: HttpRequest) -> dict[str, Any]:
        """Return the cookies without the session's and without those of trips."""
        return {k: self._cleanse(v) for k, v in super().get_safe_cookies(request).items()}

    def get_traceback_frame_variables(
        self, request: HttpRequest | None, tb_frame: FrameType
    ) -> ItemsView[str, Any]:
        """Return the variables of a frame, each as it may be shown."""
        variables = dict(super().get_traceback_frame_variables(request, tb_frame))
        module = str(tb_frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] == _PACKAGE:
            return dict.fromkeys(variables, self.cleansed_substitute).items()
        return {name: self._cleanse(value) for name, value in variables.items()}.items()

    def _cleanse(self, value: Any) -> Any:
        try:
            # As Django is about to show it.
            text = value if isinstance(value, str) else repr(value)
        except Exception:  # noqa: BLE001 - of something inside; Django shows that it fails
            return value
        return value if redact(text) == text else self.cleansed_substitute


_FILTER = ReporterFilter()


def guard(request: HttpRequest) -> None:
    """Report errors of this request without secrets: in Django's reports, and in Sentry.

    Django's reports use ``ReporterFilter``, unless the site has chosen a filter of its own.
    """
    if settings.DEFAULT_EXCEPTION_REPORTER_FILTER == STOCK:
        request.exception_reporter_filter = _FILTER
    _guard_sentry(request)


def redact_event(event: E, hint: object = None) -> E:
    """Return an event of Sentry's without what looks like a token, a code or a client secret.

    Events about requests pass through it by themselves. Name it as ``before_send`` and as
    ``before_send_transaction`` of ``sentry_sdk.init``, and those of tasks and commands do as well.
    ``hint`` is Sentry's, and not used.
    """
    redacted: E = _redact_all(event)
    return redacted


def _guard_sentry(request: HttpRequest) -> None:
    """Let the events of this request pass through ``redact_event``.

    Sentry copies the query of a WSGI request before any view runs, and keeps the context of each
    template: to forget a code, or to clear frames, does not reach these copies.
    """
    # Only where the site has set it up: an import here would make it a dependency.
    sentry: Any = sys.modules.get("sentry_sdk")
    if sentry is None or sentry.get_client().get_integration("django") is None:
        return
    # Our middleware and our views both ask for it.
    if not getattr(request, _GUARDED, False):
        sentry.get_current_scope().add_event_processor(redact_event)
        setattr(request, _GUARDED, True)


def _redact_all(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: _redact_named(name, one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_redact_all(one) for one in value]
    if hasattr(value, "value") and hasattr(value, "metadata"):
        # Sentry's own note about a list that it has shortened.
        value.value = _redact_all(value.value)
    return value


def _redact_named(name: object, value: Any) -> Any:
    """Redact a value by its name too: ``{"code": "x"}`` says as much as ``code=x``."""
    if isinstance(name, str) and isinstance(value, str) and names_secret(name):
        return REDACTED
    return _redact_all(value)
