"""Bipsync's signing keys: fetched, filtered, cached, and fetched again for an unknown ``kid``.

PyJWT's own ``PyJWKClient`` caches per process, locks over the network, serves nothing while the
endpoint is down and lets raw exceptions escape; ``PyJWKSet`` fails as a whole over one bad key.
So the document is ours to fetch, and PyJWT builds each key.
"""

import functools
import json
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jwt
from django.core import signing
from django.core.cache import cache

from ..conf import Tenant
from ..exceptions import KeysUnavailable
from .transport import ExchangeFailed, exchange

__all__ = ["signing_key"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_DOCUMENT = 256 * 1024
_MAX_KEYS = 50
_MIN_RSA_BITS = 2048
_FRESH = 3600
_KEPT = 24 * 3600
_COOLDOWN = 10


def signing_key(tenant: Tenant, kid: str, *, from_provider: bool = False) -> jwt.PyJWK | None:
    """Return the tenant's public key called ``kid``, or ``None`` when Bipsync publishes no such.

    Keys are used for an hour, and up to a day when they cannot be fetched anew. An unknown
    ``kid`` leads to a fetch: always when the token came straight from the token endpoint
    (``from_provider``), else at most once in 10 seconds, so that forged tokens do not flood
    Bipsync.

    Raises ``KeysUnavailable`` when the answer depends on keys that cannot be fetched.
    """
    entry = _cached(tenant)
    known = entry["keys"].get(kid) if entry is not None else None
    if known and entry is not None and time.time() - entry["at"] < _FRESH:
        return _build(known)
    if not (from_provider and not known) and not _may_fetch_again(tenant, entry):
        if known:
            return _build(known)
        if entry is not None and _is_news(tenant, entry):
            return None
        raise KeysUnavailable("Bipsync's signing keys could not be fetched a moment ago.")
    try:
        keys = _fetch(tenant)
    except KeysUnavailable:
        if known:
            return _build(known)
        raise
    _store(tenant, keys)
    return _build(keys[kid]) if kid in keys else None


def _build(jwk: dict[str, Any]) -> jwt.PyJWK:
    return _built(jwk["n"], jwk["e"])


@functools.lru_cache(maxsize=64)
def _built(modulus: str, exponent: str) -> jwt.PyJWK:
    return jwt.PyJWK({"kty": "RSA", "n": modulus, "e": exponent}, algorithm="RS256")


def _fetch(tenant: Tenant) -> dict[str, dict[str, Any]]:
    try:
        response = exchange(
            "GET",
            tenant.jwks_url,
            tenant=tenant,
            max_bytes=_MAX_DOCUMENT,
            headers={"Accept": "application/json"},
        )
    except ExchangeFailed as error:
        raise KeysUnavailable(f"Bipsync's signing keys cannot be fetched ({error.code}).") from None
    if response.status_code != 200:
        raise KeysUnavailable(
            f"Bipsync's signing keys cannot be fetched (status {response.status_code})."
        )
    try:
        document = json.loads(response.raw.read())
    except (ValueError, RecursionError):
        document = None
    published = document.get("keys") if isinstance(document, dict) else None
    keys = _usable(published) if isinstance(published, list) else {}
    if not keys:
        raise KeysUnavailable("Bipsync's key document holds no usable RS256 key.")
    return keys


def _usable(published: list[Any]) -> dict[str, dict[str, Any]]:
    """Return what is needed of each RS256 signature key, by ``kid``."""
    keys: dict[str, dict[str, Any]] = {}
    repeated: set[str] = set()
    for jwk in published[:_MAX_KEYS]:
        if not isinstance(jwk, dict) or not _is_signature_key(jwk):
            continue
        kid = jwk["kid"]
        if kid in keys:
            repeated.add(kid)
        keys[kid] = {name: jwk[name] for name in ("n", "e")}
    return {kid: jwk for kid, jwk in keys.items() if kid not in repeated and _is_sound(jwk)}


def _is_signature_key(jwk: dict[Any, Any]) -> bool:
    return (
        jwk.get("kty") == "RSA"
        and jwk.get("use", "sig") == "sig"
        and jwk.get("alg", "RS256") == "RS256"
        and "d" not in jwk
        and all(isinstance(jwk.get(name), str) and jwk[name] for name in ("kid", "n", "e"))
    )


def _is_sound(jwk: dict[str, Any]) -> bool:
    try:
        key = _build(jwk).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, OverflowError):
        return False
    return bool(key.key_size >= _MIN_RSA_BITS)


# --- the cache; signed, because whoever can write it could otherwise sign in as anyone


def _name(tenant: Tenant) -> str:
    return f"bipsync_django.keys.{tenant.slug}"


def _cooldown_name(tenant: Tenant) -> str:
    return f"bipsync_django.keys.cooldown.{tenant.slug}"


def _salt(tenant: Tenant) -> str:
    return f"bipsync_django.keys:{tenant.slug}:{tenant.jwks_url}"


def _store(tenant: Tenant, keys: dict[str, dict[str, Any]]) -> None:
    entry = signing.dumps({"at": time.time(), "keys": keys}, salt=_salt(tenant), compress=True)
    _despite_errors(lambda: cache.set(_name(tenant), entry, _KEPT), None)


def _cached(tenant: Tenant) -> dict[str, Any] | None:
    sealed = _despite_errors(lambda: cache.get(_name(tenant)), None)
    try:
        entry = signing.loads(sealed, salt=_salt(tenant), max_age=_KEPT) if sealed else None
    except (signing.BadSignature, TypeError, AttributeError):
        return None
    return entry if isinstance(entry, dict) else None


def _may_fetch_again(tenant: Tenant, entry: dict[str, Any] | None) -> bool:
    """Take the cooldown, which remembers the keys that were not enough by their age."""
    stale = 0.0 if entry is None else entry["at"]
    return _despite_errors(lambda: cache.add(_cooldown_name(tenant), stale, _COOLDOWN), True)


def _is_news(tenant: Tenant, entry: dict[str, Any]) -> bool:
    """Whether ``entry`` was fetched since the cooldown began, so that it tells what is published.

    As long as that fetch is under way, or when it has failed, an unknown key is undecided. The
    times are only told apart: several hosts' clocks may disagree.
    """
    stale = _despite_errors(lambda: cache.get(_cooldown_name(tenant)), None)
    return stale is not None and stale != entry["at"]


def _despite_errors(ask_cache: Callable[[], T], otherwise: T) -> T:
    """Go on without a cache that fails: keys are fetched more often then, and nobody stays out."""
    try:
        return ask_cache()
    except Exception as error:  # noqa: BLE001 - each cache server's client has errors of its own
        logger.warning(
            "The cache failed (%s); Bipsync's keys are not cached.", type(error).__name__
        )
        return otherwise
