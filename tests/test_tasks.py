"""Celery: what goes through a broker, and a real worker with beat on a real transport."""

import base64
import json
import os
import signal
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from bipsync_django import events, lifecycle, tasks
from bipsync_django.lifecycle import Identity
from bipsync_django.models import BipsyncToken, HourlyCount, SpentState, TokenEvent
from bipsync_django.schedule import BEAT_SCHEDULE
from bipsync_django.testing import SimulatedBipsync
from tests.celery_app import FOLDER
from tests.grants import connect, expire, refresh_token_of, reload
from tests.workers import Worker

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def token(bipsync: SimulatedBipsync) -> BipsyncToken:
    token = connect(bipsync)
    bipsync.reset_calls()
    return token


@pytest.fixture
def broker() -> Iterator[Path]:
    """The folder where messages lie until they are taken, empty."""

    def empty() -> None:
        for path in FOLDER.glob("*.msg"):
            path.unlink()

    empty()
    yield FOLDER
    empty()


def test_a_message_carries_the_rows_id_and_nothing_else_of_it(
    token: BipsyncToken, broker: Path
) -> None:
    secrets = [expire(token).unseal("access_token"), refresh_token_of(token)]
    tasks.refresh_due_tokens()
    (message_file,) = broker.glob("*.msg")
    message = message_file.read_text()
    message += base64.b64decode(json.loads(message)["body"]).decode()
    assert f'[[{token.pk}, "{Identity.of(token).digest}"],' in message
    assert "bipsync_django.tasks.refresh_token" in message
    for secret in [*secrets, token.subject, "portal-secret"]:
        assert secret is not None
        assert secret not in message


def test_a_row_is_handed_out_once_although_two_beats_run(token: BipsyncToken, broker: Path) -> None:
    expire(token)
    tasks.refresh_due_tokens()
    tasks.refresh_due_tokens()
    assert len(list(broker.glob("*.msg"))) == 1


def test_a_lost_message_costs_ten_minutes_and_no_grant(token: BipsyncToken, broker: Path) -> None:
    expire(token)
    tasks.refresh_due_tokens()
    due_again = reload(token).next_refresh_at
    assert due_again is not None
    assert timedelta(minutes=9) < due_again - timezone.now() <= timedelta(minutes=10)
    BipsyncToken.objects.update(next_refresh_at=timezone.now())
    tasks.refresh_due_tokens()
    assert len(list(broker.glob("*.msg"))) == 2


