"""Nothing secret in Django's error pages and in the mails about errors."""

from collections.abc import ItemsView
from types import FrameType
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.views.debug import SafeExceptionReporterFilter

from .redaction import redact

__all__ = ["STOCK", "ReporterFilter", "guard"]

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
    """Use ``ReporterFilter`` for errors of this request, unless the site has chosen a filter."""
    if settings.DEFAULT_EXCEPTION_REPORTER_FILTER == STOCK:
        request.exception_reporter_filter = _FILTER
