"""The databases that the tests run on, and the router that chooses one.

SQLite is always there. PostgreSQL and MariaDB are used where they answer; which of them are
missing, and why, is known here, so that tests can skip on a laptop and fail in CI.
"""

import functools
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

MISSING: dict[str, str] = {}
"""Alias → why it cannot be used."""

IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}


def sqlite() -> dict[str, Any]:
    file = Path(tempfile.gettempdir()) / f"bipsync_test_{os.getpid()}.sqlite3"
    name = _name("default", str(file))
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": name,
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;",
        },
        # A file, because threads and live servers cannot share a database in memory.
        "TEST": {"NAME": name},
    }


def for_child(alias: str) -> dict[str, str]:
    """Return the environment of a process that a test on ``alias`` starts on its own database."""
    connection = connections[alias]
    connection.close()
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "TEST_DATABASE": alias,
        "TEST_DATABASE_NAME": str(connection.settings_dict["NAME"]),
    }


def _name(alias: str, default: str) -> str:
    return os.environ["TEST_DATABASE_NAME"] if os.environ.get("TEST_DATABASE") == alias else default


@functools.cache
def servers() -> dict[str, dict[str, Any]]:
    """Return the Django settings of the database servers that answer."""
    found = {}
    # A child of a test is about one of them. The others have databases of the parent's.
    only = os.environ.get("TEST_DATABASE")
    for alias, (check, settings) in {
        "postgresql": (_check_postgresql, postgresql()),
        "mariadb": (_check_mariadb, _mariadb()),
    }.items():
        if only not in {None, alias}:
            continue
        try:
            check(settings)
        except Exception as error:  # noqa: BLE001 - any reason is a reason to go without
            MISSING[alias] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        else:
            found[alias] = settings
    return found


def postgresql() -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _name("postgresql", f"bipsync_{os.getpid()}"),
        "USER": os.environ.get("TEST_POSTGRESQL_USER", "postgres"),
        "PASSWORD": os.environ.get("TEST_POSTGRESQL_PASSWORD", ""),
        "HOST": os.environ.get("TEST_POSTGRESQL_HOST", "127.0.0.1"),
        "PORT": os.environ.get("TEST_POSTGRESQL_PORT", "5432"),
        "TEST": {"DEPENDENCIES": []},
    }


def _mariadb() -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.mysql",
        "NAME": _name("mariadb", f"bipsync_{os.getpid()}"),
        "USER": os.environ.get("TEST_MARIADB_USER", "root"),
        "PASSWORD": os.environ.get("TEST_MARIADB_PASSWORD", ""),
        "HOST": os.environ.get("TEST_MARIADB_HOST", "127.0.0.1"),
        "PORT": os.environ.get("TEST_MARIADB_PORT", "3306"),
        # Not UTC, so that a clock in the session's time zone shows.
        "OPTIONS": {"charset": "utf8mb4", "init_command": "SET time_zone = '+05:00'"},
        "TEST": {"CHARSET": "utf8mb4", "DEPENDENCIES": []},
    }


def _check_postgresql(settings: dict[str, Any]) -> None:
    import psycopg

    psycopg.connect(
        host=settings["HOST"],
        port=settings["PORT"],
        user=settings["USER"],
        password=settings["PASSWORD"],
        dbname="postgres",
        connect_timeout=3,
    ).close()


def _check_mariadb(settings: dict[str, Any]) -> None:
    import MySQLdb

    MySQLdb.connect(
        host=settings["HOST"],
        port=int(settings["PORT"]),
        user=settings["USER"],
        password=settings["PASSWORD"],
        connect_timeout=3,
    ).close()  # type: ignore[no-untyped-call]


class Router:
    """Sends everything to the database that the present test is about."""

    alias = os.environ.get("TEST_DATABASE", "default")

    def db_for_read(self, model: object, **hints: object) -> str:
        return Router.alias

    def db_for_write(self, model: object, **hints: object) -> str:
        return Router.alias


def on(*aliases: str, transaction: bool = True) -> list[Any]:
    """Return pytest parameters for the ``database`` fixture.

    Without ``transaction`` they are for ``rolled_back_database``.
    """
    servers()
    return [
        # The fixture says what is missing; the mark would only stumble over it.
        alias
        if alias in MISSING
        else pytest.param(
            alias, marks=pytest.mark.django_db(transaction=transaction, databases=[alias])
        )
        for alias in aliases
    ]


def use(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send everything to ``alias``. Where it is missing, the test is skipped, or fails in CI."""
    if alias in MISSING:
        reason = f"{alias} cannot be used here ({MISSING[alias]})"
        if IN_CI:
            pytest.fail(reason)
        pytest.skip(reason)
    monkeypatch.setattr(Router, "alias", alias)


on_servers = pytest.mark.parametrize("database", on("postgresql", "mariadb"), indirect=True)
on_sqlite = pytest.mark.parametrize("database", on("default"), indirect=True)
