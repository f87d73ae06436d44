"""Who may come in, and how claims become a user."""

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser
from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.db import DataError, IntegrityError, models, router, transaction

from .conf import ClaimSource, Tenant, get_settings
from .exceptions import SignInRefused
from .oauth.claims import Claims

__all__ = ["DEFAULT_CLAIMS", "UserPolicy", "claim_value"]

logger = logging.getLogger(__name__)


def claim_value(claims: Mapping[str, Any], source: ClaimSource) -> object:
    """Return what ``source`` finds in ``claims``, or ``None``.

    ``source`` is a dotted path into nested claims (a claim whose own name holds dots comes first),
    or a callable that is given all claims. A callable that fails counts as finding nothing, and
    is logged.
    """
    if callable(source):
        try:
            return source(claims)
        except Exception:
            logger.exception("A callable in BIPSYNC['CLAIMS'] failed; its field is left alone.")
            return None
    if source in claims:
        return claims[source]
    value: object = claims
    for name in source.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value


def _first_name(claims: Mapping[str, Any]) -> object:
    return claims.get("given_name") or _split_name(claims)[0]


def _last_name(claims: Mapping[str, Any]) -> object:
    return claims.get("family_name") or _split_name(claims)[1]


def _split_name(claims: Mapping[str, Any]) -> tuple[str | None, str | None]:
    name = claims.get("name")
    if not isinstance(name, str) or not name.strip():
        return None, None
    first, _, last = name.strip().partition(" ")
    return first, last.strip() or None


DEFAULT_CLAIMS: Mapping[str, ClaimSource] = {
    "first_name": _first_name,
    "last_name": _last_name,
    "name": "name",
    "email": "email",
}
"""User field to claim. Fields that the site's user model does not have are passed over."""


