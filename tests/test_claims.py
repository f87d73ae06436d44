"""Only Bipsync's signature, for this application, now, makes claims."""

import base64
import dataclasses
import hashlib
import hmac
import json
import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bipsync_django.conf import Tenant, get_tenant
from bipsync_django.exceptions import KeysUnavailable, TokenRefused
from bipsync_django.oauth.claims import Claims, validate_access_token
from bipsync_django.oauth.keys import LocalBudget, use_budget
from bipsync_django.testing import Answer, Html, SimulatedBipsync
from bipsync_django.testing.keys import SigningKey
from tests.signing import forget_keys

pytestmark = pytest.mark.usefixtures("local_budget")

ADA = "68b993fa85d14160d4030391"
MISSING = object()


@pytest.fixture
def tenant(bipsync: SimulatedBipsync) -> Tenant:
    return get_tenant()


@pytest.fixture(scope="module")
def stranger() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


Check = Callable[..., Claims]


@pytest.fixture
def check(bipsync: SimulatedBipsync, tenant: Tenant) -> Check:
    """Sign good claims with changes, and validate the token."""

    def check(**changes: Any) -> Claims:
        claims = {**bipsync.access_token_claims(), **changes}
        present = {name: value for name, value in claims.items() if value is not MISSING}
        return validate_access_token(bipsync.sign(present), tenant)

    return check


def encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def signed(header: bytes, payload: bytes, key: rsa.RSAPrivateKey) -> str:
    """Return a JWS of exactly these bytes, which no library would make."""
    signing_input = f"{encode(header)}.{encode(payload)}"
    signature = key.sign(signing_input.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signing_input}.{encode(signature)}"


# --- what is accepted


