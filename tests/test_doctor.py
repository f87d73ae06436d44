"""``manage.py bipsync_doctor``: each illness is found, named, and shows no secret."""

import datetime
import io
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from celery import current_app
from cryptography.fernet import Fernet
from django.core.cache import cache
from django.core.cache.backends.locmem import LocMemCache
from django.core.management import CommandError, call_command
from django.utils import timezone

from bipsync_django import doctor, lifecycle
from bipsync_django.models import BipsyncToken, TenantState
from bipsync_django.testing import Answer, Html, SimulatedBipsync, Trickle
from tests.grants import connect, expire

pytestmark = pytest.mark.django_db(transaction=True)

CANARY = "canary-client-secret-4711"


class SharedCache(LocMemCache):
    """As far as its name tells, processes share it."""


@pytest.fixture(autouse=True)
def _a_site_that_is_well(bipsync: SimulatedBipsync, settings: Any) -> Iterator[None]:
    bipsync.client_secret = CANARY
    settings.BIPSYNC = {**settings.BIPSYNC, "CLIENT_SECRET": lambda: CANARY, "HTTP_TIMEOUT": 2}
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.SharedCache"}}
    settings.DEBUG = True
    settings.ALLOWED_HOSTS = ["portal.example"]
    yield
    cache.clear()


def findings(**options: Any) -> dict[str, dict[str, str]]:
    """What is found, by check."""
    out = io.StringIO()
    with suppress(CommandError):
        call_command("bipsync_doctor", "--json", stdout=out, **options)
    assert CANARY not in out.getvalue()
    document = json.loads(out.getvalue())
    assert document["version"] == 1
    found = {one["check"]: one for one in document["findings"]}
    for one in found.values():
        # Whoever hears of a problem hears what to do.
        assert bool(one["next_step"]) is (one["verdict"] in {"warning", "error"}), one
    return found


def verdicts(**options: Any) -> dict[str, str]:
    """The checks that are not well."""
    found = findings(**options)
    return {name: one["verdict"] for name, one in found.items() if one["verdict"] != "ok"}


@pytest.mark.usefixtures("database")
def test_a_site_that_is_well_is_told_so(bipsync: SimulatedBipsync) -> None:
    connect(bipsync)
    # The tests have a broker and no worker.
    assert verdicts() == {"Celery": "warning"}
    found = findings()
    assert "portal.example" in found["redirect URI"]["text"]
    assert "/bipsync/callback/" in found["redirect URI"]["text"]
    assert found["connections"]["text"] == "1 active, 0 needs sign in, 0 disconnected."
    assert found["encryption"]["text"] == "All 1 rows with tokens are on the newest key."
    assert "a callable" in found["client secret"]["text"]


def test_it_sends_nothing_secret_and_changes_nothing(bipsync: SimulatedBipsync) -> None:
    connect(bipsync)
    before = list(BipsyncToken.objects.values())
    bipsync.reset_calls()
    findings()
    assert {request.method for request in bipsync.requests} == {"GET"}
    for request in bipsync.requests:
        assert not request.form
        assert "Authorization" not in request.headers
        assert "Cookie" not in request.headers
    assert list(BipsyncToken.objects.values()) == before


def test_a_person_reads_it_with_verdicts_and_steps(bipsync: SimulatedBipsync) -> None:
    bipsync.fail("jwks", Html(503))
    out = io.StringIO()
    with pytest.raises(CommandError, match="1 of these need somebody"):
        call_command("bipsync_doctor", stdout=out, no_color=True)
    lines = out.getvalue().splitlines()
    place = next(n for n, line in enumerate(lines) if "signing keys" in line)
    assert lines[place].startswith("error    acme: signing keys: ")
    assert lines[place + 1].startswith("         → ")
    assert re.fullmatch(r"\d+ ok, 1 warning, 1 error, 0 skipped", lines[-1])
    out = io.StringIO()
    call_command("bipsync_doctor", "--offline", stdout=out, force_color=True)
    assert "\x1b[" in out.getvalue()


def test_offline_asks_nobody(bipsync: SimulatedBipsync) -> None:
    bipsync.reset_calls()
    assert verdicts(offline=True) == {"endpoints": "skipped", "Celery": "skipped"}
    assert not bipsync.calls


def test_wrong_settings_are_named_and_the_rest_is_left(settings: Any) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "LEEWAY": "x", "CLIENT_SECRE": CANARY}
    assert verdicts() == {
        "settings (bipsync_django.E001)": "error",
        "settings (bipsync_django.E002)": "error",
        "everything else": "skipped",
    }


