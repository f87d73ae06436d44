"""Grants on a site with a schema for each customer: never another customer's.

Each schema has a user 1 and a token row 1, of another person each. ``tests/test_customers.py``
runs this twice: with the site's ``PREPARE_CONNECTION`` and, by the environment, without it.
"""

from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import OperationalError, connection, transaction
from django.utils import timezone
from django_tenants.utils import schema_context

from bipsync_django import durable, events, lifecycle, tasks
from bipsync_django.api import api_session
from bipsync_django.conf import get_tenant
from bipsync_django.exceptions import ConfigurationError, RefreshUnavailable, RowMismatch
from bipsync_django.lifecycle import Identity, Outcome
from bipsync_django.models import BipsyncToken, TenantState, TokenEvent
from bipsync_django.oauth.claims import validate_access_token
from bipsync_django.testing import Answer, SimulatedBipsync
from tests.customers.models import Customer
from tests.grants import at_once, connect, expire, nearly_expire
from tests.workers import Worker

pytestmark = pytest.mark.django_db(transaction=True)

SCHEMAS = ("public", "acorn", "birch")
HAS_HOOK = "PREPARE_CONNECTION" in django_settings.BIPSYNC

with_hook = pytest.mark.skipif(not HAS_HOOK, reason="about a site with PREPARE_CONNECTION")
without_hook = pytest.mark.skipif(HAS_HOOK, reason="about a site without PREPARE_CONNECTION")


class RolledBackError(Exception):
    pass


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
            for model in (TokenEvent, BipsyncToken, TenantState, User):
                model.objects.all().delete()
            with connection.cursor() as cursor:
                for table in ("auth_user", "bipsync_django_bipsynctoken"):
                    cursor.execute(f"ALTER TABLE {table} ALTER id RESTART WITH 1")
            found[name] = expire(connect(bipsync, person=person))
    assert {(row.pk, row.user_id) for row in found.values()} == {(1, 1)}
    assert len({row.subject for row in found.values()}) == len(SCHEMAS)
    bipsync.reset_calls()
    yield found
    connection.set_schema_to_public()  # type: ignore[attr-defined]


def stored(name: str) -> dict[str, Any]:
    """Return every column of the row of a schema, and the names of its events."""
    with schema_context(name):
        row: dict[str, Any] = {**BipsyncToken.objects.values().get()}
        row["events"] = list(TokenEvent.objects.order_by("pk").values_list("name", flat=True))
        row["tenants"] = list(TenantState.objects.values())
    return row


def owner_of(raw: str) -> str:
    return validate_access_token(raw, get_tenant()).subject


# --- with the hook: one's own, wherever one asks


@with_hook
@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("in_transaction", [False, True])
def test_everybody_gets_their_own_token_and_nobody_elses_is_touched(
    rows: dict[str, BipsyncToken], bipsync: SimulatedBipsync, name: str, in_transaction: bool
) -> None:
    others = {other: stored(other) for other in SCHEMAS if other != name}
    with schema_context(name):
        if in_transaction:
            with transaction.atomic():
                raw = lifecycle.access_token(rows[name])
        else:
            raw = lifecycle.access_token(rows[name])
    assert owner_of(raw) == rows[name].subject
    assert bipsync.is_access_token_alive(raw)
    assert bipsync.calls["refresh"] == 1
    assert {other: stored(other) for other in others} == others


@with_hook
def test_a_new_pair_stays_although_the_customers_transaction_is_rolled_back(
    rows: dict[str, BipsyncToken], bipsync: SimulatedBipsync
) -> None:
    with schema_context("acorn"):
        with suppress(RolledBackError), transaction.atomic():
            raw = lifecycle.access_token(rows["acorn"])
            raise RolledBackError
        row = BipsyncToken.objects.get()
    assert row.unseal("access_token") == raw
    refresh_token = row.unseal("refresh_token")
    assert refresh_token is not None
    assert bipsync.is_alive(refresh_token)


@with_hook
def test_eight_threads_of_two_customers_get_their_own_by_one_refresh_each(
    rows: dict[str, BipsyncToken], bipsync: SimulatedBipsync
) -> None:
    names = ["acorn", "birch"] * 4

    def work(number: int) -> str:
        with schema_context(names[number]), transaction.atomic():
            return owner_of(lifecycle.access_token(rows[names[number]]))

    assert at_once(8, work) == [rows[name].subject for name in names]
    assert bipsync.calls["refresh"] == 2


