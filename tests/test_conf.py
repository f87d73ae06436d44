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
        "name": "acme",
        "client_id": "portal",
        "client_secret_source": "portal-secret",
        "scopes": ("users:read",),
        "service_scopes": ("users:read",),
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
        "create_users": True,
        "allowed_email_domains": None,
        "groups": {},
        "staff": None,
        "superuser": None,
    }
    assert tenant.client_secret == "portal-secret"
    found = get_settings()
    assert dict(found.tenants) == {"acme": tenant}
    assert (found.refresh_enabled, found.refresh_ahead) == (True, 600)
    assert (found.user_resolver, found.match_users_by) == (None, None)
    assert (found.keep_claims, found.health_token) == (("name", "email"), None)
    assert conf.break_glass_users() == frozenset()
    assert not conf.is_sso_only()


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
        NAME="Acme Capital",
        WEB_URL="https://web.example/",
        CREATE_USERS=False,
        ALLOWED_EMAIL_DOMAINS=["Acme.example"],
        GROUPS={"teams": {"research": "Analysts", "ops": ["Operations", "Analysts"]}},
        STAFF={"roles": "admin", "level": [9]},
        SUPERUSER=len,
        USER_RESOLVER="portal.people.find",
        PREPARE_CONNECTION="portal.schemas.use_callers_schema",
        MATCH_USERS_BY={"TENANT": "acme", "VERIFIED_CLAIM": "email_verified"},
        SSO_ONLY=True,
        BREAK_GLASS_USERS=["emergency"],
        REFRESH_ENABLED=False,
        REFRESH_AHEAD=60,
        KEEP_ALIVE=None,
        DEPLOYMENT="production ",
        SESSION_CHECK_INTERVAL=5,
        KEEP_EVENTS=604800,
        SERVICE_SCOPES=["research:read"],
        KEEP_CLAIMS=["name"],
        HEALTH_TOKEN="h" * 20,
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
    assert (tenant.name, tenant.web_url) == ("Acme Capital", "https://web.example")
    assert (tenant.create_users, tenant.allowed_email_domains) == (False, ("acme.example",))
    assert tenant.groups == {
        "teams": {"research": ("Analysts",), "ops": ("Operations", "Analysts")}
    }
    assert tenant.staff == {"roles": ("admin",), "level": (9,)}
    assert tenant.superuser is len
    assert found.user_resolver == "portal.people.find"
    assert found.match_users_by == conf.MatchUsersBy("acme", "email", "email_verified")
    assert conf.break_glass_users() == {"emergency"}
    assert conf.is_sso_only()
    assert (found.refresh_enabled, found.refresh_ahead) == (False, 60)
    assert (found.keep_alive, found.deployment) == (None, "production")
    assert (found.session_check_interval, found.keep_events) == (5, 604800)
    assert tenant.service_scopes == ("research:read",)
    assert (found.keep_claims, found.health_token) == (("name",), "h" * 20)
    # Every key is tried here, so that none is accepted and then forgotten.
    assert {*settings.BIPSYNC, "TENANTS"} == set(conf._KEYS)


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
    "CLAIMS": [None, [], "email", {"email": 5}, {"email": ""}, {5: "email"}, {"": "email"}]
    + [
        {name: "x"}
        for name in ("is_staff", "is_superuser", "password", "groups", "user_permissions")
    ],
    "CREATE_USERS": [None, 1, "True"],
    "TENANTS": [None, [], {}, {"acme": None}, {"Acme": {}}, {"a/b": {}}, {5: {}}, {"": {}}],
    "NAME": ["", " ", None, 5],
    "WEB_URL": ["", None, "http://acme.example/", "javascript:x"],
    "ALLOWED_EMAIL_DOMAINS": [
        [],
        "acme.example",
        ["@acme.example"],
        ["acme"],
        [""],
        [5],
        ["*.x.y"],
        ["acme.example/x"],
        ["acme.example\n"],
        ["acme.example", "-b.example"],
    ],
    "GROUPS": [
        None,
        [],
        {"teams": "Analysts"},
        {"teams": {"a": ""}},
        {"teams": {"a": []}},
        {"teams": {5: "A"}},
        {"scopes": {"research:read": "A"}},
        {"": {"a": "A"}},
    ],
    "STAFF": [
        "admin",
        [],
        True,
        {"roles": []},
        {"roles": ""},
        {"roles": None},
        {"roles": [None]},
        {"scopes": ["rest_api:write"]},
        {"scope": "x"},
        {"scopes.0": "x"},
        {5: "x"},
    ],
    "SUPERUSER": [True, {"roles": [["root"]]}, {"scopes": "rest_api:write"}],
    "USER_RESOLVER": ["", 5, ["portal.people.find"]],
    "PREPARE_CONNECTION": ["", 5, ["portal.schemas.use_callers_schema"]],
    "MATCH_USERS_BY": [
        True,
        "email",
        {},
        {"TENANT": "acme"},
        {"VERIFIED_CLAIM": "email_verified"},
        {"TENANT": "acme", "TRUST_UNVERIFIED": False},
        {"TENANT": "acme", "TRUST_UNVERIFIED": 1},
        {"TENANT": "acme", "TRUST_UNVERIFIED": True, "VERIFIED_CLAIM": "email_verified"},
        {"TENANT": "acme", "TRUST_UNVERIFIED": True, "FIELD": "email"},
        {"TENANT": "acme", "TRUST_UNVERIFIED": True, "CLAIM": ""},
    ],
    "SSO_ONLY": [None, 0, "no"],
    "BREAK_GLASS_USERS": [None, "emergency", [""], [5]],
    "REFRESH_ENABLED": [None, 0, "no"],
    "REFRESH_AHEAD": [-1, 86_401, "600", True],
    "KEEP_ALIVE": [0, 3599, 90 * 86_400 + 1, "week", True],
    "DEPLOYMENT": [None, "x" * 65, 1],
    "SESSION_CHECK_INTERVAL": [-1, 86_401, None, "60", True],
    "KEEP_EVENTS": [0, 86_400, None, "year", True],
    "SERVICE_SCOPES": ["users:read", [], [""], ["a b"], [5], {"a": 1}],
    "KEEP_CLAIMS": ["name", None, [""], [5], {"name": 1}],
    "HEALTH_TOKEN": ["", 5, True, ["x"]],
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
    if name == "TENANTS":
        settings.BIPSYNC = {"TENANTS": value}
    else:
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
    "NAME": ["Acme & Søns"],
    "WEB_URL": ["https://acme.example/app/"],
    "ALLOWED_EMAIL_DOMAINS": [None, ["acme.example"], ("a.b", "c-d.example")],
    "GROUPS": [{}, {"a.b": {"x": "Y"}}, {"a": {}}],
    "STAFF": [None, {}, str, {"a.b": True}, {"a": ("x", 1)}, {"scopes_held": "x"}],
    "SUPERUSER": [None, {"roles": ["root"]}],
    "USER_RESOLVER": [None, "a.b", str],
    "PREPARE_CONNECTION": [None, "a.b", str],
    "MATCH_USERS_BY": [None, {"TENANT": "acme", "CLAIM": "mail", "TRUST_UNVERIFIED": True}],
    "BREAK_GLASS_USERS": [[], ("emergency",)],
    "REFRESH_AHEAD": [0, 86_400, None],
    "KEEP_ALIVE": [3600, 90 * 86_400, None],
    "DEPLOYMENT": ["", "staging", "x" * 64],
    "SESSION_CHECK_INTERVAL": [0, 86_400],
    "KEEP_EVENTS": [7 * 86_400, 3660 * 86_400],
    "SERVICE_SCOPES": [None, ["a:b"], ("a", "b")],
    "KEEP_CLAIMS": [[], ["a.b"], ("name",)],
    "HEALTH_TOKEN": [None, "env:NAME", lambda: "x"],
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


