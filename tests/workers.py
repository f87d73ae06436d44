"""A Celery worker as a process."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bipsync_django.testing import SimulatedBipsync
from tests.databases import for_child


class Worker:
    """A Celery worker of its own process group, on the database of the test."""

    def __init__(
        self,
        pool: str,
        bipsync: SimulatedBipsync,
        broker: Path,
        folder: Path,
        *more: str,
        environment: Mapping[str, str] | None = None,
        database: str = "default",
        app: str = "tests.celery_app",
    ) -> None:
        self._log = folder / "worker.log"
        self._command = [sys.executable, "-m", "celery", "--app", app, "worker"]
        self._command += ["--pool", pool, "--concurrency", "1", "--loglevel", "debug", *more]
        self._environment = {
            **for_child(database),
            "TEST_BIPSYNC": bipsync.url,
            "TEST_BROKER": str(broker),
            **(environment or {}),
        }

    def __enter__(self) -> "Worker":
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def told(self) -> str:
        return self._log.read_text()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.05)
