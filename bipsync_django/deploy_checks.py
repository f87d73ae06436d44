"""``check --deploy``: what is well on a developer's machine, and is not where real people sign in.

The ids are documented in docs/settings.md.
"""

import base64
from collections.abc import Iterable, Sequence
from typing import Any

from celery import current_app
from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error, register
from django.urls import get_resolver
from django.utils.module_loading import import_string

from . import conf, decorators
from .backends import BipsyncBackend, site_backend
from .conf import Tenant
from .error_reports import STOCK

__all__ = [
    "check_cache",
    "check_celery",
    "check_emergencies",
    "check_encryption_key",
    "check_error_reports",
    "check_newcomers",
    "check_scopes",
    "check_session_cookie",
    "check_session_engine",
    "check_tenants",
]

_SEE = "See docs/settings.md."
_REFRESH = "bipsync_django.tasks.refresh_due_tokens"
_PER_PROCESS = {
    "django.core.cache.backends.locmem.LocMemCache",
    "django.core.cache.backends.dummy.DummyCache",
}
# Of 32 bytes that were drawn at random, one has fewer different ones than that in 10**20.
_FEWEST_DIFFERENT_BYTES = 16


def _tenants() -> Iterable[Tenant]:
    return [] if conf.problems() else conf.get_settings().tenants.values()


