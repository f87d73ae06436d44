"""What stands above the list: figures, warnings with what to do, and a picture of the last day."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django.http import HttpRequest
from django.utils.functional import Promise
from django.utils.timezone import localtime
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from .. import conf, errors, health
from ..exceptions import ConfigurationError
from ..lifecycle import RemovedTenant
from ..models import BipsyncToken
from .wording import Condition, condition

__all__ = ["context", "report_for"]

Status = BipsyncToken.Status

_REPORT = "_bipsync_report"
_WIDTH = 288
_STEP = _WIDTH // 24
_BAR = _STEP - 4

_EXPIRIES: dict[str, Promise] = {
    "expired": gettext_lazy("expired"),
    "in_15_minutes": gettext_lazy("15 min"),
    "in_30_minutes": gettext_lazy("30 min"),
    "in_1_hour": gettext_lazy("1 hour"),
    "in_1_day": gettext_lazy("1 day"),
    "later": gettext_lazy("later"),
}


@dataclass(frozen=True)
class Figure:
    """One count, and the list of what is counted."""

    count: int
    words: str | Promise
    tone: str
    sign: str
    query: str


@dataclass(frozen=True)
class Notice:
    """Something that an administrator should know, and what to do about it."""

    text: str
    advice: str
    tone: str = "bad"


@dataclass(frozen=True)
class Bar:
    """A rectangle of a picture, in its units."""

    x: int
    y: float
    width: int
    height: float
    kind: str


@dataclass(frozen=True)
class Picture:
    """Bars, and the figures that they show as a table."""

    title: str
    summary: str
    height: int
    bars: Sequence[Bar]
    marks: Sequence[tuple[int, str]]
    columns: Sequence[str | Promise]
    rows: Sequence[Sequence[object]]
    width: int = _WIDTH


def report_for(request: HttpRequest) -> health.Report:
    """Return how all is, read once for each request. Raises ``ConfigurationError``."""
    found = getattr(request, _REPORT, None)
    if not isinstance(found, health.Report):
        found = health.report()
        setattr(request, _REPORT, found)
    return found


def context(request: HttpRequest) -> dict[str, Any]:
    """Return what the template shows. Broken settings are shown, and nothing else then."""
    try:
        report = report_for(request)
    except ConfigurationError:
        return {"warnings": [Notice(p.message, p.hint) for p in conf.problems()]}
    # Of how many tenants the list shows rows: each figure leads to what it counted, and no more.
    several = len(report.tenants) + len(report.removed) > 1
    return {
        "headline": _headline(report.tenants),
        "is_well": not any(_attention(one) for one in report.tenants),
        "tenants": [
            {"name": one.tenant if several else "", "figures": _figures(one, several=several)}
            for one in report.tenants
        ],
        "warnings": [*_warnings(report)],
        "pictures": [
            _refreshes(report.hours),
            _sign_ins(report.hours),
            _expiries(report.tenants),
        ],
    }


def _attention(one: health.TenantHealth) -> int:
    return one.by_status[Status.NEEDS_SIGN_IN] + one.failing + one.overdue


def _headline(tenants: Iterable[health.TenantHealth]) -> str:
    tenants = list(tenants)
    active = sum(one.by_status[Status.ACTIVE] for one in tenants)
    ended = sum(one.by_status[Status.NEEDS_SIGN_IN] for one in tenants)
    trouble = sum(one.failing + one.overdue for one in tenants)
    if not active + ended:
        return _("Nobody is connected to Bipsync yet.")
    parts = []
    if ended:
        parts.append(
            ngettext(
                "%(count)d connection has ended: the person has to sign in again.",
                "%(count)d connections have ended: their people have to sign in again.",
                ended,
            )
            % {"count": ended}
        )
    if trouble:
        parts.append(
            ngettext(
                "%(count)d connection cannot be refreshed at the moment.",
                "%(count)d connections cannot be refreshed at the moment.",
                trouble,
            )
            % {"count": trouble}
        )
    if not parts:
        parts.append(
            ngettext("The connection works.", "All %(count)d connections work.", active)
            % {"count": active}
        )
    return " ".join(parts)


def _figures(one: health.TenantHealth, *, several: bool) -> list[Figure]:
    of_tenant = {"tenant": one.tenant} if several else {}

    def figure(count: int, of: Condition, **query: str) -> Figure:
        return Figure(count, of.words, of.tone, of.sign, urlencode({**query, **of_tenant}))

    found = []
    for status in Status:
        count = one.by_status[status]
        if count or status in {Status.ACTIVE, Status.NEEDS_SIGN_IN}:
            of = condition(BipsyncToken(status=status))
            found.append(figure(count, of, status__exact=status))
    for count, words, trouble in (
        (one.failing, _("refresh fails"), "failing"),
        (one.overdue, _("refresh overdue"), "overdue"),
    ):
        if count:
            found.append(figure(count, Condition("warning", "▲", words), trouble=trouble))
    return found


def _warnings(report: health.Report) -> Iterable[Notice]:
    ours = conf.get_settings().deployment
    for one in report.tenants:
        if one.held_back_until is not None:
            yield Notice(
                _("%(tenant)s: calls to Bipsync are held back until %(time)s. %(reason)s")
                % {
                    "tenant": one.tenant,
                    "time": f"{localtime(one.held_back_until):%H:%M}",
                    "reason": errors.explain(one.held_back_for),
                },
                errors.advise(one.held_back_for),
            )
        if one.deployment not in {"", ours}:
            yield Notice(
                f"{one.tenant}: {errors.explain('other_deployment')}",
                errors.advise("other_deployment"),
            )
        if one.overdue:
            yield Notice(
                _("%(tenant)s: refreshes have been due for more than a quarter of an hour.")
                % {"tenant": one.tenant},
                _("See whether Celery beat and a worker run: manage.py bipsync_doctor tells."),
            )
    yield from _removed(report.removed)
    if not conf.get_settings().refresh_enabled:
        yield Notice(errors.explain("disabled"), errors.advise("disabled"), "warning")
    for service in report.services:
        told = {"account": service.account, "tenant": service.tenant}
        if service.has_ended:
            text = _("%(tenant)s: the service account %(account)s has ended.")
        elif service.fails:
            text = _("%(tenant)s: the service account %(account)s cannot be refreshed.")
        else:
            text = _("%(tenant)s: the service account %(account)s runs out soon.")
        yield Notice(
            f"{text % told} {errors.explain(service.last_error)}".strip(),
            _("Connect it once more, under “Service accounts”."),
        )


def _removed(tenants: Iterable[RemovedTenant]) -> Iterable[Notice]:
    for one in tenants:
        if not one.is_given_up:
            named = {"tenant": one.tenant}
            yield Notice(
                _("%(tenant)s is not in the settings any more, and has connections or rights here.")
                % named,
                _("Run manage.py bipsync_give_up %(tenant)s on the server, or put it back.")
                % named,
            )


# --- pictures


def _refreshes(hours: Sequence[health.Hour]) -> Picture:
    kinds: list[tuple[str, Callable[[health.Hour], int]]] = [
        ("refreshed", lambda hour: hour.refreshed),
        ("failed", lambda hour: hour.failed),
        ("ended", lambda hour: hour.ended),
    ]
    refreshed, failed, ended = (sum(get(hour) for hour in hours) for _kind, get in kinds)
    return _by_hour(
        hours,
        kinds,
        height=72,
        title=_("Refreshes in the last 24 hours"),
        summary=_("%(refreshed)d refreshed, %(failed)d failed, %(ended)d ended")
        % {"refreshed": refreshed, "failed": failed, "ended": ended},
        columns=[_("Hour"), _("Refreshed"), _("Failed"), _("Ended")],
    )


def _sign_ins(hours: Sequence[health.Hour]) -> Picture:
    return _by_hour(
        hours,
        [("signed-in", lambda hour: hour.signed_in)],
        height=48,
        title=_("Sign-ins in the last 24 hours"),
        summary=_("%(count)d in all") % {"count": sum(hour.signed_in for hour in hours)},
        columns=[_("Hour"), _("Sign-ins")],
    )


def _by_hour(
    hours: Sequence[health.Hour],
    kinds: Sequence[tuple[str, Callable[[health.Hour], int]]],
    *,
    height: int,
    title: str,
    summary: str,
    columns: Sequence[str],
) -> Picture:
    most = max((sum(get(hour) for _kind, get in kinds) for hour in hours), default=0)
    bars = []
    for place, hour in enumerate(hours):
        y = float(height)
        for kind, get in kinds:
            if count := get(hour):
                # At least two units: one failure among thousands is to be seen.
                tall = max(round(height * count / most, 1), 2.0)
                y = max(y - tall, 0.0)
                bars.append(Bar(place * _STEP + 2, round(y, 1), _BAR, tall, kind))
    marks = [
        (place * _STEP + _STEP // 2, _clock(hour.start))
        for place, hour in enumerate(hours)
        if place % 6 == 2
    ]
    rows = [[_clock(hour.start), *(get(hour) for _kind, get in kinds)] for hour in hours]
    return Picture(title, summary, height, bars, marks, columns, rows)


def _expiries(tenants: Iterable[health.TenantHealth]) -> Picture:
    counts = dict.fromkeys(_EXPIRIES, 0)
    for one in tenants:
        for name, count in one.expiries.items():
            counts[name] += count
    height, most = 48, max(counts.values())
    step = _WIDTH // len(counts)
    bars = [
        Bar(
            place * step + 8,
            round(height - height * count / most, 1),
            step - 16,
            round(height * count / most, 1),
            "expired" if name == "expired" else "expires",
        )
        for place, (name, count) in enumerate(counts.items())
        if count
    ]
    marks = [(place * step + step // 2, str(_EXPIRIES[name])) for place, name in enumerate(counts)]
    return Picture(
        _("Access tokens expire within"),
        _("%(count)d have expired") % {"count": counts["expired"]},
        height,
        bars,
        marks,
        [_("Expires"), _("Access tokens")],
        [[_EXPIRIES[name], count] for name, count in counts.items()],
    )


def _clock(at: datetime) -> str:
    return f"{localtime(at):%H:%M}"
