"""Groups and flags by what Bipsync's claims say, and by nothing else.

Claims own the groups that ``GROUPS`` maps: who has the claim is in exactly those that it names.
Flags they share with administrators, so each flag that claims gave is noted (``GivenFlag``), and
only that is ever taken back. Scopes give no rights: they say what this site asked for.
"""

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser
from django.core.exceptions import FieldDoesNotExist
from django.db import transaction

from .claim_paths import ABSENT, find
from .conf import ClaimRule, Tenant, get_settings
from .durable import database
from .events import record
from .models import BipsyncToken, GivenFlag, TokenEvent
from .oauth.claims import Claims

__all__ = [
    "apply",
    "has_field",
    "right_in",
    "take_back",
    "take_back_flags",
    "would_take_back",
    "would_take_back_flags",
]

logger = logging.getLogger(__name__)

Event = TokenEvent.Name
_SCOPES = {"scope", "scopes"}
_NO_LONGER_THEIRS = "the account is no longer theirs"
_GROUP_DETAIL = re.compile(rf"(?s)(.*) \((?:claim .*|{_NO_LONGER_THEIRS}\))")


def apply(token: BipsyncToken, user: AbstractBaseUser, tenant: Tenant, claims: Claims) -> None:
    """Give ``user`` what ``claims`` say now, and take back what they gave and no longer say.

    ``token`` is the row that each change is recorded at. The caller ensures that ``claims`` are
    validated and that they are this user's. A rule that fails is logged and undone, and the other
    rules are applied all the same: otherwise a broken group would keep a flag from being taken.
    """
    said = {name: value for name, value in claims.claims.items() if name not in _SCOPES}
    with _by_itself("GROUPS", user):
        _apply_groups(token, user, tenant, said)
    with _by_itself("STAFF", user):
        _apply_flag(token, user, tenant, GivenFlag.Name.STAFF, tenant.staff, said)
    with _by_itself("SUPERUSER", user):
        _apply_flag(token, user, tenant, GivenFlag.Name.SUPERUSER, tenant.superuser, said)


def take_back(token: BipsyncToken, user: AbstractBaseUser) -> None:
    """Take back what the claims of this account gave: it is no longer the user's.

    Flags that they gave, and the groups that they gave or that ``GROUPS`` of its tenant names,
    except those that another tenant's ``GROUPS`` names.
    """
    _leave_groups(token, user)
    take_back_flags(token, user)


def take_back_flags(
    token: BipsyncToken, user: AbstractBaseUser, why: str = _NO_LONGER_THEIRS
) -> None:
    """Take back the flags that the claims of ``token``'s tenant gave; ``why`` is for the events."""
    given = GivenFlag.objects.using(database()).filter(user_id=user.pk, tenant=token.tenant)
    for name in given.values_list("name", flat=True):
        _take(token, user, token.tenant, name, why)


def would_take_back(token: BipsyncToken, user: AbstractBaseUser) -> list[str]:
    """Return the flags and groups that ``take_back`` would take, by name; change nothing."""
    groups = [group.name for group in _groups_to_leave(token, user)]
    return [*would_take_back_flags(token, user), *groups]


def would_take_back_flags(token: BipsyncToken, user: AbstractBaseUser) -> list[str]:
    """Return the flags that ``take_back_flags`` would take; change nothing."""
    given = GivenFlag.objects.using(database()).filter(user_id=user.pk)
    by_tenant = list(given.values_list("tenant", "name"))
    kept = {name for tenant, name in by_tenant if tenant != token.tenant}
    ours = {name for tenant, name in by_tenant if tenant == token.tenant}
    return [name for name in sorted(ours - kept) if getattr(user, name, False)]


def right_in(event: TokenEvent) -> str:
    """Return the name of the flag or group that an event of a change of rights is about."""
    found = _GROUP_DETAIL.match(event.detail) if event.reason == "group" else None
    return event.reason if found is None else found[1]


