"""The processes of the demonstration: started apart, listened to, and never left behind."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from .local import ROOT

__all__ = ["Child", "free_port", "why_port_is_unusable"]

_REMEMBERED_LINES = 15
HOST = "127.0.0.1"


class Child:
    """A Python module that runs in a process group of its own.

    A terminal's Ctrl-C therefore does not reach it, and the children can be stopped in order.
    Every line that it writes goes to the file ``log`` and to ``on_line`` (from another thread).
    """

    def __init__(
        self,
        title: str,
        arguments: Iterable[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        on_line: Callable[[str], None],
    ) -> None:
        self.title = title
        self.log = log
        self._lines: deque[str] = deque(maxlen=_REMEMBERED_LINES)
        self._on_line = on_line
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sample_project.child", *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; ``None`` while it runs."""
        return self._process.poll()

    @property
    def last_lines(self) -> list[str]:
        """What it wrote last."""
        self._listener.join(timeout=1)
        return list(self._lines)

    def stop(self, *, patience: float) -> None:
        """Ask it to end, insist after ``patience`` seconds, and leave none of its group."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=patience)
        # Celery's beat is a process of its own, which a killed worker would leave behind.
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._listener.join(timeout=1)
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output, self.log.open("w", encoding="utf-8") as log:
            for line in output:
                log.write(line)
                log.flush()
                self._lines.append(line.rstrip())
                self._on_line(line.rstrip())


def free_port() -> int:
    """Return a port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def why_port_is_unusable(port: int) -> str | None:
    """Return why nothing can be started on ``port``, or ``None`` if something can."""
    # macOS lets one bind to an address although somebody listens on all of them.
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((HOST, port)) == 0:
            return "another program is using it"
    with socket.socket() as probe:
        # As servers do, so that a port that was in use a moment ago counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "another program is using it"
            return os.strerror(error.errno or 0).lower()
    return None


def wait_until(
    is_so: Callable[[], bool], *, seconds: float, interrupted: Callable[[], bool]
) -> bool:
    """Return whether ``is_so()`` became true within ``seconds``, and before an interruption."""
    deadline = time.monotonic() + seconds
    while not interrupted() and time.monotonic() < deadline:
        if is_so():
            return True
        time.sleep(0.1)
    return False