def test_a_warning_alone_is_no_failure(settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["*"]
    call_command("bipsync_doctor", "--offline", stdout=io.StringIO())
    assert verdicts(offline=True)["redirect URI"] == "warning"


def test_a_fixed_redirect_uri_is_named(settings: Any) -> None:
    uri = "https://portal.example/bipsync/callback/"
    settings.BIPSYNC = {**settings.BIPSYNC, "REDIRECT_URI": uri}
    assert uri in findings(offline=True)["redirect URI"]["text"]


def test_with_debug_off_the_strict_checks_run_too(settings: Any) -> None:
    settings.DEBUG = False
    assert "settings (bipsync_django.E011)" in verdicts(offline=True)


def test_one_tenant_may_be_looked_at_alone(settings: Any) -> None:
    own = {k: v for k, v in settings.BIPSYNC.items() if k != "CLIENT"}
    del own["ALLOW_INSECURE_LOOPBACK"]
    settings.BIPSYNC = {
        "ALLOW_INSECURE_LOOPBACK": True,
        "TENANTS": {"acme": own, "globex": own},
    }
    found = findings(tenant="globex")
    assert {one["tenant"] for one in found.values()} == {"", "globex"}
    with pytest.raises(CommandError, match="no tenant 'nowhere'"):
        call_command("bipsync_doctor", "--tenant=nowhere", stdout=io.StringIO())


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("env:BIPSYNC_DOCTOR_TEST", "the environment"),
        (CANARY, "the settings themselves"),
    ],
)
def test_where_the_secret_comes_from_is_said_and_not_what_it_is(
    source: str, place: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIPSYNC_DOCTOR_TEST", CANARY)
    settings.BIPSYNC = {**settings.BIPSYNC, "CLIENT_SECRET": source}
    assert findings(offline=True)["client secret"]["text"] == f"It is read from {place}."


def test_a_secret_that_cannot_be_read(settings: Any, tmp_path: Path) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "CLIENT_SECRET": f"file:{tmp_path / 'none'}"}
    assert verdicts(offline=True)["client secret"] == "error"


# --- Bipsync


def test_nobody_there(bipsync: SimulatedBipsync) -> None:
    bipsync.stop()
    assert verdicts() == {
        "authorization endpoint": "error",
        "token endpoint": "error",
        "API": "error",
        "signing keys": "error",
        "Celery": "warning",
    }


def test_a_name_that_nobody_knows(settings: Any) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "API_URL": "https://acme-api.invalid"}
    found = findings()
    assert found["API"]["text"] == "The name acme-api.invalid is not known."
    assert "DNS" in found["API"]["next_step"]


def test_a_server_that_does_not_speak_tls(bipsync: SimulatedBipsync, settings: Any) -> None:
    address = bipsync.url.replace("http://", "https://")
    settings.BIPSYNC = {**settings.BIPSYNC, "API_URL": address}
    found = findings()
    assert found["API"]["verdict"] == "error"
    assert "CA_BUNDLE" in found["API"]["next_step"]


def test_a_server_that_takes_too_long(bipsync: SimulatedBipsync, settings: Any) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "HTTP_TIMEOUT": 0.2}
    bipsync.fail("api", Trickle(1))
    assert "does not answer in time" in findings()["API"]["text"]


def test_an_address_that_is_not_on_the_allow_list(bipsync: SimulatedBipsync) -> None:
    bipsync.fail("api", Answer(403))
    found = findings()["API"]
    assert found["verdict"] == "error"
    assert "allow-list" in found["text"]


@pytest.mark.parametrize("how", [Html(503), Answer(307, headers={"Location": "https://x.invalid"})])
def test_an_answer_that_is_none(bipsync: SimulatedBipsync, how: Any) -> None:
    bipsync.fail("token", how)
    found = findings()["token endpoint"]
    assert (found["verdict"], str(how.status) in found["text"]) == ("warning", True)


@pytest.mark.parametrize(
    ("seconds", "verdict"), [(0, "ok"), (20, "warning"), (-20, "warning"), (90, "error")]
)
def test_a_clock_that_is_wrong(bipsync: SimulatedBipsync, seconds: int, verdict: str) -> None:
    theirs = timezone.now() + datetime.timedelta(seconds=seconds)
    bipsync.fail("token", Answer(405, headers={"Date": format_datetime(theirs, usegmt=True)}))
    assert findings()["clock"]["verdict"] == verdict


