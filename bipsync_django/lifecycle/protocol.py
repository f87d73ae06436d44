"""One refresh, step by step. The numbers are those of docs/refresh-protocol.md."""

import enum
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.db import OperationalError
from django.db.models import Case, F, Q, When
from django.utils import timezone

from .. import breaker, durable, policy, signals
from ..conf import Tenant, get_settings, get_tenant
from ..durable import DatabaseNow, database
from ..events import count, record
from ..exceptions import (
    BipsyncError,
    ConfigurationError,
    GrantDead,
    ProviderMisconfigured,
    RefreshUnavailable,
    RetryLater,
    SecretUnreadable,
    SignInRequired,
    TokenEndpointError,
)
from ..models import BipsyncToken, BipsyncTokenQuerySet, TokenEvent
from ..oauth.client import TokenPair, refresh_pair
from ..redaction import without_traces
from .rows import (
    Identity,
    beside,
    forget_kept,
    is_quarantined,
    may_be_used,
    pair_values,
    raise_if_ended,
    raise_if_foreign,
    read,
    read_now,
    send,
    write,
)
from .validation import validate

__all__ = ["obtain", "revive"]

LEASE = timedelta(seconds=30)
SEND_WITHIN = 5.0
ANSWERED_WITHIN = 15.0
WAIT_FOR_WINNER = 12.0
MENDED_EARLIEST = timedelta(minutes=1)
_POLL = 0.05
# Inside a transaction each look takes a second connection for a moment.
_POLL_BESIDE = 0.25
_ASK_AGAIN = 1.0

Status = BipsyncToken.Status
Event = TokenEvent.Name


def obtain(
    row: BipsyncToken,
    generation: int,
    is_due: Callable[[BipsyncToken], bool],
    *,
    wait: bool,
    even_recent: bool = False,
) -> BipsyncToken:
    """Refresh, or wait for the process that does, until the row needs no refresh; return it.

    ``generation`` is the one that the caller has no use for. A pair that is younger than 30
    seconds is refreshed only with ``even_recent``, to find out whether the grant is alive.
    """
    if not _needs_refresh(row, generation, is_due):
        return row
    if policy.is_recent(row) and not even_recent:
        return row
    _raise_if_held_back(row)
    if not durable.needs_own_connection(database()):
        return _claim_or_wait(row, generation, is_due, wait=wait)
    with durable.in_turn(Identity.of(row), patience=WAIT_FOR_WINNER if wait else 0):
        return _claim_or_wait(row, generation, is_due, wait=wait)


def revive(row: BipsyncToken) -> BipsyncToken:
    """Ask once more for a row that was found dead; return it as it is then.

    It stays dead unless Bipsync takes its refresh token: step 7 alone makes it active.
    """
    _raise_if_held_back(row, Status.NEEDS_SIGN_IN)

    def claim_and_carry_out(row: BipsyncToken) -> BipsyncToken:
        claim = _claim(row, Status.NEEDS_SIGN_IN)
        revived = _carry_out(claim) if claim is not None else None
        if revived is None:
            raise RefreshUnavailable("busy", "Another process is refreshing this token.")
        return revived

    return beside(row, claim_and_carry_out)


def _needs_refresh(
    row: BipsyncToken, generation: int, is_due: Callable[[BipsyncToken], bool]
) -> bool:
    return row.generation <= generation and is_due(row)


def _claim_or_wait(
    row: BipsyncToken, generation: int, is_due: Callable[[BipsyncToken], bool], *, wait: bool
) -> BipsyncToken:
    give_up = time.monotonic() + WAIT_FOR_WINNER

    def claim_and_carry_out(row: BipsyncToken) -> BipsyncToken | None:
        if not _needs_refresh(row, generation, is_due):
            return row
        _raise_if_held_back(row)
        # A row that was read too long ago, or in an older snapshot, gets no claim.
        claim = _claim(row)
        return None if claim is None else _carry_out(claim)

    while True:
        # A second connection is held for the length of the call, and never while another waits.
        refreshed = beside(row, claim_and_carry_out)
        if refreshed is not None:
            return refreshed
        if not wait:
            raise RefreshUnavailable("busy", "Another process is refreshing this token.")
        row = _wait_while_leased(row, generation, is_due, give_up)
        if not _needs_refresh(row, generation, is_due):
            return row


