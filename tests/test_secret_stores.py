"""Secrets from AWS Secrets Manager and Azure Key Vault: the real SDKs, over HTTP and HTTPS."""

import datetime
import ipaddress
import json
import logging
import socket
import ssl
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from moto.server import ThreadedMotoServer

from bipsync_django import lifecycle, secret_sources
from bipsync_django.conf import get_tenant
from bipsync_django.exceptions import ConfigurationError, RefreshUnavailable
from bipsync_django.models import BipsyncToken, TenantState
from bipsync_django.secret_sources import reread, secret
from bipsync_django.testing import SimulatedBipsync
from tests.browser import Browser
from tests.grants import at_once, connect, expire

HIDDEN = "hunter2-canary"
AWS = "aws-secretsmanager:prod/bipsync"


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    secret_sources._kept.clear()
    yield
    secret_sources._kept.clear()


class Clock:
    """The monotonic time of the module, which the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(secret_sources, "time", self)

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# --- AWS


class Aws:
    """Secrets Manager as moto plays it, over real HTTP."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = boto3.client("secretsmanager", endpoint_url=url, region_name="eu-west-2")

    def put(self, name: str, value: str | bytes) -> str:
        """Store a secret, or a new version of it; return its ARN."""
        kind = "SecretString" if isinstance(value, str) else "SecretBinary"
        try:
            answer = self.client.create_secret(Name=name, **{kind: value})
        except self.client.exceptions.ResourceExistsException:
            answer = self.client.put_secret_value(SecretId=name, **{kind: value})
        return str(answer["ARN"])