def has_field(name: str) -> bool:
    """Return whether the site's user model has the flag or the relation called ``name``."""
    try:
        get_user_model()._meta.get_field(name)
    except FieldDoesNotExist:
        return False
    return True


@contextmanager
def _by_itself(rule: str, user: AbstractBaseUser) -> Iterator[None]:
    """Log what goes wrong with one rule, and go on to the next."""
    try:
        yield
    except Exception:
        logger.exception("%s could not be applied to the user %s.", rule, user.pk)


# --- groups


def _apply_groups(
    token: BipsyncToken, user: AbstractBaseUser, tenant: Tenant, said: Mapping[str, Any]
) -> None:
    wanted, owned, unknown = _groups_by(tenant, said)
    if not owned or not has_field("groups"):
        return
    groups: Any = user.groups  # type: ignore[attr-defined]
    has = _named(groups.using(database()), owned)
    # A group that another claim may stand for as well is not taken while that one is absent.
    leaving = set(has) - set(wanted) - unknown
    joining = set(wanted) - set(has)
    if not leaving and not joining:
        return
    found = _named(groups.model._default_manager.using(database()), joining)
    for name in sorted(joining - set(found)):
        logger.error("GROUPS of %s names the group %r, which does not exist.", tenant.slug, name)
    with transaction.atomic(using=database()):
        for name in sorted(found):
            groups.add(found[name])
            record(token, Event.RIGHT_GIVEN, "group", detail=f"{name} (claim {wanted[name]})")
        for name in sorted(leaving):
            groups.remove(has[name])
            record(token, Event.RIGHT_TAKEN, "group", detail=f"{name} (claim {owned[name]})")


def _leave_groups(token: BipsyncToken, user: AbstractBaseUser) -> None:
    with transaction.atomic(using=database()):
        for group in _groups_to_leave(token, user):
            user.groups.remove(group)  # type: ignore[attr-defined]
            detail = f"{group.name} ({_NO_LONGER_THEIRS})"
            record(token, Event.RIGHT_TAKEN, "group", detail=detail)


def _groups_to_leave(token: BipsyncToken, user: AbstractBaseUser) -> list[Any]:
    if not has_field("groups"):
        return []
    tenants = get_settings().tenants
    owned = {slug: _all_groups(tenant) for slug, tenant in tenants.items()}
    ours = owned.pop(token.tenant, set()) | _given_groups(token)
    leaving = ours.difference(*owned.values())
    groups: Any = user.groups  # type: ignore[attr-defined]
    return [group for _, group in sorted(_named(groups.using(database()), leaving).items())]


def _given_groups(token: BipsyncToken) -> set[str]:
    """Return the groups that the account's claims gave to its user and have not taken since.

    Read from the events, because ``GROUPS`` of a tenant may have changed, or be gone with it.
    """
    changes = [Event.RIGHT_GIVEN, Event.RIGHT_TAKEN, Event.UNLINKED]
    events = TokenEvent.objects.using(database()).filter(token_id=token.pk, name__in=changes)
    given: set[str] = set()
    for event in events.order_by("pk"):
        if event.name == Event.UNLINKED:
            # Before that, the account was somebody else's.
            given.clear()
        elif event.reason == "group":
            (given.add if event.name == Event.RIGHT_GIVEN else given.discard)(right_in(event))
    return given


def _named(groups: Any, names: Collection[str]) -> dict[str, Any]:
    """Return the groups that have one of ``names``, to the letter.

    The collations of some databases find ``analysts`` for ``Analysts`` as well.
    """
    found = groups.filter(name__in=list(names))
    return {group.name: group for group in found if group.name in names}


def _all_groups(tenant: Tenant) -> set[str]:
    """Return the groups that a tenant's claims own."""
    return {
        name for mapping in tenant.groups.values() for names in mapping.values() for name in names
    }


