"""Grants to test with: signed in through the real flow, then moved in time."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

from django.contrib.auth import get_user_model
from django.db import connections
from django.utils import timezone

from bipsync_django import lifecycle
from bipsync_django.conf import get_tenant
from bipsync_django.models import BipsyncToken
from bipsync_django.oauth.claims import validate_access_token
from bipsync_django.oauth.client import TokenPair
from bipsync_django.testing import SimulatedBipsync

T = TypeVar("T")


def connect(bipsync: SimulatedBipsync, *, user: Any = None, person: Any = None) -> BipsyncToken:
    """Store a live grant of ``person`` for ``user`` (a new one by default)."""
    issued = bipsync.issue_pair(person)
    tenant = get_tenant()
    claims = validate_access_token(issued.access_token, tenant, from_provider=True)
    site_user = user or get_user_model().objects.create_user(f"user-{claims.subject[-8:]}")
    return lifecycle.sign_in(
        tenant,
        claims,
        TokenPair(issued.access_token, issued.refresh_token, issued.expires_in),
        scopes=tenant.scopes,
        resolve_user=lambda row: row.user or site_user,
    )


def expire(token: BipsyncToken, *, seconds_ago: float = 1) -> BipsyncToken:
    """Let the access token have expired, as if an hour had passed."""
    now = timezone.now()
    BipsyncToken.objects.filter(pk=token.pk).update(
        obtained_at=now - timedelta(hours=1),
        access_expires_at=now - timedelta(seconds=seconds_ago),
        next_refresh_at=now - timedelta(seconds=seconds_ago),
    )
    return reload(token)


def nearly_expire(token: BipsyncToken, *, seconds_left: float = 30) -> BipsyncToken:
    """Let a refresh be due while the access token still works."""
    return expire(token, seconds_ago=-seconds_left)


def reload(token: BipsyncToken) -> BipsyncToken:
    return BipsyncToken.objects.get(pk=token.pk)


def refresh_token_of(token: BipsyncToken) -> str:
    refresh_token = reload(token).unseal("refresh_token")
    assert refresh_token is not None
    return refresh_token


def at_once(count: int, work: Callable[[int], T]) -> list[T | Exception]:
    """Run ``work`` in ``count`` threads that start together; errors are returned."""
    barrier = threading.Barrier(count)

    def run(number: int) -> T | Exception:
        barrier.wait()
        try:
            return work(number)
        except Exception as error:  # noqa: BLE001 - the caller looks at it
            return error
        finally:
            connections.close_all()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
