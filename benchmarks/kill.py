"""Celery workers die by SIGKILL while they refresh.

    python -m benchmarks.kill [--tokens 10000] [--broker redis --broker rabbitmq] [--every 3]

Two workers of four processes and a beat refresh what is due, on PostgreSQL. Every few seconds some
of a worker's pool processes are killed; each third time it is a whole worker with all of its
processes, and another one takes its place. That goes on until everything is refreshed or ended, or
the time is over.

"lost" are grants whose refresh token in the row is dead at the provider, or whose row is not active
any more. "in the window" are those of them where the provider has answered the very token that is
still in the row with a new pair: the process died between the provider's commit and ours, which
nothing can mend. "leases left" are leases whose owner died, and "taken over" those of them that are
gone at the end. "sent twice" counts refresh tokens that the provider received more than once, and
"unexplained" those of them where no kill came between the first sending and two seconds after its
answer: there have to be none. "breaker" is how often the tenant's breaker opened.

Redis hands out a killed worker's messages again after an hour only, so the sweep is what saves
them. For the benchmark it runs every few seconds, a row that was taken comes up again after
a minute instead of ten, and an open breaker is tried after 20 seconds instead of five minutes.
"""

import argparse
import os
import random
import signal
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from benchmarks.stage import Call, Provider, Table, database, parser, provider, store_grants
from benchmarks.workers import Worker, beat, broker, logs, prefork, stop
from bipsync_django.durable import DatabaseNow
from bipsync_django.lifecycle.protocol import LEASE
from bipsync_django.models import BipsyncToken, TokenEvent
from bipsync_django.testing.store import digest

WORKERS = 2
PROCESSES = 4
LATENCY = 0.05
TICK = 5.0
HELD_BACK = 20.0
PATIENCE = 60.0
# A refresh takes a fraction of a second; whoever holds a lease for longer than this is dead.
_ABANDONED_AFTER = timedelta(seconds=8)
_POLL = 0.5


@dataclass
class _Killer:
    """Kills, and remembers when."""

    workers: list[Worker]
    every: float
    dice: random.Random
    at: list[float] = field(default_factory=list)
    processes: int = 0
    whole: int = 0

    def strike_if_due(self, begun: float) -> None:
        """Kill somebody, if it is long enough since the last time or since it all begun."""
        if time.time() - max([begun, *self.at]) >= self.every:
            self._strike(self.dice.choice(self.workers))

    def _strike(self, worker: Worker) -> None:
        pool = worker.children()
        self.at.append(time.time())
        if len(self.at) % 3 == 0:
            worker.kill()
            worker.replace()
            self.whole += 1
            return
        for pid in self.dice.sample(pool, self.dice.randint(1, len(pool)) if pool else 0):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.processes += 1

    def explains(self, first: Call) -> bool:
        """Whether somebody was killed who may have been waiting for the answer to ``first``."""
        return any(first.begun - LATENCY - 1 <= at <= first.answered + 2 for at in self.at)


def _left() -> int:
    return BipsyncToken.objects.filter(status=BipsyncToken.Status.ACTIVE, generation=1).count()


def _abandoned() -> set[str]:
    """Return the leases whose owners are dead."""
    long_ago = DatabaseNow() + (LEASE - _ABANDONED_AFTER)
    leases = BipsyncToken.objects.filter(lease_until__lt=long_ago).exclude(lease_id=None)
    return {lease for lease in leases.values_list("lease_id", flat=True) if lease is not None}


def _wait_for_the_first(bipsync: Provider) -> None:
    deadline = time.monotonic() + PATIENCE
    while not bipsync.received():
        if time.monotonic() > deadline:
            raise RuntimeError("The workers refresh nothing.")
        time.sleep(0.1)


def _run(bipsync: Provider, killer: _Killer, limit: float) -> tuple[float, set[str]]:
    """Kill until all is done or the time is over; return the seconds and the abandoned leases."""
    _wait_for_the_first(bipsync)
    begun = time.time()
    abandoned: set[str] = set()
    while _left() and time.time() - begun < limit:
        killer.strike_if_due(begun)
        abandoned |= _abandoned()
        time.sleep(_POLL)
    return time.time() - begun, abandoned


