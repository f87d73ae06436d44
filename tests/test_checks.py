"""``manage.py check`` says what is wrong before anyone meets it in a browser."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core import checks
from django.core.checks import CheckMessage
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.urls import URLPattern

from bipsync_django import decorators
from bipsync_django.backends import BipsyncBackend
from bipsync_django.decorators import bipsync_token_required
from bipsync_django.middleware import BipsyncSessionMiddleware

# Django 6.1's "check" looks at every database.
pytestmark = pytest.mark.django_db(databases="__all__")

urlpatterns: list[URLPattern] = []


MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"


class OwnBackend(BipsyncBackend):
    """A site's own."""


def found() -> list[CheckMessage]:
    """Return what Django's own run of all checks finds of ours."""
    return [
        message
        for message in checks.run_checks(databases=[])
        if (message.id or "").startswith("bipsync_django.")
    ]


def only() -> CheckMessage:
    (message,) = found()
    return message


def change(settings: Any, **changes: Any) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, **changes}


def test_a_site_that_is_set_up_has_nothing_to_mend() -> None:
    assert found() == []


def test_e001_a_wrong_value_stops_the_site(settings: Any) -> None:
    change(settings, LEEWAY="s3cret")
    message = only()
    assert (message.id, message.level) == ("bipsync_django.E001", checks.ERROR)
    assert "BIPSYNC['LEEWAY']" in message.msg
    assert message.hint == "Set it to seconds of clock difference to forgive, 0 to 300."
    with pytest.raises(SystemCheckError, match="E001") as caught:
        call_command("check")
    assert "s3cret" not in str(caught.value)


def test_e001_a_missing_key_and_a_missing_dict(settings: Any) -> None:
    settings.BIPSYNC = {key: value for key, value in settings.BIPSYNC.items() if key != "CLIENT"}
    assert only().id == "bipsync_django.E001"
    settings.BIPSYNC = None
    assert only().id == "bipsync_django.E001"
    del settings.BIPSYNC
    assert "BIPSYNC is missing" in only().msg


def test_e002_an_unknown_key_names_the_nearest(settings: Any) -> None:
    change(settings, SCOPS=["users:read"])
    message = only()
    assert (message.id, message.level) == ("bipsync_django.E002", checks.ERROR)
    assert message.hint == "Did you mean 'SCOPES'?"


def test_all_that_is_wrong_is_found_at_once(settings: Any) -> None:
    change(settings, CLIENT="A", LEEWAY=-1, NOVELTY=True)
    assert [message.id for message in found()] == [
        "bipsync_django.E002",
        "bipsync_django.E001",
        "bipsync_django.E001",
    ]


def test_e003_claims_that_fill_a_field_which_users_do_not_have(settings: Any) -> None:
    change(settings, CLAIMS={"first_name": "given_name", "department": "dept"})
    message = only()
    assert (message.id, message.level) == ("bipsync_django.E003", checks.ERROR)
    assert "'department'" in message.msg
    assert "auth.User" in message.msg
    change(settings, CLAIMS={"first_name": "given_name", "email": None})
    assert found() == []


def test_e004_a_site_without_our_backend_lets_nobody_in(settings: Any) -> None:
    settings.AUTHENTICATION_BACKENDS = [MODEL_BACKEND]
    message = only()
    assert (message.id, message.level) == ("bipsync_django.E004", checks.ERROR)
    assert "bipsync_django.backends.BipsyncBackend" in (message.hint or "")
    settings.AUTHENTICATION_BACKENDS = [MODEL_BACKEND, f"{__name__}.OwnBackend"]
    assert found() == []


def test_e004_a_backend_that_cannot_be_imported_is_named(settings: Any) -> None:
    settings.AUTHENTICATION_BACKENDS = ["bipsync_django.backend.BipsyncBackend"]
    message = only()
    assert message.id == "bipsync_django.E004"
    assert "bipsync_django.backend.BipsyncBackend" in message.msg


def test_e007_passwords_must_not_go_past_sso_only(settings: Any) -> None:
    settings.AUTHENTICATION_BACKENDS = [MODEL_BACKEND, f"{__name__}.OwnBackend"]
    change(settings, SSO_ONLY=True)
    assert only().id == "bipsync_django.E007"
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.OwnBackend", MODEL_BACKEND]
    assert found() == []


