"""Access tokens that nobody may get in with, made from a seed; and odd ones that are good.

A forger here has more than a real one could: the private key itself, so that each defence behind
the signature is tried alone. ``KINDS`` names the kinds of forgery. The same key, seed and time
make the same tokens, except for signatures that hold chance of their own (PS256, ES256).
"""

import base64
import functools
import hashlib
import hmac
import json
import math
import random
import string
import time
import unicodedata
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from bipsync_django.conf import Tenant
from bipsync_django.exceptions import KeysUnavailable, TokenRefused
from bipsync_django.oauth.claims import validate_access_token
from bipsync_django.testing.keys import SigningKey

AUDIENCE = "portal"
ISSUER = "https://acme.bipsync.example"
ACCEPTED = "accepted"
FOREIGN = "foreign exception: "

_CAP = 16 * 1024
_HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "256": hashes.SHA256,
    "384": hashes.SHA384,
    "512": hashes.SHA512,
}
_BASE64URL = string.ascii_letters + string.digits + "-_"
_GAPS = " \t\n\r\x0b\x0c\x00\x85\xa0\u2028\u200b\ufeff"
_ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-7")
_EVIL = (
    "https://evil.example/jwks.json",
    "http://127.0.0.1:9/jwks",
    "file:///etc/passwd",
    "data:application/json,{}",
    "//evil.example/k",
)
# What an address, a query or a path might be made of.
_INJECTIONS = (
    "../../../../dev/null",
    "..\\..\\windows\\win.ini",
    "' OR '1'='1",
    "x' UNION SELECT 'AAAA'--",
    "1; DROP TABLE keys",
    "${jndi:ldap://evil.example/a}",
    "{{7*7}}",
    "|/bin/true",
    "%2e%2e%2f",
    "*",
    "\x00",
    "\ud800",
    "\u202e",
    *_EVIL,
)


def outcome(raw: str, tenant: Tenant) -> str:
    """Return ``ACCEPTED``, our own words of refusal, or what begins with ``FOREIGN``."""
    try:
        validate_access_token(raw, tenant)
    except (TokenRefused, KeysUnavailable) as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - that there is none is what is tried
        return f"{FOREIGN}{error!r}"
    return ACCEPTED


@functools.cache
def _rsa(bits: int, exponent: int = 65537) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=exponent, key_size=bits)


@functools.cache
def _curve() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _encode(raw: bytes | bytearray) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decode(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "==")


def _json(value: object) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def _without(members: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in members.items() if name not in names}


class Forger:
    """Makes tokens of exactly what it is told, for an application that is called ``AUDIENCE``.

    Args:
        key: the published key.
        seed: whatever is to be made once more.
        now: a Unix time; tokens are good from then on for an hour.
    """

    def __init__(self, key: SigningKey, seed: object, now: float | None = None) -> None:
        self.key = key
        self.random = random.Random(str(seed))  # noqa: S311 - to be repeated, not to be secret
        self.now = time.time() if now is None else now
        self.choose: Callable[[Sequence[Any]], Any] = self.random.choice

    def often(self) -> bool:
        return self.random.random() < 0.5

    def text(self, length: int, alphabet: str = _BASE64URL) -> str:
        return "".join(self.random.choices(alphabet, k=length))

    def header(self, **changes: Any) -> dict[str, Any]:
        return {"typ": "JWT", "alg": "RS256", "kid": self.key.kid, **changes}

    def claims(self, **changes: Any) -> dict[str, Any]:
        return {
            "aud": AUDIENCE,
            "iss": ISSUER,
            "jti": self.random.randbytes(40).hex(),
            "iat": self.now,
            "nbf": self.now,
            "exp": self.now + 3600,
            "sub": self.random.randbytes(12).hex(),
            "scopes": ["users:read"],
            **changes,
        }

    def signing_input(self, header: object = None, payload: object = None) -> str:
        header = self.header() if header is None else header
        payload = self.claims() if payload is None else payload
        return f"{_encode(_json(header))}.{_encode(_json(payload))}"

    def signed(
        self, header: object = None, payload: object = None, key: rsa.RSAPrivateKey | None = None
    ) -> str:
        """Return a token with an RS256 signature, by default that of the published key."""
        signing_input = self.signing_input(header, payload)
        return f"{signing_input}.{_encode(self.rs256(signing_input, key))}"

    def rs256(self, signing_input: str, key: rsa.RSAPrivateKey | None = None) -> bytes:
        signer = key or self.key.private
        return signer.sign(signing_input.encode(), padding.PKCS1v15(), hashes.SHA256())

    def odd(self) -> Any:
        """Return a value that is no text and no sane number."""
        return self.choose(
            (
                None,
                True,
                False,
                math.nan,
                math.inf,
                -math.inf,
                1e300,
                -1e300,
                -1,
                0,
                10**400,
                [],
                {},
                [[]],
                [None],
                [{"a": [1, {}]}],
                {"a": {"b": []}},
                {AUDIENCE: True},
                nested(self.random.randint(2, 60)),
            )
        )

    def foreigner(self) -> rsa.RSAPrivateKey:
        return _rsa(*self.choose(((2048, 65537), (1024, 65537), (2048, 3), (3072, 65537))))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@dataclass(frozen=True)
