"""A tenant that the site no longer has: ``manage.py bipsync_give_up``, and all that notices it."""

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.db import connections, transaction
from django.db.models.signals import m2m_changed
from django.test import Client

from bipsync_django import breaker, health, lifecycle, monitoring, signals
from bipsync_django.api import api_session, service_session
from bipsync_django.conf import get_tenant
from bipsync_django.durable import DatabaseNow
from bipsync_django.exceptions import UnknownTenant
from bipsync_django.lifecycle import Outcome, protocol, tenants
from bipsync_django.models import (
    BipsyncToken,
    GivenFlag,
    HourlyCount,
    TenantState,
    TokenEvent,
)
from bipsync_django.oauth.claims import validate_access_token
from bipsync_django.oauth.client import TokenPair
from bipsync_django.testing import Html, SimulatedBipsync, SimulatedUser
from tests.browser import LOGIN, Browser, answer_confirmation, visible_text, way_to_bipsync
from tests.databases import for_child
from tests.grants import connect, expire, refresh_token_of, reload
from tests.two_tenants import begin, configure, sign_in_at, take_out

pytestmark = pytest.mark.usefixtures("database")

Status = BipsyncToken.Status
RULES = {
    "STAFF": {"roles": ["admin"]},
    "SUPERUSER": {"roles": ["root"]},
    "GROUPS": {"teams": {"research": "Analysts", "ops": ["Operations", "Émigrés"]}},
}
LIST = "/admin/bipsync_django/bipsynctoken/"


def person(number: int, **claims: Any) -> SimulatedUser:
    subject = f"68b993fa85d14160d60707{number:02}"
    name = f"Nora{number}"
    email = f"nora{number}@globex.example"
    return SimulatedUser(subject, f"{name} Noon", name, "Noon", email, extra=claims)


def user_of(browser: Browser) -> User:
    return User.objects.get(pk=browser.user_id() or "")


def groups_of(user: User) -> set[str]:
    return set(User.objects.get(pk=user.pk).groups.values_list("name", flat=True))


def give_up(*options: str, tenant: str = "globex", errors: io.StringIO | None = None) -> str:
    out = io.StringIO()
    arguments = ("--no-input", *options)
    call_command("bipsync_give_up", tenant, *arguments, stdout=out, stderr=errors or io.StringIO())
    return out.getvalue()


def everything() -> list[list[dict[str, Any]]]:
    """All rows that giving up could change."""
    models: list[Any] = [BipsyncToken, GivenFlag, TenantState, HourlyCount, TokenEvent, User]
    memberships: Any = User.groups.through
    return [list(model.objects.order_by("pk").values()) for model in [*models, memberships]]


def is_signed_in(browser: Browser) -> bool:
    answer = browser.get("/", secure=True)
    assert answer.status_code in {200, 302}
    return bool(answer.status_code == 200)


@pytest.fixture
def nora(globex: SimulatedBipsync, settings: Any) -> Browser:
    """Somebody who is staff and in groups by what Globex says."""
    configure(settings, "globex", **RULES)
    for name in ("Analysts", "Operations", "Émigrés", "Readers"):
        Group.objects.create(name=name)
    globex.add_user(person(1, roles=["admin"], teams=["research", "ops"]))
    browser = sign_in_at(globex, person(1).id)
    assert user_of(browser).is_staff
    assert groups_of(user_of(browser)) == {"Analysts", "Operations", "Émigrés"}
    return browser


def at_globex(number: int = 1) -> BipsyncToken:
    return BipsyncToken.objects.get(tenant="globex", subject=person(number).id)


# --- what is given up


