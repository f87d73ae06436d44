"""Encrypting what is stored with the newest key."""

from ..models import BipsyncToken
from .rows import tokens, write

__all__ = ["is_on_old_key", "reencrypt"]

_COLUMNS = ("access_token", "refresh_token")


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


def reencrypt(token: BipsyncToken) -> bool:
    """Encrypt the row's pair with the first of ``FIELD_ENCRYPTION_KEY``, as it is stored now.

    A refresh, sign-in or disconnect in between wins: the row is written only if its generation,
    which stays as it is, is still the one that was read. Returns whether anything was written.

    Raises ``SecretUnreadable`` as ``is_on_old_key`` does, and then changes nothing.
    """
    row = tokens().filter(pk=token.pk).first()
    if row is None or not is_on_old_key(row):
        return False
    sealed = {column: getattr(row, column) for column in _COLUMNS}
    renewed = {column: value.renewed() for column, value in sealed.items() if value is not None}
    return bool(write(tokens().filter(pk=row.pk, generation=row.generation), **renewed))