class Kind:
    """How to make one forgery, and parts of the refusals that many of them meet together."""

    forge: Callable[[Forger], str]
    refusals: tuple[str, ...]


KINDS: dict[str, Kind] = {}


def _kind(*refusals: str) -> Callable[[Callable[[Forger], str]], Callable[[Forger], str]]:
    def register(forge: Callable[[Forger], str]) -> Callable[[Forger], str]:
        KINDS[forge.__name__] = Kind(forge, refusals)
        return forge

    return register


# --- algorithms


@_kind("not signed with RS256", "not a JWT")
def unsigned(forger: Forger) -> str:
    spelling = "".join(forger.choose((c, c.upper())) for c in "none")
    algorithm = forger.choose(
        (spelling, spelling, f" {spelling}", f"{spelling}\x00", "", "n\u03bfne", "ｎｏｎｅ", "null")
    )
    signing_input = forger.signing_input(forger.header(alg=algorithm))
    signature = forger.choose(
        (
            lambda: b"",
            lambda: b"none",
            lambda: forger.random.randbytes(256),
            lambda: forger.rs256(signing_input),
        )
    )
    return f"{signing_input}.{_encode(signature())}"


@_kind("not signed with RS256", "InvalidSignature")
def shared_secret(forger: Forger) -> str:
    secret = forger.choose(_public_secrets(forger.key))
    size = forger.choose(list(_HASHES))
    name = forger.choose((f"HS{size}", "RS256", f"hs{size}"))
    signing_input = forger.signing_input(forger.header(alg=name))
    digest = hmac.digest(secret, signing_input.encode(), f"sha{size}")
    return f"{signing_input}.{_encode(digest)}"


@functools.cache
def _public_secrets(key: SigningKey) -> tuple[bytes, ...]:
    """Return what somebody might take for the secret who verifies HS256 with a public key."""
    public = key.private.public_key()
    encoded = [
        public.public_bytes(encoding, form)
        for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER)
        for form in (
            serialization.PublicFormat.SubjectPublicKeyInfo,
            serialization.PublicFormat.PKCS1,
        )
    ]
    jwk = key.jwk()
    return (
        *encoded,
        *(pem.strip() for pem in encoded[:2]),
        *(pem.replace(b"\n", b"\r\n") for pem in encoded[:2]),
        json.dumps(jwk).encode(),
        json.dumps(jwk, separators=(",", ":"), sort_keys=True).encode(),
        json.dumps({"keys": [jwk]}).encode(),
        jwk["n"].encode(),
        _decode(jwk["n"]),
        jwk["kid"].encode(),
        b"portal-secret",
        b"",
        b"None",
    )


