"""Refresh, sign-in, disconnect, rollback, crashes, faults and passing time, in any order.

The real ``lifecycle`` runs on a real database against the simulated Bipsync over real HTTP. A few
actors call it at once. Each stops before every step: every database statement outside of a
transaction, the sending, the arrival at Bipsync, the look at the answer, each sleep. The turns
that they take decide who goes on, who dies where it stands, whose database fails, what Bipsync
answers, and when time passes. What must hold is checked after each single step (``_look``) and
when a refresh token is about to be sent (``_may_be_sent``), and once more when all have finished
and time has passed (``_come_to_rest``).

The orders that the protocol was made for are written down (``KNOWN_ORDERS``); hypothesis makes up
others, the same each time. ``BIPSYNC_EXAMPLES=2000 pytest tests/test_interleavings.py`` makes
that many on each database instead, others each time. A failure prints the shortest order that
hypothesis has found, and where each step led.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar
from unittest import mock

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, connections, transaction
from django.db.models import DateTimeField, F
from django.utils import timezone
from hypothesis import HealthCheck, Phase, currently_in_test_context, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from bipsync_django import durable, lifecycle, policy
from bipsync_django.conf import Tenant
from bipsync_django.exceptions import BipsyncError, GrantDead, SignInRequired
from bipsync_django.lifecycle import protocol
from bipsync_django.models import BipsyncToken, HourlyCount, TenantState, TokenEvent
from bipsync_django.oauth import transport
from bipsync_django.oauth.client import TokenPair, refresh_pair
from bipsync_django.testing import Answer, DropAfter, DropBefore, Html, SimulatedBipsync
from bipsync_django.testing.messages import Request, Response
from bipsync_django.testing.provider import token_parameters
from tests.grants import connect, expire
from tests.interleaving import WAITING, Actor, Crash, Stage

EXAMPLES = int(os.environ.get("BIPSYNC_EXAMPLES", "0"))
DEFAULT_EXAMPLES = {"default": 60, "postgresql": 12, "mariadb": 12}
STEPS = 8

Status = BipsyncToken.Status

# Too short for anything but a claim to get old; longer than a lease; longer than every pause and
# than the life of an access token.
A_MOMENT, A_LEASE, HOURS = 6, 31, 4000

NEXT, END = "the next step", "the end"
LANDMARKS = [NEXT, END, "writes", "sends", "waits for Bipsync", "has an answer", "has an answer"]

WORKS = "works"
FAULTS: dict[str, Answer | Html | DropBefore | DropAfter] = {
    "answers 503": Html(503),
    "asks for less": Answer(429, {}),
    "refuses the secret": Answer(401, {"error": "invalid_client"}),
    "hangs up before it does anything": DropBefore(),
    "hangs up after the rotation": DropAfter(),
}

STOPS = "stops"
ACCIDENTS: dict[str, Callable[[Actor], None]] = {
    "dies": Actor.crash,
    "dies soon": lambda actor: actor.crash(after=2),
    "its database fails": lambda actor: actor.fail_database(committed=False),
    "its database commits and fails": lambda actor: actor.fail_database(committed=True),
}


@dataclass(frozen=True)
class Turn:
    """``after`` seconds somebody goes on ``up_to`` some step, and then stops there, or worse.

    If a call to Bipsync is made next, this is what ``bipsync`` does.
    """

    after: int = 0
    up_to: str = END
    and_then: str = STOPS
    bipsync: str = WORKS


TURNS = st.builds(
    Turn,
    after=st.sampled_from([0, 0, A_MOMENT, A_LEASE, A_LEASE, HOURS, HOURS]),
    up_to=st.sampled_from(LANDMARKS),
    and_then=st.sampled_from([*[STOPS] * 6, *ACCIDENTS]),
    bipsync=st.sampled_from([*[WORKS] * 6, *FAULTS]),
)


class RolledBackError(Exception):
    pass


def access_token_in_a_transaction_that_is_rolled_back(token: BipsyncToken) -> None:
    with suppress(RolledBackError), transaction.atomic(using=durable.database()):
        User.objects.create_user("rolled-back")
        lifecycle.access_token(token)
        raise RolledBackError


def replace_refused(token: BipsyncToken) -> str | None:
    refused = token.unseal("access_token")
    assert refused is not None
    return lifecycle.replace_refused(token, refused)


REFRESHES: dict[str, Callable[[BipsyncToken], object]] = {
    "access_token": lifecycle.access_token,
    "access_token, rolled back": access_token_in_a_transaction_that_is_rolled_back,
    "refresh by force": lambda token: lifecycle.refresh(token, force=True),
    "refresh in the background": lambda token: lifecycle.refresh_if_due(token.pk),
    "replace refused": replace_refused,
}


COMERS = st.sampled_from([*REFRESHES, "sign in", "disconnect"])


class Caller(Actor):
    number = 0
    began_at = 0
    """Where in the list of pairs that the row has held."""

    def __str__(self) -> str:
        return f"{self.number} ({self.name})"


@dataclass
class Call:
    """One use of a refresh token, from the last look at the clock to the store."""

    owner: Actor
    sent: str
    since: float
    pair: TokenPair | None = None
    has_failed: bool = False
    is_stored: bool = False
    is_overdue: bool = False

    @property
    def is_under_way(self) -> bool:
        return not (self.owner.is_over or self.has_failed or self.is_stored)

    @property
    def is_lost(self) -> bool:
        """Whether its owner died, or got no database for long, before the answer was stored."""
        gave_up = self.is_overdue and isinstance(self.owner.error, OperationalError)
        return (self.owner.is_crashed or gave_up) and not self.is_stored


class Interleavings(RuleBasedStateMachine):
    bipsync: ClassVar[SimulatedBipsync]
    database: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage()
        self.now = 0.0
        self.actors: list[Caller] = []
        self.finished: list[Caller] = []
        self.calls: list[Call] = []
        self.issued: list[str] = []
        self.held: list[str | None] = []
        """Each refresh token that the row has held, in turn; ``None`` for no pair."""
        self.handed_over: set[str | None] = set()
        """Each access token that the row has held."""
        self.spent: set[object] = set()
        """Each refresh token that Bipsync has taken."""
        self.lease_owners: dict[str, Caller] = {}
        self.is_late = False
        self.is_broken = False
        self.cleanup = ExitStack()

    @initialize(
        punishes_reuse=st.sampled_from([False, False, True]),
        first=st.sampled_from(list(REFRESHES)),
        first_turn=TURNS,
        second=COMERS,
        second_turn=TURNS,
    )
    def two_come_for_an_expired_token(
        self, punishes_reuse: bool, first: str, first_turn: Turn, second: str, second_turn: Turn
    ) -> None:
        self.begin(punishes_reuse=punishes_reuse)
        self.somebody_comes(first, is_stale=False, turn=first_turn)
        self.somebody_comes(second, is_stale=False, turn=second_turn)

    def begin(self, *, punishes_reuse: bool) -> None:
        for model in (BipsyncToken, TokenEvent, HourlyCount, TenantState, User):
            model._default_manager.all().delete()
        self.bipsync.family_revocation = punishes_reuse
        self.user = User.objects.create_user("ada")
        enter = self.cleanup.enter_context
        enter(mock.patch.object(self.bipsync, "remember_pair", self._remember_pair))
        enter(mock.patch.object(protocol, "refresh_pair", self._refresh_pair))
        enter(mock.patch.object(self.bipsync, "answer_token_request", self._answer_token_request))
        for module in (protocol, durable, transport):
            enter(mock.patch.object(module, "time", self.stage.clock))
        enter(self.stage.open())
        self.oldest = self.row = expire(connect(self.bipsync, user=self.user))
        self.held.append(self.row.unseal("refresh_token"))
        self.handed_over.add(self.row.unseal("access_token"))

    # What can happen

    @rule(what=COMERS, is_stale=st.booleans(), turn=TURNS)
    def somebody_comes(self, what: str, is_stale: bool, turn: Turn) -> None:
        """``is_stale``: with an object that is as old as the grant."""
        token = self.oldest if is_stale or self.row.access_token is None else self.row
        others = {
            "sign in": lambda: connect(self.bipsync, user=self.user),
            "disconnect": lambda: lifecycle.disconnect(token),
        }
        self._take(turn, self._begin(what, others.get(what, lambda: REFRESHES[what](token))))

    @rule(who=st.integers(0, 2), turn=TURNS)
    def somebody_goes_on(self, who: int, turn: Turn) -> None:
        if self.actors:
            self._take(turn, self.actors[who % len(self.actors)])

    def teardown(self) -> None:
        try:
            if self.held and not self.is_broken:
                self._come_to_rest()
        finally:
            for actor in self.actors:
                actor.crash()
            self.bipsync.clear_failures()
            self.bipsync.family_revocation = False
            self.cleanup.close()

    # What must hold after each step

    def _look(self, actor: Caller) -> None:
        """Compare the row with what it was before ``actor`` took a step."""
        before, self.row = self.row, BipsyncToken.objects.get()
        holds = self.row.unseal("refresh_token")
        if self.row.status == Status.DISCONNECTED:
            # Kept to be spent, where its lease was in force; it is nobody's to use.
            assert holds in {None, *self.held}
            assert self.row.access_token is None
            holds = None
        self._generation_counts_pairs(before, holds)
        self._a_lease_is_its_owners(before, actor)
        assert not self.is_late, "A request has left after its deadline."
        if holds != self.held[-1]:
            self._only_who_brings_a_newer_pair_replaces_one(actor, holds)
            self.held.append(holds)
            self.handed_over.add(self.row.unseal("access_token"))
        for call in self.calls:
            call.is_stored |= call.pair is not None and call.pair.refresh_token == holds
        if self.row.status == Status.NEEDS_SIGN_IN:
            self._the_grant_is_dead_and_it_says_why()
        if actor.is_over:
            self._ends_as_it_may(actor)

    def _generation_counts_pairs(self, before: BipsyncToken, holds: str | None) -> None:
        """The generation grows by one whenever the pair is replaced or erased, and never else."""
        changed = holds != self.held[-1]
        assert self.row.generation == before.generation + changed
        assert (self.row.status == Status.DISCONNECTED) == (holds is None)

    def _a_lease_is_its_owners(self, before: BipsyncToken, actor: Caller) -> None:
        """It goes with its owner, with the pair, or to somebody else once it has run out."""
        was, is_now = before.lease_id, self.row.lease_id
        if is_now is not None:
            self.lease_owners.setdefault(is_now, actor)
        if was not in {None, is_now} and self.row.generation == before.generation:
            has_run_out = before.lease_until is None or before.lease_until <= timezone.now()
            assert has_run_out if is_now else self.lease_owners[str(was)] is actor

    def _only_who_brings_a_newer_pair_replaces_one(self, actor: Caller, holds: str | None) -> None:
        if actor.name == "disconnect":
            assert holds is None
        elif actor.name == "sign in":
            assert holds not in {None, *self.held}
        else:
            old = self.held[-1]
            assert holds is not None
            assert holds in self._delivered_to(actor)
            assert old is not None, "A refresh has revived a grant that was given up."
            assert self._family(holds) == self._family(old), "A refresh has undone a sign-in."
            assert self.issued.index(holds) > self.issued.index(old)

    def _the_grant_is_dead_and_it_says_why(self) -> None:
        """Nothing but Bipsync ends a grant, and here it does so for lost answers only."""
        holds = self.held[-1]
        assert holds is not None
        assert not self.bipsync.is_alive(holds), f"A live grant was ended: {self.row.last_error}"
        if holds in self.spent:  # Otherwise it was punished for the use of another one.
            assert self.row.last_error == "answer_lost"
        else:
            assert self.bipsync.family_revocation
            assert self._was_sent_late(holds)

    def _ends_as_it_may(self, actor: Caller) -> None:
        error = actor.error
        if error is not None:
            allowed = isinstance(error, BipsyncError) or actor.is_crashed
            if not (
                allowed or (actor.had_database_failure and isinstance(error, OperationalError))
            ):
                raise error
        elif actor.name == "sign in":
            assert actor.result.unseal("refresh_token") in self.held
        elif actor.name == "disconnect":
            assert None in self.held[actor.began_at :]
        elif isinstance(actor.result, str):
            assert actor.result in self.handed_over

    def _may_be_sent(self, call: Call) -> None:
        """A refresh token is sent twice only when nobody knows what became of the first time."""
        with self.stage.aside():
            row, now = BipsyncToken.objects.get(), timezone.now()
        assert call.sent == row.unseal("refresh_token"), "What is sent is not what the row holds."
        assert not policy.is_recent(row), "A pair is replaced that has just come."
        assert row.next_attempt_at is None or row.next_attempt_at <= now, "Too soon."
        assert row.lease_until is not None
        claimed = row.lease_until - protocol.LEASE
        assert now - claimed < timedelta(seconds=protocol.SEND_WITHIN + 1), "The claim is too old."
        for earlier in self.calls:
            if earlier.sent == call.sent:
                assert earlier.has_failed or earlier.is_lost or earlier.is_overdue

    def _was_sent_late(self, refresh_token: str) -> bool:
        """Whether an owner that had frozen came in the way of another one."""
        return any(
            call.is_overdue and self._family(call.sent) == self._family(refresh_token)
            for call in self.calls
        )

    # What must hold in the end

    def _come_to_rest(self) -> None:
        """Let all finish, let time pass, and let the next one come."""
        self.bipsync.clear_failures()
        self._let_all_finish()
        died = any(actor.is_crashed or actor.had_database_failure for actor in self.finished)
        assert self.row.lease_id is None or died, "A lease was left by somebody who is well."
        self._let_pass(HOURS)
        self._no_pair_that_somebody_got_is_lost()
        self._the_next_caller_is_served()

    def _no_pair_that_somebody_got_is_lost(self) -> None:
        """What is alive, and was not replaced by a sign-in or disconnect, is in the row."""
        for call in self.calls:
            if call.pair is None or call.is_lost:
                continue
            refresh_token = call.pair.refresh_token
            assert refresh_token is not None
            if self.bipsync.is_alive(refresh_token) and self._is_of_this_grant(refresh_token):
                assert refresh_token == self.held[-1], "A live grant was lost."

    def _the_next_caller_is_served(self) -> None:
        """No lease outlives its owner for good; what is dead says so, and is dead for a reason."""
        holds = self.held[-1]
        was_alive = holds is not None and self.bipsync.is_alive(holds)
        actor = self._begin("access_token", lambda: lifecycle.access_token(self.row))
        self._go_on(actor, END)
        if was_alive:
            assert actor.error is None, f"A live grant is of no use: {actor.error!r}"
            assert self.bipsync.is_access_token_alive(actor.result)
        else:
            assert isinstance(actor.error, SignInRequired)
            assert holds is None or self._has_reason_to_be_dead(holds)

    def _has_reason_to_be_dead(self, refresh_token: str) -> bool:
        return any(
            call.is_lost or call.has_failed or call.is_overdue
            for call in self.calls
            if self._family(call.sent) == self._family(refresh_token)
        )

    # The machinery

    def _let_pass(self, seconds: int) -> None:
        """Everything that the database knows of is so much longer ago, on every clock."""
        if not seconds:
            return
        self.now += seconds
        self.stage.clock.advance(seconds)
        for model in (BipsyncToken, TenantState):
            moments = [f.name for f in model._meta.fields if isinstance(f, DateTimeField)]
            # It never changes, and so tells a row from another one with its primary key.
            moments = [name for name in moments if name != "created_at"]
            ago = {name: F(name) - timedelta(seconds=seconds) for name in moments}
            model._default_manager.update(**ago)
        self.row.refresh_from_db()
        for call in self.calls:
            if call.is_under_way and self.now - call.since > protocol.ANSWERED_WITHIN:
                call.is_overdue = True

    def _take(self, turn: Turn, actor: Caller) -> None:
        self._let_pass(turn.after)
        self.bipsync.clear_failures()
        if turn.bipsync != WORKS:
            self.bipsync.fail("token", FAULTS[turn.bipsync])
        self._go_on(actor, turn.up_to)
        if turn.and_then != STOPS and not actor.is_over:
            self._step(actor, lambda: ACCIDENTS[turn.and_then](actor))

    def _begin(self, name: str, work: Callable[[], object]) -> Caller:
        actor = Caller(self.stage, name, work)
        actor.number = len(self.finished) + len(self.actors) + 1
        actor.began_at = len(self.held) - 1
        self.actors.append(actor)
        return actor

    def _go_on(self, actor: Caller, up_to: str) -> None:
        for _ in range(400):
            self._step(actor, actor.go_on)
            if up_to == NEXT or actor.place in {None, WAITING} or actor.place.startswith(up_to):
                return

    def _step(self, actor: Caller, step: Callable[[], None]) -> None:
        try:
            self._move(actor, step)
        except BaseException:
            self.is_broken = True
            raise

    def _move(self, actor: Caller, step: Callable[[], None]) -> None:
        step()
        _say(f"    {actor}: {actor.place or repr(actor.error or actor.result)[:60]}")
        if actor.is_over:
            self.actors.remove(actor)
            self.finished.append(actor)
        self._look(actor)

    def _let_all_finish(self) -> None:
        for _ in range(10):
            for actor in list(reversed(self.actors)):  # Who was overtaken stays so the longest.
                self._go_on(actor, END)
            if not self.actors:
                return
            if all(actor.place == WAITING for actor in self.actors):
                self._let_pass(A_LEASE)
        raise AssertionError(f"{self.actors[0]} does not come to an end.")

    def _refresh_pair(self, tenant: Tenant, refresh_token: str, **kwargs: Any) -> TokenPair:
        """Call Bipsync, with a stop before and after; runs in the actor's thread."""
        owner = self.stage.running
        assert owner is not None
        assert not connections[self.database].in_atomic_block, "A transaction waits for Bipsync."
        call = Call(owner, refresh_token, self.now)
        self._may_be_sent(call)
        self.calls.append(call)
        self.stage.reach("sends")
        try:
            call.pair = refresh_pair(tenant, refresh_token, **kwargs)
        except GrantDead:
            raise
        except BipsyncError:
            call.has_failed = True
            raise
        self.stage.reach("has an answer")
        return call.pair

    def _answer_token_request(self, request: Request) -> Response:
        """Let the request be on its way for a while; runs in the simulator's thread."""
        owner = self.stage.running
        if calls := [call for call in self.calls if call.owner is owner]:
            self.is_late |= self.now - calls[-1].since > protocol.ANSWERED_WITHIN
        with suppress(Crash):  # Who has sent it is gone, and it arrives all the same.
            self.stage.reach("waits for Bipsync")
        response = SimulatedBipsync.answer_token_request(self.bipsync, request)
        if response.status == 200:
            self.spent.add(token_parameters(request)["refresh_token"])
        return response

    def _remember_pair(self, jti: str, refresh_token: str, **kwargs: Any) -> None:
        self.issued.append(refresh_token)
        SimulatedBipsync.remember_pair(self.bipsync, jti, refresh_token, **kwargs)

    def _delivered_to(self, actor: Caller) -> set[str | None]:
        return {call.pair.refresh_token for call in self.calls if call.owner is actor and call.pair}

    def _is_of_this_grant(self, refresh_token: str) -> bool:
        holds = self.held[-1]
        return holds is not None and self._family(refresh_token) == self._family(holds)

    def _family(self, refresh_token: str) -> str:
        pair = self.bipsync.store.by_refresh_token(refresh_token)
        assert pair is not None
        return pair.family