def _wait_while_leased(
    row: BipsyncToken, generation: int, is_due: Callable[[BipsyncToken], bool], give_up: float
) -> BipsyncToken:
    """Return the row as soon as it needs no refresh, or its lease is worth asking for.

    Reading is cheap. To ask is to write, or to wait for who does.
    """
    ask_again = time.monotonic() + _ASK_AGAIN
    pause = _POLL_BESIDE if durable.needs_own_connection(database()) else _POLL
    while True:
        time.sleep(pause)
        row = read_now(row)
        if not _needs_refresh(row, generation, is_due):
            return row
        _raise_if_held_back(row)
        if time.monotonic() > give_up:
            raise RefreshUnavailable("busy", "Another process is refreshing this token.")
        if row.lease_id is None or time.monotonic() > ask_again:
            return row


def _raise_if_held_back(row: BipsyncToken, expected: Status = Status.ACTIVE) -> None:
    """Step 2: the reasons on the row and in the settings for which no call is made."""
    raise_if_foreign(row)
    if not may_be_used(row):
        raise SignInRequired("This person's account is not active.")
    if row.status != expected:
        raise_if_ended(row)
        raise RefreshUnavailable("busy", "The row has changed meanwhile.")
    if not get_settings().refresh_enabled:
        raise RefreshUnavailable("disabled", "Refreshing is switched off (REFRESH_ENABLED).")
    if row.next_attempt_at is not None and row.next_attempt_at > timezone.now():
        raise RefreshUnavailable(
            row.last_error,
            f"The last refresh failed ({row.last_error}); the next try is due soon.",
            until=row.next_attempt_at,
        )


# --- the lease


@dataclass(frozen=True)
class _Claim:
    """The right to send one row's refresh token, once and soon."""

    identity: Identity
    generation: int
    lease_id: str
    at: float
    is_trial: bool

    def rows(self) -> BipsyncTokenQuerySet:
        return self.identity.rows().filter(lease_id=self.lease_id)


def _claim(row: BipsyncToken, status: Status = Status.ACTIVE) -> _Claim | None:
    """Step 4: commit a lease on the row, or return ``None`` when someone else has it."""
    is_trial = breaker.admit(row.tenant)
    now = DatabaseNow()
    identity = Identity.of(row)
    claim = _Claim(identity, row.generation, uuid.uuid4().hex, time.monotonic(), is_trial)
    free = identity.rows().filter(
        Q(lease_until__isnull=True) | Q(lease_until__lte=now),
        generation=row.generation,
        status=status,
        # Who read the row before a refresh failed has to read it again, and wait.
        attempt=row.attempt,
    )
    try:
        taken = durable.update(
            free,
            # First, because MySQL assigns from left to right and would see the new lease.
            in_doubt_at=Case(When(lease_until__isnull=False, then=now), default=F("in_doubt_at")),
            lease_id=claim.lease_id,
            lease_until=now + LEASE,
        )
    except OperationalError:
        return None
    return claim if taken else None


# --- the call


