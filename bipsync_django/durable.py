"""Database work that outlives the caller's transaction.

A rotated token that is rolled back with the caller's transaction is lost, so it is written on a
connection where it commits at once. Nothing here sets session state on a connection (pgbouncer
hands connections around), and no lock is held while anything but the database is waited for.

Such a connection may see other tables than the caller's: ``BIPSYNC["PREPARE_CONNECTION"]``
prepares it, and ``lifecycle.rows`` compares what it finds there.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any, TypeVar

from django.db import Error, OperationalError, connections, models, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.functions import Now
from django.db.models.sql.compiler import SQLCompiler

from .conf import get_settings
from .exceptions import (
    BipsyncError,
    ConfigurationError,
    NoSecondConnection,
    RefreshInsideTransaction,
    RefreshUnavailable,
)
from .models import BipsyncToken

__all__ = [
    "DatabaseNow",
    "afterwards",
    "database",
    "hold_signals",
    "in_turn",
    "is_beside",
    "needs_own_connection",
    "outside_transaction",
    "persist",
    "prepare",
    "skip_locked",
    "update",
]

T = TypeVar("T")

LOCK_TIMEOUT = 2.0
CONNECT_WITHIN = 3.0
_LOCK_POLL = 0.05
_TURN_POLL = 0.05
_work = threading.local()
_MYSQL_LOCKED = {1205, 3572}  # MariaDB's and MySQL's answers to NOWAIT


# What ends a process or a task politely: by default, or by a handler that raises an exception.
_HELD = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGABRT", "SIGALRM", "SIGUSR1")
    if hasattr(signal, name)
]


def database() -> str:
    """Return the alias of the database that token rows are read from and written to."""
    return router.db_for_write(BipsyncToken)


class DatabaseNow(Now):
    """The present moment on the database's clock, in UTC: one clock for all hosts."""

    def as_mysql(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any
    ) -> tuple[str, Any]:
        # CURRENT_TIMESTAMP is in the session's time zone; the columns are in UTC.
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)", **context)


def outside_transaction(work: Callable[[], T], using: str) -> T:
    """Run ``work`` where its database writes on alias ``using`` commit at once; return its result.

    In autocommit that is the caller's own connection. Inside a transaction it is a thread with a
    connection of its own, opened before ``work`` begins and closed after it. Inside nothing but
    the transactions of a ``TestCase`` it is the caller's connection again, because the data of
    the test can be seen from nowhere else.

    Raises ``RefreshInsideTransaction`` on SQLite inside a transaction, ``NoSecondConnection`` when
    none could be opened and prepared within three seconds, ``ConfigurationError`` when
    ``PREPARE_CONNECTION`` fails, all three before ``work`` begins; and whatever ``work`` raises.
    """
    later: list[Callable[[], object]] = []

    def noting() -> T:
        with _noting(later):
            return work()

    try:
        if not needs_own_connection(using):
            return noting()
        if connections[using].vendor == "sqlite":
            raise RefreshInsideTransaction
        return _on_own_connection(noting, using)
    finally:
        for call in later:
            # A turn of the caller's puts them off further.
            afterwards(call)


def needs_own_connection(using: str) -> bool:
    """Return whether the caller is in a transaction, so that ``outside_transaction`` leaves it."""
    connection = connections[using]
    return not (_is_autocommit(connection) or _is_testcase_only(connection))


def is_beside() -> bool:
    """Return whether this runs on a connection of ``outside_transaction``'s own."""
    return getattr(_work, "is_beside", False)


def prepare(connection: BaseDatabaseWrapper, caller: BaseDatabaseWrapper) -> None:
    """Let ``connection`` see the same rows as ``caller``, by the site's ``PREPARE_CONNECTION``.

    The site's function is given an open connection. Raises ``ConfigurationError`` when it fails,
    and Django's database errors when the connection cannot be opened.
    """
    # For persist, which opens the connection anew.
    _work.caller = caller
    hook = get_settings().prepare_connection
    if hook is None:
        return
    connection.ensure_connection()
    try:
        hook(connection, caller)
    except BipsyncError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"BIPSYNC['PREPARE_CONNECTION'] raised {type(error).__name__}, so the connection is "
            "not used."
        ) from error


def _prepare_again(connection: BaseDatabaseWrapper) -> None:
    """Prepare a connection that was opened anew: what was set on it went with the old one."""
    caller: BaseDatabaseWrapper | None = getattr(_work, "caller", None)
    if caller is not None:
        prepare(connection, caller)


# --- one thread of a process at a time


class _Turn:
    no_connection = False


_turns: dict[Hashable, _Turn] = {}


