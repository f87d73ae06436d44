"""What people do with a grant: sign in, give it up, end its sessions."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.db import IntegrityError, connections, transaction
from django.db.models import F
from django.utils import timezone

from .. import breaker, rights, signals
from ..conf import Tenant
from ..durable import database
from ..events import count, record
from ..exceptions import BipsyncError, LinkRefused, SecretUnreadable, SignInRefused
from ..models import BipsyncToken, TokenEvent
from ..oauth.claims import Claims
from ..oauth.client import TokenPair
from .protocol import obtain
from .rows import granted, is_quarantined, may_be_used, pair_values, read, send, tokens

__all__ = ["disconnect", "end_sessions", "link", "sign_in", "unlink"]

logger = logging.getLogger(__name__)

Status = BipsyncToken.Status
Event = TokenEvent.Name


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

    A working grant that allows more than the new pair is kept, after a refresh has shown that it
    works: a page that asked for more must not lose it to an ordinary sign-in.

    Raises ``OtherDeployment`` when the rows are those of another deployment, and
    ``SignInRefused`` when the user has another Bipsync account at this tenant.
    """
    breaker.claim_deployment(tenant.slug)
    names = granted(claims, scopes)
    works = _prove_wider(tenant, claims.subject, names)
    with transaction.atomic(using=database()):
        row = _lock(tenant, claims.subject)
        user = resolve_user(row)
        keeps = works and _is_wider(row, tenant, names)
        values: dict[str, Any] = {"user": user, "signed_in_at": timezone.now()}
        if not keeps:
            values |= {
                "refresh_token": None,
                **pair_values(row, pair),
                "client_id": tenant.client_id,
                "generation": row.generation + 1,
                "validated_generation": row.generation + 1,
                "scopes": names,
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
        row = _lock(tenant, subject)
        if row.user_id == user.pk:
            return False
        if row.user_id is not None:
            raise LinkRefused(f"The Bipsync account belongs to {row.user} already.")
        for other in tokens().filter(tenant=tenant.slug, user_id=user.pk):
            if not replace:
                raise LinkRefused(f"{user} has the Bipsync account {other.subject} already.")
            unlink(other, actor=actor)
        try:
            tokens().filter(pk=row.pk).update(user_id=user.pk)
        except IntegrityError as error:
            raise LinkRefused(f"{user} has got another Bipsync account meanwhile.") from error
        record(row, Event.LINKED, actor=actor)
        return True


def unlink(token: BipsyncToken, *, actor: AbstractBaseUser | None = None) -> None:
    """Give the grant up, and let the Bipsync account belong to nobody here.

    Its next sign-in is a first one, and flags that its claims gave are taken back. ``actor`` is
    who asked for it.
    """
    with transaction.atomic(using=database()):
        row = tokens().select_related("user").get(pk=token.pk)
        gave_up = _give_up(row, actor)
        if row.user is not None:
            rights.take_back(row, row.user)
            tokens().filter(pk=row.pk).update(user=None)
            record(row, Event.UNLINKED, actor=actor)
    if gave_up:
        # Whoever only tries, and undoes it, has nothing to tell.
        transaction.on_commit(lambda: send(signals.disconnected, read(row.pk)), using=database())


def disconnect(token: BipsyncToken, *, actor: AbstractBaseUser | None = None) -> None:
    """Give the grant up and erase its pair; a refresh under way loses.

    Bipsync has no revocation endpoint: its own list of connected applications keeps the entry.
    ``actor`` is who asked for it.
    """
    if _give_up(token, actor):
        row = read(token.pk)
        send(signals.disconnected, row)


def _give_up(token: BipsyncToken, actor: AbstractBaseUser | None) -> bool:
    changed = (
        tokens()
        .filter(pk=token.pk)
        .exclude(status=Status.DISCONNECTED)
        .update(
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
    )
    if changed:
        record(read(token.pk), Event.DISCONNECTED, actor=actor)
    return bool(changed)


def end_sessions(token: BipsyncToken, *, actor: AbstractBaseUser | None = None) -> None:
    """End the sessions that came from this grant; the grant itself stays.

    ``BipsyncSessionMiddleware`` sees to it, within ``SESSION_CHECK_INTERVAL``. ``actor`` is who
    asked for it.
    """
    if tokens().filter(pk=token.pk).update(sessions_valid_after=timezone.now()):
        record(read(token.pk), Event.SESSIONS_ENDED, actor=actor)


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
    """Refresh a wider grant, and return whether there is one that is worth keeping.

    The person may have withdrawn it, and nothing else would tell; a dead one is marked as such on
    the way. One that cannot be asked about now is given the benefit of the doubt.
    """
    person = {"tenant": tenant.slug, "kind": BipsyncToken.Kind.PERSON, "subject": subject}
    row = tokens().select_related("user").filter(**person).first()
    if row is None or not _is_wider(row, tenant, names):
        return False
    try:
        obtain(row, row.generation, lambda row: True, wait=True)
    except SecretUnreadable:
        return False
    except BipsyncError as error:
        logger.info("A wider grant could not be tried (%s).", type(error).__name__)
    return True


def _lock(tenant: Tenant, subject: str) -> BipsyncToken:
    """Return the person's row, locked to the end of the transaction, new if need be.

    A write comes first, even if it changes nothing: the unique index makes two first sign-ins
    wait for each other, and SQLite gives out no lock for ``select_for_update``.
    """
    person = {"tenant": tenant.slug, "kind": BipsyncToken.Kind.PERSON, "subject": subject}
    if not tokens().filter(**person).update(attempt=F("attempt")):
        new = BipsyncToken(**person, client_id=tenant.client_id, status=Status.NEEDS_SIGN_IN)
        tokens().bulk_create([new], ignore_conflicts=True)
    # PostgreSQL locks no row that an outer join may lack.
    of = ("self",) if connections[database()].features.has_select_for_update_of else ()
    row = tokens().select_for_update(of=of).select_related("user").get(**person)
    if row.subject != subject:
        # A collation that ignores case or accents must not make two people one.
        raise SignInRefused("not_allowed", "Another subject of this tenant differs only in case.")
    return row
