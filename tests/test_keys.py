"""Signing keys are fetched, filtered, cached, and fetched again for a new ``kid``."""

import base64
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from django.core import signing
from django.core.cache import cache
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from bipsync_django.conf import Tenant, get_tenant
from bipsync_django.exceptions import KeysUnavailable
from bipsync_django.oauth import keys
from bipsync_django.oauth.claims import validate_access_token
from bipsync_django.oauth.keys import signing_key
from bipsync_django.testing import Answer, DropBefore, Html, SimulatedBipsync, Trickle
from bipsync_django.testing.keys import SigningKey
from bipsync_django.testing.messages import Request, Response
from bipsync_django.testing.server import HttpServer
from tests.signing import forget_keys

pytestmark = pytest.mark.usefixtures("local_budget")

ENTRY = "bipsync_django.keys.acme"


@pytest.fixture
def tenant(bipsync: SimulatedBipsync) -> Tenant:
    return get_tenant()


@pytest.fixture(scope="module")
def private_keys() -> dict[int, rsa.RSAPrivateKey]:
    return {
        size: rsa.generate_private_key(public_exponent=65537, key_size=size)
        for size in (1024, 2048)
    }


@pytest.fixture
def good(private_keys: dict[int, rsa.RSAPrivateKey]) -> dict[str, Any]:
    """A public key as it should be published."""
    return SigningKey("good", private_keys[2048]).jwk()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> "Clock":
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


class Clock:
    """The time of day, which the test moves. The cache reads it too."""

    def __init__(self) -> None:
        self._real = time.time
        self._ahead = 0.0

    def __call__(self) -> float:
        return self._real() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


def published(bipsync: SimulatedBipsync, *jwks: object) -> None:
    """Publish exactly these keys from now on."""
    bipsync.clear_failures()
    bipsync.fail("jwks", Answer(200, {"keys": list(jwks)}), times=None)


def number_of(key: jwt.PyJWK | None) -> int:
    assert key is not None
    modulus: int = key.key.public_numbers().n
    return modulus


# --- fetching and caching


