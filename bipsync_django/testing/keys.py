"""The simulated tenant's signing keys and their JWKS (RFC 7517)."""

import secrets
import threading
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm


class _Pool:
    """RSA keys that outlive the simulators that use them.

    Making a key costs more than most tests. Two simulators that run at the same time never hold
    the same key, so that one tenant's signature is worth nothing at another's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uses: list[tuple[rsa.RSAPrivateKey, list[object]]] = []

    def lease(self, holder: object) -> rsa.RSAPrivateKey:
        with self._lock:
            for key, holders in self._uses:
                if not holders:
                    holders.append(holder)
                    return key
            key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            self._uses.append((key, [holder]))
            return key

    def resume(self, key: rsa.RSAPrivateKey, holder: object) -> None:
        with self._lock:
            for pooled, holders in self._uses:
                if pooled is key and holder not in holders:
                    holders.append(holder)

    def release(self, holder: object) -> None:
        with self._lock:
            for _, holders in self._uses:
                if holder in holders:
                    holders.remove(holder)


_pool = _Pool()


@dataclass(frozen=True)
class SigningKey:
    """A private key and the ``kid`` under which its public half is published."""

    kid: str
    private: rsa.RSAPrivateKey

    def jwk(self) -> dict[str, Any]:
        """Return the public half as a JSON Web Key."""
        numbers = RSAAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        return {
            "kty": "RSA",
            "use": "sig",
            "alg": "RS256",
            "kid": self.kid,
            "n": numbers["n"],
            "e": numbers["e"],
        }

    def public_pem(self) -> bytes:
        """Return the public half in PEM form."""
        return self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


class KeyRing:
    """The published keys, the newest of which signs."""

    def __init__(self) -> None:
        self._keys = [self._new()]

    def _new(self) -> SigningKey:
        # A fresh kid each time: a pooled key must not look familiar to a cached JWKS.
        return SigningKey(secrets.token_urlsafe(32), _pool.lease(self))

    @property
    def current(self) -> SigningKey:
        """The key that signs new access tokens."""
        return self._keys[-1]

    def find(self, kid: object) -> SigningKey | None:
        """Return the published key called ``kid``."""
        return next((key for key in self._keys if key.kid == kid), None)

    def rotate(self) -> SigningKey:
        """Sign with a new key from now on; the old ones stay published."""
        self._keys = [*self._keys, self._new()]
        return self.current

    def retire(self) -> None:
        """Publish the current key alone."""
        self._keys = self._keys[-1:]

    def jwks(self) -> dict[str, Any]:
        """Return the published keys as a JSON Web Key Set, newest first."""
        return {"keys": [key.jwk() for key in reversed(self._keys)]}

    def release(self) -> None:
        """Let later simulators use the same key material."""
        _pool.release(self)

    def resume(self) -> None:
        """Take the same keys up again after ``release()``."""
        for key in self._keys:
            _pool.resume(key.private, self)

    def dump(self) -> list[dict[str, str]]:
        """Return the keys, private halves included, ready for JSON."""
        return [
            {
                "kid": key.kid,
                "pem": key.private.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                ).decode(),
            }
            for key in self._keys
        ]

    def load(self, dumped: list[dict[str, str]]) -> None:
        """Replace the keys with those of an earlier ``dump()``."""
        keys = []
        for entry in dumped:
            private = serialization.load_pem_private_key(entry["pem"].encode(), password=None)
            if not isinstance(private, rsa.RSAPrivateKey):
                raise TypeError("The state file holds a key that is not an RSA key.")
            keys.append(SigningKey(entry["kid"], private))
        _pool.release(self)
        self._keys = keys
