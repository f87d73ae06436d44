"""A database that takes many letters for one: the collation that newer servers have by default.

``tests/test_takeover.py`` tries the collation that a server comes with, on each database.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth import authenticate
from django.contrib.auth.models import Group, User
from django.db import connections

from bipsync_django.models import BipsyncToken
from bipsync_django.testing import SimulatedBipsync
from tests.databases import on
from tests.test_takeover import MATCH, SSO_ONLY, come, configure, documented, person

on_mariadb = pytest.mark.parametrize("database", on("mariadb"), indirect=True)
pytestmark = [on_mariadb, pytest.mark.usefixtures("most_letters_alike")]

COLUMNS = [
    ("auth_user", "username", "varchar(150)"),
    ("auth_user", "email", "varchar(254)"),
    ("auth_group", "name", "varchar(150)"),
]
# MySQL has it too.
COLLATION = "utf8mb4_unicode_520_ci"
KELVIN, O_STROKE = "\u212a", "\u00f8"


@pytest.fixture
def most_letters_alike(database: str) -> Iterator[None]:
    before = "SELECT collation_name FROM information_schema.columns WHERE table_schema = DATABASE()"
    with connections[database].cursor() as cursor:
        cursor.execute(f"{before} AND table_name = 'auth_user' AND column_name = 'email'")
        (usual,) = cursor.fetchone()

        def collate(name: str) -> None:
            for table, column, kind in COLUMNS:
                cursor.execute(
                    f"ALTER TABLE {table} MODIFY {column} {kind} NOT NULL COLLATE {name}"
                )

        collate(COLLATION)
        yield
        User.objects.all().delete()
        Group.objects.all().delete()
        collate(usual)


@pytest.mark.parametrize("rule", ["MATCH_USERS_BY", "ExistingStaff"])
@pytest.mark.parametrize("stored", ["kim@acme.example", f"{KELVIN}im@acme.example"])
def test_an_address_with_a_letter_like_it_is_another_address(
    bipsync: SimulatedBipsync, settings: Any, monkeypatch: Any, rule: str, stored: str
) -> None:
    if rule == "MATCH_USERS_BY":
        configure(settings, **MATCH)
    else:
        documented(rule, settings, monkeypatch)
    ours = User.objects.create_user("ours", stored, "secret")
    (other,) = {"kim@acme.example", f"{KELVIN}im@acme.example"} - {stored}
    assert User.objects.filter(email__iexact=other).exists(), "the database takes one for the other"
    assert come(bipsync, person(email=other, email_verified=True))[1] not in {"ours", ""}
    ours.refresh_from_db()
    assert ours.check_password("secret")
    assert not BipsyncToken.objects.filter(user=ours).exists()


def test_nobody_gets_a_name_that_passes_for_a_break_glass_name(
    bipsync: SimulatedBipsync, settings: Any
) -> None:
    configure(settings, CLAIMS={"username": "login"}, BREAK_GLASS_USERS=["mongo"])
    assert come(bipsync, person(login=f"m{O_STROKE}ngo"))[1] == "account_exists"
    assert not User.objects.exists()


def test_a_break_glass_name_that_finds_another_user_opens_no_door(settings: Any) -> None:
    configure(settings, **{**SSO_ONLY, "BREAK_GLASS_USERS": ["mongo"]})
    user = User.objects.create_user(f"m{O_STROKE}ngo", password="secret")
    assert User.objects.get(username="mongo") == user
    assert authenticate(username="mongo", password="secret") is None


def test_a_group_with_a_letter_like_it_is_another_group(
    bipsync: SimulatedBipsync, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    Group.objects.create(name=f"M{O_STROKE}ngo")
    configure(settings, GROUPS={"teams": {"x": "Mongo"}}, STAFF={"roles": ["it"]})
    _, name = come(bipsync, person(teams=["x"], roles=["it"]))
    user = User.objects.get(username=name)
    assert (user.is_staff, user.groups.exists()) == (True, False)
    assert "could not be applied" not in caplog.text
