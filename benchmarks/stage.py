"""What the benchmarks have in common: databases, a provider, grants, and tables."""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.managers import BaseManager
from typing import Any, NamedTuple, cast

os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"

import django

django.setup()

from django.conf import settings
from django.contrib.auth.models import User
from django.db import connections
from django.utils import timezone

from bipsync_django.models import BipsyncToken
from bipsync_django.testing import SimulatedBipsync, SimulatedUser
from bipsync_django.testing.messages import Request, Response
from bipsync_django.testing.provider import token_parameters
from bipsync_django.testing.store import digest
from tests import databases
from tests.databases import Router

RUN = os.environ["BENCH_RUN"]
"""What the names of this run's databases and queues end in."""

ALIASES = {"postgresql": "postgresql", "mariadb": "mariadb", "sqlite": "default"}
"""Names on the command line → aliases in the settings."""


# --- the command line


def parser(description: str | None, *, databases: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return a parser that shows a module's docstring, with ``--database`` if there is a choice."""
    command = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if databases:
        command.add_argument(
            "--database",
            action="append",
            choices=list(ALIASES),
            help=f"may be repeated; default: {', '.join(databases)}",
        )
        command.set_defaults(databases=list(databases))
    # Ends what was started, and drops what was made, when the benchmark is told to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return command


# --- tables


class Table:
    """A table whose rows are printed as they are measured; the first column is text."""

    def __init__(self, title: str, *columns: str, width: int = 24) -> None:
        self._widths = [max(width, len(columns[0])), *(max(len(c), 6) for c in columns[1:])]
        print(f"\n{title}\n")
        self.row(*columns)
        self.row(*("-" * width for width in self._widths))

    def row(self, *cells: object) -> None:
        texts = [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells]
        first, *others = zip(texts, self._widths, strict=True)
        line = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
        print("  ".join(line).rstrip(), flush=True)


# --- databases


@contextmanager
def database(name: str) -> Iterator[str]:
    """Make an empty database, use it for everything, and drop it afterwards; yield its alias."""
    alias = ALIASES[name]
    if alias in databases.MISSING:
        raise SystemExit(f"{name} cannot be used here: {databases.MISSING[alias]}")
    Router.alias = os.environ["BENCH_ALIAS"] = alias
    creation = connections[alias].creation
    creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
    try:
        yield alias
    finally:
        _drop(alias)


def _drop(alias: str) -> None:
    connection = connections[alias]
    name = connection.settings_dict["NAME"]
    if connection.vendor == "postgresql":
        # Nobody else has any business there, and the server may not have noticed yet who is dead.
        with connection._nodb_cursor() as cursor:
            end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            cursor.execute(f"{end} AND pid <> pg_backend_pid()", [name])
    connection.creation.destroy_test_db(name, verbosity=0)


class Queries:
    """Counts the queries of a block."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(
        self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        self.count += 1
        return execute(sql, params, many, context)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what is asked of the database in use."""
        with connections[Router.alias].execute_wrapper(self):
            yield


# --- the provider


class Call(NamedTuple):
    """A refresh that the provider decided on: which token, how, and when (seconds, epoch)."""

    token: str
    status: int
    begun: float
    answered: float


class Issued(NamedTuple):
    subject: str
    access_token: str
    refresh_token: str


class Provider(SimulatedBipsync):
    """A simulated Bipsync that remembers every refresh, to be asked from other processes.

    What other processes use are methods: a proxy has no attributes.
    """

    def __init__(self) -> None:
        super().__init__(users=[])
        self._calls: list[Call] = []

    def configuration(self) -> dict[str, object]:
        """Return the settings to use it with."""
        return self.settings

    def switch(self, **switches: object) -> None:
        """Set switches such as ``latency``."""
        for name, value in switches.items():
            setattr(self, name, value)

    def find_user(self, user: str | SimulatedUser | None = None) -> SimulatedUser:
        # The original looks at everybody, which is too slow for ten thousand people.
        known = self.users.get(user) if isinstance(user, str) else None
        return known or super().find_user(user)

    def sign_in(self, count: int) -> list[Issued]:
        """Let ``count`` new people sign in; their access tokens have run out."""
        issued = []
        for number in range(len(self.users), len(self.users) + count):
            subject = f"{number:024x}"
            person = SimulatedUser(subject, f"Person {number}", "Person", str(number), "")
            pair = self.issue_pair(person, lifetime=-1)
            issued.append(Issued(subject, pair.access_token, pair.refresh_token))
        return issued

    def answer_token_request(self, request: Request) -> Response:
        begun = time.time()
        response = super().answer_token_request(request)
        token = digest(str(token_parameters(request).get("refresh_token")))
        self._calls.append(Call(token, response.status, begun, time.time()))
        return response

    def refreshes(self) -> list[Call]:
        """Return the refreshes that it decided on, in order."""
        return list(self._calls)

    def received(self) -> int:
        """Return how many requests to refresh came in since ``forget()``, failed ones included."""
        return self.calls["refresh"]

    def forget(self) -> None:
        """Forget what was called so far."""
        self.reset_calls()
        self._calls.clear()

    def alive(self, refresh_tokens: list[str]) -> int:
        """Return how many of the tokens could be used now."""
        return sum(self.is_alive(token) for token in refresh_tokens)

    def cpu(self) -> float:
        """Return the CPU seconds of the provider's process so far."""
        return time.process_time()


class _Manager(BaseManager):
    pass


# Started at once: a manager looks at all attributes, and there is no address before.
_Manager.register("Provider", lambda: Provider().start())


def _end_with(parent: int) -> None:
    """In the provider's process: end as soon as the benchmark has ended, however that was."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def provider() -> Iterator[Provider]:
    """Run a provider in a process of its own, and point the settings to it."""
    manager = _Manager(ctx=get_context("fork"))
    manager.start(_end_with, (os.getpid(),))
    with manager:
        # A proxy, which passes on every public method.
        bipsync = cast(Provider, manager.Provider())  # type: ignore[attr-defined]
        settings.BIPSYNC = {**settings.BIPSYNC, **bipsync.configuration()}
        os.environ["TEST_BIPSYNC"] = settings.BIPSYNC["API_URL"]
        yield bipsync


# --- grants


def store_grants(bipsync: Provider, count: int) -> None:
    """Store ``count`` live grants that are due, of as many people, in the place of all others."""
    User.objects.all().delete()
    for stored in range(0, count, 1000):
        _store(bipsync.sign_in(min(1000, count - stored)))
    make_due()


def _store(issued: list[Issued]) -> None:
    User.objects.bulk_create([User(username=one.subject, password="!") for one in issued])
    users = dict(
        User.objects.filter(username__in=[one.subject for one in issued]).values_list(
            "username", "pk"
        )
    )
    rows = []
    for one in issued:
        row = BipsyncToken(
            tenant=settings.BIPSYNC["CLIENT"],
            client_id=settings.BIPSYNC["CLIENT_ID"],
            subject=one.subject,
            user_id=users[one.subject],
            generation=1,
            validated_generation=1,
            scopes="users:read",
        )
        row.access_token = row.seal("access_token", one.access_token)
        row.refresh_token = row.seal("refresh_token", one.refresh_token)
        rows.append(row)
    BipsyncToken.objects.bulk_create(rows)


def make_due() -> None:
    """Let the access token of every grant have run out a second ago."""
    now = timezone.now()
    BipsyncToken.objects.update(
        obtained_at=now - timedelta(hours=1),
        signed_in_at=now - timedelta(hours=1),
        access_expires_at=now - timedelta(seconds=1),
        next_refresh_at=now - timedelta(seconds=1),
    )


def stored_refresh_tokens() -> list[str]:
    """Return the refresh tokens of all rows."""
    rows = BipsyncToken.objects.order_by("pk")
    return [token for row in rows if (token := row.unseal("refresh_token")) is not None]
