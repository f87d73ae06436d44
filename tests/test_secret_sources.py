"""A secret comes from where it is said to be, or an error names that place and nothing secret."""

import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from bipsync_django.conf import get_tenant
from bipsync_django.exceptions import ConfigurationError
from bipsync_django.secret_sources import secret


def test_a_plain_secret_is_itself() -> None:
    for value in ("s3cret", " with blanks ", "é€", "environment", "http:x", "ENV:NAME", "filed:x"):
        assert secret(value) == value


def test_an_environment_variable_is_read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("first", "second", " env:nested "):
        monkeypatch.setenv("BIPSYNC_TEST_SECRET", value)
        assert secret("env:BIPSYNC_TEST_SECRET") == value


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_environment_variable_is_named(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BIPSYNC_TEST_SECRET", raising=False)
    if value is not None:
        monkeypatch.setenv("BIPSYNC_TEST_SECRET", value)
    with pytest.raises(ConfigurationError, match=r"CLIENT_SECRET: set .* BIPSYNC_TEST_SECRET\."):
        secret("env:BIPSYNC_TEST_SECRET", name="CLIENT_SECRET")


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("s3cret", "s3cret"),
        ("s3cret\n", "s3cret"),
        ("s3cret\r\n", "s3cret"),
        (" s3cret ", " s3cret "),
        ("\ns3cret\n\n", "\ns3cret"),
        ("é€", "é€"),
    ],
)
def test_a_file_is_read_without_its_last_line_end(content: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content.encode())
    assert secret(f"file:{path}") == value


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"hidden\xff")
    for path in (tmp_path / "missing", tmp_path, binary, "/dev/null/x", "a\x00b", "x" * 5000):
        with pytest.raises(ConfigurationError, match="CLIENT_SECRET: cannot read") as caught:
            secret(f"file:{path}", name="CLIENT_SECRET")
        assert "hidden" not in str(caught.value)
        assert caught.value.__suppress_context__


def test_a_callable_is_asked_each_time() -> None:
    answers = iter(["first", "second"])
    source = lambda: next(answers)  # noqa: E731
    assert [secret(source), secret(source)] == ["first", "second"]


@pytest.mark.parametrize("value", [None, b"bytes-secret", 7, ["list-secret"]])
def test_a_callable_that_returns_no_text_is_refused_without_showing_it(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="has to return a str") as caught:
        secret(lambda: value)
    assert "secret-" not in str(caught.value)
    assert "-secret" not in str(caught.value)


def test_an_empty_secret_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    for source in ("", lambda: "", f"file:{empty}"):
        with pytest.raises(ConfigurationError, match="empty"):
            secret(source)


def test_a_secret_that_cannot_be_sent_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(os.environ, "BIPSYNC_TEST_SECRET", os.fsdecode(b"hidden\xff"))
    for source in ("env:BIPSYNC_TEST_SECRET", lambda: "hidden\ud800"):
        with pytest.raises(ConfigurationError, match="UTF-8") as caught:
            secret(source)
        assert "hidden" not in str(caught.value)
        assert caught.value.__suppress_context__


def test_the_tenant_reads_its_secret_when_it_is_needed(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "CLIENT_SECRET": "env:BIPSYNC_TEST_SECRET"}
    monkeypatch.delenv("BIPSYNC_TEST_SECRET", raising=False)
    tenant = get_tenant()
    with pytest.raises(ConfigurationError, match="CLIENT_SECRET"):
        _ = tenant.client_secret
    monkeypatch.setenv("BIPSYNC_TEST_SECRET", "s3cret")
    assert tenant.client_secret == "s3cret"


def test_a_settings_module_may_read_secrets_before_there_are_settings() -> None:
    code = (
        "from bipsync_django.secret_sources import secret\n"
        "from django.conf import settings\n"
        "assert secret('env:BIPSYNC_TEST_SECRET') == 's3cret'\n"
        "assert not settings.configured\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"
    }
    environment["BIPSYNC_TEST_SECRET"] = "s3cret"
    subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=Path(__file__).parent.parent,
        check=True,
        timeout=60,
    )


def test_a_callable_that_fails_is_named_without_what_it_said() -> None:
    def fail() -> str:
        raise RuntimeError("the secret is hunter2")

    with pytest.raises(ConfigurationError, match="CLIENT_SECRET") as refused:
        secret(fail, name="CLIENT_SECRET")
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))
