"""Nothing secret in logs and in what error trackers show. Imports no Django: settings call it.

This is the second line: the package does not log secrets in the first place. It stands between a
mistake, ours or a library's, and a log file that is kept for years.
"""

import functools
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

__all__ = ["REDACTED", "install", "names_secret", "redact", "silence", "without_traces"]

P = ParamSpec("P")
R = TypeVar("R")

_PACKAGE = __name__.partition(".")[0]

REDACTED = "[redacted]"

# These print client secret, code, verifier and both tokens at DEBUG.
_TALKATIVE = ("requests_oauthlib.oauth2_session", "requests_oauthlib.oauth1_session")
# These may repeat an address, a header or a message that holds one. Filters of a logger do not see
# its children's records, so every one is named.
_REPEATING = (
    "django.request",
    "django.security.SuspiciousOperation",
    "django.server",
    "oauthlib.oauth2.rfc6749.clients.base",
    "oauthlib.oauth2.rfc6749.parameters",
    "requests",
    "urllib3.connection",
    "urllib3.connectionpool",
    "urllib3.util.retry",
)

_NAMES = "access_token|refresh_token|id_token|client_secret|code_verifier|code|state"
# An access token, or another JWT. Possessive, and a run of "eyJ" is taken as a whole: whoever
# makes an address of a thousand of them must not make each one a new start.
_JWT = re.compile(r"eyJ[\w-]{6,}+(\.[\w-]++\.[\w-]*+)?")
_SECRETS = (
    # league/oauth2-server's refresh tokens and codes.
    re.compile(r"def50200[0-9a-f]{8,}"),
    # Of what is sealed with Fernet: cookies of trips, columns of tokens.
    re.compile(r"gAAAAA[\w-]{60,}=*"),
    re.compile(r"(?i)(?<=\bBearer )[^\s'\",]+"),
)
_BASIC = re.compile(r"(?i)(\bauthorization\b['\"]?\s*[:=,]\s*b?['\"]?basic\s+)[^\s'\"]+")
# As they are, escaped once or more by JSON, or percent-encoded once or more. Counted, because each
# number of them is a mark of its own to look for the end of.
_QUOTE = r"\\{0,7}['\"]|%(?:25){0,3}2[27]"
_ENCODED = r"%(?:25){0,3}"
# One in brackets that holds no others of its kind.
_GROUP = r"\[[^\[\]]*+\]|\([^()]*+\)|\{[^{}]*+\}"


def _quoted(name: str) -> str:
    """Return a pattern for a value in quotes, up to the same quote unescaped.

    Atomic: where more has to follow and does not, no later quote is tried.
    """
    return rf"(?>b?(?P<{name}>{_QUOTE}).*?(?<!\\)(?P={name}))"


# In an address, a form, JSON, or the repr of a dict, of lists in one, or of a list of pairs.
_NAMED = re.compile(
    rf"(?is)(?P<before>\b|{_ENCODED}[0-9a-f]{{2}})(?P<name>{_NAMES})"
    rf"(?P<between>(?:{_QUOTE})?\s*(?:=|:|{_ENCODED}3[DA])\s*|(?:{_QUOTE})\s*,\s*)"
    rf"(?:{_quoted('quote')}"
    rf"|[\[(]\s*{_quoted('first')}(?:\s*,\s*{_quoted('later')})*+\s*,?\s*[\])]"
    # Unquoted, or in quotes that never end. A closing bracket belongs to a value that goes on.
    rf"|(?:(?:[\[(]\s*)?b?(?:{_QUOTE}))?"
    rf"(?:{_GROUP}|[^\s&'\",;)}}\]])+(?:[)}}\]]+\w[^\s&'\",;)}}\]]*)*+)"
)