def test_nothing_of_a_tenant_that_is_given_up_is_left(
    nora: Browser, acme: SimulatedBipsync, globex: SimulatedBipsync
) -> None:
    ada = sign_in_at(acme)
    row, user = at_globex(), user_of(nora)
    refresh_token, access_token = refresh_token_of(row), row.unseal("access_token")
    TenantState.objects.update_or_create(tenant="globex", defaults={"dead_in_a_row": 3})
    events = TokenEvent.objects.filter(tenant="globex").count()
    told = give_up()
    assert told.splitlines() == [
        "globex: 1 accounts.",
        "globex: 1 connections ended; of these, 1 are put out of use at Bipsync and 0 stay valid "
        "there until they expire.",
        "globex: sessions of 1 people ended.",
        "globex: 4 rights taken back (Analysts 1, Operations 1, is_staff 1, Émigrés 1).",
    ]
    row = reload(row)
    assert (row.status, row.user, row.refresh_token) == (Status.DISCONNECTED, None, None)
    assert not globex.is_alive(refresh_token)
    assert not globex.is_access_token_alive(access_token or "")
    assert not is_signed_in(nora)
    user.refresh_from_db()
    assert not user.is_staff
    assert groups_of(user) == set()
    assert not GivenFlag.objects.exists()
    assert not TenantState.objects.filter(tenant="globex").exists()
    # History stays.
    assert TokenEvent.objects.filter(tenant="globex").count() > events
    assert HourlyCount.objects.filter(tenant="globex").exists()
    # And so does everybody else.
    assert is_signed_in(ada)
    with api_session(user_of(ada), tenant="acme") as session:
        assert session.get("/v1/users/me").status_code == 200


def test_a_dry_run_tells_the_same_and_changes_and_sends_nothing(
    nora: Browser, globex: SimulatedBipsync, settings: Any
) -> None:
    for number in range(2, 5):
        globex.add_user(person(number))
        sign_in_at(globex, person(number).id)
    lifecycle.disconnect(at_globex(2))
    globex.withdraw(person(3).id)
    assert lifecycle.refresh_if_due(expire(at_globex(3)).pk) is Outcome.NEEDS_SIGN_IN
    BipsyncToken.objects.filter(pk=at_globex(4).pk).update(client_id="another")
    User.objects.filter(bipsync_tokens=at_globex(4)).update(is_staff=True)
    lifecycle.link(get_tenant("globex"), person(5).id, User.objects.create_user("early"))
    globex.reset_calls()
    before = everything()
    told = give_up("--dry-run").splitlines()
    assert everything() == before
    assert not globex.calls
    assert is_signed_in(nora)
    assert told.pop() == "Nothing was changed, and nothing was sent."
    assert told == give_up().splitlines()
    assert told[:3] == [
        "globex: 5 accounts.",
        "globex: 4 connections ended; of these, 2 are put out of use at Bipsync and 1 stay valid "
        "there until they expire.",
        "globex: sessions of 3 people ended.",
    ]
    assert User.objects.filter(is_staff=True).count() == 1, "ticked by hand"


def test_a_tenant_that_was_taken_out_first_is_given_up_by_what_is_known_of_it(
    nora: Browser, globex: SimulatedBipsync, settings: Any
) -> None:
    row, user = at_globex(), user_of(nora)
    refresh_token = refresh_token_of(row)
    user.groups.add(Group.objects.get(name="Readers"))
    configure(settings, "acme", GROUPS={"teams": {"o": "Operations"}})
    take_out(settings, "globex")
    globex.reset_calls()
    dry = give_up("--dry-run").splitlines()[:-1]
    told = give_up().splitlines()
    assert dry == told
    assert told[1:] == [
        "globex: 1 connections ended; of these, 0 are put out of use at Bipsync and 1 stay valid "
        "there until they expire.",
        "globex: sessions of 1 people ended.",
        "globex: 3 rights taken back (Analysts 1, is_staff 1, Émigrés 1).",
        "globex: 1 stay valid: The tenant is not in this site's settings.",
    ]
    assert not globex.calls["token"]
    assert globex.is_alive(refresh_token)
    assert TokenEvent.objects.get(name="left_valid").reason == "unknown_tenant"
    user.refresh_from_db()
    assert not user.is_staff
    assert groups_of(user) == {"Operations", "Readers"}, "Acme's, and one that a person gave"
    assert (reload(row).status, reload(row).user) == (Status.DISCONNECTED, None)