@contextmanager
def in_turn(key: Hashable, *, patience: float) -> Iterator[None]:
    """Let one thread of this process at a time run this block for ``key``.

    Ten requests that wait for the same refresh then need one second connection, not ten. A thread
    waits for at most ``patience`` seconds. Raises ``RefreshUnavailable`` after that, and
    ``NoSecondConnection`` as soon as the thread before found no connection.

    Calls by ``afterwards`` are made when the turn is over: a receiver of the site's may wait for
    a lock of a caller that waits for the turn.
    """
    mine = _Turn()
    give_up = time.monotonic() + patience
    later: list[Callable[[], object]] = []
    # A signal's exception may come at any line: from setdefault on, the turn has to be given back.
    try:
        while (other := _turns.setdefault(key, mine)) is not mine:
            if time.monotonic() >= give_up:
                raise RefreshUnavailable("busy", "Another thread is refreshing this token.")
            time.sleep(_TURN_POLL)
            if other.no_connection:
                raise NoSecondConnection
        with _noting(later):
            yield
    except NoSecondConnection:
        mine.no_connection = True
        raise
    finally:
        if _turns.get(key) is mine:
            del _turns[key]
        for call in later:
            afterwards(call)


if hasattr(os, "register_at_fork"):
    # The threads whose turn it was stay in the parent process.
    os.register_at_fork(after_in_child=_turns.clear)


def afterwards(call: Callable[[], object]) -> None:
    """Make ``call`` in the thread that asked for the work, once that is done; else at once.

    For code of the site's: on the own connection it would wait for locks that the caller holds,
    while the caller waits for it, and no database could see that.
    """
    later: list[Callable[[], object]] | None = getattr(_work, "later", None)
    if later is None:
        call()
    else:
        later.append(call)


@contextmanager
def _noting(later: list[Callable[[], object]]) -> Iterator[None]:
    """Let ``afterwards`` note its calls in ``later``."""
    outer = getattr(_work, "later", None)
    try:
        _work.later = later
        yield
    finally:
        _work.later = outer


@contextmanager
def hold_signals() -> Iterator[None]:
    """Put off what would interrupt this block, until its end.

    Between Bipsync's answer and the commit nothing may come in between: no SIGTERM of a deploy,
    no soft time limit of Celery's, no timeout by alarm. Only the main thread is interrupted by
    signals, so nothing happens in other threads. SIGKILL cannot be held.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    set_in_c = _set_in_c()
    handlers = {
        number: handler
        for number in _HELD
        if callable(handler := signal.getsignal(number))
        or (handler is signal.SIG_DFL and number not in set_in_c)
    }
    with ExitStack() as after:
        # Last in, first out: all handlers are put back before what arrived is let through, and
        # what one of them raises keeps nobody from the next.
        after.callback(_raise_all, arrived)
        # ValueError: a subinterpreter of mod_wsgi, which is not interrupted by signals either.
        with suppress(ValueError):
            for number, handler in handlers.items():
                signal.signal(number, lambda number, frame: arrived.append(number))
                after.callback(signal.signal, number, handler)
        yield


def _set_in_c() -> set[int]:
    """Return the signals with a handler that Python could not put back, such as uWSGI's.

    Python tells of the handlers that it found when it started, and of its own. Linux says which
    signals have any; elsewhere all of them may.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        caught = int(status.partition("SigCgt:")[2].split()[0], base=16)
    except (OSError, ValueError, IndexError):
        return {*_HELD}
    return {number for number in _HELD if caught & (1 << (number - 1))}


def _raise_all(arrived: list[int]) -> None:
    with ExitStack() as each:
        for number in dict.fromkeys(arrived):
            each.callback(signal.raise_signal, number)


def skip_locked(rows: models.QuerySet[Any]) -> models.QuerySet[Any]:
    """Lock ``rows``, leaving out those that somebody else has locked, where that is possible."""
    if connections[rows.db].features.has_select_for_update_skip_locked:
        return rows.select_for_update(skip_locked=True)
    return rows.select_for_update()


def update(rows: models.QuerySet[Any], **values: Any) -> int:
    """Run ``rows.update(**values)``, waiting at most two seconds for row locks.

    Raises ``OperationalError`` when a lock is not to be had in that time.
    """
    connection = connections[rows.db]
    if connection.vendor == "postgresql":
        return _update_on_postgresql(connection, rows, values)
    if connection.vendor == "mysql":
        return _update_on_mysql(rows, values)
    return rows.update(**values)