@_kind("not signed with RS256", "InvalidSignature")
def algorithm(forger: Forger) -> str:
    if forger.often():
        odd = forger.choose(
            (
                "".join(forger.choose(pair) for pair in ("rR", "sS")) + "2\uff156",
                *("rs256", "Rs256", " RS256", "RS256 ", "RS256\x00", "RS-256", "RSA", "SHA256", ""),
                *("RS384", "PS256", "ES256", "EdDSA", "dir", "RSA-OAEP", "RS256,none", "RS1"),
                *(["RS256"], ["none", "RS256"], {"RS256": True}, [], {}, 256, 0, True, None, 1.5),
            )
        )
        header = forger.header(alg=odd)
        return forger.signed(_without(header, "alg") if forger.random.random() < 0.1 else header)
    family, size = forger.choose(("RS", "PS", "ES")), forger.choose(list(_HASHES))
    if family == "RS" and size == "256":
        size = "512"
    name = "RS256" if forger.often() else f"{family}{size}"
    signing_input = forger.signing_input(forger.header(alg=name))
    hashing = _HASHES[size]()
    if family == "ES":
        return f"{signing_input}.{_encode(_elliptic(signing_input, hashing))}"
    scheme: Any = padding.PKCS1v15()
    if family == "PS":
        scheme = padding.PSS(padding.MGF1(hashing), hashing.digest_size)
    key = forger.key.private if forger.random.random() < 0.8 else _rsa(2048)
    return f"{signing_input}.{_encode(key.sign(signing_input.encode(), scheme, hashing))}"


def _elliptic(signing_input: str, hashing: hashes.HashAlgorithm) -> bytes:
    r, s = decode_dss_signature(_curve().sign(signing_input.encode(), ec.ECDSA(hashing)))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


# --- keys


@_kind("InvalidSignature", "does not publish")
def foreign_key(forger: Forger) -> str:
    kid = forger.choose((forger.key.kid, forger.key.kid, "own", forger.text(43)))
    header = forger.header(kid=kid)
    if forger.random.random() < 0.1:
        signing_input = forger.signing_input(header)
        return f"{signing_input}.{_encode(_elliptic(signing_input, hashes.SHA256()))}"
    return forger.signed(header, key=forger.foreigner())