# --- several tenants

OWN: dict[str, Any] = {"CLIENT_ID": "portal", "CLIENT_SECRET": "portal-secret"}


def several(settings: Any, *, shared: dict[str, Any] | None = None, **tenants: Any) -> None:
    settings.BIPSYNC = {"SCOPES": ["users:read"], **(shared or {}), "TENANTS": tenants}


def test_each_tenant_has_addresses_of_its_own(settings: Any) -> None:
    several(settings, acme=OWN, globex={**OWN, "CLIENT_ID": "other", "CLIENT": "globex-uk"})
    assert list(get_settings().tenants) == ["acme", "globex"]
    assert get_tenant("acme").token_url == "https://acme-api.bipsync.com/v1/oauth/token"
    globex = get_tenant("globex")
    assert (globex.slug, globex.name) == ("globex", "globex")
    assert (globex.client_id, globex.audience) == ("other", "other")
    assert globex.jwks_url == "https://globex-uk-api.bipsync.com/v1/oauth/jwks"
    assert globex.web_url == "https://globex-uk.bipsync.com"


def test_policy_may_be_shared_and_a_tenant_may_differ(settings: Any) -> None:
    shared = {"CREATE_USERS": False, "LEEWAY": 5, "ALLOWED_EMAIL_DOMAINS": ["acme.example"]}
    own = {**OWN, "SCOPES": ["events:read"], "CREATE_USERS": True, "ALLOWED_EMAIL_DOMAINS": None}
    several(settings, shared=shared, acme=OWN, globex=own)
    acme, globex = get_tenant("acme"), get_tenant("globex")
    assert (acme.create_users, globex.create_users) == (False, True)
    assert (acme.leeway, globex.leeway) == (5, 5)
    assert (acme.scopes, globex.scopes) == (("users:read",), ("events:read",))
    assert acme.allowed_email_domains == ("acme.example",)
    assert globex.allowed_email_domains is None


