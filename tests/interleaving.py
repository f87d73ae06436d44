"""Threads that run one at a time, each up to its next step.

A test decides who goes on, who dies there, and whose database fails. Nothing runs in between, so
that an order of events is a list of decisions, and the same decisions give the same events.
"""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

WAITING = "sleeps"
"""Where an actor stops that sleeps until it looks again."""

_HANGS_AFTER = 30.0


class Crash(BaseException):
    """The process is gone: nothing may catch this, as nothing catches a kill."""


class Actor:
    """A thread that stops before each of its steps and goes on when it is told to."""

    def __init__(self, stage: "Stage", name: str, work: Callable[[], Any]) -> None:
        self.name = name
        self.place: str | None = "begins"
        """The step that comes next; ``None`` when there is none."""
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_crashed = False
        self.had_database_failure = False
        self._stage = stage
        self._work = work
        self._steps_to_crash: int | None = None
        self._failure = ""
        self._may_go = threading.Semaphore(0)
        self._has_stopped = threading.Semaphore(0)
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def __str__(self) -> str:
        return self.name

    @property
    def is_over(self) -> bool:
        return self.place is None

    def go_on(self) -> None:
        """Take one step."""
        self._stage.running = self
        self._may_go.release()
        stopped = self._has_stopped.acquire(timeout=_HANGS_AFTER)
        self._stage.running = None
        assert stopped, f"{self} hangs after {self.place!r}: it waits for somebody who has stopped."

    def crash(self, after: int = 0) -> None:
        """Die before the next step, or ``after`` further steps, in a transaction or not."""
        self._steps_to_crash = after
        self.go_on()

    def fail_database(self, *, committed: bool) -> None:
        """Let the next statement fail: before it is done, or after it is done and unheard."""
        self._failure = "after" if committed else "before"
        self.go_on()

    def reach(self, place: str, *, stops: bool) -> None:
        """Be about to do something; called in a thread of this actor."""
        if stops and self._steps_to_crash is None:
            self.place = place
            self._has_stopped.release()
            self._may_go.acquire()
        if self._steps_to_crash is not None:
            if self._steps_to_crash == 0:
                self.is_crashed = True
                raise Crash
            self._steps_to_crash -= 1

    def take_failure(self) -> str:
        failure, self._failure = self._failure, ""
        self.had_database_failure |= bool(failure)
        return failure

    def _run(self) -> None:
        self._may_go.acquire()
        try:
            self.reach("begins", stops=False)
            self.result = self._work()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error
        finally:
            # Whoever dies loses the connection, and the transaction with it.
            connections.close_all()
            self.place = None
            self._has_stopped.release()


class Stage:
    """Where actors run. ``clock`` replaces the module ``time`` in the code under test."""

    def __init__(self) -> None:
        self.running: Actor | None = None
        self.clock = Clock(self)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let actors stop before their database statements."""

        def watch(connection: BaseDatabaseWrapper, **kwargs: object) -> None:
            if self.running is not None and not any(
                isinstance(wrapper, _Statements) for wrapper in connection.execute_wrappers
            ):
                connection.execute_wrappers.append(_Statements(self))

        connection_created.connect(watch, weak=False, dispatch_uid="stage")
        try:
            yield
        finally:
            connection_created.disconnect(dispatch_uid="stage")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let the test itself do something in the thread of the actor that runs."""
        actor, self.running = self.running, None
        try:
            yield
        finally:
            self.running = actor

    def reach(self, place: str) -> None:
        """Let the actor that runs stop here, in whatever thread it has work done for it."""
        if self.running is not None:
            self.running.reach(place, stops=True)


class Clock:
    """Time that passes only when the test says so, or somebody sleeps."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._now = 1000.0

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds

    def sleep(self, seconds: float) -> None:
        self._now += seconds
        self._stage.reach(WAITING)


class _Statements:
    """Stops the actor before each statement at which it holds no lock yet."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._transaction: object = None

    def __call__(
        self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        actor = self._stage.running
        if actor is None:
            return execute(sql, params, many, context)
        actor.reach(_name(sql), stops=self._holds_nothing(context["connection"]))
        failure = actor.take_failure()
        if failure != "before":
            result = execute(sql, params, many, context)
        if failure:
            raise OperationalError("The database went away.")
        return result

    def _holds_nothing(self, connection: BaseDatabaseWrapper) -> bool:
        # SQLite has the lock since BEGIN IMMEDIATE, the others from their first statement on.
        before, self._transaction = self._transaction, next(iter(connection.atomic_blocks), None)
        if not connection.in_atomic_block:
            return True
        return connection.vendor != "sqlite" and self._transaction is not before


def _name(sql: str) -> str:
    """Say in short what a statement does: ``writes bipsynctoken: lease_id, lease_until``."""
    verb = sql.partition(" ")[0]
    is_read = verb == "SELECT" and "FOR UPDATE" not in sql and "set_config" not in sql
    table = re.search(
        r"^(?:SELECT|INSERT.* INTO|UPDATE|DELETE FROM) [\"`](?:bipsync_django_)?(\w+)", sql
    )
    columns = re.findall(r"[\"`](\w+)[\"`] = ", sql.partition(" WHERE ")[0])[:3]
    what = [table[1] if table else sql[:40], *columns]
    return f"{'reads' if is_read else 'writes'} {', '.join(what)}"
