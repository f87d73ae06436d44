"""Who may come in, and how claims become a user."""

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser
from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.core.validators import validate_email
from django.db import DataError, IntegrityError, models, router, transaction
from django.http import HttpRequest
from django.utils.module_loading import import_string

from . import claim_paths, rights
from .conf import ClaimSource, Tenant, break_glass_users, get_settings
from .durable import database
from .exceptions import SignInRefused
from .models import BipsyncToken, BipsyncTokenQuerySet
from .oauth.claims import Claims

__all__ = ["DEFAULT_CLAIMS", "SignIn", "UserPolicy", "account_name", "claim_value"]

logger = logging.getLogger(__name__)

_LONGEST_ACCOUNT_NAME = 120


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
    value = claim_paths.find(claims, source)
    return None if value is claim_paths.ABSENT else value


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


@dataclass(frozen=True)
class SignIn:
    """Somebody whom Bipsync vouches for: what ``BipsyncBackend`` takes for credentials.

    ``token`` is the row of tenant and subject, locked. ``person`` is who is signed in here and
    connects this Bipsync account to their user, or ``None`` at an ordinary sign-in.
    """

    tenant: Tenant
    claims: Claims
    token: BipsyncToken
    person: AbstractBaseUser | None = None

    @property
    def known(self) -> AbstractBaseUser | None:
        """The user that the Bipsync account belongs to already."""
        return self.token.user


class UserPolicy:
    """The decisions of a sign-in. Override its methods in a subclass of ``BipsyncBackend``.

    A person is recognised by tenant and subject alone, by the token row that belongs to both;
    e-mail addresses and names change hands. Every method may raise ``SignInRefused``.
    """

    def is_allowed(self, tenant: Tenant, claims: Claims, user: AbstractBaseUser | None) -> bool:
        """Return whether this person may come in. ``user`` is ``None`` at a first sign-in."""
        return True

    def find_user(self, tenant: Tenant, claims: Claims) -> AbstractBaseUser | None:
        """Return the existing user that a first sign-in belongs to, or ``None``.

        By default ``USER_RESOLVER`` is asked, then ``MATCH_USERS_BY``; both are off unless set.
        Whoever is returned is signed in and linked for good, so match only on what Bipsync
        vouches for.
        """
        return _resolved_user(tenant, claims) or _matched_user(tenant, claims)

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
            if value is not None and not _may_keep_somebody_out(name, tenant, claims):
                values[field.attname] = value
        return values

    def resolve(self, sign_in: SignIn) -> AbstractBaseUser:
        """Return the user who signs in, created or brought up to date. Raises ``SignInRefused``."""
        tenant, claims = sign_in.tenant, sign_in.claims
        _expect_allowed_domain(tenant, claims)
        if not self.is_allowed(tenant, claims, sign_in.known):
            raise SignInRefused("not_allowed", "is_allowed() said no.")
        user = self._existing_user(sign_in)
        if user is None:
            if not tenant.create_users:
                raise SignInRefused("no_account", "CREATE_USERS is off.")
            user = self.create_user(tenant, claims)
            rights.apply(sign_in.token, user, tenant, claims)
            return user
        if not user.is_active:
            raise SignInRefused("inactive", f"The user with primary key {user.pk} is inactive.")
        self.apply_claims(sign_in.token, user, tenant, claims)
        return user

    def apply_claims(
        self, token: BipsyncToken, user: AbstractBaseUser, tenant: Tenant, claims: Claims
    ) -> None:
        """Bring fields, groups and flags up to date: at each sign-in, and after each refresh.

        ``BREAK_GLASS_USERS`` stay as they are.
        """
        if user.get_username() in break_glass_users():
            return
        self.update_user(user, tenant, claims)
        rights.apply(token, user, tenant, claims)

    def impersonator(self, request: HttpRequest) -> str | None:
        """Return the primary key, as text, of the person who acts as the user of this session.

        ``None`` when nobody does. Such a session ends with the grant of the person who acts, and
        connects no account. The sessions of django-hijack, django-su and django-loginas are
        known; override this for another package that signs the other user in. A package that
        keeps the session and replaces ``request.user`` needs nothing.
        """
        session = request.session
        if history := session.get("hijack_history"):
            return str(history[0])
        if users := session.get("exit_users_pk"):
            return str(users[0][0])
        if signed := session.get("loginas_from_user"):
            return str(signed).partition(":")[0]
        return None

    def _existing_user(self, sign_in: SignIn) -> AbstractBaseUser | None:
        """Return the user that the account belongs to, or may belong to from now on."""
        known, person = sign_in.known, sign_in.person
        if person is None:
            # That a user has one account at each tenant is seen to where it is stored.
            return known or self.find_user(sign_in.tenant, sign_in.claims)
        if known is not None and known.pk != person.pk:
            raise SignInRefused(
                "other_account", f"It belongs to the user with primary key {known.pk}."
            )
        if _has_other_account(person, sign_in):
            raise SignInRefused(
                "other_account",
                f"The user with primary key {person.pk} has another Bipsync account already.",
            )
        return person

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
        reserved = {name.casefold() for name in break_glass_users()}
        for candidate in candidates:
            if str(candidate).casefold() in reserved:
                continue
            if not users.filter(**{lookup: candidate}).exists():
                yield candidate


