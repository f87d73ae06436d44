"""The strict encrypted field: what it holds is opaque until it is opened as what it is.

It stands on django-encrypted-model-fields for keys and encryption, and replaces what that
package does too kindly: a value that cannot be decrypted comes back from it as if it were the
plaintext and is encrypted again on the next save, expressions in ``update()`` are written as
they are, and nothing ties a ciphertext to its row.
"""

import functools
import json
import re
from typing import TYPE_CHECKING, Any

from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.dispatch import receiver

from .exceptions import ConfigurationError, SecretUnreadable
from .redaction import without_traces

try:
    from encrypted_model_fields import fields as encrypted_fields
except ImproperlyConfigured as error:
    raise ConfigurationError(
        "Set FIELD_ENCRYPTION_KEY to a Fernet key (or a list of them, the first one encrypts). "
        'Make one with: python -c "from cryptography.fernet import Fernet; '
        'print(Fernet.generate_key().decode())"'
    ) from error

__all__ = ["Sealed", "SealedField", "seal"]


class Sealed:
    """A secret as it is stored. It shows nothing; ``unseal`` opens it for its own place only."""

    __slots__ = ("ciphertext",)

    def __init__(self, ciphertext: str) -> None:
        self.ciphertext = ciphertext

    @without_traces
    def unseal(self, *place: str) -> str:
        """Return the secret that was sealed for exactly this ``place``.

        Raises ``SecretUnreadable`` for a wrong key, tampering, or a ciphertext from elsewhere,
        such as another encrypted field of the site.
        """
        try:
            *sealed_for, value = json.loads(encrypted_fields.decrypt_str(self.ciphertext))
        except (InvalidToken, ValueError, TypeError, RecursionError):
            raise SecretUnreadable(
                "A stored secret cannot be decrypted with the keys in FIELD_ENCRYPTION_KEY."
            ) from None
        if sealed_for != list(place) or not isinstance(value, str):
            raise SecretUnreadable("A stored secret was sealed for another row or column.")
        return value

    @without_traces
    def is_current(self) -> bool:
        """Return whether the first of ``FIELD_ENCRYPTION_KEY`` encrypted it, as it does now."""
        try:
            _first_key().decrypt(self.ciphertext)
        except InvalidToken:
            return False
        return True

    @without_traces
    def renewed(self) -> "Sealed":
        """Return the same secret, encrypted with the first key. Raises ``SecretUnreadable``."""
        try:
            ciphertext: bytes = encrypted_fields.CRYPTER.rotate(self.ciphertext)
        except InvalidToken:
            raise SecretUnreadable(
                "A stored secret cannot be decrypted with the keys in FIELD_ENCRYPTION_KEY."
            ) from None
        return Sealed(ciphertext.decode("ascii"))

    def __repr__(self) -> str:
        return "<sealed>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sealed) and self.ciphertext == other.ciphertext

    def __hash__(self) -> int:
        return hash(self.ciphertext)


@functools.cache
def _first_key() -> Fernet:
    keys: Any = settings.FIELD_ENCRYPTION_KEY
    return Fernet(keys[0] if isinstance(keys, list | tuple) else keys)


@without_traces
def seal(value: str, *place: str) -> Sealed:
    """Encrypt ``value`` together with the ``place`` that it is for (row identity and column)."""
    ciphertext: bytes = encrypted_fields.encrypt_str(json.dumps([*place, value]))
    return Sealed(ciphertext.decode("ascii"))


if TYPE_CHECKING:
    _EncryptedTextField = models.TextField[Sealed | None, Sealed | None]
else:
    _EncryptedTextField = encrypted_fields.EncryptedTextField


_FERNET = re.compile(r"gAAAAA[\w-]{80,}={0,2}", re.ASCII)


class SealedField(_EncryptedTextField):
    """A column of ``Sealed`` values or NULL; plaintext, expressions and lookups raise TypeError."""

    description = "A secret, encrypted for its row and column"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["editable"] = False
        super().__init__(*args, **kwargs)

    def deconstruct(self) -> Any:
        name, path, args, kwargs = super().deconstruct()
        del kwargs["editable"]
        return name, path, args, kwargs

    def from_db_value(self, value: str | None, *args: object) -> Sealed | None:
        return None if value is None else Sealed(value)

    def to_python(self, value: object) -> Sealed | None:
        # Serialised data holds the ciphertext.
        if value is None or isinstance(value, Sealed):
            return value
        if isinstance(value, str) and _FERNET.fullmatch(value):
            return Sealed(value)
        raise TypeError(f"{self.name} holds sealed values only; use lifecycle to store a secret.")

    def get_prep_value(self, value: object) -> str | None:
        if value is None:
            return None
        if isinstance(value, Sealed):
            return value.ciphertext
        raise TypeError(f"{self.name} holds sealed values only; use lifecycle to store a secret.")

    def get_db_prep_save(self, value: object, connection: BaseDatabaseWrapper) -> str | None:
        return self.get_prep_value(value)

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        self._refuse_expression(value := super().pre_save(model_instance, add))
        return value

    def _refuse_expression(self, value: object) -> None:
        if hasattr(value, "as_sql") or hasattr(value, "resolve_expression"):
            raise TypeError(f"{self.name} is encrypted and cannot be set by an expression.")

    def get_lookup(self, lookup_name: str) -> "type[models.Lookup[Any]] | None":
        if lookup_name == "isnull":
            lookup: type[models.Lookup[Any]] | None = super().get_lookup(lookup_name)
            return lookup
        raise TypeError(f"{self.name} is encrypted and cannot be searched.")

    def value_to_string(self, obj: models.Model) -> Any:
        """Return the ciphertext: what ``dumpdata`` writes is as safe as the database."""
        return self.get_prep_value(self.value_from_object(obj))


@receiver(setting_changed)
def _reload_keys(*, setting: str, **kwargs: object) -> None:
    # The library reads the keys once, at import.
    if setting == "FIELD_ENCRYPTION_KEY":
        encrypted_fields.CRYPTER = encrypted_fields.get_crypter()
        _first_key.cache_clear()
