"""Bipsync is ill for a while, then well again.

    python -m benchmarks.outage [--tokens 1000] [--outage 120] [--faster 10] [--database NAME]

All grants are due when the outage begins. Threads do what Celery's worker and beat do: take what is
due, refresh one row after the other. Counted are the calls that reach the provider during the
outage, the grants that are no longer alive at the end, and the time from the provider's recovery
until everything is refreshed; beside it the time that its latency alone would need.

``--faster`` divides the package's pauses and the call's deadline (to half a second at least) by
that factor, so that an outage takes seconds; the durations in the table are as short as that.
"""

import argparse
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from django.conf import settings
from django.db import connections
from django.test import override_settings

from benchmarks.stage import (
    Provider,
    Table,
    database,
    parser,
    provider,
    store_grants,
    stored_refresh_tokens,
)
from bipsync_django import breaker, lifecycle, policy
from bipsync_django.lifecycle import background, protocol
from bipsync_django.models import BipsyncToken, TenantState
from bipsync_django.testing import Answer, DropBefore, Html

HTTP_TIMEOUT = 10.0
LATENCY = 0.05
TICK = 60.0
BATCH = 500
THREADS = 8


# --- illnesses: each falls ill at once, and returns how to become well


def _unavailable(bipsync: Provider, deadline: float) -> Callable[[], None]:
    bipsync.fail("token", Answer(503), times=None)
    return bipsync.clear_failures


def _web_page(bipsync: Provider, deadline: float) -> Callable[[], None]:
    bipsync.fail("token", Html(200), times=None)
    return bipsync.clear_failures


def _silent(bipsync: Provider, deadline: float) -> Callable[[], None]:
    # Nothing is done with these requests, and the answer would come too late.
    held = deadline * 1.5
    bipsync.fail("token", DropBefore(), times=None)
    bipsync.switch(latency=held)

    def recover() -> None:
        bipsync.switch(latency=LATENCY)
        # Whoever still waits must not be served now: the caller has given up.
        time.sleep(held)
        bipsync.clear_failures()

    return recover


def _wrong_secret(bipsync: Provider, deadline: float) -> Callable[[], None]:
    bipsync.switch(client_secret="another one")
    return lambda: bipsync.switch(client_secret=settings.BIPSYNC["CLIENT_SECRET"])


ILLNESSES = {
    "503": _unavailable,
    "no answer in time": _silent,
    "a web page, status 200": _web_page,
    "wrong client secret": _wrong_secret,
}


# --- a worker pool


class _Pool:
    """Threads that do what the Celery tasks do."""

    def __init__(self, tick: float) -> None:
        self.errors: Counter[str] = Counter()
        self._tick = tick
        self._stop = threading.Event()
        self._due: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, args=(work,), daemon=True)
            for work in [self._sweep, *[self._refresh] * THREADS]
        ]

    def _run(self, work: Callable[[], None]) -> None:
        try:
            while not self._stop.is_set():
                work()
        finally:
            connections.close_all()

    def _sweep(self) -> None:
        while pks := lifecycle.take_due(BATCH):
            for pk in pks:
                self._due.put(pk)
        self._stop.wait(self._tick)

    def _refresh(self) -> None:
        try:
            pk = self._due.get(timeout=0.2)
        except queue.Empty:
            return
        try:
            lifecycle.refresh_if_due(pk)
        except Exception as error:  # noqa: BLE001 - as Celery, which goes on with the next task
            self.errors[repr(error)] += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(5)


def _deadline(factor: float) -> float:
    """Return the seconds that a call may take; not so few that a busy machine needs more."""
    return max(HTTP_TIMEOUT / factor, 0.5)


def _compress(factor: float) -> None:
    """Divide the package's pauses by ``factor``."""
    policy._FIRST_PAUSE /= factor
    policy._USUAL_PAUSE_AT_MOST /= factor
    policy._PAUSE_AT_MOST /= factor
    for module, name in (
        (breaker, "HELD_BACK"),
        (breaker, "OUTAGE_HELD_BACK"),
        (breaker, "_TRIAL"),
        (background, "TAKEN_FOR"),
        (protocol, "MENDED_EARLIEST"),
    ):
        setattr(module, name, getattr(module, name) / factor)
    spread = policy.spread
    # What was held back comes up again within a minute.
    policy.spread = lambda most: spread(min(most, timedelta(minutes=1) / factor))


# --- measuring


def _left() -> int:
    return BipsyncToken.objects.filter(status=BipsyncToken.Status.ACTIVE, generation=1).count()


def _wait_until_refreshed(patience: float) -> bool:
    deadline = time.monotonic() + patience
    while _left():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _measure(bipsync: Provider, name: str, options: argparse.Namespace) -> list[object]:
    TenantState.objects.all().delete()
    bipsync.switch(latency=LATENCY)
    store_grants(bipsync, options.tokens)
    recover = ILLNESSES[name](bipsync, _deadline(options.faster))
    bipsync.forget()
    begun = time.monotonic()
    pool = _Pool(TICK / options.faster)
    with pool.running():
        time.sleep(options.outage / options.faster)
        recover()
        calls, lasted = bipsync.received(), time.monotonic() - begun
        well = time.monotonic()
        done = _wait_until_refreshed(options.patience / options.faster)
        recovery = time.monotonic() - well
    for error, count in pool.errors.items():
        print(f"    {count} × {error}")
    alive = bipsync.alive(stored_refresh_tokens())
    active = BipsyncToken.objects.filter(status=BipsyncToken.Status.ACTIVE).count()
    return [
        name,
        f"{lasted:.1f} s",
        calls,
        options.tokens - min(alive, active),
        f"{recovery:.1f} s" if done else f"not in {recovery:.0f} s",
        f"{options.tokens * LATENCY / THREADS:.1f} s",
        _left(),
    ]


def main() -> None:
    command = parser(__doc__, databases=["postgresql"])
    command.add_argument("--tokens", type=int, default=1000)
    command.add_argument("--outage", type=float, default=120, help="seconds (default: 120)")
    command.add_argument("--patience", type=float, default=1200, help="seconds to wait at most")
    command.add_argument("--faster", type=float, default=10, help="1: real time (default: 10)")
    options = command.parse_args()
    # The breaker says what it does, once for each illness; here the table says it.
    logging.getLogger("bipsync_django").setLevel(logging.CRITICAL)
    _compress(options.faster)
    with provider() as bipsync:
        for name in options.database or options.databases:
            table = Table(
                f"outage on {name}: {options.tokens} due, {THREADS} threads, pauses divided by "
                f"{options.faster:g}; the goal is that no grant ends",
                *("illness", "lasted", "calls", "ended", "recovery", "ideal", "left"),
            )
            configured = {**settings.BIPSYNC, "HTTP_TIMEOUT": _deadline(options.faster)}
            with database(name), override_settings(BIPSYNC=configured):
                for illness in ILLNESSES:
                    table.row(*_measure(bipsync, illness, options))


if __name__ == "__main__":
    main()
