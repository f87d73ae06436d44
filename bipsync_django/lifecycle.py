"""The life of a grant: sign-in, refresh, disconnect. The only writer of token rows.

A refresh token is good once, so two rules carry the rest. Before a refresh token is sent, a
committed lease says that it is being sent, and by whom. After the answer, the new pair is stored
guarded by the generation that was sent and never by the lease: an owner whose lease ran out while
Bipsync was slow still holds the only live pair.
"""

import enum
import logging
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.db import Error, OperationalError, connections, models, transaction
from django.db.models import Case, F, Q, When
from django.db.models.expressions import RawSQL
from django.dispatch import Signal
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from . import breaker, durable, policy, signals
from .conf import Tenant, get_settings, get_tenant
from .durable import DatabaseNow, database
from .events import count, record
from .exceptions import (
    BipsyncError,
    ConfigurationError,
    GrantDead,
    KeysUnavailable,
    ProviderMisconfigured,
    RefreshUnavailable,
    RetryLater,
    SecretUnreadable,
    SignInRefused,
    SignInRequired,
    TokenEndpointError,
    TokenRefused,
)
from .models import BipsyncToken, BipsyncTokenQuerySet, TenantState, TokenEvent
from .oauth.claims import Claims, validate_access_token
from .oauth.client import TokenPair, refresh_pair
from .redaction import forget_variables

__all__ = [
    "Outcome",
    "access_token",
    "disconnect",
    "end_sessions",
    "grant_of",
    "refresh",
    "refresh_if_due",
    "replace_refused",
    "sign_in",
    "take_due",
]

logger = logging.getLogger(__name__)

LEASE = timedelta(seconds=30)
SEND_WITHIN = 5.0
ANSWERED_WITHIN = 15.0
WAIT_FOR_WINNER = 12.0
TAKEN_FOR = timedelta(minutes=10)
MENDED_EARLIEST = timedelta(minutes=1)
REFUSED_EARLIEST = timedelta(minutes=10)
# Rows of inactive people come up again at long intervals, or they would be looked at every time.
_IDLE_FOR = timedelta(days=1)
_POLL = 0.05
_ASK_AGAIN = 1.0
# As SQL, because building it from expressions costs more than the database's whole work.
_DEPLOYMENT = RawSQL(  # noqa: S611 - constant
    f"(SELECT deployment FROM {TenantState._meta.db_table} AS state"  # noqa: S608
    f" WHERE state.tenant = {BipsyncToken._meta.db_table}.tenant)",
    (),
    output_field=models.CharField(null=True),
)

Status = BipsyncToken.Status
Event = TokenEvent.Name


class Outcome(enum.Enum):
    """What became of a refresh in the background."""

    REFRESHED = "refreshed"
    NOT_DUE = "not due"
    HELD_BACK = "held back"
    FAILED = "failed"
    NEEDS_SIGN_IN = "needs sign-in"


# --- front doors


def access_token(token: BipsyncToken, *, min_validity: float = 60) -> str:
    """Return an access token that is good for ``min_validity`` seconds more, refreshing if needed.

    ``min_validity`` counts for at most a quarter of the token's lifetime. With nothing due this
    is one query and no write. A refresh kills the access token that other requests of this person
    are using at this moment; they get a 401 from Bipsync and have to ask again.

    When a refresh is due but cannot be had, the present token is returned as long as it has not
    expired.

    Raises ``SignInRequired`` when the person has to sign in again, ``RefreshUnavailable`` when
    another try later may succeed (``RefreshInsideTransaction`` on SQLite inside a transaction),
    and ``SecretUnreadable`` or ``ConfigurationError`` when an administrator has to act.
    """

    def is_due(row: BipsyncToken) -> bool:
        return policy.is_due(row, min_validity)

    row = _read(token.pk)
    if row.status == Status.ACTIVE and _may_be_used(row) and is_due(row):
        try:
            row = _obtain(row, row.generation, is_due, wait=True)
        except (ConfigurationError, RefreshUnavailable, SecretUnreadable, SignInRequired):
            row = _read_beside(token.pk)
            if not _is_alive(row):
                raise
    return _hand_out(row)


