"""The account that the site itself uses: authorised by somebody, used once it is confirmed.

The person who is sent to Bipsync may be signed in there as themselves. So the pair that comes back
waits beside the one in use until a person has read whose account it is.
"""

from collections.abc import Iterable

from django.contrib.auth.models import AbstractBaseUser
from django.db import transaction
from django.utils import timezone

from .. import breaker
from ..conf import Tenant
from ..durable import database
from ..events import count, record
from ..exceptions import SignInRefused
from ..models import BipsyncToken, TokenEvent
from ..oauth.claims import Claims
from ..oauth.client import TokenPair
from ..redaction import without_traces
from .changes import disconnect, lock, note_replaced
from .rows import Identity, read, tokens
from .waiting import in_use, is_waiting, new_grant, waiting

__all__ = ["authorise_service", "confirm_service"]

Status = BipsyncToken.Status
Kind = BipsyncToken.Kind
Event = TokenEvent.Name


@without_traces
def authorise_service(
    tenant: Tenant,
    claims: Claims,
    pair: TokenPair,
    *,
    scopes: Iterable[str],
    actor: AbstractBaseUser,
) -> BipsyncToken:
    """Store the pair of a service account; it waits for ``confirm_service``.

    The account that is in use already needs no second confirmation: its pair is renewed.
    ``claims`` are those of ``pair``'s validated access token, ``scopes`` what was asked for, and
    ``actor`` is who was sent to Bipsync.

    Raises ``SignInRefused`` when the account is that of a person here, whose row is left alone,
    and ``OtherDeployment`` when the rows are those of another deployment.
    """
    breaker.claim_deployment(tenant.slug)
    with transaction.atomic(using=database()):
        row = lock(tenant, claims.subject, Kind.SERVICE)
        _expect_nobody(row)
        note_replaced(row)
        is_confirmed = row.signed_in_at is not None and row.status != Status.DISCONNECTED
        values = new_grant(row, tenant, claims, pair, scopes)
        if is_confirmed:
            values["signed_in_at"] = timezone.now()
        else:
            values |= {**waiting(), "signed_in_at": None}
        Identity.of(row).rows().update(**values)
        row = read(row)
        record(row, Event.AUTHORISED, actor=actor)
    breaker.note_sign_in(tenant.slug)
    count(tenant.slug, Event.AUTHORISED.value)
    return row


@without_traces
def confirm_service(token: BipsyncToken, *, actor: AbstractBaseUser) -> bool:
    """Take the account into use that ``actor`` has seen. The tenant's other ones are given up.

    Returns whether ``token`` was still as it was seen; otherwise nothing is done. Raises
    ``SignInRefused`` when the account is a person's by now.
    """
    with transaction.atomic(using=database()):
        row = read(token)
        _expect_nobody(row)
        seen = (
            Identity.of(token)
            .rows()
            .filter(kind=Kind.SERVICE, status=Status.UNCONFIRMED, generation=token.generation)
        )
        if not is_waiting(row) or not seen.update(**in_use(row)):
            return False
        record(row, Event.CONFIRMED, actor=actor)
    others = tokens().filter(tenant=row.tenant, kind=Kind.SERVICE).exclude(pk=row.pk)
    for other in others.exclude(status__in=[Status.DISCONNECTED, Status.UNCONFIRMED]):
        disconnect(other, actor=actor)
    return True


def _expect_nobody(row: BipsyncToken) -> None:
    """A person's account must not become the site's: they could not sign in any more."""
    people = tokens().filter(tenant=row.tenant, kind=Kind.PERSON, subject=row.subject)
    if people.exclude(user=None).exists():
        raise SignInRefused("person_account", "The Bipsync account is that of a person here.")
