"""The schedule for Celery beat, importable from a settings module.

Merge it: ``CELERY_BEAT_SCHEDULE = {**BEAT_SCHEDULE, …}``.
"""

from typing import Any

__all__ = ["BEAT_SCHEDULE"]

BEAT_SCHEDULE: dict[str, dict[str, Any]] = {
    "bipsync-refresh-due-tokens": {
        "task": "bipsync_django.tasks.refresh_due_tokens",
        "schedule": 60.0,
        "options": {"expires": 60},
    },
    "bipsync-prune": {
        "task": "bipsync_django.tasks.prune",
        "schedule": 3600.0,
        "options": {"expires": 3600},
    },
}
"""Once a minute and once an hour; a message that nobody took until the next one is dropped."""