def refresh(token: BipsyncToken, *, force: bool = False) -> BipsyncToken:
    """Refresh the grant if that is due in the background, or with ``force`` in any case.

    A pair that is newer than ``token``, or younger than 30 seconds, is not refreshed again even
    then. Returns the row as it is now. A refresh kills the access token that is in use.

    Raises as ``access_token`` does.
    """

    def is_due(row: BipsyncToken) -> bool:
        return force or policy.is_due_in_background(row)

    row = _obtain(_read(token.pk), token.generation, is_due, wait=True)
    _raise_if_ended(row)
    return row


@sensitive_variables()
def replace_refused(token: BipsyncToken, refused: str) -> str | None:
    """Return another access token than ``refused``, which Bipsync's API has answered with 401.

    A row that holds another one by now gives that. Otherwise its pair is refreshed, once. Returns
    ``None`` when ``refused`` is less than ten minutes old: a 401 is also how Bipsync says that a
    scope is missing, and no refresh mends that.

    Raises as ``access_token`` does.
    """
    row = _read_beside(token.pk)
    if row.unseal("access_token") != refused:
        return _hand_out(row)
    _raise_if_ended(row)
    if row.obtained_at is not None and timezone.now() < row.obtained_at + REFUSED_EARLIEST:
        return None
    return _hand_out(_obtain(row, row.generation, lambda row: True, wait=True))


def grant_of(user: models.Model, tenant: Tenant) -> BipsyncToken | None:
    """Return the person's grant at ``tenant``, or ``None``.

    Of several Bipsync accounts it is an active one, and the one that signed in last.
    """
    rows = _rows().for_user(user).filter(tenant=tenant.slug).exclude(signed_in_at=None)
    return max(rows, key=lambda row: (row.status == Status.ACTIVE, row.signed_in_at), default=None)


def refresh_if_due(pk: int) -> Outcome:
    """Refresh the row ``pk`` in the background, without waiting for anyone else who does.

    What went wrong is on the row, not raised.
    """
    before = _find(pk)
    if before is None or before.status != Status.ACTIVE or not _may_be_used(before):
        return Outcome.NOT_DUE
    if not policy.is_due_in_background(before):
        _schedule(before)
        return Outcome.NOT_DUE
    try:
        after = _obtain(before, before.generation, policy.is_due_in_background, wait=False)
    except SignInRequired:
        return Outcome.NEEDS_SIGN_IN
    except RefreshUnavailable as error:
        if error.until is not None:
            _put_back(before, error.until)
        return Outcome.HELD_BACK if error.until or error.code == "busy" else Outcome.FAILED
    except BipsyncError:
        return Outcome.FAILED
    return Outcome.NOT_DUE if after.generation == before.generation else Outcome.REFRESHED


def take_due(limit: int) -> list[int]:
    """Return the ids of up to ``limit`` rows that are due, and not again for ten minutes.

    An empty list means that nothing is due, or that nothing may be refreshed. Taking a row only
    moves ``next_refresh_at``: a lost message costs ten minutes, never a grant.
    """
    while get_settings().refresh_enabled:
        pks = _set_aside(limit)
        usable = list(_rows().active().filter(pk__in=pks).values_list("pk", flat=True))
        if len(usable) < len(pks):
            idle = _rows().filter(pk__in=set(pks) - set(usable), status=Status.ACTIVE)
            idle.update(next_refresh_at=timezone.now() + _IDLE_FOR)
        if usable or not pks:
            return usable
    return []


