"""Brokers, Celery workers as processes, and what they cost in CPU."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.db import connections

from benchmarks.stage import RUN
from tests.databases import Router

ROOT = Path(__file__).parent.parent
NAME = f"bipsync-bench-{RUN}"
"""Of the queue, and the prefix of everything that is kept in a broker."""


# --- brokers


@dataclass(frozen=True)
class Broker:
    """How to use a broker, and how to leave nothing of this run in it."""

    settings: dict[str, Any]
    clean: Callable[[], None]


_REDIS = os.environ.get("BENCH_REDIS", "redis://127.0.0.1:6379/0")
_RABBITMQ = os.environ.get("BENCH_RABBITMQ", "amqp://guest:guest@127.0.0.1:5672//")
_FOLDER = Path(tempfile.gettempdir()) / NAME


def _clean_redis() -> None:
    import redis

    with redis.Redis.from_url(_REDIS) as client:
        for key in client.scan_iter(match=f"{NAME}:*"):
            client.delete(key)


def _clean_rabbitmq() -> None:
    from kombu import Connection, Exchange, Queue

    with Connection(_RABBITMQ) as connection, connection.channel() as channel:
        Queue(NAME)(channel).delete()
        Exchange(NAME)(channel).delete()


BROKERS = {
    "redis": Broker(
        {"broker_url": _REDIS, "broker_transport_options": {"global_keyprefix": f"{NAME}:"}},
        _clean_redis,
    ),
    "rabbitmq": Broker({"broker_url": _RABBITMQ}, _clean_rabbitmq),
    "filesystem": Broker(
        {
            "broker_url": "filesystem://",
            "broker_transport": "bipsync_django.testing.broker:Transport",
            "broker_transport_options": {
                "data_folder_in": str(_FOLDER),
                "data_folder_out": str(_FOLDER),
                "control_folder": str(_FOLDER / "control"),
            },
        },
        lambda: shutil.rmtree(_FOLDER, ignore_errors=True),
    ),
}


@contextmanager
def broker(name: str, **environment: object) -> Iterator[None]:
    """Let workers that are started in here use the broker, with ``environment`` for them."""
    if name == "filesystem":
        (_FOLDER / "control").mkdir(parents=True, exist_ok=True)
    os.environ["BENCH_BROKER"] = name
    os.environ.update({f"BENCH_{key.upper()}": str(value) for key, value in environment.items()})
    try:
        yield
    finally:
        BROKERS[name].clean()


# --- processes


class Worker:
    """A Celery process in a process group of its own; its output goes to ``log``."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self._command = [sys.executable, "-m", "celery", "--app", "benchmarks.celery_app"]
        self._command += arguments
        self._log = log
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as output:
            return subprocess.Popen(
                self._command,
                cwd=ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def children(self) -> list[int]:
        """Return the process ids of its pool."""
        return children(self.pid)

    def kill(self) -> None:
        """Kill it together with its children, as a host that dies would."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def replace(self) -> None:
        """Start another one in its place, as a supervisor would."""
        self._process = self._start()

    def is_running(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """Ask it to finish what it is doing, and to end."""
        self._process.terminate()

    def wait(self, seconds: float) -> None:
        """Wait until it has ended, for so long at most; then kill it."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self.kill()


def stop(*workers: Worker, patience: float = 20) -> None:
    """Let workers finish what they are doing."""
    for worker in workers:
        worker.end()
    for worker in workers:
        worker.wait(patience)


def prefork(log: Path, number: int, concurrency: int, pool: str = "prefork") -> Worker:
    return Worker(
        log,
        *("worker", "--pool", pool, "--concurrency", str(concurrency), "--loglevel", "warning"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        *("--hostname", f"{NAME}-{number}@%h"),
    )


def beat(log: Path) -> Worker:
    schedule = log.with_suffix(".schedule")
    return Worker(
        log, "beat", "--schedule", str(schedule), "--pidfile", "", "--loglevel", "warning"
    )


@contextmanager
def logs() -> Iterator[Path]:
    """Yield a folder for the workers' output; what is in it is shown if the benchmark fails."""
    with tempfile.TemporaryDirectory(prefix=f"{NAME}-") as name:
        try:
            yield Path(name)
        except Exception:
            for log in Path(name).glob("*.log"):
                sys.stderr.write(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}\n")
            raise


# --- CPU


_TICKS = os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    with suppress(OSError):
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [int(child) for child in found.split()]
    return []


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process and all its descendants, those that ended included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    own = sum(int(field) for field in fields[11:15]) / _TICKS
    return own + sum(cpu_of(child) for child in children(pid))


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def database_pid() -> int | None:
    """Return the process id of the whole PostgreSQL server, if it is one, and on this machine."""
    used = connections[Router.alias]
    if used.vendor != "postgresql":
        return None
    with used.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        try:
            return _parent(int(cursor.fetchone()[0]))
        except OSError:
            return None


def redis_cpu() -> float:
    """Return the CPU seconds of the Redis server so far."""
    import redis

    with redis.Redis.from_url(_REDIS) as client:
        info: Any = client.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])
