"""The benchmarks' Celery app. What a run is about comes from its environment (``workers``)."""

import os
from datetime import timedelta

import requests
from celery import Celery
from django.conf import settings

from benchmarks import stage  # noqa: F401 - settings and apps first
from benchmarks.workers import BROKERS, NAME
from bipsync_django import breaker, lifecycle, tasks
from bipsync_django.lifecycle import background

app = Celery("benchmarks")
app.conf.update(
    BROKERS[os.environ["BENCH_BROKER"]].settings,
    task_default_queue=NAME,
    broker_connection_retry_on_startup=True,
    worker_enable_remote_control=False,
)
# Otherwise Celery opens a connection for each task, whatever CONN_MAX_AGE says.
app.conf.CELERY_DB_REUSE_MAX = int(os.environ.get("BENCH_DB_REUSE", "1000"))
app.autodiscover_tasks()

if tick := os.environ.get("BENCH_TICK"):
    app.conf.beat_schedule = {
        "sweep": {
            "task": tasks.refresh_due_tokens.name,
            "schedule": float(tick),
            "options": {"expires": float(tick)},
        }
    }
if taken_for := os.environ.get("BENCH_TAKEN_FOR"):
    # The one is how long a row is set aside, the other how long its message is good.
    background.TAKEN_FOR = lifecycle.TAKEN_FOR = timedelta(seconds=float(taken_for))
if held_back := os.environ.get("BENCH_HELD_BACK"):
    breaker.HELD_BACK = timedelta(seconds=float(held_back))


@app.task(name="benchmarks.bare_call", ignore_result=True, acks_late=True)
def bare_call(refresh_token: str) -> None:
    """The HTTP call of a refresh and nothing else: the new pair is thrown away."""
    requests.post(
        settings.BIPSYNC["TOKEN_URL"],
        data={
            "grant_type": "refresh_token",
            "refresh_token": refresh_token,
            "client_id": settings.BIPSYNC["CLIENT_ID"],
            "client_secret": settings.BIPSYNC["CLIENT_SECRET"],
        },
        timeout=10,
    ).raise_for_status()
