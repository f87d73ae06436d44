"""Find what is due among a million grants.

    python -m benchmarks.sweep [--rows 1000000 --rows …] [--due 10000] [--inactive 100000]

``lifecycle.take_due`` is called for batches of 500 until nothing is due, which is what the task of
every minute does. "idle" is one more call with nothing due: the usual minute. "memory" is by how
much the process grew at its peak. "index" is what the database says that it uses to find the rows,
and "sorts" whether it has to sort them afterwards.

With inactive people, so many further rows are past due whose person is not active, longer than all
others: the first sweep has to get past them, and "idle" shows that later ones do not. The rows
hold short stand-ins for tokens, which no sweep reads.
"""

import resource
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import connections
from django.utils import timezone

from benchmarks.rows import Expression, choose, insert, moment, text
from benchmarks.stage import Queries, Table, database, parser
from bipsync_django import lifecycle
from bipsync_django.models import BipsyncToken
from tests.databases import Router

BATCH = 500
_STAND_IN = "x" * 200
_LONG_DUE = timedelta(days=1)


def _fill(rows: int, due: int, inactive: int) -> None:
    """Make ``rows`` grants, ``due`` of them due and evenly spread, and ``inactive`` more."""
    vendor = connections[Router.alias].vendor
    now = timezone.now()
    total = rows + inactive
    everyone: Expression = (text(vendor), [])
    is_inactive = f"n > {rows}"
    is_due = f"n %% {max(rows // due, 1)} = 0 AND n <= {max(rows // due, 1) * due}"
    insert(
        get_user_model(),
        total,
        {
            "id": ("n", []),
            "username": everyone,
            "is_active": (f"CASE WHEN {is_inactive} THEN %s ELSE %s END", [False, True]),
        },
    )
    due_at = choose(
        is_inactive,
        moment(vendor, now - _LONG_DUE),
        choose(
            is_due,
            moment(vendor, now - timedelta(hours=2)),
            moment(vendor, now + timedelta(hours=1)),
        ),
    )
    insert(
        BipsyncToken,
        total,
        {
            "id": ("n", []),
            "user": ("n", []),
            "subject": everyone,
            "tenant": ("%s", [settings.BIPSYNC["CLIENT"]]),
            "access_token": ("%s", [_STAND_IN]),
            "refresh_token": ("%s", [_STAND_IN]),
            "next_refresh_at": due_at,
        },
    )


# --- measuring


class _Plan(NamedTuple):
    uses_index: str
    sorts: str


class _Found(Exception):
    """The query that looks for due rows."""

    def __init__(self, sql: str, params: Any) -> None:
        super().__init__(sql)
        self.sql = sql
        self.params = params


def _stop_at_search(
    execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
) -> Any:
    if sql.startswith("SELECT") and "next_refresh_at" in sql.partition("ORDER BY")[2]:
        raise _Found(sql, params)
    return execute(sql, params, many, context)


def _plan() -> _Plan:
    """Return how the database would look for what is due now; nothing is taken."""
    connection = connections[Router.alias]
    try:
        with connection.execute_wrapper(_stop_at_search):
            lifecycle.take_due(BATCH)
    except _Found as query:
        explain = "EXPLAIN QUERY PLAN" if connection.vendor == "sqlite" else "EXPLAIN"
        with connection.cursor() as cursor:
            cursor.execute(f"{explain} {query.sql}", query.params)
            plan = "\n".join(" ".join(map(str, row)) for row in cursor.fetchall())
    name = BipsyncToken._meta.indexes[0].name
    # The words of PostgreSQL, MariaDB and SQLite.
    sorts = any(word in plan for word in ("Sort", "filesort", "TEMP B-TREE"))
    # MariaDB names indexes that it could use and those that it does use: two columns.
    used = plan.count(name) == (2 if connection.vendor == "mysql" else 1)
    return _Plan("yes" if used else "NO", "YES" if sorts else "no")


def _forget_peak() -> float:
    """Return the present size of the process in MB, and measure its peak from here on."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) / 1024


class _Memory:
    """How much the process grew at its peak, in MB; elsewhere than on Linux since its start."""

    def __init__(self) -> None:
        try:
            self._before: float | None = _forget_peak()
        except OSError:
            self._before = None

    def grown(self) -> float:
        if self._before is not None:
            return max(_status("VmHWM") - self._before, 0.0)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _sweep() -> tuple[int, float]:
    """Take all that is due; return how many rows that were, and the seconds that it took."""
    started = time.perf_counter()
    found = 0
    while taken := lifecycle.take_due(BATCH):
        found += len(taken)
    return found, time.perf_counter() - started


def _row(name: str, rows: int, due: int, inactive: int) -> list[object]:
    _fill(rows, due, inactive)
    plan = _plan()
    queries, memory = Queries(), _Memory()
    with queries.counted():
        found, seconds = _sweep()
    grown = memory.grown()
    idle = statistics.median(_sweep()[1] for _ in range(5))
    label = f"{name}, {rows:,}" + (f" + {inactive:,}" if inactive else "")
    return [
        label,
        found,
        seconds,
        seconds / max(found, 1) * 1000,
        queries.count,
        f"{grown:.1f} MB",
        *plan,
        f"{idle * 1000:.1f} ms",
    ]


def main() -> None:
    command = parser(__doc__, databases=["postgresql", "mariadb", "sqlite"])
    command.add_argument("--rows", type=int, action="append", help="default: 10 k, 100 k, 1 M")
    command.add_argument("--due", type=int, default=10_000)
    command.add_argument("--inactive", type=int, default=100_000, help="0: leave that out")
    options = command.parse_args()
    sizes = sorted(options.rows or [10_000, 100_000, 1_000_000])
    table = Table(
        f"sweep: {options.due:,} due, in batches of {BATCH}; "
        "the goal is that time follows what is due, not what is there",
        *("rows", "found", "seconds", "ms each", "queries", "memory", "index", "sorts", "idle"),
        width=30,
    )
    for name in options.database or options.databases:
        cases = [(rows, 0) for rows in sizes]
        if options.inactive:
            cases.append((sizes[-1], options.inactive))
        for rows, inactive in cases:
            with database(name):
                table.row(*_row(name, rows, min(options.due, rows), inactive))


if __name__ == "__main__":
    main()