def sign_in(
    tenant: Tenant,
    claims: Claims,
    pair: TokenPair,
    *,
    scopes: Iterable[str],
    resolve_user: Callable[[AbstractBaseUser | None], AbstractBaseUser],
) -> BipsyncToken:
    """Store the pair of a person who has just signed in; a sign-in wins over any refresh under way.

    ``claims`` are those of ``pair``'s validated access token and ``scopes`` what was asked for.
    ``resolve_user`` is given the user that this Bipsync account belongs to, or ``None``, and
    returns the user to sign in; it runs while the row is locked, so that two first sign-ins of
    one person at the same moment make one user. What it raises leaves nothing stored.

    Raises ``OtherDeployment`` when the rows are those of another deployment.
    """
    breaker.claim_deployment(tenant.slug)
    with transaction.atomic(using=database()):
        row = _lock(tenant, claims.subject)
        user = resolve_user(row.user)
        values = {
            "refresh_token": None,
            **_pair_values(row, pair),
            "user": user,
            "client_id": tenant.client_id,
            "generation": row.generation + 1,
            "validated_generation": row.generation + 1,
            "signed_in_at": timezone.now(),
            "scopes": _granted(claims, scopes),
        }
        for name, value in values.items():
            setattr(row, name, value)
        row.save(using=database(), update_fields=values)
        record(row, Event.SIGNED_IN, actor=user)
    breaker.note_sign_in(tenant.slug)
    count(tenant.slug, "signed_in")
    _send(signals.signed_in, row, claims=claims)
    return row


def disconnect(token: BipsyncToken, *, actor: AbstractBaseUser | None = None) -> None:
    """Give the grant up and erase its pair; a refresh under way loses.

    Bipsync has no revocation endpoint: its own list of connected applications keeps the entry.
    ``actor`` is who asked for it.
    """
    rows = _rows().filter(pk=token.pk)
    changed = rows.exclude(status=Status.DISCONNECTED).update(
        access_token=None,
        refresh_token=None,
        access_expires_at=None,
        next_refresh_at=None,
        next_attempt_at=None,
        in_doubt_at=None,
        last_error="",
        status=Status.DISCONNECTED,
        generation=F("generation") + 1,
        lease_id=None,
        lease_until=None,
    )
    if changed:
        row = _read(token.pk)
        record(row, Event.DISCONNECTED, actor=actor)
        _send(signals.disconnected, row)


def end_sessions(token: BipsyncToken, *, actor: AbstractBaseUser | None = None) -> None:
    """End the sessions that came from this grant; the grant itself stays.

    ``BipsyncSessionMiddleware`` sees to it, within ``SESSION_CHECK_INTERVAL``. ``actor`` is who
    asked for it.
    """
    if _rows().filter(pk=token.pk).update(sessions_valid_after=timezone.now()):
        record(_read(token.pk), Event.SESSIONS_ENDED, actor=actor)


# --- what a row says


def _may_be_used(row: BipsyncToken) -> bool:
    return row.kind == BipsyncToken.Kind.SERVICE or (row.user is not None and row.user.is_active)


def _is_alive(row: BipsyncToken) -> bool:
    """Whether the access token itself still works, whatever became of the grant."""
    return (
        row.status != Status.DISCONNECTED
        and row.access_token is not None
        and row.access_expires_at is not None
        and row.access_expires_at > timezone.now()
    )


def _is_refused(row: BipsyncToken) -> bool:
    return row.last_error == "token_refused"


def _is_quarantined(row: BipsyncToken) -> bool:
    return _is_refused(row) and row.validated_generation < row.generation


@sensitive_variables()
def _hand_out(row: BipsyncToken) -> str:
    _raise_if_foreign(row)
    if not _may_be_used(row):
        raise SignInRequired("This person's account is not active.")
    if row.status != Status.ACTIVE and not _is_alive(row):
        raise SignInRequired("The connection to Bipsync has ended; sign in again.")
    if row.validated_generation < row.generation:
        _validate_beside(row)
    token = row.unseal("access_token")
    if token is None:
        raise SignInRequired("No token is stored; sign in again.")
    return token