@with_hook
def test_the_api_is_called_as_the_person_and_a_refused_token_is_replaced(
    rows: dict[str, BipsyncToken], bipsync: SimulatedBipsync
) -> None:
    with schema_context("birch"):
        with transaction.atomic(), api_session(User.objects.get()) as session:
            assert session.get("/v1/users/me").json()["id"] == rows["birch"].subject
        # As old as a token has to be for its refusal to be about it.
        BipsyncToken.objects.update(obtained_at=timezone.now() - timedelta(minutes=20))
        bipsync.fail("api", Answer(401))
        with transaction.atomic(), api_session(User.objects.get()) as session:
            assert session.get("/v1/users/me").json()["id"] == rows["birch"].subject
    assert bipsync.calls["refresh"] == 2
    assert stored("public")["generation"] == rows["public"].generation


@with_hook
def test_a_disconnect_ends_the_customers_own_grant(
    rows: dict[str, BipsyncToken], bipsync: SimulatedBipsync
) -> None:
    others = stored("public"), stored("birch")
    with schema_context("acorn"), transaction.atomic():
        refresh_token = rows["acorn"].unseal("refresh_token")
        lifecycle.disconnect(rows["acorn"])
    assert refresh_token is not None
    assert not bipsync.is_alive(refresh_token)
    assert stored("acorn")["status"] == "disconnected"
    assert (stored("public"), stored("birch")) == others


@with_hook
def test_what_waits_for_a_commit_changes_nobody_of_another_schema(
    rows: dict[str, BipsyncToken], bipsync: SimulatedBipsync
) -> None:
    """The transaction ends in another schema than the one in which it was worked in."""
    BipsyncToken.objects.update(generation=rows["acorn"].generation + 1)
    before, user = stored("public"), User.objects.values().get()
    with transaction.atomic(), schema_context("acorn"):
        lifecycle.access_token(rows["acorn"])
    assert (stored("public"), User.objects.values().get()) == (before, user)
    bipsync.fail("token", Answer(503))
    with transaction.atomic(), schema_context("acorn"):
        lifecycle.disconnect(rows["acorn"])
    assert stored("public")["events"] == before["events"]


@with_hook
def test_the_command_refreshes_the_customer_that_it_is_run_for(
    rows: dict[str, BipsyncToken], bipsync: SimulatedBipsync
) -> None:
    others = stored("public"), stored("birch")
    with schema_context("acorn"):
        call_command("bipsync_refresh", threads=2)
    assert stored("acorn")["generation"] == rows["acorn"].generation + 1
    assert (stored("public"), stored("birch")) == others
    assert bipsync.calls["refresh"] == 1


