"""The admin's panel with a hundred thousand tokens and a million events, beside an empty one.

    python -m benchmarks.panel [--tokens 100000] [--events 1000000] [--database …]

All are measured in one run, with Django's test client as the browser: first the database with one
token, then with as many as a page of the list shows, then filled. Each page is asked for twenty
times; the median counts. The second is there because rows that are shown have to be drawn, however
many there are. The tokens are
active, but one in a hundred needs sign-in and one in a thousand cannot be refreshed. The events
are spread over all tokens, and there are counters of every hour of a year.
"""

import statistics
import time
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import connections
from django.test import Client
from django.utils import timezone

from benchmarks.rows import insert, moment, text
from benchmarks.stage import Queries, Table, database, parser
from bipsync_django.admin import BipsyncTokenAdmin
from bipsync_django.models import BipsyncToken, HourlyCount, TokenEvent
from tests.databases import Router

TIMES = 20
LIST = "/admin/bipsync_django/bipsynctoken/"
_HOURS = 365 * 24
_PAGE = BipsyncTokenAdmin.list_per_page
_NAMES = ("refreshed", "refresh_failed", "refresh_dead", "signed_in")


def _fill(tokens: int, events: int) -> None:
    vendor = connections[Router.alias].vendor
    tenant = settings.BIPSYNC["CLIENT"]
    now = timezone.now()
    modulo = "MOD" if vendor == "mysql" else "%%"
    everyone = (text(vendor), list[object]())
    number = "n + 1000000"
    insert(get_user_model(), tokens, {"id": (number, []), "username": everyone})
    insert(
        BipsyncToken,
        tokens,
        {
            "id": ("n", []),
            "user": (number, []),
            "subject": everyone,
            "tenant": ("%s", [tenant]),
            "access_token": ("%s", ["x" * 1500]),
            "refresh_token": ("%s", ["x" * 1500]),
            "status": (
                f"CASE WHEN n {modulo} 100 = 0 THEN %s ELSE %s END",
                ["needs_sign_in", "active"],
            ),
            "attempt": (f"CASE WHEN n {modulo} 1000 = 1 THEN 3 ELSE 0 END", []),
            "access_expires_at": moment(vendor, now + timedelta(minutes=5)),
            "next_refresh_at": moment(vendor, now),
            "signed_in_at": moment(vendor, now - timedelta(days=3)),
        },
    )
    insert(
        TokenEvent,
        events,
        {
            "id": ("n", []),
            "token": (f"1 + n {modulo} {tokens}", []),
            "tenant": ("%s", [tenant]),
            "name": ("%s", ["refresh_failed"]),
            "reason": ("%s", ["timeout"]),
            "at": moment(vendor, now - timedelta(days=2)),
        },
    )
    hour = now.replace(minute=0, second=0, microsecond=0)
    HourlyCount.objects.using(Router.alias).bulk_create(
        (
            HourlyCount(tenant=tenant, hour=hour - timedelta(hours=ago), name=name, count=ago)
            for ago in range(_HOURS)
            for name in _NAMES
        ),
        batch_size=1000,
    )


def _fill_page(start: int) -> None:
    """Add as many of each sort as a page shows, behind those that ``_fill`` makes."""
    tenant, now = settings.BIPSYNC["CLIENT"], timezone.now()
    sorts: list[dict[str, Any]] = [{}, {"status": "needs_sign_in"}, {"attempt": 3}]
    for sort, values in enumerate(sorts):
        users = get_user_model()._default_manager.bulk_create(
            get_user_model()(username=f"{sort}-{number}") for number in range(_PAGE - 1)
        )
        BipsyncToken.objects.bulk_create(
            BipsyncToken(
                pk=start + (sort + 2) * _PAGE + place,
                user=user,
                tenant=tenant,
                subject=user.get_username(),
                access_expires_at=now + timedelta(minutes=30),
                next_refresh_at=now + timedelta(minutes=20),
                signed_in_at=now,
                **values,
            )
            for place, user in enumerate(users)
        )


def _measure(client: Client, url: str) -> tuple[float, int]:
    """Return the median of the milliseconds that a page takes, and its number of queries."""
    client.get(url)
    queries = Queries()
    with queries.counted():
        assert client.get(url).status_code == 200
    seconds = []
    for _ in range(TIMES):
        started = time.perf_counter()
        client.get(url)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) * 1000, queries.count


def main() -> None:
    command = parser(__doc__, databases=["postgresql", "mariadb", "sqlite"])
    command.add_argument("--tokens", type=int, default=100_000)
    command.add_argument("--events", type=int, default=1_000_000)
    options = command.parse_args()
    table = Table(
        f"panel: {options.tokens:,} tokens and {options.events:,} events beside none; "
        "the goal is a ratio of about 1",
        *("page", "one ms", "a page ms", "full ms", "ratio", "to a page", "queries"),
        width=44,
    )
    for name in options.database or options.databases:
        with database(name):
            client = Client()
            boss = get_user_model()._default_manager.create(
                username="boss", is_superuser=True, is_staff=True
            )
            client.force_login(boss)
            one = BipsyncToken.objects.create(
                pk=options.tokens + _PAGE, tenant=settings.BIPSYNC["CLIENT"], subject="one"
            )
            pages = {
                "the list, and the panel above": LIST,
                "those that need sign-in": f"{LIST}?status__exact=needs_sign_in",
                "those that cannot be refreshed": f"{LIST}?trouble=failing",
                "one connection": f"{LIST}{one.pk}/change/",
            }
            alone = {page: _measure(client, url) for page, url in pages.items()}
            _fill_page(options.tokens)
            few = {page: _measure(client, url) for page, url in pages.items()}
            _fill(options.tokens, options.events)
            for page, url in pages.items():
                full, queries = _measure(client, url)
                before, shown = alone[page][0], few[page][0]
                told = f"{few[page][1]}, {queries}"
                table.row(f"{name}, {page}", before, shown, full, full / before, full / shown, told)


if __name__ == "__main__":
    main()
