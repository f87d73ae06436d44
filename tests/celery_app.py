"""A site's Celery app, with a broker made of folders."""

import atexit
import os
import tempfile
from pathlib import Path

from celery import Celery

from bipsync_django.schedule import BEAT_SCHEDULE

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

_temporary = tempfile.TemporaryDirectory(prefix="bipsync-broker-", ignore_cleanup_errors=True)
FOLDER = Path(os.environ.get("TEST_BROKER", _temporary.name))
atexit.register(_temporary.cleanup)

app = Celery("tests")
app.conf.update(
    broker_url="filesystem://",
    broker_transport="bipsync_django.testing.broker:Transport",
    broker_transport_options={
        "data_folder_in": str(FOLDER),
        "data_folder_out": str(FOLDER),
        "control_folder": str(FOLDER / "control"),
    },
    broker_connection_retry_on_startup=True,
    beat_schedule={name: {**entry, "schedule": 1.0} for name, entry in BEAT_SCHEDULE.items()},
)
app.autodiscover_tasks()
