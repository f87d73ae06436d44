"""How a token row is told to administrators: a word, a sign, and moments as people say them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from django.utils import timezone
from django.utils.formats import localize
from django.utils.functional import Promise
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timesince import timesince, timeuntil
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from ..health import OVERDUE_AFTER
from ..models import BipsyncToken

__all__ = ["Condition", "badge", "condition", "moment"]

Status = BipsyncToken.Status


@dataclass(frozen=True)
class Condition:
    """How a row is. The sign says it without the colour that ``tone`` gives it."""

    tone: str
    sign: str
    words: str | Promise


_FAILING = Condition("warning", "▲", gettext_lazy("active, refresh fails"))
_OVERDUE = Condition("warning", "▲", gettext_lazy("active, refresh overdue"))
_SWITCHED_OFF = Condition("off", "■", gettext_lazy("person switched off"))
_BY_STATUS: Mapping[str, Condition] = {
    Status.ACTIVE: Condition("good", "●", Status.ACTIVE.label),
    Status.NEEDS_SIGN_IN: Condition("bad", "✕", Status.NEEDS_SIGN_IN.label),
    Status.UNCONFIRMED: Condition("warning", "?", Status.UNCONFIRMED.label),
    Status.DISCONNECTED: Condition("off", "■", Status.DISCONNECTED.label),
}


def condition(row: BipsyncToken) -> Condition:
    """Return how the row is, its person and its refreshes included."""
    if row.status != Status.ACTIVE:
        return _BY_STATUS[row.status]
    if row.user is not None and not row.user.is_active:
        return _SWITCHED_OFF
    if row.attempt or row.last_error:
        return _FAILING
    due = max((at for at in (row.next_refresh_at, row.next_attempt_at) if at), default=None)
    if due is not None and due < timezone.now() - OVERDUE_AFTER:
        return _OVERDUE
    return _BY_STATUS[Status.ACTIVE]


def badge(of: Condition) -> SafeString:
    """Return a word with its sign, in a colour."""
    return format_html(
        '<span class="bipsync-badge bipsync-{}"><span aria-hidden="true">{}</span> {}</span>',
        of.tone,
        of.sign,
        of.words,
    )


def moment(at: datetime | None) -> str | SafeString:
    """Return how long ago ``at`` was or how soon it will be, and its exact time to hover over."""
    if at is None:
        return "–"
    now = timezone.now()
    local = timezone.localtime(at)
    if abs((at - now).total_seconds()) < 60:
        words = _("just now") if at <= now else _("in less than a minute")
    elif at < now:
        words = _("%(time)s ago") % {"time": timesince(at, now, depth=1)}
    else:
        words = _("in %(time)s") % {"time": timeuntil(at, now, depth=1)}
    return format_html(
        '<time datetime="{}" title="{}">{}</time>', local.isoformat(), localize(local), words
    )
