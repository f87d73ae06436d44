"""Celery's filesystem transport, made safe for a worker that never stops looking.

For demonstrations and tests without a broker: ``broker_url = "filesystem://"`` together with
``broker_transport = "bipsync_django.testing.broker:Transport"``.
"""

import uuid
from pathlib import Path
from time import monotonic
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps

__all__ = ["Transport"]


class Channel(filesystem.Channel):
    """Messages appear whole.

    kombu 5.7 creates a message under its final name and writes to it afterwards. A worker that
    looks in between takes an empty message, and stops for good on the JSON error.
    """

    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:  # type: ignore[override]
        folder = Path(self.data_folder_out)
        name = f"{round(monotonic() * 1000)}_{uuid.uuid4()}"
        unfinished = folder / f"{name}.unfinished"
        unfinished.write_text(dumps(payload), encoding="utf-8")
        unfinished.rename(folder / f"{name}.{queue}.msg")


class Transport(filesystem.Transport):
    Channel = Channel
