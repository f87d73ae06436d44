"""oauthlib's questions about clients, codes and refresh tokens, answered from the store.

Protocol rules (RFC 6749, RFC 7636) are oauthlib's. Where the validator says no it names the
reason, which ``dialect`` turns into the recorded wording.
"""

import base64
import binascii
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oauthlib import common
from oauthlib.oauth2 import RequestValidator
from oauthlib.oauth2.rfc6749 import errors

from . import dialect as wording
from .people import is_known_scope
from .store import Code

if TYPE_CHECKING:
    from .provider import Provider

_PKCE_VALUE = re.compile(r"[A-Za-z0-9\-._~]{43,128}")
_CODE_LIFETIME = 600


@dataclass(frozen=True)
class _Client:
    client_id: str


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


class Validator(RequestValidator):
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
            (request.claims or {})["jti"],
            token["refresh_token"],
            user_id=str(request.user),
            scopes=request.scopes or (),
            family=family,
            client_id=str(request.client_id),
        )
        self._provider.announce(event)
