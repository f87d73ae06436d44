"""What can go wrong, arranged by what the caller can do about it.

Nothing in these exceptions is secret: neither messages nor attributes hold tokens, codes, client
secrets or text that the provider sent.
"""

from datetime import datetime

from django.core.exceptions import ImproperlyConfigured

__all__ = [
    "AddressRefused",
    "BipsyncError",
    "ConfigurationError",
    "ForeignHost",
    "GrantDead",
    "KeysUnavailable",
    "KeysUnusable",
    "LinkRefused",
    "MissingScope",
    "NoSecondConnection",
    "OtherDeployment",
    "ProviderMisconfigured",
    "RefreshInsideTransaction",
    "RefreshUnavailable",
    "RetryLater",
    "RowMismatch",
    "SecretUnreadable",
    "SignInRefused",
    "SignInRequired",
    "TokenEndpointError",
    "TokenRefused",
    "Unauthorized",
    "UnknownTenant",
]


class BipsyncError(Exception):
    """Anything that this package raises on purpose."""


class ConfigurationError(BipsyncError, ImproperlyConfigured):
    """The site's settings are wrong; the message names the setting and what to write there."""


class UnknownTenant(ConfigurationError):
    """The settings have no such tenant; the message names those that they have."""

    code = "unknown_tenant"


# --- what the token endpoint's answers mean (RFC 6749, section 5.2)


class TokenEndpointError(BipsyncError):
    """The token endpoint did not hand out a pair.

    ``code`` is one of our own short words for the reason, safe to store and to log.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class GrantDead(TokenEndpointError):
    """The code or refresh token is spent, revoked or expired: the person has to sign in again."""


class ProviderMisconfigured(TokenEndpointError):
    """Bipsync refused the application, not the grant: an administrator has to mend the settings."""


class RetryLater(TokenEndpointError):
    """No usable answer came; whether the grant lives is unknown, and it has to be kept.

    ``retry_after`` is the provider's own wish in seconds, or ``None``. ``maybe_sent`` is true when
    a byte of the request may have reached the provider, which may then have spent the token.
    ``spent`` is true when it most likely has: it answered 200, with something that is no pair.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retry_after: float | None = None,
        maybe_sent: bool = True,
        spent: bool = False,
    ) -> None:
        super().__init__(code, message)
        self.retry_after = retry_after
        self.maybe_sent = maybe_sent
        self.spent = spent


# --- access tokens as JWTs


class TokenRefused(BipsyncError):
    """The access token is not one that this tenant's Bipsync signed for this application now."""


class KeysUnavailable(BipsyncError):
    """Bipsync's signing keys cannot be fetched, so nothing can be said of the token. Try later."""


class KeysUnusable(KeysUnavailable):
    """Bipsync publishes no signing key of use here: an administrator has to look at it."""


# --- using a stored grant


class SignInRequired(BipsyncError):
    """There is no usable grant: send the person through sign-in."""


class RefreshUnavailable(BipsyncError):
    """A refresh is needed and cannot be had at this moment; the grant is kept. Try again later.

    ``code`` says why, as ``BipsyncToken.last_error`` does. ``until`` is when another try makes
    sense (an aware datetime), or ``None`` where that is not known.
    """

    def __init__(self, code: str, message: str, *, until: datetime | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.until = until


class RefreshInsideTransaction(RefreshUnavailable):
    """SQLite cannot store a new pair beside the caller's open transaction.

    Call the API outside ``transaction.atomic`` (and without ``ATOMIC_REQUESTS``), or use
    PostgreSQL, MariaDB or MySQL.
    """

    def __init__(self) -> None:
        super().__init__(
            "inside_transaction",
            "A token has to be refreshed inside a transaction, which SQLite cannot do without "
            "risking the new token. Call Bipsync outside of transaction.atomic(), mark the view "
            "with transaction.non_atomic_requests, or use PostgreSQL, MariaDB or MySQL.",
        )


class NoSecondConnection(RefreshUnavailable):
    """A refresh inside a transaction had no second database connection within a few seconds.

    Nothing was sent. Allow for more connections, or call Bipsync outside of ``transaction.atomic``.
    With ``is_connected`` there was one, and ``BIPSYNC['PREPARE_CONNECTION']`` took too long.
    """

    def __init__(self, *, is_connected: bool = False) -> None:
        super().__init__(
            "busy",
            "BIPSYNC['PREPARE_CONNECTION'] did not prepare the second database connection of a "
            "refresh inside a transaction within a few seconds. It must not wait for anything that "
            "the caller's transaction has locked."
            if is_connected
            else "A refresh inside a transaction needs a second database connection, and none was "
            "free within a few seconds. Allow for more connections, or call Bipsync outside of "
            "transactions.",
        )


class RowMismatch(RefreshUnavailable, ConfigurationError):
    """A database connection has another row, or none, under the primary key of a token row.

    So it sees other tables than the connection that the row came from: those of another customer's
    schema, for example. Nothing was sent, and nothing written. ``BIPSYNC['PREPARE_CONNECTION']``
    lets the connection see the right ones.
    """

    def __init__(self, pk: object, *, is_there: bool) -> None:
        found = "is another account's" if is_there else "does not exist"
        super().__init__(
            "other_row",
            f"The Bipsync token with primary key {pk} {found} on the database connection that a "
            "refresh would use, so nothing was sent to Bipsync. If this site has a schema for each "
            "customer, SET ROLE or row-level security: let BIPSYNC['PREPARE_CONNECTION'] prepare "
            "that connection, and let each worker use the customer's schema. See "
            "docs/installing.md, A schema for each customer. If the row was made in this very "
            "transaction: call Bipsync after it.",
        )


class OtherDeployment(RefreshUnavailable, ConfigurationError):
    """The grants are in use somewhere else, and each refresh here would end one there.

    ``manage.py bipsync_deployment`` says whose they are, and makes them this deployment's.
    """

    def __init__(self, theirs: str, ours: str) -> None:
        super().__init__(
            "other_deployment",
            f"The grants in this database are those of the deployment {theirs!r}, and "
            f"BIPSYNC['DEPLOYMENT'] here is {ours!r}. Nothing is sent to Bipsync, because a "
            "refresh here would end the grant there. Run: manage.py bipsync_deployment",
        )


class SecretUnreadable(BipsyncError):
    """A stored secret cannot be decrypted, or was moved here from another row or column.

    Put the key that encrypted it back into ``FIELD_ENCRYPTION_KEY`` (a list of keys reads with
    all of them and writes with the first).
    """


class ForeignHost(BipsyncError):
    """A URL that is not on the tenant's API host over https: no token goes there."""


# --- what the API's answers mean


class Unauthorized(BipsyncError):
    """The API answered 401, and the request could not be repeated because its body cannot be.

    The token has been replaced meanwhile, and Bipsync did nothing: make the call again.
    """


class MissingScope(Unauthorized):
    """The API answered 401 to a fresh token: the grant lacks a scope that this call needs.

    Ask the person for it (``@bipsync_token_required(scopes=[…])``).
    """


class AddressRefused(BipsyncError):
    """The API answered 403: this server's address is not on the client's IP allow-list.

    Neither the person nor another try can help: have the address added at Bipsync.
    """


# --- signing in


class SignInRefused(BipsyncError):
    """A sign-in ends here; ``reason`` selects what the person is told (``failures.FAILURES``)."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


class LinkRefused(BipsyncError):
    """A Bipsync account and a user are not joined: one of them has another partner already."""
