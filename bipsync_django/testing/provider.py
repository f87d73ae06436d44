"""The provider itself: oauthlib's server side over a store of grants, without HTTP.

Protocol rules (RFC 6749, RFC 7636) are oauthlib's. The validator answers its questions, and where
it says no it names the reason, which ``dialect`` turns into the recorded wording.
"""

import base64
import binascii
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import Any
from urllib.parse import parse_qsl, urlencode

import jwt
from jwt.api_jws import PyJWS
from oauthlib import common
from oauthlib.oauth2 import RequestValidator, WebApplicationServer
from oauthlib.oauth2.rfc6749 import errors

from . import dialect as wording
from .dialect import Dialect
from .keys import KeyRing
from .messages import HTML, JSON, Request, Response
from .people import DEFAULT_USERS, SimulatedUser, is_known_scope
from .store import Code, GrantStore, Pair, digest

_PKCE_VALUE = re.compile(r"[A-Za-z0-9\-._~]{43,128}")
_CODE_LIFETIME = 600
# oauthlib parses a whole URI; nothing is ever sent to this one.
_SOME_URI = "https://provider.invalid/"


@dataclass(frozen=True)
class IssuedPair:
    """A pair of tokens as the token endpoint would answer it; ``expires_in`` is in seconds."""

    access_token: str
    refresh_token: str
    expires_in: int


@dataclass(frozen=True)
class _Client:
    client_id: str


class ApiRefusedError(Exception):
    """The API will not serve this bearer token; ``hint`` is the recorded reason."""

    def __init__(self, hint: str) -> None:
        super().__init__(hint)
        self.hint = hint


def _opaque(payload: Mapping[str, object]) -> str:
    """Return a token shaped, and as long, as the real package's ciphertext of ``payload``.

    That is the encryption library's header ``def50200``, then salt, nonce, ciphertext and
    authentication tag (84 bytes with the header) in hexadecimal. A column that is too narrow
    for a user with many scopes is found here rather than in production.
    """
    size = 80 + len(json.dumps(payload, separators=(",", ":")))
    return "def50200" + secrets.token_hex(size)


def _basic_credentials(header: str) -> tuple[str, str] | tuple[None, None]:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None, None
    try:
        client_id, colon, secret = base64.b64decode(encoded).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None, None
    return (client_id, secret) if colon else (None, None)


def _equal(left: str, right: str) -> bool:
    return hmac.compare_digest(
        left.encode("utf-8", "surrogatepass"), right.encode("utf-8", "surrogatepass")
    )


