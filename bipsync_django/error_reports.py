"""Nothing secret in Django's error pages, in the mails about errors, and in Sentry's events."""

import functools
import logging
import sys
from collections.abc import ItemsView, Mapping, Sequence, Set
from contextlib import suppress
from datetime import datetime
from types import FrameType
from typing import Any, TypeVar

from django.conf import settings
from django.http import HttpRequest
from django.views.debug import SafeExceptionReporterFilter

from .redaction import REDACTED, names_secret, redact

__all__ = ["STOCK", "ReporterFilter", "guard", "redact_event"]

logger = logging.getLogger(__name__)

E = TypeVar("E")

_GUARDED = "_bipsync_is_guarded"
# Of nested values, in levels: a visitor's JSON may have more than Python's stack.
_DEEPEST = 50
_HARMLESS = ("event_id", "timestamp", "level", "platform", "logger", "release", "environment")
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

    Django's reports use ``ReporterFilter``, unless the site has chosen a filter of its own. No
    request fails because of Sentry: one that this does not know (before 2.0, for example) is told
    of in the log, once, and all its events are stripped.
    """
    if settings.DEFAULT_EXCEPTION_REPORTER_FILTER == STOCK:
        request.exception_reporter_filter = _FILTER
    try:
        _guard_sentry(request)
    except Exception:  # noqa: BLE001 - of another version of Sentry's
        with suppress(Exception):
            _strip_all_events()


def redact_event(event: E, hint: object = None) -> E | None:
    """Return an event of Sentry's without what looks like a token, a code or a client secret.

    Events about requests pass through it by themselves. Name it as ``before_send`` and as
    ``before_send_transaction`` of ``sentry_sdk.init``, and those of tasks and commands do as well.
    ``hint`` is Sentry's, and not used.

    Of an event that cannot be redacted only the names of its errors are left, and a trace is not
    sent at all (``None``).
    """
    # Sentry sends the event as it was when this raises. Without calls around, for which the stack
    # may have no room.
    try:
        redacted: E | None = _Redactor().redact(event)
    except Exception:  # noqa: BLE001 - of a value in it
        try:
            redacted = _strip(event)
        except Exception:  # noqa: BLE001 - it is no event
            redacted = None
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


@functools.cache
def _strip_all_events() -> None:
    """Say once that events cannot be filtered, and let this process send none as it is."""
    logger.warning(
        "Sentry's events about requests cannot be filtered (%s), so all events of this process "
        "are stripped: they name their errors, and nothing else. Use sentry-sdk 2.",
        type(sys.exception()).__name__,
    )
    with suppress(Exception):
        sys.modules["sentry_sdk.scope"].add_global_event_processor(_strip)


def _strip(event: Any, hint: object = None) -> Any:
    """Return no more of an event than which errors it is about; a trace is dropped."""
    if event.get("type"):
        return None
    kept = {name: event[name] for name in _HARMLESS if name in event}
    errors = event.get("exception", {}).get("values", [])
    return kept | {
        "logentry": {"message": "An event that could not be redacted; only the error is named."},
        "exception": {"values": [{"type": e.get("type"), "value": REDACTED} for e in errors]},
    }


class _Redactor:
    """Redacts one event. Each container is looked at once, also one that holds itself."""

    def __init__(self) -> None:
        # With the containers themselves, because the id of one that is gone is used again.
        self._done: dict[int, tuple[Any, Any]] = {}

    def redact(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, str):
            return redact(value)
        if _is_plain(value):
            return value
        if isinstance(value, bytes | bytearray | memoryview):
            return _unless_redacted(value, bytes(value).decode(errors="replace"))
        if depth >= _DEEPEST:
            return REDACTED
        if type(value).__name__ == "AnnotatedValue":
            # Sentry's own note about a list that it has shortened.
            value.value = self.redact(value.value, depth + 1)
            return value
        if not isinstance(value, Mapping | Sequence | Set):
            return _redact_object(value)
        if id(value) not in self._done:
            self._done[id(value)] = (value, REDACTED)
            self._done[id(value)] = (value, self._redact_items(value, depth + 1))
        return self._done[id(value)][1]

    def _redact_items(self, value: Any, depth: int) -> Any:
        if isinstance(value, Mapping):
            return {
                _unless_redacted(name, str(name)): self._redact_named(name, one, depth)
                for name, one in value.items()
            }
        if isinstance(value, Sequence) and len(value) == 2 and isinstance(value[0], str):
            # One of a list of pairs, as headers and forms may be. Of a variable's value Sentry has
            # put each text into quotes.
            name = value[0].strip("'\"")
            return [redact(value[0]), self._redact_named(name, value[1], depth)]
        return [self.redact(one, depth) for one in value]

    def _redact_named(self, name: object, value: Any, depth: int) -> Any:
        """Redact a value by its name too: ``{"code": "x"}`` says as much as ``code=x``."""
        if isinstance(name, bytes):
            name = name.decode(errors="replace")
        if isinstance(name, str) and names_secret(name) and not _is_plain(value):
            return REDACTED
        return self.redact(value, depth)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | datetime | range)


def _redact_object(value: object) -> Any:
    try:
        # As Sentry is about to show it.
        text = repr(value)
    except Exception:  # noqa: BLE001 - its own
        return REDACTED
    return _unless_redacted(value, text)


def _unless_redacted(value: Any, text: str) -> Any:
    """Return ``value`` itself, or its text where that holds something to be redacted."""
    redacted = redact(text)
    return value if redacted == text else redacted