def account_name(tenant: Tenant, claims: Claims) -> str:
    """Return what to call a Bipsync account in front of the person whose it is."""
    values = [
        claim_value(claims.claims, source)
        for source in ("name", _email_source(tenant))
        if source is not None
    ]
    texts = [text for value in values if isinstance(value, str) and (text := _printable(value))]
    return (" · ".join(dict.fromkeys(texts)) or claims.subject)[:_LONGEST_ACCOUNT_NAME]


# --- e-mail addresses


def _email_source(tenant: Tenant) -> ClaimSource | None:
    return tenant.claims.get(getattr(get_user_model(), "EMAIL_FIELD", "email"), "email")


def _expect_allowed_domain(tenant: Tenant, claims: Claims) -> None:
    if tenant.allowed_email_domains is None:
        return
    email = claim_value(claims.claims, _email_source(tenant) or "email")
    if not email:
        raise SignInRefused("no_email", "ALLOWED_EMAIL_DOMAINS is set, and no address is claimed.")
    if not _is_email(email) or _domain(str(email)) not in tenant.allowed_email_domains:
        raise SignInRefused("email_domain", "The address is in none of ALLOWED_EMAIL_DOMAINS.")


def _is_email(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        validate_email(value)
    except ValidationError:
        return False
    return True


def _domain(email: str) -> str:
    return email.rpartition("@")[2].lower()


# --- users who were there before


def _resolved_user(tenant: Tenant, claims: Claims) -> AbstractBaseUser | None:
    """Ask ``USER_RESOLVER``; a mistake of its own must not make a second account."""
    resolver = get_settings().user_resolver
    if resolver is None:
        return None
    try:
        user = (import_string(resolver) if isinstance(resolver, str) else resolver)(tenant, claims)
    except SignInRefused:
        raise
    except Exception as error:
        logger.exception("USER_RESOLVER failed.")
        raise SignInRefused(
            "misconfigured", f"USER_RESOLVER failed ({type(error).__name__})."
        ) from error
    if user is not None and not isinstance(user, get_user_model()):
        raise SignInRefused("misconfigured", "USER_RESOLVER returned something that is no user.")
    return user


def _may_keep_somebody_out(name: str, tenant: Tenant, claims: Claims) -> bool:
    """Whether the field is an address that others are found by, and that is not verified.

    Whoever could have somebody else's would be in the way when that person comes.
    """
    model = get_user_model()
    match = get_settings().match_users_by
    if match is None or match.tenant != tenant.slug or match.verified_claim is None:
        return False
    if name != getattr(model, "EMAIL_FIELD", "email") or name == model.USERNAME_FIELD:
        return False
    return claim_value(claims.claims, match.verified_claim) is not True


def _matched_user(tenant: Tenant, claims: Claims) -> AbstractBaseUser | None:
    """Return the one plain user with this address, by ``MATCH_USERS_BY``.

    Where somebody has the address and must not be taken over, nobody comes in: a second account
    beside the first would only hide the question.
    """
    match = get_settings().match_users_by
    if match is None or match.tenant != tenant.slug:
        return None
    email = claim_value(claims.claims, match.claim)
    # ASCII alone: databases and languages disagree over which other letters are the same.
    if not isinstance(email, str) or not email.isascii() or not _is_email(email):
        return None
    model = get_user_model()
    field = getattr(model, "EMAIL_FIELD", "email")
    users = model._default_manager.using(database())
    found = users.select_for_update().filter(**{f"{field}__iexact": email})
    same = [user for user in found if str(getattr(user, field)).lower() == email.lower()]
    if not same:
        return None
    if match.verified_claim is not None:
        verified = claim_value(claims.claims, match.verified_claim)
        if verified is not True:
            raise SignInRefused("account_exists", "The address is not verified.")
    if len(same) > 1:
        raise SignInRefused("account_exists", f"{len(same)} users have the address.")
    if not _may_be_matched(same[0]):
        raise SignInRefused(
            "account_exists",
            f"The user with primary key {same[0].pk} has rights or another connection: link the "
            "two by hand (manage.py bipsync_link).",
        )
    return same[0]


def _may_be_matched(user: Any) -> bool:
    """Whether nothing is lost if the address was somebody else's: no rights, no other account."""
    if getattr(user, "is_staff", False) or getattr(user, "is_superuser", False):
        return False
    if user.get_username() in break_glass_users():
        return False
    if any(
        rights.has_field(name) and getattr(user, name).exists()
        for name in ("groups", "user_permissions")
    ):
        return False
    return not _tokens().filter(user_id=user.pk).exists()


def _has_other_account(user: AbstractBaseUser, sign_in: SignIn) -> bool:
    others = _tokens().filter(tenant=sign_in.tenant.slug, user_id=user.pk)
    return others.exclude(pk=sign_in.token.pk).exists()


def _tokens() -> BipsyncTokenQuerySet:
    return BipsyncToken.objects.using(database())


# --- fields


def _field(name: str) -> "models.Field[Any, Any] | None":
    try:
        field = get_user_model()._meta.get_field(name)
    except FieldDoesNotExist:
        return None
    return field if isinstance(field, models.Field) and not field.many_to_many else None


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable()).strip()


def _fitting(field: "models.Field[Any, Any]", value: object) -> object:
    """Return ``value`` as ``field`` stores it: text cut to length, nonsense as ``None``."""
    if value is None or isinstance(value, Mapping | list):
        return None
    if isinstance(field, models.CharField | models.TextField):
        text = _printable(str(value))
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
