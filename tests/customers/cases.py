"""Grants on a site with a schema for each customer: never another customer's.

Every schema has a user 1 and a token row 1, of another person each. ``tests/test_customers.py``
runs this with the site's own settings.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django_tenants.utils import schema_context

from bipsync_django import lifecycle
from bipsync_django.models import BipsyncToken
from bipsync_django.testing import SimulatedBipsync
from tests.customers.models import Customer
from tests.grants import connect, expire

pytestmark = pytest.mark.django_db(transaction=True)

SCHEMAS = ("public", "acorn", "birch")


@pytest.fixture(scope="session")
def schemas(django_db_setup: None, django_db_blocker: Any) -> None:
    with django_db_blocker.unblock():
        for name in SCHEMAS:
            Customer.objects.create(schema_name=name)


@pytest.fixture
def rows(schemas: None, bipsync: SimulatedBipsync) -> Iterator[dict[str, BipsyncToken]]:
    """Return the only token row of each schema, whose access token has expired."""
    found = {}
    # Each test's end empties the shared tables. Not by save(), which makes a schema.
    Customer.objects.bulk_create(
        [Customer(schema_name=name) for name in SCHEMAS], ignore_conflicts=True
    )
    for name, person in zip(SCHEMAS, bipsync.users, strict=False):
        with schema_context(name):
            BipsyncToken.objects.all().delete()
            User.objects.all().delete()
            with connection.cursor() as cursor:
                for model in (BipsyncToken, User):
                    cursor.execute(f"ALTER TABLE {model._meta.db_table} ALTER id RESTART WITH 1")
            found[name] = expire(connect(bipsync, person=person))
    assert {row.pk for row in found.values()} == {row.user_id for row in found.values()} == {1}
    assert len({row.subject for row in found.values()}) == len(SCHEMAS)
    bipsync.reset_calls()
    yield found
    connection.set_schema_to_public()


def test_a_transaction_gets_the_persons_own_token(
    rows: dict[str, BipsyncToken], bipsync: SimulatedBipsync
) -> None:
    from bipsync_django.conf import get_tenant
    from bipsync_django.oauth.claims import validate_access_token

    with schema_context("acorn"), transaction.atomic():
        raw = lifecycle.access_token(rows["acorn"])
    assert validate_access_token(raw, get_tenant()).subject == rows["acorn"].subject