def test_a_key_is_found_by_its_kid_and_fetched_once(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    current = bipsync.keys.current
    for _ in range(5):
        key = signing_key(tenant, current.kid)
        assert number_of(key) == current.private.public_key().public_numbers().n
        assert key is not None
        assert key.algorithm_name == "RS256"
    assert bipsync.calls["jwks"] == 1


def test_the_request_for_keys_carries_nothing_of_the_application(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    signing_key(tenant, bipsync.keys.current.kid)
    (request,) = bipsync.requests
    assert (request.method, request.form) == ("GET", {})
    assert not {"Authorization", "Cookie"} & {name.title() for name in request.headers}


def test_an_unknown_kid_leads_to_a_fetch_so_that_rotation_goes_unnoticed(
    bipsync: SimulatedBipsync, tenant: Tenant, clock: Clock
) -> None:
    old = bipsync.keys.current.kid
    assert signing_key(tenant, old)
    clock.advance(10.5)
    new = bipsync.rotate_keys()
    assert signing_key(tenant, new)
    assert signing_key(tenant, old)
    assert bipsync.calls["jwks"] == 2


def test_a_token_from_the_provider_may_fetch_however_recently_others_did(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    for _ in range(3):
        assert signing_key(tenant, bipsync.rotate_keys(), from_provider=True)
    assert bipsync.calls["jwks"] == 3
    assert signing_key(tenant, bipsync.keys.current.kid, from_provider=True)
    assert bipsync.calls["jwks"] == 3


def test_forged_kids_fetch_once_in_ten_seconds_and_do_not_hold_up_a_sign_in(
    bipsync: SimulatedBipsync, tenant: Tenant, clock: Clock
) -> None:
    signing_key(tenant, bipsync.keys.current.kid)
    clock.advance(10.5)
    bipsync.reset_calls()
    assert [signing_key(tenant, f"forged-{number}") for number in range(20)] == [None] * 20
    assert bipsync.calls["jwks"] == 1
    assert signing_key(tenant, bipsync.rotate_keys(), from_provider=True)
    assert bipsync.calls["jwks"] == 2
    clock.advance(10.5)
    assert signing_key(tenant, "forged") is None
    assert bipsync.calls["jwks"] == 3


def test_a_retired_key_is_forgotten_within_the_hour(
    bipsync: SimulatedBipsync, tenant: Tenant, clock: Clock
) -> None:
    old = bipsync.keys.current.kid
    assert signing_key(tenant, old)
    bipsync.rotate_keys()
    bipsync.retire_keys()
    clock.advance(3500)
    assert signing_key(tenant, old), "known keys are good for an hour"
    clock.advance(200)
    assert signing_key(tenant, old) is None
    assert bipsync.calls["jwks"] == 2


def test_keys_outlive_an_outage_for_a_day_and_no_longer(
    bipsync: SimulatedBipsync, tenant: Tenant, clock: Clock
) -> None:
    kid = bipsync.keys.current.kid
    assert signing_key(tenant, kid)
    bipsync.fail("jwks", Html(503), times=None)
    for hours in (2, 12, 23):
        clock.advance(hours * 3600 - (clock() - clock._real()))
        assert signing_key(tenant, kid)
        assert signing_key(tenant, kid), "the second caller does not even ask"
    assert bipsync.calls["jwks"] == 4
    clock.advance(3600 + 60)
    with pytest.raises(KeysUnavailable):
        signing_key(tenant, kid)


def test_during_an_outage_an_unknown_kid_is_undecided_not_refused(
    bipsync: SimulatedBipsync, tenant: Tenant, clock: Clock
) -> None:
    signing_key(tenant, bipsync.keys.current.kid)
    clock.advance(10.5)
    bipsync.fail("jwks", DropBefore(), times=None)
    with pytest.raises(KeysUnavailable):
        signing_key(tenant, "unknown")
    with pytest.raises(KeysUnavailable):
        signing_key(tenant, "unknown", from_provider=True)


def test_a_new_key_is_undecided_for_every_reader_as_long_as_the_endpoint_is_away(
    bipsync: SimulatedBipsync, tenant: Tenant, clock: Clock
) -> None:
    signing_key(tenant, bipsync.keys.current.kid)
    clock.advance(10.5)
    new = bipsync.rotate_keys()
    bipsync.fail("jwks", Html(503), times=None)
    for from_provider in (True, False, False, False):
        with pytest.raises(KeysUnavailable):
            signing_key(tenant, new, from_provider=from_provider)
    assert bipsync.calls["jwks"] == 3, "two of them did not even ask"
    bipsync.clear_failures()
    clock.advance(10.5)
    assert signing_key(tenant, new)


def test_a_new_key_is_undecided_while_somebody_else_fetches(
    bipsync: SimulatedBipsync, tenant: Tenant, clock: Clock
) -> None:
    signing_key(tenant, bipsync.keys.current.kid)
    clock.advance(10.5)
    new, found = bipsync.rotate_keys(), []
    bipsync.jwks_latency = 1.0
    fetching = threading.Thread(target=lambda: found.append(signing_key(tenant, new)))
    fetching.start()
    while bipsync.calls["jwks"] < 2:
        time.sleep(0.01)
    with pytest.raises(KeysUnavailable):
        signing_key(tenant, new)
    fetching.join()
    assert found[0]
    assert signing_key(tenant, "forged") is None, "now it is known what is published"
    assert bipsync.calls["jwks"] == 2


def test_without_any_keys_an_outage_is_asked_about_once_in_ten_seconds(
    bipsync: SimulatedBipsync, tenant: Tenant, clock: Clock
) -> None:
    bipsync.fail("jwks", Html(502), times=None)
    for _ in range(5):
        with pytest.raises(KeysUnavailable):
            signing_key(tenant, "any")
    assert bipsync.calls["jwks"] == 1
    bipsync.clear_failures()
    clock.advance(10.5)
    assert signing_key(tenant, bipsync.keys.current.kid)


def test_a_provider_that_is_down_leaves_keys_unavailable(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    bipsync.stop()
    with pytest.raises(KeysUnavailable, match="connection_error"):
        signing_key(tenant, "any")


# --- the cache is not trusted


def test_a_cache_entry_is_believed_only_with_our_signature(
    bipsync: SimulatedBipsync, tenant: Tenant, good: dict[str, Any], clock: Clock
) -> None:
    entry = [clock(), clock(), [["good", good["n"], good["e"]]]]
    other_salt = signing.dumps(entry, salt="bipsync_django.keys:globex:https://x", compress=True)
    other_key = signing.dumps(entry, key="attacker", salt=keys._salt(tenant), compress=True)
    for planted in (
        entry,
        json.dumps(entry),
        json.dumps(entry).encode(),
        other_salt,
        other_key,
        "",
        "a:b:c",
        7,
        None,
        ["a"],
    ):
        forget_keys()
        cache.set(ENTRY, planted)
        clock.advance(2)
        assert signing_key(tenant, "good", from_provider=True) is None, planted
    assert bipsync.calls["jwks"] == 10


def test_a_cache_entry_with_our_signature_is_believed(
    bipsync: SimulatedBipsync, tenant: Tenant, good: dict[str, Any], clock: Clock
) -> None:
    # The counterpart of the test above: it is the signature that decides there.
    entry = [clock(), clock(), [["good", good["n"], good["e"]]]]
    cache.set(ENTRY, signing.dumps(entry, salt=keys._salt(tenant), compress=True))
    assert signing_key(tenant, "good")
    assert not bipsync.calls


def test_an_entry_of_another_version_is_fetched_anew(
    bipsync: SimulatedBipsync, tenant: Tenant, good: dict[str, Any]
) -> None:
    entry = {"at": time.time(), "keys": {"good": good}}
    cache.set(ENTRY, signing.dumps(entry, salt=keys._salt(tenant), compress=True))
    assert signing_key(tenant, "good") is None
    assert signing_key(tenant, bipsync.keys.current.kid)


def test_an_older_entry_that_is_put_back_revives_no_retired_key(
    bipsync: SimulatedBipsync, tenant: Tenant, clock: Clock
) -> None:
    old = bipsync.keys.current.kid
    assert signing_key(tenant, old)
    entry = cache.get(ENTRY)
    new = bipsync.rotate_keys()
    bipsync.retire_keys()
    clock.advance(2)
    assert signing_key(tenant, new, from_provider=True)
    cache.set(ENTRY, entry)
    assert signing_key(tenant, old) is None
    assert signing_key(tenant, new)


def test_a_key_that_another_process_found_retired_is_gone_here_at_once(
    bipsync: SimulatedBipsync, tenant: Tenant, clock: Clock
) -> None:
    old = bipsync.keys.current.kid
    assert signing_key(tenant, old)
    here = dict(keys._parsed)
    new = bipsync.rotate_keys()
    bipsync.retire_keys()
    clock.advance(2)
    assert signing_key(tenant, new, from_provider=True)
    keys._parsed.clear()
    keys._parsed.update(here)
    assert signing_key(tenant, old) is None
    assert bipsync.calls["jwks"] == 2


def test_an_entry_is_checked_and_parsed_once(
    bipsync: SimulatedBipsync, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    kid = bipsync.keys.current.kid
    signing_key(tenant, kid)
    keys._parsed.clear()
    opened: list[object] = []
    loads = signing.loads

    def note(*args: Any, **kwargs: Any) -> Any:
        opened.append(args)
        return loads(*args, **kwargs)

    monkeypatch.setattr(signing, "loads", note)
    for _ in range(5):
        assert signing_key(tenant, kid)
    assert len(opened) == 1


def test_without_cache_and_provider_this_process_goes_on_for_a_day(
    bipsync: SimulatedBipsync, tenant: Tenant, clock: Clock
) -> None:
    kid = bipsync.keys.current.kid
    signing_key(tenant, kid)
    cache.clear()
    bipsync.stop()
    clock.advance(23 * 3600)
    assert signing_key(tenant, kid)
    clock.advance(2 * 3600)
    with pytest.raises(KeysUnavailable):
        signing_key(tenant, kid)


def test_a_cache_entry_that_was_tampered_with_is_fetched_anew(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    kid = bipsync.keys.current.kid
    signing_key(tenant, kid)
    entry = cache.get(ENTRY)
    middle = len(entry) // 3
    keys._parsed.clear()
    cache.set(ENTRY, entry[:middle] + ("A" if entry[middle] != "A" else "B") + entry[middle + 1 :])
    assert signing_key(tenant, kid, from_provider=True)
    assert bipsync.calls["jwks"] == 2


def test_one_tenants_keys_are_not_anothers(bipsync: SimulatedBipsync, tenant: Tenant) -> None:
    kid = bipsync.keys.current.kid
    assert signing_key(tenant, kid)
    with SimulatedBipsync(client="globex") as other:
        globex = dataclasses.replace(tenant, slug="globex", jwks_url=other.jwks_url)
        assert signing_key(globex, kid) is None
        cache.set("bipsync_django.keys.globex", cache.get(ENTRY))
        assert signing_key(globex, kid, from_provider=True) is None
        moved = dataclasses.replace(tenant, jwks_url=other.jwks_url)
        assert signing_key(moved, kid, from_provider=True) is None


# --- what is published


def _without(jwk: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in jwk.items() if name not in names}


Odd = Callable[[dict[str, Any], dict[int, rsa.RSAPrivateKey]], object]
ODD_KEYS: dict[str, Odd] = {
    "null": lambda good, private: None,
    "number": lambda good, private: 5,
    "list": lambda good, private: [good],
    "empty": lambda good, private: {},
    "empty kid": lambda good, private: {**good, "kid": ""},
    "numeric kid": lambda good, private: {**good, "kid": 7},
    "list kid": lambda good, private: {**good, "kid": ["odd"]},
    "for encryption": lambda good, private: {**good, "use": "enc"},
    "use list": lambda good, private: {**good, "use": ["sig"]},
    "operations without verify": lambda good, private: {**good, "key_ops": ["encrypt"]},
    "no operations": lambda good, private: {**good, "key_ops": []},
    "operations text": lambda good, private: {**good, "key_ops": "verify"},
    "operations dict": lambda good, private: {**good, "key_ops": {"verify": True}},
    "for RS512": lambda good, private: {**good, "alg": "RS512"},
    "for PS256": lambda good, private: {**good, "alg": "PS256"},
    "for none": lambda good, private: {**good, "alg": "none"},
    "for HS256": lambda good, private: {**good, "alg": "HS256"},
    "alg list": lambda good, private: {**good, "alg": ["RS256"]},
    "no modulus": lambda good, private: _without(good, "n"),
    "modulus null": lambda good, private: {**good, "n": None},
    "modulus number": lambda good, private: {**good, "n": 5},
    "modulus empty": lambda good, private: {**good, "n": ""},
    "modulus no base64": lambda good, private: {**good, "n": "é!"},
    "modulus surrogate": lambda good, private: {**good, "n": "\ud800"},
    "exponent one": lambda good, private: {**good, "e": "AQ"},
    "exponent zero": lambda good, private: {**good, "e": "AA"},
    "exponent even": lambda good, private: {**good, "e": "Ag"},
    "exponent as large as the modulus": lambda good, private: {**good, "e": good["n"]},
    "1024 bits": lambda good, private: SigningKey("odd", private[1024]).jwk(),
    "private": lambda good, private: {
        **RSAAlgorithm.to_jwk(private[2048], as_dict=True),
        "alg": "RS256",
        "use": "sig",
    },
    "oct": lambda good, private: {"kty": "oct", "k": "c2VjcmV0", "alg": "RS256"},
    "oct without k": lambda good, private: {"kty": "oct"},
    "EC": lambda good, private: ECAlgorithm.to_jwk(
        ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True
    ),
    "OKP": lambda good, private: {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43},
    "kty list": lambda good, private: {**good, "kty": ["RSA"]},
}


@pytest.mark.parametrize("odd", ODD_KEYS.values(), ids=ODD_KEYS)
def test_an_odd_key_is_passed_over_and_the_others_work(
    odd: Odd,
    bipsync: SimulatedBipsync,
    tenant: Tenant,
    good: dict[str, Any],
    private_keys: dict[int, rsa.RSAPrivateKey],
) -> None:
    key = odd({**good, "kid": "odd"}, private_keys)
    if isinstance(key, dict) and "kid" not in key and "n" not in key:
        key["kid"] = "odd"
    body = json.dumps({"keys": [key, good]}, ensure_ascii=True)
    bipsync.fail("jwks", Answer(200, body), times=None)
    assert signing_key(tenant, "odd", from_provider=True) is None
    assert (
        number_of(signing_key(tenant, "good")) == private_keys[2048].public_key().public_numbers().n
    )


def test_a_private_key_that_is_published_is_not_used(
    bipsync: SimulatedBipsync, tenant: Tenant, private_keys: dict[int, rsa.RSAPrivateKey]
) -> None:
    jwk = {**RSAAlgorithm.to_jwk(private_keys[2048], as_dict=True), "kid": "leaked"}
    assert "d" in jwk
    published(bipsync, jwk)
    with pytest.raises(KeysUnavailable, match="no usable"):
        signing_key(tenant, "leaked")
    published(bipsync, _without(jwk, "d", "p", "q", "dp", "dq", "qi", "key_ops"))
    assert signing_key(tenant, "leaked", from_provider=True)


@pytest.mark.parametrize("member", ["d", "p", "q", "dp", "dq", "qi", "oth"])
@pytest.mark.parametrize("operations", [None, ["verify"]])
def test_a_key_with_a_private_part_is_not_used_whatever_it_is_called_good_for(
    member: str,
    operations: list[str] | None,
    bipsync: SimulatedBipsync,
    tenant: Tenant,
    good: dict[str, Any],
) -> None:
    # Nothing else is wrong with it.
    jwk = good if operations is None else {**good, "key_ops": operations}
    published(bipsync, {**jwk, "kid": "leaked", member: "AQAB"}, {**jwk, "kid": "whole"})
    assert signing_key(tenant, "leaked", from_provider=True) is None
    assert signing_key(tenant, "whole")


@pytest.fixture
def another() -> dict[str, Any]:
    """A key that is as good as ``good``, and is another one."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return SigningKey("another", key).jwk()


def test_a_kid_that_two_keys_have_names_none(
    bipsync: SimulatedBipsync, tenant: Tenant, good: dict[str, Any], another: dict[str, Any]
) -> None:
    published(bipsync, {**another, "kid": "twice"}, good, {**good, "kid": "twice"})
    assert signing_key(tenant, "twice") is None
    assert signing_key(tenant, "good")


def test_a_key_that_is_published_twice_is_one_key(
    bipsync: SimulatedBipsync, tenant: Tenant, good: dict[str, Any]
) -> None:
    published(bipsync, good, {**good, "use": "sig", "x5t": "abc"}, good)
    assert signing_key(tenant, "good")
    assert signing_key(tenant, None)


@pytest.mark.parametrize("member", ["use", "alg", "key_ops", "kid", "d", "x5c"])
def test_a_member_that_is_null_counts_as_absent(
    member: str, bipsync: SimulatedBipsync, tenant: Tenant, good: dict[str, Any]
) -> None:
    published(bipsync, {**good, member: None})
    assert signing_key(tenant, None if member == "kid" else "good")


# --- keys and tokens without names (RFC 7515, section 4.1.4)


def test_a_token_without_a_kid_has_the_only_key(
    bipsync: SimulatedBipsync, tenant: Tenant, good: dict[str, Any]
) -> None:
    published(bipsync, good)
    assert number_of(signing_key(tenant, None)) == number_of(signing_key(tenant, "good"))
    assert signing_key(tenant, "another", from_provider=True) is None


def test_a_key_without_a_kid_is_that_of_each_token_if_it_is_the_only_one(
    bipsync: SimulatedBipsync, tenant: Tenant, good: dict[str, Any]
) -> None:
    published(bipsync, _without(good, "kid"))
    assert signing_key(tenant, None)
    assert signing_key(tenant, "whatever")


def test_among_several_keys_a_token_without_a_kid_has_none(
    bipsync: SimulatedBipsync, tenant: Tenant, good: dict[str, Any], another: dict[str, Any]
) -> None:
    published(bipsync, good, another)
    assert signing_key(tenant, None) is None
    assert signing_key(tenant, "good")


def test_among_several_keys_without_names_no_token_has_one(
    bipsync: SimulatedBipsync, tenant: Tenant, good: dict[str, Any], another: dict[str, Any]
) -> None:
    published(bipsync, _without(good, "kid"), _without(another, "kid"))
    assert signing_key(tenant, None) is None
    assert signing_key(tenant, "good", from_provider=True) is None


def test_a_key_without_a_kid_beside_a_named_one_is_no_tokens(
    bipsync: SimulatedBipsync, tenant: Tenant, good: dict[str, Any], another: dict[str, Any]
) -> None:
    published(bipsync, _without(another, "kid"), good)
    assert signing_key(tenant, "good")
    assert signing_key(tenant, "another", from_provider=True) is None


def test_a_new_key_without_a_name_is_noticed_by_its_first_signature(
    bipsync: SimulatedBipsync, tenant: Tenant, good: dict[str, Any], another: dict[str, Any]
) -> None:
    published(bipsync, _without(good, "kid"))
    old = signing_key(tenant, None)
    published(bipsync, _without(another, "kid"))
    assert signing_key(tenant, None) is old, "as long as nothing says otherwise"
    new = signing_key(tenant, None, from_provider=True, other_than=old)
    assert number_of(new) != number_of(old)


def test_a_wrong_signature_under_a_name_is_not_worth_a_fetch(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    kid = bipsync.keys.current.kid
    key = signing_key(tenant, kid)
    calls = bipsync.calls["jwks"]
    assert signing_key(tenant, kid, from_provider=True, other_than=key) is None
    assert bipsync.calls["jwks"] == calls


def test_keys_after_the_fiftieth_are_in_the_log(
    bipsync: SimulatedBipsync,
    tenant: Tenant,
    good: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    published(bipsync, *({**good, "kid": f"key-{number}"} for number in range(51)))
    assert signing_key(tenant, "key-49")
    assert "The JWKS of acme holds 51 keys; those after the first 50" in caplog.text


def test_keys_may_leave_use_and_alg_out(
    bipsync: SimulatedBipsync, tenant: Tenant, good: dict[str, Any]
) -> None:
    published(bipsync, {**_without(good, "use", "alg"), "key_ops": ["verify", "wrapKey"]})
    assert signing_key(tenant, "good")


def test_only_the_first_fifty_keys_are_looked_at(
    bipsync: SimulatedBipsync, tenant: Tenant, good: dict[str, Any]
) -> None:
    published(bipsync, *({**good, "kid": f"key-{number}"} for number in range(60)))
    assert signing_key(tenant, "key-49")
    assert signing_key(tenant, "key-50", from_provider=True) is None


@pytest.mark.parametrize(
    "how",
    [
        Answer(200, b""),
        Answer(200, b"not json"),
        Answer(200, b"\xff\xfe\x00"),
        Answer(200, "[" * 100_000),
        Answer(200, "null"),
        Answer(200, "[]"),
        Answer(200, "{}"),
        Answer(200, '{"keys": null}'),
        Answer(200, '{"keys": {}}'),
        Answer(200, '{"keys": "x"}'),
        Answer(200, '{"keys": []}'),
        Answer(200, '{"keys": [{"kty": "oct", "kid": "a", "k": "eA"}]}'),
        Answer(200, '{"keys": %s}' % ("9" * 10_000)),
        Answer(200, json.dumps({"keys": [], "padding": "x" * 300_000})),
        Answer(204),
        Answer(404, {"error": "not_found"}),
        Answer(429, headers={"Retry-After": "1"}),
        Answer(500),
        Html(200),
        Html(503),
        DropBefore(),
    ],
    ids=lambda how: repr(how)[:40],
)
def test_a_document_without_usable_keys_is_no_news_about_the_keys(
    how: Any, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    kid = bipsync.keys.current.kid
    bipsync.fail("jwks", how)
    with pytest.raises(KeysUnavailable):
        signing_key(tenant, kid, from_provider=True)
    assert signing_key(tenant, kid, from_provider=True)
    bipsync.fail("jwks", how)
    with pytest.raises(KeysUnavailable):
        signing_key(tenant, "unknown", from_provider=True)
    assert signing_key(tenant, kid), "the last good keys stay"


def test_a_key_document_in_an_error_page_is_not_believed(
    bipsync: SimulatedBipsync, tenant: Tenant, good: dict[str, Any]
) -> None:
    for status in (201, 203, 400, 404, 500, 503):
        bipsync.fail("jwks", Answer(status, {"keys": [good]}))
        with pytest.raises(KeysUnavailable, match=str(status)):
            signing_key(tenant, "good", from_provider=True)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_keys_are_not_fetched_from_where_a_redirect_points(
    status: int, bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    with SimulatedBipsync() as elsewhere:
        bipsync.fail("jwks", Answer(status, headers={"Location": elsewhere.jwks_url}))
        with pytest.raises(KeysUnavailable, match=str(status)):
            signing_key(tenant, elsewhere.keys.current.kid)
        assert not elsewhere.calls


def test_a_document_that_trickles_is_given_up_at_the_deadline(
    bipsync: SimulatedBipsync, tenant: Tenant
) -> None:
    bipsync.fail("jwks", Trickle(0.05))
    with pytest.raises(KeysUnavailable, match="timeout"):
        signing_key(dataclasses.replace(tenant, http_timeout=0.3), "any")


# --- anything at all


@pytest.fixture(scope="module")
def documents() -> Iterator["Documents"]:
    server = Documents()
    yield server
    server.stop()


class Documents:
    """A server whose key document is ``body``."""

    def __init__(self) -> None:
        self.body = b""
        self._server = HttpServer(("127.0.0.1", 0), self._exchange)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/oauth/jwks"

    def _exchange(self, request: Request) -> Response:
        return Response(200, self.body)

    def stop(self) -> None:
        self._server.stop()


ODD_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)
BASE64 = st.binary(max_size=300).map(lambda raw: base64.urlsafe_b64encode(raw).decode().strip("="))
JWKS = st.fixed_dictionaries(
    {"kty": st.just("RSA") | ODD_VALUES, "kid": st.just("k") | ODD_VALUES},
    optional={
        "n": BASE64 | ODD_VALUES,
        "e": st.just("AQAB") | BASE64 | ODD_VALUES,
        "use": st.just("sig") | ODD_VALUES,
        "alg": st.just("RS256") | ODD_VALUES,
    },
)


@hypothesis_settings(max_examples=200, deadline=None, database=None)
@given(
    document=st.binary(max_size=100)
    | st.lists(JWKS | ODD_VALUES, max_size=3).map(
        lambda published: json.dumps({"keys": published}).encode()
    )
)
def test_whatever_is_published_becomes_a_key_or_nothing_or_one_typed_error(
    documents: Documents, document: bytes
) -> None:
    documents.body = document
    tenant = dataclasses.replace(get_tenant(), jwks_url=documents.url)
    forget_keys()
    keys.use_budget(keys.LocalBudget())
    try:
        key = signing_key(tenant, "k")
    except KeysUnavailable:
        return
    assert key is None or key.key.key_size >= 2048


class BrokenCache:
    def __getattr__(self, name: str) -> Any:
        raise ConnectionRefusedError("the cache server is down")


def test_a_cache_that_is_down_keeps_nobody_out(
    bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys, "cache", BrokenCache())
    for from_provider in (True, False):
        raw = bipsync.issue_pair().access_token
        assert validate_access_token(raw, get_tenant(), from_provider=from_provider)
    assert "The cache failed (ConnectionRefusedError)" in caplog.text
