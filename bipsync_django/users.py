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
from .conf import ClaimSource, MatchUsersBy, Tenant, break_glass_users, get_settings
from .durable import database
from .events import record
from .exceptions import SignInRefused
from .models import BipsyncToken, BipsyncTokenQuerySet, TokenEvent
from .oauth.claims import Claims

__all__ = ["DEFAULT_CLAIMS", "SignIn", "UserPolicy", "Vouched", "account_name", "claim_value"]

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


@dataclass(frozen=True)
class Vouched:
    """An existing user, with the site's word that the person at Bipsync is this user.

    ``find_user`` and ``USER_RESOLVER`` return it in place of the bare ``user``. Only so is a user
    joined who has rights or an account at another tenant, and only so does the user keep their
    password and sessions. Vouch only for a rule that nobody but the site's administrators can
    influence, at Bipsync and here.
    """

    user: AbstractBaseUser


class _ReservedName(Exception):
    """The database takes the new username for that of a break-glass user."""


class UserPolicy:
    """The decisions of a sign-in. Override its methods in a subclass of ``BipsyncBackend``.

    A person is recognised by tenant and subject alone, by the token row that belongs to both;
    e-mail addresses and names change hands. Every method may raise ``SignInRefused``.
    """

    def is_allowed(self, tenant: Tenant, claims: Claims, user: AbstractBaseUser | None) -> bool:
        """Return whether this person may come in. ``user`` is ``None`` at a first sign-in."""
        return True

    def find_user(self, tenant: Tenant, claims: Claims) -> AbstractBaseUser | Vouched | None:
        """Return the existing user that a first sign-in belongs to, or ``None``.

        By default ``USER_RESOLVER`` is asked, then ``MATCH_USERS_BY``; both are off unless set.

        The user that is returned is signed in and linked for good, so match only on what Bipsync
        vouches for. A bare user is refused if they have rights or another Bipsync account, or if
        an administrator has unlinked this account; otherwise ``reset_access`` ends their password
        and sessions. A user in ``Vouched`` is joined as they are.
        """
        return _resolved_user(tenant, claims) or _matched_user(tenant, claims)

    def reset_access(self, user: AbstractBaseUser) -> None:
        """Close every earlier way into ``user``, whom a rule joins to a person at Bipsync.

        Anybody may have made the user, with the address or the name of somebody else. The password
        becomes unusable. With it end all sessions of the user and all links to reset the
        password, since Django derives both from the password's hash. Override it, and call
        ``super()``, to revoke what else leads in, such as API tokens.

        Raises ``SignInRefused`` where sessions would go on, because the user model has no password
        or its ``get_session_auth_hash()`` does not depend on it.
        """
        before = _session_hash(user)
        user.set_unusable_password()
        if not rights.has_field("password") or _session_hash(user) == before:
            raise SignInRefused(
                "account_exists",
                f"The sessions of the user with primary key {user.pk} cannot be ended: "
                "get_session_auth_hash() of the user model does not depend on the password. End "
                "them in reset_access(), or link the two by hand (manage.py bipsync_link).",
            )
        user.save(update_fields=["password"])

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
                    _expect_no_break_glass_name(user)
            except (IntegrityError, _ReservedName):
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
        if _email_field() in sources:
            sources[_email_field()] = _email_source(tenant)
        values = {}
        for name, source in sources.items():
            field = _field(name)
            if field is None or source is None:
                continue
            value = _fitting(field, claim_value(claims.claims, source))
            if value is None or _may_keep_somebody_out(field, value, source, tenant, claims):
                continue
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
            return known or self._join_user(sign_in)
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

    def _join_user(self, sign_in: SignIn) -> AbstractBaseUser | None:
        """Return the user whom a rule joins to the account from now on, if it finds one.

        That a user has one account at each tenant is ensured where the account is stored.
        """
        found = self.find_user(sign_in.tenant, sign_in.claims)
        if found is None:
            return None
        is_vouched = isinstance(found, Vouched)
        user = _locked_user(found.user if isinstance(found, Vouched) else found)
        if not is_vouched:
            _expect_never_unlinked(sign_in.token)
            _expect_nothing_to_lose(user)
            self.reset_access(user)
        reason = "vouched" if is_vouched else "access_reset"
        record(sign_in.token, TokenEvent.Name.MATCHED, reason, actor=user)
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
            raise SignInRefused(
                "no_email",
                "Users are known by e-mail here, and no claim says an address that may be used: it "
                "is absent, or MATCH_USERS_BY does not trust it.",
            )
        elif isinstance(field, models.CharField):
            candidates = _invented_usernames(tenant, claims, values.get(email_field))
        else:
            candidates = [field.get_default()] if field is not None and field.has_default() else []
        lookup = f"{name}__iexact" if isinstance(field, models.CharField) else name
        users = model._default_manager
        for candidate in candidates:
            if _is_like_break_glass(candidate):
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


def _email_field() -> str:
    return getattr(get_user_model(), "EMAIL_FIELD", "email")


def _email_source(tenant: Tenant) -> ClaimSource | None:
    """Return the claim of the e-mail field: by default the one that people are matched by."""
    match = get_settings().match_users_by
    usual = match.claim if match is not None and match.tenant == tenant.slug else "email"
    return tenant.claims.get(_email_field(), usual)


def _expect_allowed_domain(tenant: Tenant, claims: Claims) -> None:
    if tenant.allowed_email_domains is None:
        return
    email = claim_value(claims.claims, _email_source(tenant) or "email")
    if not email:
        raise SignInRefused("no_email", "ALLOWED_EMAIL_DOMAINS is set, and no address is claimed.")
    # ASCII alone: lower() makes a "k" of the sign for kelvin.
    is_usable = _is_email(email) and str(email).isascii()
    if not is_usable or _domain(str(email)) not in tenant.allowed_email_domains:
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


def _resolved_user(tenant: Tenant, claims: Claims) -> AbstractBaseUser | Vouched | None:
    """Ask ``USER_RESOLVER``; a mistake of its own must not make a second account."""
    resolver = get_settings().user_resolver
    if resolver is None:
        return None
    try:
        found = (import_string(resolver) if isinstance(resolver, str) else resolver)(tenant, claims)
    except SignInRefused:
        raise
    except Exception as error:
        logger.exception("USER_RESOLVER failed.")
        raise SignInRefused(
            "misconfigured", f"USER_RESOLVER failed ({type(error).__name__})."
        ) from error
    if found is None or isinstance(found, Vouched | get_user_model()):
        return found
    raise SignInRefused("misconfigured", "USER_RESOLVER returned something that is no user.")


def _matched_user(tenant: Tenant, claims: Claims) -> AbstractBaseUser | None:
    """Return the one user with this address, by ``MATCH_USERS_BY``.

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
    users = get_user_model()._default_manager.using(database())
    found = users.select_for_update().filter(**{f"{_email_field()}__iexact": email})
    same = [user for user in found if _is_address_of(user, email)]
    if not same:
        return None
    if not _is_trusted(match, claims):
        raise SignInRefused("account_exists", "The address is not verified.")
    if len(same) > 1:
        raise SignInRefused("account_exists", f"{len(same)} users have the address.")
    return same[0]


def _is_address_of(user: AbstractBaseUser, email: str) -> bool:
    has = str(getattr(user, _email_field()))
    return has.isascii() and has.lower() == email.lower()


def _is_trusted(match: MatchUsersBy, claims: Claims) -> bool:
    """Whether the matched claim holds an address of this person's, as far as Bipsync says."""
    verified = match.verified_claim
    return verified is None or claim_value(claims.claims, verified) is True


def _may_keep_somebody_out(
    field: "models.Field[Any, Any]",
    value: object,
    source: ClaimSource,
    tenant: Tenant,
    claims: Claims,
) -> bool:
    """Whether storing this address might block the first sign-in of its real owner.

    With ``MATCH_USERS_BY`` people are found by the address field, and a unique field holds an
    address once. Both take addresses only from the claim that matching goes by.
    """
    match = get_settings().match_users_by
    if match is None:
        return False
    is_unique_address = field.unique and _is_email(value)
    if field.name != _email_field() and not is_unique_address:
        return False
    is_matched_claim = tenant.slug == match.tenant and source == match.claim
    return not is_matched_claim or not _is_trusted(match, claims)


def _locked_user(found: object) -> AbstractBaseUser:
    """Return the user that a rule has found as they are now, locked. Raises ``SignInRefused``."""
    if not isinstance(found, get_user_model()):
        raise SignInRefused(
            "misconfigured", "find_user() or USER_RESOLVER returned something that is no user."
        )
    people = type(found)._base_manager.using(database()).select_for_update()
    user = people.filter(pk=found.pk).first()
    if user is None:
        raise SignInRefused(
            "misconfigured", "find_user() or USER_RESOLVER returned a user who is not stored."
        )
    return user


def _expect_never_unlinked(token: BipsyncToken) -> None:
    """Raise ``SignInRefused`` for an account that an administrator has taken from its user.

    Unlinking ends the sessions of the account, and leaves a row that belongs to nobody. Events say
    so too, but they are deleted one day.
    """
    if token.sessions_valid_after is not None:
        raise SignInRefused(
            "account_exists",
            "An administrator has unlinked this Bipsync account, so no rule joins it to a user "
            "again: link the two by hand (manage.py bipsync_link).",
        )


def _expect_nothing_to_lose(user: AbstractBaseUser) -> None:
    """Raise ``SignInRefused`` for a user whose rights or accounts a wrong match would give away."""
    has_rights = any(
        [
            getattr(user, "is_staff", False),
            getattr(user, "is_superuser", False),
            _is_like_break_glass(user.get_username()),
            *(
                getattr(user, name).exists()
                for name in ("groups", "user_permissions")
                if rights.has_field(name)
            ),
        ]
    )
    if has_rights or _tokens().filter(user_id=user.pk).exists():
        raise SignInRefused(
            "account_exists",
            f"The user with primary key {user.pk} has rights or another connection: link the two "
            "by hand (manage.py bipsync_link), or let a rule of the site vouch (Vouched).",
        )


def _session_hash(user: AbstractBaseUser) -> str | None:
    """Return what the user's sessions are compared with at each request."""
    get_hash = getattr(user, "get_session_auth_hash", None)
    return None if get_hash is None else get_hash()


def _is_like_break_glass(name: object) -> bool:
    return str(name).casefold() in {reserved.casefold() for reserved in break_glass_users()}


def _expect_no_break_glass_name(user: Any) -> None:
    """Raise ``_ReservedName`` if the database finds ``user`` under a break-glass name.

    Collations of MariaDB and MySQL ignore accents, and each has a list of its own.
    """
    names = break_glass_users()
    if not names or not isinstance(_field(user.USERNAME_FIELD), models.CharField):
        return
    same = type(user)._base_manager.using(user._state.db).filter(pk=user.pk)
    if same.filter(**{f"{user.USERNAME_FIELD}__in": names}).exists():
        raise _ReservedName


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
