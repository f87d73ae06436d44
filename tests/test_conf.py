"""The ``BIPSYNC`` dict becomes typed settings, or sentences that say what to change."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from bipsync_django import conf
from bipsync_django.conf import get_settings, get_tenant, is_loopback, is_secure_url, problems
from bipsync_django.exceptions import BipsyncError, ConfigurationError

MINIMAL: dict[str, Any] = {
    "CLIENT": "acme",
    "CLIENT_ID": "portal",
    "CLIENT_SECRET": "portal-secret",
    "SCOPES": ["users:read"],
}


def configured(settings: Any, **changes: Any) -> None:
    settings.BIPSYNC = {**MINIMAL, **changes}


# --- defaults


def test_everything_follows_from_the_client(settings: Any) -> None:
    configured(settings)
    tenant = get_tenant()
    assert dataclasses.asdict(tenant) == {
        "slug": "acme",
        "client_id": "portal",
        "client_secret_source": "portal-secret",
        "scopes": ("users:read",),
        "web_url": "https://acme.bipsync.com",
        "authorize_url": "https://acme.bipsync.com/oauth/authorize",
        "token_url": "https://acme-api.bipsync.com/v1/oauth/token",
        "jwks_url": "https://acme-api.bipsync.com/v1/oauth/jwks",
        "api_url": "https://acme-api.bipsync.com",
        "redirect_uri": None,
        "audience": "portal",
        "issuer": None,
        "leeway": 30.0,
        "http_timeout": 10.0,
        "ca_bundle": None,
        "allow_insecure_loopback": False,
        "claims": {},
    }
    assert tenant.client_secret == "portal-secret"
    found = get_settings()
    assert dict(found.tenants) == {"acme": tenant}
    assert (found.create_users, found.refresh_enabled, found.refresh_ahead) == (True, True, 600)


def test_every_key_changes_its_setting(settings: Any, tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("")
    claims = {"first_name": "profile.given_name", "last_name": None, "email": len}
    configured(
        settings,
        SCOPES=("users:read", "groups:read", "users:read"),
        AUTHORIZE_URL="https://login.example/authorize",
        TOKEN_URL="https://api.example/token",
        JWKS_URL="https://api.example/jwks",
        API_URL="https://api.example/",
        REDIRECT_URI="https://portal.example/callback/",
        AUDIENCE="aud",
        ISSUER="https://issuer",
        LEEWAY=0,
        HTTP_TIMEOUT=2,
        CA_BUNDLE=bundle,
        ALLOW_INSECURE_LOOPBACK=True,
        CLAIMS=claims,
        CREATE_USERS=False,
        REFRESH_ENABLED=False,
        REFRESH_AHEAD=60,
        KEEP_ALIVE=None,
        DEPLOYMENT="production ",
        SESSION_CHECK_INTERVAL=5,
        KEEP_EVENTS=604800,
    )
    tenant = get_tenant("acme")
    assert tenant.scopes == ("users:read", "groups:read")
    assert tenant.authorize_url == "https://login.example/authorize"
    assert tenant.token_url == "https://api.example/token"
    assert tenant.jwks_url == "https://api.example/jwks"
    assert tenant.api_url == "https://api.example"
    assert tenant.redirect_uri == "https://portal.example/callback/"
    assert (tenant.audience, tenant.issuer) == ("aud", "https://issuer")
    assert (tenant.leeway, tenant.http_timeout) == (0, 2)
    assert tenant.ca_bundle == str(bundle)
    assert tenant.allow_insecure_loopback
    assert tenant.claims == claims
    found = get_settings()
    assert (found.create_users, found.refresh_enabled, found.refresh_ahead) == (False, False, 60)
    assert (found.keep_alive, found.deployment) == (None, "production")
    assert (found.session_check_interval, found.keep_events) == (5, 604800)
    # Every key is tried here, so that none is accepted and then forgotten.
    assert set(settings.BIPSYNC) == set(conf._KEYS)


def test_the_token_and_key_urls_follow_the_api_url(settings: Any) -> None:
    configured(settings, API_URL="https://api.example/base/")
    assert get_tenant().token_url == "https://api.example/base/v1/oauth/token"
    assert get_tenant().jwks_url == "https://api.example/base/v1/oauth/jwks"


def test_a_tenant_does_not_show_its_secret(settings: Any) -> None:
    configured(settings)
    assert "portal-secret" not in repr(get_tenant())
    assert "portal-secret" not in repr(get_settings())
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_tenant().slug = "globex"  # type: ignore[misc]


def test_loopback_over_http_follows_debug(settings: Any) -> None:
    configured(settings)
    assert not get_tenant().allow_insecure_loopback
    settings.DEBUG = True
    assert get_tenant().allow_insecure_loopback
    configured(settings, ALLOW_INSECURE_LOOPBACK=False)
    assert not get_tenant().allow_insecure_loopback


def test_settings_are_read_anew_when_they_change(settings: Any) -> None:
    configured(settings)
    assert get_tenant() is get_tenant()
    with override_settings(BIPSYNC={**MINIMAL, "CLIENT": "globex"}):
        assert get_tenant().slug == "globex"
    assert get_tenant().slug == "acme"
    before = get_tenant()
    settings.LANGUAGE_CODE = "de"
    assert get_tenant() is before


def test_a_tenant_is_found_by_name_or_alone(settings: Any) -> None:
    configured(settings)
    assert get_tenant() is get_tenant("acme")
    for slug in ("globex", "", "ACME"):
        with pytest.raises(ConfigurationError, match="it has: acme"):
            get_tenant(slug)


# --- what is wrong


def only_problem() -> conf.Problem:
    (problem,) = problems()
    return problem


def test_right_settings_have_no_problems(settings: Any) -> None:
    configured(settings)
    assert problems() == []


@pytest.mark.parametrize("value", [None, [], "acme", (("CLIENT", "acme"),)])
def test_the_setting_has_to_be_a_dict(value: object, settings: Any) -> None:
    settings.BIPSYNC = value
    assert only_problem().key == "BIPSYNC"
    with pytest.raises(ConfigurationError, match=r'BIPSYNC = \{"CLIENT"'):
        get_tenant()


def test_the_setting_has_to_be_there(settings: Any) -> None:
    del settings.BIPSYNC
    assert "missing" in only_problem().message
    with pytest.raises(ImproperlyConfigured):
        get_settings()
    with pytest.raises(BipsyncError):
        get_settings()


@pytest.mark.parametrize("name", MINIMAL)
def test_a_missing_key_is_named_with_what_to_write(name: str, settings: Any) -> None:
    settings.BIPSYNC = {key: value for key, value in MINIMAL.items() if key != name}
    problem = only_problem()
    assert problem.key == name
    assert problem.message == f"BIPSYNC[{name!r}] is missing."
    assert problem.hint.startswith("Set it to")
    with pytest.raises(ConfigurationError, match=name):
        get_tenant()


@pytest.mark.parametrize(
    ("typo", "nearest"),
    [
        ("CLIENT_SECERT", "CLIENT_SECRET"),
        ("client_id", "CLIENT_ID"),
        ("SCOPE", "SCOPES"),
        ("TIMEOUT", "HTTP_TIMEOUT"),
        ("TOKEN_URI", "TOKEN_URL"),
        ("REFRESH_AHED", "REFRESH_AHEAD"),
        ("CABUNDLE", "CA_BUNDLE"),
    ],
)
def test_an_unknown_key_gets_the_nearest_one_named(typo: str, nearest: str, settings: Any) -> None:
    configured(settings, **{typo: "s3cret-value"})
    problem = only_problem()
    assert problem.unknown
    assert repr(typo) in problem.message
    assert problem.hint == f"Did you mean {nearest!r}?"


@pytest.mark.parametrize("key", ["zzzzzzzzzz", 5, b"\xff", ("q", "q")])
def test_an_unknown_key_that_resembles_none_gets_all_of_them(key: Any, settings: Any) -> None:
    settings.BIPSYNC = {**MINIMAL, key: 1}
    problem = only_problem()
    assert problem.unknown
    assert "CLIENT_SECRET" in problem.hint
    assert "REFRESH_AHEAD" in problem.hint


WRONG: dict[str, list[Any]] = {
    "CLIENT": ["", "Acme", "acme.bipsync.com", "a/b", "-a", "a-", "a" * 64, "a\n", None, 5, "é"],
    "CLIENT_ID": ["", "  ", None, 5, b"portal"],
    "CLIENT_SECRET": ["", " ", None, 5, b"secret", ["secret"]],
    "SCOPES": ["users:read", [], (), None, [""], ["a b"], ["é"], [5], {"a": 1}, ["a", 'b"']],
    "AUTHORIZE_URL": ["", None, "http://acme.example/", "acme.example", "javascript:x", 5],
    "TOKEN_URL": ["http://127.0.0.1/", "https://user:pw@acme.example/", "https://acme.example/#x"],
    "JWKS_URL": ["file:///etc/passwd", "https://", "https://acme.example:port/"],
    "API_URL": ["http://localhost:8000", [], "//acme.example"],
    "REDIRECT_URI": ["/bipsync/callback/", None, "https://@portal.example/"],
    "AUDIENCE": ["", " ", None, [], ["portal"], 5],
    "ISSUER": ["", " ", 5, ["a"]],
    "LEEWAY": [-1, 301, "30", None, True, float("nan"), float("inf"), 10**400],
    "HTTP_TIMEOUT": [0, 0.05, 10.1, -1, "5", None, True, (3, 5), float("nan")],
    "CA_BUNDLE": ["", "/missing/ca.pem", "/", 5, b"/x", True, "a\x00b", "-----BEGIN" + "x" * 5000],
    "ALLOW_INSECURE_LOOPBACK": [None, 1, 0, "yes", "False"],
    "CLAIMS": [None, [], "email", {"email": 5}, {"email": ""}, {5: "email"}, {"": "email"}],
    "CREATE_USERS": [None, 1, "True"],
    "REFRESH_ENABLED": [None, 0, "no"],
    "REFRESH_AHEAD": [-1, 86_401, "600", True],
    "KEEP_ALIVE": [0, 3599, 90 * 86_400 + 1, "week", True],
    "DEPLOYMENT": [None, "x" * 65, 1],
    "SESSION_CHECK_INTERVAL": [-1, 86_401, None, "60", True],
    "KEEP_EVENTS": [0, 86_400, None, "year", True],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name}={value!r:.30}")
        for name, values in WRONG.items()
        for value in values
    ],
)
def test_a_wrong_value_is_a_problem_that_says_what_is_expected(
    name: str, value: Any, settings: Any
) -> None:
    configured(settings, **{name: value})
    problem = only_problem()
    assert (problem.key, problem.unknown) == (name, False)
    assert f"it is a {type(value).__name__}" in problem.message
    assert problem.hint.startswith("Set it to")
    with pytest.raises(ConfigurationError, match=name):
        get_settings()


def test_wrong_values_of_every_key_are_tried() -> None:
    assert set(WRONG) == set(conf._KEYS)


RIGHT: dict[str, list[Any]] = {
    "CLIENT": ["a", "acme-2", "a" * 63, "0"],
    "CLIENT_SECRET": ["env:NAME", lambda: "x"],
    "SCOPES": [["a:b"], ("a", "b")],
    "TOKEN_URL": ["https://acme.example/", "HTTPS://ACME.example:8443/x?y=z", "https://[::1]/"],
    "ISSUER": [None, "anything"],
    "LEEWAY": [0, 0.5, 300],
    "HTTP_TIMEOUT": [0.1, 10, 9.9],
    "CA_BUNDLE": [None, __file__, Path(__file__)],
    "CLAIMS": [{}, {"email": "a.b", "first_name": None, "last_name": str}],
    "REFRESH_AHEAD": [0, 86_400, None],
    "KEEP_ALIVE": [3600, 90 * 86_400, None],
    "DEPLOYMENT": ["", "staging", "x" * 64],
    "SESSION_CHECK_INTERVAL": [0, 86_400],
    "KEEP_EVENTS": [7 * 86_400, 3660 * 86_400],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in RIGHT.items() for value in values]
)
def test_values_at_the_edges_are_right(name: str, value: Any, settings: Any) -> None:
    configured(settings, **{name: value})
    assert problems() == []


def test_all_problems_are_told_at_once_and_no_value_is_shown(settings: Any) -> None:
    settings.BIPSYNC = {
        "CLIENT": "s3cret value",
        "CLIENT_SECERT": "s3cret",
        "SCOPES": "s3cret",
        "AUDIENCE": ["s3cret"],
        "TOKEN_URL": "http://s3cret.example/s3cret",
        "LEEWAY": "s3cret",
        "CA_BUNDLE": "s3cret",
        "CLAIMS": {"email": ["s3cret"]},
        "CREATE_USERS": "s3cret",
    }
    found = problems()
    assert [problem.unknown for problem in found] == [True] + [False] * (len(found) - 1)
    assert {problem.key for problem in found} == {
        *settings.BIPSYNC,
        "CLIENT_ID",
        "CLIENT_SECRET",
    }
    assert "s3cret" not in repr(found)
    with pytest.raises(ConfigurationError) as caught:
        get_settings()
    assert "s3cret" not in str(caught.value)
    for problem in found:
        assert problem.message in str(caught.value)


# --- URLs

SECURE = [
    "https://acme.example",
    "https://acme.example/",
    "HTTPS://acme.example/",
    "hTTps://ACME.example:443/x?y=z",
    "https://127.0.0.1/",
    "https://[2001:db8::1]:8443/",
    "https://xn--bcher-kva.example/",
    "https://acme.example./",
    "https://acme.example:/",
]
SECURE_ON_LOOPBACK = [
    "http://127.0.0.1:8000/",
    "http://127.0.0.1",
    "HTTP://127.0.0.1/",
    "http://127.255.255.254/",
    "http://localhost/",
    "http://LocalHost:1/",
    "http://[::1]:8000/",
]
INSECURE = [
    "",
    "/",
    "acme.example",
    "//acme.example/",
    "http://acme.example/",
    "http://127.0.0.1.evil.com/",
    "http://localhost.evil.com/",
    "http://localhost./",
    "http://evil.com/127.0.0.1",
    "http://evil.com?localhost",
    "http://evil.com#localhost",
    "http://127.0.0.1@evil.com/",
    "http://evil.com@127.0.0.1/",
    "http://localhost:pw@evil.com/",
    "http://127.0.0.1\\@evil.com/",
    "http://127.0.0.1\\.evil.com/",
    "http://127.0.0.1%2eevil.com/",
    "http://127.1/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://2130706433/",
    "http://0177.0.0.1/",
    "http://127.0.0.01/",
    "http://0.0.0.0/",
    "http://[::]/",
    "http://[::ffff:10.0.0.1]/",
    "http://10.0.0.1/",
    "http://169.254.169.254/",
    "http://[fe80::1]/",
    "http://127.0.0.1 .evil.com/",
    "http://１２７.0.0.1/",
    "http://127.0.0.1:99999/",
    "http://127.0.0.1:-1/",
    "http://127.0.0.1:http/",
    "http://[::1/",
    "http://::1/",
    "http:///x",
    "http:127.0.0.1/",
    "https://",
    "https:///path",
    "https:acme.example",
    "https://:443/",
    "https://user@acme.example/",
    "https://user:pw@acme.example/",
    "https://:pw@acme.example/",
    "https://@acme.example/",
    "https://:@acme.example/",
    "https://acme.example/#x",
    "https://acme.example/#",
    "https://acme.example:99999/",
    "https://acme.example:443x/",
    "https://ac me.example/",
    "https://acme.example\\.evil.com/",
    "https://acme\t.example/",
    "ht\ntps://acme.example/",
    "https://acme.example/\r\nX: y",
    "\x00https://acme.example/",
    " https://acme.example/",
    "https://acme.example/ ",
    "https://[acme.example]/",
    "ftp://127.0.0.1/",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "data:text/html,x",
    "ws://127.0.0.1/",
    "http+unix://127.0.0.1/",
]


@pytest.mark.parametrize("url", SECURE)
def test_https_is_secure(url: str) -> None:
    assert is_secure_url(url, allow_insecure_loopback=False)
    assert is_secure_url(url, allow_insecure_loopback=True)


@pytest.mark.parametrize("url", SECURE_ON_LOOPBACK)
def test_http_on_loopback_is_secure_where_it_is_allowed(url: str) -> None:
    assert is_secure_url(url, allow_insecure_loopback=True)
    assert not is_secure_url(url, allow_insecure_loopback=False)
    assert is_loopback(url)


@pytest.mark.parametrize("url", INSECURE)
def test_everything_else_is_not(url: str) -> None:
    assert not is_secure_url(url, allow_insecure_loopback=True)
    assert not is_secure_url(url, allow_insecure_loopback=False)


@pytest.mark.parametrize("url", ["http://acme.example/", "", "x", "http://[::1", "mailto:a@b"])
def test_what_is_not_this_machine_is_not_loopback(url: str) -> None:
    assert not is_loopback(url)


def test_loopback_urls_are_right_where_the_site_allows_them(settings: Any) -> None:
    configured(settings, TOKEN_URL="http://127.0.0.1:9000/", ALLOW_INSECURE_LOOPBACK=True)
    assert problems() == []
    configured(settings, TOKEN_URL="http://127.0.0.1:9000/", ALLOW_INSECURE_LOOPBACK="yes")
    assert {problem.key for problem in problems()} == {"TOKEN_URL", "ALLOW_INSECURE_LOOPBACK"}
    configured(settings, TOKEN_URL="http://127.0.0.1:9000/")
    assert only_problem().key == "TOKEN_URL"
    settings.DEBUG = True
    assert problems() == []