def test_a_token_that_another_process_may_be_sending_is_left_to_a_second_run(
    nora: Browser, globex: SimulatedBipsync
) -> None:
    row = at_globex()
    refresh_token = refresh_token_of(row)
    # Its owner was killed.
    assert protocol._claim(row) is not None
    globex.reset_calls()
    dry = give_up("--dry-run").splitlines()[:-1]
    for sessions in (1, 0):
        out = io.StringIO()
        with pytest.raises(CommandError, match=r"1 connections wait.*Leave the tenant in BIPSYNC"):
            call_command("bipsync_give_up", "globex", "--no-input", stdout=out)
        told = out.getvalue()
        assert "1 accounts." in told
        assert "0 connections ended; of these, 0 are put out of use" in told
        assert "1 connections are not ended yet" in told
        assert f"sessions of {sessions} people ended" in told
        if sessions:
            assert told.splitlines() == dry
    assert lifecycle.remains_of("globex").accounts == 1
    assert globex.calls["token"] == 0
    assert globex.is_alive(refresh_token)
    BipsyncToken.objects.update(lease_until=DatabaseNow() - timedelta(seconds=1))
    dry = give_up("--dry-run").splitlines()[:-1]
    told = give_up()
    assert told.splitlines() == dry
    assert "1 connections ended; of these, 1 are put out of use at Bipsync" in told
    assert "not ended yet" not in told
    assert not globex.is_alive(refresh_token)
    assert reload(row).refresh_token is None
    assert lifecycle.remains_of("globex").is_given_up


def test_a_token_that_still_waits_when_its_tenant_is_gone_is_said_to_stay_valid(
    nora: Browser, globex: SimulatedBipsync, settings: Any
) -> None:
    row = at_globex()
    assert protocol._claim(row) is not None
    with pytest.raises(CommandError, match="wait"):
        give_up()
    take_out(settings, "globex")
    assert [one.accounts for one in lifecycle.removed_tenants()] == [1]
    BipsyncToken.objects.update(lease_until=DatabaseNow() - timedelta(seconds=1))
    assert "1 stay valid: The tenant is not in this site's settings" in give_up()
    assert reload(row).refresh_token is None
    assert TokenEvent.objects.get(name="left_valid").reason == "unknown_tenant"


def test_a_group_that_claims_had_taken_and_a_person_gave_again_stays(
    nora: Browser, globex: SimulatedBipsync, settings: Any
) -> None:
    user = user_of(nora)
    globex.add_user(person(1, teams=["ops"]))
    lifecycle.refresh(expire(at_globex()))
    assert "Analysts" not in groups_of(user)
    user.groups.add(Group.objects.get(name="Analysts"))
    take_out(settings, "globex")
    give_up()
    assert groups_of(user) == {"Analysts"}


def test_rights_of_an_earlier_user_of_the_account_are_not_taken_from_the_next(
    nora: Browser, settings: Any
) -> None:
    row = at_globex()
    tenant = get_tenant("globex")
    # By hand, of which no event tells.
    user_of(nora).groups.clear()
    lifecycle.unlink(row)
    heir = User.objects.create_user("heir")
    lifecycle.link(tenant, row.subject, heir)
    heir.groups.add(Group.objects.get(name="Analysts"))
    take_out(settings, "globex")
    give_up()
    assert groups_of(heir) == {"Analysts"}


def test_a_name_that_only_the_database_takes_for_the_same_is_another_group(
    globex: SimulatedBipsync, settings: Any, database: str
) -> None:
    configure(settings, "globex", GROUPS={"teams": {"research": "analysts"}})
    Group.objects.create(name="analysts")
    globex.add_user(person(1, teams=["research"]))
    user = user_of(sign_in_at(globex, person(1).id))
    assert groups_of(user) == {"analysts"}
    Group.objects.update(name="Analysts")
    take_out(settings, "globex")
    give_up()
    assert groups_of(user) == {"Analysts"}, "renamed: whether claims gave it cannot be known"


def test_a_person_with_accounts_at_two_tenants_keeps_the_other(
    acme: SimulatedBipsync, globex: SimulatedBipsync, settings: Any
) -> None:
    for tenant in ("acme", "globex"):
        configure(settings, tenant, STAFF={"roles": ["admin"]})
    acme.add_user(person(1, roles=["admin"]))
    globex.add_user(person(1, roles=["admin"]))
    browser = sign_in_at(acme, person(1).id)
    begun = way_to_bipsync(browser.post("/bipsync/connect/globex/", secure=True))
    answer_confirmation(browser, browser.open(globex.approve(begun, user=person(1).id)))
    user = user_of(browser)
    assert GivenFlag.objects.filter(user=user).count() == 2
    other = sign_in_at(globex, person(1).id)
    assert "is_staff" not in give_up()
    assert is_signed_in(browser)
    assert not is_signed_in(other), "it began with Globex"
    user.refresh_from_db()
    assert user.is_staff, "Acme says so too"
    assert [row.tenant for row in BipsyncToken.objects.for_user(user)] == ["acme"]
    with api_session(user, tenant="acme") as session:
        assert session.get("/v1/users/me").status_code == 200


