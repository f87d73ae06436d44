"""Bipsync's signing keys: fetched, filtered, cached, and fetched again for an unknown ``kid``.

PyJWT's own ``PyJWKClient`` caches per process, locks over the network, serves nothing while the
endpoint is down and lets raw exceptions escape; ``PyJWKSet`` fails as a whole over one bad key.
So the document is ours to fetch, and PyJWT builds each key.
"""

import functools
import json
import logging
import time
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple, Protocol

import jwt
from django.core import signing
from django.core.cache import cache

from ..caching import despite_errors
from ..conf import Tenant
from ..exceptions import KeysUnavailable, KeysUnusable
from .transport import ExchangeFailed, exchange

__all__ = ["Budget", "LocalBudget", "Permit", "signing_key", "survey", "use_budget"]

logger = logging.getLogger(__name__)


_MAX_DOCUMENT = 256 * 1024
_MAX_KEYS = 50
_MIN_RSA_BITS = 2048
# RFC 7518, section 6.3.2: a key that is published with one of these is nobody's own any more.
_PRIVATE = {"d", "p", "q", "dp", "dq", "qi", "oth"}
# In seconds: how long keys are used as they are, how long when there are no newer ones, how long
# a sign-in waits for somebody else's fetch, and how often it looks.
_FRESH = 3600
_KEPT = 24 * 3600
_FAILED = "Bipsync's keys are not cached"
_WAIT_FOR_OTHERS = 5.0
_POLL = 0.05


class _Key(NamedTuple):
    """What is needed of a published key (RFC 7517, section 4; RFC 7518, section 6.3.1)."""

    kid: str | None
    n: str
    e: str

    def build(self) -> jwt.PyJWK:
        return _built(self.n, self.e)


@dataclass(frozen=True)
class Permit:
    """Whether keys may be fetched now, and when that was allowed last (Unix time)."""

    granted: bool
    at: float


class Budget(Protocol):
    """How often Bipsync is asked for keys. The clock of its permits is the same for everybody."""

    def ask(self, tenant: Tenant, *, for_sign_in: bool) -> Permit:
        """Return a permit. Sign-ins have a budget of their own, which no forged token uses up."""


class LocalBudget:
    """A budget of this process alone."""

    # Seconds from one fetch to the next.
    PAUSE = 10.0
    SIGN_IN_PAUSE = 1.0

    def __init__(self) -> None:
        self._asked: dict[tuple[str, bool], float] = {}

    def ask(self, tenant: Tenant, *, for_sign_in: bool) -> Permit:
        """As ``Budget.ask``."""
        now = time.time()
        pause = self.SIGN_IN_PAUSE if for_sign_in else self.PAUSE
        last = self._asked.get((tenant.jwks_url, for_sign_in))
        # A clock that was put back must not hold everybody up.
        if last is not None and last <= now < last + pause:
            return Permit(granted=False, at=last)
        self._asked[tenant.jwks_url, for_sign_in] = now
        return Permit(granted=True, at=now)


_budget: Budget = LocalBudget()


def use_budget(budget: Budget) -> Budget:
    """Ask ``budget`` from now on; return the one that was asked before."""
    global _budget
    before, _budget = _budget, budget
    return before


def signing_key(
    tenant: Tenant,
    kid: str | None,
    *,
    from_provider: bool = False,
    other_than: jwt.PyJWK | None = None,
) -> jwt.PyJWK | None:
    """Return the tenant's public key called ``kid``, or ``None`` when Bipsync publishes no such.

    Names of keys are optional (RFC 7515, section 4.1.4; RFC 7517, section 4.5). Without a name, in
    the token (``None``) or in the published key, it is the key if no other one is published.

    Keys are used for an hour, and up to a day when they cannot be fetched anew. An unknown
    ``kid`` leads to a fetch, at most once in 10 seconds over all processes, so that forged tokens
    do not flood Bipsync. ``from_provider`` says that the token came straight from the token
    endpoint: that is nobody's forgery, and is fetched for once a second. ``other_than`` is a key
    that did not verify the token: without names, that is how a new key is noticed.

    Raises ``KeysUnavailable`` when the answer depends on keys that cannot be fetched.
    """
    keys = _known(tenant)
    if other_than is not None and keys is not None and keys.has(kid):
        # What the name promised was not true, and a fetch would not make it so.
        return None
    known = keys.find(kid, other_than) if keys is not None else None
    if known and keys is not None and time.time() - keys.fetched < _FRESH:
        return known
    if from_provider and not known:
        return _wait_for(tenant, kid, other_than)
    permit = _budget.ask(tenant, for_sign_in=False)
    if not permit.granted:
        if known:
            return known
        if keys is not None and keys.asked >= permit.at:
            # They are what that permit was for, and the key is not among them.
            return None
        raise KeysUnavailable("Bipsync's signing keys could not be fetched a moment ago.")
    try:
        fetched = _renew(tenant, permit)
    except KeysUnavailable:
        if known:
            return known
        raise
    return fetched.find(kid, other_than)


def _wait_for(tenant: Tenant, kid: str | None, other_than: jwt.PyJWK | None) -> jwt.PyJWK | None:
    """Fetch a key for a sign-in, or take it from who is fetching for another at this moment."""
    give_up = time.monotonic() + _WAIT_FOR_OTHERS
    while True:
        permit = _budget.ask(tenant, for_sign_in=True)
        if permit.granted or time.monotonic() > give_up:
            return _renew(tenant, permit).find(kid, other_than)
        time.sleep(_POLL)
        keys = _known(tenant)
        known = keys.find(kid, other_than) if keys is not None else None
        if known is not None:
            return known


@functools.lru_cache(maxsize=64)
def _built(modulus: str, exponent: str) -> jwt.PyJWK:
    return jwt.PyJWK({"kty": "RSA", "n": modulus, "e": exponent}, algorithm="RS256")


def survey(tenant: Tenant) -> tuple[int, int]:
    """Fetch, and return how many keys are published and how many of them are of use here.

    For whoever looks into a problem: it asks no budget and keeps nothing. Raises
    ``KeysUnavailable``.
    """
    published = _document(tenant)
    return len(published), len(_usable(published))


def _fetch(tenant: Tenant) -> list[_Key]:
    published = _document(tenant)
    if len(published) > _MAX_KEYS:
        logger.error(
            "The JWKS of %s holds %s keys; those after the first %s are not looked at.",
            tenant.slug,
            len(published),
            _MAX_KEYS,
        )
    keys = _usable(published)
    if not keys:
        raise KeysUnusable("Bipsync's JWKS holds no usable RS256 key: check JWKS_URL.")
    return keys


def _document(tenant: Tenant) -> list[Any]:
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
    if not isinstance(published, list):
        raise KeysUnavailable("Bipsync's answer is no JWKS: check JWKS_URL if it stays so.")
    return published


def _usable(published: list[Any]) -> list[_Key]:
    """Return the RS256 signature keys, each once."""
    keys: dict[_Key, None] = {}
    for jwk in published[:_MAX_KEYS]:
        if isinstance(jwk, dict) and _is_signature_key(jwk):
            keys[_Key(jwk.get("kid"), jwk["n"], jwk["e"])] = None
    return [key for key in keys if _is_sound(key)]


def _is_signature_key(jwk: dict[Any, Any]) -> bool:
    # A member that is null counts as absent.
    jwk = {name: value for name, value in jwk.items() if value is not None}
    kid = jwk.get("kid", "none")
    return (
        jwk.get("kty") == "RSA"
        and jwk.get("use", "sig") == "sig"
        and jwk.get("alg", "RS256") == "RS256"
        and _may_verify(jwk.get("key_ops", ["verify"]))
        and not _PRIVATE & jwk.keys()
        and isinstance(kid, str)
        and bool(kid)
        and all(isinstance(jwk.get(name), str) and jwk[name] for name in ("n", "e"))
    )


def _may_verify(operations: object) -> bool:
    return isinstance(operations, list) and "verify" in operations


def _is_sound(published: _Key) -> bool:
    try:
        key = published.build().key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, OverflowError):
        return False
    return bool(key.key_size >= _MIN_RSA_BITS)


# --- the cache; signed, because whoever can write it could otherwise sign in as anyone


@dataclass(frozen=True)
class _Keys:
    """What was published: when (Unix time of the host), and by which permit of the budget."""

    fetched: float
    asked: float
    keys: list[_Key]

    def has(self, kid: str | None) -> bool:
        """Return whether a key is published under the name ``kid``."""
        return kid is not None and any(key.kid == kid for key in self.keys)

    def find(self, kid: str | None, other_than: jwt.PyJWK | None) -> jwt.PyJWK | None:
        """Return the key that has to have signed a token which names ``kid``.

        A name that two different keys have names neither.
        """
        is_nameless = kid is None or all(key.kid is None for key in self.keys)
        found = [key for key in self.keys if is_nameless or key.kid == kid]
        built = {key.build() for key in found}
        return built.pop() if len(built) == 1 and other_than not in built else None


# What this process has read last: the sealed entry itself, and the newest keys so far. Checking
# and parsing is for what is new; and while the cache is away these are what is left.
_parsed: dict[str, tuple[str | None, _Keys]] = {}


def _renew(tenant: Tenant, permit: Permit) -> _Keys:
    keys = _Keys(fetched=time.time(), asked=permit.at, keys=_fetch(tenant))
    sealed = signing.dumps(astuple(keys), salt=_salt(tenant), compress=True)
    despite_errors(lambda: cache.set(_name(tenant), sealed, _KEPT), None, _FAILED)
    _parsed[_salt(tenant)] = (sealed, keys)
    return keys


def _known(tenant: Tenant) -> _Keys | None:
    """Return the newest keys of the cache and of this process, if they are of today."""
    place = _salt(tenant)
    sealed = despite_errors(lambda: cache.get(_name(tenant)), None, _FAILED)
    seen, held = _parsed.get(place, (None, None))
    if sealed is not None and sealed != seen:
        read = _open(sealed, place)
        # Somebody who can write the cache may have put an older entry back, with retired keys.
        if read is not None and (held is None or read.asked >= held.asked):
            _parsed[place] = (sealed, read)
            held = read
    return held if held is not None and time.time() - held.fetched < _KEPT else None


def _open(sealed: object, salt: str) -> _Keys | None:
    try:
        fetched, asked, keys = signing.loads(sealed, salt=salt, max_age=_KEPT)  # type: ignore[arg-type]
        return _Keys(fetched, asked, [_Key(*key) for key in keys])
    except (signing.BadSignature, TypeError, ValueError, AttributeError):
        # TypeError and ValueError: what another version of this package has put there.
        return None


def _name(tenant: Tenant) -> str:
    return f"bipsync_django.keys.{tenant.slug}"


def _salt(tenant: Tenant) -> str:
    return f"bipsync_django.keys:{tenant.slug}:{tenant.jwks_url}"
