"""What can go wrong, arranged by what the caller can do about it.

Nothing in these exceptions is secret: neither messages nor attributes hold tokens, codes, client
secrets or text that the provider sent.
"""

from django.core.exceptions import ImproperlyConfigured

__all__ = [
    "BipsyncError",
    "ConfigurationError",
    "ForeignHost",
    "GrantDead",
    "KeysUnavailable",
    "ProviderMisconfigured",
    "RefreshInsideTransaction",
    "RefreshUnavailable",
    "RetryLater",
    "SecretUnreadable",
    "SignInRefused",
    "SignInRequired",
    "TokenEndpointError",
    "TokenRefused",
]


class BipsyncError(Exception):
    """Anything that this package raises on purpose."""


class ConfigurationError(BipsyncError, ImproperlyConfigured):
    """The site's settings are wrong; the message names the setting and what to write there."""


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
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retry_after: float | None = None,
        maybe_sent: bool = True,
    ) -> None:
        super().__init__(code, message)
        self.retry_after = retry_after
        self.maybe_sent = maybe_sent


# --- access tokens as JWTs


class TokenRefused(BipsyncError):
    """The access token is not one that this tenant's Bipsync signed for this application now."""


class KeysUnavailable(BipsyncError):
    """Bipsync's signing keys cannot be fetched, so nothing can be said of the token. Try later."""


# --- using a stored grant


class SignInRequired(BipsyncError):
    """There is no usable grant: send the person through sign-in."""


class RefreshUnavailable(BipsyncError):
    """A refresh is needed and cannot be had at this moment; the grant is kept. Try again later.

    ``code`` says why, as ``BipsyncToken.last_error`` does.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RefreshInsideTransaction(RefreshUnavailable):
    """SQLite cannot store a new pair beside the caller's open transaction.

    Call the API outside ``transaction.atomic`` (and without ``ATOMIC_REQUESTS``), or use
    PostgreSQL, MariaDB or MySQL.
    """

    def __init__(self) -> None:
        super().__init__(
            "inside_transaction",
            "A token has to be refreshed inside a transaction, which SQLite cannot do without "
            "risking the new token. Call Bipsync outside of transaction.atomic() and without "
            "ATOMIC_REQUESTS, or use PostgreSQL, MariaDB or MySQL.",
        )


class SecretUnreadable(BipsyncError):
    """A stored secret cannot be decrypted, or was moved here from another row or column.

    Put the key that encrypted it back into ``FIELD_ENCRYPTION_KEY`` (a list of keys reads with
    all of them and writes with the first).
    """


class ForeignHost(BipsyncError):
    """A URL that is not on the tenant's API host over https: no token goes there."""


# --- signing in


class SignInRefused(BipsyncError):
    """A sign-in ends here; ``reason`` selects what the person is told (``failures.FAILURES``)."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason
