"""Views under ATOMIC_REQUESTS that raise after the refresh.

    python -m benchmarks.rollback [--views 100] [--database NAME]

Each view runs in a transaction of Django's, writes something, asks for an access token that has run
out, and raises; Django rolls the transaction back. A grant is usable afterwards if the provider
accepts the refresh token in the row, and if a next refresh works. On SQLite there is no second
connection that could commit, so the refresh is refused before anything is sent.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

from benchmarks.stage import (
    Provider,
    Table,
    database,
    make_due,
    parser,
    provider,
    store_grants,
    stored_refresh_tokens,
)
from bipsync_django import lifecycle
from bipsync_django.exceptions import BipsyncError, RefreshInsideTransaction
from bipsync_django.models import BipsyncToken

_seen: Counter[str] = Counter()


class _LaterMistake(Exception):
    pass


def view(request: HttpRequest, pk: int) -> HttpResponse:
    token = BipsyncToken.objects.get(pk=pk)
    assert token.user is not None
    get_user_model().objects.filter(pk=token.user.pk).update(last_name="rolled back")
    try:
        lifecycle.access_token(token)
    except RefreshInsideTransaction:
        _seen["refused"] += 1
    else:
        _seen["refreshed"] += 1
    raise _LaterMistake


urlpatterns = [path("<int:pk>/", view)]


@contextmanager
def _atomic_requests(alias: str) -> Iterator[None]:
    connections.settings[alias]["ATOMIC_REQUESTS"] = True
    try:
        yield
    finally:
        connections.settings[alias]["ATOMIC_REQUESTS"] = False


def _next_refresh_works(token: BipsyncToken) -> bool:
    try:
        return lifecycle.refresh(token, force=True).generation > token.generation
    except BipsyncError:
        return False


def _measure(bipsync: Provider, alias: str, views: int) -> list[object]:
    _seen.clear()
    store_grants(bipsync, views)
    bipsync.forget()
    client = Client(raise_request_exception=False)
    pks = BipsyncToken.objects.values_list("pk", flat=True)
    with _atomic_requests(alias):
        statuses = [client.get(f"/{pk}/").status_code for pk in pks]
    calls = bipsync.received()
    kept = get_user_model().objects.filter(last_name="rolled back").count()
    alive = bipsync.alive(stored_refresh_tokens())
    make_due()
    usable = sum(_next_refresh_works(token) for token in BipsyncToken.objects.all())
    return [
        statuses.count(500) - kept,
        _seen["refreshed"],
        _seen["refused"],
        calls,
        f"{alive}/{views}",
        f"{usable}/{views}",
    ]


def main() -> None:
    command = parser(__doc__, databases=["postgresql", "mariadb", "sqlite"])
    command.add_argument("--views", type=int, default=100)
    options = command.parse_args()
    settings.ROOT_URLCONF = __name__
    table = Table(
        f"rollback: {options.views} views; the goal is all usable",
        *("database", "rolled back", "refreshed", "refused", "calls", "alive", "usable"),
        width=10,
    )
    with provider() as bipsync:
        for name in options.database or options.databases:
            with database(name) as alias:
                table.row(name, *_measure(bipsync, alias, options.views))


if __name__ == "__main__":
    main()
