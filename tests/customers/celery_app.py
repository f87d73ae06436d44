"""Celery of a site with a schema for each customer; docs/installing.md shows the same."""

import os
from typing import Any

from celery import current_app, shared_task
from celery.signals import before_task_publish, task_postrun, task_prerun
from django.db import connection
from django_tenants.utils import get_tenant_model, schema_context

from bipsync_django.schedule import BEAT_SCHEDULE

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.customers.settings")

from tests.celery_app import app

__all__ = ["app"]


@before_task_publish.connect
def name_schema(headers: dict[str, Any], **kwargs: Any) -> None:
    """Let each message say which customer it is about."""
    headers["schema"] = connection.schema_name  # type: ignore[attr-defined]


@task_prerun.connect
def enter_schema(task: Any, **kwargs: Any) -> None:
    """Let the worker see the tables of that customer."""
    connection.set_schema(task.request.get("schema") or "public")  # type: ignore[attr-defined]


@task_postrun.connect
def leave_schema(**kwargs: Any) -> None:
    """Let the next task start anew."""
    connection.set_schema_to_public()  # type: ignore[attr-defined]


@shared_task(ignore_result=True)
def for_each_customer(task: str) -> None:
    """Hand ``task`` to the workers once for each customer."""
    for customer in get_tenant_model().objects.exclude(schema_name="public"):
        with schema_context(customer.schema_name):
            current_app.send_task(task)


app.conf.beat_schedule = {
    name: {
        **entry,
        "task": for_each_customer.name,
        "args": (entry["task"],),
        "schedule": 1.0,
    }
    for name, entry in BEAT_SCHEDULE.items()
}