class _Validator(RequestValidator):
    """oauthlib's questions, answered from the provider's state.

    ``request.user`` is the user's id and ``request.claims`` the claims of the token being issued.
    """

    def __init__(self, provider: "Provider") -> None:
        self._provider = provider
        self._store = provider.store

    # The authorization endpoint

    def validate_client_id(
        self, client_id: str, request: common.Request, *args: Any, **kwargs: Any
    ) -> bool:
        return client_id in self._provider.clients

    def validate_redirect_uri(
        self,
        client_id: str,
        redirect_uri: str,
        request: common.Request,
        *args: Any,
        **kwargs: Any,
    ) -> bool:
        return redirect_uri in self._provider.redirect_uris

    def get_default_redirect_uri(
        self, client_id: str, request: common.Request, *args: Any, **kwargs: Any
    ) -> str:
        if request.code is not None:
            record = self._store.code(request.code)
            return record.redirect_uri if record and not record.redirect_uri_given else ""
        registered = self._provider.redirect_uris
        return next(iter(registered)) if len(registered) == 1 else ""

    def validate_response_type(
        self,
        client_id: str,
        response_type: str,
        client: Any,
        request: common.Request,
        *args: Any,
        **kwargs: Any,
    ) -> bool:
        return response_type == "code"

    def get_default_scopes(
        self, client_id: str, request: common.Request, *args: Any, **kwargs: Any
    ) -> list[str]:
        return []

    def validate_scopes(
        self,
        client_id: str,
        scopes: list[str],
        client: Any,
        request: common.Request,
        *args: Any,
        **kwargs: Any,
    ) -> bool:
        for scope in scopes:
            if not is_known_scope(scope):
                raise errors.InvalidScopeError(f"Check the `{scope}` scope", request=request)
        return True

    def is_pkce_required(self, client_id: str, request: common.Request) -> bool:
        # oauthlib asks this before it looks at the challenge, and would accept "plain" and a
        # challenge of any length.
        if request.code_challenge is not None:
            if request.code_challenge_method in (None, "plain"):
                raise errors.InvalidRequestError("Code challenge method must be `S256`")
            if not _PKCE_VALUE.fullmatch(request.code_challenge):
                raise errors.InvalidRequestError(
                    "Code challenge must follow the specifications of RFC-7636."
                )
        return True

    def save_authorization_code(
        self, client_id: str, code: Any, request: common.Request, *args: Any, **kwargs: Any
    ) -> None:
        self._store.add_code(
            code["code"],
            Code(
                client_id=client_id,
                user_id=str(request.user),
                scopes=tuple(request.scopes or ()),
                redirect_uri=str(request.redirect_uri),
                redirect_uri_given=not getattr(request, "using_default_redirect_uri", False),
                challenge=str(request.code_challenge),
                challenge_method=str(request.code_challenge_method),
                expires_at=self._provider.now() + _CODE_LIFETIME,
            ),
        )

    # The token endpoint

    def client_authentication_required(
        self, request: common.Request, *args: Any, **kwargs: Any
    ) -> bool:
        return True

    def authenticate_client(self, request: common.Request, *args: Any, **kwargs: Any) -> bool:
        basic_id, basic_secret = _basic_credentials(request.headers.get("Authorization") or "")
        client_id = request.client_id or basic_id
        secret = basic_secret if request.client_secret is None else request.client_secret
        if not client_id:
            raise errors.InvalidRequestError("Check the `client_id` parameter")
        expected = self._provider.clients.get(client_id)
        if expected is None:
            return False
        if secret is None:
            raise errors.CustomOAuth2Error(wording.MISSING_SECRET)
        if not _equal(secret, expected):
            return False
        request.client = _Client(client_id)
        request.client_id = client_id
        return True

    def validate_grant_type(
        self,
        client_id: str,
        grant_type: str,
        client: Any,
        request: common.Request,
        *args: Any,
        **kwargs: Any,
    ) -> bool:
        return True

    def validate_code(
        self,
        client_id: str,
        code: str,
        client: Any,
        request: common.Request,
        *args: Any,
        **kwargs: Any,
    ) -> bool:
        record = self._store.code(code)
        if record is None or record.user_id not in self._provider.users:
            raise self._dead_code("Cannot validate the provided authorization code")
        if self._provider.now() > record.expires_at:
            raise self._dead_code("Authorization code has expired")
        if record.spent:
            raise self._dead_code("Authorization code has been revoked")
        if record.client_id != client_id:
            raise errors.InvalidRequestError("Authorization code was not issued to this client")
        verifier = request.code_verifier
        if verifier is not None and not _PKCE_VALUE.fullmatch(verifier):
            raise errors.InvalidRequestError(
                "Code Verifier must follow the specifications of RFC-7636."
            )
        request.user = record.user_id
        request.scopes = list(record.scopes)
        return True

    @staticmethod
    def _dead_code(hint: str) -> errors.OAuth2Error:
        return errors.CustomOAuth2Error(wording.DEAD_CODE, hint)

    def get_code_challenge(self, code: str, request: common.Request) -> str:
        record = self._store.code(code)
        return record.challenge if record else ""

    def get_code_challenge_method(self, code: str, request: common.Request) -> str:
        record = self._store.code(code)
        return record.challenge_method if record else ""

    def confirm_redirect_uri(
        self,
        client_id: str,
        code: str,
        redirect_uri: str,
        client: Any,
        request: common.Request,
        *args: Any,
        **kwargs: Any,
    ) -> bool:
        record = self._store.code(code)
        if record is not None and record.redirect_uri == redirect_uri:
            return True
        if redirect_uri in self._provider.redirect_uris:
            raise errors.InvalidRequestError("Invalid redirect URI")
        raise errors.CustomOAuth2Error(wording.UNREGISTERED_REDIRECT_URI)

    def invalidate_authorization_code(
        self, client_id: str, code: str, request: common.Request, *args: Any, **kwargs: Any
    ) -> None:
        record = self._store.code(code)
        if record is not None:
            record.spent = True

    def validate_refresh_token(
        self, refresh_token: str, client: Any, request: common.Request, *args: Any, **kwargs: Any
    ) -> bool:
        if not refresh_token:
            raise errors.CustomOAuth2Error(wording.EMPTY_REFRESH_TOKEN)
        pair = self._store.by_refresh_token(refresh_token)
        if pair is None:
            raise self._dead_refresh_token("Cannot decrypt the refresh token")
        if pair.client_id != client.client_id:
            raise self._dead_refresh_token("Token is not linked to client")
        if self._provider.now() > pair.refresh_expires_at:
            raise self._dead_refresh_token("Token has expired")
        if pair.revoked or pair.user_id not in self._provider.users:
            if self._provider.family_revocation:
                self._store.revoke_family(pair.family)
            raise self._dead_refresh_token("Token has been revoked")
        request.user = pair.user_id
        return True

    @staticmethod
    def _dead_refresh_token(hint: str) -> errors.OAuth2Error:
        return errors.CustomOAuth2Error(wording.DEAD_REFRESH_TOKEN, hint)

    def get_original_scopes(
        self, refresh_token: str, request: common.Request, *args: Any, **kwargs: Any
    ) -> list[str]:
        # This token's own scopes, not those of the sign-in: narrowing is for good.
        pair = self._store.by_refresh_token(refresh_token)
        return list(pair.scopes) if pair else []

    def is_within_original_scope(
        self,
        request_scopes: list[str],
        refresh_token: str,
        request: common.Request,
        *args: Any,
        **kwargs: Any,
    ) -> bool:
        granted = self.get_original_scopes(refresh_token, request)
        extra = next(scope for scope in request_scopes if scope not in granted)
        raise errors.InvalidScopeError(f"Check the `{extra}` scope")

    def save_bearer_token(
        self, token: Any, request: common.Request, *args: Any, **kwargs: Any
    ) -> None:
        claims = request.claims or {}
        name = self._provider.users[str(request.user)].name
        if request.grant_type == "refresh_token":
            old = self._store.by_refresh_token(str(request.refresh_token))
            if old is None:
                raise errors.ServerError("The refresh token vanished while it was in use.")
            old.revoked = True
            family = old.family
            event = f"refreshed the pair of {name} for {request.client_id}"
        else:
            family = secrets.token_hex(12)
            event = f"{name} signed in to {request.client_id}"
        self._provider.remember_pair(
            claims, token["refresh_token"], family=family, client_id=str(request.client_id)
        )
        self._provider.announce(event)