# --- the refresh (the numbers are the steps of docs/refresh-protocol.md)


@dataclass(frozen=True)
class _Claim:
    """The right to send one row's refresh token, once and soon."""

    pk: int
    generation: int
    lease_id: str
    at: float
    is_trial: bool

    def rows(self) -> BipsyncTokenQuerySet:
        return _rows().filter(pk=self.pk, lease_id=self.lease_id)


def _obtain(
    row: BipsyncToken, generation: int, is_due: Callable[[BipsyncToken], bool], *, wait: bool
) -> BipsyncToken:
    """Return the row once it needs no refresh, whether by this caller's work or another's.

    ``generation`` is the one that the caller has no use for.
    """
    if not _needs_refresh(row, generation, is_due) or policy.is_recent(row):
        return row
    _raise_if_held_back(row)
    return durable.outside_transaction(
        lambda: _claim_or_wait(row, generation, is_due, wait=wait), database()
    )


def _needs_refresh(
    row: BipsyncToken, generation: int, is_due: Callable[[BipsyncToken], bool]
) -> bool:
    return row.generation <= generation and is_due(row)


def _claim_or_wait(
    row: BipsyncToken, generation: int, is_due: Callable[[BipsyncToken], bool], *, wait: bool
) -> BipsyncToken:
    give_up = time.monotonic() + WAIT_FOR_WINNER
    while True:
        # A row that was read too long ago, or in an older snapshot, gets no claim.
        claim = _claim(row)
        refreshed = _carry_out_and_forget(claim) if claim is not None else None
        if refreshed is not None:
            return refreshed
        if not wait:
            raise RefreshUnavailable("busy", "Another process is refreshing this token.")
        row = _wait_while_leased(row.pk, generation, is_due, give_up)
        if not _needs_refresh(row, generation, is_due):
            return row


def _wait_while_leased(
    pk: int, generation: int, is_due: Callable[[BipsyncToken], bool], give_up: float
) -> BipsyncToken:
    """Return the row as soon as it needs no refresh, or its lease is worth asking for.

    Reading is cheap. To ask is to write, or to wait for who does.
    """
    ask_again = time.monotonic() + _ASK_AGAIN
    while True:
        time.sleep(_POLL)
        row = _read(pk)
        if not _needs_refresh(row, generation, is_due):
            return row
        _raise_if_held_back(row)
        if time.monotonic() > give_up:
            raise RefreshUnavailable("busy", "Another process is refreshing this token.")
        if row.lease_id is None or time.monotonic() > ask_again:
            return row


def _raise_if_held_back(row: BipsyncToken) -> None:
    """Step 2: the reasons on the row and in the settings for which no call is made."""
    _raise_if_foreign(row)
    if not _may_be_used(row):
        raise SignInRequired("This person's account is not active.")
    _raise_if_ended(row)
    if not get_settings().refresh_enabled:
        raise RefreshUnavailable("disabled", "Refreshing is switched off (REFRESH_ENABLED).")
    if row.next_attempt_at is not None and row.next_attempt_at > timezone.now():
        raise RefreshUnavailable(
            row.last_error,
            f"The last refresh failed ({row.last_error}); the next try is due soon.",
            until=row.next_attempt_at,
        )


def _raise_if_ended(row: BipsyncToken) -> None:
    if row.status != Status.ACTIVE:
        raise SignInRequired("The connection to Bipsync has ended; sign in again.")


def _raise_if_foreign(row: BipsyncToken) -> None:
    # Annotated by _read; a row that was just signed in has it from the same process.
    breaker.raise_if_foreign(row.tenant, getattr(row, "deployment", None) or "")