@_kind("InvalidSignature")
def arithmetic(forger: Forger) -> str:
    """Signatures that are numbers in some relation to the public key or to a good signature."""
    signing_input = forger.signing_input()
    n = forger.key.private.public_key().public_numbers().n
    block = int.from_bytes(_padded(signing_input), "big")
    good = int.from_bytes(forger.rs256(signing_input), "big") if forger.often() else 0
    number = forger.choose(
        (
            block,
            _cube_root(int.from_bytes(_padded(signing_input, fill=8).ljust(256, b"\xff"), "big")),
            n - block,
            n - good,
            good + n,
            2 * good % n,
            good ^ 1,
            good * good % n,
            *(0, 1, n - 1, n, n + 1, 2**2048 - 1),
        )
    )
    raw = number.to_bytes(max(256, (number.bit_length() + 7) // 8), "big")
    change = forger.choose(
        (lambda s: s, lambda s: s[::-1], lambda s: b"\x00" + s, lambda s: s[1:], lambda s: s + s)
    )
    return f"{signing_input}.{_encode(change(raw))}"


def _padded(signing_input: str, fill: int = 202) -> bytes:
    """Return what a signature has to be under the exponent 1 (RFC 8017, section 9.2)."""
    prefix = bytes.fromhex("3031300d060960864801650304020105000420")
    digest = hashlib.sha256(signing_input.encode()).digest()
    return b"\x00\x01" + b"\xff" * fill + b"\x00" + prefix + digest


def _cube_root(number: int) -> int:
    root = 1 << -(-number.bit_length() // 3)
    while (closer := (2 * root + number // (root * root)) // 3) < root:
        root = closer
    return root


@_kind("(kid) is not usable", "does not publish", "header is malformed", "InvalidSignature")
def key_name(forger: Forger) -> str:
    kid = forger.key.kid
    name = forger.choose(
        (
            *("", None, 7, 0, True, 1e300, [kid], [], {"kid": kid}, [[kid]], nested(50)),
            kid + forger.choose(_GAPS + "./%=#?"),
            forger.choose(_GAPS + "./%=#?") + kid,
            kid.swapcase(),
            kid[: forger.random.randint(1, 42)],
            kid * forger.random.randint(2, 200),
            kid[:-1] + forger.choose([c for c in _BASE64URL if c != kid[-1]]),
            "".join(chr(ord(c) + 0xFEE0) for c in kid),
            "x" * forger.random.randint(256, 9000),
            forger.text(43),
            forger.text(forger.random.randint(1, 60), string.printable),
            *_INJECTIONS,
            forger.choose(_INJECTIONS) + kid,
        )
    )
    header = forger.header(kid=name)
    if name is None or forger.random.random() < 0.05:
        # A token need not name its key, but that key has to have signed it.
        return forger.signed(_without(header, "kid"), key=forger.foreigner())
    return forger.signed(header)


@_kind("InvalidSignature", "does not publish", "(kid) is not usable", "not signed with RS256")
def key_brought_along(forger: Forger) -> str:
    key = forger.foreigner()
    own = forger.choose(("own", forger.key.kid, forger.text(43)))
    jwk = SigningKey(own, key).jwk()
    url = forger.choose(_EVIL)
    oct_jwk = {"kty": "oct", "k": _encode(b"secret"), "alg": "HS256", "kid": own}
    pool = {
        "jku": forger.choose((url, [url], {"url": url}, None)),
        "x5u": url,
        "jwk": forger.choose((jwk, oct_jwk, json.dumps(jwk), [jwk], {"keys": [jwk]}, None, 7)),
        "x5c": forger.choose(([_encode(b"certificate")], [], "AA==", [None])),
        "x5t": _encode(b"x" * 20),
        "x5t#S256": _encode(b"x" * 32),
        "typ": forger.choose(("JWT", "at+jwt", "JWE", "JOSE+JSON", 7, None, [])),
        "cty": "JWT",
        "kid": forger.choose((own, own, forger.key.kid, "")),
        "alg": forger.choose(("RS256",) * 9 + ("HS256",)),
    }
    chosen = forger.random.sample(list(pool), forger.random.randint(2, len(pool)))
    return forger.signed(forger.header(**{name: pool[name] for name in chosen}), key=key)


# --- extensions, all under the right signature


@_kind("header is malformed", "DecodeError", "not JSON in UTF-8")
def extension(forger: Forger) -> str:
    way = forger.random.randrange(5)
    claims = _json(forger.claims())
    if way == 0:
        packed = zlib.compress(claims, wbits=forger.choose((-15, 15, 31)))
        return forger.signed(forger.header(zip=forger.choose(("DEF", "GZIP"))), packed)
    if way == 1:
        return forger.signed(forger.header(cty="JWT"), forger.signed(payload=claims).encode())
    if way == 2:
        changes: dict[str, Any] = {"b64": False}
        if forger.often():
            changes["crit"] = ["b64"]
        header = forger.header(**changes)
        if forger.often():
            return forger.signed(header, claims)
        raw = f"{_encode(_json(header))}.{forger.text(40)}"
        return f"{raw}.{_encode(forger.rs256(raw))}"
    names = ("exp", "alg", "kid", "zip", "http://evil.example/", forger.text(8), "", "B64", "b64 ")
    critical = forger.random.sample(names, forger.random.randint(1, 3))
    if way == 3:
        return forger.signed({**dict.fromkeys(critical, 1), **forger.header(crit=critical)})
    malformed: Sequence[Any] = (
        None,
        [],
        {},
        "b64",
        "exp",
        7,
        True,
        [7],
        [None],
        [["b64"]],
        [{}],
        nested(9),
    )
    return forger.signed(forger.header(crit=forger.choose(malformed)))


# --- claims, all under the right signature


def _claim(forger: Forger, name: str, value: Any) -> str:
    claims = forger.claims(**{name: value})
    return forger.signed(payload=_without(claims, name) if forger.random.random() < 0.1 else claims)


@_kind("InvalidAudience", "MissingRequiredClaim")
def audience(forger: Forger) -> str:
    return _claim(
        forger,
        "aud",
        forger.choose(
            (
                forger.odd(),
                forger.text(forger.random.randint(1, 40)),
                *("", " ", "PORTAL", "portal ", " portal", "portal\x00", "porta", "portal,other"),
                *("p\u043ertal", "ｐortal", "portal\u200b", ISSUER, "*", "portal/../portal"),
                *([], ["other"], ["other", "another"], ["portal", 7], ["portal", None]),
                *([["portal"]], {"portal": 1}, ["PORTAL"], ["p", "o"], [{"aud": "portal"}]),
                [forger.text(8) for _ in range(forger.random.randint(1, 30))],
            )
        ),
    )


@_kind("InvalidIssuer", "MissingRequiredClaim")
def issuer(forger: Forger) -> str:
    return _claim(
        forger,
        "iss",
        forger.choose(
            (
                forger.odd(),
                *("", " ", ISSUER + "/", ISSUER.upper(), f" {ISSUER}", ISSUER + "\x00"),
                *(ISSUER[:-1], ISSUER.replace("https", "http"), ISSUER.replace("acme", "globex")),
                *(ISSUER + "@evil.example", ISSUER.replace("a", "\u0430"), ISSUER + "#"),
                *([ISSUER], {ISSUER: 1}, [ISSUER, ISSUER]),
                "https://" + forger.text(12) + ".example",
            )
        ),
    )


@_kind("InvalidSubject", "subject is not usable", "MissingRequiredClaim")
def subject(forger: Forger) -> str:
    good = forger.random.randbytes(12).hex()
    place = forger.random.randint(0, len(good))
    blot = forger.choose(
        "\x00\x01\x1f\x7f\x85\xad\u200b\u202e\u2028\ufeff\ud800\udfff\ufdd0\U000e0001"
    )
    return _claim(
        forger,
        "sub",
        forger.choose(
            (
                forger.odd(),
                *("", " ", "\n", f"{good} ", f" {good}", f"{good}\n", [good], {"id": good}),
                good[:place] + blot + good[place:],
                "x" * forger.random.randint(256, 4000),
                forger.random.randint(-(2**80), 2**80),
            )
        ),
    )


@_kind("not a list of names", "InvalidJTI")
def scopes(forger: Forger) -> str:
    if forger.random.random() < 0.2:
        odd = forger.choose((7, True, {}, [], [[]], {"a": 1}, 1.5, math.inf))
        return forger.signed(payload=forger.claims(jti=odd))
    bad = forger.choose(
        (
            *("", " ", "a b", "a\t", "a\n", "\x00", "é", 'a"b', "a\\b", "\ud800", "\xa0", "\u200b"),
            *(None, 7, True, ["a"], {"a": 1}, 1e300, nested(20)),
        )
    )
    fine = [forger.text(6) for _ in range(forger.random.randint(0, 4))]
    fine.insert(forger.random.randint(0, len(fine)), bad)
    value = forger.choose((fine, fine, fine, 'a"b c', "a\\b", {}, {"a": 1}, True, 7, math.nan))
    return forger.signed(payload=forger.claims(scopes=value))


@_kind("ExpiredSignature", "ImmatureSignature", "DecodeError", "not numbers", "not usable")
def dates(forger: Forger) -> str:
    name = forger.choose(("exp", "exp", "nbf", "iat"))
    past, later = forger.random.uniform(60, 1e9), forger.random.uniform(600, 1e9)
    odd: Sequence[Any] = (
        *(None, True, False, math.nan, math.inf, 1e300, 10**400, "", "soon", "1e3", "9" * 5000),
        *([], {}, [forger.now], {"$date": 1}, "2030-01-01T00:00:00Z", str(forger.now + 60), "1_0"),
        *(" 1 ", "\u0661", nested(30), [[forger.now]], "0x7fffffff", "-1", "NaN", "Infinity"),
    )
    bad: Sequence[Any]
    far: Sequence[Any]
    if name == "exp":
        bad = (forger.now - past, int(forger.now - past), 0, 1, -1, -1e300, -past, -math.inf)
        far = (1e15, 2**63, 253402300800 * 10, str(9999999999))
    else:
        bad = (forger.now + later, int(forger.now + later), 1e12, 2**63, 1e18, forger.now * 1000)
        far = (str(int(forger.now + later)), -math.inf)
    value = forger.choose((bad, bad, odd, far))
    claims = forger.claims(**{name: forger.choose(value)})
    missing = name == "exp" and forger.random.random() < 0.05
    return forger.signed(payload=_without(claims, "exp") if missing else claims)


# --- bytes: JSON that is none, all under the right signature


@_kind("DecodeError", "not JSON in UTF-8", "MissingRequiredClaim", "InvalidAudience")
def payload(forger: Forger) -> str:
    claims = forger.claims()
    good = json.dumps(claims)
    raw = good.encode()
    twice = forger.choose(
        ('"aud": "other"', '"exp": 1', '"sub": ""', '"nbf": 1e12', '"aud": null', '"iss": ""')
    )
    if forger.random.random() < 0.15:
        header = json.dumps(forger.header()).encode(forger.choose(_ENCODINGS[:-1]))
        return forger.signed(header, raw)
    return forger.signed(
        payload=forger.choose(
            (
                *((json.dumps(claims).encode(encoding)) for encoding in _ENCODINGS[:-1]),
                raw[: forger.random.randint(0, len(raw) - 1)] or b"{",
                raw + forger.choose((b"x", b"{}", b"\x00", b",", b"}", raw)),
                forger.choose((b"x", b"\x00", b",", b"while(1);", b"//\n", b"\xa0")) + raw,
                f"{good[:-1]}, {twice}}}".encode(),
                raw.replace(b'"', b"'"),
                raw[:-1] + b',"x":"\xed\xa0\x80"}',
                raw[:-1] + b',"x":"\xc0\xaf\xff"}',
                raw[:-1] + b',"x":"\xe9"}',
                raw[:-1] + b',"x":"\n"}',
                raw[:-1] + b",}",
                raw[:-1] + b',"x":' + b"9" * 5000 + b"}",
                raw[:-1] + b"/* */}",
                _json([claims]),
                _json(good),
                _json({"claims": claims}),
                _json(forger.odd()),
                zlib.compress(raw),
                forger.random.randbytes(forger.random.randint(1, 300)),
                b"\x80\x04" + raw,
                f"<claims>{claims['sub']}</claims>".encode(),
            )
        )
    )


# --- spellings and damage of a good token


@_kind("not a JWT", "header is malformed")
def spelling(forger: Forger) -> str:
    token = forger.signed()
    head, body, signature = token.split(".")
    place = forger.random.randrange(len(token))
    gap = forger.choose(_GAPS)
    parts = {"protected": head, "signature": signature}
    plain = token.replace("-", "+").replace("_", "/")
    forged = forger.choose(
        (
            *(token + "=" * n for n in (1, 2, 3)),
            *(
                f"{head}=.{body}.{signature}",
                f"{head}.{body}==.{signature}",
                token.replace(".", "=."),
            ),
            plain if plain != token else token + "+",
            *(token[:place] + gap + token[place:], gap + token, token + gap, token + "\r\n"),
            token[:place] + f"%{ord(token[place]):02X}" + token[place + 1 :],
            *(f"Bearer {token}", f'"{token}"', f"'{token}'", f"access_token={token}", f"{token},"),
            json.dumps({"payload": body, **parts}),
            json.dumps({"payload": body, "signatures": [parts]}),
            f"{head}.{forger.text(43)}.{forger.text(16)}.{body}.{forger.text(22)}",
            *(f"{head}.{body}", f"{head}.{body}.", f".{body}.{signature}", f"{head}..{signature}"),
            *(f"{token}.", f".{token}", f"{token}.{signature}", f"{head}.{token}", head, signature),
            *(token.replace(".", dot) for dot in ("..", "\u3002", "\uff0e", "%2E", ":", " ")),
            token.encode("utf-16").decode("latin-1"),
            token.encode().hex(),
            base64.b64encode(token.encode()).decode(),
            token[:place] + "\ud800" + token[place:],
            token[:place] + chr(ord(token[place]) + 0xFEE0) + token[place + 1 :],
            token.upper(),
            token[::-1],
            _uncanonical(head) + f".{body}.{signature}",
            f"{head}.{_uncanonical(body)}.{signature}",
            f"{head}.{body}.{_uncanonical(signature)}",
        )
    )
    assert forged != token
    return str(forged)


def _uncanonical(part: str) -> str:
    """Return another spelling of the same bytes, or of other bytes where there is none."""
    return part[:-1] + _BASE64URL_VALUES[_BASE64URL_VALUES.index(part[-1]) ^ 1]


_BASE64URL_VALUES = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"


@_kind("InvalidSignature", "not JSON in UTF-8", "header is malformed")
def damage(forger: Forger) -> str:
    claims = forger.claims()
    parts = forger.signed(payload=claims).split(".")
    which = forger.random.randrange(3)
    ways = (_flipped, _patched, _cut, _exchanged, _edited, _rewritten)
    return ".".join(forger.choose(ways)(forger, parts, which, claims))


def _flipped(forger: Forger, parts: list[str], which: int, claims: object) -> list[str]:
    raw = bytearray(_decode(parts[which]))
    raw[forger.random.randrange(len(raw))] ^= 1 << forger.random.randrange(8)
    parts[which] = _encode(raw)
    return parts


def _patched(forger: Forger, parts: list[str], which: int, claims: object) -> list[str]:
    old = parts[which]
    place = forger.random.randrange(len(old))
    patch = forger.text(forger.random.randint(0, 4))
    parts[which] = old[:place] + patch + old[place + forger.random.randint(0, 4) :]
    return parts if parts[which] != old else _flipped(forger, parts, which, claims)


def _cut(forger: Forger, parts: list[str], which: int, claims: object) -> list[str]:
    parts[which] = parts[which][: forger.random.randrange(len(parts[which]))]
    return parts


def _exchanged(forger: Forger, parts: list[str], which: int, claims: object) -> list[str]:
    """Take a part from another good token."""
    other = forger.signed(forger.header(typ=forger.text(8))).split(".")
    parts[which] = other[which]
    return parts


def _edited(forger: Forger, parts: list[str], which: int, claims: Mapping[str, Any]) -> list[str]:
    changes: dict[str, Any] = forger.choose(
        (
            {"sub": forger.random.randbytes(12).hex()},
            {"exp": claims["exp"] + 1},
            {"scopes": ["users:read", "users:write"]},
            {"email": "root@acme.example"},
        )
    )
    parts[1] = _encode(_json({**claims, **changes}))
    return parts


def _rewritten(forger: Forger, parts: list[str], which: int, claims: object) -> list[str]:
    """Say the same in other bytes, or the other way round."""
    head, body, signature = parts
    spaced = _encode(_decode(head).replace(b", ", b" , "))
    closer = _encode(_decode(body).replace(b", ", b","))
    longer = _encode(_decode(body) + b" ")
    ways = ([spaced, body], [head, closer], [head, longer], [body, head])
    return [*forger.choose(ways), signature]


# --- sizes, depths, letters


@_kind("16 KiB", "InvalidSignature")
def size(forger: Forger) -> str:
    claims = forger.claims(padding="")
    empty = len(forger.signing_input(payload=claims)) + 343
    room = (_CAP - empty) * 3 // 4
    way = forger.random.randrange(4)
    if way == 0:
        more = int(room + 3 + 10 ** forger.random.uniform(0, 4.5))
        return forger.signed(payload={**claims, "padding": "x" * more})
    if way == 1:
        fill = forger.text(8) * ((room - forger.random.randint(8, 4000)) // 8)
        return forger.signed(payload={**claims, "padding": fill}, key=_rsa(2048))
    if way == 2:
        return forger.signed() + forger.text(int(_CAP + 10 ** forger.random.uniform(0, 4.5)))
    long = forger.text(
        forger.random.randint(_CAP, 3 * _CAP), forger.choose((".", "a.", "A", "=", "\u00e9"))
    )
    return (forger.signed() if forger.often() else "") + long


@_kind("DecodeError", "InvalidAudience", "header is malformed", "InvalidSubject")
def nesting(forger: Forger) -> str:
    depth = int(10 ** forger.random.uniform(1, 3.5))
    opening, closing = forger.choose((("[", "]"), ('{"a":', "}")))
    depth = min(depth, 9000 // len(opening + closing))
    deep = opening * depth + "1" + closing * depth
    name = forger.choose(("aud", "sub", "exp", "iss", "nbf", "scopes"))
    good = json.dumps(_without(forger.claims(), name))[:-1]
    way = forger.random.randrange(4)
    if way == 0:
        return forger.signed(payload=f'{good}, "{name}": {deep}}}'.encode())
    if way == 1:
        return forger.signed(payload=f'{good}, "x": {opening * depth}}}'.encode())
    if way == 2:
        header = json.dumps(_without(forger.header(), "kid"))[:-1]
        return forger.signed(f'{header}, "kid": {deep}}}'.encode())
    return forger.signed(payload=(opening * depth + good).encode())


@_kind("not a JWT", "InvalidAudience", "does not publish", "not signed with RS256")
def letters(forger: Forger) -> str:
    def disguised(word: str) -> str:
        look_alike = str.maketrans(
            "aceiopsxytrnlSR",
            "\u0430\u0441\u0435\u0456\u043e\u0440\u0455\u0445\u0443\u03c4\u0433\u0578\u04cf\u0405\u211b",
        )
        ways: tuple[Callable[[str], str], ...] = (
            lambda w: w.translate(look_alike),
            lambda w: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in w),
            lambda w: w[:1] + forger.choose("\u0301\u200d\u202e\ufe0f\u00ad") + w[1:],
            lambda w: unicodedata.normalize("NFD", w.replace("a", "\u00e5").replace("S", "\u015a")),
            lambda w: w + forger.choose("\u180e\u2060\U000e0020\U0001f600"),
        )
        changed: str = forger.choose(ways)(word)
        return changed if changed != word else f"{word}\u200b"

    way = forger.random.randrange(5)
    if way == 0:
        return forger.signed(payload=forger.claims(aud=disguised(AUDIENCE)))
    if way == 1:
        return forger.signed(forger.header(alg=disguised("RS256")))
    if way == 2:
        return forger.signed(forger.header(kid=disguised(forger.key.kid)))
    if way == 3:
        name = forger.choose(("aud", "sub", "exp", "iss"))
        claims = forger.claims()
        return forger.signed(payload={**_without(claims, name), disguised(name): claims[name]})
    token = forger.signed()
    place = forger.random.randrange(len(token))
    alphabet = "\u00e9\u0416\u4e2d\u0661\U0001f600\u0130\u017f\u212a\udc80\U0010ffff"
    return token[:place] + forger.text(forger.random.randint(1, 5), alphabet) + token[place:]


# --- and what looks odd, and is good


def valid(forger: Forger) -> str:
    """Return a token that must be accepted, most of which no Bipsync would make."""
    claims = forger.claims()
    raw = json.dumps(claims)
    ways: tuple[Callable[[], tuple[object, object]], ...] = (
        lambda: (None, claims),
        lambda: (None, {**claims, "aud": ["other", AUDIENCE, "another"]}),
        lambda: (None, _without(claims, "nbf", "iat", "jti", "scopes")),
        # By the clock, and not from when the forger began: it may have been at it for a while.
        lambda: (None, {**claims, "exp": time.time() - 5, "nbf": time.time() + 10}),
        lambda: (None, {**claims, "exp": int(forger.now + 1e9), "iat": -1, "nbf": 0}),
        lambda: (
            None,
            {**claims, "sub": forger.choose(("1", "é", "a b", "\U0001f600", "x" * 255))},
        ),
        lambda: (None, {**claims, "email": None, "\u0000": nested(50), "é": 10**300}),
        lambda: (None, {**claims, "note": "x" * 8000}),
        lambda: (None, f'{{"sub": "somebody", "aud": "other", {raw[1:]}'.encode()),
        lambda: (None, raw.replace('"aud"', '"\\u0061ud"').replace(",", "\n,\t").encode()),
        lambda: (None, json.dumps(claims, ensure_ascii=False, indent=2).encode()),
        lambda: (forger.header(jku=_EVIL[0], jwk={}, x5c=[], typ=7, cty="JWT", zip="DEF"), claims),
        lambda: (dict(reversed(forger.header(b64=True).items())), claims),
        lambda: ({"alg": "RS256", "kid": forger.key.kid}, claims),
    )
    return forger.signed(*forger.choose(ways)())