def test_e007_is_said_whatever_else_is_wrong(settings: Any) -> None:
    settings.AUTHENTICATION_BACKENDS = [MODEL_BACKEND, f"{__name__}.OwnBackend"]
    settings.LOGIN_URL, settings.ROOT_URLCONF = "https://sso.example/login", __name__
    change(settings, SSO_ONLY=True)
    assert {message.id for message in found()} == {"bipsync_django.E007", "bipsync_django.W001"}


def test_w001_the_urls_have_to_be_included(settings: Any) -> None:
    settings.LOGIN_URL = "https://sso.example/login"
    settings.ROOT_URLCONF = __name__
    message = only()
    assert (message.id, message.level) == ("bipsync_django.W001", checks.WARNING)
    assert 'include("bipsync_django.urls")' in (message.hint or "")


# --- the encryption key, without which nothing can be imported


def start(tmp_path: Path, line: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "bare_settings.py").write_text(
        "SECRET_KEY = 'x' * 50\n"
        "INSTALLED_APPS = ['django.contrib.auth', 'django.contrib.contenttypes',"
        " 'bipsync_django']\n"
        "BIPSYNC = {'CLIENT': 'acme', 'CLIENT_ID': 'i', 'CLIENT_SECRET': 's', 'SCOPES': ['a']}\n"
        "AUTHENTICATION_BACKENDS = ['bipsync_django.backends.BipsyncBackend']\n"
        "SILENCED_SYSTEM_CHECKS = ['bipsync_django.W001']\n"
        "ROOT_URLCONF = 'bare_settings'\n"
        "urlpatterns = []\n"
        f"{line}\n"
    )
    return subprocess.run(
        [sys.executable, "-m", "django", "check"],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "bare_settings",
            "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)]),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "line",
    [
        "",
        "FIELD_ENCRYPTION_KEY = None",
        "FIELD_ENCRYPTION_KEY = ''",
        "FIELD_ENCRYPTION_KEY = 's3cret-too-short'",
        "FIELD_ENCRYPTION_KEY = []",
    ],
    ids=["missing", "None", "empty", "malformed", "no keys"],
)
def test_without_an_encryption_key_django_does_not_start_and_says_how_to_make_one(
    line: str, tmp_path: Path
) -> None:
    process = start(tmp_path, line)
    assert process.returncode != 0
    last = process.stderr.strip().splitlines()[-1]
    assert "ConfigurationError: Set FIELD_ENCRYPTION_KEY to a Fernet key" in last
    assert "Fernet.generate_key()" in last
    assert "s3cret" not in process.stderr + process.stdout


def test_with_an_encryption_key_django_starts(tmp_path: Path) -> None:
    key = "dGVzdC1vbmx5LWtleS10ZXN0LW9ubHkta2V5LTEyMzQ="
    for line in (f"FIELD_ENCRYPTION_KEY = {key!r}", f"FIELD_ENCRYPTION_KEY = [{key!r}]"):
        process = start(tmp_path, line)
        assert process.returncode == 0, process.stderr


def test_a_client_secret_that_cannot_be_read_is_a_warning(settings: Any) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "CLIENT_SECRET": "env:THERE_IS_NO_SUCH_VARIABLE"}
    (warning,) = found()
    assert (warning.id, warning.level) == ("bipsync_django.W002", checks.WARNING)
    assert "THERE_IS_NO_SUCH_VARIABLE" in warning.msg


