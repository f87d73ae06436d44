"""Nothing secret in logs and in what error trackers show."""

import logging
import traceback

__all__ = ["forget_variables", "install", "silence"]

# requests-oauthlib prints client secret, code, verifier and both tokens at DEBUG.
_TALKATIVE = ("requests_oauthlib.oauth2_session",)


class _NoDebug(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.INFO


_FILTER = _NoDebug()


def forget_variables(error: BaseException, outer: BaseException | None) -> None:
    """Clear the variables of the frames that ``error`` and its causes have left.

    Tokens and headers are among them, and error trackers show variables. ``outer`` is what was
    being handled when our own code began: its frames are the site's, and may go on.
    """
    link: BaseException | None = error
    while link is not None and link is not outer:
        traceback.clear_frames(link.__traceback__)
        link = link.__context__


def install() -> None:
    """Silence the DEBUG messages of libraries that print secrets. Calling it twice is harmless."""
    silence(*_TALKATIVE)


def silence(*loggers: str) -> None:
    """Let nothing below INFO through that these loggers themselves are given."""
    for name in loggers:
        logging.getLogger(name).addFilter(_FILTER)
