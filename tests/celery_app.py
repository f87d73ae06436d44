"""A site's Celery app, with a broker made of folders, or the one that a test names."""

import atexit
import os
import tempfile
from pathlib import Path
from typing import Any

from celery import Celery

from bipsync_django.schedule import BEAT_SCHEDULE

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

_temporary = tempfile.TemporaryDirectory(prefix="bipsync-broker-", ignore_cleanup_errors=True)
FOLDER = Path(os.environ.get("TEST_BROKER", _temporary.name))
atexit.register(_temporary.cleanup)


def _broker() -> dict[str, Any]:
    if url := os.environ.get("TEST_BROKER_URL"):
        name = os.environ["TEST_BROKER_NAME"]
        prefix = {"global_keyprefix": f"{name}:"} if url.startswith("redis:") else {}
        return {
            "broker_url": url,
            "broker_transport_options": prefix,
            "result_backend": os.environ["TEST_RESULT_BACKEND"],
            "result_backend_transport_options": prefix,
            "task_default_queue": name,
        }
    return {
        "broker_url": "filesystem://",
        "broker_transport": "bipsync_django.testing.broker:Transport",
        "broker_transport_options": {
            "data_folder_in": str(FOLDER),
            "data_folder_out": str(FOLDER),
            "control_folder": str(FOLDER / "control"),
        },
    }


app = Celery("tests")
app.conf.update(
    **_broker(),
    broker_connection_retry_on_startup=True,
    beat_schedule={name: {**entry, "schedule": 1.0} for name, entry in BEAT_SCHEDULE.items()},
)
app.autodiscover_tasks()

if folder := os.environ.get("TEST_TRACKER"):
    from tests import trackers

    trackers.start(Path(folder))


@app.task(name="site.report", ignore_result=True)
def report(pk: int) -> None:
    """A task of the site's own that needs Bipsync."""
    from bipsync_django.api import api_session
    from bipsync_django.models import BipsyncToken

    person: Any = BipsyncToken.objects.get(pk=pk).user
    with api_session(person) as session:
        session.get("/v1/users/me")
