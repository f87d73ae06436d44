"""What holds for a whole tenant: the breaker, and whose database this is. Writes ``TenantState``.

The breaker keeps one mistake of the site's, or one bad hour of Bipsync's, from being repeated for
every grant. While it is open nothing is sent and no grant ends. When its time is over a single
caller tries; the others wait for what becomes of it.
"""

import functools
import logging
from contextlib import suppress
from datetime import timedelta

from django.db import models
from django.db.models import F
from django.utils import timezone

from . import events, policy
from .conf import get_settings
from .durable import database
from .exceptions import OtherDeployment, RefreshUnavailable
from .models import TenantState, TokenEvent

__all__ = [
    "admit",
    "claim_deployment",
    "forget",
    "hand_over",
    "note_death",
    "note_failure",
    "note_sign_in",
    "note_success",
    "open_for",
    "raise_if_foreign",
    "raise_if_open",
    "say_once",
    "take_trial",
    "tenants_held_back",
]

logger = logging.getLogger(__name__)

HELD_BACK = timedelta(minutes=5)
OUTAGE_HELD_BACK = timedelta(minutes=1)
DEATHS_BEFORE_DOUBT = 5
REFUSALS_BEFORE_DOUBT = 3
FAILURES_BEFORE_PAUSE = 10
# Longer than a caller's way from here to the answer.
_TRIAL = timedelta(seconds=20)


def admit(tenant: str) -> bool:
    """Return whether the caller may send only by ``take_trial``: the breaker's time is over.

    Raises ``RefreshUnavailable`` while the breaker is open, and ``OtherDeployment``.
    """
    state = _states().filter(tenant=tenant).first()
    if get_settings().deployment and (state is None or not state.deployment):
        claim_deployment(tenant)
    if state is None or state.breaker_until is None:
        return False
    _raise_if_open(state)
    return True


def raise_if_open(tenant: str) -> None:
    """Raise ``RefreshUnavailable`` while the breaker is open; write nothing."""
    state = _states().filter(tenant=tenant).first()
    if state is not None:
        _raise_if_open(state)


def _raise_if_open(state: TenantState) -> None:
    if state.breaker_until is not None and state.breaker_until > timezone.now():
        raise _held_back(state)


def take_trial(tenant: str) -> None:
    """Be the one who finds out whether the breaker may be closed.

    Raises ``RefreshUnavailable`` when somebody else is, for twenty seconds at most.
    """
    now = timezone.now()
    lapsed = _states().filter(tenant=tenant, breaker_until__lte=now)
    if not lapsed.update(breaker_until=now + _TRIAL):
        state = _states().filter(tenant=tenant).first()
        if state is not None and state.breaker_until is not None:
            raise _held_back(state)


def _held_back(state: TenantState) -> RefreshUnavailable:
    return RefreshUnavailable(
        state.configuration_error,
        f"Calls to Bipsync are held back ({state.configuration_error}).",
        until=state.breaker_until,
    )


def tenants_held_back() -> list[str]:
    """Return the tenants for which background work has nothing to do at this moment."""
    ours = get_settings().deployment
    for tenant in get_settings().tenants:
        with suppress(OtherDeployment):
            claim_deployment(tenant)
    held_back = []
    for state in _states().filter(tenant__in=list(get_settings().tenants)):
        is_open = state.breaker_until is not None and state.breaker_until > timezone.now()
        is_foreign = state.deployment not in {"", ours}
        if is_foreign:
            say_once(state.tenant, str(OtherDeployment(state.deployment, ours)))
        if is_open or is_foreign:
            held_back.append(state.tenant)
    return held_back


def note_success(tenant: str) -> None:
    """The application works: close the breaker, forget what was counted."""
    states = _states().filter(tenant=tenant)
    state = states.first()
    if state is None or not (state.breaker_until or state.dead_in_a_row or state.failed_in_a_row):
        return
    if states.exclude(breaker_until=None).update(**_CLOSED):
        events.record_for_tenant(tenant, TokenEvent.Name.BREAKER_CLOSED)
        logger.info("Bipsync works again for %s.", tenant)
    else:
        states.update(**_CLOSED)


def note_sign_in(tenant: str) -> None:
    """The application and its addresses are right: close what was open for doubts about them."""
    state = _states().filter(tenant=tenant).first()
    if state is not None and state.configuration_error in {"", *_MENDED_BY_SIGN_IN}:
        note_success(tenant)


def note_death(tenant: str) -> None:
    """Many deaths without a success look like a wrong URL or application; hold the rest back."""
    states = _existing(tenant)
    states.update(dead_in_a_row=F("dead_in_a_row") + 1)
    if states.filter(dead_in_a_row__gte=DEATHS_BEFORE_DOUBT).exists():
        open_for(tenant, "many_dead")