def test_a_date_that_is_none(bipsync: SimulatedBipsync) -> None:
    bipsync.fail("token", Answer(405, headers={"Date": "yesterday"}))
    assert findings()["clock"]["verdict"] == "skipped"


USELESS: list[Any] = [b"<html>", {"keys": [{"kty": "EC", "kid": "1"}]}, {"keys": []}]


@pytest.mark.parametrize("document", USELESS)
def test_keys_that_are_of_no_use(bipsync: SimulatedBipsync, document: Any) -> None:
    bipsync.fail("jwks", Answer(200, document))
    assert findings()["signing keys"]["verdict"] == "error"


def test_keys_that_are_passed_over_are_counted(bipsync: SimulatedBipsync) -> None:
    document = {"keys": [*bipsync.keys.jwks()["keys"], {"kty": "EC", "kid": "1"}]}
    bipsync.fail("jwks", Answer(200, document))
    assert findings()["signing keys"]["text"] == "1 can be used, 1 are passed over."


# --- this site


def test_rows_that_no_key_opens_or_an_older_one(bipsync: SimulatedBipsync, settings: Any) -> None:
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    settings.FIELD_ENCRYPTION_KEY = old
    connect(bipsync)
    settings.FIELD_ENCRYPTION_KEY = [new, old]
    assert verdicts(offline=True)["encryption"] == "warning"
    settings.FIELD_ENCRYPTION_KEY = new
    assert verdicts(offline=True)["encryption"] == "error"


def test_a_database_whose_clock_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    later = timezone.now() + datetime.timedelta(minutes=5)
    monkeypatch.setattr("bipsync_django.doctor.timezone.now", lambda: later)
    assert verdicts(offline=True)["database clock"] == "warning"


class ForgetfulCache(LocMemCache):
    """Takes everything and keeps nothing."""

    def set(self, *args: Any, **kwargs: Any) -> None:
        return None


class BrokenCache(LocMemCache):
    """Its errors show its address, with the password."""

    def set(self, *args: Any, **kwargs: Any) -> None:
        raise OSError(f"redis://:{CANARY}@cache")


@pytest.mark.parametrize(
    ("backend", "verdict"),
    [
        (f"{__name__}.ForgetfulCache", "warning"),
        (f"{__name__}.BrokenCache", "error"),
        ("django.core.cache.backends.locmem.LocMemCache", "warning"),
    ],
)
def test_a_cache_that_is_of_little_use(settings: Any, backend: str, verdict: str) -> None:
    settings.CACHES = {"default": {"BACKEND": backend}}
    assert verdicts(offline=True)["cache"] == verdict


def test_a_broker_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(f"amqp://portal:{CANARY}@broker")

    monkeypatch.setattr(current_app, "connection_for_write", fail)
    found = findings()["Celery"]
    assert found["verdict"] == "warning"
    assert "OSError" in found["text"]


def test_a_worker_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current_app.control, "ping", lambda timeout: [{"worker": "pong"}])
    assert findings()["Celery"]["text"] == "1 worker(s) answer."


def test_refreshing_that_is_switched_off(settings: Any) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "REFRESH_ENABLED": False}
    assert findings()["Celery"]["verdict"] == "skipped"


def test_connections_that_need_somebody(bipsync: SimulatedBipsync) -> None:
    token = expire(connect(bipsync), seconds_ago=3600)
    assert verdicts(offline=True)["schedule"] == "error"
    BipsyncToken.objects.update(attempt=2)
    assert verdicts(offline=True)["refreshes"] == "warning"
    until = timezone.now() + datetime.timedelta(minutes=3)
    TenantState.objects.update_or_create(
        tenant="acme",
        defaults={"breaker_until": until, "configuration_error": "invalid_client"},
    )
    found = findings(offline=True)["calls to Bipsync"]
    assert (found["verdict"], "invalid_client" in found["text"]) == ("error", True)
    lifecycle.disconnect(token)
    assert findings(offline=True)["connections"]["text"].endswith("1 disconnected.")


@pytest.mark.parametrize("database", ["default"])
def test_a_database_that_is_empty_has_no_clock_to_look_at(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nobody:
        objects = BipsyncToken.objects

    monkeypatch.setattr(doctor, "ContentType", Nobody)
    assert verdicts(offline=True)["database clock"] == "skipped"


def test_what_cannot_be_examined_is_an_error_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> Any:
        raise RuntimeError(CANARY)

    monkeypatch.setattr(lifecycle, "survey_keys", fail)
    found = findings(offline=True)
    assert found["encryption"]["text"] == "This could not be examined (RuntimeError)."
    assert found["connections"]["verdict"] == "ok"
