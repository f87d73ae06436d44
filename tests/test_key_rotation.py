"""Keys change, and Bipsync is away, and nobody notices more than they must."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from bipsync_django.conf import get_tenant
from bipsync_django.exceptions import KeysUnavailable
from bipsync_django.models import BipsyncToken
from bipsync_django.oauth import keys
from bipsync_django.oauth.claims import validate_access_token
from bipsync_django.oauth.keys import LocalBudget
from bipsync_django.testing import SimulatedBipsync, SimulatedUser
from tests.browser import Browser, signed_in
from tests.grants import at_once

pytestmark = pytest.mark.usefixtures("database")

THREADS = 8
PERIOD = 2.0
ROUNDS = 3


@contextmanager
def rotating(bipsync: SimulatedBipsync) -> Iterator[list[str]]:
    """Sign with a new key every two seconds; a second later the one before is published no more.

    That is as hard as it can be made: a token that is a second old may be without its key.
    """
    stop, rotated = threading.Event(), []

    def rotate() -> None:
        while not stop.wait(PERIOD / 2):
            rotated.append(bipsync.rotate_keys())
            if stop.wait(PERIOD / 2):
                return
            bipsync.retire_keys()

    thread = threading.Thread(target=rotate)
    thread.start()
    try:
        yield rotated
    finally:
        stop.set()
        thread.join()


def test_keys_rotate_under_load_and_nobody_notices(bipsync: SimulatedBipsync) -> None:
    people = [
        bipsync.add_user(
            SimulatedUser(
                f"{number:024x}", f"P {number}", "P", str(number), f"p{number}@acme.example"
            )
        )
        for number in range(THREADS)
    ]
    began = time.monotonic()
    with rotating(bipsync) as rotated:

        def sign_in_again_and_again(number: int) -> int:
            done = 0
            while len(rotated) < ROUNDS:
                signed_in(bipsync, people[number].id)
                done += 1
            return done

        done = at_once(THREADS, sign_in_again_and_again)
    assert [count for count in done if isinstance(count, Exception)] == []
    assert sum(count for count in done if isinstance(count, int)) >= THREADS
    assert BipsyncToken.objects.count() == User.objects.count() == THREADS
    # A fetch a second is what sign-ins have; and one of them is there for each new key.
    assert len(rotated) <= bipsync.calls["jwks"] <= 1 + (time.monotonic() - began)


def test_while_bipsync_is_away_for_longer_than_the_cache_people_are_told_so_politely(
    bipsync: SimulatedBipsync, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    User.objects.create_user("local", password="secret")
    raw = bipsync.issue_pair().access_token
    assert validate_access_token(raw, get_tenant())
    started = Browser()
    callback = bipsync.approve(started.begin())
    bipsync.stop()
    real = time.time
    with monkeypatch.context() as patched:
        # Two hours of it. What is asked of PyJWT is the token's own affair.
        patched.setattr(keys, "time", _Clock(real, ahead=2 * 3600))
        patched.setattr(LocalBudget, "PAUSE", 0.0)
        assert validate_access_token(raw, get_tenant()), "known keys work on"
    response = started.open(callback)
    assert response.status_code == 503
    assert b'data-reason="unavailable"' in response.content
    assert response["Retry-After"] == "60"
    assert client.login(username="local", password="secret")
    with monkeypatch.context() as patched:
        patched.setattr(keys, "time", _Clock(real, ahead=25 * 3600))
        with pytest.raises(KeysUnavailable):
            validate_access_token(raw, get_tenant())
    assert client.get("/", secure=True).status_code == 200


class _Clock:
    """The time of day for one module."""

    def __init__(self, real: Any, *, ahead: float) -> None:
        self._real = real
        self._ahead = ahead

    def time(self) -> float:
        return float(self._real() + self._ahead)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)