def _say(what: str) -> None:
    if currently_in_test_context():
        note(what)
    else:
        print(what)


def comes(what: str, **turn: Any) -> Callable[[Interleavings], None]:
    return lambda machine: machine.somebody_comes(what, is_stale=False, turn=Turn(**turn))


def comes_with_an_old_object(what: str, **turn: Any) -> Callable[[Interleavings], None]:
    return lambda machine: machine.somebody_comes(what, is_stale=True, turn=Turn(**turn))


def goes_on(who: int, **turn: Any) -> Callable[[Interleavings], None]:
    return lambda machine: machine.somebody_goes_on(who, turn=Turn(**turn))


GET = "access_token"

# The orders that the protocol was made for. Whoever has stopped goes on in the end, the last first.
KNOWN_ORDERS: dict[str, list[Callable[[Interleavings], None]]] = {
    "a slow owner's token is found dead by another one": [
        comes(GET, up_to="has an answer"),
        comes(GET, after=A_LEASE),
    ],
    "a slow owner stores before another one sends": [
        comes(GET, up_to="has an answer"),
        comes(GET, after=A_LEASE, up_to="sends"),
        goes_on(0),
    ],
    "a slow owner is told that the grant is dead while another one has the pair": [
        comes(GET, up_to="waits for Bipsync"),
        comes(GET, after=A_LEASE, up_to="has an answer"),
        goes_on(0),
    ],
    "a slow owner fails while another one has the lease": [
        comes(GET, up_to="sends"),
        comes(GET, after=A_LEASE, up_to="sends"),
        goes_on(0, bipsync="answers 503"),
    ],
    "somebody comes while another one sends": [comes(GET, up_to="sends"), comes(GET)],
    "an owner freezes before it sends": [
        comes(GET, up_to="sends"),
        goes_on(0, after=A_LEASE),
    ],
    "an owner dies with the answer": [comes(GET, up_to="has an answer", and_then="dies")],
    "an owner dies before it sends": [comes(GET, up_to="sends", and_then="dies")],
    "an owner dies while its request is on its way": [
        comes(GET, up_to="waits for Bipsync", and_then="dies"),
        comes(GET, after=A_LEASE),
    ],
    "an owner is slow after its claim": [
        comes(GET, up_to="writes"),
        goes_on(0, up_to=NEXT),
        goes_on(0, after=A_MOMENT),
    ],
    "an owner is slow before its claim, and somebody signs in": [
        comes(GET, up_to="writes"),
        comes("sign in"),
    ],
    "an owner is slow before its claim, and another one fails": [
        comes(GET, up_to="writes"),
        comes(GET, bipsync="answers 503"),
    ],
    "somebody signs in during a refresh": [comes(GET, up_to="has an answer"), comes("sign in")],
    "somebody disconnects during a refresh": [
        comes(GET, up_to="has an answer"),
        comes("disconnect"),
    ],
    "the database fails when the pair is stored": [
        comes(GET, up_to="has an answer", and_then="its database fails"),
    ],
    "the database stores the pair and fails": [
        comes(GET, up_to="has an answer", and_then="its database commits and fails"),
    ],
    "the caller's transaction is rolled back": [comes("access_token, rolled back")],
    "somebody comes with an old object": [
        comes(GET),
        comes_with_an_old_object(GET, after=HOURS),
    ],
    **{f"Bipsync {fault}": [comes(GET, bipsync=fault), comes(GET)] for fault in FAULTS},
}


@pytest.fixture
def interleavings(database: str, bipsync: SimulatedBipsync) -> type[Interleavings]:
    class Here(Interleavings):
        pass

    Here.bipsync, Here.database = bipsync, database
    return Here


@pytest.mark.parametrize("order", KNOWN_ORDERS)
def test_a_known_order_of_events_loses_no_grant(
    interleavings: type[Interleavings], order: str
) -> None:
    for punishes_reuse in (False, True):
        machine = interleavings()
        try:
            machine.begin(punishes_reuse=punishes_reuse)
            for event in KNOWN_ORDERS[order]:
                event(machine)
        finally:
            machine.teardown()


@pytest.mark.timeout(600 + 5 * EXAMPLES)
def test_no_order_of_events_loses_a_grant(
    interleavings: type[Interleavings], database: str
) -> None:
    run_state_machine_as_test(
        interleavings,
        settings=settings(
            max_examples=EXAMPLES or DEFAULT_EXAMPLES[database],
            stateful_step_count=STEPS,
            derandomize=not EXAMPLES,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
