"""Refreshes per second of Celery workers, beside those of a bare HTTP call.

    python -m benchmarks.throughput [--workers 1 --workers …] [--seconds 15] [--latency 50]
                                    [--pool prefork] [--broker redis]

The messages are published before the worker starts, and the first tenth and the last tenth of
the work is not measured. "ideal" is what the provider's latency alone would allow; "bare" are
calls per second of the same worker with a task that makes the HTTP call and nothing else (no
database, nothing stored); "ours" are refreshes per second. Below each row is what a refresh costs
in CPU, by process: once the sum of a row times the refreshes per second comes near to the number
of cores, the machine is the limit, not the package. The database's share is that of the whole
server, so nothing else should be using it. With BENCH_DB_REUSE=0 in the environment, Celery opens
a database connection for each task, as it does unless told otherwise.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.stage import (
    Provider,
    Table,
    database,
    parser,
    provider,
    store_grants,
    stored_refresh_tokens,
)
from benchmarks.workers import Worker, broker, cpu_of, database_pid, logs, prefork, redis_cpu, stop
from bipsync_django import tasks
from bipsync_django.models import BipsyncToken

PATIENCE = 120.0


class _Mark(NamedTuple):
    """How far it was at a moment, and the CPU seconds of each party until then."""

    at: float
    done: int
    cpu: dict[str, float]


class _Rate(NamedTuple):
    per_second: float
    milliseconds: dict[str, float]


class _Meter:
    """Watches a worker's progress from the outside."""

    def __init__(self, bipsync: Provider, broker_name: str) -> None:
        self._bipsync = bipsync
        self._uses_redis = broker_name == "redis"
        self._database = database_pid()

    def _mark(self, worker: Worker) -> _Mark:
        cpu = {"worker": cpu_of(worker.pid), "provider": self._bipsync.cpu()}
        if self._database is not None:
            cpu["database"] = cpu_of(self._database)
        if self._uses_redis:
            cpu["broker"] = redis_cpu()
        return _Mark(time.monotonic(), self._bipsync.received(), cpu)

    def rate(self, worker: Worker, count: int) -> _Rate:
        """Return the rate between a tenth and nine tenths of ``count`` calls."""
        self._wait(worker, count // 10)
        first = self._mark(worker)
        self._wait(worker, count - count // 10)
        last = self._mark(worker)
        self._wait(worker, count)
        done = max(last.done - first.done, 1)
        spent = {who: (last.cpu[who] - first.cpu[who]) / done * 1000 for who in first.cpu}
        return _Rate(done / (last.at - first.at), spent)

    def _wait(self, worker: Worker, count: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while self._bipsync.received() < count:
            if time.monotonic() > deadline or not worker.is_running():
                raise RuntimeError(f"The worker made {self._bipsync.received()} calls only.")
            time.sleep(0.05)


def _publish_refreshes() -> None:
    tasks.refresh_due_tokens()


def _publish_bare_calls() -> None:
    from benchmarks.celery_app import bare_call

    for token in stored_refresh_tokens():
        bare_call.delay(token)


def _run(
    bipsync: Provider, options: argparse.Namespace, workers: int, publish: Callable[[], None]
) -> _Rate:
    ideal = workers / (options.latency / 1000)
    count = max(int(ideal * options.seconds), 10)
    store_grants(bipsync, count)
    publish()
    bipsync.forget()
    meter = _Meter(bipsync, options.broker)
    with logs() as folder:
        worker = prefork(folder / "worker.log", 1, workers, options.pool)
        try:
            return meter.rate(worker, count)
        finally:
            stop(worker)


def _stored() -> str:
    done = BipsyncToken.objects.filter(generation=2).count()
    return f"{done}/{BipsyncToken.objects.count()}"


def _measure(bipsync: Provider, options: argparse.Namespace, workers: int, table: Table) -> None:
    ideal = workers / (options.latency / 1000)
    bare = _run(bipsync, options, workers, _publish_bare_calls)
    ours = _run(bipsync, options, workers, _publish_refreshes)
    table.row(
        f"{workers} × {options.pool}",
        f"{ideal:.0f}/s",
        f"{bare.per_second:.1f}/s",
        f"{ours.per_second:.1f}/s",
        ours.per_second / ideal,
        ours.per_second / bare.per_second,
        _stored(),
    )
    for name, rate in (("bare", bare), ("ours", ours)):
        spent = ", ".join(f"{who} {ms:.1f}" for who, ms in rate.milliseconds.items())
        cores = sum(rate.milliseconds.values()) / 1000 * rate.per_second
        print(f"    {name}: {spent} ms of CPU each; {cores:.2f} cores in all")


def main() -> None:
    command = parser(__doc__, databases=["postgresql"])
    command.add_argument("--workers", type=int, action="append", help="default: 1, 2, 4, 8")
    command.add_argument("--seconds", type=float, default=15, help="of each run, ideally")
    command.add_argument("--latency", type=float, default=50, help="milliseconds (default: 50)")
    command.add_argument("--pool", choices=["prefork", "threads"], default="prefork")
    command.add_argument("--broker", choices=["redis", "rabbitmq", "filesystem"], default="redis")
    options = command.parse_args()
    with provider() as bipsync, broker(options.broker):
        # Makes the tasks use the broker from here, too.
        import benchmarks.celery_app  # noqa: F401

        bipsync.switch(latency=options.latency / 1000)
        for name in options.database or options.databases:
            table = Table(
                f"throughput on {name} and {options.broker}: latency {options.latency:.0f} ms, "
                f"{os.cpu_count()} cores; the goal is 0.9 of the ideal",
                *("workers", "ideal", "bare", "ours", "ours/ideal", "ours/bare", "stored"),
                width=14,
            )
            with database(name):
                for workers in options.workers or [1, 2, 4, 8]:
                    _measure(bipsync, options, workers, table)


if __name__ == "__main__":
    main()
