"""Giving a tenant up: nobody comes in by it any more, and nothing that its claims gave is left."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser
from django.db import connections, models, transaction
from django.db.models import Count
from django.utils import timezone

from .. import breaker, durable, rights
from ..conf import get_settings
from ..durable import DatabaseNow, database
from ..exceptions import UnknownTenant
from ..models import BipsyncToken, BipsyncTokenQuerySet, GivenFlag, TokenEvent
from ..redaction import without_traces
from .changes import spend_kept, unlink, why_left_valid
from .rows import tokens, whole

__all__ = ["RemovedTenant", "TenantGivenUp", "give_up_tenant", "remains_of", "removed_tenants"]

logger = logging.getLogger(__name__)

Status = BipsyncToken.Status
Event = TokenEvent.Name
_BATCH = 500


@dataclass(frozen=True)
class RemovedTenant:
    """A tenant that has rows in the database and none in the settings.

    ``accounts`` are the rows that still hold a grant, belong to a user, or keep a refresh token
    that waits to be spent, and ``flags`` those that users have by the tenant's claims: both are 0
    once the tenant has been given up.
    """

    tenant: str
    accounts: int
    flags: int

    @property
    def is_given_up(self) -> bool:
        """Whether nothing is left to do."""
        return not self.accounts and not self.flags


@dataclass
class TenantGivenUp:
    """What ``give_up_tenant`` did, or would do, in counts.

    ``accounts``: rows that it dealt with. ``ended``: grants that it ended, which are ``spent``,
    or ``left_valid`` at Bipsync by the code of the reason, or had no refresh token. ``waiting``:
    grants whose refresh token another process may be sending, so that it is kept until the lease
    has run out, in 30 seconds at most, and ended by the next run. ``sessions``: people whose
    sessions it ended. ``rights``: by the name of the flag or group. ``failed``: rows that it could
    not deal with, which the log names. ``left``: accounts and flags that are there afterwards,
    because they wait, failed or came meanwhile; always 0 in a dry run.
    """

    accounts: int = 0
    ended: int = 0
    spent: int = 0
    left_valid: Counter[str] = field(default_factory=Counter)
    waiting: int = 0
    sessions: int = 0
    rights: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    left: int = 0


def removed_tenants() -> list[RemovedTenant]:
    """Return the tenants that have rows and no settings, by name; also those given up already.

    Raises ``ConfigurationError`` while ``BIPSYNC`` is wrong.
    """
    configured = list(get_settings().tenants)
    flags = _count_by_tenant(_flags().exclude(tenant__in=configured))
    # Every database answers this from an index that begins with the tenant.
    known = set(tokens().order_by().values_list("tenant", flat=True).distinct()) | set(flags)
    slugs = sorted(known.difference(configured))
    accounts = _count_by_tenant(_not_given_up().filter(tenant__in=slugs)) if slugs else {}
    return [RemovedTenant(slug, accounts.get(slug, 0), flags.get(slug, 0)) for slug in slugs]


def remains_of(slug: str) -> RemovedTenant:
    """Return what is left to give up of the tenant ``slug``, in the settings or not.

    Raises ``UnknownTenant`` for one that has neither settings nor rows.
    """
    configured = list(get_settings().tenants)
    removed = [one.tenant for one in removed_tenants()]
    if slug not in [*configured, *removed]:
        raise UnknownTenant(
            f"There is no tenant {slug!r}. In the settings: {', '.join(configured)}. "
            f"With rows and without settings: {', '.join(removed) or 'none'}."
        )
    return _remains(slug)


def _remains(slug: str) -> RemovedTenant:
    accounts, flags = _not_given_up().filter(tenant=slug), _flags().filter(tenant=slug)
    return RemovedTenant(slug, accounts.count(), flags.count())


@without_traces
def give_up_tenant(
    slug: str,
    *,
    actor: AbstractBaseUser | None = None,
    dry_run: bool = False,
    watch: Callable[[TenantGivenUp], object] | None = None,
) -> TenantGivenUp:
    """End every grant of a tenant, and let none of its accounts belong to anybody here.

    Each row is dealt with as ``unlink`` does: the pair is erased, and its refresh token spent at
    Bipsync as long as the tenant is in the settings; sessions that began with it end; flags and
    groups that its claims gave are taken back. Users, events and counters stay.

    Each row is a transaction of its own, so call it outside of transactions. It may be killed and
    called again at any time. One row's error is logged, and the other rows are dealt with.

    ``actor`` is who asked for it. With ``dry_run`` nothing is changed and nothing is sent; the
    counts are then what would be done if Bipsync took each refresh token. ``watch`` is called
    after each row with the counts so far.

    Raises ``UnknownTenant`` for a tenant with neither settings nor rows.
    """
    # Durable: in a transaction of the caller's, nothing would be sent or final.
    with transaction.atomic(using=database(), durable=True):
        remains_of(slug)
    done = TenantGivenUp()
    for row in _rows(slug):
        try:
            if dry_run:
                _foresee(row, done)
            else:
                _give_up(row, actor, done)
        except Exception as error:  # noqa: BLE001 - the site's own receivers may raise anything
            done.failed += 1
            _log_failure(f"Row {row.pk} of {slug}", error)
        if watch is not None:
            watch(done)
    for user in _people_with_stray_flags(slug):
        try:
            _take_back_flags(slug, user, done, dry_run=dry_run)
        except Exception as error:  # noqa: BLE001 - as above
            done.failed += 1
            _log_failure(f"A flag of user {user.pk} from {slug}", error)
    if not dry_run:
        remains = _remains(slug)
        done.left = remains.accounts + remains.flags
        if remains.is_given_up:
            breaker.forget(slug)
    return done


def _rows(slug: str) -> Iterator[BipsyncToken]:
    """A batch at a time: no cursor stays open beside the writes."""
    last = 0
    rows = _not_given_up(whole()).filter(tenant=slug).defer("access_token")
    while batch := list(rows.filter(pk__gt=last).order_by("pk")[:_BATCH]):
        last = batch[-1].pk
        yield from batch


def _give_up(row: BipsyncToken, actor: AbstractBaseUser | None, done: TenantGivenUp) -> None:
    started = timezone.now()
    # Between the commit that erases the pair and Bipsync's answer nothing should stop the process.
    with durable.hold_signals(), transaction.atomic(using=database(), durable=True):
        unlink(row, actor=actor)
    # What an earlier run had to leave.
    spend_kept(row)
    events = list(_events().filter(token_id=row.pk, at__gte=started))
    left_valid = next((event.reason for event in events if event.name == Event.LEFT_VALID), "")
    has_ended = any(event.name == Event.DISCONNECTED for event in events)
    taken = [rights.right_in(event) for event in events if event.name == Event.RIGHT_TAKEN]
    waits = tokens().filter(pk=row.pk, status=Status.DISCONNECTED, refresh_token__isnull=False)
    _count(
        done,
        row,
        has_ended=has_ended,
        waits=waits.exists(),
        left_valid=left_valid,
        taken=taken,
    )


def _foresee(row: BipsyncToken, done: TenantGivenUp) -> None:
    leased = tokens().filter(pk=row.pk, lease_until__gt=DatabaseNow())
    left_valid = "" if row.refresh_token is None else why_left_valid(row)
    taken = [] if row.user is None else rights.would_take_back(row, row.user)
    _count(
        done,
        row,
        has_ended=row.status != Status.DISCONNECTED,
        waits=row.refresh_token is not None and leased.exists(),
        left_valid=left_valid,
        taken=taken,
    )


def _count(
    done: TenantGivenUp,
    row: BipsyncToken,
    *,
    has_ended: bool,
    waits: bool,
    left_valid: str,
    taken: list[str],
) -> None:
    done.accounts += 1
    done.rights.update(taken)
    if has_ended:
        done.sessions += row.user is not None and row.signed_in_at is not None
    elif row.refresh_token is None:
        return
    if waits:
        done.waiting += 1
        return
    done.ended += 1
    if left_valid:
        done.left_valid[left_valid] += 1
    else:
        done.spent += row.refresh_token is not None


def _people_with_stray_flags(slug: str) -> Iterator[AbstractBaseUser]:
    """Yield users who have a flag by the tenant's claims and no account: rows deleted by hand."""
    people = tokens().filter(tenant=slug, user_id=models.OuterRef("user_id"))
    strays = _flags().filter(~models.Exists(people), tenant=slug)
    users: models.QuerySet[Any] = get_user_model()._base_manager.using(database())
    for pk in set(strays.values_list("user_id", flat=True)):
        yield from users.filter(pk=pk)


def _take_back_flags(
    slug: str, user: AbstractBaseUser, done: TenantGivenUp, *, dry_run: bool
) -> None:
    nobodys = BipsyncToken(tenant=slug)
    taken = rights.would_take_back_flags(nobodys, user)
    if not dry_run:
        rights.take_back_flags(nobodys, user, f"user {user.pk}: the tenant was given up")
    done.rights.update(taken)


def _log_failure(what: str, error: Exception) -> None:
    logger.error("%s could not be given up (%s).", what, type(error).__name__)
    connections[database()].close_if_unusable_or_obsolete()


def _not_given_up(rows: BipsyncTokenQuerySet | None = None) -> BipsyncTokenQuerySet:
    rows = tokens() if rows is None else rows
    return rows.exclude(status=Status.DISCONNECTED, user=None, refresh_token__isnull=True)


def _flags() -> models.QuerySet[GivenFlag]:
    return GivenFlag.objects.using(database())


def _events() -> models.QuerySet[TokenEvent]:
    return TokenEvent.objects.using(database())


def _count_by_tenant(rows: models.QuerySet[Any]) -> dict[str, int]:
    return dict(rows.order_by().values_list("tenant").annotate(count=Count("*")))