@with_hook
def test_a_store_on_a_new_connection_is_in_the_customers_schema_too(
    rows: dict[str, BipsyncToken],
    bipsync: SimulatedBipsync,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hook sets what a new connection does not have, and the first store breaks it."""
    update = durable.update
    prepared: list[Any] = []
    failed: list[Any] = []

    def fail_once(rows: Any, **values: Any) -> int:
        if "access_token" in values and not failed:
            failed.append(values)
            raise OperationalError("the server was restarted")
        return update(rows, **values)

    def prepare(new: Any, caller: Any) -> None:
        prepared.append(new)
        # As a site does that sets its search path by hand.
        new.set_schema_to_public()
        connect_anew = new.connect
        monkeypatch.setattr(new, "connect", lambda: (new.set_schema_to_public(), connect_anew()))
        new.ensure_connection()
        new.set_schema(caller.schema_name)

    monkeypatch.setattr(durable, "update", fail_once)
    settings.BIPSYNC = {**settings.BIPSYNC, "PREPARE_CONNECTION": prepare}
    with schema_context("acorn"), transaction.atomic():
        raw = lifecycle.access_token(rows["acorn"])
    assert len(prepared) == 2
    with schema_context("acorn"):
        assert BipsyncToken.objects.get().unseal("access_token") == raw
    assert owner_of(raw) == rows["acorn"].subject


@with_hook
def test_a_hook_that_fails_refuses_before_anything_is_sent(
    rows: dict[str, BipsyncToken], bipsync: SimulatedBipsync, settings: Any
) -> None:
    def fail(connection: object, caller: object) -> None:
        raise ZeroDivisionError

    settings.BIPSYNC = {**settings.BIPSYNC, "PREPARE_CONNECTION": fail}
    with (
        schema_context("acorn"),
        transaction.atomic(),
        pytest.raises(ConfigurationError, match=r"PREPARE_CONNECTION.*ZeroDivisionError"),
    ):
        lifecycle.access_token(rows["acorn"])
    assert not bipsync.calls["token"]


# --- without it: refused before anything is sent


CALLS: dict[str, Any] = {
    "access_token": lifecycle.access_token,
    "refresh": lambda row: lifecycle.refresh(row, force=True),
    "replace_refused": lambda row: lifecycle.replace_refused(row, row.unseal("access_token")),
}


@without_hook
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("is_there", [True, False])
def test_a_transaction_is_refused_where_its_second_connection_sees_other_rows(
    rows: dict[str, BipsyncToken], bipsync: SimulatedBipsync, call: str, is_there: bool
) -> None:
    if not is_there:
        BipsyncToken.objects.all().delete()
    before = {name: stored(name) for name in SCHEMAS[0 if is_there else 1 :]}
    with schema_context("acorn"), transaction.atomic():
        with pytest.raises(RowMismatch, match="PREPARE_CONNECTION") as refusal:
            CALLS[call](rows["acorn"])
        assert refusal.value.code == "other_row"
    assert not bipsync.calls["token"]
    assert {name: stored(name) for name in before} == before


@without_hook
def test_the_same_person_at_two_customers_has_two_grants(
    rows: dict[str, BipsyncToken], bipsync: SimulatedBipsync
) -> None:
    """The same account, user and primary keys: the row of another customer all the same."""
    with schema_context("birch"):
        BipsyncToken.objects.update(subject=rows["public"].subject)
        row = BipsyncToken.objects.get()
        row.access_token = row.seal("access_token", "mine")
        row.save(update_fields=["access_token"])
    before = stored("public"), stored("birch")
    with schema_context("birch"), transaction.atomic(), pytest.raises(RowMismatch):
        lifecycle.refresh(row, force=True)
    assert not bipsync.calls["token"]
    assert (stored("public"), stored("birch")) == before


@without_hook
def test_another_try_at_a_dead_grant_is_refused_too(
    rows: dict[str, BipsyncToken], bipsync: SimulatedBipsync
) -> None:
    for name in SCHEMAS:
        with schema_context(name):
            BipsyncToken.objects.update(status="needs_sign_in")
    with schema_context("acorn"), transaction.atomic(), pytest.raises(RowMismatch):
        lifecycle.retry(BipsyncToken.objects.get())
    assert not bipsync.calls["token"]


@without_hook
def test_a_verdict_about_a_token_marks_nobody_elses(
    rows: dict[str, BipsyncToken], bipsync: SimulatedBipsync
) -> None:
    """Somebody else's token is found in the row, so that the grant is to be ended."""
    raw = rows["birch"].unseal("access_token")
    assert raw is not None
    with schema_context("acorn"):
        row = nearly_expire(rows["acorn"], seconds_left=3000)
        row.access_token = row.seal("access_token", raw)
        row.validated_generation = 0
        row.save(update_fields=["access_token", "validated_generation"])
    before = {name: stored(name) for name in SCHEMAS}
    with schema_context("acorn"), transaction.atomic(), pytest.raises(Exception, match="another"):
        lifecycle.access_token(row)
    assert {name: stored(name) for name in SCHEMAS} == before


@without_hook
def test_a_token_that_still_works_is_handed_out(
    rows: dict[str, BipsyncToken], bipsync: SimulatedBipsync
) -> None:
    with schema_context("acorn"):
        row = nearly_expire(rows["acorn"])
        with transaction.atomic():
            assert lifecycle.access_token(row) == row.unseal("access_token")
    assert not bipsync.calls["token"]


@pytest.mark.parametrize("in_transaction", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        *CALLS,
        "disconnect",
        "end_sessions",
        "unlink",
        "reencrypt",
        "retry",
        "confirm_service",
    ],
)
def test_a_row_that_is_used_in_another_schema_is_refused(
    rows: dict[str, BipsyncToken], bipsync: SimulatedBipsync, call: str, in_transaction: bool
) -> None:
    """Such as one that a cache or a session kept, or a schema that changed on the way."""
    calls = {
        **CALLS,
        "disconnect": lifecycle.disconnect,
        "end_sessions": lifecycle.end_sessions,
        "unlink": lifecycle.unlink,
        "reencrypt": lifecycle.reencrypt,
        "retry": lifecycle.retry,
        "confirm_service": lambda row: lifecycle.confirm_service(row, actor=User.objects.get()),
    }
    before = {name: stored(name) for name in SCHEMAS}
    with schema_context("birch"):
        if in_transaction:
            with transaction.atomic(), pytest.raises(RowMismatch):
                calls[call](rows["acorn"])
        else:
            with pytest.raises(RowMismatch):
                calls[call](rows["acorn"])
    assert not bipsync.calls["token"]
    assert {name: stored(name) for name in SCHEMAS} == before


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("load", ["only", "defer"])
def test_a_row_that_was_loaded_in_part_gets_nobody_elses_token(
    rows: dict[str, BipsyncToken], bipsync: SimulatedBipsync, call: str, load: str
) -> None:
    """Its missing columns would be read on the second connection, and compared with themselves."""
    for name in ("public", "acorn"):
        with schema_context(name):
            lifecycle.access_token(BipsyncToken.objects.get())
    bipsync.reset_calls()
    before = {name: stored(name) for name in SCHEMAS}
    queries = {
        "only": BipsyncToken.objects.only("status"),
        "defer": BipsyncToken.objects.defer("subject", "user", "created_at"),
    }
    with schema_context("acorn"):
        refused = BipsyncToken.objects.get().unseal("access_token") or ""
    calls: dict[str, Any] = {
        **CALLS,
        "replace_refused": lambda row: lifecycle.replace_refused(row, refused),
    }
    with (
        schema_context("acorn"),
        transaction.atomic(),
        pytest.raises(TypeError, match="loaded without"),
    ):
        calls[call](queries[load].get())
    assert not bipsync.calls["token"]
    assert {name: stored(name) for name in SCHEMAS} == before


