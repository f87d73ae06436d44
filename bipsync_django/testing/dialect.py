"""oauthlib's errors in the words of the two recorded versions of league/oauth2-server.

Bipsync's tokens look like those of that PHP package. Its major versions answer the same mistakes
differently, and a client has to understand both: dialect ``"9"`` is version 9.4.1 and ``"8"``
is version 8.5.5.
"""

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlencode

from .messages import HTML, Response, json_response

Dialect = Literal["9", "8"]

# Errors of ours that have no single name in the package: what they are called, and even their
# status, depends on the version.
DEAD_CODE = "dead_code"
DEAD_REFRESH_TOKEN = "dead_refresh_token"  # noqa: S105
EMPTY_REFRESH_TOKEN = "empty_refresh_token"  # noqa: S105
MISSING_SECRET = "missing_client_secret"  # noqa: S105
MISSING_RESPONSE_TYPE = "missing_response_type"
MISSING_CLIENT_AT_AUTHORIZE = "missing_client_id_at_authorize"
UNREGISTERED_REDIRECT_URI = "unregistered_redirect_uri"
NON_STRING_SCOPE = "non_string_scope"

_DESCRIPTIONS = {
    "invalid_request": (
        "The request is missing a required parameter, includes an invalid parameter value, "
        "includes a parameter more than once, or is otherwise malformed."
    ),
    "invalid_grant": (
        "The provided authorization grant (e.g., authorization code, resource owner credentials) "
        "or refresh token is invalid, expired, revoked, does not match the redirection URI used "
        "in the authorization request, or was issued to another client."
    ),
    "invalid_client": "Client authentication failed",
    "invalid_scope": "The requested scope is invalid, unknown, or malformed",
    "unsupported_grant_type": (
        "The authorization grant type is not supported by the authorization server."
    ),
    "access_denied": "The resource owner or authorization server denied the request.",
}
_STATUSES = {"invalid_client": 401, "access_denied": 401}
_DEAD = "The refresh token is invalid."
_CHECK_ALL = "Check that all required parameters have been provided"
_CANNOT_DECRYPT = "Cannot decrypt the refresh token"

# (error, description) as oauthlib gives them, where they do not carry the recorded hint already.
_FROM_OAUTHLIB = {
    ("invalid_request", "Missing code parameter."): (
        "invalid_request",
        "Check the `code` parameter",
    ),
    ("invalid_request", "Missing refresh token parameter."): (
        "invalid_request",
        "Check the `refresh_token` parameter",
    ),
    ("invalid_request", "Missing redirect URI."): (
        "invalid_request",
        "Check the `redirect_uri` parameter",
    ),
    ("invalid_request", "Code verifier required."): (
        "invalid_request",
        "Check the `code_verifier` parameter",
    ),
    ("invalid_request", "Code challenge required."): (
        "invalid_request",
        "Code challenge must be provided",
    ),
    ("invalid_request", "Transform algorithm not supported."): (
        "invalid_request",
        "Code challenge method must be one of `S256`, `plain`",
    ),
    ("invalid_request", "Invalid client_id parameter value."): ("invalid_client", ""),
    ("invalid_request", "Invalid redirect URI."): ("invalid_client", ""),
    ("invalid_request", "Mismatching redirect URI."): ("invalid_client", ""),
    ("invalid_request", "Missing client_id parameter."): (MISSING_CLIENT_AT_AUTHORIZE, ""),
    ("invalid_request", "Missing response_type parameter."): (MISSING_RESPONSE_TYPE, ""),
    ("unsupported_response_type", ""): ("unsupported_grant_type", _CHECK_ALL),
    ("unauthorized_client", ""): ("unsupported_grant_type", _CHECK_ALL),
    ("unsupported_grant_type", ""): ("unsupported_grant_type", _CHECK_ALL),
    # The validator names its reason for every other refused grant.
    ("invalid_grant", ""): ("invalid_grant", "Failed to verify `code_verifier`."),
}