def test_more_rows_than_one_batch_are_all_handed_out(
    bipsync: SimulatedBipsync, broker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_BATCH", 2)
    for person in bipsync.users:
        expire(connect(bipsync, person=person))
    tasks.refresh_due_tokens()
    assert len(list(broker.glob("*.msg"))) == len(bipsync.users) > 2


def test_a_task_that_runs_twice_refreshes_once(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    expire(token)
    tasks.refresh_token(token.pk, Identity.of(token).digest)
    tasks.refresh_token(token.pk, Identity.of(token).digest)
    assert bipsync.calls["refresh"] == 1


def test_spent_states_are_forgotten_when_they_cannot_come_back(db: None, broker: Path) -> None:
    now = timezone.now()
    SpentState.objects.create(digest="old", expires_at=now - timedelta(hours=1))
    SpentState.objects.create(digest="new", expires_at=now)
    tasks.prune()
    assert [state.digest for state in SpentState.objects.all()] == ["new"]


def test_old_events_and_counts_are_deleted_and_young_ones_kept(
    token: BipsyncToken, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.BIPSYNC = {**settings.BIPSYNC, "KEEP_EVENTS": 30 * 86_400}
    monkeypatch.setattr(events, "_BATCH", 2)
    old = timezone.now() - timedelta(days=31)
    young = [TokenEvent.objects.get().pk, HourlyCount.objects.get().pk]
    for number in range(5):
        TokenEvent.objects.create(tenant="acme", name="refresh_failed", at=old)
        HourlyCount.objects.create(tenant="acme", name=str(number), hour=old)
    tasks.prune()
    assert [TokenEvent.objects.get().pk, HourlyCount.objects.get().pk] == young


def test_pruning_is_bounded_and_goes_on_next_time(
    token: BipsyncToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_BATCH", 2)
    monkeypatch.setattr(events, "_BATCHES_AT_ONCE", 2)
    old = timezone.now() - timedelta(days=400)
    for _ in range(5):
        TokenEvent.objects.create(tenant="acme", name="refresh_failed", at=old)
    assert [events.prune() for _ in range(3)] == [4, 1, 0]


def test_a_message_that_waited_for_an_hour_is_not_worked_on(
    token: BipsyncToken, broker: Path
) -> None:
    expire(token)
    tasks.refresh_due_tokens()
    (message,) = broker.glob("*.msg")
    expires = json.loads(message.read_text())["headers"]["expires"]
    assert timedelta(minutes=9) < datetime.fromisoformat(expires) - timezone.now()
    assert datetime.fromisoformat(expires) - timezone.now() <= lifecycle.TAKEN_FOR


def test_tasks_are_acknowledged_when_done_and_have_limits() -> None:
    refresh = tasks.refresh_token
    assert (refresh.acks_late, refresh.reject_on_worker_lost) == (True, True)
    # The hard limit leaves room for what the soft one waits for: a call, and a database that
    # comes back within a minute.
    assert refresh.time_limit is not None
    assert refresh.time_limit > 10 + 60
    for name in tasks.__all__:
        task = getattr(tasks, name)
        assert task.ignore_result
        assert task.soft_time_limit < task.time_limit


@pytest.mark.parametrize("interruption", ["SIGTERM to all processes", "soft time limit"])
def test_a_worker_that_is_interrupted_stores_the_new_pair_first(
    token: BipsyncToken, bipsync: SimulatedBipsync, broker: Path, tmp_path: Path, interruption: str
) -> None:
    before = refresh_token_of(expire(token))
    bipsync.latency = 2.0
    limit = 1 if interruption == "soft time limit" else 60
    message = (token.pk, Identity.of(token).digest)
    tasks.refresh_token.apply_async(message, soft_time_limit=limit)
    with Worker("prefork", bipsync, broker, tmp_path) as worker:
        worker.wait_until(lambda: bipsync.calls["refresh"] == 1)
        if interruption != "soft time limit":
            os.killpg(worker.process.pid, signal.SIGTERM)
        worker.wait_until(lambda: reload(token).generation > token.generation)
        after = refresh_token_of(token)
        if interruption == "soft time limit":
            worker.wait_until(lambda: "SoftTimeLimitExceeded" in worker.told())
    assert bipsync.is_alive(after)
    assert not bipsync.is_alive(before)
    assert bipsync.calls["refresh"] == 1


def test_a_real_worker_with_beat_refreshes_what_is_due(
    token: BipsyncToken, bipsync: SimulatedBipsync, broker: Path, tmp_path: Path
) -> None:
    expired = expire(token)
    before = refresh_token_of(token)
    more = ("--beat", "--schedule", str(tmp_path / "beat"))
    with Worker("solo", bipsync, broker, tmp_path, *more) as worker:
        worker.wait_until(lambda: reload(token).generation > expired.generation)
    assert worker.process.returncode == 0, worker.told()
    after = refresh_token_of(token)
    assert bipsync.is_alive(after)
    assert not bipsync.is_alive(before)
    assert bipsync.calls["refresh"] == 1
    for secret in (before, after, "portal-secret"):
        assert secret not in worker.told()


def test_the_schedule_names_tasks_that_exist() -> None:
    assert [entry["task"] for entry in BEAT_SCHEDULE.values()] == [
        tasks.refresh_due_tokens.name,
        tasks.prune.name,
    ]