def test_a_token_as_bipsync_makes_them_becomes_claims(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    payload = bipsync.access_token_claims(scopes=["users:read", "research:read"])
    assert isinstance(payload["exp"], float)
    claims = validate_access_token(bipsync.sign(payload), tenant)
    assert claims.subject == ADA
    assert claims.scopes == ("users:read", "research:read")
    assert claims.expires_at == datetime.fromtimestamp(payload["exp"], UTC)
    assert claims.claims == payload


def test_claims_cannot_be_changed_and_do_not_show_what_is_personal(check: Check) -> None:
    claims = check()
    with pytest.raises(TypeError):
        claims.claims["sub"] = "somebody"  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        claims.subject = "somebody"  # type: ignore[misc]
    assert "ada@example.com" not in repr(claims)


def test_a_token_for_several_audiences_is_accepted_if_we_are_among_them(check: Check) -> None:
    assert check(aud=["other", "portal"]).subject == ADA
    with pytest.raises(TokenRefused):
        check(aud=["other", "another"])


def test_the_audience_is_the_configured_one(bipsync: SimulatedBipsync, tenant: Tenant) -> None:
    token = bipsync.sign({**bipsync.access_token_claims(), "aud": "https://api"})
    with pytest.raises(TokenRefused):
        validate_access_token(token, tenant)
    other = dataclasses.replace(tenant, audience="https://api")
    assert validate_access_token(token, other).subject == ADA


def test_the_issuer_is_checked_when_one_is_configured(
    bipsync: SimulatedBipsync, tenant: Tenant, check: Check
) -> None:
    assert check(iss="https://anybody").subject == ADA
    strict = dataclasses.replace(tenant, issuer="https://acme.bipsync.com")
    payload = bipsync.access_token_claims()
    for issuer, accepted in (
        ("https://acme.bipsync.com", True),
        ("https://acme.bipsync.com/", False),
        ("https://globex.bipsync.com", False),
        (["https://acme.bipsync.com"], False),
        (None, False),
        (7, False),
    ):
        token = bipsync.sign({**payload, "iss": issuer})
        if accepted:
            assert validate_access_token(token, strict).subject == ADA
        else:
            with pytest.raises(TokenRefused):
                validate_access_token(token, strict)
    with pytest.raises(TokenRefused):
        validate_access_token(bipsync.sign(payload), strict)


@pytest.mark.parametrize(
    ("said", "scopes"),
    [
        ({"scopes": []}, ()),
        ({"scopes": ["a:b", "c"]}, ("a:b", "c")),
        ({"scopes": "a:b c"}, ("a:b", "c")),
        ({"scopes": ""}, ()),
        # RFC 9068, section 2.2.3.
        ({"scopes": MISSING, "scope": "a:b c"}, ("a:b", "c")),
        ({"scopes": None, "scope": "a"}, ("a",)),
        # League's own goes before it.
        ({"scopes": ["a"], "scope": "a b"}, ("a",)),
        ({"scopes": [], "scope": "a b"}, ()),
    ],
)
def test_a_token_says_which_scopes_were_granted(
    check: Check, said: dict[str, Any], scopes: tuple[str, ...]
) -> None:
    claims = check(**said)
    assert (claims.scopes, claims.says_scopes) == (scopes, True)


@pytest.mark.parametrize(
    "said", [{"scopes": MISSING}, {"scopes": None}, {"scopes": MISSING, "scope": None}]
)
def test_or_says_nothing_about_them(check: Check, said: dict[str, Any]) -> None:
    claims = check(**said)
    assert (claims.scopes, claims.says_scopes) == ((), False)


@pytest.mark.parametrize(
    "scopes",
    [
        'a"b c',
        7,
        True,
        {"users:read": 1},
        [""],
        ["a b"],
        ["a\tb"],
        ["a\n"],
        ["a\u00a0b"],
        ["a\x00"],
        ["\ud800"],
        ['a"b'],
        ["a\\b"],
        ["é"],
        [None],
        [7],
        [["a"]],
        ["a", None],
    ],
)
def test_malformed_scopes_are_refused(scopes: object, check: Check) -> None:
    with pytest.raises(TokenRefused, match="scopes"):
        check(scopes=scopes)


@pytest.mark.parametrize("subject", ["1", "a b", "é", "x" * 255, "auth0|abc", "\U0001f600"])
def test_subjects_that_a_provider_may_choose(subject: str, check: Check) -> None:
    assert check(sub=subject).subject == subject


@pytest.mark.parametrize(
    "subject",
    [
        MISSING,
        None,
        "",
        " ",
        " 1",
        "1 ",
        "1\n",
        "\x00",
        "1\x00",
        "1\u200b",
        "a\u202eb",
        "\ud800",
        "x" * 256,
        "x" * 300,
        1,
        1.5,
        True,
        ["1"],
        {"id": "1"},
    ],
)
def test_an_unusable_subject_is_refused(subject: object, check: Check) -> None:
    with pytest.raises(TokenRefused):
        check(sub=subject)


# --- time


@pytest.mark.parametrize("name", ["exp", "sub", "aud"])
def test_a_token_without_a_required_claim_is_refused(name: str, check: Check) -> None:
    with pytest.raises(TokenRefused):
        check(**{name: MISSING})
    with pytest.raises(TokenRefused):
        check(**{name: None})


@pytest.mark.parametrize("name", ["nbf", "iat", "jti", "scopes", "name", "email"])
def test_a_token_may_lack_everything_else(name: str, check: Check) -> None:
    assert check(**{name: MISSING}).subject == ADA


def test_clocks_may_differ_by_the_leeway_and_no_more(check: Check) -> None:
    now = time.time()
    for near in ({"exp": now - 25}, {"nbf": now + 25.5}, {"iat": now + 25.5}):
        assert check(**near).subject == ADA
    for far in ({"exp": now - 35}, {"nbf": now + 35.5}, {"iat": now + 35.5}):
        with pytest.raises(TokenRefused):
            check(**far)


def test_the_leeway_is_the_configured_one(bipsync: SimulatedBipsync, tenant: Tenant) -> None:
    bipsync.clock_ahead = 100
    token = bipsync.sign(bipsync.access_token_claims())
    with pytest.raises(TokenRefused):
        validate_access_token(token, tenant)
    assert validate_access_token(token, dataclasses.replace(tenant, leeway=110)).subject == ADA


@pytest.mark.parametrize(
    "moment",
    [
        0,
        1,
        -1,
        -1e300,
        1e300,
        pytest.param(10**400, id="huge"),
        pytest.param(-(10**400), id="huge and negative"),
        253402300800 * 10,
        math.inf,
        -math.inf,
        math.nan,
        True,
        False,
        "soon",
        "",
        [],
        [9999999999],
        {},
    ],
)
def test_an_expiry_that_is_no_date_to_come_is_refused(moment: object, check: Check) -> None:
    with pytest.raises(TokenRefused):
        check(exp=moment)


def test_an_expiry_written_as_a_string_is_refused(check: Check) -> None:
    with pytest.raises(TokenRefused):
        check(exp="9999999999")


@pytest.mark.parametrize("name", ["nbf", "iat"])
@pytest.mark.parametrize("moment", [math.inf, math.nan, 1e300, "soon", [], {}, "9" * 5000])
def test_dates_that_are_none_are_refused(name: str, moment: object, check: Check) -> None:
    with pytest.raises(TokenRefused):
        check(**{name: moment})


@pytest.mark.parametrize("name", ["nbf", "iat"])
@pytest.mark.parametrize("moment", ["1", " 1 ", "1_0", "\u0661", True, False, None])
def test_what_only_reads_like_a_date_is_refused(name: str, moment: object, check: Check) -> None:
    with pytest.raises(TokenRefused):
        check(**{name: moment})


# --- signatures


def test_a_token_of_another_tenant_is_refused(tenant: Tenant) -> None:
    with SimulatedBipsync(client="globex") as other:
        with pytest.raises(TokenRefused, match="does not publish"):
            validate_access_token(other.issue_pair().access_token, tenant)
        token = other.sign(other.access_token_claims(), kid=None)
        with pytest.raises(TokenRefused, match="InvalidSignature"):
            validate_access_token(token, tenant)


@pytest.mark.parametrize("kid", ["", "k" * 256])
def test_an_unusable_kid_is_refused(bipsync: SimulatedBipsync, tenant: Tenant, kid: Any) -> None:
    token = bipsync.sign(bipsync.access_token_claims(), kid=kid)
    with pytest.raises(TokenRefused, match="kid"):
        validate_access_token(token, tenant)


def test_a_token_without_a_kid_is_that_of_the_only_key(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    token = bipsync.sign(bipsync.access_token_claims(), kid=None)
    assert validate_access_token(token, tenant).subject


def test_a_new_key_without_a_name_signs_people_in_at_once(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    nameless = {**bipsync.keys.current.jwk()}
    del nameless["kid"]
    bipsync.fail("jwks", Answer(200, json.dumps({"keys": [nameless]})))
    first = bipsync.sign(bipsync.access_token_claims(), kid=None)
    assert validate_access_token(first, tenant, from_provider=True)
    bipsync.rotate_keys()
    nameless = {**bipsync.keys.current.jwk()}
    del nameless["kid"]
    bipsync.fail("jwks", Answer(200, json.dumps({"keys": [nameless]})))
    second = bipsync.sign(bipsync.access_token_claims(), kid=None)
    assert validate_access_token(second, tenant, from_provider=True)
    with pytest.raises((TokenRefused, KeysUnavailable)):
        validate_access_token(first, tenant)


def test_a_foreign_key_under_a_known_kid_is_refused(
    bipsync: SimulatedBipsync, tenant: Tenant, stranger: rsa.RSAPrivateKey
) -> None:
    token = bipsync.sign(bipsync.access_token_claims(), key=stranger)
    with pytest.raises(TokenRefused, match="InvalidSignature"):
        validate_access_token(token, tenant)


def test_keys_that_a_token_brings_along_are_ignored(
    bipsync: SimulatedBipsync, tenant: Tenant, stranger: rsa.RSAPrivateKey
) -> None:
    with SimulatedBipsync() as attacker:
        own = SigningKey("own", stranger).jwk()
        for headers in (
            {"jku": attacker.jwks_url},
            {"x5u": attacker.jwks_url},
            {"jwk": own},
            {"x5c": [encode(b"certificate")]},
        ):
            for kid in (bipsync.keys.current.kid, "own", attacker.keys.current.kid):
                token = bipsync.sign(
                    bipsync.access_token_claims(), key=stranger, kid=kid, headers=headers
                )
                with pytest.raises(TokenRefused):
                    validate_access_token(token, tenant, from_provider=True)
        assert not attacker.calls


@pytest.mark.parametrize(
    "kid", [None, "", 7, True, ["a"], {"a": 1}, "x" * 256, "../../etc/passwd", "\x00", "\ud800"]
)
def test_a_kid_that_names_no_key_is_refused(
    kid: Any, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    payload = json.dumps(bipsync.access_token_claims()).encode()
    header = json.dumps({"alg": "RS256", "kid": kid}).encode()
    with pytest.raises(TokenRefused):
        validate_access_token(signed(header, payload, bipsync.keys.current.private), tenant)


def test_a_token_that_is_not_signed_is_refused(bipsync: SimulatedBipsync, tenant: Tenant) -> None:
    claims = bipsync.access_token_claims()
    token = bipsync.sign(claims, algorithm="none")
    assert token.endswith(".")
    with pytest.raises(TokenRefused):
        validate_access_token(token, tenant)
    for spelling in ("none", "None", "NONE", "nOnE", ""):
        header = json.dumps({"alg": spelling, "kid": bipsync.keys.current.kid}).encode()
        payload = json.dumps(claims).encode()
        for signature in ("", "AA", encode(b"x" * 256)):
            with pytest.raises(TokenRefused):
                validate_access_token(f"{encode(header)}.{encode(payload)}.{signature}", tenant)


@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256", "PS512"])
def test_the_right_key_with_another_algorithm_is_refused(
    algorithm: str, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    token = bipsync.sign(bipsync.access_token_claims(), algorithm=algorithm)
    with pytest.raises(TokenRefused, match="RS256"):
        validate_access_token(token, tenant)


def test_an_elliptic_curve_signature_is_refused(bipsync: SimulatedBipsync, tenant: Tenant) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    token = bipsync.sign(bipsync.access_token_claims(), algorithm="ES256", key=key)
    with pytest.raises(TokenRefused, match="RS256"):
        validate_access_token(token, tenant)


def test_the_public_key_as_an_hmac_secret_is_refused(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    claims = bipsync.access_token_claims()
    pem = bipsync.public_pem()
    for secret in (pem, pem.strip(), json.dumps(bipsync.keys.current.jwk()).encode(), b""):
        token = bipsync.sign(claims, algorithm="HS256", key=secret)
        with pytest.raises(TokenRefused):
            validate_access_token(token, tenant)
        # The same signature under the name of the right algorithm.
        header = encode(json.dumps({"alg": "RS256", "kid": bipsync.keys.current.kid}).encode())
        signing_input = f"{header}.{encode(json.dumps(claims).encode())}"
        digest = hmac.digest(secret, signing_input.encode(), hashlib.sha256)
        with pytest.raises(TokenRefused):
            validate_access_token(f"{signing_input}.{encode(digest)}", tenant)


@pytest.mark.parametrize(
    "headers",
    [
        {"crit": ["exp"], "exp": 1},
        {"crit": ["unknown"], "unknown": True},
        {"crit": []},
        {"crit": "b64"},
        {"crit": [1]},
        {"crit": None},
        {"crit": ["b64"], "b64": False},
        {"b64": False},
    ],
)
def test_extensions_that_must_be_understood_are_refused(
    headers: dict[str, Any], bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    header = {"alg": "RS256", "kid": bipsync.keys.current.kid, **headers}
    payload = json.dumps(bipsync.access_token_claims()).encode()
    token = signed(json.dumps(header).encode(), payload, bipsync.keys.current.private)
    with pytest.raises(TokenRefused):
        validate_access_token(token, tenant)


# --- spelling and size


def test_one_token_has_one_spelling(bipsync: SimulatedBipsync, tenant: Tenant) -> None:
    token = bipsync.issue_pair().access_token
    assert validate_access_token(token, tenant).subject == ADA
    head, payload, signature = token.split(".")
    for spelling in (
        token + "=",
        token + "==",
        token + "\n",
        " " + token,
        token + ".",
        "." + token,
        token + ".AAAA",
        f"{head}=.{payload}.{signature}",
        f"{head}.{payload}==.{signature}",
        f"{head}.{payload}.",
        f"{head}..{signature}",
        f"{head}.{payload}",
        f"Bearer {token}",
        token.replace("-", "+").replace("_", "/") + "+",
        token + "\x00",
        token + "\ud800",
        token + "é",
        token + "４",
        "",
    ):
        with pytest.raises(TokenRefused, match="not a JWT"):
            validate_access_token(spelling, tenant)
    with pytest.raises(TokenRefused, match="not a JWT"):
        validate_access_token(token.encode(), tenant)  # type: ignore[arg-type]
    assert bipsync.calls["jwks"] == 1


def test_unused_bits_of_the_last_character_are_no_second_spelling(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    token = bipsync.issue_pair().access_token
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    # 256 bytes leave four unused bits in the last character.
    last = alphabet.index(token[-1])
    for variant in range(last + 1, last + 4):
        with pytest.raises(TokenRefused):
            validate_access_token(token[:-1] + alphabet[variant], tenant)


def test_a_huge_token_is_refused_before_anything_looks_at_it(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    huge = "eyJ0.eyJz." + "x" * 50_000_000
    begin = time.process_time()
    with pytest.raises(TokenRefused, match="16 KiB"):
        validate_access_token(huge, tenant)
    assert time.process_time() - begin < 0.5
    assert not bipsync.calls


def test_a_token_may_have_16_kib(bipsync: SimulatedBipsync, tenant: Tenant) -> None:
    claims = bipsync.access_token_claims()
    room = 16 * 1024 - len(bipsync.sign({**claims, "padding": ""}))
    fits = bipsync.sign({**claims, "padding": "x" * (room * 3 // 4 - 3)})
    assert 16 * 1024 - 8 < len(fits) <= 16 * 1024
    assert validate_access_token(fits, tenant).subject == ADA
    with pytest.raises(TokenRefused, match="16 KiB"):
        validate_access_token(bipsync.sign({**claims, "padding": "x" * room}), tenant)


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" * 5000,
        b'{"a":' * 1800,
        b"[" * 4000 + b"]" * 4000,
        b"9" * 6000,
        b'{"kid":' + b"9" * 6000 + b"}",
        b"\xff\xfe",
        b"\x00",
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b"{",
        b'{"alg":"RS256"}',
        b'{"alg":null,"kid":"a"}',
        b'{"alg":["RS256"],"kid":"a"}',
    ],
    ids=lambda bomb: repr(bomb[:24]),
)
def test_a_bomb_of_json_is_refused_in_the_header_and_under_a_right_signature(
    bomb: bytes, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    key = bipsync.keys.current
    with pytest.raises(TokenRefused):
        validate_access_token(signed(bomb, b'{"sub":"1"}', key.private), tenant)
    header = json.dumps({"alg": "RS256", "kid": key.kid}).encode()
    with pytest.raises(TokenRefused):
        validate_access_token(signed(header, bomb, key.private), tenant)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize("place", ["header", "payload"])
def test_json_in_another_encoding_than_utf_8_is_refused(
    place: str, encoding: str, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    key = bipsync.keys.current
    parts = {"header": {"alg": "RS256", "kid": key.kid}, "payload": bipsync.access_token_claims()}

    def token(**encodings: str) -> str:
        header, payload = (
            json.dumps(part).encode(encodings.get(name, "utf-8")) for name, part in parts.items()
        )
        return signed(header, payload, key.private)

    assert validate_access_token(token(), tenant).subject == ADA
    with pytest.raises(TokenRefused, match="UTF-8"):
        validate_access_token(token(**{place: encoding}), tenant)


def test_half_a_character_in_the_claims_is_refused(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    key = bipsync.keys.current
    header = json.dumps({"alg": "RS256", "kid": key.kid}).encode()
    payload = json.dumps({**bipsync.access_token_claims(), "name": "Ada"}).encode()
    assert validate_access_token(signed(header, payload, key.private), tenant).subject == ADA
    with pytest.raises(TokenRefused, match="UTF-8"):
        halved = payload.replace(b"Ada", b"\xed\xa0\x80")
        validate_access_token(signed(header, halved, key.private), tenant)


def test_claims_that_come_twice_count_once(bipsync: SimulatedBipsync, tenant: Tenant) -> None:
    payload = json.dumps(bipsync.access_token_claims()).encode()
    key = bipsync.keys.current
    header = json.dumps({"alg": "RS256", "kid": key.kid}).encode()
    twice = payload.replace(b'{"aud"', b'{"sub": "somebody", "aud"', 1)
    assert validate_access_token(signed(header, twice, key.private), tenant).subject == ADA


# --- keys


def test_a_rotated_key_is_fetched_for_a_token_from_the_provider(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    old = bipsync.issue_pair().access_token
    validate_access_token(old, tenant)
    bipsync.rotate_keys()
    new = bipsync.issue_pair().access_token
    with pytest.raises(TokenRefused):
        validate_access_token(new, tenant)  # within the cooldown of the first fetch
    assert validate_access_token(new, tenant, from_provider=True).subject == ADA
    assert validate_access_token(old, tenant).subject == ADA
    bipsync.retire_keys()
    forget_keys()
    use_budget(LocalBudget())
    with pytest.raises(TokenRefused):
        validate_access_token(old, tenant)


def test_without_keys_nothing_is_said_of_a_token(bipsync: SimulatedBipsync, tenant: Tenant) -> None:
    bipsync.fail("jwks", Html(503))
    token = bipsync.issue_pair().access_token
    with pytest.raises(KeysUnavailable):
        validate_access_token(token, tenant, from_provider=True)
    assert validate_access_token(token, tenant, from_provider=True).subject == ADA


def test_refusals_do_not_quote_the_token(
    bipsync: SimulatedBipsync, tenant: Tenant, stranger: rsa.RSAPrivateKey
) -> None:
    claims = bipsync.access_token_claims()
    for token in (
        bipsync.sign(claims, key=stranger),
        bipsync.sign({**claims, "aud": "quoted-audience"}),
        bipsync.sign(claims, headers={"crit": ["quoted-extension"]}),
        bipsync.sign(claims, kid="quoted-kid"),
        signed(b"quoted-header", b"x", stranger),
    ):
        with pytest.raises(TokenRefused) as caught:
            validate_access_token(token, tenant)
        assert "quoted" not in str(caught.value)
        assert not any(part in str(caught.value) for part in token.split("."))


# --- anything at all


@pytest.fixture(scope="module")
def shared() -> Iterator[SimulatedBipsync]:
    with SimulatedBipsync() as server:
        yield server


@pytest.fixture(scope="module")
def valid(shared: SimulatedBipsync) -> str:
    return shared.issue_pair().access_token


def _verdict(raw: str, tenant: Tenant) -> Claims | None:
    try:
        return validate_access_token(raw, tenant)
    except (TokenRefused, KeysUnavailable):
        return None


@hypothesis_settings(max_examples=300, deadline=None, database=None)
@given(
    raw=st.text(max_size=200)
    | st.from_regex(r"[A-Za-z0-9_-]{1,80}\.[A-Za-z0-9_-]{1,80}\.[A-Za-z0-9_-]{1,80}")
)
@example(raw="\ud800.\ud800.\ud800")
def test_no_text_at_all_is_a_token(shared: SimulatedBipsync, raw: str) -> None:
    tenant = dataclasses.replace(get_tenant(), jwks_url=shared.jwks_url)
    assert _verdict(raw, tenant) is None


@hypothesis_settings(max_examples=300, deadline=None, database=None)
@given(data=st.data())
def test_no_change_to_a_valid_token_is_valid(
    shared: SimulatedBipsync, valid: str, data: st.DataObject
) -> None:
    tenant = dataclasses.replace(get_tenant(), jwks_url=shared.jwks_url)
    at = data.draw(st.integers(0, len(valid)))
    length = data.draw(st.integers(0, 3))
    patch = data.draw(st.text(max_size=3) | st.from_regex(r"[A-Za-z0-9_.=-]{0,3}", fullmatch=True))
    changed = valid[:at] + patch + valid[at + length :]
    assert (_verdict(changed, tenant) is not None) is (changed == valid)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.just(9999999999)
    | st.just("portal"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
CLAIM_NAMES = ("exp", "nbf", "iat", "sub", "aud", "iss", "jti", "scopes")


@hypothesis_settings(max_examples=300, deadline=None, database=None)
@given(
    payload=st.fixed_dictionaries({}, optional=dict.fromkeys(CLAIM_NAMES, VALUES)),
    base=st.booleans(),
)
@example(payload={"exp": 10**400}, base=True)
def test_whatever_the_provider_signs_becomes_claims_or_one_typed_error(
    shared: SimulatedBipsync, payload: dict[str, Any], base: bool
) -> None:
    tenant = dataclasses.replace(get_tenant(), jwks_url=shared.jwks_url)
    everything = {**(shared.access_token_claims() if base else {}), **payload}
    claims = _verdict(shared.sign(everything), tenant)
    if claims is not None:
        assert claims.subject == everything["sub"]
        assert "portal" in everything["aud"]
        assert claims.expires_at.timestamp() > time.time() - 40
