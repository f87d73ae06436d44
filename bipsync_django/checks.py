"""System checks: what is wrong with the settings, before anyone meets it in a browser.

The ids are documented in docs/settings.md.
"""

import difflib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core import checks
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError
from django.shortcuts import resolve_url
from django.urls import NoReverseMatch, Resolver404, get_resolver, resolve, reverse
from django.utils.module_loading import import_string

from . import conf, lifecycle
from .backends import BipsyncBackend
from .decorators import scopes_of_views
from .durable import database
from .exceptions import ConfigurationError, OtherDeployment
from .middleware import BipsyncSessionMiddleware
from .models import TenantState
from .rights import has_field
from .scopes import SCOPES, in_english

__all__ = [
    "check_callbacks",
    "check_claims",
    "check_deployment",
    "check_login_url",
    "check_middleware",
    "check_removed_tenants",
    "check_resolver",
    "check_scopes",
    "check_secrets",
    "check_settings",
    "check_site",
]


@register
def check_settings(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """E001: the ``BIPSYNC`` dict, a required key or a value; E002: an unknown key."""
    return [
        Error(
            problem.message,
            hint=problem.hint,
            id=f"bipsync_django.E00{2 if problem.unknown else 1}",
        )
        for problem in conf.problems()
    ]


def _tenants() -> list[conf.Tenant]:
    return [] if conf.problems() else list(conf.get_settings().tenants.values())


@register
def check_secrets(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """W002: a client secret cannot be read from where it is said to be."""
    messages: list[CheckMessage] = []
    for tenant in _tenants():
        try:
            tenant.client_secret  # noqa: B018
        except ConfigurationError as error:
            messages.append(
                checks.Warning(
                    str(error),
                    hint="Nobody can sign in until it can be read where the site runs.",
                    id="bipsync_django.W002",
                )
            )
    return messages


@register
def check_claims(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """E003: claims are to fill or to decide what the user model does not have."""
    label = get_user_model()._meta.label
    messages: list[CheckMessage] = []
    for tenant in _tenants():
        wanted = dict.fromkeys(tenant.claims, "CLAIMS")
        wanted |= {"groups": "GROUPS"} if tenant.groups else {}
        wanted |= {"is_staff": "STAFF"} if tenant.staff else {}
        wanted |= {"is_superuser": "SUPERUSER"} if tenant.superuser else {}
        messages += [
            Error(
                f"BIPSYNC[{key!r}] of {tenant.slug} fills {name!r}, which {label} does not have.",
                hint="Keys of CLAIMS are user fields, values are claims."
                if key == "CLAIMS"
                else f"Leave {key} out, or use a user model that has the field.",
                id="bipsync_django.E003",
            )
            for name, key in wanted.items()
            if not has_field(name)
        ]
    return messages


@register
def check_resolver(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """E005: ``USER_RESOLVER`` or ``PREPARE_CONNECTION`` cannot be imported, or cannot be called."""
    if conf.problems():
        return []
    settings = conf.get_settings()
    named = {
        "USER_RESOLVER": (settings.user_resolver, "portal.people.find"),
        "PREPARE_CONNECTION": (
            settings.prepare_connection_source,
            "portal.schemas.use_callers_schema",
        ),
    }
    return [
        Error(
            f"BIPSYNC[{key!r}] names {source!r}, which is no callable that can be imported.",
            hint=f'Give the dotted path of a function, for example "{example}".',
            id="bipsync_django.E005",
        )
        for key, (source, example) in named.items()
        if not _is_usable(source)
    ]


def _is_usable(source: object) -> bool:
    try:
        found = import_string(source) if isinstance(source, str) else source
    except ImportError:
        return False
    return found is None or callable(found)


@register
def check_callbacks(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """W004: one of several tenants has a ``REDIRECT_URI`` that is not its own callback."""
    tenants = _tenants()
    messages: list[CheckMessage] = []
    for place, tenant in enumerate(tenants):
        endings = [f"/callback/{tenant.slug}/"] + (["/callback/"] if place == 0 else [])
        path = urlsplit(tenant.redirect_uri or "").path
        if len(tenants) > 1 and tenant.redirect_uri and not path.endswith(tuple(endings)):
            messages.append(
                checks.Warning(
                    f"The REDIRECT_URI of {tenant.slug} does not end in {endings[-1]!r}.",
                    hint="Every tenant comes back to its own callback, and what comes back at "
                    "another's is refused.",
                    id="bipsync_django.W004",
                )
            )
    return messages


@register
def check_site(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """E004: no Bipsync backend, or one that is not there; E007: passwords go past ``SSO_ONLY``;
    W001: the URLs are not included.
    """
    messages: list[CheckMessage] = []
    found = False
    for path in settings.AUTHENTICATION_BACKENDS:
        try:
            backend = import_string(path)
        except ImportError:
            messages.append(
                Error(
                    f"AUTHENTICATION_BACKENDS names {path!r}, which cannot be imported.",
                    hint='The one of this app is "bipsync_django.backends.BipsyncBackend".',
                    id="bipsync_django.E004",
                )
            )
        else:
            found |= isinstance(backend, type) and issubclass(backend, BipsyncBackend)
    if not found and not messages:
        messages.append(
            Error(
                "AUTHENTICATION_BACKENDS holds no BipsyncBackend, so nobody can sign in.",
                hint='Add "bipsync_django.backends.BipsyncBackend", or your subclass of it.',
                id="bipsync_django.E004",
            )
        )
    if conf.is_sso_only() and found and not messages and not _is_first():
        messages.append(
            Error(
                "SSO_ONLY is set, and a backend before BipsyncBackend may take passwords.",
                hint="Name BipsyncBackend first in AUTHENTICATION_BACKENDS: it refuses them.",
                id="bipsync_django.E007",
            )
        )
    try:
        reverse("bipsync:callback")
    except NoReverseMatch:
        messages.append(
            checks.Warning(
                "The URLs of bipsync_django are not included.",
                hint='Add path("bipsync/", include("bipsync_django.urls")) to your URLconf.',
                id="bipsync_django.W001",
            )
        )
    return messages


def _is_first() -> bool:
    first = import_string(settings.AUTHENTICATION_BACKENDS[0])
    return isinstance(first, type) and issubclass(first, BipsyncBackend)


@register
def check_scopes(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """W008: a scope that Bipsync does not document, in ``SCOPES`` or at a view."""
    places: dict[str, str] = {}
    with suppress(ImproperlyConfigured, ImportError):
        # Views are imported with them; Django itself says what is wrong with a URLconf.
        get_resolver().url_patterns  # noqa: B018
        places |= dict.fromkeys(scopes_of_views(), "@bipsync_token_required")
    for tenant in _tenants():
        places |= dict.fromkeys(tenant.service_scopes, f"SERVICE_SCOPES of {tenant.slug}")
        places |= dict.fromkeys(tenant.scopes, f"SCOPES of {tenant.slug}")
    return [
        checks.Warning(
            f"{place} names the scope {scope!r}, which Bipsync does not document.",
            hint=_nearest_scope(scope),
            id="bipsync_django.W008",
        )
        for scope, place in sorted(places.items())
        if in_english(scope) is None
    ]


def _nearest_scope(scope: str) -> str:
    nearest = difflib.get_close_matches(scope, SCOPES, n=1)
    if nearest:
        return (
            f"Write {nearest[0]!r}, if you mean that: Bipsync refuses scopes that it does not know."
        )
    return f"Bipsync documents: {', '.join(SCOPES)}, and team_{{id}} for teams."


_OURS = "bipsync_django.middleware.BipsyncSessionMiddleware"
_AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
_LOGIN_REQUIRED = "django.contrib.auth.middleware.LoginRequiredMiddleware"


@register
def check_middleware(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """E006: the middleware is in the wrong place; W005: it is missing."""
    places = {name: place for place, name in enumerate(settings.MIDDLEWARE)}
    classes = {name: _imported(name) for name in places}
    ours = [
        places[name]
        for name, found in classes.items()
        if isinstance(found, type) and issubclass(found, BipsyncSessionMiddleware)
    ]
    if not ours:
        return [
            checks.Warning(
                "MIDDLEWARE does not hold BipsyncSessionMiddleware: people stay signed in here "
                "after their permission has ended.",
                hint=f"Add {_OURS!r} after Django's AuthenticationMiddleware.",
                id="bipsync_django.W005",
            )
        ]
    is_early = ours[0] < places.get(_AUTHENTICATION, len(places))
    is_late = ours[0] > places.get(_LOGIN_REQUIRED, len(places))
    if not is_early and not is_late:
        return []
    return [
        Error(
            "BipsyncSessionMiddleware is in the wrong place.",
            hint="Name it after AuthenticationMiddleware, which it needs, and before "
            "LoginRequiredMiddleware, which has to see that a session has ended.",
            id="bipsync_django.E006",
        )
    ]


def _imported(path: str) -> object:
    try:
        return import_string(path)
    except ImportError:  # Django says so itself
        return None


@register
def check_login_url(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """W006: ``LOGIN_URL`` leads nowhere."""
    try:
        path = urlsplit(resolve_url(settings.LOGIN_URL))
        if not path.netloc:
            resolve(path.path)
    except (NoReverseMatch, Resolver404):
        return [
            checks.Warning(
                "LOGIN_URL leads nowhere: visitors who need to sign in get an error.",
                hint='Set LOGIN_URL = "bipsync:login", or to a page of yours with the button.',
                id="bipsync_django.W006",
            )
        ]
    return []


@register(Tags.database)
def check_deployment(
    app_configs: Sequence[Any] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """W003: the grants in the database are another deployment's.

    Django runs it with ``migrate``, and with ``check --database``.
    """
    if conf.problems() or database() not in (databases or []):
        return []
    ours = conf.get_settings().deployment
    try:
        states = TenantState.objects.using(database()).exclude(deployment__in=["", ours])
        foreign = list(states.filter(tenant__in=list(conf.get_settings().tenants)))
    except DatabaseError:  # not migrated yet
        return []
    return [
        checks.Warning(
            f"{state.tenant}: {OtherDeployment(state.deployment, ours)}",
            hint="Run manage.py bipsync_deployment: it names the choices.",
            id="bipsync_django.W003",
        )
        for state in foreign
    ]


@register(Tags.database)
def check_removed_tenants(
    app_configs: Sequence[Any] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """W007: a tenant has connections or rights in the database, and no settings.

    Django runs it with ``migrate``, and with ``check --database``.
    """
    if conf.problems() or database() not in (databases or []):
        return []
    try:
        removed = lifecycle.removed_tenants()
    except DatabaseError:  # not migrated yet
        return []
    return [
        checks.Warning(
            f"{one.tenant} is not in BIPSYNC, and has {one.accounts} accounts and {one.flags} "
            "flags of people in the database.",
            hint=f"Run manage.py bipsync_give_up {one.tenant}, or put the tenant back: see "
            "docs/tenants.md.",
            id="bipsync_django.W007",
        )
        for one in removed
        if not one.is_given_up
    ]
