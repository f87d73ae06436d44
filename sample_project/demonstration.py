"""The demonstration: the portal, a simulated Bipsync and a worker, as processes of this machine."""

import contextlib
import fcntl
import os
import re
import secrets
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Self

import requests

from .local import folder, secret_file
from .processes import HOST, Child, wait_until, why_port_is_unusable

__all__ = ["DemoFailed", "Demonstration", "Interrupted"]

_START_WITHIN = 60
_STOP_WITHIN = 5
_SITE_LINE = re.compile(r"(\d\d:\d\d:\d\d) [A-Z]+ (?:portal|bipsync_django)[.\w]*: (.*)")
_PROVIDER_REFUSAL = re.compile(r"(\d\d:\d\d:\d\d) (refused .*)")


class DemoFailed(Exception):
    """The demonstration cannot go on; the message says why and what to do."""


class Interrupted(Exception):
    """Somebody pressed Ctrl-C, or asked this process to end."""


class Demonstration:
    """The three processes on one data folder. A context manager: leaving it stops them all.

    Args:
        data: where everything is kept that outlives a run.
        port: of the portal.
        bipsync_port: of the simulated Bipsync.
        token_lifetime: of access tokens, in seconds.
        beat_seconds: how often the worker looks for tokens to refresh.
        on_event: called with time, source and a sentence for each thing that happens.
    """

    def __init__(
        self,
        *,
        data: Path,
        port: int,
        bipsync_port: int,
        token_lifetime: int,
        beat_seconds: float,
        on_event: Callable[[str, str, str], None],
    ) -> None:
        self.data = data
        self.port = port
        self.bipsync_port = bipsync_port
        self.token_lifetime = token_lifetime
        self.url = f"http://{HOST}:{port}"
        self.bipsync_url = f"http://{HOST}:{bipsync_port}"
        self.stop_requested = threading.Event()
        self._beat_seconds = beat_seconds
        self._on_event = on_event
        self._children: list[Child] = []
        self._worker_ready = threading.Event()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._request_stop)
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Bipsync last: a refresh whose answer is lost is a grant that is lost.
        for child in reversed(self._children):
            child.stop(patience=_STOP_WITHIN)
        self._open.close()

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested.set()

    # Before anything runs

    def prepare(self) -> str:
        """Make everything ready on disk; return the password of the local administrator."""
        for option, port in (("--port", self.port), ("--bipsync-port", self.bipsync_port)):
            reason = why_port_is_unusable(port)
            if reason is not None:
                raise DemoFailed(
                    f"Port {port} cannot be used: {reason}.\n"
                    f"Stop that program, or choose another port with {option}: "
                    f'make demo ARGS="{option} {port + 100}"'
                )
        os.environ.update(
            DJANGO_SETTINGS_MODULE="sample_project.settings",
            PORTAL_DATA=str(self.data),
            PORTAL_PORT=str(self.port),
            PORTAL_BIPSYNC_URL=self.bipsync_url,
            PORTAL_BEAT_SECONDS=str(self._beat_seconds),
            PORTAL_DEBUG="0",
            PYTHONUTF8="1",
            PYTHONUNBUFFERED="1",
        )
        folder("logs")
        self._lock_data()
        return _prepare_database()

    def _lock_data(self) -> None:
        lock = self._open.enter_context((self.data / "lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoFailed(
                f"A demonstration is running already on the data in {self.data}.\n"
                "Stop that one, or give this one a folder of its own with --data."
            ) from None

    # Running

    def start(self) -> None:
        """Start everything and wait until it answers. Raises ``DemoFailed``."""
        callbacks = [
            f"--redirect-uri=http://{host}:{self.port}/bipsync/callback/"
            for host in (HOST, "localhost")
        ]
        self._start(
            "Bipsync",
            "sample_project.provider",
            f"--port={self.bipsync_port}",
            f"--access-token-lifetime={self.token_lifetime}",
            f"--state={self.data / 'bipsync-state.json'}",
            *callbacks,
        )
        # --insecure: Django's own server shows static files to developers only, otherwise.
        address = f"{HOST}:{self.port}"
        self._start("portal", "django", "runserver", "--noreload", "--insecure", address)
        self._start(
            "worker",
            *("celery", "--quiet", "-A", "sample_project", "worker", "-B"),
            *("--pool=solo", "--loglevel=WARNING"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        )
        for title, is_ready in (
            ("Bipsync", lambda: _answers(f"{self.bipsync_url}/v1/oauth/jwks")),
            ("portal", lambda: _answers(f"{self.url}/")),
            ("worker", self._worker_ready.is_set),
        ):
            if not self.wait_until(is_ready, seconds=_START_WITHIN):
                raise DemoFailed(
                    f"The {title} was not ready within {_START_WITHIN} seconds; "
                    f"its log is in {self.data / 'logs'}."
                )

    def _start(self, title: str, *arguments: str) -> None:
        self.raise_if_over()
        self._children.append(
            Child(
                title,
                arguments,
                environment=os.environ,
                log=self.data / "logs" / f"{title.lower()}.log",
                on_line=lambda line: self._hear(title, line),
            )
        )

    def _hear(self, title: str, line: str) -> None:
        match = (_PROVIDER_REFUSAL if title == "Bipsync" else _SITE_LINE).fullmatch(line)
        if match is None:
            return
        at, sentence = match.groups()
        if sentence == "The worker is ready.":
            self._worker_ready.set()
        else:
            self._on_event(at, title, sentence)

    def wait_until(self, is_so: Callable[[], bool], *, seconds: float) -> bool:
        """Return whether ``is_so()`` became true within ``seconds``.

        Raises ``Interrupted``, or ``DemoFailed`` when a process has ended meanwhile.
        """
        was_so = wait_until(is_so, seconds=seconds, interrupted=self._is_over)
        self.raise_if_over()
        return was_so

    def raise_if_over(self) -> None:
        """Raise ``Interrupted`` or ``DemoFailed`` when this cannot go on."""
        if self.stop_requested.is_set():
            raise Interrupted
        for child in self._children:
            if child.status is not None:
                how = (
                    f"exit status {child.status}"
                    if child.status >= 0
                    else signal.Signals(-child.status).name
                )
                said = "\n".join(f"    {line}" for line in child.last_lines)
                raise DemoFailed(
                    f"The {child.title} has ended by itself ({how}). Its last words"
                    f" (all of them are in {child.log}):\n{said or '    (none)'}"
                )

    def _is_over(self) -> bool:
        return self.stop_requested.is_set() or any(c.status is not None for c in self._children)

    def run(self) -> None:
        """Go on until somebody wants it to stop. Raises ``Interrupted`` or ``DemoFailed``."""
        while True:
            self.stop_requested.wait(0.3)
            self.raise_if_over()


def _answers(url: str) -> bool:
    with requests.Session() as session:
        # A proxy from the environment must not come between this machine and itself.
        session.trust_env = False
        try:
            return session.get(url, timeout=5).status_code == 200
        except requests.RequestException:
            return False


def _prepare_database() -> str:
    import django
    from django.core.management import call_command

    django.setup()

    from django.contrib.auth import get_user_model
    from django.db import connections

    call_command("migrate", verbosity=0, interactive=False)
    password_file = secret_file("admin-password", lambda: secrets.token_urlsafe(9))
    password = password_file.read_text(encoding="utf-8")
    administrator, _ = get_user_model()._default_manager.get_or_create(
        username="admin", defaults={"is_staff": True, "is_superuser": True}
    )
    if not administrator.check_password(password):
        administrator.set_password(password)
        administrator.save(update_fields=["password"])
    connections.close_all()
    return password