@without_traces
def _carry_out(claim: _Claim) -> BipsyncToken | None:
    """Return the refreshed row, or ``None`` when the lease was lost before it could be used."""
    row = read(claim.identity)
    if row.lease_id != claim.lease_id:
        return None
    sending = _prepare(claim, row)
    if sending is None:
        _mark_dead(claim, row, "no_refresh_token")
        breaker.say_once(
            row.tenant, "Bipsync hands out no refresh tokens: ask for that grant type."
        )
        raise SignInRequired("Bipsync handed out no means to refresh; sign in again.")
    try:
        with durable.hold_signals():
            try:
                pair = refresh_pair(
                    sending.tenant,
                    sending.refresh_token,
                    client_secret=sending.client_secret,
                    not_after=claim.at + ANSWERED_WITHIN,
                )
            except ConfigurationError as error:
                _release(claim, row, error)
                raise
            # An error here leaves the lease as it is: the token was sent, and the next owner has
            # to know that its answer may be lost.
            stored = _store(row, pair)
    except GrantDead as error:
        # A lost answer explains a death: it says nothing about the application.
        if _mark_dead(claim, row, error.code) and row.in_doubt_at is None:
            breaker.note_death(row.tenant)
        raise SignInRequired("Bipsync says that the grant has ended; sign in again.") from error
    except (ProviderMisconfigured, RetryLater) as error:
        is_refused = error.code == "invalid_client"
        if is_refused and sending.tenant.has_another_secret(sending.client_secret):
            error = RetryLater(
                "secret_renewed", "The client secret has been renewed.", maybe_sent=False
            )
        _mark_failed(claim, row, error)
        raise RefreshUnavailable(error.code, str(error)) from error
    return _tell(row, pair, stored)


@dataclass(frozen=True)
class _Sending:
    """What goes to the token endpoint. Frames hold this, and nothing that shows a secret."""

    tenant: Tenant
    client_secret: str = field(repr=False)
    refresh_token: str = field(repr=False)


def _prepare(claim: _Claim, row: BipsyncToken) -> _Sending | None:
    """Steps 5 and 6: return what to send, or release the lease and raise."""
    try:
        return _read_what_to_send(claim, row)
    except BipsyncError as error:
        _release(claim, row, error)
        raise


@without_traces
def _read_what_to_send(claim: _Claim, row: BipsyncToken) -> _Sending | None:
    """Read it on this connection. Returns ``None`` where the row has no refresh token."""
    tenant = get_tenant(row.tenant)
    # Read before the clock is looked at, and not again: a secret store may be slow.
    client_secret = tenant.client_secret
    if row.client_id != tenant.client_id:
        raise RefreshUnavailable(
            "other_application",
            "The grant was given to another client id than BIPSYNC['CLIENT_ID']; the person has "
            "to sign in again, or the old client id has to be put back.",
        )
    refresh_token = row.unseal("refresh_token")
    if claim.is_trial:
        breaker.take_trial(row.tenant)
    if time.monotonic() - claim.at >= SEND_WITHIN:
        raise RefreshUnavailable("busy", "The database is too slow to refresh safely.")
    return None if refresh_token is None else _Sending(tenant, client_secret, refresh_token)


def _release(claim: _Claim, row: BipsyncToken, error: BipsyncError) -> None:
    code = "secret_unreadable" if isinstance(error, SecretUnreadable) else "configuration"
    code = getattr(error, "code", code)
    if code == "busy" or getattr(error, "until", None):
        # Nothing about the row: it is as it was.
        write(claim.rows(), lease_id=None, lease_until=None)
        return
    # What an administrator has to mend will not be mended within a minute.
    pause = timezone.now() + MENDED_EARLIEST
    if write(
        claim.rows(),
        lease_id=None,
        lease_until=None,
        last_error=code if row.status == Status.ACTIVE else row.last_error,
        next_attempt_at=pause,
    ):
        record(row, Event.REFRESH_FAILED, code)
        breaker.note_failure(row.tenant, code, is_first=row.last_error != code)


# --- the answer