EITHER: dict[str, tuple[Any, Any]] = {
    "SCOPES": (["events:read"], ["groups:read"]),
    "SERVICE_SCOPES": (["events:read"], ["groups:read"]),
    "LEEWAY": (5, 10),
    "HTTP_TIMEOUT": (2, 3),
    "CA_BUNDLE": (__file__, None),
    "CREATE_USERS": (False, True),
    "ALLOWED_EMAIL_DOMAINS": (["acme.example"], ["globex.example"]),
}


@pytest.mark.parametrize("key", EITHER)
def test_a_shared_key_counts_for_every_tenant_that_has_none(key: str, settings: Any) -> None:
    shared, own = EITHER[key]

    def value(slug: str) -> Any:
        found = getattr(get_tenant(slug), key.lower())
        return list(found) if isinstance(found, tuple) else found

    several(settings, shared={key: shared}, acme=OWN, globex={**OWN, key: own})
    assert (value("acme"), value("globex")) == (shared, own)


PER_TENANT = [
    *["CLIENT", "CLIENT_ID", "CLIENT_SECRET", "NAME", "WEB_URL", "AUTHORIZE_URL", "TOKEN_URL"],
    *["JWKS_URL", "API_URL", "REDIRECT_URI", "AUDIENCE", "ISSUER", "CLAIMS", "GROUPS", "STAFF"],
    "SUPERUSER",
]


@pytest.mark.parametrize("key", PER_TENANT)
def test_what_tells_tenants_apart_is_inherited_from_nowhere(key: str, settings: Any) -> None:
    several(settings, shared={key: "s3cret"}, acme=OWN)
    problem = only_problem()
    assert problem.key == key
    assert "does not belong there" in problem.message
    assert "each tenant" in problem.hint
    assert "s3cret" not in problem.message + problem.hint


def test_a_rule_for_the_whole_site_stands_in_no_tenant(settings: Any) -> None:
    for key in set(conf._KEYS) - set(PER_TENANT) - set(EITHER):
        several(settings, acme={**OWN, key: "s3cret"})
        problem = only_problem()
        assert problem.message.startswith("BIPSYNC['TENANTS']['acme'] has the key")
        assert "beside TENANTS" in problem.hint


def test_a_tenants_mistakes_are_named_with_the_tenant(settings: Any) -> None:
    several(settings, acme=OWN, globex={"CLIENT_ID": "portal", "CLIENT_SECERT": "s3cret"})
    assert [problem.message for problem in problems()] == [
        "BIPSYNC['TENANTS']['globex'] has an unknown key 'CLIENT_SECERT'.",
        "BIPSYNC['TENANTS']['globex']['CLIENT_SECRET'] is missing.",
    ]
    several(settings, acme={**OWN, "LEEWAY": "s3cret"})
    assert only_problem().message == (
        "BIPSYNC['TENANTS']['acme']['LEEWAY'] is not valid (it is a str)."
    )


@pytest.mark.parametrize("key", ["CLIENT_ID", "CLIENT_SECRET"])
def test_what_stands_beside_the_tenants_by_mistake_is_missing_in_them(
    key: str, settings: Any
) -> None:
    own = {name: value for name, value in OWN.items() if name != key}
    several(settings, shared={key: "s3cret"}, acme=OWN, globex=own)
    assert [problem.message for problem in problems()] == [
        f"BIPSYNC has the key {key!r}, which does not belong there.",
        f"BIPSYNC['TENANTS']['globex'][{key!r}] is missing.",
    ]


def test_several_tenants_have_to_be_named(settings: Any) -> None:
    several(settings, acme=OWN, globex=OWN)
    with pytest.raises(ConfigurationError, match="several tenants \\(acme, globex\\)"):
        get_tenant()
    with pytest.raises(ConfigurationError, match="no tenant 'initech'"):
        get_tenant("initech")
    several(settings, acme=OWN)
    assert get_tenant().slug == "acme", "one in TENANTS is one"


def test_two_tenants_do_not_share_a_callback(settings: Any) -> None:
    uri = "https://portal.example/bipsync/callback/"
    several(settings, acme={**OWN, "REDIRECT_URI": uri}, globex={**OWN, "REDIRECT_URI": uri})
    assert "same REDIRECT_URI" in only_problem().message


@pytest.mark.parametrize("tenant", ["initech", "Acme"])
def test_matching_names_a_tenant_that_is_there(tenant: str, settings: Any) -> None:
    match = {"TENANT": tenant, "TRUST_UNVERIFIED": True}
    configured(settings, MATCH_USERS_BY=match)
    assert "names a tenant that is not there" in only_problem().message
    several(settings, shared={"MATCH_USERS_BY": match}, acme=OWN)
    assert "acme" in only_problem().hint
