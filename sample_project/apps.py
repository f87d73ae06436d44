"""The portal as an app."""

from django.apps import AppConfig


class PortalConfig(AppConfig):
    name = "sample_project"
    verbose_name = "Portal"

    def ready(self) -> None:
        from . import activity  # noqa: F401 - its receivers register themselves