def test_a_tenant_that_comes_back_starts_clean(
    nora: Browser, globex: SimulatedBipsync, settings: Any
) -> None:
    before, user, row = settings.BIPSYNC, user_of(nora), at_globex()
    copy = nora.twin()
    # A session of its own, which no request ends on the way.
    asleep = sign_in_at(globex, person(1).id)
    give_up()
    take_out(settings, "globex")
    settings.BIPSYNC = before
    assert not is_signed_in(nora)
    assert not is_signed_in(copy)
    globex.add_user(person(1))
    stranger = sign_in_at(globex, person(1).id)
    assert user_of(stranger) != user
    assert not user_of(stranger).is_staff
    assert not is_signed_in(copy)
    # Nor do old sessions come back where an administrator says that it is the same person.
    lifecycle.unlink(reload(row))
    lifecycle.link(get_tenant("globex"), row.subject, user)
    assert user_of(sign_in_at(globex, person(1).id)) == user
    assert not is_signed_in(copy)
    assert not is_signed_in(asleep)


def test_service_accounts_are_given_up_too(globex: SimulatedBipsync) -> None:
    root = User.objects.create_superuser("root")
    rows = []
    for number in (1, 2):
        globex.add_user(person(number))
        issued = globex.issue_pair(person(number).id)
        tenant = get_tenant("globex")
        claims = validate_access_token(issued.access_token, tenant, from_provider=True)
        pair = TokenPair(issued.access_token, issued.refresh_token, issued.expires_in)
        scopes = tenant.scopes
        rows.append(lifecycle.authorise_service(tenant, claims, pair, scopes=scopes, actor=root))
    assert lifecycle.confirm_service(rows[0], actor=root)
    kept = [refresh_token_of(row) for row in rows]
    told = give_up()
    assert "2 connections ended; of these, 2 are put out of use" in told
    assert "sessions of 0 people" in told
    assert {reload(row).status for row in rows} == {Status.DISCONNECTED}
    assert not any(globex.is_alive(token) for token in kept)
    with pytest.raises(Exception, match="service account"):
        service_session("globex").get("/v1/users/me")


def test_flags_that_are_left_of_rows_which_somebody_deleted_are_taken_back(
    nora: Browser, settings: Any, database: str
) -> None:
    user = user_of(nora)
    BipsyncToken.objects.filter(tenant="globex").delete()
    take_out(settings, "globex")
    assert "globex" in str(removed(database))
    assert "1 rights taken back (is_staff 1)" in give_up("--dry-run")
    assert User.objects.get(pk=user.pk).is_staff
    assert "1 rights taken back (is_staff 1)" in give_up()
    assert not User.objects.get(pk=user.pk).is_staff
    assert not removed(database)


def test_a_copy_of_the_database_ends_nothing_of_the_other_deployment(
    nora: Browser, globex: SimulatedBipsync, settings: Any
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "DEPLOYMENT": "production"}
    breaker.claim_deployment("globex")
    refresh_token = refresh_token_of(at_globex())
    settings.BIPSYNC = {**settings.BIPSYNC, "DEPLOYMENT": "staging"}
    globex.reset_calls()
    told = give_up()
    assert "1 stay valid: These permissions are in use by another deployment" in told
    assert not globex.calls["token"]
    assert globex.is_alive(refresh_token)
    assert not User.objects.filter(is_staff=True).exists()


def test_a_pair_that_no_key_opens_is_given_up_like_any_other(nora: Browser, settings: Any) -> None:
    settings.FIELD_ENCRYPTION_KEY = "b3RoZXItdGVzdC1rZXktb3RoZXItdGVzdC1rZXktMTI="
    with pytest.raises(CommandError, match="cannot be decrypted"):
        call_command("bipsync_rotate_keys", stdout=io.StringIO())
    assert "stay valid: The stored token cannot be decrypted" in give_up()
    call_command("bipsync_rotate_keys", stdout=io.StringIO())


