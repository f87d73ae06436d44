from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import cache
from django.db import connections

from tests import databases
from tests.databases import on

pytest_plugins = ["bipsync_django.testing.fixtures"]


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


@pytest.fixture(params=on("default", "postgresql", "mariadb"))
def database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the test on each database; its name is the alias in use."""
    alias: str = request.param
    if alias in databases.MISSING:
        reason = f"{alias} cannot be used here ({databases.MISSING[alias]})"
        if databases.IN_CI:
            pytest.fail(reason)
        pytest.skip(reason)
    request.getfixturevalue("transactional_db")
    monkeypatch.setattr(databases.Router, "alias", alias)
    yield alias
    connections[alias].close()


@pytest.fixture
def sign_in(bipsync: Any, bipsync_sign_in: Any) -> Any:
    return bipsync_sign_in