def _start(folder: Path) -> tuple[list[Worker], Worker]:
    workers = [
        prefork(folder / f"worker-{number}.log", number, PROCESSES) for number in range(WORKERS)
    ]
    return workers, beat(folder / "beat.log")


def _measure(bipsync: Provider, options: argparse.Namespace) -> list[object]:
    store_grants(bipsync, options.tokens)
    bipsync.forget()
    with logs() as folder:
        workers, clock = _start(folder)
        killer = _Killer(workers, options.every, random.Random(options.seed))  # noqa: S311
        try:
            seconds, abandoned = _run(bipsync, killer, options.limit)
        finally:
            stop(clock, *workers)
    return [
        f"{killer.processes} + {killer.whole}",
        f"{seconds:.0f} s",
        *_grants(bipsync),
        len(abandoned),
        len(abandoned) - BipsyncToken.objects.filter(lease_id__in=abandoned).count(),
        *_repeated(bipsync.refreshes(), killer),
        TokenEvent.objects.filter(name=TokenEvent.Name.BREAKER_OPENED).count(),
    ]


def _grants(bipsync: Provider) -> list[object]:
    """Return how many were refreshed, left over, lost, and lost in the window."""
    answered = {call.token for call in bipsync.refreshes() if call.status == 200}
    lost = in_window = 0
    for row in BipsyncToken.objects.all():
        token = row.unseal("refresh_token") or ""
        if row.status != BipsyncToken.Status.ACTIVE or not bipsync.alive([token]):
            lost += 1
            in_window += digest(token) in answered
    active = BipsyncToken.objects.filter(status=BipsyncToken.Status.ACTIVE)
    return [active.filter(generation__gt=1).count(), _left(), lost, in_window]


def _repeated(calls: list[Call], killer: _Killer) -> list[object]:
    """Return how many tokens were received more than once, and how often without a reason."""
    by_token: defaultdict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_token[call.token].append(call)
    repeated = [sent for sent in by_token.values() if len(sent) > 1]
    return [
        len(repeated),
        sum(not killer.explains(call) for sent in repeated for call in sent[:-1]),
    ]


def main() -> None:
    command = parser(__doc__, databases=["postgresql"])
    command.add_argument("--tokens", type=int, default=10_000)
    command.add_argument(
        "--broker",
        action="append",
        choices=["redis", "rabbitmq", "filesystem"],
        help="may be repeated; default: redis and rabbitmq",
    )
    command.add_argument("--every", type=float, default=3, help="seconds between kills")
    command.add_argument("--limit", type=float, default=1500, help="seconds for each broker")
    command.add_argument("--taken-for", type=float, default=60, help="seconds (default: 60)")
    command.add_argument("--seed", type=int, default=1, help="of the dice that choose whom to kill")
    options = command.parse_args()
    environment = {"tick": TICK, "taken_for": options.taken_for, "held_back": HELD_BACK}
    columns = ["killed", "time", "refreshed", "left", "lost", "in the window"]
    columns += ["leases left", "taken over", "sent twice", "unexplained", "breaker"]
    with provider() as bipsync:
        bipsync.switch(latency=LATENCY)
        table = Table(
            f"kill: {options.tokens} due, {WORKERS} workers × {PROCESSES} processes, somebody dies "
            f"every {options.every:g} s (processes + whole workers);\n"
            f"sweep every {TICK:g} s, taken for {options.taken_for:g} s, breaker "
            f"{HELD_BACK:g} s; the goal is none lost outside the window, none unexplained",
            "broker, database",
            *columns,
        )
        for name in options.database or options.databases:
            for through in options.broker or ["redis", "rabbitmq"]:
                with database(name), broker(through, **environment):
                    table.row(f"{through}, {name}", *_measure(bipsync, options))


if __name__ == "__main__":
    main()
