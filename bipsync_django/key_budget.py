"""How often Bipsync is asked for its signing keys, counted in the database for all processes."""

import time
from datetime import timedelta

from django.db import Error
from django.db.models import Q

from . import durable
from .conf import Tenant
from .durable import DatabaseNow, database
from .exceptions import ConfigurationError, RefreshUnavailable
from .models import TenantState
from .oauth.keys import LocalBudget, Permit, use_budget

__all__ = ["DatabaseBudget"]


class DatabaseBudget:
    """A budget that all processes share; where no database is to be had, each has its own.

    A permit is committed before anything is sent, and inside a transaction of the caller's on a
    connection of its own, so that nobody waits for a lock while Bipsync is waited for. A process
    remembers that there is none: a flood of forged tokens asks the database no more often than
    Bipsync.
    """

    def __init__(self) -> None:
        self._local = LocalBudget()
        # By tenant and address: until when (monotonic) there is none, and when the last one was.
        self._spent: dict[tuple[str, str], tuple[float, float]] = {}

    def ask(self, tenant: Tenant, *, for_sign_in: bool) -> Permit:
        """As ``Budget.ask``, by the clock of the database."""
        place = (tenant.slug, tenant.jwks_url)
        until, at = self._spent.get(place, (0.0, 0.0))
        if not for_sign_in and time.monotonic() < until:
            return Permit(granted=False, at=at)
        column = "keys_asked_by_sign_in_at" if for_sign_in else "keys_asked_at"
        pause = LocalBudget.SIGN_IN_PAUSE if for_sign_in else LocalBudget.PAUSE
        try:
            permit, left = durable.outside_transaction(
                lambda: _ask(tenant.slug, column, pause), database()
            )
        except (ConfigurationError, Error, RefreshUnavailable):
            return self._local.ask(tenant, for_sign_in=for_sign_in)
        if not for_sign_in:
            self._spent[place] = (time.monotonic() + left, permit.at)
        return permit


def _ask(slug: str, column: str, pause: float) -> tuple[Permit, float]:
    """Return a permit, and for how many seconds there will be no other."""
    states = TenantState.objects.using(database())
    states.bulk_create([TenantState(tenant=slug)], ignore_conflicts=True)
    now, apart = DatabaseNow(), timedelta(seconds=pause)
    free = (
        Q(**{column: None})
        | Q(**{f"{column}__lte": now - apart})
        # The clock was put back.
        | Q(**{f"{column}__gt": now + apart})
    )
    granted = bool(durable.update(states.filter(free, tenant=slug), **{column: now}))
    row = states.filter(tenant=slug).annotate(now=DatabaseNow()).values(column, "now").get()
    left = pause - (row["now"] - row[column]).total_seconds()
    return Permit(granted=granted, at=row[column].timestamp()), min(left, pause)


use_budget(DatabaseBudget())