@pytest.fixture(scope="module")
def _moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(_moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    for name, value in {
        "AWS_ENDPOINT_URL": _moto,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "eu-west-2",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    yield Aws(_moto)
    requests.post(f"{_moto}/moto-api/reset", timeout=5)


def from_aws(source: str, **options: Any) -> str:
    return secret(source, allow_insecure_loopback=True, **options)


def test_a_secret_of_aws_is_read_by_name_and_by_arn(aws: Aws) -> None:
    arn = aws.put("prod/bipsync", "whole")
    assert from_aws(AWS) == "whole"
    assert from_aws(f"aws-secretsmanager:{arn}") == "whole"


def test_a_key_names_a_member_of_json(aws: Aws) -> None:
    aws.put("prod/bipsync", json.dumps({"client_secret": "a", "other": {"x": 1}, "number": 7}))
    assert from_aws(f"{AWS}#client_secret") == "a"
    for key in ("missing", "other", "number"):
        with pytest.raises(ConfigurationError, match=f"no JSON object with a text called '{key}'"):
            from_aws(f"{AWS}#{key}")


def test_stage_and_region_may_be_said(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    aws.put("prod/bipsync", "old")
    aws.put("prod/bipsync", "new")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert from_aws(f"{AWS}?region=eu-west-2") == "new"
    assert from_aws(f"{AWS}?region=eu-west-2&stage=AWSPREVIOUS") == "old"
    with pytest.raises(ConfigurationError, match="NoRegionError"):
        from_aws(AWS)
    with pytest.raises(ConfigurationError, match="ResourceNotFoundException"):
        from_aws(f"{AWS}?region=us-east-1")


@pytest.mark.parametrize("place", ["", "#key", "x?colour=red", "x?region=", "x?=y"])
def test_a_place_that_is_none_is_explained(place: str) -> None:
    with pytest.raises(ConfigurationError, match="write aws-secretsmanager:ID#key"):
        from_aws(f"aws-secretsmanager:{place}")


def test_a_binary_secret_is_refused(aws: Aws) -> None:
    aws.put("prod/bipsync", HIDDEN.encode())
    with pytest.raises(ConfigurationError, match="is binary") as caught:
        from_aws(AWS)
    assert HIDDEN not in "".join(traceback.format_exception(caught.value))


def test_plain_http_to_a_store_is_refused_but_on_loopback_where_that_is_allowed(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.put("prod/bipsync", "x")
    with pytest.raises(ConfigurationError, match="not https://"):
        secret(AWS)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://secrets.example")
    with pytest.raises(ConfigurationError, match="not https://"):
        from_aws(AWS)


BEYOND_LOOPBACK = [
    "http://secrets.example",
    "http://127.0.0.1.secrets.example",
    "http://localhost.example",
    "http://169.254.1.1",
    "http://0.0.0.0",
    "http://user:swordfish@127.0.0.1:9",
    "https://user:swordfish@vault.example",
]


@pytest.mark.parametrize("endpoint", BEYOND_LOOPBACK[:-2])
def test_plain_http_to_a_store_that_is_elsewhere_is_refused_where_loopback_is_allowed(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    # Of its own: what was refused a moment ago is refused again without a look at the address.
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(ConfigurationError, match="not https://"):
        from_aws(f"{AWS}#{endpoint}")


@pytest.mark.parametrize("endpoint", BEYOND_LOOPBACK)
def test_plain_http_to_a_vault_that_is_elsewhere_is_refused_where_loopback_is_allowed(
    endpoint: str,
) -> None:
    with pytest.raises(ConfigurationError, match="not https://") as caught:
        secret(f"azure-keyvault:{endpoint}/secrets/x", allow_insecure_loopback=True)
    assert "swordfish" not in str(caught.value)


def test_without_the_extra_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    with pytest.raises(ConfigurationError, match=r"install bipsync-django\[aws\]"):
        secret(AWS)
    with pytest.raises(ConfigurationError, match=r"install bipsync-django\[azure\]"):
        secret("azure-keyvault:https://vault.vault.azure.net/secrets/x")


def test_no_secret_of_a_store_reaches_a_log(aws: Aws, caplog: pytest.LogCaptureFixture) -> None:
    aws.put("prod/bipsync", json.dumps({"a": HIDDEN}))
    with caplog.at_level(logging.DEBUG):
        assert from_aws(f"{AWS}#a") == HIDDEN
    ours = [r for r in caplog.records if "werkzeug" not in r.name]
    assert ours
    assert HIDDEN not in "\n".join(record.getMessage() for record in ours)
    assert HIDDEN not in repr(secret_sources._kept)


def test_a_settings_module_may_ask_a_store(aws: Aws) -> None:
    """As in FIELD_ENCRYPTION_KEY = secret("aws-…"): there are no settings yet."""
    aws.put("prod/bipsync", "x")
    code = (
        "from bipsync_django.secret_sources import secret\n"
        "from django.conf import settings\n"
        f"assert secret({AWS!r}, allow_insecure_loopback=True) == 'x'\n"
        "assert not settings.configured\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- kept for a while


def test_a_store_is_asked_once_in_five_minutes(aws: Aws, clock: Clock) -> None:
    aws.put("prod/bipsync", "old")
    assert from_aws(AWS) == "old"
    aws.put("prod/bipsync", "new")
    clock.now += 299
    assert from_aws(AWS) == "old"
    clock.now += 2
    assert from_aws(AWS) == "new"


def test_threads_that_need_it_at_once_ask_once(
    aws: Aws, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.put("prod/bipsync", "x")
    asked: list[object] = []
    fetch = secret_sources._STORES["aws-secretsmanager"]

    def note(*args: Any) -> str:
        asked.append(args)
        return fetch(*args)

    monkeypatch.setitem(secret_sources._STORES, "aws-secretsmanager", note)
    assert at_once(8, lambda _: from_aws(AWS)) == ["x"] * 8
    assert len(asked) == 1


def test_a_store_that_is_down_costs_nothing_for_an_hour(
    aws: Aws, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    aws.put("prod/bipsync", "x")
    assert from_aws(AWS) == "x"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    clock.now += 301
    assert from_aws(AWS) == "x"
    assert "prod/bipsync cannot be read (EndpointConnectionError)" in caplog.text
    caplog.clear()
    clock.now += 20
    assert from_aws(AWS) == "x"
    assert caplog.text == "", "it was asked a moment ago"
    clock.now += 3600
    with pytest.raises(ConfigurationError, match="cannot be read"):
        from_aws(AWS)
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws.url)
    clock.now += 6
    assert from_aws(AWS) == "x"


def test_a_store_that_never_answered_is_not_asked_by_everybody(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def fail(*args: Any) -> str:
        asked.append(args)
        raise ConfigurationError("no answer")

    monkeypatch.setitem(secret_sources._STORES, "aws-secretsmanager", fail)
    for _ in range(5):
        with pytest.raises(ConfigurationError, match="no answer"):
            from_aws(AWS)
    assert len(asked) == 1
    clock.now += 6
    with pytest.raises(ConfigurationError, match="no answer"):
        from_aws(AWS)
    assert len(asked) == 2


def test_it_is_read_again_when_somebody_says_that_it_is_wrong(aws: Aws, clock: Clock) -> None:
    aws.put("prod/bipsync", "old")
    assert from_aws(AWS) == "old"
    aws.put("prod/bipsync", "new")
    reread(AWS)
    assert from_aws(AWS) == "old", "it was asked a moment ago"
    clock.now += 31
    reread(AWS)
    assert from_aws(AWS) == "new"
    reread("env:NOT_KEPT")
    reread(lambda: "x")


@pytest.mark.django_db(transaction=True)
def test_a_secret_that_is_rotated_in_the_store_is_picked_up_without_a_restart(
    aws: Aws, clock: Clock, bipsync: SimulatedBipsync, settings: Any
) -> None:
    aws.put("prod/bipsync", bipsync.client_secret)
    settings.BIPSYNC = {**settings.BIPSYNC, "CLIENT_SECRET": AWS}
    assert get_tenant().client_secret == bipsync.client_secret
    bipsync.client_secret = "rotated"
    aws.put("prod/bipsync", "rotated")
    clock.now += 31
    browser = Browser()
    assert browser.open(bipsync.approve(browser.begin())).status_code == 302
    assert bipsync.calls["code"] == 2, "the refused exchange spent no code"


@pytest.mark.django_db(transaction=True)
def test_a_refresh_that_meets_the_rotation_opens_no_breaker(
    aws: Aws, clock: Clock, bipsync: SimulatedBipsync, settings: Any
) -> None:
    token = connect(bipsync)
    aws.put("prod/bipsync", bipsync.client_secret)
    settings.BIPSYNC = {**settings.BIPSYNC, "CLIENT_SECRET": AWS}
    assert get_tenant().client_secret
    bipsync.client_secret = "rotated"
    aws.put("prod/bipsync", "rotated")
    clock.now += 31
    with pytest.raises(RefreshUnavailable, match="renewed"):
        lifecycle.refresh(expire(token))
    row = BipsyncToken.objects.get()
    assert (row.status, row.last_error, row.in_doubt_at) == ("active", "secret_renewed", None)
    assert TenantState.objects.get().breaker_until is None
    BipsyncToken.objects.update(next_attempt_at=None)
    assert lifecycle.refresh(row).generation == 2


@pytest.mark.django_db(transaction=True)
def test_a_secret_that_is_simply_wrong_opens_the_breaker(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    token = connect(bipsync)
    bipsync.client_secret = "another"
    with pytest.raises(RefreshUnavailable):
        lifecycle.refresh(expire(token))
    assert TenantState.objects.get().configuration_error == "invalid_client"


# --- Azure


class Vault(ThreadingHTTPServer):
    """A vault over HTTPS and the endpoint that hands out identities, as the SDK expects them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _VaultHandler)
        self.secrets: dict[str, dict[str, str]] = {}
        self.asked: list[str] = []
        certificate = _certificate(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.certificate = certificate
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"https://vault.localhost:{self.server_port}"


class _VaultHandler(BaseHTTPRequestHandler):
    server: Vault

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/identity":
            self._answer(200, {"access_token": "t0ken", "expires_on": "9999999999"})
            return
        self.server.asked.append(self.path)
        if self.headers.get("Authorization") != "Bearer t0ken":
            challenge = (
                'Bearer authorization="https://login.microsoftonline.com/tenant", '
                f'resource="https://localhost:{self.server.server_port}"'
            )
            self._answer(401, {}, {"WWW-Authenticate": challenge})
            return
        name, version = [*parts.path.strip("/").split("/"), ""][1:3]
        versions = self.server.secrets.get(name, {})
        version = version or (list(versions)[-1] if versions else "")
        if version not in versions:
            self._answer(404, {"error": {"code": "SecretNotFound", "message": "no"}})
            return
        address = f"{self.server.url}/secrets/{name}/{version}"
        self._answer(200, {"value": versions[version], "id": address, "attributes": {}})

    def _answer(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def _certificate(folder: Path) -> Path:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vault.localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [
        x509.DNSName("vault.localhost"),
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "vault.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    running = Vault(tmp_path)
    resolve = socket.getaddrinfo

    def on_this_machine(host: Any, *args: Any, **kwargs: Any) -> Any:
        known = isinstance(host, str) and host.endswith(".localhost")
        return resolve("127.0.0.1" if known else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", on_this_machine)
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{running.url}/identity")
    monkeypatch.setenv("IDENTITY_HEADER", "header")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(running.certificate))
    yield running
    running.shutdown()
    running.server_close()
    running.thread.join()


def test_a_secret_of_azure_is_read_the_latest_or_by_version(vault: Vault) -> None:
    vault.secrets["client-secret"] = {"v1": "old", "v2": "new"}
    place = f"azure-keyvault:{vault.url}/secrets/client-secret"
    assert secret(place) == "new"
    assert secret(f"{place}/v1") == "old"
    asked = len(vault.asked)
    assert secret(place) == "new"
    assert len(vault.asked) == asked, "kept"


def test_a_key_names_a_member_of_json_there_too(vault: Vault) -> None:
    vault.secrets["all"] = {"v1": json.dumps({"client_secret": "a"})}
    assert secret(f"azure-keyvault:{vault.url}/secrets/all#client_secret") == "a"


def test_what_azure_refuses_is_named_without_a_secret(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="ResourceNotFoundError, status 404"):
        secret(f"azure-keyvault:{vault.url}/secrets/missing")
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(ConfigurationError, match="cannot be read") as caught:
        secret(f"azure-keyvault:{vault.url}/secrets/other", name="CLIENT_SECRET")
    assert "t0ken" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "place",
    [
        "vault/name",
        "https://vault.vault.azure.net/keys/x",
        "https://vault.vault.azure.net/secrets/",
        "https://vault.vault.azure.net/secrets/a/b/c",
    ],
)
def test_a_vault_address_that_is_none_is_explained(place: str) -> None:
    with pytest.raises(ConfigurationError, match="write azure-keyvault:https://"):
        secret(f"azure-keyvault:{place}")


def test_a_vault_is_asked_over_https_only(vault: Vault) -> None:
    place = vault.url.replace("https:", "http:")
    with pytest.raises(ConfigurationError, match="not https://"):
        secret(f"azure-keyvault:{place}/secrets/x")
    assert vault.asked == []


def test_no_secret_of_a_vault_reaches_a_log(vault: Vault, caplog: pytest.LogCaptureFixture) -> None:
    vault.secrets["x"] = {"v1": HIDDEN}
    with caplog.at_level(logging.DEBUG):
        assert secret(f"azure-keyvault:{vault.url}/secrets/x") == HIDDEN
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert HIDDEN not in logged
    assert "t0ken" not in logged
