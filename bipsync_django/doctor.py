"""What is wrong, and what to do next: the examinations behind ``manage.py bipsync_doctor``.

Nothing secret is sent or shown: endpoints are asked without credentials, and a finding names
where a secret comes from, never what it is.
"""

import enum
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import ParamSpec
from urllib.parse import urlsplit

from celery import current_app
from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.core import checks
from django.core.cache import cache
from django.utils import timezone

from . import conf, flow, health, lifecycle
from .conf import Tenant
from .durable import DatabaseNow, database
from .exceptions import ConfigurationError, KeysUnavailable
from .fields import seal
from .oauth import keys
from .oauth.transport import ExchangeFailed, exchange

__all__ = ["Finding", "Verdict", "examine"]

_MOST_BYTES = 256 * 1024
# In seconds.
_BROKER_TIMEOUT = 3
_WORKERS_ANSWER_WITHIN = 1.5
_DATABASE_CLOCK_MAY_DIFFER = 5


class Verdict(enum.StrEnum):
    """What a finding means for the operator."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """What one examination found. ``next_step`` is empty where there is nothing to do."""

    check: str
    verdict: Verdict
    text: str
    next_step: str = ""
    tenant: str = ""


_Findings = Iterator[Finding]
P = ParamSpec("P")


def examine(*, tenant: str | None = None, offline: bool = False) -> _Findings:
    """Look at everything, one after the other, and yield what is found.

    ``tenant`` is the slug of the only tenant to look at. With ``offline`` Bipsync and the broker
    are not asked. Raises ``ConfigurationError`` for a tenant that is not there.
    """
    yield from _survive("settings", _settings)
    if conf.problems():
        yield Finding("everything else", Verdict.SKIPPED, "The settings have to be right first.")
        return
    tenants = list(conf.get_settings().tenants.values())
    if tenant is not None:
        tenants = [conf.get_tenant(tenant)]
    for one in tenants:
        yield from _survive("client secret", _client_secret, one)
        yield from _survive("redirect URI", _redirect_uri, one)
        if offline:
            yield Finding("endpoints", Verdict.SKIPPED, "Bipsync was not asked.", tenant=one.slug)
        else:
            yield from _survive("endpoints", _endpoints, one)
            yield from _survive("signing keys", _signing_keys, one)
    yield from _survive("encryption", _encryption)
    yield from _survive("database clock", _database_clock)
    yield from _survive("cache", _cache)
    if offline:
        yield Finding("Celery", Verdict.SKIPPED, "The broker was not asked.")
    else:
        yield from _survive("Celery", _celery)
    yield from _survive("connections", _connections, {one.slug for one in tenants})


def _survive(
    check: str, examination: Callable[P, _Findings], *args: P.args, **kwargs: P.kwargs
) -> _Findings:
    try:
        yield from examination(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - what it says may show a secret or a password
        tenant = next((one.slug for one in args if isinstance(one, Tenant)), "")
        yield Finding(
            check,
            Verdict.ERROR,
            f"This could not be examined ({type(error).__name__}).",
            "See whether the database is migrated, and whether database, cache and network answer.",
            tenant,
        )


# --- settings and secrets


def _settings() -> _Findings:
    messages = checks.run_checks(
        include_deployment_checks=not settings.DEBUG, databases=[database()]
    )
    ours = [one for one in messages if str(one.id).startswith("bipsync_django.")]
    for message in ours:
        verdict = Verdict.ERROR if message.level >= checks.ERROR else Verdict.WARNING
        yield Finding(f"settings ({message.id})", verdict, str(message.msg), message.hint or "")
    if not ours:
        yield Finding("settings", Verdict.OK, "The system checks of this app have no objection.")


def _client_secret(tenant: Tenant) -> _Findings:
    source = tenant.client_secret_source
    place = "a callable" if callable(source) else _scheme(source)
    try:
        tenant.client_secret  # noqa: B018
    except ConfigurationError as error:
        yield Finding(
            "client secret",
            Verdict.ERROR,
            str(error),
            "Nobody can sign in, and nothing can be refreshed, until it can be read.",
            tenant.slug,
        )
        return
    yield Finding("client secret", Verdict.OK, f"It is read from {place}.", tenant=tenant.slug)


def _scheme(source: str) -> str:
    scheme = source.partition(":")[0]
    names = {
        "env": "the environment",
        "file": "a file",
        "aws-secretsmanager": "AWS Secrets Manager",
        "azure-keyvault": "Azure Key Vault",
    }
    return names.get(scheme, "the settings themselves")


def _redirect_uri(tenant: Tenant) -> _Findings:
    if tenant.redirect_uri is not None:
        yield Finding(
            "redirect URI",
            Verdict.OK,
            f"{tenant.redirect_uri} has to be registered at Bipsync, to the letter.",
            tenant=tenant.slug,
        )
        return
    path = flow.callback_path(tenant.slug)
    text = f"It is the site's own address, as the browser names it, and {path}"
    if "*" in settings.ALLOWED_HOSTS:
        yield Finding(
            "redirect URI",
            Verdict.WARNING,
            f"{text}. ALLOWED_HOSTS lets any host through.",
            "Set REDIRECT_URI, or name the site's hosts in ALLOWED_HOSTS.",
            tenant.slug,
        )
        return
    hosts = ", ".join(settings.ALLOWED_HOSTS) or "localhost"
    yield Finding(
        "redirect URI",
        Verdict.OK,
        f"{text}. Each of these hosts has to be registered at Bipsync with it: {hosts}.",
        tenant=tenant.slug,
    )


# --- Bipsync


def _endpoints(tenant: Tenant) -> _Findings:
    for check, url in {
        "authorization endpoint": tenant.authorize_url,
        "token endpoint": tenant.token_url,
        "API": f"{tenant.api_url}/v1/graphql",
    }.items():
        yield from _endpoint(tenant, check, url)


def _endpoint(tenant: Tenant, check: str, url: str) -> _Findings:
    try:
        response = exchange("GET", url, tenant=tenant, max_bytes=_MOST_BYTES)
    except ExchangeFailed as failed:
        text, next_step = _unreachable(url, failed.code)
        yield Finding(check, Verdict.ERROR, text, next_step, tenant.slug)
        return
    status = response.status_code
    if check == "API" and status == 403:
        yield Finding(
            check,
            Verdict.ERROR,
            "It answers 403: most likely this server's address is not on the allow-list.",
            "Have the address from which this server calls added to it at Bipsync.",
            tenant.slug,
        )
    elif status >= 500 or (check != "authorization endpoint" and 300 <= status < 400):
        yield Finding(
            check,
            Verdict.WARNING,
            f"It answers with status {status}.",
            "See whether Bipsync has an outage, and whether the address is right.",
            tenant.slug,
        )
    else:
        yield Finding(check, Verdict.OK, f"It answers (status {status}).", tenant=tenant.slug)
    if check == "token endpoint" and (date := response.headers.get("Date")):
        yield _provider_clock(tenant, date)


def _unreachable(url: str, code: str) -> tuple[str, str]:
    host = urlsplit(url).hostname or ""
    if code == "tls_error":
        return (
            f"The certificate of {host} is not accepted.",
            "If your network inspects TLS, name its certificate in CA_BUNDLE.",
        )
    if code == "timeout":
        return (
            f"{host} does not answer in time.",
            "See whether a firewall or proxy stands between this server and Bipsync.",
        )
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return f"The name {host} is not known.", "Check CLIENT, and this server's DNS."
    return (
        f"{host} gives no whole answer ({code}).",
        "See whether the address is right, and whether this server may call it.",
    )


def _provider_clock(tenant: Tenant, date: str) -> Finding:
    try:
        theirs = parsedate_to_datetime(date).astimezone(UTC)
    except ValueError:
        return Finding("clock", Verdict.SKIPPED, "Bipsync's date cannot be read.", "", tenant.slug)
    # The header is in whole seconds, and says when the answer was begun.
    apart = abs((theirs - datetime.now(UTC)).total_seconds()) - 1
    if apart <= tenant.leeway / 2:
        return Finding("clock", Verdict.OK, "Bipsync's clock and ours agree.", tenant=tenant.slug)
    is_too_much = apart > tenant.leeway
    return Finding(
        "clock",
        Verdict.ERROR if is_too_much else Verdict.WARNING,
        f"Bipsync's clock and ours are {apart:.0f} seconds apart, and LEEWAY is "
        f"{tenant.leeway:.0f}" + ("; sign-ins are refused." if is_too_much else "."),
        "Let this server keep its time by NTP.",
        tenant.slug,
    )


def _signing_keys(tenant: Tenant) -> _Findings:
    try:
        published, usable = keys.survey(tenant)
    except KeysUnavailable as error:
        yield Finding(
            "signing keys",
            Verdict.ERROR,
            str(error),
            "Nobody can sign in once the keys at hand are a day old. Check JWKS_URL.",
            tenant.slug,
        )
        return
    if not usable:
        yield Finding(
            "signing keys",
            Verdict.ERROR,
            f"Of {published} published keys none is of use.",
            "Check JWKS_URL. If it is right, ask Bipsync: it needs RS256 keys of 2048 bits.",
            tenant.slug,
        )
        return
    others = f", {published - usable} are passed over" if published > usable else ""
    yield Finding("signing keys", Verdict.OK, f"{usable} can be used{others}.", tenant=tenant.slug)


# --- this site


def _encryption() -> _Findings:
    canary = uuid.uuid4().hex
    if seal(canary, "doctor").unseal("doctor") != canary:
        raise ValueError
    survey = lifecycle.survey_keys()
    if survey.unreadable:
        yield Finding(
            "encryption",
            Verdict.ERROR,
            f"{len(survey.unreadable)} of {survey.total} rows cannot be decrypted.",
            "Put the key that encrypted them back into FIELD_ENCRYPTION_KEY; "
            "manage.py bipsync_rotate_keys --dry-run names them.",
        )
    elif survey.old:
        yield Finding(
            "encryption",
            Verdict.WARNING,
            f"{len(survey.old)} of {survey.total} rows are on an older key.",
            "Run manage.py bipsync_rotate_keys, then take the older key out.",
        )
    else:
        yield Finding(
            "encryption", Verdict.OK, f"All {survey.total} rows with tokens are on the newest key."
        )


def _database_clock() -> _Findings:
    rows = ContentType.objects.using(database()).annotate(now=DatabaseNow())
    theirs = rows.values_list("now", flat=True).first()
    if theirs is None:
        yield Finding("database clock", Verdict.SKIPPED, "The database is empty.")
        return
    apart = abs((theirs - timezone.now()).total_seconds())
    if apart <= _DATABASE_CLOCK_MAY_DIFFER:
        yield Finding("database clock", Verdict.OK, "The database's clock and ours agree.")
        return
    yield Finding(
        "database clock",
        Verdict.WARNING,
        f"The database's clock and ours are {apart:.0f} seconds apart.",
        "Let both servers keep their time by NTP.",
    )


def _cache() -> _Findings:
    key, value = f"bipsync_django.doctor.{uuid.uuid4().hex}", time.time()
    cache.set(key, value, 60)
    works = cache.get(key) == value
    cache.delete(key)
    name = settings.CACHES["default"]["BACKEND"].rpartition(".")[2]
    if not works:
        yield Finding(
            "cache",
            Verdict.WARNING,
            f"What is put into the default cache ({name}) is not there afterwards.",
            "Signing keys are fetched more often than needed. Look at CACHES.",
        )
    elif name == "LocMemCache":
        yield Finding(
            "cache",
            Verdict.WARNING,
            "Each process has a cache of its own.",
            "Use Redis, Memcached or the database where more than one process runs.",
        )
    else:
        yield Finding("cache", Verdict.OK, f"The default cache works ({name}).")


def _celery() -> _Findings:
    if not conf.get_settings().refresh_enabled:
        yield Finding("Celery", Verdict.SKIPPED, "Refreshing is switched off (REFRESH_ENABLED).")
        return
    try:
        with current_app.connection_for_write(connect_timeout=_BROKER_TIMEOUT) as connection:
            connection.ensure_connection(max_retries=1, timeout=_BROKER_TIMEOUT)
    except Exception as error:  # noqa: BLE001 - each transport has errors of its own
        yield Finding(
            "Celery",
            Verdict.WARNING,
            f"The broker cannot be reached ({type(error).__name__}).",
            "Start it; or, where cron runs manage.py bipsync_refresh, never mind.",
        )
        return
    answers = current_app.control.ping(timeout=_WORKERS_ANSWER_WITHIN)
    if answers:
        yield Finding("Celery", Verdict.OK, f"{len(answers)} worker(s) answer.")
        return
    yield Finding(
        "Celery",
        Verdict.WARNING,
        "The broker can be reached, and no worker answers.",
        "Start a worker and beat; or, where cron runs manage.py bipsync_refresh, never mind.",
    )


def _connections(slugs: set[str]) -> _Findings:
    for one in health.tenants():
        if one.tenant in slugs:
            yield from _connections_of(one)


def _connections_of(one: health.TenantHealth) -> _Findings:
    counts = ", ".join(
        f"{count} {status}"
        for status, count in one.by_status.items()
        if count or status != "unconfirmed"
    )
    yield Finding("connections", Verdict.OK, f"{counts}.".replace("_", " "), tenant=one.tenant)
    if one.held_back_until is not None:
        yield Finding(
            "calls to Bipsync",
            Verdict.ERROR,
            f"They are held back until {one.held_back_until:%H:%M:%S} UTC ({one.held_back_for}).",
            "docs/tokens.md says what each reason means; they go on by themselves afterwards.",
            one.tenant,
        )
    if one.failing:
        yield Finding(
            "refreshes",
            Verdict.WARNING,
            f"The last refresh of {one.failing} connections failed.",
            "They are tried again by themselves. The admin shows each one's last error.",
            one.tenant,
        )
    if one.overdue and conf.get_settings().refresh_enabled:
        yield Finding(
            "schedule",
            Verdict.ERROR,
            f"{one.overdue} refreshes have been due for more than a quarter of an hour.",
            "Beat or the workers do not run, or cron does not: see docs/signals-and-tasks.md.",
            one.tenant,
        )