# --- much, and in bad weather


@pytest.fixture
def many(globex: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch) -> list[BipsyncToken]:
    """Seven grants, which are three batches."""
    monkeypatch.setattr(tenants, "_BATCH", 3)
    rows = []
    for number in range(7):
        globex.add_user(person(number))
        sign_in_at(globex, person(number).id)
        rows.append(at_globex(number))
    globex.reset_calls()
    return rows


def test_all_batches_are_given_up_and_a_second_run_finds_nothing(
    many: list[BipsyncToken], globex: SimulatedBipsync
) -> None:
    assert "7 accounts" in give_up()
    assert {reload(row).status for row in many} == {Status.DISCONNECTED}
    assert globex.calls["refresh"] == 7
    events = TokenEvent.objects.count()
    assert give_up().startswith("globex: 0 accounts.\n")
    assert TokenEvent.objects.count() == events
    assert globex.calls["refresh"] == 7


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_how_far_it_is_and_a_log_file_does_not(many: list[BipsyncToken]) -> None:
    screen, log = Terminal(), io.StringIO()
    give_up("--dry-run", errors=log)
    give_up(errors=screen)
    assert "] 7/7" in screen.getvalue()
    assert log.getvalue() == ""


def test_one_row_that_fails_is_reported_and_the_others_are_given_up(
    many: list[BipsyncToken], globex: SimulatedBipsync, caplog: pytest.LogCaptureFixture
) -> None:
    unlucky = many[3].user

    def refuse(sender: object, instance: User, **kwargs: object) -> None:
        if instance == unlucky:
            raise LookupError("s3cret")

    group = Group.objects.create(name="Analysts")
    assert unlucky is not None
    unlucky.groups.add(group)
    TokenEvent.objects.create(
        token=many[3],
        tenant="globex",
        name="right_given",
        reason="group",
        detail="Analysts (claim teams)",
    )
    kept = refresh_token_of(many[3])
    m2m_changed.connect(refuse, sender=User.groups.through)
    out = io.StringIO()
    try:
        with pytest.raises(CommandError, match="1 could not be given up"):
            call_command("bipsync_give_up", "globex", "--no-input", stdout=out)
    finally:
        m2m_changed.disconnect(refuse, sender=User.groups.through)
    assert out.getvalue().startswith("globex: 6 accounts.\n")
    (record,) = [one for one in caplog.records if one.name.endswith("lifecycle.tenants")]
    assert record.getMessage() == (
        f"Row {many[3].pk} of globex could not be given up (LookupError)."
    )
    assert "s3cret" not in caplog.text
    assert [reload(row).status for row in many].count(Status.DISCONNECTED) == 6
    assert globex.is_alive(kept), "all of the row, or nothing"
    assert TenantState.objects.filter(tenant="globex").exists()
    assert give_up().startswith("globex: 1 accounts.\n")
    assert not globex.is_alive(kept)


