"""Where a secret comes from. Imports no Django settings, so that a settings module may call it."""

import os
from collections.abc import Callable
from pathlib import Path

from .exceptions import ConfigurationError

__all__ = ["SecretSource", "secret"]

SecretSource = str | Callable[[], str]

_UNSUPPORTED = {"aws-secretsmanager", "azure-keyvault"}


def secret(source: SecretSource, *, name: str = "secret") -> str:
    """Return the secret that ``source`` names.

    ``source`` is a callable without arguments, ``"env:NAME"`` for an environment variable,
    ``"file:/path"`` for the content of a file (a trailing line end is dropped), or the secret
    itself. ``name`` is what error messages call it.

    Raises ``ConfigurationError``, which never shows the value.
    """
    value = _read(source, name)
    if not value:
        raise ConfigurationError(f"{name}: the secret is empty.")
    try:
        value.encode()
    except UnicodeEncodeError:  # the environment variable holds other bytes; the error shows them
        raise ConfigurationError(f"{name}: the secret is not valid UTF-8.") from None
    return value


def _read(source: SecretSource, name: str) -> str:
    if callable(source):
        return _from_callable(source, name)
    scheme, _, place = source.partition(":")
    if scheme == "env":
        if not os.environ.get(place):
            raise ConfigurationError(f"{name}: set the environment variable {place}.")
        return os.environ[place]
    if scheme == "file":
        return _from_file(Path(place), name)
    if scheme in _UNSUPPORTED:
        raise ConfigurationError(
            f"{name}: {scheme}: is not supported by this version; use env:, file: or a callable."
        )
    return source


def _from_callable(source: Callable[[], object], name: str) -> str:
    try:
        value = source()
    except Exception as error:  # noqa: BLE001 - and what it says may show the secret
        raise ConfigurationError(f"{name}: the callable failed ({type(error).__name__}).") from None
    if not isinstance(value, str):
        raise ConfigurationError(f"{name}: the callable has to return a str.")
    return value


def _from_file(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigurationError(
            f"{name}: cannot read {path} ({type(error).__name__}); check that it exists, is "
            "text, and may be read by the user that runs the site."
        ) from None
