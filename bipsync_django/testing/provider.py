"""The provider itself: oauthlib's server side over a store of grants, without HTTP."""

import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import Any
from urllib.parse import parse_qsl, urlencode

from oauthlib import common
from oauthlib.oauth2 import WebApplicationServer
from oauthlib.oauth2.rfc6749 import errors

from . import dialect as wording
from . import tokens
from .dialect import Dialect
from .keys import KeyRing
from .messages import HTML, JSON, Request, Response
from .people import DEFAULT_USERS, SimulatedUser
from .store import GrantStore, Pair, digest
from .validator import Validator

# oauthlib parses a whole URI; nothing is ever sent to this one.
_SOME_URI = "https://provider.invalid/"


@dataclass(frozen=True)
class IssuedPair:
    """A pair of tokens as the token endpoint would answer it; ``expires_in`` is in seconds."""

    access_token: str
    refresh_token: str
    expires_in: int


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
            Validator(self),
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
        account = self.find_user(user)
        granted = list(scopes)
        seconds = self.access_token_lifetime if lifetime is None else lifetime
        claims = self.access_token_claims(account, scopes=granted, lifetime=seconds)
        refresh_token = self._opaque_refresh_token(claims)
        self.remember_pair(
            claims["jti"],
            refresh_token,
            user_id=account.id,
            scopes=granted,
            family=secrets.token_hex(12),
            client_id=self.client_id,
        )
        self.changed()
        return IssuedPair(self.sign(claims), refresh_token, seconds)

    def remember_pair(
        self,
        jti: str,
        refresh_token: str,
        *,
        user_id: str,
        scopes: Iterable[str],
        family: str,
        client_id: str,
    ) -> None:
        """Store an issued pair."""
        self.store.add_pair(
            Pair(
                jti=jti,
                refresh_digest=digest(refresh_token),
                family=family,
                client_id=client_id,
                user_id=user_id,
                scopes=tuple(scopes),
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
        except tokens.ApiRefusedError:
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
        return tokens.sign(
            claims,
            current=self.keys.current,
            kid=kid,
            key=key,
            algorithm=algorithm,
            headers=headers,
        )

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
        return tokens.opaque(
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
            grant["code"] = tokens.opaque(
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
        if isinstance(error, errors.MismatchingRedirectURIError):
            self.announce(
                f"refused to send the browser back to {error.redirect_uri}: it is not registered "
                "here (--redirect-uri)"
            )
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

    def bearer(self, header: str | None) -> Pair:
        """Return the pair that a usable access token belongs to (RFC 6750 section 2.1).

        Args:
            header: the ``Authorization`` header.

        Raises:
            ApiRefusedError: the token is missing, malformed, expired or revoked.
        """
        if not header:
            raise tokens.ApiRefusedError('Missing "Authorization" header')
        flags = re.IGNORECASE if self.dialect == "9" else re.NOFLAG
        raw = re.sub(r"^\s*Bearer(\s+|$)", "", header, count=1, flags=flags).strip()
        claims = tokens.verify(raw, self.keys, now=self.now())
        pair = self.store.by_jti(claims.get("jti"))
        if pair is None or pair.revoked or pair.user_id not in self.users:
            raise tokens.ApiRefusedError("Access token has been revoked")
        return pair

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