def note_failure(tenant: str, reason: str, *, is_first: bool, spent: bool = False) -> None:
    """Count a refresh without a usable answer, and open the breaker as soon as ``reason`` asks.

    What concerns the application opens it at once, and so does an answer that cost the row its
    refresh token (``spent``). What one row alone may be the cause of has to come three times in a
    row, and that row's later failures (without ``is_first``) say nothing new. Anything else is an
    outage after ten.
    """
    states = _existing(tenant)
    states.update(failed_in_a_row=F("failed_in_a_row") + 1)
    in_a_row = states.values_list("failed_in_a_row", flat=True).first() or 1
    is_doubtful = reason in _PERHAPS and is_first and in_a_row >= REFUSALS_BEFORE_DOUBT
    if reason in _APPLICATION or is_doubtful:
        open_for(tenant, reason)
    elif spent and is_first:
        open_for(tenant, reason, OUTAGE_HELD_BACK)
    elif reason not in _PERHAPS and in_a_row >= FAILURES_BEFORE_PAUSE:
        open_for(tenant, "outage", OUTAGE_HELD_BACK)


def open_for(tenant: str, reason: str, duration: timedelta | None = None) -> None:
    """Open the breaker for ``duration`` (five minutes) and up to a quarter more.

    Says so once, when it opens.
    """
    duration = HELD_BACK if duration is None else duration
    states = _existing(tenant)
    until = timezone.now() + duration + policy.spread(duration / 4)
    if states.filter(breaker_until=None).update(breaker_until=until, configuration_error=reason):
        events.record_for_tenant(tenant, TokenEvent.Name.BREAKER_OPENED, reason)
        logger.error(
            "Calls to Bipsync for %s are held back (%s). No grant is ended meanwhile; see "
            "docs/tokens.md for what the word means and what to do.",
            tenant,
            reason,
        )
    else:
        states.filter(breaker_until__lt=until).update(
            breaker_until=until, configuration_error=reason
        )


def claim_deployment(tenant: str) -> None:
    """Put this deployment's name on the tenant's grants, unless another one is on them.

    Raises ``OtherDeployment`` if it is: this database is a copy, or the site has moved.
    """
    ours = get_settings().deployment
    state = _states().filter(tenant=tenant).first()
    if ours and (state is None or not state.deployment):
        if _existing(tenant).filter(deployment="").update(deployment=ours):
            logger.warning(
                "The grants of %s belong to the deployment %r from now on.", tenant, ours
            )
        state = _states().get(tenant=tenant)
    if state is not None:
        raise_if_foreign(tenant, state.deployment)


def forget(tenant: str) -> None:
    """Delete what is known of a tenant that was given up, so that it may begin anew."""
    _states().filter(tenant=tenant).delete()


def hand_over(tenant: str) -> None:
    """Make the tenant's grants this deployment's."""
    _existing(tenant).update(deployment=get_settings().deployment)


def raise_if_foreign(tenant: str, deployment: str) -> None:
    """Raise ``OtherDeployment`` if the rows are those of another deployment than this one."""
    ours = get_settings().deployment
    if deployment not in {"", ours}:
        error = OtherDeployment(deployment, ours)
        say_once(tenant, str(error))
        raise error


# The application's settings are wrong, or the address: no row is the cause.
_APPLICATION = {
    "configuration",
    "forbidden",
    "invalid_client",
    "unauthorized_client",
    "unsupported_grant_type",
    "wrong_endpoint",
}
# The same, or something about one row.
_PERHAPS = {
    "invalid_request",
    "invalid_scope",
    "other_application",
    "secret_unreadable",
    "token_refused",
}
# What a sign-in shows to be well. It says nothing of refreshing.
_MENDED_BY_SIGN_IN = {
    "configuration",
    "forbidden",
    "invalid_client",
    "many_dead",
    "outage",
    "wrong_endpoint",
}
_CLOSED = {
    "breaker_until": None,
    "configuration_error": "",
    "dead_in_a_row": 0,
    "failed_in_a_row": 0,
}


@functools.cache
def say_once(tenant: str, message: str) -> None:
    """Log an error the first time that this process meets it."""
    logger.error("%s: %s", tenant, message)


def _states() -> models.QuerySet[TenantState]:
    return TenantState.objects.using(database())


def _existing(tenant: str) -> models.QuerySet[TenantState]:
    _states().bulk_create([TenantState(tenant=tenant)], ignore_conflicts=True)
    return _states().filter(tenant=tenant)
