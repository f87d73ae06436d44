"""``check --deploy``: each finding appears when its cause is there, and goes with it."""

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from celery import current_app
from cryptography.fernet import Fernet
from django.core import checks
from django.urls import get_resolver

from bipsync_django import decorators, error_reports
from bipsync_django.backends import BipsyncBackend
from bipsync_django.decorators import bipsync_token_required
from bipsync_django.schedule import BEAT_SCHEDULE


class Colleagues(BipsyncBackend):
    def is_allowed(self, tenant: Any, claims: Any, user: Any) -> bool:
        return False


@pytest.fixture(autouse=True)
def _a_site_that_is_well(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings.FIELD_ENCRYPTION_KEY = Fernet.generate_key().decode()
    settings.SESSION_COOKIE_SECURE = True
    settings.DEFAULT_EXCEPTION_REPORTER_FILTER = "bipsync_django.error_reports.ReporterFilter"
    settings.CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cache"}
    }
    settings.BIPSYNC = {
        **settings.BIPSYNC,
        "CLIENT_SECRET": "env:BIPSYNC_TEST_SECRET",
        "ALLOW_INSECURE_LOOPBACK": False,
        "ALLOWED_EMAIL_DOMAINS": ["acme.example"],
    }
    monkeypatch.setenv("BIPSYNC_TEST_SECRET", "x")
    # The test site's views note their scopes as they are imported: before, and not meanwhile.
    get_resolver().url_patterns  # noqa: B018
    monkeypatch.setattr(decorators, "_scopes_of_views", {"users:read"})
    before = current_app.conf.beat_schedule, current_app.conf.task_always_eager
    current_app.conf.beat_schedule = {**BEAT_SCHEDULE}
    yield
    current_app.conf.beat_schedule, current_app.conf.task_always_eager = before


def found() -> list[str]:
    messages = checks.run_checks(include_deployment_checks=True, databases=[])
    ids = [message.id or "" for message in messages]
    return [id_.removeprefix("bipsync_django.") for id_ in ids if id_.startswith("bipsync_django.")]


def change(settings: Any, **changes: Any) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, **changes}


def test_a_site_that_is_well_has_nothing_to_mend() -> None:
    assert found() == []


def test_without_deploy_none_of_it_is_said(settings: Any) -> None:
    settings.SESSION_COOKIE_SECURE = False
    change(settings, ALLOW_INSECURE_LOOPBACK=True)
    ids = [message.id or "" for message in checks.run_checks(databases=[])]
    assert not any(id_.startswith("bipsync_django.") for id_ in ids)


def test_e011_plain_http(settings: Any) -> None:
    change(settings, ALLOW_INSECURE_LOOPBACK=True)
    assert found() == ["E011"]


def test_w018_nobody_for_emergencies(settings: Any) -> None:
    change(settings, SSO_ONLY=True)
    assert found() == ["W018"]
    change(settings, BREAK_GLASS_USERS=["emergency"])
    assert found() == []
    # Nobody takes their password: ours does not.
    settings.AUTHENTICATION_BACKENDS = ["bipsync_django.backends.BipsyncBackend"]
    assert found() == ["W018"]


def test_w019_errors_are_reported_in_full(settings: Any) -> None:
    settings.DEFAULT_EXCEPTION_REPORTER_FILTER = error_reports.STOCK
    assert found() == ["W019"]
    settings.DEFAULT_EXCEPTION_REPORTER_FILTER = "site.Filter"
    assert found() == []


def test_w011_a_secret_in_the_settings(settings: Any) -> None:
    change(settings, CLIENT_SECRET="s3cret")
    assert found() == ["W011"]
    messages = checks.run_checks(include_deployment_checks=True, databases=[])
    assert "s3cret" not in repr(messages)
    change(settings, CLIENT_SECRET=lambda: "s3cret")
    assert found() == []


@pytest.mark.parametrize(
    "raw", [b"0" * 32, b"ab" * 16, b"correct horse battery staple 1234"[:32], bytes(range(4)) * 8]
)
def test_e012_a_key_that_can_be_guessed(settings: Any, raw: bytes) -> None:
    weak = base64.urlsafe_b64encode(raw).decode()
    for keys in (weak, [Fernet.generate_key(), weak], weak.encode()):
        settings.FIELD_ENCRYPTION_KEY = keys
        assert found() == ["E012"]


def test_e012_a_key_that_is_used_elsewhere(settings: Any) -> None:
    settings.SECRET_KEY = settings.FIELD_ENCRYPTION_KEY
    assert found() == ["E012"]
    settings.SECRET_KEY = "another"
    settings.SECRET_KEY_FALLBACKS = [settings.FIELD_ENCRYPTION_KEY]
    assert found() == ["E012"]


def test_e012_random_keys_are_not_taken_for_weak_ones(settings: Any) -> None:
    settings.FIELD_ENCRYPTION_KEY = [Fernet.generate_key() for _ in range(2000)]
    assert found() == []


@pytest.mark.parametrize("backend", ["locmem.LocMemCache", "dummy.DummyCache"])
def test_w012_a_cache_for_each_process(settings: Any, backend: str) -> None:
    settings.CACHES = {"default": {"BACKEND": f"django.core.cache.backends.{backend}"}}
    assert found() == ["W012"]


def test_w013_the_sessions_cookie(settings: Any) -> None:
    settings.SESSION_COOKIE_SECURE = False
    assert found() == ["W013"]


def test_w014_everybody_gets_an_account(settings: Any) -> None:
    change(settings, ALLOWED_EMAIL_DOMAINS=None)
    assert found() == ["W014"]
    change(settings, CREATE_USERS=False)
    assert found() == []
    change(settings, CREATE_USERS=True)
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.Colleagues"]
    assert found() == []


def test_w015_nothing_refreshes(settings: Any) -> None:
    current_app.conf.beat_schedule = {"other": {"task": "portal.tasks.nightly"}}
    assert found() == ["W015"]
    change(settings, REFRESH_ENABLED=False)
    assert found() == []


def test_w016_tasks_run_where_they_are_called() -> None:
    current_app.conf.task_always_eager = True
    assert found() == ["W016"]


def test_w017_more_is_asked_for_than_is_used(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(settings, SCOPES=["users:read", "research:read"])
    assert found() == ["W017"]

    @bipsync_token_required(scopes=["research:read"])
    def view(request: Any) -> None: ...

    assert found() == []
    monkeypatch.setattr(decorators, "_scopes_of_views", set())
    assert found() == [], "a site that names none is not told"


def test_w020_sessions_in_signed_cookies(settings: Any) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    assert found() == ["W020"]