@register(deploy=True)
def check_tenants(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """E011: plain http is allowed; W011: a client secret stands in the settings."""
    messages: list[CheckMessage] = []
    tenants = list(_tenants())
    if any(tenant.allow_insecure_loopback for tenant in tenants):
        messages.append(
            Error(
                "Plain http to this machine's own addresses is allowed (ALLOW_INSECURE_LOOPBACK, "
                "or DEBUG).",
                hint=f"Set BIPSYNC['ALLOW_INSECURE_LOOPBACK'] to False here. {_SEE}",
                id="bipsync_django.E011",
            )
        )
    messages += [
        checks.Warning(
            f"The client secret of {tenant.slug} stands in the settings.",
            hint="Keep it in a secret store, a file or the environment, and say where: "
            f'"aws-secretsmanager:…", "azure-keyvault:…", "file:…", "env:…". {_SEE}',
            id="bipsync_django.W011",
        )
        for tenant in tenants
        if _is_literal(tenant.client_secret_source)
    ]
    return messages


def _is_literal(source: object) -> bool:
    schemes = ("env:", "file:", "aws-secretsmanager:", "azure-keyvault:")
    return isinstance(source, str) and not source.startswith(schemes)


@register(deploy=True)
def check_encryption_key(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """E012: a key of ``FIELD_ENCRYPTION_KEY`` was not drawn at random, or is used elsewhere too."""
    keys: Any = settings.FIELD_ENCRYPTION_KEY
    keys = keys if isinstance(keys, list | tuple) else [keys]
    others = {str(key) for key in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)}
    if not any(_is_weak(key) or _text(key) in others for key in keys):
        return []
    return [
        Error(
            "A key of FIELD_ENCRYPTION_KEY can be guessed, or is the SECRET_KEY as well.",
            hint="Make one with Fernet.generate_key(), put it in front, and run "
            f"manage.py bipsync_rotate_keys. {_SEE}",
            id="bipsync_django.E012",
        )
    ]


def _text(key: str | bytes) -> str:
    return key.decode() if isinstance(key, bytes) else key


def _is_weak(key: str | bytes) -> bool:
    raw = base64.urlsafe_b64decode(key)
    return len(set(raw)) < _FEWEST_DIFFERENT_BYTES or all(0x20 <= byte < 0x7F for byte in raw)


@register(deploy=True)
def check_cache(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """W012: each process has a cache of its own."""
    if settings.CACHES.get("default", {}).get("BACKEND") not in _PER_PROCESS:
        return []
    return [
        checks.Warning(
            "The default cache is not shared between processes.",
            hint="Each process fetches Bipsync's signing keys, and checks sessions, for itself. "
            f"Use Redis, Memcached or the database. {_SEE}",
            id="bipsync_django.W012",
        )
    ]


@register(deploy=True)
def check_session_engine(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """W020: sessions are in the browser, where nobody can delete one."""
    if settings.SESSION_ENGINE != "django.contrib.sessions.backends.signed_cookies":
        return []
    return [
        checks.Warning(
            "Sessions are kept in signed cookies, so a copied cookie cannot be made invalid.",
            hint="It comes back when its owner signs in again. Keep sessions in the database or in "
            f"the cache. {_SEE}",
            id="bipsync_django.W020",
        )
    ]


@register(deploy=True)
def check_session_cookie(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """W013: the session's cookie is sent over plain http too."""
    if settings.SESSION_COOKIE_SECURE:
        return []
    return [
        checks.Warning(
            "SESSION_COOKIE_SECURE is not set: whoever reads along on plain http is signed in.",
            hint=f"Set SESSION_COOKIE_SECURE = True. {_SEE}",
            id="bipsync_django.W013",
        )
    ]


@register(deploy=True)
def check_newcomers(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """W014: everybody whom Bipsync knows gets an account."""
    backend = site_backend()
    if backend is not None and backend.is_allowed is not BipsyncBackend.is_allowed:
        return []
    return [
        checks.Warning(
            f"Everybody with a Bipsync account at {tenant.slug} gets an account here.",
            hint="Set ALLOWED_EMAIL_DOMAINS, override is_allowed(), or set CREATE_USERS to False. "
            f"If it is meant to be so, name this check in SILENCED_SYSTEM_CHECKS. {_SEE}",
            id="bipsync_django.W014",
        )
        for tenant in _tenants()
        if tenant.create_users and tenant.allowed_email_domains is None
    ]


@register(deploy=True)
def check_emergencies(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """W018: nobody comes in when Bipsync is not there."""
    if not conf.is_sso_only() or (conf.break_glass_users() and _takes_passwords()):
        return []
    empty = not conf.break_glass_users()
    return [
        checks.Warning(
            "SSO_ONLY is set and BREAK_GLASS_USERS is empty: while Bipsync is away, nobody can "
            "sign in."
            if empty
            else "SSO_ONLY is set and no backend takes the passwords of BREAK_GLASS_USERS: while "
            "Bipsync is away, nobody can sign in.",
            hint=f"Name one account whose password is kept in a safe. {_SEE}"
            if empty
            else 'Name "django.contrib.auth.backends.ModelBackend" behind BipsyncBackend in '
            f"AUTHENTICATION_BACKENDS. {_SEE}",
            id="bipsync_django.W018",
        )
    ]


def _takes_passwords() -> bool:
    """Whether there is a backend that is not ours, which takes none."""
    backends = [import_string(path) for path in settings.AUTHENTICATION_BACKENDS]
    return any(
        not (isinstance(backend, type) and issubclass(backend, BipsyncBackend))
        for backend in backends
    )


@register(deploy=True)
def check_error_reports(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """W019: errors before our middleware are reported with the cookies of sign-ins."""
    if settings.DEFAULT_EXCEPTION_REPORTER_FILTER != STOCK:
        return []
    return [
        checks.Warning(
            "Errors in other middleware, tasks and commands are reported with all they know, and "
            "so with the cookie and the code of a sign-in that is under way.",
            hint='Set DEFAULT_EXCEPTION_REPORTER_FILTER = "bipsync_django.error_reports.'
            f'ReporterFilter". {_SEE}',
            id="bipsync_django.W019",
        )
    ]


@register(deploy=True)
def check_celery(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """W015: nothing refreshes in the background; W016: Celery runs tasks where they are called."""
    if conf.problems() or not conf.get_settings().refresh_enabled:
        return []
    messages: list[CheckMessage] = []
    schedule = current_app.conf.beat_schedule or {}
    if not any(entry.get("task") == _REFRESH for entry in schedule.values()):
        messages.append(
            checks.Warning(
                f"Celery's beat schedule does not hold {_REFRESH}.",
                hint="Merge bipsync_django.schedule.BEAT_SCHEDULE into it. If cron runs manage.py "
                f"bipsync_refresh, name this check in SILENCED_SYSTEM_CHECKS. {_SEE}",
                id="bipsync_django.W015",
            )
        )
    if current_app.conf.task_always_eager:
        messages.append(
            checks.Warning(
                "Celery runs every task in the process that calls it (task_always_eager).",
                hint=f"Switch it off where a worker runs. {_SEE}",
                id="bipsync_django.W016",
            )
        )
    return messages


@register(deploy=True)
def check_scopes(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """W017: people are asked for more than the site's views say that they need."""
    get_resolver().url_patterns  # noqa: B018 - views are imported with them
    needed = decorators.scopes_of_views()
    if not needed:
        return []
    return [
        checks.Warning(
            f"SCOPES of {tenant.slug} asks for {', '.join(unused)}, which no view asks for with "
            "@bipsync_token_required(scopes=…).",
            hint="Ask for what is used and no more. If work in the background needs it, name this "
            f"check in SILENCED_SYSTEM_CHECKS. {_SEE}",
            id="bipsync_django.W017",
        )
        for tenant in _tenants()
        if (unused := sorted(set(tenant.scopes) - needed))
    ]
