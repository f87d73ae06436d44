"""``manage.py bipsync_refresh``: what Celery does, for sites without it."""

import argparse
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from ... import breaker, durable, events, flow, lifecycle
from ...conf import get_settings
from ...lifecycle import Outcome
from ...models import BipsyncToken
from .. import progress

_BATCH = 100


class Command(BaseCommand):
    help = (
        "Refreshes every Bipsync token that is due, then deletes what is not needed any more. "
        "Run it once a minute (cron, systemd timer) where there is no Celery; several at once "
        "are harmless. Exit status: 0 when nothing is wrong, 1 when a refresh failed or calls "
        "are held back; people who have to sign in again are reported and are no failure."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only say what is due")
        parser.add_argument(
            "--threads", type=_positive, default=4, help="refresh so many at a time (default: 4)"
        )

    def handle(self, *args: Any, dry_run: bool, threads: int, **options: Any) -> None:
        rows = BipsyncToken.objects.filter(tenant__in=list(get_settings().tenants))
        due = rows.due(timezone.now()).count()
        held_back = breaker.tenants_held_back()
        if dry_run:
            self.stdout.write(f"{due} due.")
        if not get_settings().refresh_enabled:
            self.stdout.write("Refreshing is switched off (REFRESH_ENABLED).")
            return
        if dry_run:
            if held_back:
                self.stdout.write(f"Calls are held back for: {', '.join(held_back)}.")
            return
        outcomes = self._refresh(due, threads)
        lifecycle.spend_abandoned()
        flow.prune()
        events.prune()
        lifecycle.prune_unconfirmed()
        self._report(outcomes)
        if held_back:
            raise CommandError(f"Calls are held back for: {', '.join(held_back)}.")
        if outcomes[Outcome.FAILED] or outcomes[Outcome.HELD_BACK]:
            raise CommandError("Not everything could be refreshed; it is tried again later.")

    def _refresh(self, due: int, threads: int) -> Counter[Outcome]:
        outcomes: list[Outcome] = []
        pks = _Taken()
        ours = connections[durable.database()]
        with _stop_politely(pks), ThreadPoolExecutor(threads) as pool:
            workers = [pool.submit(_refresh_all, pks, outcomes, ours) for _ in range(threads)]
            while wait(workers, timeout=0.2).not_done:
                progress.show(self.stdout, len(outcomes), due)
            progress.show(self.stdout, len(outcomes), due)
            for worker in workers:
                worker.result()
        return Counter(outcomes)

    def _report(self, outcomes: Counter[Outcome]) -> None:
        if self.stdout.isatty() and outcomes:
            self.stdout.write("")
        told = ", ".join(f"{outcomes[outcome]} {outcome.value}" for outcome in Outcome)
        self.stdout.write(f"{told}.")


class _Taken:
    """The ids of what is due, for several threads.

    A batch at a time: what is taken and not done comes up again after ten minutes only.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[int, str] = {}
        self.stopped = False

    def __iter__(self) -> Iterator[tuple[int, str]]:
        while (row := self._next()) is not None:
            yield row

    def _next(self) -> tuple[int, str] | None:
        with self._lock:
            if self.stopped:
                return None
            self._rows = self._rows or lifecycle.take_due(_BATCH)
            return self._rows.popitem() if self._rows else None


def _refresh_all(pks: _Taken, outcomes: list[Outcome], caller: BaseDatabaseWrapper) -> None:
    try:
        durable.prepare(connections[durable.database()], caller)
        for pk, digest in pks:
            outcomes.append(lifecycle.refresh_if_due(pk, digest))
    finally:
        connections.close_all()


@contextmanager
def _stop_politely(pks: _Taken) -> Iterator[None]:
    """Let SIGTERM, Ctrl-C and a closed terminal end the work after what is under way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        pks.stopped = True

    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    handlers = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _positive(value: str) -> int:
    if value.isdecimal() and int(value) >= 1:
        return int(value)
    raise argparse.ArgumentTypeError("has to be a number, 1 or more")
