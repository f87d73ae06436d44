"""A Bipsync account joins a user who is signed in here already, once that person has read whose.

Until then the row belongs to nobody.
"""

from collections.abc import Callable, Iterable

from django.contrib.auth.models import AbstractBaseUser
from django.db import IntegrityError, transaction
from django.utils import timezone

from .. import breaker, signals
from ..conf import Tenant, get_tenant
from ..durable import database
from ..events import count, record
from ..exceptions import SignInRefused, TokenRefused
from ..models import BipsyncToken, TokenEvent
from ..oauth.claims import Claims, validate_access_token
from ..oauth.client import TokenPair
from ..redaction import without_traces
from .changes import is_service, lock, note_replaced
from .rows import Identity, read, send, tokens
from .waiting import in_use, is_waiting, new_grant, waiting

__all__ = [
    "claims_of",
    "confirm_connection",
    "connection_at",
    "hold_connection",
    "may_be_confirmed",
]

Kind = BipsyncToken.Kind
Event = TokenEvent.Name


@without_traces
def hold_connection(
    tenant: Tenant,
    claims: Claims,
    pair: TokenPair,
    *,
    scopes: Iterable[str],
    person: AbstractBaseUser,
) -> BipsyncToken | None:
    """Store the pair of an account that ``person`` may join; it waits for ``confirm_connection``.

    ``claims`` are those of ``pair``'s validated access token, and ``scopes`` what was asked for.
    Returns ``None``, and stores nothing, when the account is the person's already. A pair of this
    account that waits for somebody is replaced, and can no longer be confirmed.

    Raises ``SignInRefused``, with nothing stored, when the account belongs to somebody else or is
    a service account here, or the person has another one at this tenant; and ``OtherDeployment``
    when the rows are those of another deployment.
    """
    breaker.claim_deployment(tenant.slug)
    with transaction.atomic(using=database()):
        row = lock(tenant, claims.subject)
        _expect_no_service(row, tenant)
        if row.user_id == person.pk:
            return None
        if row.user_id is not None:
            raise SignInRefused(
                "other_account", f"It belongs to the user with primary key {row.user_id}."
            )
        if tokens().filter(tenant=tenant.slug, user_id=person.pk).exists():
            raise SignInRefused(
                "other_account",
                f"The user with primary key {person.pk} has another Bipsync account already.",
            )
        values = {**new_grant(row, tenant, claims, pair, scopes), **waiting()}
        note_replaced(row)
        Identity.of(row).rows().update(**values)
        row = read(row)
    breaker.note_sign_in(tenant.slug)
    return row


def connection_at(pk: int, generation: int) -> BipsyncToken | None:
    """Return a person's row with the pair that it got as ``generation``; ``None`` when it is gone.

    The pair may have been confirmed since.
    """
    rows = tokens().select_related("user")
    return rows.filter(pk=pk, kind=Kind.PERSON, generation=generation).first()


def may_be_confirmed(row: BipsyncToken) -> bool:
    """Return whether the pair of ``row`` waits for a person.

    It does so for no longer than its access token lives, which says whose account it is.
    """
    expires_at = row.access_expires_at
    return is_waiting(row) and expires_at is not None and timezone.now() < expires_at


@without_traces
def claims_of(row: BipsyncToken) -> Claims:
    """Return the claims of the access token that ``row`` holds, validated anew.

    Raises ``TokenRefused``, ``KeysUnavailable``, ``SecretUnreadable`` or ``ConfigurationError``.
    """
    raw = row.unseal("access_token")
    if raw is None:
        raise TokenRefused("No access token is stored.")
    claims = validate_access_token(raw, get_tenant(row.tenant), from_provider=True)
    if claims.subject != row.subject:
        raise TokenRefused("The stored access token is another account's.")
    return claims


@without_traces
def confirm_connection(
    token: BipsyncToken,
    claims: Claims,
    *,
    resolve_user: Callable[[BipsyncToken], AbstractBaseUser],
) -> BipsyncToken | None:
    """Take the pair into use that a person has read about in ``token``.

    ``claims`` are those of ``claims_of(token)``. ``resolve_user`` is given the row while it is
    locked, and returns the user whom it belongs to from now on. What it raises leaves the pair
    waiting. Returns the row, or ``None`` when the pair does not wait any more.

    Raises ``SignInRefused`` when the account is a service account by now, or the user has got
    another one meanwhile, and ``OtherDeployment`` as ``hold_connection`` does.
    """
    tenant = get_tenant(token.tenant)
    breaker.claim_deployment(tenant.slug)
    with transaction.atomic(using=database()):
        row = lock(tenant, token.subject)
        if row.pk != token.pk or row.generation != token.generation or not may_be_confirmed(row):
            return None
        _expect_no_service(row, tenant)
        user = resolve_user(row)
        values = {**in_use(row), "user": user}
        for name, value in values.items():
            setattr(row, name, value)
        try:
            row.save(using=database(), update_fields=values)
        except IntegrityError as error:
            raise SignInRefused("account_exists", "The user has another account.") from error
        record(row, Event.CONNECTED, actor=user)
    count(tenant.slug, Event.CONNECTED.value)
    send(signals.connected, row, claims=claims)
    return row


def _expect_no_service(row: BipsyncToken, tenant: Tenant) -> None:
    if is_service(tenant, row.subject):
        raise SignInRefused("service_account", "The account is a service account here.")
