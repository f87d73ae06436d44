"""Nothing secret in logs."""

import logging

__all__ = ["install"]

# requests-oauthlib prints client secret, code, verifier and both tokens at DEBUG.
_TALKATIVE = ("requests_oauthlib.oauth2_session",)


class _NoDebug(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.INFO


_FILTER = _NoDebug()


def install() -> None:
    """Silence the DEBUG messages of libraries that print secrets. Calling it twice is harmless."""
    for name in _TALKATIVE:
        logging.getLogger(name).addFilter(_FILTER)