def _groups_by(
    tenant: Tenant, said: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, str], set[str]]:
    """Return the groups to be in, those to be in or out of, and those that nothing is said about.

    The first two say by which claim.
    """
    wanted: dict[str, str] = {}
    owned: dict[str, str] = {}
    unknown: set[str] = set()
    for claim, mapping in tenant.groups.items():
        names = {name for names in mapping.values() for name in names}
        values = _texts(claim, find(said, claim))
        if values is None:
            unknown |= names
            continue
        owned.update(dict.fromkeys(names, claim))
        wanted.update({name: claim for value in values for name in mapping.get(value, ())})
    return wanted, owned, unknown


def _texts(claim: str, value: object) -> list[str] | None:
    """Return the values of a claim, or ``None`` where it says nothing."""
    if value is ABSENT or value is None:
        return None
    if isinstance(value, str):
        return [value] if value else []
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    logger.error("The claim %r holds no names of groups; groups stay as they are.", claim)
    return None


# --- flags


def _apply_flag(
    token: BipsyncToken,
    user: AbstractBaseUser,
    tenant: Tenant,
    name: str,
    rule: ClaimRule | None,
    said: Mapping[str, Any],
) -> None:
    if not has_field(name):
        return
    if rule is None and not getattr(user, name):
        return
    holds = _holds(rule, said)
    if holds is None:
        return
    given = GivenFlag.objects.using(database()).filter(user_id=user.pk, name=name)
    by = set(given.values_list("tenant", flat=True))
    if holds:
        # Given already, or an administrator's own affair.
        if not getattr(user, name) or (by and tenant.slug not in by):
            _give(token, user, tenant, name, rule, by)
    elif tenant.slug in by:
        _take(token, user, tenant.slug, name, "the rule no longer holds")


def _give(
    token: BipsyncToken,
    user: AbstractBaseUser,
    tenant: Tenant,
    name: str,
    rule: ClaimRule | None,
    by: set[str],
) -> None:
    given = GivenFlag(user_id=user.pk, tenant=tenant.slug, name=name)
    with transaction.atomic(using=database()):
        is_ours = _set(user, name, to=True)
        # What an administrator has ticked since the user was read is theirs.
        if is_ours or by:
            GivenFlag.objects.using(database()).bulk_create([given], ignore_conflicts=True)
        if is_ours:
            claims = "a callable" if callable(rule) else f"claim {', '.join(rule or ())}"
            record(token, Event.RIGHT_GIVEN, name, detail=claims)
    setattr(user, name, True)


def _take(token: BipsyncToken, user: AbstractBaseUser, tenant: str, name: str, why: str) -> None:
    given = GivenFlag.objects.using(database()).filter(user_id=user.pk, name=name)
    with transaction.atomic(using=database()):
        given.filter(tenant=tenant).delete()
        if given.exists():
            # Another tenant's claims stand for it.
            return
        if _set(user, name, to=False):
            record(token, Event.RIGHT_TAKEN, name, detail=why)
    setattr(user, name, False)


def _set(user: AbstractBaseUser, name: str, *, to: bool) -> bool:
    """Change the flag in the database, and return whether it was not so already."""
    rows = type(user)._base_manager.using(database()).filter(pk=user.pk, **{name: not to})
    return bool(rows.update(**{name: to}))


def _holds(rule: ClaimRule | None, said: Mapping[str, Any]) -> bool | None:
    """Whether the rule is satisfied; ``None`` when that cannot be told and nothing is to change."""
    if rule is None:
        return False
    if callable(rule):
        try:
            return bool(rule(said))
        except Exception:
            logger.exception("A callable in STAFF or SUPERUSER failed; the flag is left alone.")
            return None
    return any(_is_among(find(said, claim), values) for claim, values in rule.items())


def _is_among(value: object, values: tuple[object, ...]) -> bool:
    found = value if isinstance(value, list) else [value]
    # True == 1, and neither is the other here.
    return any(type(one) is type(other) and one == other for one in found for other in values)