def redact(text: str) -> str:
    """Return ``text`` without what looks like a token, a code or a client secret.

    It takes time in proportion to the text, whatever that is: visitors write some of it.
    """
    # First, while its brackets are those of the text.
    text = _NAMED.sub(_without_value, text)
    text = _JWT.sub(lambda found: REDACTED if found[1] else found[0], text)
    for pattern in _SECRETS:
        text = pattern.sub(REDACTED, text)
    return _BASIC.sub(rf"\g<1>{REDACTED}", text)


def names_secret(name: str) -> bool:
    """Return whether ``redact`` takes out the value that stands behind ``name``."""
    return re.fullmatch(_NAMES, name, re.IGNORECASE) is not None


def _without_value(found: re.Match[str]) -> str:
    quote = found["quote"] or ""
    return f"{found['before']}{found['name']}{found['between']}{quote}{REDACTED}{quote}"


def install() -> None:
    """Guard our own loggers and those of the libraries below. Calling it twice is harmless."""
    silence(*_TALKATIVE)
    for name in (*_REPEATING, *_own_loggers()):
        logging.getLogger(name).addFilter(_REDACTION)


def silence(*loggers: str) -> None:
    """Let nothing below INFO through that these loggers themselves are given."""
    for name in loggers:
        logging.getLogger(name).addFilter(_NO_DEBUG)


def without_traces(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that handles secrets: an exception that leaves it carries no variable.

    Error trackers show the variables of every frame that an exception has passed, and tokens and
    headers are among ours. This clears the frames of ``function`` and of all that it has called,
    for the exception itself, for its causes and for the members of a group. Frames of the callers
    stay as they are, and so do those of an exception that the caller was handling already.
    Functions of the site's that ``function`` calls are cleared too, and before Python 3.13 a
    suspended generator is closed by that where an error that it keeps is part of the chain.

    Use it as the outermost decorator: the frame of any other one keeps the arguments.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        outer = sys.exception()
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            # This frame still runs, so nothing else can clear it.
            del args, kwargs
            _clear_frames(error, outer)
            raise

    return call


def _clear_frames(error: BaseException, outer: BaseException | None) -> None:
    spared = set() if outer is None else {id(link) for link in _chain(outer)}
    for link in _chain(error):
        if id(link) not in spared:
            traceback.clear_frames(link.__traceback__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, all that led to it, and the members of groups, each once."""
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        link = todo.pop()
        # An error may be its own cause.
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        todo += [link.__cause__, link.__context__]
        if isinstance(link, BaseExceptionGroup):
            todo += link.exceptions


# --- logs


class _NoDebug(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.INFO


class _Redaction(logging.Filter):
    """Changes only records that hold something: all others stay as they are, arguments too."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - the arguments' own; nobody could read it anyway
            record.msg, record.args = f"{REDACTED} (the message cannot be put together)", ()
            return True
        redacted = redact(message)
        if redacted != message:
            record.msg, record.args = redacted, ()
        if record.exc_info and (error := record.exc_info[1]) and _says_a_secret(error):
            # Formatters show this text, and error trackers would show the exception itself.
            text = "".join(traceback.format_exception(error)).rstrip("\n")
            record.exc_text, record.exc_info = redact(text), None
        return True


def _says_a_secret(error: BaseException) -> bool:
    """Whether the error, or what led to it, says one. Lines of source in a traceback only look so.

    An error whose text cannot be had counts as one that does.
    """
    for link in _chain(error):
        try:
            said = "\n".join(map(str, (link, *getattr(link, "__notes__", ()))))
        except Exception:  # noqa: BLE001 - its own
            return True
        if redact(said) != said:
            return True
    return False


_NO_DEBUG = _NoDebug()
_REDACTION = _Redaction()


def _own_loggers() -> Iterable[str]:
    # By the names of the files: importing them here would be too early for the admin's.
    root = Path(__file__).parent
    for file in root.rglob("*.py"):
        parts = file.relative_to(root).with_suffix("").parts
        yield ".".join((_PACKAGE, *(part for part in parts if part != "__init__")))
