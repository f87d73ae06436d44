"""The portal's Celery application: ``celery -A sample_project worker -B``."""

import logging
import os
from typing import Any

from celery import Celery
from celery.signals import worker_ready

__all__ = ["app"]

logger = logging.getLogger("portal.worker")

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sample_project.settings")
app = Celery("sample_project")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@worker_ready.connect
def _announce(**kwargs: Any) -> None:
    logger.info("The worker is ready.")
