"""Where a secret comes from. Imports no Django settings, so that a settings module may call it.

Secrets from a store are kept for five minutes, and for an hour when the store does not answer: a
site must neither ask it for every refresh nor stop with it.
"""

import functools
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .exceptions import ConfigurationError
from .redaction import silence, without_traces

__all__ = ["SecretSource", "reread", "secret"]

logger = logging.getLogger(__name__)

SecretSource = str | Callable[[], str]

# In seconds.
KEPT = 300.0
KEPT_WITHOUT_ANSWER = 3600.0
ASKED_AGAIN = 30.0
_FAILED_AGAIN = 5.0
_TIMEOUT = 3.0


@without_traces
def secret(
    source: SecretSource, *, name: str = "secret", allow_insecure_loopback: bool = False
) -> str:
    """Return the secret that ``source`` names.

    ``source`` is one of

    - a callable without arguments;
    - ``"env:NAME"``, an environment variable;
    - ``"file:/path"``, the content of a file (a trailing line end is dropped);
    - ``"aws-secretsmanager:ID#key?region=…&stage=…"``, a secret of AWS Secrets Manager by its
      name or ARN, of which ``key`` names a member if it is JSON (extra ``aws``);
    - ``"azure-keyvault:https://…/secrets/NAME/version"``, a secret of Azure Key Vault, of which
      the version may be left out (extra ``azure``);
    - the secret itself.

    ``name`` is what error messages call it. Stores are asked over https; with
    ``allow_insecure_loopback`` plain http will do on this machine's own addresses.

    Raises ``ConfigurationError``, which names the source and never shows the value.
    """
    value = _read(source, name, allow_insecure_loopback)
    if not value:
        raise ConfigurationError(f"{name}: the secret is empty.")
    try:
        value.encode()
    except UnicodeEncodeError:  # the environment variable holds other bytes; the error shows them
        raise ConfigurationError(f"{name}: the secret is not valid UTF-8.") from None
    return value


def reread(source: SecretSource) -> None:
    """Let the next ``secret()`` ask the store: Bipsync says that the secret is not right.

    At most once in half a minute. If the store does not answer then, the old value stays in use.
    """
    if isinstance(source, str) and (kept := _kept.get(source)) is not None:
        kept.expire()


def _read(source: SecretSource, name: str, allow_insecure_loopback: bool) -> str:
    if callable(source):
        return _from_callable(source, name)
    scheme, _, place = source.partition(":")
    if scheme == "env":
        if not os.environ.get(place):
            raise ConfigurationError(f"{name}: set the environment variable {place}.")
        return os.environ[place]
    if scheme == "file":
        return _from_file(Path(place), name)
    if scheme in _STORES:
        fetch = functools.partial(_STORES[scheme], place, name, allow_insecure_loopback)
        return _kept.setdefault(source, _Kept()).get(fetch)
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


# --- what was fetched from a store


class _Kept:
    """One secret of a store, and when it was fetched (monotonic)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value: str | None = None
        self._fetched = float("-inf")
        self._asked = float("-inf")
        self._is_fresh = False
        self._failed = ""

    def __repr__(self) -> str:
        return "<kept secret>"

    def expire(self) -> None:
        """Ask again at the next use, unless that was done a moment ago."""
        if time.monotonic() - self._asked > ASKED_AGAIN:
            self._is_fresh = False

    def get(self, fetch: Callable[[], str]) -> str:
        """Return the value as it is kept, or as ``fetch`` brings it. One thread asks at a time."""
        value = self._usable()
        if value is not None:
            return value
        with self._lock:
            # Somebody else may have asked while this thread waited.
            value = self._usable()
            return self._ask(fetch) if value is None else value

    def _usable(self) -> str | None:
        now = time.monotonic()
        if self._is_fresh and now - self._fetched < KEPT:
            return self._value
        # The store failed a moment ago.
        if now - self._asked < ASKED_AGAIN and now - self._fetched < KEPT_WITHOUT_ANSWER:
            return self._value
        return None

    def _ask(self, fetch: Callable[[], str]) -> str:
        if self._failed and time.monotonic() - self._asked < _FAILED_AGAIN:
            raise ConfigurationError(self._failed)
        self._asked = time.monotonic()
        try:
            value = fetch()
        except ConfigurationError as error:
            if self._value is None or self._asked - self._fetched >= KEPT_WITHOUT_ANSWER:
                self._failed = str(error)
                raise
            logger.error("%s The value of before is used for up to an hour.", error)
            return self._value
        self._value, self._fetched, self._is_fresh = value, time.monotonic(), True
        self._failed = ""
        return value


_kept: dict[str, _Kept] = {}


# --- stores


@dataclass(frozen=True)
class _AwsPlace:
    """``ID#key?region=…&stage=…``; an ARN names its region itself."""

    secret_id: str
    key: str
    region: str | None
    stage: str | None

    @classmethod
    def parse(cls, place: str, name: str) -> "_AwsPlace":
        rest, _, query = place.partition("?")
        secret_id, _, key = rest.partition("#")
        options = dict(parse_qsl(query, keep_blank_values=True))
        if not secret_id or not set(options) <= {"region", "stage"} or "" in options.values():
            raise ConfigurationError(
                f"{name}: write aws-secretsmanager:ID#key, where ID is a name or an ARN, and "
                "after it, if need be, ?region=… and &stage=…"
            )
        parts = secret_id.split(":")
        region = parts[3] if parts[0] == "arn" and len(parts) > 3 else None
        return cls(secret_id, key, options.get("region", region), options.get("stage"))