def persist(work: Callable[[], T], using: str, *, patience: float = 60.0) -> T:
    """Run ``work`` until the database takes it, on new connections, for ``patience`` seconds.

    ``work`` has to be safe to repeat. Raises the last database error; in a transaction, the first.
    """
    connection = connections[using]
    may_repeat = connection.connection is None or _is_autocommit(connection)
    deadline = time.monotonic() + patience
    pause = 0.05
    is_new = False
    while True:
        try:
            if is_new:
                _prepare_again(connection)
            return work()
        except (Error, BipsyncError):
            if not may_repeat or time.monotonic() + pause > deadline:
                raise
        connection.close()
        is_new = True
        time.sleep(pause)
        pause = min(pause * 2, 5.0)


def _is_autocommit(connection: BaseDatabaseWrapper) -> bool:
    return not connection.in_atomic_block and connection.get_autocommit()


def _is_testcase_only(connection: BaseDatabaseWrapper) -> bool:
    return bool(connection.atomic_blocks) and all(
        getattr(block, "_from_testcase", False) for block in connection.atomic_blocks
    )


def _on_own_connection(work: Callable[[], T], using: str) -> T:
    caller = connections[using]
    opening = _Opening()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        connection = connections[using]
        _work.is_beside = True
        try:
            _use_read_committed(connection)
            _open(connection)
            opening.is_connected = True
            prepare(connection, caller)
            if opening.end():
                results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)
        finally:
            _forget_isolation_level(connection)
            connections.close_all()
            opening.end()

    thread = threading.Thread(target=copy_context().run, args=(run,), name="bipsync-durable")
    _raise_if_others_wait()
    with hold_signals():
        try:
            thread.start()
        except RuntimeError as error:
            raise RefreshUnavailable("busy", "The machine has no thread left.") from error
        if not opening.is_over.wait(CONNECT_WITHIN) and opening.end():
            _left_waiting[thread] = opening
            raise NoSecondConnection(is_connected=opening.is_connected)
        thread.join()
    if errors:
        raise errors[0]
    return results[0]


class _Opening:
    """The opening of a connection, which its success, its failure or the caller's patience ends."""

    def __init__(self) -> None:
        self.is_connected = False
        self.is_over = threading.Event()
        self._first = threading.Lock()

    def end(self) -> bool:
        """End it; return whether nobody else has."""
        is_first = self._first.acquire(blocking=False)
        self.is_over.set()
        return is_first


# A pool cannot be told how long to wait, so a thread whose caller has given up still stands in its
# queue. Nobody stands behind it for nothing.
_left_waiting: dict[threading.Thread, _Opening] = {}


def _raise_if_others_wait() -> None:
    for thread, opening in list(_left_waiting.items()):
        # One that has its connection, and is held up by PREPARE_CONNECTION, is in nobody's way.
        if thread.is_alive() and not opening.is_connected:
            raise NoSecondConnection
        _left_waiting.pop(thread, None)


def _open(connection: BaseDatabaseWrapper) -> None:
    try:
        connection.ensure_connection()
    except Error as error:
        raise NoSecondConnection from error


def _use_read_committed(connection: BaseDatabaseWrapper) -> None:
    level: object = "read committed"
    if connection.vendor == "postgresql":
        from django.db.backends.postgresql.psycopg_any import IsolationLevel

        level = IsolationLevel.READ_COMMITTED
    settings = connection.settings_dict
    # The settings are shared with the connections of other threads.
    connection.settings_dict = {
        **settings,
        "OPTIONS": {**settings["OPTIONS"], "isolation_level": level},
    }


def _forget_isolation_level(connection: BaseDatabaseWrapper) -> None:
    """Let a pool have its connection back as it was: psycopg keeps the level as an attribute."""
    if connection.vendor == "postgresql" and connection.connection is not None:
        # One that is broken goes back to no one.
        with suppress(Error), connection.wrap_database_errors:
            connection.connection.isolation_level = None


def _update_on_postgresql(
    connection: BaseDatabaseWrapper, rows: models.QuerySet[Any], values: dict[str, Any]
) -> int:
    with transaction.atomic(using=rows.db):
        with connection.cursor() as cursor:
            # Until the end of this transaction only.
            cursor.execute(
                "SELECT set_config('lock_timeout', %s, true)", [str(int(LOCK_TIMEOUT * 1000))]
            )
        return rows.update(**values)


def _update_on_mysql(rows: models.QuerySet[Any], values: dict[str, Any]) -> int:
    # A lock timeout is session state there, so the lock is asked for without waiting.
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            with transaction.atomic(using=rows.db):
                list(rows.select_for_update(nowait=True).values_list("pk"))
                return rows.update(**values)
        except OperationalError as error:
            if error.args[0] not in _MYSQL_LOCKED or time.monotonic() > deadline:
                raise
        time.sleep(_LOCK_POLL)