@dataclass(frozen=True)
class Refusal:
    """A refusal in the words of one dialect."""

    status: int
    error: str
    description: str
    hint: str = ""

    def members(self, dialect: Dialect) -> dict[str, str]:
        """Return the members of the JSON body or of the redirect, in the recorded order."""
        members = {"error": self.error, "error_description": self.description}
        if self.hint:
            members["hint"] = self.hint
        if dialect == "8":
            members["message"] = self.description
        return members


def _plain(error: str, hint: str = "") -> Refusal:
    return Refusal(_STATUSES.get(error, 400), error, _DESCRIPTIONS[error], hint)


def _nine(error: str, hint: str) -> Refusal | None:
    return {
        DEAD_CODE: _plain("invalid_grant", hint),
        DEAD_REFRESH_TOKEN: Refusal(400, "invalid_grant", _DEAD, hint),
        EMPTY_REFRESH_TOKEN: _plain("invalid_request", "Check the `refresh_token` parameter"),
        MISSING_SECRET: _plain("invalid_request", "Check the `client_secret` parameter"),
        MISSING_RESPONSE_TYPE: _plain("invalid_request", "Check the `response_type` parameter"),
        MISSING_CLIENT_AT_AUTHORIZE: _plain("invalid_request", "Check the `client_id` parameter"),
        UNREGISTERED_REDIRECT_URI: _plain("invalid_request", "Invalid redirect URI"),
        NON_STRING_SCOPE: _plain("invalid_request", "Check the `scope` parameter"),
    }.get(error)


def _eight(error: str, hint: str) -> Refusal | None:
    if hint == "Cannot validate the provided authorization code":
        hint = "Cannot decrypt the authorization code"
    return {
        DEAD_CODE: _plain("invalid_request", hint),
        DEAD_REFRESH_TOKEN: Refusal(401, "invalid_request", _DEAD, hint),
        EMPTY_REFRESH_TOKEN: Refusal(401, "invalid_request", _DEAD, _CANNOT_DECRYPT),
        MISSING_SECRET: _plain("invalid_client"),
        MISSING_RESPONSE_TYPE: _plain("unsupported_grant_type", _CHECK_ALL),
        MISSING_CLIENT_AT_AUTHORIZE: _plain("unsupported_grant_type", _CHECK_ALL),
        UNREGISTERED_REDIRECT_URI: _plain("invalid_client"),
    }.get(error)


def translate(dialect: Dialect, error: str, detail: str) -> Refusal:
    """Return oauthlib's (or the validator's) ``error`` and ``detail`` as ``dialect`` words them."""
    error, hint = _FROM_OAUTHLIB.get((error, detail), (error, detail))
    special = _nine(error, hint) if dialect == "9" else _eight(error, hint)
    if special is not None:
        return special
    if error not in _DESCRIPTIONS:
        error = "invalid_request"
    return _plain(error, "" if error == "invalid_client" else hint)


def refuse(dialect: Dialect, error: str, detail: str, *, basic: bool = False) -> Response:
    """Return a refusal as JSON (RFC 6749 section 5.2).

    ``basic`` is whether the client authenticated with HTTP Basic, which a 401 then challenges.
    """
    refusal = translate(dialect, error, detail)
    challenged = basic and refusal.error == "invalid_client"
    headers = {"WWW-Authenticate": 'Basic realm="OAuth"'} if challenged else {}
    return json_response(refusal.members(dialect), refusal.status, headers=headers)


def redirect_refusal(
    dialect: Dialect, error: str, detail: str, *, redirect_uri: str, state: str | None
) -> Response:
    """Return a refusal as a redirect to the application (RFC 6749 section 4.1.2.1)."""
    members = translate(dialect, error, detail).members(dialect)
    # 8.x forgets the state of a request whose scope it refuses.
    if state and not (dialect == "8" and error == "invalid_scope"):
        members = {"state": state, **members}
    separator = "&" if "?" in redirect_uri else "?"
    return Response(302, b"", HTML, {"Location": redirect_uri + separator + urlencode(members)})