def _mark_dead(claim: _Claim, row: BipsyncToken, reason: str) -> bool:
    """Step 8: pair and generation stay, so that a late answer to an earlier send revives it.

    Returns whether that is news: a row that was dead already is no sign of anything else.
    """
    reason = "answer_lost" if row.in_doubt_at is not None else reason
    if write(
        claim.rows().filter(generation=claim.generation),
        status=Status.NEEDS_SIGN_IN,
        lease_id=None,
        lease_until=None,
        last_error=reason,
        next_refresh_at=None,
    ):
        is_news = row.status == Status.ACTIVE
        row = read(claim.identity)
        record(row, Event.NEEDS_SIGN_IN, reason)
        if is_news:
            count(row.tenant, "refresh_dead")
            send(signals.needs_sign_in, row, reason=reason)
        return is_news
    return False


def _mark_failed(claim: _Claim, row: BipsyncToken, error: TokenEndpointError) -> None:
    """Step 9: the grant is kept, and another try comes later."""
    now = timezone.now()
    is_dead = row.status != Status.ACTIVE
    retry_after = error.retry_after if isinstance(error, RetryLater) else None
    next_attempt = now + policy.pause_after(row.attempt, retry_after)
    values: dict[str, Any] = {
        "lease_id": None,
        "lease_until": None,
        "attempt": F("attempt") + 1,
        # A token that was refused stays so, until another one is there; and a dead row dead.
        "last_error": row.last_error if is_quarantined(row) or is_dead else error.code,
        "next_attempt_at": next_attempt,
    }
    if get_settings().refresh_ahead is not None and not is_dead:
        values["next_refresh_at"] = next_attempt
    is_spent = isinstance(error, RetryLater) and error.spent
    if isinstance(error, RetryLater) and error.maybe_sent:
        values["in_doubt_at"] = now
    if write(claim.rows(), **values):
        row = read(claim.identity)
        record(row, Event.REFRESH_FAILED, error.code)
        count(row.tenant, "refresh_failed")
        breaker.note_failure(row.tenant, error.code, is_first=row.attempt == 1, spent=is_spent)
        send(signals.refresh_failed, row, reason=error.code)


class _Stored(enum.Enum):
    YES = "in the row that was sent from"
    REVIVED = "in a row that another sender has found dead meanwhile"
    NO = "the row has changed"


@without_traces
def _store(sent: BipsyncToken, pair: TokenPair) -> _Stored:
    """Step 7: the new pair, guarded by the generation that was sent and never by the lease.

    Nor by more of the identity than the pair is sealed for: this pair exists nowhere else. ``sent``
    is then the row as it is.
    """
    values = pair_values(sent, pair)
    rows = Identity.of(sent).rows_of_account().filter(generation=sent.generation)

    def store(rows: BipsyncTokenQuerySet) -> int:
        return durable.persist(
            lambda: durable.update(rows, **values, generation=sent.generation + 1), database()
        )

    if store(rows.filter(status=Status.ACTIVE)):
        for name, value in values.items():
            setattr(sent, name, value)
        sent.generation += 1
        return _Stored.YES
    return _Stored.REVIVED if store(rows) else _Stored.NO


@without_traces
def _tell(sent: BipsyncToken, pair: TokenPair, stored: _Stored) -> BipsyncToken:
    """Record what became of the new pair, validate it if it is stored, and send the signal."""
    row = sent if stored is _Stored.YES else read(sent, of_anybody=True)
    if stored is _Stored.NO and not _holds(row, pair):
        record(row, Event.DISCARDED, generation=sent.generation + 1)
        if row.generation == sent.generation + 1:
            # A disconnect left the token to this call, which has spent it.
            forget_kept(row)
        Identity.of(sent).require(row)
        return row
    if stored is _Stored.REVIVED:
        record(row, Event.REVIVED)
    count(row.tenant, "refreshed")
    validate(row, from_provider=True)
    breaker.note_success(row.tenant)
    return row


def _holds(row: BipsyncToken, pair: TokenPair) -> bool:
    """Whether the row has this very pair: a commit may land although its answer is lost."""
    try:
        return row.unseal("access_token") == pair.access_token
    except SecretUnreadable:
        return False
