"""System checks: what is wrong with the settings, before anyone meets it in a browser.

The ids are documented in docs/settings.md.
"""

from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core import checks
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.exceptions import FieldDoesNotExist
from django.db import DatabaseError
from django.urls import NoReverseMatch, reverse
from django.utils.module_loading import import_string

from . import conf
from .backends import BipsyncBackend
from .durable import database
from .exceptions import ConfigurationError, OtherDeployment
from .models import TenantState

__all__ = ["check_claims", "check_deployment", "check_secrets", "check_settings", "check_site"]


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


@register
def check_secrets(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """W002: the client secret cannot be read from where it is said to be."""
    if conf.problems():
        return []
    try:
        conf.get_tenant().client_secret  # noqa: B018
    except ConfigurationError as error:
        return [
            checks.Warning(
                str(error),
                hint="Nobody can sign in until it can be read where the site runs.",
                id="bipsync_django.W002",
            )
        ]
    return []


@register
def check_claims(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """E003: ``CLAIMS`` names a field that the user model does not have."""
    if conf.problems():
        return []
    model = get_user_model()
    messages: list[CheckMessage] = []
    for name in conf.get_tenant().claims:
        try:
            model._meta.get_field(name)
        except FieldDoesNotExist:
            messages.append(
                Error(
                    f"BIPSYNC['CLAIMS'] fills {name!r}, which {model._meta.label} does not have.",
                    hint="Keys of CLAIMS are user fields, values are claims.",
                    id="bipsync_django.E003",
                )
            )
    return messages


@register
def check_site(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """E004: no Bipsync backend, or one that is not there; W001: the URLs are not included."""
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
        states = list(TenantState.objects.using(database()).exclude(deployment__in=["", ours]))
    except DatabaseError:  # not migrated yet
        return []
    return [
        checks.Warning(
            f"{state.tenant}: {OtherDeployment(state.deployment, ours)}",
            hint="Run manage.py bipsync_deployment: it names the choices.",
            id="bipsync_django.W003",
        )
        for state in states
    ]
