"""What people do with a grant: sign in, give it up, end its sessions."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.db import IntegrityError, connections, transaction
from django.db.models import BooleanField, ExpressionWrapper, F, Q
from django.utils import timezone

from .. import breaker, rights, signals
from ..conf import Tenant, get_settings, get_tenant
from ..durable import DatabaseNow, database
from ..events import count, record
from ..exceptions import (
    BipsyncError,
    GrantDead,
    LinkRefused,
    RefreshUnavailable,
    SecretUnreadable,
    SignInRefused,
    TokenEndpointError,
)
from ..models import BipsyncToken, TokenEvent
from ..oauth.claims import Claims
from ..oauth.client import TokenPair, refresh_pair
from ..redaction import without_traces
from .protocol import LEASE, obtain
from .rows import (
    Identity,
    find,
    forget_kept,
    granted_scopes,
    is_quarantined,
    kept,
    kept_claims,
    may_be_used,
    pair_values,
    raise_if_foreign,
    read,
    send,
    tokens,
    whole,
    write,
)

__all__ = [
    "discard",
    "disconnect",
    "end_sessions",
    "is_service",
    "link",
    "lock",
    "note_replaced",
    "sign_in",
    "spend_abandoned",
    "spend_kept",
    "unlink",
    "why_left_valid",
]

logger = logging.getLogger(__name__)

Status = BipsyncToken.Status
Kind = BipsyncToken.Kind
Event = TokenEvent.Name
_TRIES = 10


@without_traces
def sign_in(
    tenant: Tenant,
    claims: Claims,
    pair: TokenPair,
    *,
    scopes: Iterable[str],
    resolve_user: Callable[[BipsyncToken], AbstractBaseUser],
    event: TokenEvent.Name = Event.SIGNED_IN,
) -> BipsyncToken:
    """Store the pair of a person who has just signed in; a sign-in wins over any refresh under way.

    ``claims`` are those of ``pair``'s validated access token and ``scopes`` what was asked for.
    ``resolve_user`` is given the row of this Bipsync account, whose ``user`` it belongs to if it
    is known, and returns the user to sign in; it runs while the row is locked, so that two first
    sign-ins of one person at the same moment make one user. What it raises leaves nothing stored.
    ``event`` is ``SIGNED_IN``, or ``CONNECTED`` for somebody who was signed in already.

    A grant that allows more than the new pair is kept if a refresh shows at this moment that it
    is alive: a page that asked for more must not lose it to an ordinary sign-in.

    Raises ``OtherDeployment`` when the rows are those of another deployment, and
    ``SignInRefused`` when the user has another Bipsync account at this tenant, or the account is
    a service account here.
    """
    breaker.claim_deployment(tenant.slug)
    granted = granted_scopes(claims, pair, scopes)
    works = _prove_wider(tenant, claims.subject, granted["scopes"])
    with transaction.atomic(using=database()):
        row = lock(tenant, claims.subject)
        if is_service(tenant, claims.subject):
            raise SignInRefused("service_account", "The account is a service account here.")
        user = resolve_user(row)
        note_replaced(row)
        keeps = works and _is_wider(row, tenant, granted["scopes"])
        values: dict[str, Any] = {
            "user": user,
            "signed_in_at": timezone.now(),
            "claims": kept_claims(claims),
        }
        if not keeps:
            values |= {
                "refresh_token": None,
                **pair_values(row, pair),
                "client_id": tenant.client_id,
                "generation": row.generation + 1,
                "validated_generation": row.generation + 1,
                **granted,
            }
        for name, value in values.items():
            setattr(row, name, value)
        try:
            row.save(using=database(), update_fields=values)
        except IntegrityError as error:
            # Two accounts at the same moment; else the policy has seen that there is another.
            raise SignInRefused("account_exists", "The user has another account.") from error
        record(row, event, "kept_wider" if keeps else "", actor=user)
    breaker.note_sign_in(tenant.slug)
    count(tenant.slug, event.value)
    send(signals.connected if event == Event.CONNECTED else signals.signed_in, row, claims=claims)
    return row


@without_traces
def link(
    tenant: Tenant,
    subject: str,
    user: AbstractBaseUser,
    *,
    replace: bool = False,
    actor: AbstractBaseUser | None = None,
) -> bool:
    """Let the Bipsync account ``subject`` belong to ``user``, who may sign in with it from now on.

    ``replace`` gives up another account that the user has at this tenant. ``actor`` is who asked
    for it. Returns whether that is news.

    Raises ``LinkRefused`` when the account belongs to somebody else, or the user has another one.
    """
    with transaction.atomic(using=database()):
        row = lock(tenant, subject)
        if is_service(tenant, subject):
            raise LinkRefused("The Bipsync account is a service account of this site.")
        if row.user_id == user.pk:
            return False
        if row.user_id is not None:
            raise LinkRefused(f"The Bipsync account belongs to {row.user} already.")
        for other in tokens().filter(tenant=tenant.slug, user_id=user.pk):
            if not replace:
                raise LinkRefused(f"{user} has the Bipsync account {other.subject} already.")
            unlink(other, actor=actor)
        # Whose it is has been decided: nobody confirms a pair that waits for that.
        discard(row, actor=actor)
        try:
            Identity.of(row).rows().update(user_id=user.pk)
        except IntegrityError as error:
            raise LinkRefused(f"{user} has got another Bipsync account meanwhile.") from error
        record(row, Event.LINKED, actor=actor)
        return True


@without_traces
def unlink(token: BipsyncToken, *, actor: AbstractBaseUser | None = None) -> None:
    """Give the grant up, and let the Bipsync account belong to nobody here.

    Its next sign-in is a first one, and flags that its claims gave are taken back. ``actor`` is
    who asked for it.
    """
    with transaction.atomic(using=database()):
        read(token, of_anybody=True)
        # A sign-in under way comes before or after all of it. Found as it finds the row: by another
        # way the two might take their locks in another order.
        row = _hold(tenant=token.tenant, kind=token.kind, subject=token.subject)
        if row.user_id is None:
            # Somebody else has unlinked it meanwhile.
            Identity.of(token).require_account(row)
        else:
            Identity.of(token).require(row)
        gave_up = _give_up(row, actor)
        if row.user is not None:
            rights.take_back(row, row.user)
            Identity.of(row).rows().update(user=None)
            record(row, Event.UNLINKED, actor=actor)
        left = read(replace(Identity.of(row), user_id=None))
    if gave_up:
        # Whoever only tries, and undoes it, has nothing to tell.
        transaction.on_commit(lambda: send(signals.disconnected, left), using=database())


@without_traces
def disconnect(
    token: BipsyncToken, *, actor: AbstractBaseUser | None = None, end_at_bipsync: bool = True
) -> None:
    """Give the grant up and erase its pair; a refresh under way loses.

    Bipsync has no revocation endpoint, and its own list of connected applications keeps the
    entry. So the refresh token is spent once more after the caller's transaction, and what comes
    is thrown away: nobody can use a copy of the pair from then on. Where Bipsync cannot be asked,
    the access token works there until it expires, and an event says so. ``end_at_bipsync`` is
    false for rows whose grants go on somewhere else. ``actor`` is who asked for it.

    While another process may be sending the refresh token, nobody else does: it stays sealed in the
    row, unused, until the lease has run out, and is spent by ``spend_abandoned`` then.

    Raises ``RowMismatch`` when another account's row is found in the place of ``token``, and
    ``SignInRequired`` when it belongs to another user by now; nothing is changed then.
    """
    if _give_up(token, actor, end_at_bipsync=end_at_bipsync):
        row = read(token)
        send(signals.disconnected, row)
    elif not end_at_bipsync:
        # An earlier disconnect may have kept the refresh token, to spend it.
        forget_kept(token)


@without_traces
def discard(token: BipsyncToken, *, actor: AbstractBaseUser | None = None) -> bool:
    """Give up the pair that waits for confirmation in ``token``, as ``disconnect`` does.

    Returns whether it still waited: one that was confirmed or replaced meanwhile is left alone.
    """
    return _give_up(token, actor, status=Status.UNCONFIRMED, generation=token.generation)


@without_traces
def _give_up(
    token: BipsyncToken,
    actor: AbstractBaseUser | None,
    *,
    end_at_bipsync: bool = True,
    **expected: Any,
) -> bool:
    before = _erase(Identity.of(token), end_at_bipsync=end_at_bipsync, **expected)
    if before is None:
        return False
    record(read(token), Event.DISCONNECTED, actor=actor)
    if end_at_bipsync and before.refresh_token is not None and not _is_leased(before):
        transaction.on_commit(lambda: _spend(before), using=database())
    return True


def _is_leased(row: BipsyncToken) -> bool:
    # Annotated by _erase: only the database knows.
    return bool(getattr(row, "is_leased", False))


def _erase(identity: Identity, *, end_at_bipsync: bool, **expected: Any) -> BipsyncToken | None:
    """Erase the row's pair and return the row as it was, or ``None`` when there was nothing.

    ``expected`` are columns that the row has to have for that.
    """
    is_leased = ExpressionWrapper(
        Q(lease_until__isnull=False) & Q(lease_until__gt=DatabaseNow()),
        output_field=BooleanField(),
    )
    for _ in range(_TRIES):
        row = whole().annotate(is_leased=is_leased).filter(pk=identity.pk).first()
        if row is None:
            return None
        identity.require_account(row)
        if row.status == Status.DISCONNECTED:
            return None
        if any(getattr(row, name) != value for name, value in expected.items()):
            return None
        identity.require(row)
        is_nobodys = row.status == Status.UNCONFIRMED and row.user_id is None
        keeps = end_at_bipsync and _is_leased(row)
        # As it was read: who was about to send the refresh token must not be missed.
        as_read = identity.rows().filter(
            generation=row.generation, lease_id=row.lease_id, status=row.status
        )
        if as_read.update(
            access_token=None,
            # Its owner may send it, or be dead. spend_abandoned knows when the lease has run out.
            refresh_token=row.refresh_token if keeps else None,
            lease_until=row.lease_until if keeps else None,
            access_expires_at=None,
            next_refresh_at=None,
            next_attempt_at=None,
            in_doubt_at=None,
            last_error="",
            status=Status.DISCONNECTED,
            # Otherwise old sessions become valid again at the next sign-in. An account that was
            # never anybody's has none, and is not marked as one that was taken from its user.
            sessions_valid_after=row.sessions_valid_after if is_nobodys else timezone.now(),
            generation=F("generation") + 1,
            lease_id=None,
        ):
            return row
    raise RefreshUnavailable("busy", "The row changes all the time; try again.")


@without_traces
def spend_abandoned() -> None:
    """Spend the refresh tokens of rows that were disconnected during a lease that has run out.

    Their owner was killed, or never said what became of its call. Run it often, and outside of
    transactions: a token that waits is not used here, and works at Bipsync.
    """
    left = whole().filter(status=Status.DISCONNECTED, lease_until__lte=DatabaseNow())
    # Durable: a caller's transaction would hold the row while Bipsync is asked, and a rollback
    # would put the spent token back.
    with transaction.atomic(using=database(), durable=True):
        rows = list(left.filter(refresh_token__isnull=False))
    for row in rows:
        spend_kept(row)


@without_traces
def spend_kept(row: BipsyncToken) -> None:
    """Spend the refresh token that a disconnected ``row`` of ``whole`` keeps, after its lease.

    Under a lease of this caller's, and forgotten only when Bipsync has been asked: a process that
    is killed in between leaves it to the next, for which a spent token is good news.
    """
    now = DatabaseNow()
    if write(kept(row).filter(lease_until__lte=now), lease_until=now + LEASE):
        _spend(row)
        forget_kept(row)


def note_replaced(row: BipsyncToken) -> None:
    """Record that a sign-in replaces a refresh token that waits to be spent.

    To be called in the sign-in's transaction, on the row as it was locked.
    """
    if row.status == Status.DISCONNECTED and row.refresh_token is not None:
        record(row, Event.LEFT_VALID, "busy")


@without_traces
def _spend(erased: BipsyncToken) -> None:
    """Put the pair that the row had out of use at Bipsync."""
    try:
        tenant, refresh_token = _what_to_spend(erased)
        breaker.admit(erased.tenant)
        refresh_pair(tenant, refresh_token)
    except GrantDead:
        return
    except BipsyncError as error:
        reason = _reason(error)
        if isinstance(error, TokenEndpointError):
            # Of many that are given up in an outage, not each one waits for its own timeout.
            breaker.note_failure(erased.tenant, reason, is_first=True)
        # After the caller's transaction the row may be gone, or the connection in another schema.
        found = find(erased.pk)
        if found is not None and Identity.of(erased).is_account(found):
            record(erased, Event.LEFT_VALID, reason, generation=erased.generation + 1)
        else:
            logger.error("The tokens of row %s stay valid at Bipsync (%s).", erased.pk, reason)
    else:
        breaker.note_success(erased.tenant)


def why_left_valid(row: BipsyncToken) -> str:
    """Return the code of what would keep the row's pair from being spent now, or an empty text.

    Bipsync is not asked: it may still refuse, or not answer.
    """
    try:
        _what_to_spend(row)
        breaker.raise_if_open(row.tenant)
    except BipsyncError as error:
        return _reason(error)
    return ""


@without_traces
def _what_to_spend(row: BipsyncToken) -> tuple[Tenant, str]:
    tenant = get_tenant(row.tenant)
    raise_if_foreign(row)
    refresh_token = row.unseal("refresh_token")
    if row.client_id != tenant.client_id or refresh_token is None:
        raise RefreshUnavailable("other_application", "Another application's token.")
    if not get_settings().refresh_enabled:
        raise RefreshUnavailable("disabled", "Refreshing is switched off (REFRESH_ENABLED).")
    return tenant, refresh_token


def _reason(error: BipsyncError) -> str:
    reason = "secret_unreadable" if isinstance(error, SecretUnreadable) else "configuration"
    return str(getattr(error, "code", reason))


@without_traces
def end_sessions(token: BipsyncToken, *, actor: AbstractBaseUser | None = None) -> None:
    """End the sessions that came from this grant; the grant itself stays.

    ``BipsyncSessionMiddleware`` sees to it, within ``SESSION_CHECK_INTERVAL``. ``actor`` is who
    asked for it.
    """
    row = find(token.pk)
    if row is None:
        return
    Identity.of(token).require(row)
    if Identity.of(row).rows().update(sessions_valid_after=timezone.now()):
        record(row, Event.SESSIONS_ENDED, actor=actor)


def _is_wider(row: BipsyncToken, tenant: Tenant, names: str) -> bool:
    """Whether the row's own pair works, as far as is known, and allows more than ``names``."""
    return (
        row.status == Status.ACTIVE
        and may_be_used(row)
        and row.client_id == tenant.client_id
        and row.refresh_token is not None
        and row.in_doubt_at is None
        and not is_quarantined(row)
        and row.scope_set > set(names.split())
    )