def test_e003_rights_need_fields_that_are_there(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bipsync_django import checks as own

    change(settings, STAFF={"a": "b"}, SUPERUSER={"a": "b"}, GROUPS={"a": {"b": "c"}})
    assert found() == []
    monkeypatch.setattr(own, "has_field", lambda name: name == "is_staff")
    assert [message.id for message in found()] == ["bipsync_django.E003"] * 2
    assert {message.msg.split("'")[1] for message in found()} == {"SUPERUSER", "GROUPS"}


@pytest.mark.parametrize("key", ["USER_RESOLVER", "PREPARE_CONNECTION"])
@pytest.mark.parametrize("named", ["portal.nowhere.find", "tests.test_checks.MODEL_BACKEND"])
def test_e005_a_function_that_cannot_be_called(settings: Any, key: str, named: str) -> None:
    change(settings, **{key: named})
    message = only()
    assert (message.id, message.level) == ("bipsync_django.E005", checks.ERROR)
    assert named in message.msg
    assert key in message.msg


@pytest.mark.parametrize("key", ["USER_RESOLVER", "PREPARE_CONNECTION"])
@pytest.mark.parametrize("named", [None, found, "tests.test_checks.found"])
def test_e005_is_quiet_about_one_that_can(settings: Any, key: str, named: Any) -> None:
    change(settings, **{key: named})
    assert found() == []


def test_w004_each_of_several_tenants_has_its_own_callback(settings: Any) -> None:
    own = {"CLIENT_ID": "portal", "CLIENT_SECRET": "portal-secret"}

    def configure(acme: str | None, globex: str | None) -> None:
        tenants = {
            slug: own if uri is None else {**own, "REDIRECT_URI": f"https://portal.example{uri}"}
            for slug, uri in (("acme", acme), ("globex", globex))
        }
        settings.BIPSYNC = {"SCOPES": ["users:read"], "TENANTS": tenants}

    for right in ((None, None), ("/x/callback/", "/x/callback/globex/"), ("/callback/acme/", None)):
        configure(*right)
        assert found() == []
    configure("/callback/globex/", "/callback/")
    assert [message.id for message in found()] == ["bipsync_django.W004"] * 2
    change(settings, TENANTS={"acme": {**own, "REDIRECT_URI": "https://portal.example/other/"}})
    assert found() == [], "a single tenant may have any"


def test_w002_names_the_tenant_whose_secret_cannot_be_read(settings: Any) -> None:
    own = {"CLIENT_ID": "portal", "CLIENT_SECRET": "portal-secret"}
    missing = {**own, "CLIENT_SECRET": "env:NOT_THERE_4711"}
    settings.BIPSYNC = {"SCOPES": ["users:read"], "TENANTS": {"acme": own, "globex": missing}}
    message = only()
    assert message.id == "bipsync_django.W002"
    assert "globex" in message.msg


@pytest.mark.parametrize(
    ("scope", "hint"),
    [
        ("user:read", "Write 'users:read', if"),
        ("research:raed", "Write 'research:read', if"),
        ("rest_api:fields:reads", "Write 'rest_api:fields:read', if"),
        ("xyz", "Bipsync documents: attachments:read"),
    ],
)
@pytest.mark.parametrize("key", ["SCOPES", "SERVICE_SCOPES"])
def test_w008_a_scope_that_is_misspelt(settings: Any, key: str, scope: str, hint: str) -> None:
    change(settings, **{key: ["users:read", scope]})
    message = only()
    assert message.id == "bipsync_django.W008"
    assert f"{key} of acme names the scope {scope!r}" in message.msg
    assert hint in str(message.hint)


def test_w008_a_scope_that_a_view_misspells(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decorators, "_scopes_of_views", {"users:read"})
    assert found() == []
    bipsync_token_required(scopes=["reserch:read"])
    message = only()
    assert "@bipsync_token_required names the scope 'reserch:read'" in message.msg
    assert "Write 'research:read'" in str(message.hint)


def test_w008_a_team_is_no_misspelling(settings: Any) -> None:
    change(settings, SERVICE_SCOPES=["team_68b993fa85d14160d4030391", "rest_api:write"])
    assert found() == []


# --- the middleware and the way to sign in

OURS = "bipsync_django.middleware.BipsyncSessionMiddleware"
AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
LOGIN_REQUIRED = "django.contrib.auth.middleware.LoginRequiredMiddleware"


@pytest.mark.parametrize(
    ("middleware", "wrong"),
    [
        ([AUTHENTICATION, OURS], []),
        ([AUTHENTICATION, OURS, LOGIN_REQUIRED], []),
        ([AUTHENTICATION, "tests.test_checks.OwnMiddleware"], []),
        ([AUTHENTICATION], ["bipsync_django.W005"]),
        ([OURS, AUTHENTICATION], ["bipsync_django.E006"]),
        ([AUTHENTICATION, LOGIN_REQUIRED, OURS], ["bipsync_django.E006"]),
        (["nowhere.Middleware", AUTHENTICATION, OURS], []),
    ],
)
def test_e006_w005_the_middleware_has_its_place(
    settings: Any, middleware: list[str], wrong: list[str]
) -> None:
    settings.MIDDLEWARE = middleware
    assert [message.id for message in found()] == wrong


class OwnMiddleware(BipsyncSessionMiddleware):
    """A site's own."""


@pytest.mark.parametrize(
    ("url", "is_right"),
    [
        ("bipsync:login", True),
        ("/greeting/", True),
        ("https://sso.example/login", True),
        ("/accounts/login/", False),
        ("nowhere", False),
    ],
)
def test_w006_the_login_url_leads_somewhere(settings: Any, url: str, is_right: bool) -> None:
    settings.LOGIN_URL = url
    assert [message.id for message in found()] == ([] if is_right else ["bipsync_django.W006"])
