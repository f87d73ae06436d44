"""Many callers ask for the same expired token at the same moment.

    python -m benchmarks.race [--rounds 200] [--database NAME]

In each round a grant's access token has run out, and all callers, released by a barrier, ask
``lifecycle.access_token`` for it. "Served" are callers who got the access token that the row holds
after the round; "one call" are rounds in which the provider got exactly one refresh; "alive" are
rounds after which the provider accepts the refresh token in the row.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Literal

from django.db import connections

from benchmarks.stage import Provider, Table, database, make_due, parser, provider, store_grants
from bipsync_django import lifecycle
from bipsync_django.exceptions import BipsyncError
from bipsync_django.models import BipsyncToken

Kind = Literal["threads", "processes"]

CALLERS: dict[Kind, int] = {"threads": 8, "processes": 4}
DELAYS = (0.0, 0.03)

_context = get_context("fork")


def _call(pipe: Connection, barrier: Barrier, pk: int) -> None:
    """One caller: each message starts a round, and a false one ends the caller."""
    row = BipsyncToken.objects.get(pk=pk)
    while pipe.recv():
        barrier.wait()
        try:
            pipe.send(lifecycle.access_token(row))
        except BipsyncError as error:
            pipe.send(error.__class__.__name__)
        except Exception as error:  # noqa: BLE001 - the table shows it
            pipe.send(f"unexpected {error!r}")
    connections.close_all()


@contextmanager
def _callers(kind: Kind, count: int, pk: int) -> Iterator[list[Connection]]:
    # A connection to the database must not be shared with a fork.
    connections.close_all()
    barrier = _context.Barrier(count)
    pipes = [_context.Pipe() for _ in range(count)]
    start = threading.Thread if kind == "threads" else _context.Process
    callers = [start(target=_call, args=(theirs, barrier, pk), daemon=True) for _, theirs in pipes]
    for caller in callers:
        caller.start()
    try:
        yield [ours for ours, _ in pipes]
    finally:
        for ours, _ in pipes:
            ours.send(False)
        for caller in callers:
            caller.join(30)


def _round(bipsync: Provider, pipes: list[Connection], seen: Counter[str]) -> None:
    make_due()
    bipsync.forget()
    for pipe in pipes:
        pipe.send(True)
    answers = [pipe.recv() for pipe in pipes]
    row = BipsyncToken.objects.get()
    newest, refresh_token = row.unseal("access_token"), row.unseal("refresh_token")
    calls = bipsync.received()
    seen["served"] += answers.count(newest)
    seen["calls"] += calls
    seen["one call"] += calls == 1
    seen["alive"] += bipsync.alive([refresh_token or ""])
    seen.update(answer for answer in answers if len(answer) < 100)


def _measure(bipsync: Provider, table: Table, name: str, kind: Kind, rounds: int) -> None:
    callers = CALLERS[kind]
    for family in (False, True):
        for delay in DELAYS:
            bipsync.switch(latency=delay, family_revocation=family)
            store_grants(bipsync, 1)
            seen: Counter[str] = Counter()
            with _callers(kind, callers, BipsyncToken.objects.get().pk) as pipes:
                for _ in range(rounds):
                    _round(bipsync, pipes, seen)
            table.row(
                f"{name}, {callers} {kind}",
                f"{delay * 1000:.0f} ms",
                "family" if family else "plain",
                f"{seen.pop('served')}/{callers * rounds}",
                seen.pop("calls"),
                f"{seen.pop('one call')}/{rounds}",
                f"{seen.pop('alive')}/{rounds}",
            )
            for error, count in seen.items():
                print(f"    {count} × {error}")


def main() -> None:
    command = parser(__doc__, databases=["postgresql", "mariadb", "sqlite"])
    command.add_argument("--rounds", type=int, default=200)
    options = command.parse_args()
    table = Table(
        f"race: {options.rounds} rounds each; the goal is all, exactly one call, and all",
        *("callers", "delay", "provider", "served", "calls", "one call", "alive"),
        width=26,
    )
    with provider() as bipsync:
        for name in options.database or options.databases:
            with database(name):
                for kind in CALLERS:
                    _measure(bipsync, table, name, kind, options.rounds)


if __name__ == "__main__":
    main()
