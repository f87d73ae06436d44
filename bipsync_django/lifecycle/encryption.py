"""Encrypting what is stored with the newest key."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..exceptions import SecretUnreadable
from ..models import BipsyncToken
from ..redaction import without_traces
from .rows import Identity, find, tokens, write

__all__ = ["KeySurvey", "is_on_old_key", "reencrypt", "survey_keys"]

_COLUMNS = ("access_token", "refresh_token")
_BATCH = 500


@dataclass
class KeySurvey:
    """How many rows hold secrets, which of them are on an older key, and which no key opens."""

    total: int = 0
    old: list[Identity] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


@without_traces
def survey_keys() -> KeySurvey:
    """Look at every row that holds a secret."""
    survey = KeySurvey()
    for token in _rows_with_secrets():
        survey.total += 1
        try:
            if is_on_old_key(token):
                survey.old.append(Identity.of(token))
        except SecretUnreadable:
            survey.unreadable.append(f"{token.pk} ({token})")
    return survey


def _rows_with_secrets() -> Iterator[BipsyncToken]:
    """A batch at a time: no cursor stays open beside the writes."""
    last = 0
    while batch := list(tokens().filter(pk__gt=last).order_by("pk")[:_BATCH]):
        last = batch[-1].pk
        yield from (row for row in batch if row.access_token or row.refresh_token)


@without_traces
def is_on_old_key(token: BipsyncToken) -> bool:
    """Return whether a secret of the row is encrypted with another key than the first.

    Raises ``SecretUnreadable`` for a secret that none of ``FIELD_ENCRYPTION_KEY`` opens, or that
    was moved there from another row or column.
    """
    old = False
    for column in _COLUMNS:
        if token.unseal(column) is not None:
            old = not getattr(token, column).is_current() or old
    return old


@without_traces
def reencrypt(token: BipsyncToken | Identity) -> bool:
    """Encrypt the row's pair with the first of ``FIELD_ENCRYPTION_KEY``, as it is stored now.

    A refresh, sign-in or disconnect in between wins: the row is written only if its generation,
    which stays as it is, is still the one that was read. Returns whether anything was written.

    Raises ``SecretUnreadable`` as ``is_on_old_key`` does, and ``RowMismatch`` where another
    account's row is found in its place; either way nothing is changed.
    """
    row = find(token.pk)
    if row is None:
        return False
    Identity.of(token).require_account(row)
    if not is_on_old_key(row):
        return False
    sealed = {column: getattr(row, column) for column in _COLUMNS}
    renewed = {column: value.renewed() for column, value in sealed.items() if value is not None}
    as_read = Identity.of(row).rows().filter(generation=row.generation)
    return bool(write(as_read, **renewed))
