"""Tokens as strings: signed JWTs, and refresh tokens and codes that nobody can look into."""

import base64
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from types import EllipsisType
from typing import Any

import jwt
from jwt.api_jws import PyJWS

from .keys import KeyRing, SigningKey


class ApiRefusedError(Exception):
    """The API will not serve this bearer token; ``hint`` is the recorded reason."""

    def __init__(self, hint: str) -> None:
        super().__init__(hint)
        self.hint = hint


def opaque(payload: Mapping[str, object]) -> str:
    """Return a token shaped, and as long, as the real package's ciphertext of ``payload``.

    That is the encryption library's header ``def50200``, then salt, nonce, ciphertext and
    authentication tag (84 bytes with the header) in hexadecimal. A column that is too narrow
    for a user with many scopes is found here rather than in production.
    """
    size = 80 + len(json.dumps(payload, separators=(",", ":")))
    return "def50200" + secrets.token_hex(size)


def sign(
    claims: Mapping[str, Any],
    *,
    current: SigningKey,
    kid: str | EllipsisType | None,
    key: Any,
    algorithm: str,
    headers: Mapping[str, Any] | None,
) -> str:
    """Return ``claims`` as a signed JWT; see ``SimulatedBipsync.sign()``."""
    header: dict[str, Any] = {}
    if kid is ...:
        header["kid"] = current.kid
    elif kid is not None:
        header["kid"] = kid
    header.update(headers or {})
    payload = json.dumps(claims, separators=(",", ":")).encode()
    if algorithm == "HS256":
        return _sign_hs256(header, payload, key)
    if key is ...:
        key = None if algorithm == "none" else current.private
    return PyJWS().encode(payload, key, algorithm, headers=header, sort_headers=False)


def _sign_hs256(header: Mapping[str, Any], payload: bytes, key: bytes) -> str:
    # PyJWT will not use a public key as an HMAC secret; somebody who forges tokens will.
    def encode(raw: bytes) -> bytes:
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    jose = json.dumps({"typ": "JWT", "alg": "HS256", **header}).encode()
    signed = encode(jose) + b"." + encode(payload)
    return (signed + b"." + encode(hmac.digest(key, signed, "sha256"))).decode()


def verify(raw: str, keys: KeyRing, *, now: float) -> dict[str, Any]:
    """Return the claims of an access token that one of ``keys`` signed and that has not expired.

    Args:
        raw: the token, a compact JWS (RFC 7515).
        keys: the published keys.
        now: the provider's own time, in seconds since the epoch.

    Raises:
        ApiRefusedError: with the recorded package's reason.
    """
    parts = raw.split(".")
    if len(parts) != 3:
        raise ApiRefusedError("The JWT string must have two dots")
    if not parts[2]:
        raise ApiRefusedError("The JWT string is missing the Signature part")
    if not all(re.fullmatch(r"[A-Za-z0-9_-]*", part) and len(part) % 4 != 1 for part in parts):
        raise ApiRefusedError(
            "Error while decoding from Base64Url, invalid base64 characters detected"
        )
    unverified = ApiRefusedError("Access token could not be verified")
    try:
        key = keys.find(jwt.get_unverified_header(raw).get("kid"))
        if key is None:
            raise unverified
        # The signature alone: claims are judged by the provider's clock, which need not be ours,
        # and may be as odd as a test wants them.
        signed = PyJWS().decode(raw, key.private.public_key(), algorithms=["RS256"])
        claims: dict[str, Any] = json.loads(signed)
    except (jwt.PyJWTError, ValueError) as error:
        raise unverified from error
    expires_at = claims.get("exp")
    if not isinstance(expires_at, int | float) or now >= expires_at:
        raise unverified
    return claims
