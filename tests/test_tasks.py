"""Celery: what goes through a broker, and a real worker with beat on a real transport."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.utils import timezone

from bipsync_django import tasks
from bipsync_django.models import BipsyncToken, SpentState
from bipsync_django.schedule import BEAT_SCHEDULE
from bipsync_django.testing import SimulatedBipsync
from tests.celery_app import FOLDER
from tests.grants import connect, expire, refresh_token_of, reload

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
    assert f"[[{token.pk}]," in message
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
    user = None
    for person in bipsync.users:
        token = expire(connect(bipsync, person=person, user=user))
        user = token.user
    tasks.refresh_due_tokens()
    assert len(list(broker.glob("*.msg"))) == len(bipsync.users) > 2


def test_a_task_that_runs_twice_refreshes_once(
    token: BipsyncToken, bipsync: SimulatedBipsync
) -> None:
    expire(token)
    tasks.refresh_token(token.pk)
    tasks.refresh_token(token.pk)
    assert bipsync.calls["refresh"] == 1


def test_spent_states_are_forgotten_when_they_cannot_come_back(db: None, broker: Path) -> None:
    now = timezone.now()
    SpentState.objects.create(digest="old", expires_at=now - timedelta(hours=1))
    SpentState.objects.create(digest="new", expires_at=now)
    tasks.prune()
    assert [state.digest for state in SpentState.objects.all()] == ["new"]


def test_a_real_worker_with_beat_refreshes_what_is_due(
    token: BipsyncToken, bipsync: SimulatedBipsync, broker: Path, tmp_path: Path
) -> None:
    expired = expire(token)
    before = refresh_token_of(token)
    connections["default"].close()
    log = tmp_path / "worker.log"
    environment: dict[str, Any] = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "TEST_SQLITE": str(connections["default"].settings_dict["NAME"]),
        "TEST_BIPSYNC": bipsync.url,
        "TEST_BROKER": str(broker),
    }
    command = [sys.executable, "-m", "celery", "--app", "tests.celery_app", "worker", "--beat"]
    command += ["--pool", "solo", "--loglevel", "debug", "--schedule", str(tmp_path / "beat")]
    with log.open("wb") as output:
        worker = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + 60
            while reload(token).generation == expired.generation:
                assert worker.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        finally:
            worker.terminate()
            assert worker.wait(timeout=20) == 0, log.read_text()
    after = refresh_token_of(token)
    assert bipsync.is_alive(after)
    assert not bipsync.is_alive(before)
    assert bipsync.calls["refresh"] == 1
    for secret in (before, after, "portal-secret"):
        assert secret not in log.read_text()


def test_the_schedule_names_tasks_that_exist() -> None:
    assert [entry["task"] for entry in BEAT_SCHEDULE.values()] == [
        tasks.refresh_due_tokens.name,
        tasks.prune.name,
    ]