class Provider:
    """A Bipsync tenant's OAuth side. All attributes may be changed at any time.

    Attributes:
        clients: secret of each registered application, by client id.
        redirect_uris: what may be redirected to; compared character by character.
        users: who has an account, by id. Removing a user kills their grants.
        access_token_lifetime: of tokens issued from now on, in seconds.
        refresh_token_lifetime: of tokens issued from now on, in seconds.
        clock_ahead: how far this provider's clock runs ahead of ours, in seconds.
        family_revocation: whether a reused refresh token kills all pairs of its sign-in.
        dialect: ``"9"`` or ``"8"``, the major version of league/oauth2-server to sound like.
        on_event: called with a sentence, free of secrets, for each thing that happens to a token.
    """

    def __init__(
        self,
        *,
        client_id: str,
        client_secret: str,
        redirect_uris: Iterable[str],
        users: Iterable[SimulatedUser] | None,
        access_token_lifetime: int,
        refresh_token_lifetime: int,
        dialect: Dialect,
    ) -> None:
        self.client_id = client_id
        self.clients = {client_id: client_secret}
        self.redirect_uris = set(redirect_uris)
        self.users: dict[str, SimulatedUser] = {}
        for user in DEFAULT_USERS if users is None else users:
            self.add_user(user)
        self.access_token_lifetime = access_token_lifetime
        self.refresh_token_lifetime = refresh_token_lifetime
        self.dialect: Dialect = dialect
        self.clock_ahead = 0.0
        self.family_revocation = False
        self.on_event: Callable[[str], None] | None = None
        self.keys = KeyRing()
        self.store = GrantStore()
        self._oauth = WebApplicationServer(
            _Validator(self),
            token_generator=self._access_token_for,
            token_expires_in=lambda request: self.access_token_lifetime,
            refresh_token_generator=self._refresh_token_for,
        )
        self._oauth.auth_grant.register_code_modifier(self._lengthen_code)

    @property
    def client_secret(self) -> str:
        """The secret of the application that ``settings`` describes."""
        return self.clients[self.client_id]

    @client_secret.setter
    def client_secret(self, secret: str) -> None:
        self.clients[self.client_id] = secret

    def now(self) -> float:
        """Return the provider's own time, in seconds since the epoch."""
        return time.time() + self.clock_ahead

    def announce(self, event: str) -> None:
        """Tell whoever listens what happened."""
        if self.on_event is not None:
            self.on_event(event)

    def changed(self) -> None:
        """Called after every change to grants or keys; a subclass may keep them somewhere."""

    # People and their grants

    def add_user(self, user: SimulatedUser) -> SimulatedUser:
        """Give ``user`` an account, or replace the account with the same id."""
        self.users[user.id] = user
        return user

    def find_user(self, user: str | SimulatedUser | None) -> SimulatedUser:
        """Return the account meant by ``user``: an object, an id, an e-mail address; or the first.

        Raises:
            LookupError: nobody has that id or address.
        """
        if isinstance(user, SimulatedUser):
            return self.users.get(user.id) or self.add_user(user)
        accounts = list(self.users.values())
        if user is None and accounts:
            return accounts[0]
        for account in accounts:
            if user in (account.id, account.email):
                return account
        raise LookupError(f"No simulated user is called {user!r}.")

    def issue_pair(
        self,
        user: str | SimulatedUser | None = None,
        *,
        scopes: Iterable[str] = ("users:read",),
        lifetime: int | None = None,
    ) -> IssuedPair:
        """Issue a pair as if ``user`` had just signed in, without a browser.

        Args:
            user: as for ``find_user()``; by default the first.
            scopes: what the user consents to.
            lifetime: of the access token, in seconds, negative for an expired one.
        """
        seconds = self.access_token_lifetime if lifetime is None else lifetime
        claims = self.access_token_claims(user, scopes=scopes, lifetime=seconds)
        refresh_token = self._opaque_refresh_token(claims)
        self.remember_pair(
            claims, refresh_token, family=secrets.token_hex(12), client_id=self.client_id
        )
        self.changed()
        return IssuedPair(self.sign(claims), refresh_token, seconds)

    def remember_pair(
        self, claims: Mapping[str, Any], refresh_token: str, *, family: str, client_id: str
    ) -> None:
        """Store an issued pair."""
        self.store.add_pair(
            Pair(
                jti=claims["jti"],
                refresh_digest=digest(refresh_token),
                family=family,
                client_id=client_id,
                user_id=claims["sub"],
                scopes=tuple(claims["scopes"]),
                refresh_expires_at=self.now() + self.refresh_token_lifetime,
            )
        )

    def is_alive(self, refresh_token: str) -> bool:
        """Return whether ``refresh_token`` could be used now; asking does not use it."""
        pair = self.store.by_refresh_token(refresh_token)
        return (
            pair is not None
            and not pair.revoked
            and pair.user_id in self.users
            and self.now() <= pair.refresh_expires_at
        )

    def is_access_token_alive(self, access_token: str) -> bool:
        """Return whether the API would accept ``access_token`` now."""
        try:
            self.bearer(f"Bearer {access_token}")
        except ApiRefusedError:
            return False
        return True

    def withdraw(self, user: str | SimulatedUser) -> None:
        """Let ``user`` withdraw the consent: all their pairs are dead at once."""
        account = self.find_user(user)
        self.store.revoke_user(account.id)
        self.announce(f"{account.name} withdrew the consent")
        self.changed()

    # Signing keys and access tokens (RFC 7519)

    def rotate_keys(self) -> str:
        """Sign with a new key from now on and return its ``kid``; old keys stay published."""
        kid = self.keys.rotate().kid
        self.changed()
        return kid

    def retire_keys(self) -> None:
        """Unpublish every key but the current one."""
        self.keys.retire()
        self.changed()

    def access_token_claims(
        self,
        user: str | SimulatedUser | None = None,
        *,
        scopes: Iterable[str] = ("users:read",),
        lifetime: float | None = None,
        client_id: str | None = None,
    ) -> dict[str, Any]:
        """Return the claims of an access token issued now.

        Args:
            user: as for ``find_user()``.
            scopes: a list claim, in this order.
            lifetime: in seconds; by default ``access_token_lifetime``.
            client_id: becomes ``aud``; by default that of ``settings``.

        Returns:
            Dates are floats with microseconds, ``scopes`` is a list, and there is no ``iss``.
        """
        account = self.find_user(user)
        issued_at = round(self.now(), 6)
        seconds = self.access_token_lifetime if lifetime is None else lifetime
        return {
            "aud": client_id or self.client_id,
            "jti": secrets.token_hex(40),
            "iat": issued_at,
            "nbf": issued_at,
            "exp": round(issued_at + seconds, 6),
            "sub": account.id,
            "scopes": list(scopes),
            "name": account.name,
            "given_name": account.given_name,
            "family_name": account.family_name,
            "email": account.email,
            **account.extra,
        }

    def sign(
        self,
        claims: Mapping[str, Any],
        *,
        kid: str | EllipsisType | None = ...,
        key: Any = ...,
        algorithm: str = "RS256",
        headers: Mapping[str, Any] | None = None,
    ) -> str:
        """Return ``claims``, whatever they are, as a signed JWT.

        Args:
            claims: not validated in any way.
            kid: by default that of the current key; ``None`` leaves it out.
            key: by default the current private key. For ``HS256`` any bytes, a public key in PEM
                form (``public_pem()``) included.
            algorithm: a JWS algorithm, or ``"none"``.
            headers: further members of the JOSE header; they win.
        """
        header: dict[str, Any] = {}
        if kid is ...:
            header["kid"] = self.keys.current.kid
        elif kid is not None:
            header["kid"] = kid
        header.update(headers or {})
        payload = json.dumps(claims, separators=(",", ":")).encode()
        if algorithm == "HS256":
            return _sign_hs256(header, payload, key)
        if key is ...:
            key = None if algorithm == "none" else self.keys.current.private
        return PyJWS().encode(payload, key, algorithm, headers=header, sort_headers=False)

    def public_pem(self) -> bytes:
        """Return the current public key in PEM form."""
        return self.keys.current.public_pem()

    def _access_token_for(self, request: common.Request) -> str:
        request.claims = self.access_token_claims(
            request.user,
            scopes=request.scopes or (),
            lifetime=self.access_token_lifetime,
            client_id=request.client_id,
        )
        return self.sign(request.claims)

    def _refresh_token_for(self, request: common.Request) -> str:
        return self._opaque_refresh_token(request.claims or {})

    def _opaque_refresh_token(self, claims: Mapping[str, Any]) -> str:
        return _opaque(
            {
                "client_id": claims["aud"],
                "refresh_token_id": claims["jti"],
                "access_token_id": claims["jti"],
                "scopes": claims["scopes"],
                "user_id": claims["sub"],
                "expire_time": int(self.now()),
            }
        )

    def _lengthen_code(
        self, grant: dict[str, str], token_handler: Any, request: common.Request | None
    ) -> dict[str, str]:
        # oauthlib's own codes have 30 characters; callback URLs must cope with the real size.
        if request is not None:
            given = not getattr(request, "using_default_redirect_uri", False)
            grant["code"] = _opaque(
                {
                    "client_id": request.client_id,
                    "redirect_uri": request.redirect_uri if given else None,
                    "auth_code_id": "0" * 80,
                    "scopes": request.scopes,
                    "user_id": request.user,
                    "expire_time": int(self.now()),
                    "code_challenge": request.code_challenge,
                    "code_challenge_method": request.code_challenge_method,
                }
            )
        return grant

    # Endpoints

    def check_authorization(self, query: str) -> tuple[str, str, list[str]] | Response:
        """Validate an authorization request (RFC 6749 section 4.1.1, RFC 7636 section 4.3).

        Returns:
            The client id, redirect URI and scopes to show on a consent page, or the refusal.
        """
        try:
            scopes, info = self._oauth.validate_authorization_request(_normalised(query))
        except errors.OAuth2Error as error:
            return self._refuse_authorization(error)
        return info["client_id"], info["redirect_uri"], list(scopes)

    def approve_authorization(self, query: str, user: SimulatedUser) -> Response:
        """Return the redirect that carries an authorization code for ``user``."""
        try:
            with self.store.lock:
                headers, _, status = self._oauth.create_authorization_response(
                    _normalised(query), credentials={"user": user.id}
                )
        except errors.OAuth2Error as error:
            return self._refuse_authorization(error)
        return Response(status, b"", HTML, {"Location": headers["Location"]})

    def deny_authorization(self, query: str) -> Response:
        """Return the redirect that says that the user declined."""
        checked = self.check_authorization(query)
        if isinstance(checked, Response):
            return checked
        client_id, redirect_uri, _ = checked
        self.announce(f"somebody declined to sign in to {client_id}")
        return wording.redirect_refusal(
            self.dialect,
            "access_denied",
            "The user denied the request",
            redirect_uri=redirect_uri,
            state=dict(parse_qsl(query)).get("state"),
        )

    def _refuse_authorization(self, error: errors.OAuth2Error) -> Response:
        code, detail = error.error or "", error.description
        if isinstance(error, errors.InvalidScopeError) and error.redirect_uri:
            return wording.redirect_refusal(
                self.dialect, code, detail, redirect_uri=error.redirect_uri, state=error.state
            )
        return wording.refuse(self.dialect, code, detail)

    def answer_token_request(self, request: Request) -> Response:
        """Exchange a code or a refresh token for a pair (RFC 6749 sections 4.1.3 and 6)."""
        authorization = request.headers.get("Authorization") or ""
        form: dict[str, str] = {}
        refusal: tuple[str, str] | None = None
        for name, value in token_parameters(request).items():
            if isinstance(value, str):
                form[name] = value
            elif name == "scope" and isinstance(value, list) and self.dialect == "8":
                form[name] = " ".join(map(str, value))
            elif name == "scope":
                refusal = (wording.NON_STRING_SCOPE, "")
            elif value is not None:
                refusal = ("invalid_request", f"Check the `{name}` parameter")
        if refusal is None:
            with self.store.lock:
                _, body, status = self._oauth.create_token_response(
                    _SOME_URI, "POST", form, {"Authorization": authorization}
                )
            # After a refusal too: a reused refresh token may have killed its family.
            self.changed()
            answer = json.loads(body)
            if status == 200:
                return _token_response(answer)
            refusal = (answer["error"], answer.get("error_description", ""))
        response = wording.refuse(
            self.dialect, *refusal, basic=authorization.lower().startswith("basic ")
        )
        self._announce_refusal(form, response)
        return response

    def _announce_refusal(self, form: Mapping[str, str], response: Response) -> None:
        said = json.loads(response.body)
        what = {
            "refresh_token": "refused a refresh",
            "authorization_code": "refused a sign-in",
        }.get(form.get("grant_type", ""), "refused a token request")
        client_id = form.get("client_id")
        whose = f" for {client_id}" if client_id in self.clients else ""
        self.announce(f"{what}{whose}: {said.get('hint') or said['error_description']}")

    def bearer(self, header: str | None) -> dict[str, Any]:
        """Return the claims of a usable access token (RFC 6750 section 2.1).

        Args:
            header: the ``Authorization`` header.

        Raises:
            ApiRefusedError: the token is missing, malformed, expired or revoked.
        """
        if not header:
            raise ApiRefusedError('Missing "Authorization" header')
        flags = re.IGNORECASE if self.dialect == "9" else re.NOFLAG
        raw = re.sub(r"^\s*Bearer(\s+|$)", "", header, count=1, flags=flags).strip()
        claims = self._verified_claims(raw)
        pair = self.store.by_jti(claims.get("jti"))
        if pair is None or pair.revoked or pair.user_id not in self.users:
            raise ApiRefusedError("Access token has been revoked")
        return claims

    def _verified_claims(self, raw: str) -> dict[str, Any]:
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
            key = self.keys.find(jwt.get_unverified_header(raw).get("kid"))
            if key is None:
                raise unverified
            claims: dict[str, Any] = jwt.decode(
                raw,
                key.private.public_key(),
                algorithms=["RS256"],
                # Judged below by the provider's clock, which need not be ours.
                options={
                    "verify_aud": False,
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except (jwt.PyJWTError, ValueError) as error:
            raise unverified from error
        expires_at = claims.get("exp")
        if not isinstance(expires_at, int | float) or self.now() >= expires_at:
            raise unverified
        return claims

    def refuse_api(self, hint: str) -> Response:
        """Return the API's answer to a bad bearer token, or to one that lacks the scope."""
        return wording.refuse(self.dialect, "access_denied", hint)

    # Persistence

    def dump(self) -> dict[str, Any]:
        """Return signing keys and grants ready for JSON; the tokens themselves are not in it."""
        with self.store.lock:
            return {"version": 1, "keys": self.keys.dump(), "pairs": self.store.dump()}

    def load(self, dumped: Mapping[str, Any]) -> None:
        """Go on where an earlier ``dump()`` left off."""
        self.keys.load(dumped["keys"])
        self.store.load(dumped["pairs"])


def token_parameters(request: Request) -> dict[str, object]:
    """Return the parameters of a form or JSON body; the last of two with one name wins.

    Anything else has none, which the provider reports as an unsupported grant, not a bad body.
    """
    content_type = (request.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
    if content_type == "application/x-www-form-urlencoded":
        return dict(parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True))
    if content_type == JSON:
        try:
            decoded = json.loads(request.body)
        except (ValueError, RecursionError):
            return {}
        return decoded if isinstance(decoded, dict) else {}
    return {}


def _normalised(query: str) -> str:
    # oauthlib refuses query strings with characters that browsers and PHP let through.
    return _SOME_URI + "?" + urlencode(dict(parse_qsl(query, keep_blank_values=True)))


def _token_response(token: Mapping[str, Any]) -> Response:
    # oauthlib adds the scope (RFC 6749 section 5.1), which the recorded package leaves out.
    members = ("token_type", "expires_in", "access_token", "refresh_token")
    body = json.dumps({name: token[name] for name in members}).encode()
    return Response(
        200,
        body,
        "application/json; charset=UTF-8",
        {"Cache-Control": "no-store", "Pragma": "no-cache"},
    )


def _sign_hs256(header: Mapping[str, Any], payload: bytes, key: bytes) -> str:
    # PyJWT will not use a public key as an HMAC secret; somebody who forges tokens will.
    def encode(raw: bytes) -> bytes:
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    jose = json.dumps({"typ": "JWT", "alg": "HS256", **header}).encode()
    signed = encode(jose) + b"." + encode(payload)
    return (signed + b"." + encode(hmac.digest(key, signed, "sha256"))).decode()