class UserPolicy:
    """The decisions of a sign-in. Override its methods in a subclass of ``BipsyncBackend``.

    A person is recognised by tenant and subject alone, by the token row that belongs to both;
    e-mail addresses and names change hands. Every method may raise ``SignInRefused``.
    """

    def is_allowed(self, tenant: Tenant, claims: Claims, user: AbstractBaseUser | None) -> bool:
        """Return whether this person may come in. ``user`` is ``None`` at a first sign-in."""
        return True

    def find_user(self, tenant: Tenant, claims: Claims) -> AbstractBaseUser | None:
        """Return the existing user that a first sign-in belongs to; by default there is none.

        Whoever is returned is signed in and linked for good, so match only on what Bipsync
        vouches for.
        """
        return None

    def create_user(self, tenant: Tenant, claims: Claims) -> AbstractBaseUser:
        """Create the user of a first sign-in, without a usable password and without rights."""
        values = self.field_values(tenant, claims)
        model = get_user_model()
        for username in self._usernames(tenant, claims, values):
            user = model(**{**values, model.USERNAME_FIELD: username})
            user.set_unusable_password()
            try:
                with transaction.atomic(using=router.db_for_write(model)):
                    user.save(force_insert=True)
            except IntegrityError:
                continue
            except DataError as error:
                raise SignInRefused(
                    "no_account", "The claims do not fit the user model."
                ) from error
            return user
        raise SignInRefused(
            "account_exists",
            "No user could be created for this subject: another user has the same unique value, "
            "or the user model has required fields that CLAIMS does not fill.",
        )

    def update_user(self, user: AbstractBaseUser, tenant: Tenant, claims: Claims) -> None:
        """Bring a returning person's fields up to date. Absent claims leave their field alone."""
        before = {}
        for name, value in self.field_values(tenant, claims).items():
            if name == get_user_model().USERNAME_FIELD or getattr(user, name) == value:
                continue
            if not self._is_taken(user, name, value):
                before[name] = getattr(user, name)
                setattr(user, name, value)
        if not before:
            return
        try:
            with transaction.atomic(using=router.db_for_write(type(user), instance=user)):
                user.save(update_fields=list(before))
        except (IntegrityError, DataError) as error:
            # Nobody is locked out over a constraint that their new claims do not meet.
            logger.warning("User %s is left as before (%s).", user.pk, type(error).__name__)
            for name, value in before.items():
                setattr(user, name, value)

    def field_values(self, tenant: Tenant, claims: Claims) -> dict[str, Any]:
        """Return user field → value by ``CLAIMS``: only what is present and fits its field."""
        sources: dict[str, ClaimSource | None] = {**DEFAULT_CLAIMS, **tenant.claims}
        values = {}
        for name, source in sources.items():
            field = _field(name)
            if field is None or source is None:
                continue
            value = _fitting(field, claim_value(claims.claims, source))
            if value is not None:
                values[field.attname] = value
        return values

    def resolve(
        self, tenant: Tenant, claims: Claims, known: AbstractBaseUser | None
    ) -> AbstractBaseUser:
        """Return the user who signs in, created or brought up to date. Raises ``SignInRefused``.

        ``known`` is the user that this subject belongs to already.
        """
        if not self.is_allowed(tenant, claims, known):
            raise SignInRefused("not_allowed", "is_allowed() said no.")
        user = known or self.find_user(tenant, claims)
        if user is None:
            if not get_settings().create_users:
                raise SignInRefused("no_account", "CREATE_USERS is off.")
            return self.create_user(tenant, claims)
        if not user.is_active:
            raise SignInRefused("inactive", f"The user with primary key {user.pk} is inactive.")
        self.update_user(user, tenant, claims)
        return user

    def _is_taken(self, user: AbstractBaseUser, name: str, value: object) -> bool:
        model = type(user)
        if not getattr(model._meta.get_field(name), "unique", False):
            return False
        taken = model._default_manager.filter(**{name: value}).exclude(pk=user.pk).exists()
        if taken:
            logger.warning("The %s of user %s is left alone: another user has it.", name, user.pk)
        return taken

    def _usernames(self, tenant: Tenant, claims: Claims, values: dict[str, Any]) -> Iterator[Any]:
        """Yield usernames to try. An existing user's name is never taken, nor one like it."""
        model = get_user_model()
        name = model.USERNAME_FIELD
        email_field = getattr(model, "EMAIL_FIELD", "email")
        field = _field(name)
        if name in values:
            candidates = [values[name]]
        elif name == email_field:
            raise SignInRefused("no_email", "Users are known by e-mail here; the claim is absent.")
        elif isinstance(field, models.CharField):
            candidates = _invented_usernames(tenant, claims, values.get(email_field))
        else:
            candidates = [field.get_default()] if field is not None and field.has_default() else []
        lookup = f"{name}__iexact" if isinstance(field, models.CharField) else name
        users = model._default_manager
        for candidate in candidates:
            if not users.filter(**{lookup: candidate}).exists():
                yield candidate


def _field(name: str) -> "models.Field[Any, Any] | None":
    try:
        field = get_user_model()._meta.get_field(name)
    except FieldDoesNotExist:
        return None
    return field if isinstance(field, models.Field) and not field.many_to_many else None


def _fitting(field: "models.Field[Any, Any]", value: object) -> object:
    """Return ``value`` as ``field`` stores it: text cut to length, nonsense as ``None``."""
    if value is None or isinstance(value, Mapping | list):
        return None
    if isinstance(field, models.CharField | models.TextField):
        text = "".join(c for c in str(value) if c.isprintable()).strip()
        is_email = isinstance(field, models.EmailField)
        if not text or (is_email and field.max_length and len(text) > field.max_length):
            return None
        value = text[: field.max_length].strip()
    try:
        return field.clean(value, None)
    except (ValidationError, ValueError, TypeError, OverflowError):
        # Beyond ValidationError: what to_python() of Django's fields does to a wrong type.
        logger.info("A claim does not fit the user field %s; the field is left alone.", field.name)
        return None


def _invented_usernames(tenant: Tenant, claims: Claims, email: object) -> list[str]:
    model = get_user_model()
    field = model._meta.get_field(model.USERNAME_FIELD)
    longest = getattr(field, "max_length", None) or 150
    name = claims.claims.get("name")
    source = str(email).partition("@")[0] if email else name if isinstance(name, str) else ""
    base = re.sub(r"[^\w.+-]+", ".", model.normalize_username(source).lower()).strip(".")
    base = base or "bipsync"
    digest = hashlib.sha256(f"{tenant.slug}/{claims.subject}".encode()).hexdigest()[:8]
    return [base[:longest], f"{base[: longest - 9]}-{digest}"]
