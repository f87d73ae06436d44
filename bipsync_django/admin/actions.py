"""What administrators can do to token rows. Every deed is in the events and in the admin's log."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from kombu.exceptions import OperationalError

from .. import errors, events, lifecycle, tasks
from ..exceptions import BipsyncError
from ..models import BipsyncToken, TokenEvent

__all__ = ["ACTIONS", "MOST_AT_ONCE", "Action", "allowed", "carry_out", "queue"]

MOST_AT_ONCE = 10_000
# The answer must not take longer than a web server waits; what is left can be asked for again.
_SECONDS = 20.0

Status = BipsyncToken.Status


@dataclass(frozen=True)
class Action:
    """One thing to do: what the button says, what it means, and the deed for one row.

    ``run`` returns an empty text, or the code of the reason why nothing came of it. ``statuses``
    are those of the rows that it makes sense for.
    """

    name: str
    title: Promise
    button: Promise
    means: Promise
    done: Promise
    statuses: frozenset[str]
    run: Callable[[BipsyncToken, Any], str]


def allowed(request: HttpRequest, action: Action) -> bool:
    """Return whether who asks has the action's own permission."""
    user: Any = request.user
    return bool(user.has_perm(f"bipsync_django.{action.name}_bipsynctoken"))


def carry_out(
    request: HttpRequest, action: Action, rows: QuerySet[BipsyncToken]
) -> list[BipsyncToken]:
    """Do it to each of ``rows``, tell who asks what came of it, and return what it was done to."""
    until = time.monotonic() + _SECONDS
    done: list[BipsyncToken] = []
    left = 0
    for row in rows.filter(status__in=action.statuses):
        if time.monotonic() > until:
            left += 1
            continue
        try:
            reason = action.run(row, request.user)
        except BipsyncError as error:
            reason = getattr(error, "code", "configuration")
        if reason:
            text = f"{row.owner}: {errors.explain(reason)} {errors.advise(reason)}".strip()
            messages.warning(request, text)
        else:
            done.append(row)
    if done:
        names = ", ".join(row.owner for row in done[:5]) + (" …" if len(done) > 5 else "")
        messages.success(request, action.done % {"count": len(done), "names": names})
    elif not left and not rows.filter(status__in=action.statuses).exists():
        messages.warning(request, _("There is nothing to do for what you have chosen."))
    if left:
        messages.warning(
            request,
            ngettext(
                "%(count)d is left, because it took too long. Choose it again.",
                "%(count)d are left, because it took too long. Choose them again.",
                left,
            )
            % {"count": left},
        )
    return done


def queue(request: HttpRequest, rows: Iterable[BipsyncToken]) -> str | None:
    """Let workers refresh ``rows``; return the name of the batch, or ``None`` without a broker."""
    user: Any = request.user
    batch = events.ask_for(rows, user)
    try:
        tasks.refresh_many.apply_async((batch,), retry=False)
    except OperationalError:
        messages.error(
            request,
            _(
                "Celery's broker cannot be reached, so nothing was refreshed. Refresh one at a "
                "time, or have the broker mended: manage.py bipsync_doctor tells more."
            ),
        )
        return None
    return batch


def _refresh(row: BipsyncToken, actor: Any) -> str:
    events.record(row, TokenEvent.Name.REFRESH_ASKED, actor=actor)
    return lifecycle.refresh_asked(row.pk, lifecycle.Identity.of(row).digest)


def _disconnect(row: BipsyncToken, actor: Any) -> str:
    lifecycle.disconnect(row, actor=actor)
    return ""


def _end_sessions(row: BipsyncToken, actor: Any) -> str:
    lifecycle.end_sessions(row, actor=actor)
    return ""


ACTIONS: Mapping[str, Action] = {
    action.name: action
    for action in (
        Action(
            "refresh",
            gettext_lazy("Refresh now"),
            gettext_lazy("Refresh now"),
            gettext_lazy(
                "Bipsync is asked for new tokens at once. The access token that is in use stops "
                "working; what this site does for the person goes on with the new one."
            ),
            gettext_lazy("Refreshed: %(names)s."),
            frozenset({Status.ACTIVE}),
            _refresh,
        ),
        Action(
            "retry",
            gettext_lazy("Try again"),
            gettext_lazy("Try again"),
            gettext_lazy(
                "Bipsync is asked once more about a connection that has ended. If it still takes "
                "the token, the connection works again and nobody has to sign in. If not, all is "
                "as before."
            ),
            gettext_lazy("It works again: %(names)s."),
            frozenset({Status.NEEDS_SIGN_IN}),
            _refresh,
        ),
        Action(
            "disconnect",
            gettext_lazy("Disconnect"),
            gettext_lazy("Disconnect"),
            gettext_lazy(
                "The tokens are put out of use and thrown away, and sessions that began with "
                "Bipsync end. Bipsync has no way to withdraw a permission from here: it is used "
                "once more, what comes is discarded, and Bipsync goes on listing the consent "
                "until the person removes it there. Signing in with Bipsync connects them again."
            ),
            gettext_lazy("Disconnected: %(names)s."),
            frozenset({Status.ACTIVE, Status.NEEDS_SIGN_IN, Status.UNCONFIRMED}),
            _disconnect,
        ),
        Action(
            "end_sessions",
            gettext_lazy("End sessions"),
            gettext_lazy("End their sessions"),
            gettext_lazy(
                "The person is signed out of this site, in every browser in which they signed in "
                "with Bipsync, within a minute. The connection stays, and they may sign in again. "
                "Sessions that began with a password are not touched."
            ),
            gettext_lazy("Sessions ended: %(names)s."),
            frozenset(Status.values),
            _end_sessions,
        ),
    )
}