def _from_aws(place: str, name: str, allow_insecure_loopback: bool) -> str:
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise ConfigurationError(
            f"{name}: for AWS Secrets Manager install bipsync-django[aws]."
        ) from None
    silence("botocore.parsers", "botocore.endpoint", "botocore.hooks")
    where = _AwsPlace.parse(place, name)
    source = f"aws-secretsmanager:{where.secret_id}"
    try:
        client = boto3.session.Session().client(
            "secretsmanager",
            region_name=where.region,
            config=Config(
                connect_timeout=_TIMEOUT, read_timeout=_TIMEOUT, retries={"total_max_attempts": 2}
            ),
        )
        _expect_secure(client.meta.endpoint_url, source, name, allow_insecure_loopback)
        wanted = {"SecretId": where.secret_id}
        if where.stage is not None:
            wanted["VersionStage"] = where.stage
        answer = client.get_secret_value(**wanted)
    except ConfigurationError:
        raise
    except Exception as error:  # noqa: BLE001 - botocore's are many, and grow with its data
        raise _unanswered(name, source, _aws_reason(error)) from None
    value = answer.get("SecretString")
    if not isinstance(value, str):
        raise ConfigurationError(f"{name}: {source} is binary; store it as text.")
    return _member(value, where.key, source, name)


def _aws_reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return str(code or type(error).__name__)


def _from_azure(place: str, name: str, allow_insecure_loopback: bool) -> str:
    try:
        from azure.identity import DefaultAzureCredential
        from azure.keyvault.secrets import SecretClient
    except ImportError:
        raise ConfigurationError(
            f"{name}: for Azure Key Vault install bipsync-django[azure]."
        ) from None
    rest, _, key = place.partition("#")
    parts = urlsplit(rest)
    path = parts.path.strip("/").split("/")
    if not parts.netloc or len(path) not in {2, 3} or path[0] != "secrets" or not all(path):
        raise ConfigurationError(
            f"{name}: write azure-keyvault:https://VAULT.vault.azure.net/secrets/NAME, and after "
            "it, if need be, /version or #key"
        )
    # An address may hold a password, though it is refused then.
    source = f"azure-keyvault:{parts.netloc.rpartition('@')[2]}/secrets/{path[1]}"
    _expect_secure(rest, source, name, allow_insecure_loopback)
    try:
        with (
            DefaultAzureCredential() as credential,
            SecretClient(
                f"{parts.scheme}://{parts.netloc}",
                credential,
                connection_timeout=_TIMEOUT,
                read_timeout=_TIMEOUT,
                retry_total=1,
            ) as client,
        ):
            value = client.get_secret(path[1], *path[2:]).value
    except Exception as error:  # noqa: BLE001 - the SDK's, its transport's and the credentials'
        status = getattr(error, "status_code", None)
        reason = type(error).__name__ + (f", status {status}" if status else "")
        raise _unanswered(name, source, reason) from None
    if value is None:
        raise ConfigurationError(f"{name}: {source} is empty.")
    return _member(value, key, source, name)


def _unanswered(name: str, source: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name}: {source} cannot be read ({reason}); check that it exists, that this server may "
        "read it, and that the store can be reached."
    )


def _member(value: str, key: str, source: str, name: str) -> str:
    if not key:
        return value
    try:
        found: Any = json.loads(value)
    except (ValueError, RecursionError):
        found = None
    member = found.get(key) if isinstance(found, dict) else None
    if not isinstance(member, str):
        raise ConfigurationError(
            f"{name}: {source} is no JSON object with a text called {key!r}; correct what stands "
            "after the #, or the secret."
        )
    return member


def _expect_secure(url: str, source: str, name: str, allow_insecure_loopback: bool) -> None:
    parts = urlsplit(url)
    may_be_plain = allow_insecure_loopback and _is_loopback(parts.hostname or "")
    if "@" not in parts.netloc and (
        parts.scheme == "https" or (parts.scheme == "http" and may_be_plain)
    ):
        return
    raise ConfigurationError(
        f"{name}: {source} would be asked at an address that is not https://, so it is not asked."
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


_STORES: dict[str, Callable[[str, str, bool], str]] = {
    "aws-secretsmanager": _from_aws,
    "azure-keyvault": _from_azure,
}
