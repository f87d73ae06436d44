from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections

from bipsync_django import decorators, health
from bipsync_django.key_budget import DatabaseBudget
from bipsync_django.oauth.keys import LocalBudget, use_budget
from tests import databases
from tests.databases import on
from tests.signing import forget_keys

pytest_plugins = ["bipsync_django.testing.fixtures", "tests.portal", "tests.two_tenants"]


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(health, "KEPT_FOR", 0)
    # What views of other test modules have asked for since they were imported.
    monkeypatch.setattr(decorators, "_scopes_of_views", set())
    forget_keys()
    use_budget(DatabaseBudget())
    yield
    forget_keys()


@pytest.fixture
def local_budget() -> LocalBudget:
    """Fetch signing keys without a database."""
    budget = LocalBudget()
    use_budget(budget)
    return budget


@pytest.fixture(params=on("default", "postgresql", "mariadb"))
def database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the test on each database; its name is the alias in use."""
    alias: str = request.param
    databases.use(alias, monkeypatch)
    request.getfixturevalue("transactional_db")
    yield alias
    connections[alias].close()


@pytest.fixture(params=on("default", "postgresql", "mariadb", transaction=False))
def rolled_back_database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test on each database, in a transaction that is rolled back at its end.

    For tests that are many and not about transactions: emptying all tables takes most of a second.
    """
    alias: str = request.param
    databases.use(alias, monkeypatch)
    request.getfixturevalue("db")
    return alias


@pytest.fixture
def sign_in(bipsync: Any, bipsync_sign_in: Any) -> Any:
    return bipsync_sign_in
