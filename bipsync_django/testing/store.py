"""What the simulated provider remembers: codes, pairs of tokens and open consent pages."""

import hashlib
import secrets
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any

# Enough dead refresh tokens for "revoked" to be told apart from "never heard of" in a long run,
# few enough for the state file to stay small.
_REMEMBERED_DEAD_PAIRS = 1000
_OPEN_CONSENT_PAGES = 1000


def digest(token: str) -> str:
    """Return what a code or refresh token is remembered by.

    The real ones are hexadecimal ciphertexts and work in either case.
    """
    return hashlib.sha256(token.lower().encode("utf-8", "surrogatepass")).hexdigest()


@dataclass
class Code:
    """An authorization code. ``redirect_uri_given`` is whether the request named it."""

    client_id: str
    user_id: str
    scopes: tuple[str, ...]
    redirect_uri: str
    redirect_uri_given: bool
    challenge: str
    challenge_method: str
    expires_at: float
    spent: bool = False


@dataclass
class Pair:
    """An access token and the refresh token issued with it.

    ``family`` is shared by all pairs that stem from one sign-in.
    """

    jti: str
    refresh_digest: str
    family: str
    client_id: str
    user_id: str
    scopes: tuple[str, ...]
    refresh_expires_at: float
    revoked: bool = False


class GrantStore:
    """Grants in memory. Callers that check and then change hold ``lock`` for both."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._codes: dict[str, Code] = {}
        self._by_jti: dict[str, Pair] = {}
        self._by_refresh: dict[str, Pair] = {}
        self._consent: OrderedDict[str, str] = OrderedDict()

    def add_code(self, code: str, record: Code) -> None:
        """Remember a fresh authorization code."""
        with self.lock:
            self._codes[digest(code)] = record

    def code(self, code: str) -> Code | None:
        """Return what is known about ``code``, spent or not."""
        return self._codes.get(digest(code))

    def add_pair(self, pair: Pair) -> None:
        """Remember a fresh pair."""
        with self.lock:
            self._by_jti[pair.jti] = pair
            self._by_refresh[pair.refresh_digest] = pair

    def by_refresh_token(self, refresh_token: str) -> Pair | None:
        """Return the pair that ``refresh_token`` belongs to, revoked or not."""
        return self._by_refresh.get(digest(refresh_token))

    def by_jti(self, jti: object) -> Pair | None:
        """Return the pair whose access token is called ``jti``, revoked or not."""
        return self._by_jti.get(jti) if isinstance(jti, str) else None

    def revoke_family(self, family: str) -> None:
        """Revoke every pair that stems from one sign-in."""
        with self.lock:
            for pair in self._by_jti.values():
                if pair.family == family:
                    pair.revoked = True

    def revoke_user(self, user_id: str) -> None:
        """Revoke every pair of a user, and their unspent codes."""
        with self.lock:
            for pair in self._by_jti.values():
                if pair.user_id == user_id:
                    pair.revoked = True
            for code in self._codes.values():
                if code.user_id == user_id:
                    code.spent = True

    def users_with_grants(self) -> set[str]:
        """Return the ids of the users who have a pair that is not revoked."""
        with self.lock:
            return {pair.user_id for pair in self._by_jti.values() if not pair.revoked}

    def open_consent(self, query: str) -> str:
        """Remember an authorization request; return the id that its form must bring back."""
        request_id = secrets.token_urlsafe(24)
        with self.lock:
            self._consent[request_id] = query
            while len(self._consent) > _OPEN_CONSENT_PAGES:
                self._consent.popitem(last=False)
        return request_id

    def close_consent(self, request_id: str) -> str | None:
        """Return the authorization request behind a form, once."""
        with self.lock:
            return self._consent.pop(request_id, None)

    def dump(self) -> list[dict[str, Any]]:
        """Return the pairs, without any token, ready for JSON."""
        with self.lock:
            pairs = list(self._by_jti.values())
            dead = [pair for pair in pairs if pair.revoked][-_REMEMBERED_DEAD_PAIRS:]
            return [asdict(pair) for pair in [*dead, *(p for p in pairs if not p.revoked)]]

    def load(self, dumped: list[dict[str, Any]]) -> None:
        """Add the pairs of an earlier ``dump()``."""
        for entry in dumped:
            self.add_pair(Pair(**{**entry, "scopes": tuple(entry["scopes"])}))