def _prove_wider(tenant: Tenant, subject: str, names: str) -> bool:
    """Refresh a wider grant, and return whether that has shown that it is alive.

    The person may have withdrawn it, and nothing else would tell; a dead one is marked as such on
    the way. A grant that cannot be refreshed now is not kept: the pair in hand is alive.
    """
    person = {"tenant": tenant.slug, "kind": BipsyncToken.Kind.PERSON, "subject": subject}
    row = tokens().select_related("user").filter(**person).first()
    # A collation that ignores case may have found another person's.
    if row is None or row.subject != subject or not _is_wider(row, tenant, names):
        return False
    try:
        after = obtain(row, row.generation, lambda row: True, wait=True, even_recent=True)
    except BipsyncError as error:
        logger.info(
            "A wider grant is not kept: it could not be refreshed (%s).", type(error).__name__
        )
        return False
    return after.generation > row.generation


def is_service(tenant: Tenant, subject: str) -> bool:
    """Return whether the Bipsync account is one that the site uses for itself, or may soon."""
    services = tokens().filter(tenant=tenant.slug, kind=Kind.SERVICE, subject=subject)
    found = services.exclude(status=Status.DISCONNECTED).values_list("subject", flat=True)
    return subject in set(found)


def lock(tenant: Tenant, subject: str, kind: BipsyncToken.Kind = Kind.PERSON) -> BipsyncToken:
    """Return the row of a Bipsync account, locked to the end of the transaction, new if need be.

    The unique index makes two first sign-ins wait for each other.
    """
    account = {"tenant": tenant.slug, "kind": kind, "subject": subject}
    if not tokens().filter(**account).update(attempt=F("attempt")):
        new = BipsyncToken(**account, client_id=tenant.client_id, status=Status.NEEDS_SIGN_IN)
        tokens().bulk_create([new], ignore_conflicts=True)
    row = _hold(**account)
    if row.subject != subject:
        # A collation that ignores case or accents must not make two people one.
        raise SignInRefused("not_allowed", "Another subject of this tenant differs only in case.")
    return row


def _hold(**which: Any) -> BipsyncToken:
    """Return a row as it is now, locked to the end of the transaction.

    A write comes first, even if it changes nothing: SQLite gives out no lock for
    ``select_for_update``.
    """
    tokens().filter(**which).update(attempt=F("attempt"))
    # PostgreSQL locks no row that an outer join may lack.
    of = ("self",) if connections[database()].features.has_select_for_update_of else ()
    return tokens().select_for_update(of=of).select_related("user").get(**which)