def _claim(row: BipsyncToken) -> _Claim | None:
    """Step 4: commit a lease on the row, or return ``None`` when someone else has it."""
    is_trial = breaker.admit(row.tenant)
    now = DatabaseNow()
    claim = _Claim(row.pk, row.generation, uuid.uuid4().hex, time.monotonic(), is_trial)
    free = _rows().filter(
        Q(lease_until__isnull=True) | Q(lease_until__lte=now),
        pk=row.pk,
        generation=row.generation,
        status=Status.ACTIVE,
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


def _carry_out_and_forget(claim: _Claim) -> BipsyncToken | None:
    """Carry the claim out, and leave no secret in the frames of what is raised."""
    outer = sys.exc_info()[1]
    try:
        return _carry_out(claim)
    except BaseException as error:
        forget_variables(error, outer)
        raise


@sensitive_variables()
def _carry_out(claim: _Claim) -> BipsyncToken | None:
    """Return the refreshed row, or ``None`` when the lease was lost before it could be used."""
    row = _read(claim.pk)
    if row.lease_id != claim.lease_id:
        return None
    tenant, client_secret, refresh_token = _prepare(claim, row)
    if refresh_token is None:
        _mark_dead(claim, row, "no_refresh_token")
        breaker.say_once(
            row.tenant, "Bipsync hands out no refresh tokens: ask for that grant type."
        )
        raise SignInRequired("Bipsync handed out no means to refresh; sign in again.")
    try:
        with durable.hold_signals():
            pair = refresh_pair(
                tenant,
                refresh_token,
                client_secret=client_secret,
                not_after=claim.at + ANSWERED_WITHIN,
            )
            stored = _store(row, pair)
    except GrantDead as error:
        # A lost answer explains a death: it says nothing about the application.
        if _mark_dead(claim, row, error.code) and row.in_doubt_at is None:
            breaker.note_death(row.tenant)
        raise SignInRequired("Bipsync says that the grant has ended; sign in again.") from error
    except (ProviderMisconfigured, RetryLater) as error:
        _mark_failed(claim, row, error)
        raise RefreshUnavailable(error.code, str(error)) from error
    except ConfigurationError as error:
        _release(claim, row, error)
        raise
    return _tell(row, pair, stored)


def _prepare(claim: _Claim, row: BipsyncToken) -> tuple[Tenant, str, str | None]:
    """Steps 5 and 6: what to send, read on this connection, or release the lease and raise."""
    try:
        tenant = get_tenant(row.tenant)
        # Read before the clock is looked at, and not again: a secret store may be slow.
        client_secret = tenant.client_secret
        if row.client_id != tenant.client_id:
            raise RefreshUnavailable(
                "other_application",
                "The grant was given to another client id than BIPSYNC['CLIENT_ID']; the person "
                "has to sign in again, or the old client id has to be put back.",
            )
        refresh_token = row.unseal("refresh_token")
        if claim.is_trial:
            breaker.take_trial(row.tenant)
        if time.monotonic() - claim.at >= SEND_WITHIN:
            raise RefreshUnavailable("busy", "The database is too slow to refresh safely.")
    except BipsyncError as error:
        _release(claim, row, error)
        raise
    return tenant, client_secret, refresh_token


def _release(claim: _Claim, row: BipsyncToken, error: BipsyncError) -> None:
    code = "secret_unreadable" if isinstance(error, SecretUnreadable) else "configuration"
    code = getattr(error, "code", code)
    if code == "busy" or getattr(error, "until", None):
        # Nothing about the row: it is as it was.
        _update(claim.rows(), lease_id=None, lease_until=None)
        return
    # What an administrator has to mend will not be mended within a minute.
    pause = timezone.now() + MENDED_EARLIEST
    if _update(
        claim.rows(), lease_id=None, lease_until=None, last_error=code, next_attempt_at=pause
    ):
        record(row, Event.REFRESH_FAILED, code)
        breaker.note_failure(row.tenant, code, is_first=row.last_error != code)


def _mark_dead(claim: _Claim, row: BipsyncToken, reason: str) -> bool:
    """Step 8: pair and generation stay, so that a late answer to an earlier send revives it."""
    reason = "answer_lost" if row.in_doubt_at is not None else reason
    if _update(
        claim.rows().filter(generation=claim.generation),
        status=Status.NEEDS_SIGN_IN,
        lease_id=None,
        lease_until=None,
        last_error=reason,
        next_refresh_at=None,
    ):
        row = _read(claim.pk)
        record(row, Event.NEEDS_SIGN_IN, reason)
        count(row.tenant, "refresh_dead")
        _send(signals.needs_sign_in, row, reason=reason)
        return True
    return False


def _mark_failed(claim: _Claim, row: BipsyncToken, error: TokenEndpointError) -> None:
    """Step 9: the grant is kept, and another try comes later."""
    now = timezone.now()
    retry_after = error.retry_after if isinstance(error, RetryLater) else None
    next_attempt = now + policy.pause_after(row.attempt, retry_after)
    values: dict[str, Any] = {
        "lease_id": None,
        "lease_until": None,
        "attempt": F("attempt") + 1,
        # A token that was refused stays so, until another one is there.
        "last_error": row.last_error if _is_quarantined(row) else error.code,
        "next_attempt_at": next_attempt,
    }
    if get_settings().refresh_ahead is not None:
        values["next_refresh_at"] = next_attempt
    is_spent = isinstance(error, RetryLater) and error.spent
    if isinstance(error, RetryLater) and error.maybe_sent:
        values["in_doubt_at"] = now
    if _update(claim.rows(), **values):
        row = _read(claim.pk)
        record(row, Event.REFRESH_FAILED, error.code)
        count(row.tenant, "refresh_failed")
        breaker.note_failure(row.tenant, error.code, is_first=row.attempt == 1, spent=is_spent)
        _send(signals.refresh_failed, row, reason=error.code)


class _Stored(enum.Enum):
    YES = "in the row that was sent from"
    REVIVED = "in a row that another sender has found dead meanwhile"
    NO = "the row has changed"


@sensitive_variables()
def _store(sent: BipsyncToken, pair: TokenPair) -> _Stored:
    """Step 7: the new pair, guarded by the generation that was sent and never by the lease.

    ``sent`` is then the row as it is.
    """
    values = _pair_values(sent, pair)
    rows = _rows().filter(pk=sent.pk, generation=sent.generation)

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


@sensitive_variables()
def _tell(sent: BipsyncToken, pair: TokenPair, stored: _Stored) -> BipsyncToken:
    """Record what became of the new pair, validate it if it is stored, and send the signal."""
    row = sent if stored is _Stored.YES else _read(sent.pk)
    if stored is _Stored.NO and not _holds(row, pair):
        record(row, Event.DISCARDED, generation=sent.generation + 1)
        return row
    if stored is _Stored.REVIVED:
        record(row, Event.REVIVED)
    count(row.tenant, "refreshed")
    claims = _validate(row, from_provider=True)
    breaker.note_success(row.tenant)
    if claims is not None:
        _send(signals.token_refreshed, row, claims=claims)
    return row


def _holds(row: BipsyncToken, pair: TokenPair) -> bool:
    """Whether the row has this very pair: a commit may land although its answer is lost."""
    try:
        return row.unseal("access_token") == pair.access_token
    except SecretUnreadable:
        return False


def _validate(row: BipsyncToken, *, from_provider: bool = False) -> Claims | None:
    """Step 10: look at the token that is stored already; the pair is safe whatever comes out.

    Returns ``None`` when the keys cannot be had: the token may go to the API, and changes no user.
    """
    try:
        claims = _check(row, from_provider=from_provider)
    except RefreshUnavailable:
        _quarantine(row)
        raise
    except SignInRequired:
        _end(row, "other_subject")
        raise
    if claims is None:
        return None
    row.scopes = _granted(claims, row.scope_set)
    row.validated_generation = row.generation
    row.last_error = "" if _is_refused(row) else row.last_error
    _update(
        _rows().filter(pk=row.pk, generation=row.generation),
        validated_generation=row.generation,
        scopes=row.scopes,
        last_error=row.last_error,
    )
    return claims


@sensitive_variables()
def _check(row: BipsyncToken, *, from_provider: bool = False) -> Claims | None:
    raw = row.unseal("access_token")
    if raw is None:
        return None
    try:
        claims = validate_access_token(raw, get_tenant(row.tenant), from_provider=from_provider)
    except KeysUnavailable:
        return None
    except TokenRefused as error:
        raise RefreshUnavailable(
            "token_refused", "Bipsync handed out a token that does not validate; it is held back."
        ) from error
    if claims.subject != row.subject:
        raise SignInRequired("Bipsync handed out another person's token; sign in again.")
    return claims


def _validate_beside(row: BipsyncToken) -> None:
    """Validate, and keep the verdict whatever becomes of the caller's transaction.

    In the caller's own it would lock the row until the caller commits, and a refresh elsewhere
    with it. Where no other connection is to be had, the verdict is left to the next reader.
    """
    try:
        claims = _check(row)
    except (RefreshUnavailable, SignInRequired):
        _keep_verdict(row)
        raise
    if claims is not None:
        _keep_verdict(row)
    elif _is_refused(row):
        raise RefreshUnavailable("token_refused", "The token did not validate and is held back.")


def _keep_verdict(row: BipsyncToken) -> None:
    with suppress(RefreshUnavailable, SignInRequired):
        durable.outside_transaction(lambda: _validate(row), database())


def _quarantine(row: BipsyncToken) -> None:
    pause = timezone.now() + breaker.HELD_BACK
    if _update(
        _rows().filter(pk=row.pk, generation=row.generation).exclude(last_error="token_refused"),
        last_error="token_refused",
        next_attempt_at=pause,
        next_refresh_at=pause,
    ):
        record(row, Event.QUARANTINED, "token_refused")
        breaker.note_failure(row.tenant, "token_refused", is_first=True)


def _end(row: BipsyncToken, reason: str) -> None:
    if _update(
        _rows().filter(pk=row.pk, generation=row.generation),
        access_token=None,
        refresh_token=None,
        access_expires_at=None,
        next_refresh_at=None,
        status=Status.NEEDS_SIGN_IN,
        last_error=reason,
        generation=row.generation + 1,
    ):
        record(row, Event.NEEDS_SIGN_IN, reason)
        breaker.note_death(row.tenant)
        _send(signals.needs_sign_in, row, reason=reason)


# --- rows


def _rows() -> BipsyncTokenQuerySet:
    return BipsyncToken.objects.using(database())


def _read(pk: int) -> BipsyncToken:
    """Return the row as ``_find`` does. Raises ``SignInRequired`` when it is gone."""
    row = _find(pk)
    if row is None:
        raise SignInRequired("There is no connection to Bipsync any more; sign in again.")
    return row


def _find(pk: int) -> BipsyncToken | None:
    """Return the row with its person, and with the deployment that its tenant belongs to."""
    rows = _rows().annotate(deployment=_DEPLOYMENT).select_related("user")
    return rows.filter(pk=pk).first()


def _read_beside(pk: int) -> BipsyncToken:
    """Read the row as it is now: a transaction of the caller's may show it as it was."""
    try:
        return durable.outside_transaction(lambda: _read(pk), database())
    except RefreshUnavailable:
        # SQLite, or no connection to be had.
        return _read(pk)


def _set_aside(limit: int) -> list[int]:
    """Return the ids of rows that are due; of two callers at once each row goes to one."""
    now = timezone.now()
    due = _rows().filter(status=Status.ACTIVE, next_refresh_at__lte=now)
    due = due.exclude(tenant__in=breaker.tenants_held_back()).order_by("next_refresh_at")
    with transaction.atomic(using=database()):
        pks = list(durable.skip_locked(due).values_list("pk", flat=True)[:limit])
        _rows().filter(pk__in=pks, next_refresh_at__lte=now).update(next_refresh_at=now + TAKEN_FOR)
    return pks


def _schedule(row: BipsyncToken) -> None:
    """Let a row that was taken too early, by another policy than today's, come up when it is due.

    A row that is not due because it was refreshed meanwhile is known by its generation.
    """
    if row.obtained_at is not None and row.access_expires_at is not None:
        at = policy.next_refresh(row.obtained_at, row.access_expires_at - row.obtained_at)
        _rows().filter(pk=row.pk, generation=row.generation).update(next_refresh_at=at)


def _put_back(row: BipsyncToken, until: datetime) -> None:
    """Let a row that was taken come up again when another try makes sense."""
    at = until + policy.spread(timedelta(minutes=1))
    _rows().filter(pk=row.pk, generation=row.generation, next_refresh_at__gt=at).update(
        next_refresh_at=at
    )


def _update(rows: models.QuerySet[Any], **values: Any) -> int:
    return durable.persist(lambda: durable.update(rows, **values), database(), patience=10)


def _lock(tenant: Tenant, subject: str) -> BipsyncToken:
    """Return the person's row, locked to the end of the transaction, new if need be.

    A write comes first, even if it changes nothing: the unique index makes two first sign-ins
    wait for each other, and SQLite gives out no lock for ``select_for_update``.
    """
    person = {"tenant": tenant.slug, "kind": BipsyncToken.Kind.PERSON, "subject": subject}
    if not _rows().filter(**person).update(attempt=F("attempt")):
        new = BipsyncToken(**person, client_id=tenant.client_id, status=Status.NEEDS_SIGN_IN)
        _rows().bulk_create([new], ignore_conflicts=True)
    # PostgreSQL locks no row that an outer join may lack.
    of = ("self",) if connections[database()].features.has_select_for_update_of else ()
    row = _rows().select_for_update(of=of).select_related("user").get(**person)
    if row.subject != subject:
        # A collation that ignores case or accents must not make two people one.
        raise SignInRefused("not_allowed", "Another subject of this tenant differs only in case.")
    return row


def _pair_values(row: BipsyncToken, pair: TokenPair) -> dict[str, Any]:
    """Return the columns of a row that has just got ``pair``."""
    now = timezone.now()
    lifetime = timedelta(seconds=pair.expires_in)
    values = {
        "access_token": row.seal("access_token", pair.access_token),
        "obtained_at": now,
        "access_expires_at": now + lifetime,
        "next_refresh_at": policy.next_refresh(now, lifetime),
        "status": Status.ACTIVE,
        "lease_id": None,
        "lease_until": None,
        "attempt": 0,
        "in_doubt_at": None,
        "next_attempt_at": None,
        "last_error": "",
    }
    if pair.refresh_token is not None:
        values["refresh_token"] = row.seal("refresh_token", pair.refresh_token)
    return values


def _granted(claims: Claims, asked: Iterable[str]) -> str:
    named = claims.scopes if "scopes" in claims.claims else asked
    return " ".join(sorted(set(named)))


def _send(signal: Signal, row: BipsyncToken, **arguments: object) -> None:
    durable.afterwards(lambda: _deliver(signal, row, arguments))


def _deliver(signal: Signal, row: BipsyncToken, arguments: dict[str, object]) -> None:
    """Tell the site's receivers. What fails there must not break the caller's transaction."""
    try:
        with transaction.atomic(using=database()) if _in_transaction() else nullcontext():
            signal.send_robust(sender=BipsyncToken, token=row, **arguments)
    except Error as error:
        logger.error("A receiver broke the transaction (%s); undone.", type(error).__name__)


def _in_transaction() -> bool:
    return connections[database()].in_atomic_block
