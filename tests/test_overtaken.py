"""What somebody has read or found out about a row does not undo what has come since."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections
from django.test import override_settings
from django.utils import timezone

from bipsync_django import breaker, lifecycle
from bipsync_django.durable import DatabaseNow
from bipsync_django.exceptions import OtherDeployment, RefreshUnavailable, SignInRequired
from bipsync_django.lifecycle import protocol
from bipsync_django.models import BipsyncToken, TenantState, TokenEvent
from bipsync_django.testing import Answer, DropBefore, Html, SimulatedBipsync
from tests.grants import connect, expire, refresh_token_of, reload
from tests.signing import forget_keys

pytestmark = pytest.mark.usefixtures("database")

Status = BipsyncToken.Status
_WRITES_A_ROW = re.compile(r"UPDATE [\"`]bipsync_django_bipsynctoken|FROM .*bipsynctoken.* FOR UPD")
_WRITES_A_STATE = re.compile(r"UPDATE [\"`]bipsync_django_tenantstate")


@pytest.fixture
def token(database: str, bipsync: SimulatedBipsync) -> BipsyncToken:
    token = connect(bipsync)
    bipsync.reset_calls()
    return token


@contextmanager
def just_before_it_writes(
    database: str, work: Callable[[], object], writes: re.Pattern[str] = _WRITES_A_ROW
) -> Iterator[list[object]]:
    """Do ``work`` elsewhere, once: after this thread has read a row, before it writes to it.

    ``writes`` finds the statement that does. The list then holds the result of ``work``.
    """
    done: list[object] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)
        finally:
            connections.close_all()

    def watch(execute: Any, sql: str, *args: Any) -> Any:
        if not done and not errors and writes.search(sql):
            thread = threading.Thread(target=run)
            thread.start()
            thread.join(30)
            assert not thread.is_alive()
        return execute(sql, *args)

    with connections[database].execute_wrapper(watch):
        yield done
    if errors:
        raise errors[0]
    assert done, "nothing was written"


def hold(bipsync: SimulatedBipsync, token: BipsyncToken, **claims: object) -> BipsyncToken:
    """Let the row have an access token that says ``claims``, and that nobody has validated yet."""
    forged = bipsync.sign({**bipsync.access_token_claims(token.subject), **claims})
    BipsyncToken.objects.filter(pk=token.pk).update(
        access_token=token.seal("access_token", forged), validated_generation=0
    )
    return reload(token)


# --- verdicts


def test_another_persons_token_does_not_end_a_newer_pair(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    old = hold(bipsync, token, sub="f" * 24)
    with (
        just_before_it_writes(database, lambda: connect(bipsync, user=token.user)),
        pytest.raises(SignInRequired),
    ):
        lifecycle.access_token(old)
    row = reload(token)
    assert (row.status, row.generation, row.last_error) == (Status.ACTIVE, 2, "")
    assert bipsync.is_alive(refresh_token_of(token))
    assert not TokenEvent.objects.filter(name="needs_sign_in").exists()


def test_a_token_that_does_not_validate_holds_no_newer_pair_back(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    old = hold(bipsync, token, aud="elsewhere")
    with (
        just_before_it_writes(database, lambda: connect(bipsync, user=token.user)),
        pytest.raises(RefreshUnavailable),
    ):
        lifecycle.access_token(old)
    row = reload(token)
    assert (row.last_error, row.next_attempt_at, row.generation) == ("", None, 2)
    assert not TokenEvent.objects.filter(name="quarantined").exists()
    assert bipsync.is_access_token_alive(lifecycle.access_token(token))


def test_a_good_token_does_not_set_a_newer_one_free_that_is_held_back(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    old = hold(bipsync, token, scopes=["users:read"])

    def refused() -> None:
        BipsyncToken.objects.filter(pk=token.pk).update(generation=3)
        hold(bipsync, token, aud="elsewhere", scopes=["users:read", "tasks:read"])
        BipsyncToken.objects.update(last_error="token_refused", scopes="tasks:read users:read")

    with just_before_it_writes(database, refused):
        lifecycle.access_token(old)
    row = reload(token)
    assert (row.last_error, row.validated_generation) == ("token_refused", 0)
    assert row.scopes == "tasks:read users:read"
    bipsync.fail("jwks", Html(500), times=None)
    forget_keys()
    with pytest.raises(RefreshUnavailable, match="held back"):
        lifecycle.access_token(token)


# --- answers


@pytest.mark.parametrize(
    "answer",
    [Answer(400, {"error": "invalid_grant"}), Answer(401, {"error": "invalid_client"}), Html(503)],
    ids=["dead", "refused", "failed"],
)
def test_an_answer_that_comes_after_another_has_the_lease_changes_nothing(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str, answer: Any
) -> None:
    expired = expire(token)
    slow = protocol._claim(expired)
    assert slow is not None
    bipsync.fail("token", answer)

    def take_over() -> Any:
        BipsyncToken.objects.update(lease_until=DatabaseNow() - timedelta(seconds=1))
        return protocol._claim(expired)

    with (
        just_before_it_writes(database, take_over) as taken,
        pytest.raises((SignInRequired, RefreshUnavailable)),
    ):
        protocol._carry_out(slow)
    row = reload(token)
    (other,) = taken
    assert row.lease_id == getattr(other, "lease_id", None) is not None
    assert (row.status, row.attempt, row.last_error) == (Status.ACTIVE, 0, "")
    assert row.next_attempt_at is None


def test_a_claim_that_could_not_be_used_gives_up_no_lease_of_anothers(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    BipsyncToken.objects.update(client_id="the-old-portal")
    expired = expire(token)
    slow = protocol._claim(expired)
    assert slow is not None

    def take_over() -> Any:
        BipsyncToken.objects.update(lease_until=DatabaseNow() - timedelta(seconds=1))
        return protocol._claim(expired)

    with (
        just_before_it_writes(database, take_over) as taken,
        pytest.raises(RefreshUnavailable),
    ):
        protocol._carry_out(slow)
    row = reload(token)
    (other,) = taken
    assert row.lease_id == getattr(other, "lease_id", None) is not None
    assert (row.last_error, row.next_attempt_at) == ("", None)


# --- disconnecting


def test_a_disconnect_sends_no_token_that_another_has_just_leased(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    expired = expire(token)
    with just_before_it_writes(database, lambda: protocol._claim(expired)) as taken:
        lifecycle.disconnect(token)
    assert taken != [None]
    assert reload(token).status == Status.DISCONNECTED
    # The lease's owner sends it, and finds nobody to store what comes.
    assert bipsync.calls["refresh"] == 0


def test_a_disconnect_spends_the_pair_that_came_at_the_last_moment(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    expired = expire(token)
    lost: list[str] = []

    def refresh() -> None:
        lifecycle.access_token(expired)
        lost.append(refresh_token_of(token))

    with just_before_it_writes(database, refresh):
        lifecycle.disconnect(token)
    assert reload(token).status == Status.DISCONNECTED
    assert not bipsync.is_alive(lost[0])


# --- background work


def test_a_row_that_was_refreshed_meanwhile_is_not_scheduled_by_its_older_pair(
    token: BipsyncToken, bipsync: SimulatedBipsync, database: str
) -> None:
    # Not due yet: whoever took it schedules it by the pair that they have read.
    connect(bipsync, user=token.user)
    soon = timezone.now() + timedelta(minutes=20)
    BipsyncToken.objects.update(
        obtained_at=timezone.now() - timedelta(minutes=40), access_expires_at=soon
    )
    planned: list[Any] = []

    def sign_in() -> None:
        planned.append(connect(bipsync, user=token.user).next_refresh_at)

    with just_before_it_writes(database, sign_in):
        lifecycle.refresh_if_due(token.pk)
    assert reload(token).next_refresh_at == planned[0]


# --- a new pair


@pytest.mark.parametrize("by", ["refresh", "sign-in"])
def test_a_new_pair_ends_every_doubt_about_the_one_before(
    token: BipsyncToken, bipsync: SimulatedBipsync, by: str
) -> None:
    """A lost answer explains one death: that of the pair that was sent."""
    bipsync.fail("token", DropBefore())
    with pytest.raises(RefreshUnavailable):
        lifecycle.access_token(expire(token))
    assert reload(token).in_doubt_at is not None
    if by == "refresh":
        BipsyncToken.objects.update(next_attempt_at=None)
        lifecycle.access_token(token)
    else:
        BipsyncToken.objects.update(
            lease_id="x" * 32, lease_until=DatabaseNow() + timedelta(seconds=30)
        )
        connect(bipsync, user=token.user)
    row = reload(token)
    assert (row.in_doubt_at, row.attempt, row.next_attempt_at) == (None, 0, None)
    assert (row.lease_id, row.lease_until, row.last_error) == (None, None, "")
    bipsync.withdraw(token.subject)
    with pytest.raises(SignInRequired):
        lifecycle.access_token(expire(token))
    assert reload(token).last_error == "invalid_grant"


# --- whose database it is


@pytest.mark.parametrize("is_there", [False, True], ids=["new", "known"])
def test_of_two_deployments_that_claim_at_once_the_first_gets_the_grants(
    bipsync: SimulatedBipsync, settings: Any, database: str, is_there: bool
) -> None:
    if is_there:
        TenantState.objects.create(tenant="acme")
    production = {**settings.BIPSYNC, "DEPLOYMENT": "production"}
    settings.BIPSYNC = {**settings.BIPSYNC, "DEPLOYMENT": "staging"}

    def claim() -> None:
        with override_settings(BIPSYNC=production):
            breaker.claim_deployment("acme")

    with (
        just_before_it_writes(database, claim, _WRITES_A_STATE),
        pytest.raises(OtherDeployment),
    ):
        breaker.claim_deployment("acme")
    assert TenantState.objects.get().deployment == "production"