# --- messages


@pytest.mark.parametrize("task", [tasks.refresh_token, tasks.refresh_asked])
def test_a_worker_in_the_wrong_schema_leaves_the_row_alone(
    rows: dict[str, BipsyncToken],
    bipsync: SimulatedBipsync,
    caplog: pytest.LogCaptureFixture,
    task: Any,
) -> None:
    before = {name: stored(name) for name in SCHEMAS}
    task(rows["acorn"].pk, Identity.of(rows["acorn"]).digest)
    assert not bipsync.calls["token"]
    assert "another account's" in caplog.text
    assert {name: stored(name) for name in SCHEMAS} == before
    with schema_context("acorn"):
        task(rows["acorn"].pk, Identity.of(rows["acorn"]).digest)
    assert bipsync.calls["refresh"] == 1


def test_what_is_taken_in_one_schema_is_nothing_in_another(
    rows: dict[str, BipsyncToken], bipsync: SimulatedBipsync
) -> None:
    with schema_context("acorn"):
        ((pk, digest),) = lifecycle.take_due(10).items()
    with schema_context("birch"):
        assert lifecycle.refresh_if_due(pk, digest) is Outcome.NOT_DUE
        assert lifecycle.refresh_asked(pk, digest) == "disconnected"
    assert not bipsync.calls["token"]
    with schema_context("acorn"):
        assert lifecycle.refresh_if_due(pk, digest) is Outcome.REFRESHED


def test_an_administrators_batch_is_carried_out_in_its_own_schema_alone(
    rows: dict[str, BipsyncToken], bipsync: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(
        tasks.refresh_asked, "apply_async", lambda args, **kwargs: sent.append(args)
    )
    with schema_context("acorn"):
        batch = events.ask_for([rows["acorn"]], User.objects.get())
    tasks.refresh_many(batch)
    assert sent == []
    with schema_context("acorn"):
        tasks.refresh_many(batch)
    assert sent == [(1, Identity.of(rows["acorn"]).digest)]


def test_real_workers_refresh_each_customers_own_rows(
    rows: dict[str, BipsyncToken], bipsync: SimulatedBipsync, tmp_path: Path
) -> None:
    """As docs/installing.md shows: beat's task loops, and messages carry the schema."""
    name = str(connection.settings_dict["NAME"])
    broker = tmp_path / "broker"
    broker.mkdir()
    more = ("--beat", "--schedule", str(tmp_path / "beat"))
    environment = {
        "DJANGO_SETTINGS_MODULE": "tests.customers.settings",
        "TEST_DATABASE": "postgresql",
        "TEST_DATABASE_NAME": name,
    }
    before = {name: row.generation for name, row in rows.items()}
    with Worker(
        "solo",
        bipsync,
        broker,
        tmp_path,
        *more,
        environment=environment,
        app="tests.customers.celery_app",
    ) as worker:
        worker.wait_until(
            lambda: all(stored(name)["generation"] > before[name] for name in SCHEMAS[1:])
        )
    for schema in SCHEMAS[1:]:
        with schema_context(schema):
            raw = BipsyncToken.objects.get().unseal("access_token")
        assert raw is not None
        assert owner_of(raw) == rows[schema].subject
    # The site's beat has no entry for the shared schema.
    assert stored("public")["generation"] == before["public"]
    assert bipsync.calls["refresh"] == len(SCHEMAS) - 1


def test_nobody_calls_it_unavailable_for_good() -> None:
    assert issubclass(RowMismatch, RefreshUnavailable)
    assert issubclass(RowMismatch, ConfigurationError)