def test_in_an_outage_bipsync_is_not_asked_for_each_row(
    many: list[BipsyncToken], globex: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FAILURES_BEFORE_PAUSE", 3)
    globex.fail("token", Html(503), times=None)
    told = give_up()
    assert globex.calls["token"] == 3
    assert "globex: 4 stay valid: Bipsync failed many times in a row" in told
    assert "globex: 3 stay valid: Bipsync had an internal error." in told
    assert {reload(row).status for row in many} == {Status.DISCONNECTED}


def test_failures_that_do_not_come_in_a_row_are_no_outage(
    many: list[BipsyncToken], globex: SimulatedBipsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FAILURES_BEFORE_PAUSE", 3)

    def fail_every_other(token: BipsyncToken, **kwargs: object) -> None:
        if globex.calls["token"] % 2:
            globex.fail("token", Html(503))

    signals.disconnected.connect(fail_every_other)
    try:
        told = give_up()
    finally:
        signals.disconnected.disconnect(fail_every_other)
    assert globex.calls["token"] == 7
    assert "globex: 3 stay valid: Bipsync had an internal error." in told


def test_a_dry_run_tells_what_an_open_breaker_holds_back(many: list[BipsyncToken]) -> None:
    breaker.open_for("globex", "invalid_client")
    before = everything()
    told = give_up("--dry-run").splitlines()[:-1]
    assert everything() == before
    assert "globex: 7 stay valid: Bipsync refused the client id or client secret." in told
    assert give_up().splitlines() == told


def test_what_signed_in_meanwhile_is_left_and_said(
    many: list[BipsyncToken], globex: SimulatedBipsync
) -> None:
    last = many[-1]

    def sign_in(token: BipsyncToken, **kwargs: object) -> None:
        if token == last:
            sign_in_at(globex, person(1).id)

    signals.disconnected.connect(sign_in)
    try:
        with pytest.raises(CommandError, match=r"^1 accounts and flags are left, of people who"):
            give_up()
    finally:
        signals.disconnected.disconnect(sign_in)
    assert lifecycle.remains_of("globex").accounts == 1
    give_up()
    assert lifecycle.remains_of("globex").is_given_up


def test_inside_a_transaction_nothing_is_given_up(nora: Browser, database: str) -> None:
    with (
        transaction.atomic(using=database),
        pytest.raises(RuntimeError, match="durable"),
    ):
        lifecycle.give_up_tenant("globex")
    assert reload(at_globex()).status == Status.ACTIVE


def test_a_signal_waits_until_the_row_is_done(
    many: list[BipsyncToken], globex: SimulatedBipsync
) -> None:
    """Otherwise a pair would be erased here, and good at Bipsync with nobody who knows of it."""
    kept = [refresh_token_of(row) for row in many]
    globex.latency = 0.5
    watcher = threading.Thread(target=interrupt, args=(lambda: globex.calls["refresh"] == 2,))
    watcher.start()
    with pytest.raises(KeyboardInterrupt):
        lifecycle.give_up_tenant("globex")
    alive = [globex.is_alive(token) for token in kept]
    watcher.join()
    assert alive == [False] * 2 + [True] * 5
    assert [reload(row).user is None for row in many] == [True] * 2 + [False] * 5


def interrupt(may: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not may() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


def test_a_killed_command_is_finished_by_the_next(bipsync: SimulatedBipsync, database: str) -> None:
    rows = [connect(bipsync, person=one) for one in bipsync.users]
    kept = [refresh_token_of(row) for row in rows]
    bipsync.reset_calls()
    bipsync.latency = 1.0
    environment = {**for_child(database), "TEST_BIPSYNC": bipsync.url}
    command = [sys.executable, "-m", "django", "bipsync_give_up", "acme", "--no-input"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while bipsync.calls["refresh"] < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert [reload(row).user is None for row in rows] == [True, True, False]
    bipsync.latency = 0
    told = give_up(tenant="acme")
    assert told.startswith("acme: 1 accounts.\n")
    assert {reload(row).status for row in rows} == {Status.DISCONNECTED}
    deadline = time.monotonic() + 30
    while any(bipsync.is_alive(token) for token in kept):
        # The simulator is still looking at what the killed process sent.
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- before anything happens


@pytest.mark.parametrize("slug", ["initech", "GLOBEX", "glöbex", "globex ", ""])
def test_a_tenant_that_nobody_knows_is_refused_with_those_that_are_known(
    nora: Browser, settings: Any, slug: str
) -> None:
    with pytest.raises(CommandError, match="In the settings: acme, globex"):
        give_up(tenant=slug)
    take_out(settings, "globex")
    with pytest.raises(CommandError, match="without settings: globex"):
        give_up(tenant=slug)
    assert reload(at_globex()).status == Status.ACTIVE


def test_it_asks_at_a_terminal_and_takes_nothing_but_the_name(
    nora: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answering(answer: str) -> Callable[[str], str]:
        def ask(question: str) -> str:
            asked.append(question)
            return answer

        return ask

    out = io.StringIO()
    with pytest.raises(CommandError, match="no terminal to ask at: say --no-input"):
        call_command("bipsync_give_up", "globex", stdout=out)
    monkeypatch.setattr(sys, "stdin", Terminal())
    for answer in ("", "y", "acme", "GLOBEX"):
        monkeypatch.setattr("builtins.input", answering(answer))
        with pytest.raises(CommandError, match="Nothing was changed"):
            call_command("bipsync_give_up", "globex", stdout=out)
    assert reload(at_globex()).status == Status.ACTIVE
    assert "1 accounts of globex" in asked[0]
    monkeypatch.setattr("builtins.input", answering("globex"))
    call_command("bipsync_give_up", "globex", stdout=out)
    assert reload(at_globex()).status == Status.DISCONNECTED


def test_broken_settings_are_said(nora: Browser, settings: Any) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "SCOPS": []}
    with pytest.raises(CommandError, match="SCOPES"):
        give_up()


# --- a tenant that was taken out of the settings, and not given up


@pytest.fixture
def gone(nora: Browser, settings: Any, globex: SimulatedBipsync) -> BipsyncToken:
    row = at_globex()
    take_out(settings, "globex")
    globex.reset_calls()
    return row


def removed(database: str) -> list[Any]:
    found = run_checks(databases=[database])
    return [message for message in found if message.id == "bipsync_django.W007"]


def test_w007_names_a_tenant_with_rows_and_no_settings(
    nora: Browser, settings: Any, database: str
) -> None:
    assert removed(database) == []
    take_out(settings, "globex")
    (message,) = removed(database)
    assert message.msg == (
        "globex is not in BIPSYNC, and has 1 accounts and 1 flags of people in the database."
    )
    assert "manage.py bipsync_give_up globex" in message.hint
    assert run_checks(databases=[]) == [] or removed("") == []
    # A person may disconnect, and is staff all the same.
    lifecycle.disconnect(at_globex())
    assert len(removed(database)) == 1
    give_up()
    assert removed(database) == []


def test_w007_is_silent_before_the_tables_are_there(
    database: str, monkeypatch: pytest.MonkeyPatch, gone: BipsyncToken
) -> None:
    monkeypatch.setattr(BipsyncToken._meta, "db_table", "not_there_yet")
    assert removed(database) == []


def test_migrate_works_on_an_empty_database(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "TEST_DATABASE": "default",
        "TEST_DATABASE_NAME": str(tmp_path / "empty.sqlite3"),
    }
    command = [sys.executable, "-m", "django", "migrate", "--verbosity", "0"]
    subprocess.run(command, env=environment, check=True, timeout=120)


def test_background_work_leaves_its_rows_alone_without_a_word(
    gone: BipsyncToken, globex: SimulatedBipsync, caplog: pytest.LogCaptureFixture
) -> None:
    expire(gone)
    before = everything()
    caplog.set_level(logging.INFO, "bipsync_django")
    assert not lifecycle.take_due(10)
    assert lifecycle.refresh_if_due(gone.pk) is Outcome.NOT_DUE
    out = io.StringIO()
    call_command("bipsync_refresh", "--dry-run", stdout=out)
    call_command("bipsync_refresh", stdout=out)
    assert out.getvalue() == (
        "0 due.\n0 refreshed, 0 not due, 0 held back, 0 failed, 0 needs sign-in.\n"
    )
    assert everything() == before
    assert not globex.calls
    assert caplog.records == []


def test_state_of_a_tenant_that_is_gone_stops_and_warns_of_nothing(
    gone: BipsyncToken, settings: Any, database: str
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "DEPLOYMENT": "staging"}
    TenantState.objects.filter(tenant="globex").update(deployment="production")
    breaker.open_for("globex", "outage")
    call_command("bipsync_refresh", stdout=io.StringIO())
    found = [message.id for message in run_checks(databases=[database])]
    assert "bipsync_django.W003" not in found
    assert "bipsync_django.W007" in found


def test_nobody_gets_a_token_of_a_tenant_that_is_gone(gone: BipsyncToken) -> None:
    """Not even one that still works at Bipsync."""
    before = everything()
    user = gone.user
    assert user is not None
    calls: list[Callable[[], object]] = [
        lambda: lifecycle.access_token(gone),
        lambda: lifecycle.replace_refused(gone, "another"),
        lambda: api_session(user, tenant="globex"),
        lambda: service_session("globex"),
    ]
    for call in calls:
        with pytest.raises(UnknownTenant, match="no tenant 'globex'; it has: acme"):
            call()
    assert everything() == before
    expire(gone)
    before = everything()
    for call in [*calls, lambda: lifecycle.refresh(gone, force=True)]:
        with pytest.raises(UnknownTenant):
            call()
    assert everything() == before


def test_an_administrator_who_asks_for_a_refresh_reads_why_nothing_comes_of_it(
    gone: BipsyncToken,
) -> None:
    assert lifecycle.refresh_asked(expire(gone).pk) == "unknown_tenant"


def test_pages_go_on_without_it(gone: BipsyncToken, settings: Any) -> None:
    client = Client()
    client.force_login(User.objects.get(), "django.contrib.auth.backends.ModelBackend")
    for url in ("/bipsync/connection/", "/page/", "/bipsync/connect/"):
        response = client.get(url)
        assert response.status_code == 200
        assert "Globex" not in visible_text(response.content.decode())
    assert client.get(f"{LOGIN}globex/", secure=True).status_code == 404
    assert client.post("/bipsync/disconnect/globex/").status_code == 302


def test_a_sign_in_that_was_under_way_is_a_page_and_stores_nothing(
    nora: Browser, globex: SimulatedBipsync, settings: Any
) -> None:
    browser = Browser()
    callback = globex.approve(begin(browser, "globex"), user=person(1).id)
    take_out(settings, "globex")
    give_up()
    before = everything()
    answer = browser.open(callback)
    assert answer.status_code == 503
    assert browser.user_id() is None
    assert everything() == before


@pytest.fixture
def root(database: str) -> Client:
    client = Client()
    client.force_login(
        User.objects.create_superuser("root"), "django.contrib.auth.backends.ModelBackend"
    )
    return client


def test_the_admin_names_it_and_finds_its_rows(
    gone: BipsyncToken, root: Client, acme: SimulatedBipsync
) -> None:
    sign_in_at(acme)
    page = visible_text(root.get(LIST).content.decode())
    assert "globex is not in the settings any more" in page
    assert "manage.py bipsync_give_up globex" in page
    assert "globex (not in the settings)" in page
    found = root.get(LIST, {"tenant": "globex"})
    assert list(found.context["cl"].result_list) == [gone]
    give_up()
    page = visible_text(root.get(LIST).content.decode())
    assert "is not in the settings any more" not in page
    assert "globex (not in the settings)" in page, "its history can be looked at"


def test_a_figure_of_the_panel_leads_to_what_it_counted(
    gone: BipsyncToken, root: Client, acme: SimulatedBipsync
) -> None:
    sign_in_at(acme)
    page = root.get(LIST)
    (tenant,) = page.context["panel"]["tenants"]
    assert tenant["name"] == "acme"
    for figure in tenant["figures"]:
        found = root.get(f"{LIST}?{figure.query}").context["cl"].result_count
        assert found == figure.count, figure.query


def test_the_doctor_and_monitoring_name_it(gone: BipsyncToken, settings: Any, rf: Any) -> None:
    token = "monitoring-" + "m" * 32
    settings.BIPSYNC = {**settings.BIPSYNC, "HEALTH_TOKEN": lambda: token}

    def monitored() -> Any:
        request = rf.get("/", headers={"Authorization": f"Bearer {token}"})
        return monitoring.health(request).content.decode()

    def examined() -> str:
        out = io.StringIO()
        with contextlib.suppress(CommandError):
            call_command("bipsync_doctor", "--offline", stdout=out)
        return out.getvalue()

    assert "bipsync_django.W007): globex is not in BIPSYNC" in examined()
    assert '"removed_tenants": {"globex": 2}' in monitored()
    give_up()
    assert "globex" not in examined()
    assert '"removed_tenants": {}' in monitored()


def test_the_number_of_queries_does_not_grow_with_the_rows(
    gone: BipsyncToken, django_assert_num_queries: Any, database: str
) -> None:
    BipsyncToken.objects.bulk_create(
        BipsyncToken(tenant=tenant, subject=f"s{number}", client_id="portal")
        for tenant in ("acme", "globex", "initech")
        for number in range(300)
    )
    with django_assert_num_queries(3, connection=connections[database]):
        found = lifecycle.removed_tenants()
    assert [(one.tenant, one.accounts, one.flags) for one in found] == [
        ("globex", 301, 1),
        ("initech", 300, 0),
    ]
    assert [one.tenant for one in health.tenants()] == ["acme"]
